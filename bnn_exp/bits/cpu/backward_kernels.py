"""The backward products of a layer of bits on a CPU, by numba: entries of the weights' gradient, and the inputs' gradient.

`entries_of_*` take the sums Σ_b grad[b, n] · x[b, k] of chosen pairs (n, k) alone, 16 rows b at a time: 16 floats of a neuron's
error are one vector, which is added where the 16 bits of the input are 1. `input_gradient` takes grad · V by the Method of Four
Russians (Arlazarov et al. 1970) within registers: the 16 sums that 4 weights can make with 4 errors are one vector, and one
permutation looks up those of 16 inputs. All sums are fp32; they differ from a matrix product's by the order of their terms.

Arguments of kernels are addresses and sizes, as in `bnn_exp.bits.cpu.kernels`; errors are float32 [rows, row].
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

from bnn_exp.bits.cpu.kernels import _all, _at, _compiled, _emit, _f32, _function, _i32, float_at

WIDTH = 16  # float32 of a vector: rows of `entries_of_*`, inputs of `input_gradient`
BLOCK = 1024  # rows at a time: the errors of 16 neurons (64 KiB) stay in the cache
_NIBBLES = 8  # of an int32

_i8, _i16, _i64 = ir.IntType(8), ir.IntType(16), ir.IntType(64)
_floats, _ints = ir.VectorType(_f32, WIDTH), ir.VectorType(_i32, WIDTH)


class _Floats(types.Type):
    def __init__(self):
        super().__init__(name="Floats16")


class _Ints(types.Type):
    def __init__(self):
        super().__init__(name="Ints16")


FLOATS, INTS = _Floats(), _Ints()


@register_model(_Floats)
class _FloatsModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, _floats)


@register_model(_Ints)
class _IntsModel(models.PrimitiveModel):
    def __init__(self, manager, vector):
        super().__init__(manager, vector, _ints)


@intrinsic
def zeros(_typing):
    return _emit(FLOATS(), lambda b: ir.Constant(_floats, None))


@intrinsic
def floats_at(_typing, address):
    return _emit(FLOATS(types.intp), lambda b, a: b.load(_at(b, a, _floats), align=4))


@intrinsic
def ints_at(_typing, address):
    return _emit(INTS(types.intp), lambda b, a: b.load(_at(b, a, _ints), align=4))


@intrinsic
def shorts_at(_typing, address):
    """16 int16, as floats."""

    def codegen(b, address):
        shorts = b.load(_at(b, address, ir.VectorType(_i16, WIDTH)), align=2)
        return b.sitofp(b.sext(shorts, _ints), _floats)

    return _emit(FLOATS(types.intp), codegen)


@intrinsic
def all_of(_typing, number):
    """The number, 16 times."""
    return _emit(FLOATS(types.float32), lambda b, x: _all(b, x, WIDTH))


@intrinsic
def set_floats(_typing, address, numbers):
    return _emit(types.void(types.intp, FLOATS), lambda b, a, n: b.store(n, _at(b, a, _floats), align=4))


@intrinsic
def set_float(_typing, address, number):
    return _emit(types.void(types.intp, types.float32), lambda b, a, n: b.store(n, _at(b, a, _f32), align=4))


@intrinsic
def plus(_typing, x, y):
    return _emit(FLOATS(FLOATS, FLOATS), lambda b, x, y: b.fadd(x, y))


@intrinsic
def minus(_typing, x, y):
    return _emit(FLOATS(FLOATS, FLOATS), lambda b, x, y: b.fsub(x, y))


@intrinsic
def over(_typing, x, y):
    return _emit(FLOATS(FLOATS, FLOATS), lambda b, x, y: b.fdiv(x, y))


@intrinsic
def times_plus(_typing, x, y, z):
    """x · y + z in one rounding."""

    def codegen(b, x, y, z):
        return b.call(_function(b, "llvm.fma.v16f32", _floats, _floats, _floats, _floats), [x, y, z])

    return _emit(FLOATS(FLOATS, FLOATS, FLOATS), codegen)


@intrinsic
def add_where(_typing, sums, numbers, bits):
    """sums + the numbers where the 16 bits at address are 1."""

    def codegen(b, sums, numbers, bits):
        mask = b.bitcast(b.load(_at(b, bits, _i16), align=1), ir.VectorType(ir.IntType(1), WIDTH))
        return b.select(mask, b.fadd(sums, numbers), sums)

    return _emit(FLOATS(FLOATS, FLOATS, types.intp), codegen)


@intrinsic
def set_not_negative(_typing, address, numbers):
    """The 16 bits 1[number ≥ 0] go to address."""

    def codegen(b, address, numbers):
        bits = b.fcmp_ordered(">=", numbers, ir.Constant(_floats, None))
        b.store(b.bitcast(bits, _i16), _at(b, address, _i16), align=1)

    return _emit(types.void(types.intp, FLOATS), codegen)


@intrinsic
def add_times_bytes(_typing, sums, numbers, pixels):
    """sums + the numbers times the 16 uint8 at address."""

    def codegen(b, sums, numbers, pixels):
        bytes_ = b.load(_at(b, pixels, ir.VectorType(_i8, WIDTH)), align=1)
        fma = _function(b, "llvm.fma.v16f32", _floats, _floats, _floats, _floats)
        return b.call(fma, [b.sitofp(b.zext(bytes_, _ints), _floats), numbers, sums])

    return _emit(FLOATS(FLOATS, FLOATS, types.intp), codegen)


@intrinsic
def add_times(_typing, sums, numbers, factor):
    """sums + the numbers times a factor."""

    def codegen(b, sums, numbers, factor):
        fma = _function(b, "llvm.fma.v16f32", _floats, _floats, _floats, _floats)
        return b.call(fma, [numbers, _all(b, factor, WIDTH), sums])

    return _emit(FLOATS(FLOATS, FLOATS, types.float32), codegen)


def _transposed(b, rows: list[ir.Value]) -> list[ir.Value]:
    """The columns of WIDTH vectors of WIDTH elements."""
    rows = list(rows)
    for s in (8, 4, 2, 1):  # swap the off-diagonal blocks of size s
        low = [j + WIDTH - s if j & s else j for j in range(WIDTH)]
        high = [j + WIDTH if j & s else j + s for j in range(WIDTH)]
        for i in (i for i in range(WIDTH) if not i & s):
            pair = rows[i], rows[i + s]
            rows[i], rows[i + s] = (b.shuffle_vector(*pair, ir.Constant(_ints, lanes)) for lanes in (low, high))
    return rows


def _transpose(element: ir.Type):
    """The codegen of an intrinsic: the 16 × 16 elements of rows `step` bytes apart at address become columns, rows
    `out_step` bytes apart at `out`."""
    kind = ir.VectorType(element, WIDTH)

    def codegen(b, address, step, out, out_step):
        rows = [b.load(_at(b, b.add(address, b.mul(step, _i64(i))), kind), align=1) for i in range(WIDTH)]
        for i, column in enumerate(_transposed(b, rows)):
            b.store(column, _at(b, b.add(out, b.mul(out_step, _i64(i))), kind), align=1)

    return _emit(types.void(types.intp, types.intp, types.intp, types.intp), codegen)


@intrinsic
def transpose_floats(_typing, address, step, out, out_step):
    return _transpose(_f32)


@intrinsic
def transpose_bytes(_typing, address, step, out, out_step):
    return _transpose(_i8)


@intrinsic
def total(_typing, numbers):
    def codegen(b, numbers):
        add = _function(b, "llvm.vector.reduce.fadd.v16f32", _f32, _f32, _floats)
        return b.call(add, [_f32(0.0), numbers], fastmath=("reassoc",))

    return _emit(types.float32(FLOATS), codegen)


@intrinsic
def add_looked_up(_typing, sums, table, indices):
    """sums + table[the low 4 bits of each index]."""

    def codegen(b, sums, table, indices):
        permute = _function(b, "llvm.x86.avx512.permvar.sf.512", _floats, _floats, _ints)
        return b.fadd(sums, b.call(permute, [table, indices]))

    return _emit(FLOATS(FLOATS, FLOATS, INTS), codegen)


@intrinsic
def add_looked_up_times(_typing, sums, table, indices, factor):
    """As `add_looked_up`, times a factor: with 1 the same, by the units that multiply."""

    def codegen(b, sums, table, indices, factor):
        permute = _function(b, "llvm.x86.avx512.permvar.sf.512", _floats, _floats, _ints)
        fma = _function(b, "llvm.fma.v16f32", _floats, _floats, _floats, _floats)
        return b.call(fma, [b.call(permute, [table, indices]), factor, sums])

    return _emit(FLOATS(FLOATS, FLOATS, INTS, FLOATS), codegen)


@intrinsic
def next_nibbles(_typing, indices):
    return _emit(INTS(INTS), lambda b, i: b.lshr(i, ir.Constant(_ints, [4] * WIDTH)))


@_compiled
def _take_block(grad, row, rows, neurons, out):
    """The errors of up to 16 neurons in `rows` ≤ BLOCK rows become float32 [neurons, BLOCK] at `out`, the rest of 16 rows 0."""
    whole = rows // WIDTH * WIDTH if neurons == WIDTH else 0
    for r in range(0, whole, WIDTH):
        transpose_floats(grad + 4 * r * row, 4 * row, out + 4 * r, 4 * BLOCK)
    for r in range(whole, rows):
        for n in range(neurons):
            set_float(out + 4 * (n * BLOCK + r), float_at(grad + 4 * (r * row + n)))
    for r in range(rows, -(-rows // WIDTH) * WIDTH):
        for n in range(neurons):
            set_float(out + 4 * (n * BLOCK + r), np.float32(0))


@_compiled
def _add_four(out, e, last, base, scale, a, b, c, d):
    """out[e], out[e + 1], … += base + scale · the total of a, b, …, up to `last`."""
    out[e] += base + scale * total(a)
    if e < last:
        out[e + 1] += base + scale * total(b)
    if e + 1 < last:
        out[e + 2] += base + scale * total(c)
    if e + 2 < last:
        out[e + 3] += base + scale * total(d)


@_compiled
def entries_of_bits(grad, row, rows, neurons, x, column, starts, inputs, zero, one, out):
    """out[e] += Σ_b grad[b, n] · x[b, inputs[e]] for the entries e of neuron n, starts[n] to starts[n + 1].

    `x`: the bits of each input, rows of `column` bytes (≥ ⌈rows / 16⌉ · 2), which stand for `zero` and `one`;
    `starts`, `inputs`: int64 arrays; `out`: float32.
    """
    block = np.empty((WIDTH, BLOCK), np.float32)
    scratch = np.intp(block.ctypes.data)  # numba has it unsigned, and makes a float of its sum with a signed integer
    for begin in range(0, rows, BLOCK):
        size = min(BLOCK, rows - begin)
        steps = -(-size // WIDTH)
        at = x + begin // 8
        for first in range(0, neurons, WIDTH):
            _take_block(grad + 4 * (begin * row + first), row, size, min(WIDTH, neurons - first), scratch)
            for n in range(first, min(first + WIDTH, neurons)):
                g = scratch + 4 * BLOCK * (n - first)
                last = starts[n + 1] - 1
                if last < starts[n]:
                    continue
                every = zeros()
                for s in range(steps):
                    every = plus(every, floats_at(g + 64 * s))
                base = zero * total(every)
                for e in range(starts[n], last + 1, 4):
                    p, q = at + inputs[e] * column, at + inputs[min(e + 1, last)] * column
                    u, v = at + inputs[min(e + 2, last)] * column, at + inputs[min(e + 3, last)] * column
                    a, b, c, d = zeros(), zeros(), zeros(), zeros()
                    for s in range(steps):
                        errors = floats_at(g + 64 * s)
                        a = add_where(a, errors, p + 2 * s)
                        b = add_where(b, errors, q + 2 * s)
                        c = add_where(c, errors, u + 2 * s)
                        d = add_where(d, errors, v + 2 * s)
                    _add_four(out, e, last, base, one - zero, a, b, c, d)


@_compiled
def entries_of_pixels(grad, row, rows, neurons, x, column, starts, inputs, out):
    """As `entries_of_bits` for inputs that are pixels: rows of `column` uint8 (≥ ⌈rows / 16⌉ · 16)."""
    block = np.empty((WIDTH, BLOCK), np.float32)
    scratch = np.intp(block.ctypes.data)  # numba has it unsigned, and makes a float of its sum with a signed integer
    for begin in range(0, rows, BLOCK):
        size = min(BLOCK, rows - begin)
        steps = -(-size // WIDTH)
        at = x + begin
        for first in range(0, neurons, WIDTH):
            _take_block(grad + 4 * (begin * row + first), row, size, min(WIDTH, neurons - first), scratch)
            for n in range(first, min(first + WIDTH, neurons)):
                g = scratch + 4 * BLOCK * (n - first)
                last = starts[n + 1] - 1
                for e in range(starts[n], last + 1, 4):
                    p, q = at + inputs[e] * column, at + inputs[min(e + 1, last)] * column
                    u, v = at + inputs[min(e + 2, last)] * column, at + inputs[min(e + 3, last)] * column
                    a, b, c, d = zeros(), zeros(), zeros(), zeros()
                    for s in range(steps):
                        errors = floats_at(g + 64 * s)
                        a = add_times_bytes(a, errors, p + 16 * s)
                        b = add_times_bytes(b, errors, q + 16 * s)
                        c = add_times_bytes(c, errors, u + 16 * s)
                        d = add_times_bytes(d, errors, v + 16 * s)
                    _add_four(out, e, last, np.float32(0), np.float32(1), a, b, c, d)


@_compiled
def _take_tables(grad, groups, factors, out):
    """For 4 errors each the 16 sums that bits as factors can make of them: float32 [groups, 16] at `out`."""
    for group in range(groups):
        sums = zeros()
        for j in range(4):
            sums = add_times(sums, floats_at(factors + 64 * j), float_at(grad + 16 * group + 4 * j))
        set_floats(out + 64 * group, sums)


@_compiled
def input_gradient(grad, row, rows, neurons, weights, inputs, factors, out):
    """Σ_n grad[b, n] · V[n, k] → float32 [rows, inputs] at `out`, neurons a multiple of 32, inputs of 32.

    `weights`: the bits of V as nibbles of int32 [neurons / 32, inputs], nibble i of word w of input k being neurons 32w + 4i to
    32w + 4i + 3, the lowest bit first. `factors`: float32 [5, 16], what bit j of a nibble i stands for, and sixteen ones, with
    which half of the sums go by the units that multiply: 19% sooner on a Zen 4.
    """
    groups = neurons // 4
    tables = np.empty((4, groups, WIDTH), np.float32)
    start, step = np.intp(tables.ctypes.data), 64 * groups
    one = floats_at(factors + 64 * 4)
    for r in range(0, rows, 4):
        size = min(4, rows - r)
        for i in range(size):
            _take_tables(grad + 4 * row * (r + i), groups, factors, start + i * step)
        for k in range(0, inputs, 32):
            a, b, c, d, e, f, g, h = zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros(), zeros()
            table, tile = start, weights + 4 * (neurons // 32) * k
            for word in range(neurons // 32):
                low, high = ints_at(tile + 128 * word), ints_at(tile + 128 * word + 64)
                for _ in range(_NIBBLES):
                    p, q = floats_at(table), floats_at(table + step)
                    u, v = floats_at(table + 2 * step), floats_at(table + 3 * step)
                    a, b = add_looked_up(a, p, low), add_looked_up_times(b, p, high, one)
                    c, d = add_looked_up(c, q, low), add_looked_up_times(d, q, high, one)
                    e, f = add_looked_up(e, u, low), add_looked_up_times(f, u, high, one)
                    g, h = add_looked_up(g, v, low), add_looked_up_times(h, v, high, one)
                    low, high = next_nibbles(low), next_nibbles(high)
                    table += 64
            to = out + 4 * (r * inputs + k)
            set_floats(to, a)
            set_floats(to + 64, b)
            if size > 1:
                set_floats(to + 4 * inputs, c)
                set_floats(to + 4 * inputs + 64, d)
            if size > 2:
                set_floats(to + 8 * inputs, e)
                set_floats(to + 8 * inputs + 64, f)
            if size > 3:
                set_floats(to + 12 * inputs, g)
                set_floats(to + 12 * inputs + 64, h)
