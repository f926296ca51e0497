"""Triton's kernels of HyperMask's mask `top`: of the bits that the gradient wants flipped, the k with the largest |g| flip.

No kernel sorts. The *key* of a bit is the pattern of the float32 |g|/size as an integer, or 0 if the gradient does not want a
flip; keys order like the numbers. Three passes count the keys by their highest 8 bits, the next 12 and the last 11. After each
pass the counts tell in which bin the k-th largest key lies (radix selection). Of the keys equal to the k-th, those at the lowest
places flip.
"""

import torch
import triton
import triton.language as tl

from bnn_exp.bits.cuda.flips import BLOCK, EIGHTHS, EXACT, SCALARS, Given, read, write
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
    """Returns of the k-th largest key: its bits up to this pass, its rank in its bin, and the number of keys in the bin.

    `counts` is the address of the counts of a pass, `prefix` are the bits of the key before this pass. If there are fewer than k
    keys, k becomes their number; without any, the result is larger than every key.
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
def tally(
    w,
    g,
    stride,
    rows,
    columns,
    width,
    measured,
    parts,
    strength,
    counts,
    found,
    SIZE: tl.constexpr,
    BEFORE: tl.constexpr,
    BINS: tl.constexpr,
    BELOW: tl.constexpr,
    PACKED: tl.constexpr,
    FLAT: tl.constexpr,
):
    """Adds the keys of this program's tile to `counts`, int32 [BINS], by their bits from bit BELOW on.

    Only keys that begin like the k-th largest count. The pass before, with BEFORE bins (0 in the first pass), has its counts in
    front of `counts`. `found`, int32 [3], is the result of `_bin` of the passes before; this pass writes its own behind it.
    """
    q, place, r, c, there, gradient, s = read(w, g, stride, rows, columns, width, PACKED, FLAT)
    key = tl.where(there, _key(gradient, s, SIZE(measured, parts, rows, columns, r, c)), 0)
    digit = (key >> BELOW) & (BINS - 1)
    if BEFORE == 0:
        if tl.program_id(0) == 0:
            share = tl.load(strength).to(tl.float64) * (rows * columns)
            tl.store(found, 0)
            tl.store(found + 1, tl.floor(share).to(tl.int32))
        i = tl.arange(0, BINS)
        count = tl.histogram(tl.reshape(digit, (BLOCK,)), BINS)
        unwanted = tl.sum(tl.sum((key == 0).to(tl.int32), 1), 0)
        count -= tl.where(i == 0, unwanted, 0)
        tl.atomic_add(counts + i, count, count > 0)
    else:
        prefix, k, same = _bin(counts - BEFORE, tl.load(found), tl.load(found + 1), BEFORE)
        if tl.program_id(0) == 0:
            tl.store(found + 3, prefix)
            tl.store(found + 4, k)
        tl.atomic_add(counts + digit, 1, (key > 0) & (key // (BINS << BELOW) == prefix))


@triton.jit
def ties(
    w,
    g,
    stride,
    rows,
    columns,
    width,
    measured,
    parts,
    counts,
    found,
    equal,
    SIZE: tl.constexpr,
    BEFORE: tl.constexpr,
    PACKED: tl.constexpr,
    FLAT: tl.constexpr,
):
    """Counts the keys of this program's tile that equal the k-th largest: int32 at `equal` for each program.

    `counts` and `found` are the results of the last pass, which has BEFORE bins. The result of `_bin` goes behind `found`.
    """
    q, place, r, c, there, gradient, s = read(w, g, stride, rows, columns, width, PACKED, FLAT)
    key = tl.where(there, _key(gradient, s, SIZE(measured, parts, rows, columns, r, c)), 0)
    last, k, same = _bin(counts, tl.load(found), tl.load(found + 1), BEFORE)
    if tl.program_id(0) == 0:
        tl.store(found + 3, last)
        tl.store(found + 4, k)
        tl.store(found + 5, same)
    tl.store(equal + tl.program_id(0), tl.sum(tl.sum((key == last).to(tl.int32), 1), 0))


@triton.jit(do_not_specialize_on_alignment=SCALARS)
def flip_top(
    w,
    g,
    stride,
    rows,
    columns,
    width,
    measured,
    parts,
    found,
    equal,
    flips,
    SIZE: tl.constexpr,
    PACKED: tl.constexpr,
    FLAT: tl.constexpr,
):
    """Flips the bits of this program's tile whose keys are among the k largest. `found` and `equal` are results of `ties`."""
    q, place, r, c, there, gradient, s = read(w, g, stride, rows, columns, width, PACKED, FLAT)
    key = tl.where(there, _key(gradient, s, SIZE(measured, parts, rows, columns, r, c)), 0)
    last, k, same = tl.load(found), tl.load(found + 1), tl.load(found + 2)
    before = tl.zeros((WIDE,), tl.int32)
    if same > k:
        for first in range(0, tl.program_id(0), WIDE):
            i = first + tl.arange(0, WIDE)
            before += tl.load(equal + i, i < tl.program_id(0), 0)
    tie = tl.reshape((key == last).to(tl.int32), (BLOCK,))
    rank = tl.reshape(tl.cumsum(tie, 0) - tie, (EIGHTHS, 8)) + tl.sum(before, 0)
    write(w, q, s, (key > last) | ((key == last) & (rank < k)), flips, PACKED)


def flip_largest(given: Given, measured: Measured) -> None:
    """Flips the ⌊strength · bits⌋ bits with the largest wanted |g|/size: six kernels, of which one sets counts to 0."""
    measure, parts, size = measured
    constants = {"SIZE": size, **given.layout, **EXACT}
    counts = torch.zeros(sum(BINS), dtype=torch.int32, device=given.w.device)
    found, equal = counts.new_empty(3 * (len(BINS) + 1)), counts.new_empty(given.grid)
    for i, bins in enumerate(BINS):
        before = BINS[i - 1] if i else 0
        here = counts[sum(BINS[:i]) :], found[3 * max(i - 1, 0) :]
        tally[given.grid](
            *given.tensors, measure, parts, given.strength, *here, BEFORE=before, BINS=bins, BELOW=BELOW[i], **constants
        )
    last = counts[sum(BINS[:2]) :], found[6:]
    ties[given.grid](*given.tensors, measure, parts, *last, equal, BEFORE=BINS[2], **constants)
    flip_top[given.grid](*given.tensors, measure, parts, found[9:], equal, given.flips, **constants)
