"""Triton's kernels of HyperMask's mask `top`: of the bits that the gradient wants flipped, the k with the largest |g| flip.

No kernel sorts. The *key* of a bit is the pattern of the float32 |g|/size as an integer, or 0 if the gradient does not want a
flip; keys order like the numbers. Three passes count the keys by their highest 8 bits, the next 12 and the last 11. After each
pass the counts tell in which bin the k-th largest key lies (radix selection). Of the keys that equal the k-th, those at the
lowest places flip.
"""

import torch
import triton
import triton.language as tl

from bnn_exp.bits.cuda.flips import BLOCK, EIGHTHS, EXACT, SCALARS, Given, read, tile, write
from bnn_exp.bits.cuda.measures import TINY, Measured

WIDE = tl.constexpr(256)  # counts of ties that a program adds at a time
BINS = (256, 4096, 2048)  # of each pass
BELOW = (23, 11, 0)  # bits of a key below those that the pass counts


@triton.jit
def _key(g, s, size):
    """Returns the keys, int32 ≥ 0, of gradients g and bits s = ±1."""
    wanted = tl.div_rn(g, tl.maximum(size, TINY)) * s
    return tl.where(wanted > 0, wanted, 0.0).to(tl.int32, bitcast=True)


@triton.jit
def _bin(counts, prefix, k, BINS: tl.constexpr):
    """Returns for the k-th largest key: its bits up to a pass, its rank in its bin, and the number of keys in this bin.

    `counts` is the address of the counts of the pass, `prefix` are the bits of the key before the pass. If there are fewer keys
    than k, k becomes their number. Without any key, the bits are those of a number above every key.
    """
    i = tl.arange(0, BINS)
    count = tl.load(counts + i)
    total = tl.sum(count, 0)
    above = total - tl.cumsum(count, 0)  # the number of keys in higher bins
    k = tl.minimum(k, total)
    digit = tl.minimum(tl.sum((above >= k).to(tl.int32), 0), BINS - 1)
    here = i == digit
    return prefix * BINS + digit, k - tl.sum(tl.where(here, above, 0), 0), tl.sum(tl.where(here, count, 0), 0)


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
    BINS: tl.constexpr,
    BELOW: tl.constexpr,
    PACKED: tl.constexpr,
    FLAT: tl.constexpr,
):
    """Stores the keys of this program's tile, int32, and counts them by their bits from BELOW on, in `counts`, int32 [BINS].

    Keys of 0 do not count. `found`, int32 [2], becomes the result of `_bin` before the first bit is known: 0, and k.
    """
    _, r, c, there, gradient, s = read(w, g, stride, rows, columns, width, PACKED, FLAT)
    key = tl.where(there, _key(gradient, s, SIZE(measured, parts, rows, columns, r, c)), 0)
    tl.store(keys + tile(), key)
    i = tl.arange(0, BINS)
    count = tl.histogram(tl.reshape(key >> BELOW, (BLOCK,)), BINS)  # in the memory of the program: a few bins hold most keys
    count -= tl.where(i == 0, tl.sum(tl.sum((key == 0).to(tl.int32), 1), 0), 0)
    tl.atomic_add(counts + i, count, count > 0, sem="relaxed")
    if tl.program_id(0) == 0:
        tl.store(found, 0)
        tl.store(found + 1, tl.floor(tl.load(strength).to(tl.float64) * (rows * columns)).to(tl.int32))


@triton.jit
def tally(keys, counts, found, BEFORE: tl.constexpr, BINS: tl.constexpr, BELOW: tl.constexpr):
    """Adds to `counts`, int32 [BINS], the numbers of keys by their bits from BELOW on.

    Only keys that begin like the k-th largest count. The BEFORE counts of the pass before lie in front of `counts`. The first
    two numbers of `found` are the result of `_bin` before; this pass writes its own result behind them.
    """
    key = tl.load(keys + tile())
    prefix, k, _ = _bin(counts - BEFORE, tl.load(found), tl.load(found + 1), BEFORE)
    begins = (key > 0) & (key // (BINS << BELOW) == prefix)
    tl.atomic_add(counts + ((key >> BELOW) & (BINS - 1)), 1, begins, sem="relaxed")
    if tl.program_id(0) == 0:
        tl.store(found + 2, prefix)
        tl.store(found + 3, k)


@triton.jit
def ties(keys, counts, found, equal, BEFORE: tl.constexpr):
    """Counts the keys of this program's tile that equal the k-th largest: int32 at `equal` for each program.

    `counts` are the BEFORE counts of the last pass. The result of `_bin` goes behind the two numbers at `found`.
    """
    last, k, same = _bin(counts, tl.load(found), tl.load(found + 1), BEFORE)
    tl.store(equal + tl.program_id(0), tl.sum(tl.sum((tl.load(keys + tile()) == last).to(tl.int32), 1), 0))
    if tl.program_id(0) == 0:
        tl.store(found + 2, last)
        tl.store(found + 3, k)
        tl.store(found + 4, same)


@triton.jit(do_not_specialize_on_alignment=SCALARS)
def flip_largest(w, keys, found, equal, flips, PACKED: tl.constexpr):
    """Flips the bits of this program's tile whose keys are among the k largest. `found` and `equal` are results of `ties`."""
    key = tl.load(keys + tile())
    last, k, same = tl.load(found), tl.load(found + 1), tl.load(found + 2)
    before = tl.zeros((WIDE,), tl.int32)
    if same > k:  # not all of the equal keys flip
        for first in range(0, tl.program_id(0), WIDE):
            i = first + tl.arange(0, WIDE)
            before += tl.load(equal + i, i < tl.program_id(0), 0)
    tie = tl.reshape((key == last).to(tl.int32), (BLOCK,))
    rank = tl.reshape(tl.cumsum(tie, 0) - tie, (EIGHTHS, 8)) + tl.sum(before, 0)
    write(w, (key > last) | ((key == last) & (rank < k)), flips, PACKED)


def step(given: Given, measured: Measured) -> None:
    """Flips the ⌊strength · bits⌋ bits with the largest wanted |g|/size: six kernels, of which one sets counts to 0."""
    (measure, parts, size), grid, i32 = measured, given.grid, {"dtype": torch.int32, "device": given.w.device}
    counts = torch.zeros(sum(BINS), **i32)
    keys, equal, found = torch.empty(grid[0] * BLOCK.value, **i32), torch.empty(grid, **i32), torch.empty(9, **i32)
    first, second, third = counts.split(BINS)
    first_tally[grid](
        *given.tensors,
        measure,
        parts,
        given.strength,
        keys,
        first,
        found,
        SIZE=size,
        BINS=BINS[0],
        BELOW=BELOW[0],
        **given.layout,
        **EXACT,
    )
    tally[grid](keys, second, found, BEFORE=BINS[0], BINS=BINS[1], BELOW=BELOW[1])
    tally[grid](keys, third, found[2:], BEFORE=BINS[1], BINS=BINS[2], BELOW=BELOW[2])
    ties[grid](keys, third, found[4:], equal, BEFORE=BINS[2])
    flip_largest[grid](given.w, keys, found[6:], equal, given.flips, PACKED=given.packed)
