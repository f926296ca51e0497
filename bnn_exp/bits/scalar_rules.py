"""The rules of `bnn_exp.optim` for a single weight: each function mirrors the method `update` of a rule.

A rule takes the gradient g, the bit as s = ±1, two numbers of state, a random number u in [0, 1), a measure of the whole tensor
(the size of gradients, a temperature, or β), the strength and two more hyperparameters. The rule returns True for a flip, and
the new state. All numbers are float32.

Numba compiles these functions for a CPU, and Triton for a GPU, see `compiled`. Not compiled, they work on NumPy's numbers.
"""

from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, NamedTuple

from numpy import absolute, divide, floor, maximum, minimum, where
from numpy import float32 as real
from numpy import sqrt as root

SIZES = {"tensor": "one", "neuron": "rows", "factored": "factors"}  # measure of each scale of `top`
HEATS = {"const": "strength", "gaussian": "gaussian", "scaled_gaussian": "scaled_gaussian"}  # measure of each temperature


def nonzero(size):
    """Returns a size of gradients, or the least normal float32 in place of 0."""
    return maximum(size, real(1.1754943508222875e-38))


def average(m, x, rate):
    """Returns the moving average (1 − rate)·m + rate·x, in the order of `bnn_exp.optim.gradients.average`."""
    return where(absolute(rate) < real(0.5), m + rate * (x - m), x - (x - m) * (real(1) - rate))


def erf(x):
    """Returns the error function of x ≥ 0 within a few units of the last digit, as a quotient of polynomials (from Eigen).

    The error functions of libraries differ from device to device. This function returns the same digits everywhere.
    """
    x = minimum(x, real(4))
    z = x * x
    p = real(-2.72614225801306e-10) * z + real(2.77068142495902e-08)
    p = p * z + real(-2.10102402082508e-06)
    p = p * z + real(-5.69250639462346e-05)
    p = p * z + real(-7.34990630326855e-04)
    p = p * z + real(-2.95459980854025e-03)
    p = p * z + real(-1.60960333262415e-02)
    q = real(-1.45660718464996e-05) * z + real(-2.13374055278905e-04)
    q = q * z + real(-1.68282697438203e-03)
    q = q * z + real(-7.37332916720468e-03)
    q = q * z + real(-1.42647390514189e-02)
    return divide(x * p, q)


def bop(g, s, m, none, u, size, gamma, tau, z):
    m = average(m, g, gamma)
    return m * s > tau, m, none


def bop2(g, s, m, v, u, size, gamma, sigma, tau):
    m = average(m, g, gamma)
    v = average(v, g * g, sigma)
    return divide(m * s, root(v) + real(1e-10)) > tau, m, v


def cema(g, s, m, h, u, size, alpha, gamma, z):
    m = average(m, g, gamma)
    h = average(h, m, alpha)
    return h * s > real(0), m, h


def bold(g, s, a, none, u, beta, eta, y, z):
    a = a * beta + g * eta
    which = a * s >= real(1)
    return which, where(which, real(0), a), none


def counter(g, s, n, none, u, size, delta, half, z):
    """Does a step of a counter c = n − half. The state is n. A counter of one bit is the bit itself."""
    c = n - half - floor(divide(g, nonzero(size)) * (delta * half) + u)
    c = minimum(maximum(c, -half), half - real(1))
    return (c >= real(0)) != (s > real(0)), c + half, none


def random(g, s, none, nothing, u, size, delta, y, z):
    return (u < delta) & ((g <= real(0)) != (s > real(0))), none, nothing


def ewm(g, s, none, nothing, u, tau, lr, y, z):
    return (g * s > real(0)) & (u < erf(tau * absolute(g))), none, nothing


def wpm(g, s, none, nothing, u, tau, lr, y, z):
    return (g * s > real(0)) & (absolute(g) >= divide(real(0.4769), tau)), none, nothing


def wanted(g, s, size):
    """Returns the key of the mask `top`: |g|/size if the gradient wants the bit flipped, else 0."""
    return maximum(divide(g, nonzero(size)) * s, real(0))


def gaussian(lr, variance, deviation):
    """Returns the temperature τ of `ewm` and `wpm`, and the next variance; `deviation` is σ(g)."""
    move = lr * deviation
    return divide(lr, real(1.4142135623730951) * root(variance)), variance + move * move


def scaled_gaussian(lr, variance, deviation):
    """Returns the temperature τ of `ewm` and `wpm`, and the next variance; `deviation` is σ(g)."""
    move = lr * deviation
    tau = divide(lr * real(1.7724538509055159), real(2) * variance)
    return tau, variance + divide(real(1.5707963267948966) * (move * move), variance)


class Step(NamedTuple):
    """A step of a rule on one tensor: the scalar function and the numbers that it takes.

    Args:
        rule: the name of the scalar function, or `top`.
        measure: the measure of the tensor: `one` (the number 1), `strength`, `beta` (the second number of the state),
            `deviation` (σ), `rows` or `factors` (the sizes of `bnn_exp.optim.gradients.scaled`), or the temperatures
            `gaussian` and `scaled_gaussian`, which also replace the variance, the first number of the state.
        random: True if the rule draws random numbers.
        counted: True if the second number of the state becomes the fraction of bits that did not flip.
        halved: True if the constant is a number of bits n, and the rule takes 2ⁿ⁻¹ instead.
    """

    rule: str
    measure: str = "one"
    random: bool = False
    counted: bool = False
    halved: bool = False

    def constants(self, given: Sequence[float]) -> tuple[float, float]:
        """Returns the two hyperparameters that the scalar function takes, from those of the operator; 0 if there are fewer."""
        y, z = (*given, 0.0, 0.0)[:2]
        return (2.0 ** (y - 1) if self.halved else float(y)), float(z)


STEPS = {
    **{name: Step(name) for name in ("bop", "bop2", "cema")},
    "bold": Step("bold", "beta", counted=True),
    "random": Step("random", random=True),
    "counter_tensor": Step("counter", "deviation", random=True, halved=True),
    "counter_neuron": Step("counter", "rows", random=True, halved=True),
    "counter_factored": Step("counter", "factors", random=True, halved=True),
    **{f"ewm_{name}": Step("ewm", measure, random=True) for name, measure in HEATS.items()},
    **{f"wpm_{name}": Step("wpm", measure) for name, measure in HEATS.items()},
    **{f"top_{scale}": Step("top", measure) for scale, measure in SIZES.items()},
}
FUNCTIONS = (nonzero, average, erf, bop, bop2, cema, bold, counter, random, ewm, wpm, wanted, gaussian, scaled_gaussian)
RULES = ("bop", "bop2", "cema", "bold", "counter", "random", "ewm", "wpm")


def compiled(compile_: Callable[[FunctionType], Any], operations: dict[str, Any]) -> dict[str, Any]:
    """Returns the functions of this module by name, each compiled by `compile_`.

    Args:
        operations: the names that replace NumPy's operations in the compiled functions.
    """
    scope: dict[str, Any] = {"__name__": __name__, **operations}
    for function in FUNCTIONS:
        copy = FunctionType(function.__code__, scope, function.__name__)
        scope[function.__name__] = compile_(copy)
    return {function.__name__: scope[function.__name__] for function in FUNCTIONS}
