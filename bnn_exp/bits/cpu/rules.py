"""A rule's step on one tensor on a CPU, by numba's kernels. `STEPS` holds a function for each operator of a rule.

Threads share the rows of a tensor, eight at a time: two threads then never write to one byte of counters.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from bnn_exp.bits import scalar_rules
from bnn_exp.bits.counters import stored_width
from bnn_exp.bits.cpu.kernels import measures, rules, top
from bnn_exp.bits.cpu.threads import share_chunks, share_out
from bnn_exp.bits.given import Given
from bnn_exp.bits.scalar_rules import Step

_EIGHT = 8
_ALONE = 2**16  # bits: one thread decides of fewer bits sooner than two
_PARTS = 16  # parts of the rows whose columns are added apart
_TINY = np.finfo(np.float32).tiny
_NONE, _NO_BYTES, _NO_DRAWS = (np.empty(0, kind) for kind in (np.float32, np.uint8, np.int64))
Sizes = tuple[np.ndarray, np.ndarray]  # of_rows and of_columns, see `kernels.rules`


class OnRows(Given):
    """The arguments of a rule's operator in the form that the kernels take."""

    @property
    def gradients(self) -> tuple[int, int, bool]:
        """The arguments g, stride and half of a kernel."""
        return self.g.data_ptr(), self.g.stride(0), self.g.dtype == torch.bfloat16

    @property
    def bits_and_gradients(self) -> tuple:
        """The arguments w, row, packed, g, stride, half and columns of a kernel."""
        return self.w.data_ptr(), self.w.stride(0) * self.w.itemsize, self.packed, *self.gradients, self.columns

    def shared(self, work: Callable[[int, int], Any]) -> list[Any]:
        """Calls work(begin, end) for parts of the rows, one for each thread. Returns the results, in any order."""
        if self.bits < _ALONE:
            return [work(0, self.rows)]
        found: list[Any] = []
        share_chunks(lambda begin, end: found.append(work(begin, end)), self.rows, _EIGHT)
        return found


def _single(number: Any) -> Sizes:
    return np.full(1, number, np.float32), _NONE


def _deviation(given: OnRows) -> np.float32:
    """Returns the standard deviation of all gradients."""
    sums = np.empty((given.rows, 2))
    given.shared(lambda begin, end: measures.moments(*given.gradients, given.columns, begin, end, sums))
    mean, square = sums.sum(0) / given.bits
    return np.float32(np.sqrt(max(square - mean * mean, 0.0)))


def _rows(given: OnRows, columns: bool = False) -> Sizes:
    """Returns the root mean square of each row. A gradient of one row is measured by its standard deviation instead."""
    if given.rows == 1:
        return _single(_deviation(given))
    of_rows = np.empty(given.rows)
    parts = np.empty((_PARTS, given.columns if columns else 0))
    step = _EIGHT * -(-given.rows // (_EIGHT * _PARTS))

    def of_part(first: int, last: int) -> None:
        for i in range(first, last):
            begin, end = min(i * step, given.rows), min((i + 1) * step, given.rows)
            measures.squares(*given.gradients, given.columns, begin, end, of_rows, parts[i])

    share_out(of_part, _PARTS) if given.bits >= _ALONE else of_part(0, _PARTS)
    sizes = np.sqrt(of_rows / given.columns).astype(np.float32)
    if not columns:
        return sizes, _NONE
    whole = max(np.sqrt(of_rows.sum() / given.bits), _TINY)
    return sizes, (np.sqrt(parts.sum(0) / given.rows) / whole).astype(np.float32)


def _heat(given: OnRows, temperature: Callable) -> Sizes:
    """Returns the temperature τ of the step. The state becomes the variance of the next step."""
    (variance,) = given.state
    tau, following = temperature(np.float32(given.strength), np.float32(variance), _deviation(given))
    variance.fill_(float(following))
    return _single(tau)


MEASURES: dict[str, Callable[[OnRows], Sizes]] = {
    "one": lambda given: _single(1),
    "strength": lambda given: _single(given.strength.item()),
    "beta": lambda given: _single(given.state[1].item()),
    "deviation": lambda given: _single(_deviation(given)),
    "rows": _rows,
    "factors": lambda given: _rows(given, columns=True),
    "gaussian": lambda given: _heat(given, scalar_rules.gaussian),
    "scaled_gaussian": lambda given: _heat(given, scalar_rules.scaled_gaussian),
}


def _vectors(given: OnRows) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Returns the arguments a, b, counters and width of the kernel of a rule."""
    a, b, *_ = (*(t.view(-1).numpy() for t in given.floats), _NONE, _NONE)
    if given.counters is None:
        return a, b, _NO_BYTES, 0
    return a, b, given.counters.numpy(), stored_width(int(given.constants[0]))


def _flips(step: Step, given: OnRows, sizes: Sizes) -> int:
    """Does a step of a scalar function. Returns the number of flips."""
    numbers = np.array([given.strength.item(), *step.constants(given.constants)], np.float32)
    random = np.array([given.key, given.step.item()], np.int64) if step.random else _NO_DRAWS
    bits, vectors, kernel = given.bits_and_gradients, _vectors(given), rules.PASSES[step.rule]
    return sum(given.shared(lambda begin, end: kernel(*bits, begin, end, *vectors, *sizes, numbers, random)))


def _largest(counts: np.ndarray, k: int) -> tuple[int, int, int]:
    """Returns the bin of the k-th largest key, the rank of this key in its bin, and the number of keys in the bin."""
    above = counts[::-1].cumsum()[::-1] - counts
    at = int((above >= k).sum())
    return at, k - int(above[at]), int(counts[at])


def _top(step: Step, given: OnRows, sizes: Sizes) -> int:
    """Flips the ⌊strength · bits⌋ bits with the largest wanted |g|/size. Returns the number of flips."""
    arguments, k, key, same = given.bits_and_gradients, int(given.strength.item() * given.bits), 0, 0
    for shift, bits in top.DIGITS:

        def counted(begin: int, end: int, key: int = key, digit: tuple[int, int] = (shift, bits)) -> np.ndarray:
            counts = np.zeros(2 ** digit[1] + top.OTHERS, np.int64)
            top.tally(*arguments, begin, end, *sizes, key, *digit, counts)
            return counts

        counts = np.sum(given.shared(counted), 0)[: 2**bits]
        k = min(k, int(counts.sum()))
        if k == 0:
            return 0
        digit, k, same = _largest(counts, k)
        key = key << bits | digit
    last = np.uint32(key).view(np.float32)
    if k < same:  # one thread finds the first of the equal keys
        return top.flip_largest(*arguments, 0, given.rows, *sizes, last, k)
    return sum(given.shared(lambda begin, end: top.flip_largest(*arguments, begin, end, *sizes, last, same)))


def _step(step: Step) -> Callable[..., None]:
    """Returns a function that does a step of a rule on one tensor, with the arguments of `Given`."""
    do, measure = _top if step.rule == "top" else _flips, MEASURES[step.measure]

    def done(*arguments: Any) -> None:
        given = OnRows(*arguments)
        flips = do(step, given, measure(given))
        given.flips.add_(flips)
        if step.counted:
            given.state[1].fill_(float(1 - np.float32(flips / given.bits)))

    return done


STEPS = SimpleNamespace(**{name: _step(step) for name, step in scalar_rules.STEPS.items()})
