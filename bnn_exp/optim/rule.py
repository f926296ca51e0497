"""What every rule for binary weights has in common, so that a rule is its equations alone."""

import copy
from dataclasses import asdict
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from bnn_exp.bits.draws import Purpose, generator
from bnn_exp.bits.factors import Factors
from bnn_exp.bits.packing import PackedBits
from bnn_exp.config.registry import name_of
from bnn_exp.config.schema import check
from bnn_exp.nn import binary_parameters
from bnn_exp.nn.binary import NotBinary, check_bits
from bnn_exp.optim.eager import Eager
from bnn_exp.optim.group import Group, Grouped


class Trained(Grouped, Eager):
    """What is asked of an optimizer of binary weights beside its steps: which tensors, how many flips, how many bytes."""

    flips: list[Tensor]  # bits flipped in each tensor, int64 scalars on its device, until their reader sets them back
    own: ClassVar[tuple[str, ...]] = ("flips",)  # attributes that a copy of the optimizer needs beside torch's

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {name: getattr(self, name) for name in self.own}

    def tensors(self) -> list[Tensor]:
        """The tensors it trains, in the order of `flips`."""
        return [p for group in self.param_groups for p in group["params"]]

    def name(self, i: int) -> str:
        """Returns the name of tensor i for messages: the one that the optimizer was given, else its number."""
        names = [name for group in self.param_groups for name in group.get("param_names", [])]
        return names[i] if names else f"tensor {i}"

    def check_group(self, group: Group) -> None:
        super().check_group(group)
        self.flips += [torch.zeros((), dtype=torch.int64, device=p.device) for p in group["params"]]

    @property
    def state_bytes(self) -> int:
        """Bytes that it keeps between two steps beside the bits themselves, as its tensors are at this moment."""
        kept = (v for state in self.state.values() for v in state.values() if isinstance(v, Tensor))
        return sum(v.numel() * v.element_size() for v in kept)


class Rule(Trained, torch.optim.Optimizer):
    """Trains binary weights (tensors of 0. and 1., see `bnn_exp.nn.BinaryLayer`) by flipping bits.

    A rule derives from it, names its `settings`, hands its hyperparameters to `__init__`, and says in `update` which bits flip.
    Step t of tensor i draws from (seed, t, i) alone. A group that is added later counts its own steps, and its schedule
    goes by them. `lr` of a group is the strength of its coming step, see `bnn_exp.optim.group.Group`.

    Args:
        params: binary tensors, or parameter groups of them, with names or without.
        hyper: the hyperparameters by name, checked by `settings`.
        schedule: how the `scheduled` ones fall over `total_steps` steps: `constant`, `linear`, `cosine` or `geometric`, see
            `bnn_exp.optim.schedules`.
        seed: of what is drawn, ≥ 0.

    Raises:
        ValueError: an argument outside of its range, by name; at a step, a value of a group that was set since.
        NotBinary: a tensor holds something other than 0 and 1, here or in a later step. Numbers that are written past
            autograd (`tensor.data`) after the first step are not looked at again.
    """

    own = ("flips", "hyper")
    settings: ClassVar[type]  # a dataclass of bnn_exp.config.rules: names, types and ranges
    scheduled: ClassVar[tuple[str, ...]] = ("delta",)  # the hyperparameters that fall by the schedule

    def __init__(
        self, params, hyper: dict[str, Any], schedule: str = "constant", total_steps: int | None = None, seed: int = 0
    ):
        if missing := set(self.scheduled) - set(hyper):
            raise ValueError(
                f"{type(self).__name__}.scheduled names {', '.join(sorted(missing))}: must be of {', '.join(hyper)}"
            )
        self.hyper, self.flips = tuple(hyper), []
        self._looked_at: dict[int, tuple[int, int]] = {}  # by tensor, when it was last known to hold bits
        super().__init__(params, hyper | {"schedule": schedule, "total_steps": total_steps, "seed": seed, "step": 0})

    @classmethod
    def of(cls, settings, network: nn.Module, batch_size: int, total_steps: int, seed: int) -> "Rule":
        """The rule that `settings` describe, for the bits of a network."""
        hyper = {name: value for name, value in asdict(settings).items() if name != "name"}
        return cls(list(binary_parameters(network)), **hyper, total_steps=total_steps, seed=seed)

    def strength_of(self, entries: dict[str, Any]) -> str | None:
        """Returns the scheduled hyperparameter that `lr` of a group stands for: the one of this name, else the first."""
        return "lr" if "lr" in self.scheduled else next(iter(self.scheduled), None)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of binary tensors; `lr` sets its strength. The group counts its own steps, from 0; its tensors are
        numbered after all that are there.

        Raises:
            ValueError: a hyperparameter outside of its range, by name.
            NotBinary: a tensor holds something other than 0 and 1. The group is not added.
        """
        strength = self.strength_of(self.defaults | param_group)
        if "lr" in param_group and strength not in (None, *param_group):
            param_group = {strength if name == "lr" else name: value for name, value in param_group.items()}
        super().add_param_group(param_group)

    def check_group(self, group: Group) -> None:
        self._check_values(group)
        first = len(self.tensors()) - len(group["params"])
        for i in range(first, len(self.tensors())):
            self._looked_at.pop(i, None)  # of a group that was refused
            self._look_at(i)
        super().check_group(group)

    def _check_values(self, group: Group) -> None:
        """Checks the hyperparameters of a group that have changed since the last check."""
        values = (*map(group.kept, self.hyper), group["schedule"])
        if group.checked != values:
            hyper = dict(zip(self.hyper, values, strict=False))
            check(self.settings, {"name": name_of(self.settings), **hyper, "schedule": group["schedule"]})
            group.checked = values

    def _look_at(self, i: int) -> None:
        """Checks that tensor i holds bits, unless only this rule has written to it since the last check."""
        p = self.tensors()[i]
        if p.dtype == torch.uint8 or p.is_meta or self._looked_at.get(i) == _written(p):
            return
        try:
            check_bits(self.name(i), p)
        except NotBinary as error:
            raise NotBinary(f"{error}\nallowed: bits, as `binary_parameters` names them; LatentAdam, … for latents") from None
        self._looked_at[i] = _written(p)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._looked_at = {}

    @staticmethod
    def reads_entries(h: SimpleNamespace) -> bool:
        """Whether `update` reads some entries alone, those that it draws beforehand: then it takes Factors and PackedBits."""
        return False

    def update(self, g: Tensor, w: Tensor, h: SimpleNamespace, state: dict[str, Tensor], draw: torch.Generator) -> Tensor:
        """Which bits of a tensor flip in this step. It may change `state`, and nothing else.

        Args:
            g, w: gradient and bits (0. and 1.), [neurons, inputs of each]; a vector is one row. For a rule that
                `reads_entries` they may be Factors and PackedBits.
            h: the hyperparameters, those in `scheduled` as they are at this step.
            state: what the rule remembers of this tensor from step to step; empty at first.
            draw: all chance comes from here.

        Returns:
            bool [neurons, inputs], or the flat positions, int64 and each once.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method update(g, w, h, state, draw)")

    @torch.no_grad()
    def step(self, closure=None):
        """One step of every tensor that has a gradient; returns the closure's loss, if there is one."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for i, p in enumerate(self.tensors()):
            if p.grad is not None:
                self._step(i, p.grad.reshape(_rows(p).shape))
        for group in self.param_groups:
            group["step"] += 1
        return loss

    @torch.no_grad()
    def step_packed(self, i: int, g: Factors) -> None:
        """The part of the coming `step` that is tensor i's, whose bits are packed, from its gradient as factors.

        It is called in the backward pass, after the last use of the tensor in it.
        """
        h, state, draw = self._at(i)
        w = PackedBits(self.tensors()[i].data, g.inputs)
        if self.reads_entries(h):
            which = self.update(g, w, h, state, draw)
        else:
            which = self.update(g.whole(), w.unpack(), h, state, draw)
        self.flips[i] += w.flip(self._checked(which, (len(w.packed), w.columns)))

    def _step(self, i: int, g: Tensor) -> None:
        self._look_at(i)
        h, state, draw = self._at(i)
        w = _rows(self.tensors()[i])
        self.flips[i] += flip(w, self._checked(self.update(g, w, h, state, draw), w.shape))
        self._looked_at[i] = _written(self.tensors()[i])

    def _checked(self, which: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Returns what `update` gave, if it can say which bits of a tensor of this shape flip."""
        if isinstance(which, Tensor):
            mask = which.dtype == torch.bool and tuple(which.shape) == tuple(shape)
            if mask or (which.dtype == torch.int64 and which.dim() == 1):
                return which
        got = f"{which.dtype} {list(which.shape)}" if isinstance(which, Tensor) else type(which).__name__
        kind = type(self).__name__
        raise TypeError(f"{kind}.update returned {got}: must be bool {list(shape)}, or flat positions, int64 [count]")

    def _at(self, i: int) -> tuple[SimpleNamespace, dict[str, Tensor], torch.Generator]:
        """What a step of tensor i goes by: its hyperparameters, state and chance."""
        p, (group, h) = self.tensors()[i], self._strength(i)
        return h, self.state[p], generator(p.device, Purpose.MASK, group["seed"], group["step"], i)

    def _strength(self, i: int) -> tuple[Group, SimpleNamespace]:
        """Tensor i's group, and its hyperparameters at the coming step."""
        group = [group for group in self.param_groups for _ in group["params"]][i]
        self._check_values(group)
        return group, self._now(group, group["step"])

    def _now(self, group: Group, step: int) -> SimpleNamespace:
        return SimpleNamespace(**{k: group.at(k, step) if k in self.scheduled else group.kept(k) for k in self.hyper})

    @property
    def strengths(self) -> dict[str, float | None]:
        """The scheduled hyperparameters that the last step of the first group used; `delta` is None where there is none."""
        group = self.param_groups[0]
        h = self._now(group, max(group["step"] - 1, 0))
        return {"delta": None} | {name: getattr(h, name) for name in self.scheduled}

    @torch.no_grad()
    def step_now(self, i: int) -> None:
        """The part of the coming `step` that is tensor i's, by its `grad`, which is dropped."""
        p = self.tensors()[i]
        g, p.grad = p.grad, None
        self._step(i, _rows(g))

    def load_state_dict(self, state_dict: dict) -> None:
        """As torch's, but each tensor of the state keeps its dtype, which torch would make the weights'."""
        super().load_state_dict(state_dict)
        for i, p in enumerate(self.tensors()):
            if i in state_dict["state"]:
                kept = copy.deepcopy(state_dict["state"][i])
                self.state[p] = {name: v.to(p.device) if isinstance(v, Tensor) else v for name, v in kept.items()}


def _written(p: Tensor) -> tuple[int, int]:
    """Returns two numbers that change when a tensor is written to: its version and its address."""
    return p._version, p.data_ptr()


def _rows(p: Tensor) -> Tensor:
    """A tensor as [neurons, inputs of each]; a vector is one row."""
    return p.view(len(p) if p.dim() > 1 else 1, -1)


def flip(w: Tensor, which: Tensor) -> Tensor:
    """Flip bits of `w` in place: where a mask of its shape (bool) is true, or at flat positions (int64). Their number."""
    if which.dtype == torch.bool:
        w.logical_xor_(which)
        return which.count_nonzero()
    flat = w.view(-1)
    flat[which] = 1 - flat[which]
    return torch.tensor(len(which), device=w.device)


def signs(w: Tensor) -> Tensor:
    """s = 2b − 1: −1 for a bit 0, +1 for a bit 1."""
    return (2 * w).sub_(1)


def remembered(state: dict[str, Tensor], name: str, like: Tensor) -> Tensor:
    """The tensor `name` of a rule's state, all zeros before its first step."""
    if name not in state:
        state[name] = torch.zeros_like(like)
    return state[name]


def scaled(g: Tensor, scale: str) -> Tensor:
    """A gradient [neurons, inputs] in units of its size: numbers around 1 that can be compared across weights.

    `tensor` divides by the standard deviation σ(g), `neuron` by the root mean square of its row, `factored` by
    RMS(row)·RMS(column)/RMS(tensor): each entry's size as a product (Adafactor, Shazeer & Stern 2018, arXiv 1804.04235, here of
    this batch alone, so that nothing is remembered). A single row is taken as a whole. 0 stays 0.
    """
    if scale == "tensor" or len(g) == 1:
        size = g.std(correction=0)
    else:
        size = rms(g, 1)
        if scale == "factored":
            size = size * rms(g, 0) / rms(g, (0, 1)).clamp(min=torch.finfo(g.dtype).tiny)
    return g / size.clamp(min=torch.finfo(g.dtype).tiny)


def rms(x: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """The root mean square over `dims`, which stay as 1."""
    return x.square().mean(dims, keepdim=True).sqrt()
