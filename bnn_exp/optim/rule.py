"""The base class of all rules that train bits. A rule adds only the equations of its paper, in `update`."""

import copy
from dataclasses import asdict
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from bnn_exp.bits.draws import Purpose, number
from bnn_exp.bits.factors import Factors
from bnn_exp.bits.packing import PackedBits
from bnn_exp.bits.philox import Philox
from bnn_exp.config.registry import name_of
from bnn_exp.config.schema import check
from bnn_exp.nn import binary_parameters, device
from bnn_exp.nn.binary import NotBinary, check_bits
from bnn_exp.nn.graphs import beside
from bnn_exp.optim.announcement import constants_of, floats, from_floats
from bnn_exp.optim.fused import Fused, kernels_of
from bnn_exp.optim.gradients import remembered, signs
from bnn_exp.optim.group import Group
from bnn_exp.optim.in_place import flip_bits, keep_addresses, written
from bnn_exp.optim.trained import Trained

__all__ = ["Rule", "flip_bits", "remembered", "signs"]


class Rule(Trained, torch.optim.Optimizer):
    """Trains binary weights (tensors of 0. and 1., see `bnn_exp.nn.BinaryLayer`) by flipping bits.

    A rule derives from this class, names its `settings`, passes its hyperparameters to `__init__`, and returns from `update`
    the bits that flip. Step t of tensor i draws from (seed, t, i) alone. A group that is added later counts its own steps, and
    its schedule follows them. `lr` of a group is the strength of its coming step, see `bnn_exp.optim.group.Group`.

    A step has three parts. `announce` and `count` run in Python: they set the strengths and count the step. `apply` is only
    arithmetic on tensors, so a CUDA graph can record it. If the weights are on a GPU, scheduled hyperparameters are scalar
    tensors.

    Args:
        params: binary tensors, or parameter groups of them, with or without names.
        hyper: the hyperparameters by name, checked by `settings`.
        schedule: how the hyperparameters in `scheduled` fall over `total_steps` steps: `constant`, `linear`, `cosine` or
            `geometric`, see `bnn_exp.optim.schedules`.
        seed: the seed of all draws, ≥ 0.

    Raises:
        ValueError: an argument, or at a step a value of a group, is outside of its range. The message names it.
        NotBinary: a tensor holds something other than 0 and 1, now or in a later step. Numbers that are written past
            autograd (`tensor.data`) after the first step are not checked again.
    """

    own = ("flips", "hyper")
    settings: ClassVar[type]  # a dataclass of bnn_exp.config.rules: names, types and ranges of the hyperparameters
    scheduled: ClassVar[tuple[str, ...]] = ("delta",)  # the hyperparameters that follow the schedule
    kernels: ClassVar[tuple[Fused, ...]] = ()  # compiled forms of `update`; then `update` reads no `self`

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for each in vars(cls).get("kernels", ()):
            each.define(cls.update)

    def __init__(
        self, params, hyper: dict[str, Any], schedule: str = "constant", total_steps: int | None = None, seed: int = 0
    ):
        if missing := set(self.scheduled) - set(hyper):
            raise ValueError(
                f"{type(self).__name__}.scheduled names {', '.join(sorted(missing))}: must be of {', '.join(hyper)}"
            )
        self.hyper, self.flips = tuple(hyper), []
        self._forget()
        super().__init__(params, hyper | {"schedule": schedule, "total_steps": total_steps, "seed": seed, "step": 0})

    def _forget(self) -> None:
        """Drops everything that was computed from the groups and tensors, because they may have changed."""
        # Number of a tensor: its version and address when its bits were last checked.
        self._checked_at: dict[int, tuple[int, int]] = {}
        self._places: dict[int, tuple[int, int]] = {}  # id of a tensor: its number and the number of its group

    @classmethod
    def of(cls, settings, network: nn.Module, batch_size: int, total_steps: int, seed: int) -> "Rule":
        """Returns the rule that `settings` describe, for the bits of a network."""
        hyper = {name: value for name, value in asdict(settings).items() if name != "name"}
        return cls(list(binary_parameters(network)), **hyper, total_steps=total_steps, seed=seed)

    def strength_of(self, entries: dict[str, Any]) -> str | None:
        """Returns the hyperparameter that `lr` of a group stands for: `lr` if it is scheduled, else the first scheduled."""
        return "lr" if "lr" in self.scheduled else next(iter(self.scheduled), None)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of binary tensors. Its entry `lr` sets the strength.

        The group counts its own steps, from 0. Its tensors get the numbers after those of all earlier tensors.

        Raises:
            ValueError: a hyperparameter is outside of its range; the message names the hyperparameter.
            NotBinary: a tensor holds something other than 0 and 1. The group is not added.
        """
        strength = self.strength_of(self.defaults | param_group)
        if "lr" in param_group and strength not in (None, *param_group):
            param_group = {strength if name == "lr" else name: value for name, value in param_group.items()}
        super().add_param_group(param_group)

    def check_group(self, group: Group) -> None:
        self._check_values(group)
        self._forget()
        first = len(self.tensors()) - len(group["params"])
        for i, p in enumerate(group["params"], first):
            self._check_bits(i, p)
        super().check_group(group)

    def _check_values(self, group: Group) -> None:
        """Checks the hyperparameters of a group, unless they are the same as at the last check."""
        values = (*map(group.kept, self.hyper), group["schedule"])
        if group.checked != values:
            hyper = dict(zip(self.hyper, values, strict=False))
            check(self.settings, {"name": name_of(self.settings), **hyper, "schedule": group["schedule"]})
            group.checked = values

    def _check_bits(self, i: int, p: Tensor) -> None:
        """Checks that tensor i holds bits, unless only this rule has written to it since the last check."""
        if p.dtype == torch.uint8 or p.is_meta or self._checked_at.get(i) == written(p):
            return
        try:
            check_bits(self.name(i), p)
        except NotBinary as error:
            raise NotBinary(f"{error}\nallowed: bits, as `binary_parameters` names them; LatentAdam, … for latents") from None
        self._checked_at[i] = written(p)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    @staticmethod
    def reads_entries(h: SimpleNamespace) -> bool:
        """Returns True if `update` draws positions first, and reads gradient and bits at these positions alone.

        On a CPU the packed engine then calls `update` with Factors and PackedBits, which compute only these entries.
        """
        return False

    def update(self, g: Tensor, w: Tensor, h: SimpleNamespace, state: dict[str, Tensor], draw: torch.Generator) -> Tensor:
        """Returns the bits of a tensor that flip in this step. The method may change `state`, and nothing else.

        Args:
            g, w: gradient and bits (0. and 1.), [neurons, inputs of each]; a vector is one row. For a rule that
                `reads_entries` they may be Factors and PackedBits.
            h: the hyperparameters; those in `scheduled` have their values of this step.
            state: the tensors that the rule keeps for this tensor from step to step; empty at first.
            draw: the source of all random numbers, see `bnn_exp.bits.philox.uniform`.

        Returns:
            bool [neurons, inputs], or the flat positions of the flips, int64, each once.
        """
        raise NotImplementedError(f"{type(self).__name__} has no method update(g, w, h, state, draw)")

    @torch.no_grad()
    def step(self, closure=None):
        """Trains every tensor that has a gradient. Returns the loss that `closure` returns, or None without a closure."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        self.announce()
        self.apply()
        self.count()
        return loss

    def numbers(self) -> np.ndarray | None:
        """Checks the groups, and the tensors that others have written to. Returns what a step on a GPU reads from Python.

        Returns:
            int64 [groups · (1 + scheduled)]: for each group the number of the coming step, then the strengths as `from_floats`
            gives them. None on a CPU.

        Raises:
            ValueError: a hyperparameter of a group is outside of its range.
            NotBinary: a tensor holds something other than 0 and 1.
        """
        tensors = self.tensors()
        for group in self.param_groups:
            self._check_values(group)
        for i, p in enumerate(tensors):
            self._check_bits(i, p)
        if not tensors or device.on_host(tensors[0]):
            return None
        strengths = [from_floats(group.at(name, group["step"]) for name in self.scheduled) for group in self.param_groups]
        return np.concatenate([[group["step"], *own] for group, own in zip(self.param_groups, strengths, strict=True)])

    def constants(self) -> tuple:
        return constants_of(self.param_groups, {"step", "schedule", "total_steps", *self.scheduled})

    @torch.no_grad()
    def apply(self) -> None:
        """Flips bits of every tensor that has a gradient."""
        for p in self.tensors():
            if p.grad is not None:
                with beside(p.grad):
                    self.flip(p, p.grad)

    def count(self) -> None:
        """Adds 1 to the count of steps of each group."""
        for group in self.param_groups:
            group["step"] += 1

    @torch.no_grad()
    def flip(self, p: Tensor, g: Tensor | Factors) -> None:
        """Flips bits of one tensor by its gradient: the part of the coming step that concerns this tensor.

        The backward pass may call this method as soon as it has computed the gradient and no longer needs the tensor.

        Args:
            p: a tensor that this rule trains: bits as 0. and 1., or packed, uint8 [neurons, ⌈inputs / 8⌉].
            g: the gradient of p; Factors for packed bits.
        """
        i, k = self._place(p)
        h, state, packed = self._values(p, k), self.state[p], p.dtype == torch.uint8
        w = p.data if packed else _rows(p)
        entries = packed and device.on_host(p) and self.reads_entries(h)
        kernels = None if entries else kernels_of(type(self), h)
        if not packed:
            g = g.reshape(w.shape)
        elif not (entries or (kernels and kernels.takes_blocks and g.lean)):
            g = g.whole()
        if not (kernels and kernels.step(w, g, h, state, self._step(p, k), self._key(i, k), self.flips[i])):
            before = {} if device.on_host(p) else dict(state)
            g = g if entries or isinstance(g, Tensor) else g.whole()
            self.flips[i] += self._flip(w, g, h, state, self._draw(p, i, k))
            keep_addresses(state, before)
        if not packed:
            self._checked_at[i] = written(p)

    def _flip(self, w: Tensor, g: Tensor | Factors, h: SimpleNamespace, state: dict[str, Tensor], draw: Philox) -> int | Tensor:
        """Flips bits in place by `update`, and returns the number of flips. `w` are bits [neurons, inputs] or packed bits."""
        if w.dtype != torch.uint8:
            return flip_bits(w, self._flips_in(self.update(g, w, h, state, draw), w.shape))
        if isinstance(g, Tensor):
            bits = PackedBits(w, g.shape[1])
            which = self.update(g.float(), bits.unpack(), h, state, draw)
        else:
            bits = PackedBits(w, g.inputs)
            which = self.update(g, bits, h, state, draw)
        return bits.flip(self._flips_in(which, (len(w), bits.columns)))

    def _flips_in(self, which: Any, shape: tuple[int, ...]) -> Tensor:
        """Returns `which`, the result of `update`. Raises TypeError if it cannot name bits of a tensor of this shape."""
        if isinstance(which, Tensor):
            mask = which.dtype == torch.bool and tuple(which.shape) == tuple(shape)
            if mask or (which.dtype == torch.int64 and which.dim() == 1):
                return which
        got = f"{which.dtype} {list(which.shape)}" if isinstance(which, Tensor) else type(which).__name__
        kind = type(self).__name__
        raise TypeError(f"{kind}.update returned {got}: must be bool {list(shape)}, or flat positions, int64 [count]")

    def _place(self, p: Tensor) -> tuple[int, int]:
        """Returns the number of a tensor, and the number of its group."""
        if id(p) not in self._places:
            groups = [(q, k) for k, group in enumerate(self.param_groups) for q in group["params"]]
            self._places = {id(q): (i, k) for i, (q, k) in enumerate(groups)}
        return self._places[id(p)]

    def _values(self, p: Tensor, k: int) -> SimpleNamespace:
        """Returns the hyperparameters of a tensor in group k at the coming step. On a GPU the scheduled ones are tensors."""
        group = self.param_groups[k]
        if device.on_host(p):
            return self._at(group, group["step"])
        strengths = floats(self._on_device()[k, 1:]).unbind()
        return SimpleNamespace(**{n: group.kept(n) for n in self.hyper} | dict(zip(self.scheduled, strengths, strict=True)))

    def _step(self, p: Tensor, k: int) -> Tensor:
        """Returns the number of the coming step of a tensor in group k, an int64 scalar on the device of the tensor."""
        return torch.tensor(self.param_groups[k]["step"]) if device.on_host(p) else self._on_device()[k, 0]

    def _key(self, i: int, k: int) -> int:
        """Returns the key of the random numbers of tensor i in group k."""
        return _key(self.param_groups[k]["seed"], i)

    def _draw(self, p: Tensor, i: int, k: int) -> Philox:
        """Returns the source of the random numbers of tensor i in group k at the coming step."""
        group = self.param_groups[k]
        recording = p.is_cuda and torch.cuda.is_current_stream_capturing()
        seed = None if recording else number(Purpose.MASK, group["seed"], group["step"], i) >> 1
        return Philox(self._key(i, k), self._step(p, k), seed)

    def _on_device(self) -> Tensor:
        """Returns the announced numbers, int64 [groups, 1 + scheduled], see `numbers`."""
        if self.announced is None:
            self.announce()
        return self.announced.view(len(self.param_groups), -1)

    def _at(self, group: Group, step: int) -> SimpleNamespace:
        return SimpleNamespace(**{n: group.at(n, step) if n in self.scheduled else group.kept(n) for n in self.hyper})

    @property
    def strengths(self) -> dict[str, float | None]:
        """The scheduled hyperparameters that the last step of the first group used; `delta` is None without a δ."""
        group = self.param_groups[0]
        h = self._at(group, max(group["step"] - 1, 0))
        return {"delta": None} | {name: getattr(h, name) for name in self.scheduled}

    def load_state_dict(self, state_dict: dict) -> None:
        """Loads the state of a rule. Unlike torch's method, this method keeps the dtype of each tensor of the state."""
        super().load_state_dict(state_dict)
        for i, p in enumerate(self.tensors()):
            if i in state_dict["state"]:
                kept = copy.deepcopy(state_dict["state"][i])
                self.state[p] = {name: v.to(p.device) if isinstance(v, Tensor) else v for name, v in kept.items()}


@lru_cache
def _key(seed: int, i: int) -> int:
    """Returns the key of the random numbers of tensor i, 63 bits."""
    return number(Purpose.MASK, seed, i) >> 1


def _rows(p: Tensor) -> Tensor:
    """Returns a tensor as [neurons, inputs of each]; a vector is one row."""
    return p.view(len(p) if p.dim() > 1 else 1, -1)
