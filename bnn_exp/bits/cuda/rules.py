"""A rule's step on one tensor on a GPU, by Triton's kernels. `STEPS` holds a function for each operator of a rule.

Each function measures the gradient if the rule needs a measure, and launches the kernel `flip` with the rule's function of
scalars, see `bnn_exp.bits.scalar_rules`.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from bnn_exp.bits import scalar_rules
from bnn_exp.bits.counters import stored_width
from bnn_exp.bits.cuda import flips, measures, top
from bnn_exp.bits.cuda.flips import EXACT, OnGrid
from bnn_exp.bits.cuda.scalars import SCALARS
from bnn_exp.bits.scalar_rules import Step


def _flips(step: Step, given: OnGrid, measured: measures.Measured) -> None:
    """Does a step of a scalar function."""
    sizes, parts, size = measured
    a, b, *_ = *given.floats, *(t for t in (given.counters,) if t is not None), given.strength, given.strength
    counts = given.g.new_empty(given.grid, dtype=torch.int32) if step.counted else given.strength
    flips.flip[given.grid](
        *given.tensors,
        a,
        b,
        sizes,
        parts,
        given.strength,
        *step.constants(given.constants),
        given.key,
        given.step,
        given.flips,
        counts,
        RULE=SCALARS[step.rule],
        SIZE=size,
        FLOATS=len(given.floats),
        COUNTER=0 if given.counters is None else stored_width(int(given.constants[0])),
        RANDOM=step.random,
        COUNTED=step.counted,
        **given.layout,
        **EXACT,
    )
    if step.counted:
        measures.unflipped[(1,)](counts, len(counts), given.bits, given.state[1])


def _step(step: Step) -> Callable[..., None]:
    """Returns a function that does a step of a rule on one tensor, with the arguments of `Given`."""
    do = top.flips if step.rule == "top" else _flips

    def done(*arguments: Any) -> None:
        given = OnGrid(*arguments)
        do(step, given, measures.MEASURES[step.measure](given))

    return done


STEPS = SimpleNamespace(**{name: _step(step) for name, step in scalar_rules.STEPS.items()})
