"""The rules of `bnn_exp.optim` for the kernel `flip`: for each rule a function of scalars that mirrors its method `update`.

Each function takes the gradient g, the bit as s = ±1, two numbers of state, a random number u in [0, 1), a measure of the
whole tensor (the size of gradients, a temperature, or β), the strength and two more hyperparameters. The function
returns True for a flip, and the new state. The functions at the end launch the kernels of a step on one tensor. The attribute
`kernels` of a rule names such a function.
"""

from collections.abc import Callable
from operator import attrgetter
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from bnn_exp.bits.counters import stored_width
from bnn_exp.bits.cuda import flips, measures, top
from bnn_exp.bits.cuda.flips import EXACT, Given
from bnn_exp.bits.cuda.measures import TINY


@triton.jit
def _mean(m, x, rate):
    """Returns the moving average (1 − rate)·m + rate·x, as `torch.lerp` computes it."""
    return tl.where(tl.abs(rate) < 0.5, m + rate * (x - m), x - (x - m) * (1 - rate))


@triton.jit
def bop_of(g, s, m, none, u, size, gamma, tau, z):
    m = _mean(m, g, gamma)
    return m * s > tau, m, none


@triton.jit
def bop2_of(g, s, m, v, u, size, gamma, sigma, tau):
    m, v = _mean(m, g, gamma), _mean(v, g * g, sigma)
    return tl.div_rn(m * s, tl.sqrt_rn(v) + 1e-10) > tau, m, v


@triton.jit
def cema_of(g, s, m, h, u, size, alpha, gamma, z):
    m = _mean(m, g, gamma)
    h = _mean(h, m, alpha)
    return h * s > 0, m, h


@triton.jit
def bold_of(g, s, a, none, u, beta, eta, y, z):
    a = a * beta + g * eta
    which = a * s >= 1
    return which, tl.where(which, 0.0, a), none


@triton.jit
def counter_of(g, s, n, none, u, size, delta, half, z):
    """Does a step of a counter c = n − half; n is stored. A counter of one bit is the bit itself."""
    c = n - half - tl.floor(tl.div_rn(g, tl.maximum(size, TINY)) * (delta * half) + u)
    c = tl.minimum(tl.maximum(c, -half), half - 1)
    return (c >= 0) != (s > 0), c + half, none


@triton.jit
def random_of(g, s, none, nothing, u, size, delta, y, z):
    return (u < delta) & ((g <= 0) != (s > 0)), none, nothing


@triton.jit
def ewm_of(g, s, none, nothing, u, tau, lr, y, z):
    return (g * s > 0) & (u < tl.erf(tau * tl.abs(g))), none, nothing


@triton.jit
def wpm_of(g, s, none, nothing, u, tau, lr, y, z):
    return (g * s > 0) & (tl.abs(g) >= tl.div_rn(0.4769, tau)), none, nothing


def _as_it_is(given: Given) -> measures.Measured:
    return given.strength, 0, measures.one


def _constant_heat(given: Given) -> measures.Measured:
    return given.strength, 0, measures.number


def _beta(given: Given) -> measures.Measured:
    return given.state[1], 0, measures.number


def _next_beta(given: Given, counts: Tensor) -> None:
    measures.unflipped[(1,)](counts, len(counts), given.bits, given.state[1])


def _half(given: Given) -> list[float]:
    return [2.0 ** (given.constants[0] - 1)]


def _step(
    rule: Any,
    measure: Callable = _as_it_is,
    random: bool = False,
    after: Callable | None = None,
    constants: Callable = attrgetter("constants"),
) -> Callable[..., None]:
    """Returns a function that does a step of the scalar function `rule` on a tensor, with the arguments of `Given`.

    Args:
        measure: measures the whole gradient first; see `measured_deviation`.
        random: True if the rule draws random numbers.
        after: takes the numbers of flips of all programs, int32, when the step is done.
        constants: returns the hyperparameters y and z.
    """

    def step(*arguments: Any) -> None:
        given = Given(*arguments)
        measured, parts, size = measure(given)
        floats = [t for t in given.state if t.dtype == torch.float32 and t.dim()]
        counters = [t for t in given.state if t.dtype == torch.uint8]
        a, b, *_ = (*floats, *counters, given.strength, given.strength)
        counts = given.g.new_empty(given.grid, dtype=torch.int32) if after else given.strength
        flips.flip[given.grid](
            *given.tensors,
            a,
            b,
            measured,
            parts,
            given.strength,
            *(*constants(given), 0.0, 0.0)[:2],
            given.key,
            given.step,
            given.flips,
            counts,
            RULE=rule,
            SIZE=size,
            FLOATS=len(floats),
            COUNTER=stored_width(int(given.constants[0])) if counters else 0,
            RANDOM=random,
            COUNTED=after is not None,
            **given.layout,
            **EXACT,
        )
        if after:
            after(given, counts)

    return step


def _top(measure: Callable[[Given], measures.Measured]) -> Callable[..., None]:
    """Returns the function that does a step of the mask `top` on a tensor, with gradients in the units of `measure`."""

    def step(*arguments: Any) -> None:
        top.step(given := Given(*arguments), measure(given))

    return step


bop, bop2, cema = _step(bop_of), _step(bop2_of), _step(cema_of)
bold = _step(bold_of, _beta, after=_next_beta)
counter_tensor = _step(counter_of, measures.measured_deviation, random=True, constants=_half)
counter_neuron = _step(counter_of, measures.measured_rows, random=True, constants=_half)
counter_factored = _step(counter_of, measures.measured_factors, random=True, constants=_half)
random = _step(random_of, random=True)
ewm_const, wpm_const = _step(ewm_of, _constant_heat, random=True), _step(wpm_of, _constant_heat)
ewm_gaussian = _step(ewm_of, measures.measured_heat, random=True)
ewm_scaled_gaussian = _step(ewm_of, measures.measured_scaled_heat, random=True)
wpm_gaussian, wpm_scaled_gaussian = _step(wpm_of, measures.measured_heat), _step(wpm_of, measures.measured_scaled_heat)
top_tensor, top_neuron, top_factored = _top(_as_it_is), _top(measures.measured_rows), _top(measures.measured_factors)
