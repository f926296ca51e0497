"""A rule's step on one tensor on a CPU, by numba's kernels. `STEPS` holds a function for each operator of a rule.

Threads share the rows of a tensor, eight at a time: two threads then never write to one byte of counters. With
`engine.memory=lean` the gradient is no tensor but `Factors`, and a pass over it computes one block of rows at a time.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from bnn_exp.bits import scalar_rules
from bnn_exp.bits.counters import stored_width
from bnn_exp.bits.cpu.kernels import measures, rules, top
from bnn_exp.bits.cpu.threads import share_chunks
from bnn_exp.bits.given import Given
from bnn_exp.bits.scalar_rules import Step

_EIGHT = 8
_ALONE = 2**16  # bits; with fewer bits one thread is faster than two
_PARTS = 16  # parts of the rows whose columns are added apart
_TINY = np.finfo(np.float32).tiny
_NONE, _NO_BYTES, _NO_DRAWS = (np.empty(0, kind) for kind in (np.float32, np.uint8, np.int64))
Sizes = tuple[np.ndarray, np.ndarray]  # of_rows and of_columns, see `kernels.rules`


def _share(work: Callable[[int, int], None], rows: int, chunk: int, columns: int) -> None:
    """Calls work(begin, end) for parts of the rows, whole chunks, one for each thread; for all rows if there are few bits."""
    if rows * columns < _ALONE:
        work(0, rows)
    else:
        share_chunks(work, rows, chunk)


class OnRows(Given):
    """The arguments of a rule's operator in the form that the kernels take. The gradient may be `Factors`."""

    @property
    def some_rows(self) -> int:
        """The rows of a block and of a part whose columns are added apart, a multiple of 16."""
        return 2 * _EIGHT * -(-self.rows // (2 * _EIGHT * _PARTS))

    @property
    def of_bits(self) -> tuple[int, int, bool]:
        """The arguments w, row and packed of a kernel."""
        return self.w.data_ptr(), self.w.stride(0) * self.w.itemsize, self.packed

    def blocks(self) -> Iterator[tuple[tuple, int, int]]:
        """Yields for each block of rows the arguments g, stride, half and columns of a kernel, the first row, and the last + 1.

        A gradient that is a tensor is one block. The address g is that of row 0, which may lie outside of the block.
        """
        first = 0
        for g in (self.g,) if isinstance(self.g, torch.Tensor) else self.g.blocks(self.some_rows):
            address = g.data_ptr() - first * g.stride(0) * g.itemsize
            yield (address, g.stride(0), g.dtype == torch.bfloat16, self.columns), first, first + len(g)
            first += len(g)

    def shared(self, work: Callable[[tuple, int, int], Any]) -> list[Any]:
        """Calls work(gradients, begin, end) for parts of the rows; `gradients` are the arguments of `blocks`.

        Returns:
            The results, in any order.
        """
        found: list[Any] = []
        for gradients, first, last in self.blocks():

            def some(begin: int, end: int, gradients: tuple = gradients, first: int = first) -> None:
                found.append(work(gradients, first + begin, first + end))

            _share(some, last - first, _EIGHT, self.columns)
        return found


def _single(number: Any) -> Sizes:
    return np.full(1, number, np.float32), _NONE


def _deviation(given: OnRows) -> np.float32:
    """Returns the standard deviation of all gradients."""
    sums = np.empty((given.rows, 2))
    given.shared(lambda gradients, begin, end: measures.moments(*gradients, begin, end, sums))
    mean, square = sums.sum(0) / given.bits
    return np.float32(np.sqrt(max(square - mean * mean, 0.0)))


def _rows(given: OnRows, columns: bool = False) -> Sizes:
    """Returns the root mean square of each row, and with `columns` also the relative root mean square of each column.

    The measure of a gradient of one row is its standard deviation.
    """
    if given.rows == 1:
        return _single(_deviation(given))
    of_rows, some = np.empty(given.rows), given.some_rows
    parts = np.empty((-(-given.rows // some), given.columns if columns else 0))
    for gradients, first, last in given.blocks():

        def of_parts(begin: int, end: int, gradients: tuple = gradients, first: int = first, last: int = last) -> None:
            for row in range(first + begin, first + end, some):
                measures.squares(*gradients, row, min(row + some, last), of_rows, parts[row // some])

        _share(of_parts, last - first, some, given.columns)
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
    bits, kernel, others = given.of_bits, rules.PASSES[step.rule], (*_vectors(given), *sizes, numbers, random)
    return sum(given.shared(lambda gradients, begin, end: kernel(*bits, *gradients, begin, end, *others)))


def _largest(counts: np.ndarray, k: int) -> tuple[int, int, int]:
    """Returns the bin of the k-th largest key, the rank of this key in its bin, and the number of keys in the bin."""
    above = counts[::-1].cumsum()[::-1] - counts
    at = int((above >= k).sum())
    return at, k - int(above[at]), int(counts[at])


def _top(step: Step, given: OnRows, sizes: Sizes) -> int:
    """Flips the ⌊strength · bits⌋ bits with the largest wanted |g|/size. Returns the number of flips."""
    of_bits, k, key, same = given.of_bits, int(given.strength.item() * given.bits), 0, 0
    for shift, bits in top.DIGITS:

        def counted(gradients: tuple, begin: int, end: int, digit: tuple[int, int, int] = (key, shift, bits)) -> np.ndarray:
            counts = np.zeros(2 ** digit[-1] + top.OTHERS, np.int64)
            top.tally(*of_bits, *gradients, begin, end, *sizes, *digit, counts)
            return counts

        counts = np.sum(given.shared(counted), 0)[: 2**bits]
        k = min(k, int(counts.sum()))
        if k == 0:
            return 0
        digit, k, same = _largest(counts, k)
        key = key << bits | digit
    last = np.uint32(key).view(np.float32)
    if k < same:  # one thread finds the first of the equal keys
        ((gradients, first, end),) = given.blocks()
        return top.flip_largest(*of_bits, *gradients, first, end, *sizes, last, k)
    return sum(
        given.shared(lambda gradients, begin, end: top.flip_largest(*of_bits, *gradients, begin, end, *sizes, last, same))
    )


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
