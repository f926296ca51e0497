"""The Triton kernel of every rule that trains bits: one pass over gradient, state and bits of a tensor.

A rule is a function of scalars, see `bnn_exp.bits.scalar_rules`. The kernel `flip` reads the numbers that the function needs,
calls the function for each bit, flips bits in place and stores the state. Bits are float32 0 and 1, or packed, eight to a byte.

A tensor has `rows` rows of `columns` bits. The *place* of a bit is its number in the tensor; random numbers and states go by
place. The *position* of a bit also counts the bits that fill the last byte of a packed row: a row takes `width` positions. A
program works on a tile of BLOCK positions, in EIGHTHS rows of eight.
"""

import triton
import triton.language as tl

from bnn_exp.bits.cuda.draws import draw_at
from bnn_exp.bits.given import Given

BLOCK = tl.constexpr(2048)  # bits of which one program decides
EIGHTHS = tl.constexpr(256)  # BLOCK / 8
SCALARS = ["strength", "step", "flips"]  # addresses of scalars, which need no alignment
EXACT = {"enable_fp_fusion": False}  # each product and each sum is rounded, as in torch, so all engines get the same bits


class OnGrid(Given):
    """The arguments of a rule's operator in the form that the kernels take."""

    @property
    def positions(self) -> int:
        """The number of positions that all rows take in memory."""
        return self.w.numel() * (8 if self.packed else 1)

    @property
    def tensors(self) -> tuple:
        """The first arguments of each kernel that reads gradients and bits."""
        return self.w, self.g, self.g.stride(0), self.rows, self.columns, self.positions // self.rows

    @property
    def layout(self) -> dict[str, bool]:
        """The constants PACKED and FLAT of such a kernel."""
        whole_rows = self.positions == self.bits and (self.rows == 1 or self.g.stride(0) == self.columns)
        return {"PACKED": self.packed, "FLAT": whole_rows}

    @property
    def grid(self) -> tuple[int]:
        """The number of programs that work on all bits."""
        return (triton.cdiv(self.positions, BLOCK.value),)


@triton.jit
def tile():
    """Returns the positions of this program's tile, int32 [EIGHTHS, 8]."""
    return tl.program_id(0) * BLOCK + 8 * tl.arange(0, EIGHTHS)[:, None] + tl.arange(0, 8)[None, :]


@triton.jit
def read(w, g, stride, rows, columns, width, PACKED: tl.constexpr, FLAT: tl.constexpr):
    """Returns for this program's tile: places, rows, columns, a mask of the places that exist, gradients, and bits as ±1.

    FLAT is True if a row of bits and a row of gradients end where the next row begins. Then positions are places.
    """
    q = tile()
    r, c, place, there = q // width, q % width, q, q < rows * width
    gradients = g + q
    if not FLAT:
        there = there & (c < columns)
        place = r * columns + c
        gradients = g + r.to(tl.int64) * stride + c
    bit = (tl.load(w + q // 8, there, 0).to(tl.int32) >> (q % 8)) & 1 if PACKED else tl.load(w + q, there, 0.0).to(tl.int32)
    return place, r, c, there, tl.load(gradients, there, 0.0), (2 * bit - 1).to(tl.float32)


@triton.jit
def write(w, which, flips, PACKED: tl.constexpr):
    """Flips the bits `which` of this program's tile, adds their number to `flips`, and returns this number."""
    if PACKED:
        at = tl.program_id(0) * EIGHTHS + tl.arange(0, EIGHTHS)
        changes = tl.sum(which.to(tl.int32) << tl.arange(0, 8)[None, :], 1)
        tl.store(w + at, (tl.load(w + at, changes != 0, 0).to(tl.int32) ^ changes).to(tl.uint8), changes != 0)
    else:
        tl.store(w + tile(), 1 - tl.load(w + tile(), which, 0.0), which)
    count = tl.sum(tl.sum(which.to(tl.int32), 1), 0)
    tl.atomic_add(flips, count.to(tl.int64), sem="relaxed")
    return count


@triton.jit(do_not_specialize=["key"], do_not_specialize_on_alignment=SCALARS)
def flip(
    w,
    g,
    stride,
    rows,
    columns,
    width,
    a,
    b,
    measured,
    parts,
    strength,
    y,
    z,
    key,
    step,
    flips,
    counts,
    RULE: tl.constexpr,
    SIZE: tl.constexpr,
    FLOATS: tl.constexpr,
    COUNTER: tl.constexpr,
    RANDOM: tl.constexpr,
    COUNTED: tl.constexpr,
    PACKED: tl.constexpr,
    FLAT: tl.constexpr,
):
    """Does a step of a rule on the bits `w` by the gradients `g`, whose rows are `stride` numbers apart.

    Args:
        a, b: the state: FLOATS (0, 1 or 2) tensors of one float for each bit; or `a` holds counters of COUNTER (2, 4 or 8)
            bits. If COUNTER is 0, the bit itself serves as the counter.
        measured, parts: a measure of the whole tensor, which SIZE reads, see `bnn_exp.bits.cuda.measures`.
        strength, y, z: the hyperparameters of the rule; `strength` is the address of a float32.
        key, step: the key and the step of the random numbers, if the rule is RANDOM.
        flips: the address of the sum to which the number of flips is added.
        counts: receives the number of flips of each program, int32, if COUNTED is True.
    """
    place, r, c, there, gradient, s = read(w, g, stride, rows, columns, width, PACKED, FLAT)
    first, second, u = 0.5 * (s + 1), 0.0, 0.0
    if FLOATS > 0:
        first = tl.load(a + place, there, 0.0)
    if FLOATS > 1:
        second = tl.load(b + place, there, 0.0)
    if COUNTER > 0:
        each: tl.constexpr = 8 // COUNTER
        byte = tl.load(a + place // each, there, 0).to(tl.int32)
        first = ((byte >> (place % each * COUNTER)) & ((1 << COUNTER) - 1)).to(tl.float32)
    if RANDOM:
        u = draw_at(key, step, 0, place)
    size = SIZE(measured, parts, rows, columns, r, c)
    which, first, second = RULE(gradient, s, first, second, u, size, tl.load(strength), y, z)
    if FLOATS > 0:
        tl.store(a + place, first, there)
    if FLOATS > 1:
        tl.store(b + place, second, there)
    if COUNTER == 8:
        tl.store(a + place, first.to(tl.int32).to(tl.uint8), there)
    elif COUNTER > 0:
        shifted = tl.where(there, first.to(tl.int32) << (place % each * COUNTER), 0)
        bytes_ = tl.sum(tl.reshape(shifted, (EIGHTHS, COUNTER, each)), 2)
        at = tl.program_id(0) * EIGHTHS * COUNTER + tl.arange(0, EIGHTHS)[:, None] * COUNTER + tl.arange(0, COUNTER)[None, :]
        tl.store(a + at, bytes_.to(tl.uint8), at * each < rows * width)
    count = write(w, which & there, flips, PACKED)
    if COUNTED:
        tl.store(counts + tl.program_id(0), count)
