"""The baseline: usual optimizers train real latent weights. Gradients pass straight through the threshold that makes bits."""

import importlib
import inspect
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch.optim import Optimizer

from bnn_exp.errors import UserError, reason
from bnn_exp.nn import device, latent_parameters, named_bits
from bnn_exp.optim import eager
from bnn_exp.optim.announcement import constants_of, floats, from_floats
from bnn_exp.optim.trained import Trained
from bnn_exp.optim.watched import Watched


class OfLatents(Trained):
    """A mixin that lets a torch optimizer train latent weights: it schedules the learning rate and counts flips.

    It stands before the torch optimizer in the list of base classes. A network of float weights has no bits (`bits=False`).

    Args:
        schedule: `constant`, `linear`, `cosine` or `geometric`: how the learning rate falls over `total_steps` steps.

    Raises:
        ValueError: a tensor holds bits (only 0 and 1) in place of latent weights, or the schedule is unknown.
    """

    own = ("flips", "bits", "falls", "watched")
    step_entry = "steps"

    def __init__(self, params, *arguments, schedule: str = "constant", total_steps: int | None = None, bits=True, **options):
        self.falls = {"schedule": schedule, "total_steps": total_steps}
        self.bits, self.flips, self.watched = bits, [], Watched()
        super().__init__(params, *arguments, **options)

    @classmethod
    def of(cls, settings, network, batch_size, total_steps, seed):
        """Returns the optimizer that `settings` describe, for the latent or float weights of a network."""
        return cls.for_latents(network, total_steps, **{k: v for k, v in asdict(settings).items() if k != "name"})

    @classmethod
    def for_latents(cls, network: torch.nn.Module, total_steps: int, **options):
        """Returns the optimizer with these options, for the latent or float weights of a network."""
        bits, latents = any(True for _ in named_bits(network)), list(latent_parameters(network))
        options = eager.options_for(cls, [p for _, p in latents]) | options
        return cls(latents, **options, total_steps=total_steps, bits=bits)

    @property
    def recordable(self) -> bool:
        """True if a CUDA graph can record `apply`: a step of the torch optimizer then needs nothing from Python."""
        return all(group.get("fused") or group.get("capturable") for group in self.param_groups)

    def strength_of(self, entries: dict[str, Any]) -> str:
        """Returns the name of the entry that holds the learning rate before the schedule reduces it."""
        return "full_lr"

    def entries(self, group: dict[str, Any]) -> dict[str, Any]:
        """Returns a group with a schedule and a full learning rate. They replace `lr`, which each step computes from them."""
        lr = group.pop("lr", None)
        return group if "full_lr" in group else self.falls | group | {"full_lr": lr, "steps": 0}

    def check_group(self, group) -> None:
        first = len(self.tensors()) - len(group["params"])
        for i, p in enumerate(group["params"], first) if self.bits else ():
            if _holds_bits(p):
                name = type(self).__name__
                raise ValueError(f"{self.name(i)} holds bits, 0 and 1 alone: {name} trains latents\nallowed: {ALLOWED}")
        super().check_group(group)
        if not self.bits:
            self.flips = []

    @property
    def state_bytes(self) -> int:
        """The bytes of the optimizer's state and of the latent weights themselves."""
        return super().state_bytes + sum(p.numel() * p.element_size() for p in self.tensors())

    @property
    def strengths(self) -> dict[str, float | None]:
        """The learning rate of the last step. δ is None: latent weights have no δ."""
        group = self.param_groups[0]
        return {"delta": None, "lr": group.at("full_lr", max(group["steps"] - 1, 0))}

    def step(self, closure=None):
        """Performs a step of the torch optimizer at the scheduled learning rate. Returns the loss of the closure, if any."""
        self.announce()
        loss = self.apply(closure)
        self.count()
        return loss

    @property
    def _on_gpu(self) -> bool:
        return not all(map(device.on_host, self.tensors()))

    def numbers(self) -> np.ndarray | None:
        """Returns the learning rate of each group for the coming step, as `from_floats` gives it.

        Returns None on a CPU, and for a torch optimizer that reads its learning rate from Python.
        """
        if self.bits:
            self.watched.prepare(self.tensors())
        if not (self._on_gpu and self.recordable):
            return None
        return from_floats(group["lr"] for group in self.param_groups)

    def constants(self) -> tuple:
        return constants_of(self.param_groups, {"full_lr", "steps", "schedule", "total_steps", "lr"})

    def apply(self, closure=None):
        """Trains the latent weights, and counts the bits that change. Returns the loss of the closure, if any."""
        if self.announced is not None:
            for rate, group in zip(floats(self.announced).unbind(), self.param_groups, strict=True):
                group.on_device = rate
        try:
            loss = super().step(closure)
        finally:
            for group in self.param_groups:
                group.on_device = None
        if self.bits:
            self.watched.follow(self.tensors(), self.flips)
        return loss

    def count(self) -> None:
        """Adds 1 to the count of steps of each group."""
        for group in self.param_groups:
            group["steps"] += 1

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the state of an optimizer, which may come from another device."""
        super().load_state_dict(eager.own_options(self, state_dict))


ALLOWED = "real numbers, as `latent_parameters` names them; a `Rule` for bits"


def _holds_bits(p: torch.Tensor) -> bool:
    """Returns True if the tensor holds both 0 and 1, and no other number: it can only be bits."""
    zeros, ones = p == 0, p == 1
    return bool((zeros | ones).all() & zeros.any() & ones.any())


class LatentSGD(OfLatents, eager.SGD):
    """SGD on latent weights."""

    def __init__(self, params, lr=0.1, momentum=0.9, **training):
        super().__init__(params, lr, momentum=momentum, **training)


class LatentAdam(OfLatents, eager.Adam):
    """Adam on latent weights (Kingma & Ba, arXiv 1412.6980)."""

    def __init__(self, params, lr=0.01, **training):
        super().__init__(params, lr, **training)


class Latent:
    """Builds and checks the optimizer of `optimizer=latent`: any torch optimizer, on latent weights."""

    @classmethod
    def of(cls, settings, network, batch_size, total_steps, seed) -> OfLatents:
        """Returns the optimizer that `settings` describe, for the latent or float weights of a network.

        Raises:
            UserError: the class or an option does not exist, or the optimizer can't train these tensors.
        """
        kind = latent_optimizer(torch_class(settings.torch))
        try:
            options = {"lr": settings.lr, "schedule": settings.schedule, **(settings.options or {})}
            return kind.for_latents(network, total_steps, **options)
        except (TypeError, ValueError, RuntimeError) as error:
            raise _refused(settings, error) from error

    @classmethod
    def check(cls, settings) -> None:
        """Checks that the optimizer that `settings` describe can do a step.

        Raises:
            UserError: the optimizer can't do a step; the message says why.
        """
        kind = torch_class(settings.torch)
        options = settings.options or {}
        if twice := options.keys() & {"lr", "schedule", "total_steps", "bits", "params"}:
            name = min(twice)
            raise UserError(
                f"optimizer.options.{name}={options[name]}: no option of the class\nallowed: optimizer.lr, optimizer.schedule"
            )
        closure = inspect.signature(kind.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise UserError(f"optimizer.torch={settings.torch}: its steps need a closure\nallowed: {EXAMPLES}")
        weight = torch.nn.Parameter(torch.zeros(2, 2))
        weight.grad = torch.ones(2, 2)
        try:
            latent_optimizer(kind)([weight], lr=settings.lr, **options).step()
        except Exception as error:  # a class of the user may raise any error
            raise _refused(settings, error) from error


EXAMPLES = "a class of torch.optim, such as RMSprop, or package.module:Class"


def latent_optimizer(kind: type[Optimizer]) -> type[OfLatents]:
    """Returns a class that trains latent weights by the torch optimizer `kind`, with its options, a schedule and counted flips.

    optimizer = latent_optimizer(torch.optim.RMSprop)(latents, lr=0.01, momentum=0.9, schedule="cosine", total_steps=100)
    """
    own = kind if kind.__module__.partition(".")[0] != "torch" else eager.eager(kind)
    return type(f"Latent{kind.__name__}", (OfLatents, own), {"__module__": __name__, "__doc__": f"{kind.__name__} on latents."})


def torch_class(name: str) -> type[Optimizer]:
    """Returns the optimizer class of a name: `RMSprop`, `torch.optim.RMSprop` or "package.module:Class".

    Raises:
        UserError: there is no such class, or the class is not an optimizer.
    """
    module, _, kind = name.rpartition(":") if ":" in name else name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module or "torch.optim"), kind)
    except Exception as error:  # importing a module of the user may raise any error
        raise UserError(f"optimizer.torch={name}: {error}\nallowed: {EXAMPLES}") from error
    if not (isinstance(found, type) and issubclass(found, Optimizer)) or found is Optimizer:
        raise UserError(f"optimizer.torch={name}: no optimizer of torch\nallowed: {EXAMPLES}")
    return found


def _refused(settings, error: Exception) -> UserError:
    options = f" optimizer.options={settings.options}" if settings.options else ""
    known = [
        name
        for name in inspect.signature(torch_class(settings.torch).__init__).parameters
        if name not in ("self", "params", "lr")
    ]
    return UserError(
        f"optimizer.torch={settings.torch}{options}: {reason(error)}\n"
        f"allowed: {EXAMPLES}; of this class the options {', '.join(known)}"
    )
