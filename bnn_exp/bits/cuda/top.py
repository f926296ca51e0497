"""Triton's kernels of HyperMask's mask `top`: of the bits that the gradient wants flipped, the k with the largest |g| flip.

No kernel sorts. The *key* of a bit is the pattern of the float32 |g|/size as an integer of 31 bits, or 0 if the gradient does
not want a flip; keys order like the numbers. Two passes count the keys, by their upper 16 bits and then by their lower 15.
After each pass the counts tell in which bin the k-th largest key lies (radix selection). A pass counts in two levels, by COARSE
bins and by FINE bins in each of them, so a program that seeks the bin reads few counts. Of the keys that equal the k-th, those
at the lowest places flip.
"""

import torch
import triton
import triton.language as tl

from bnn_exp.bits.cuda.flips import BLOCK, EIGHTHS, EXACT, SCALARS, OnGrid, read, tile, write
from bnn_exp.bits.cuda.measures import Measured
from bnn_exp.bits.cuda.scalars import SCALARS as COMPILED
from bnn_exp.bits.scalar_rules import Step

WIDE = tl.constexpr(256)  # counts of ties that a program adds at a time
COARSE = tl.constexpr(256)  # bins of a pass
UPPER, LOWER = tl.constexpr(256), tl.constexpr(128)  # FINE bins in each of them, in the first and in the second pass
wanted = COMPILED["wanted"]


@triton.jit
def _key(g, s, size):
    """Returns the keys, int32 ≥ 0, of gradients g and bits s = ±1."""
    return wanted(g, s, size).to(tl.int32, bitcast=True)


@triton.jit
def _bin(counts, k, BINS: tl.constexpr):
    """Returns the number of the k-th largest key's bin, the rank of this key in the bin, and the number of keys in the bin.

    `counts` is the address of the counts of the bins, int32 [BINS]. If there are fewer keys than k, k becomes their number.
    Without any key, the bin is the last one.
    """
    i = tl.arange(0, BINS)
    count = tl.load(counts + i)
    total = tl.sum(count, 0)
    above = total - tl.cumsum(count, 0)  # the number of keys in higher bins
    k = tl.minimum(k, total)
    number = tl.minimum(tl.sum((above >= k).to(tl.int32), 0), BINS - 1)
    here = i == number
    return number, k - tl.sum(tl.where(here, above, 0), 0), tl.sum(tl.where(here, count, 0), 0)


@triton.jit
def _digits(counts, k, FINE: tl.constexpr):
    """Returns the bits of the k-th largest key that a pass has counted, its rank and the number of keys with these bits."""
    coarse, k, _ = _bin(counts, k, COARSE)
    fine, k, same = _bin(counts + COARSE + coarse * FINE, k, FINE)
    return coarse * FINE + fine, k, same


@triton.jit(do_not_specialize_on_alignment=SCALARS)
def first_tally(
    w,
    g,
    stride,
    rows,
    columns,
    width,
    measured,
    parts,
    strength,
    keys,
    counts,
    found,
    SIZE: tl.constexpr,
    PACKED: tl.constexpr,
    FLAT: tl.constexpr,
):
    """Stores the keys of this program's tile, int32, and counts them by their upper 16 bits. Keys of 0 do not count.

    `counts` are int32 [COARSE + COARSE · UPPER]. The first number at `found`, int32 [6], becomes k.
    """
    _, r, c, there, gradient, s = read(w, g, stride, rows, columns, width, PACKED, FLAT)
    key = tl.where(there, _key(gradient, s, SIZE(measured, parts, rows, columns, r, c)), 0)
    tl.store(keys + tile(), key)
    i = tl.arange(0, COARSE)
    count = tl.histogram(tl.reshape(key >> 23, (BLOCK,)), COARSE)  # in the program's own memory: a few bins hold most keys
    count -= tl.where(i == 0, tl.sum(tl.sum((key == 0).to(tl.int32), 1), 0), 0)
    tl.atomic_add(counts + i, count, count > 0, sem="relaxed")
    tl.atomic_add(counts + COARSE + (key >> 15), 1, key > 0, sem="relaxed")
    if tl.program_id(0) == 0:
        tl.store(found, tl.floor(tl.load(strength).to(tl.float64) * (rows * columns)).to(tl.int32))


@triton.jit
def second_tally(keys, upper, counts, found):
    """Counts the keys whose upper bits are those of the k-th largest, by their lower 15 bits.

    `counts` are int32 [COARSE + COARSE · LOWER], `upper` those of `first_tally`. The next two numbers at `found` become
    the upper bits, and the rank of the k-th largest among these keys.
    """
    key = tl.load(keys + tile())
    digits, k, _ = _digits(upper, tl.load(found), UPPER)
    among, low = (key > 0) & (key >> 15 == digits), key & (COARSE * LOWER - 1)
    tl.atomic_add(counts + low // LOWER, 1, among, sem="relaxed")
    tl.atomic_add(counts + COARSE + low, 1, among, sem="relaxed")
    if tl.program_id(0) == 0:
        tl.store(found + 1, digits)
        tl.store(found + 2, k)


@triton.jit
def ties(keys, lower, found, equal):
    """Counts the keys of this program's tile that equal the k-th largest: int32 at `equal` for each program.

    `lower` are the counts of `second_tally`. The last three numbers at `found` become the k-th largest key, the number of equal
    keys that flip, and the number of all equal keys.
    """
    digits, k, same = _digits(lower, tl.load(found + 2), LOWER)
    last = tl.load(found + 1) * (COARSE * LOWER) + digits
    tl.store(equal + tl.program_id(0), tl.sum(tl.sum((tl.load(keys + tile()) == last).to(tl.int32), 1), 0))
    if tl.program_id(0) == 0:
        tl.store(found + 3, last)
        tl.store(found + 4, k)
        tl.store(found + 5, same)


@triton.jit(do_not_specialize_on_alignment=SCALARS)
def flip_largest(w, keys, found, equal, flips, PACKED: tl.constexpr):
    """Flips the bits of this program's tile whose keys are among the k largest. `found` and `equal` are results of `ties`."""
    key = tl.load(keys + tile())
    last, k, same = tl.load(found + 3), tl.load(found + 4), tl.load(found + 5)
    before = tl.zeros((WIDE,), tl.int32)
    if same > k:  # not all of the equal keys flip
        for first in range(0, tl.program_id(0), WIDE):
            i = first + tl.arange(0, WIDE)
            before += tl.load(equal + i, i < tl.program_id(0), 0)
    tie = tl.reshape((key == last).to(tl.int32), (BLOCK,))
    rank = tl.reshape(tl.cumsum(tie, 0) - tie, (EIGHTHS, 8)) + tl.sum(before, 0)
    write(w, (key > last) | ((key == last) & (rank < k)), flips, PACKED)


def flips(step: Step, given: OnGrid, measured: Measured) -> None:
    """Flips the ⌊strength · bits⌋ bits with the largest wanted |g|/size: five kernels, of which one sets counts to 0."""
    (measure, parts, size), grid, i32 = measured, given.grid, {"dtype": torch.int32, "device": given.w.device}
    sizes = [COARSE.value * (1 + fine.value) for fine in (UPPER, LOWER)]
    upper, lower = torch.zeros(sum(sizes), **i32).split(sizes)
    keys, equal, found = torch.empty(grid[0] * BLOCK.value, **i32), torch.empty(grid, **i32), torch.empty(6, **i32)
    tally = measure, parts, given.strength, keys, upper, found
    first_tally[grid](*given.tensors, *tally, SIZE=size, **given.layout, **EXACT)
    second_tally[grid](keys, upper, lower, found)
    ties[grid](keys, lower, found, equal)
    flip_largest[grid](given.w, keys, found, equal, given.flips, PACKED=given.packed)
