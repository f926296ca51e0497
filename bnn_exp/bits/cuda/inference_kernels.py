"""Triton's kernels that multiply packed bits or pixels by packed weights, and finish the sums of a layer.

The weights lie in rows of bytes, one row for each output (`bnn_exp.bits.layout.in_rows`). A weight w is 1 for a bit 1 and
`zero` for a bit 0, so Σ x·w = (1 − zero) · Σ x·bit + zero · Σ x. Every sum is an integer, and exact.

- `few_bits` and `few_pixels` take few rows. A program computes 8 outputs for all rows, so each weight is read from the memory
  of the GPU once. Bits are counted in words of 32, by one instruction of the GPU. Pixels are chosen by masks, four at a time.
- `many` takes many rows, on tensor cores, in int8. `spread` splits its x into planes: plane p holds the inputs whose weights
  are the bits p of the bytes. So a shift and a mask unpack four weights at once, inside registers.
"""

import triton
import triton.language as tl

OUTPUTS = tl.constexpr(8)  # outputs that a program of `few_bits` and `few_pixels` computes: a byte of packed results


@triton.jit
def popcount(x):
    """Returns the number of ones in each uint32, as int32. The compiler turns this form into one instruction of the GPU."""
    x = x - ((x >> 1) & 0x55555555)
    x = (x & 0x33333333) + ((x >> 2) & 0x33333333)
    return ((((x + (x >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


COMPILED = tl.constexpr(isinstance(popcount, triton.JITFunction))  # False if Triton interprets the kernels


@triton.jit
def _finish(sums, first, r, rows, out, width, outputs, constants, RESULT: tl.constexpr):
    """Stores the results of `sums`, int32 [outputs, rows]: of the outputs from `first` on, and of the rows r.

    A row of `out` has `width` elements. RESULT and `constants` are those of an operator in `bnn_exp.bits.operators`:

    - "sums", (): the sums;
    - "steps", (thresholds, inverted): packed bits;
    - "scores", (offset, weight, bias, factor, divisor): float32.
    """
    COUNT: tl.constexpr = sums.shape[0]
    n = first + tl.arange(0, COUNT)
    row, there = out + r[None, :].to(tl.int64) * width, (n < outputs)[:, None] & (r < rows)[None, :]
    if RESULT == "steps":
        steps = (sums >= tl.load(constants[0] + n, n < outputs, 0)[:, None]).to(tl.int32) << (n % 8)[:, None]
        b = first // 8 + tl.arange(0, COUNT // 8)
        bytes_ = tl.sum(tl.reshape(steps, (COUNT // 8, 8, sums.shape[1])), 1).to(tl.uint8)
        bytes_ = bytes_ ^ tl.load(constants[1] + b, b < width, 0)[:, None]
        tl.store(row + b[:, None], bytes_, (b < width)[:, None] & (r < rows)[None, :])
    elif RESULT == "scores":
        offset = tl.load(constants[0] + n, n < outputs, 0)[:, None]
        weight, bias = tl.load(constants[1] + n, n < outputs, 0.0), tl.load(constants[2] + n, n < outputs, 0.0)
        product = (offset + constants[3] * sums).to(tl.float32)
        product = tl.div_rn(product, tl.zeros_like(product) + constants[4])
        # Torch's BatchNorm on a CPU rounds once, after the addition. float64 holds the product of two float32 exactly.
        exact = product.to(tl.float64) * weight[:, None].to(tl.float64) + bias[:, None].to(tl.float64)
        tl.store(row + n[:, None], exact.to(tl.float32), there)
    else:
        tl.store(row + n[:, None], sums, there)


@triton.jit(do_not_specialize=["rows"])
def few_bits(
    x, row, count, rows, weights, stride, zero, out, width, outputs, constants, RESULT: tl.constexpr, WORDS: tl.constexpr
):
    """Multiplies packed bits x by packed weights, both in words of 32 bits.

    A row of x takes `row` words, and its first `count` bytes count. A row of weights takes `stride` words. A program reads
    WORDS words of a row at a time. The other arguments are those of `_finish`.
    """
    first = tl.program_id(0) * OUTPUTS
    n = (first + tl.arange(0, OUTPUTS)).to(tl.int64)
    x, weights = x.to(tl.pointer_type(tl.uint32)), weights.to(tl.pointer_type(tl.uint32))
    for r in range(rows):
        matches, total = tl.zeros((OUTPUTS, WORDS), tl.int32), tl.zeros((WORDS,), tl.int32)
        for begin in range(0, tl.cdiv(count, 4), WORDS):
            k = begin + tl.arange(0, WORDS)
            bits = 8 * tl.maximum(tl.minimum(count - 4 * k, 4), 0)  # the number of bits of word k that count
            counting = tl.where(bits == 32, -1, (1 << (bits % 32)) - 1).to(tl.uint32, bitcast=True)
            inputs = tl.load(x + r * row + k, bits > 0, 0) & counting
            w = tl.load(weights + n[:, None] * stride + k[None, :], (k < stride)[None, :], 0)
            matches += popcount(inputs[None, :] & w)
            total += popcount(inputs)
        sums = (1 - zero) * tl.sum(matches, 1) + zero * tl.sum(total, 0)
        _finish(sums[:, None], first, r + tl.arange(0, 1), rows, out, width, outputs, constants, RESULT)


@triton.jit
def _pairs(words):
    """Returns the bytes 0 and 2 of each word plus its bytes 1 and 3: two numbers of 16 bits in a word."""
    return (words & 0x00FF00FF) + ((words >> 8) & 0x00FF00FF)


@triton.jit(do_not_specialize=["rows"])
def few_pixels(
    x, row, count, rows, weights, stride, zero, out, width, outputs, constants, RESULT: tl.constexpr, WORDS: tl.constexpr
):
    """Multiplies pixels x by packed weights, as `few_bits` multiplies bits. A row of x has `count` words of four pixels."""
    first = tl.program_id(0) * OUTPUTS
    n = (first + tl.arange(0, OUTPUTS)).to(tl.int64)
    x, weights = x.to(tl.pointer_type(tl.uint32)), weights.to(tl.pointer_type(tl.uint32))
    for r in range(rows):
        chosen, total = tl.zeros((OUTPUTS, WORDS), tl.uint32), tl.zeros((WORDS,), tl.uint32)
        for begin in range(0, tl.cdiv(count, 8), WORDS):
            k = begin + tl.arange(0, WORDS)
            w = tl.load(weights + n[:, None] * stride + k[None, :], (k < stride)[None, :], 0)
            pairs, whole = tl.zeros((OUTPUTS, WORDS), tl.uint32), tl.zeros((WORDS,), tl.uint32)
            for i in tl.static_range(8):
                pixels = tl.load(x + r * row + 8 * k + i, 8 * k + i < count, 0)
                # The four bits of the weights become the lowest bits of four bytes, and then four bytes of 0 or 255.
                mask = ((((w >> (4 * i)) & 15) * 0x00204081) & 0x01010101) * 255
                pairs += _pairs(pixels[None, :] & mask)
                whole += _pairs(pixels)
            chosen += (pairs & 0xFFFF) + (pairs >> 16)
            total += (whole & 0xFFFF) + (whole >> 16)
        sums = (1 - zero) * tl.sum(chosen.to(tl.int32), 1) + zero * tl.sum(total.to(tl.int32), 0)
        _finish(sums[:, None], first, r + tl.arange(0, 1), rows, out, width, outputs, constants, RESULT)


@triton.jit
def spread(x, row, inputs, columns, planes, width, totals, PIXELS: tl.constexpr, BYTES: tl.constexpr):
    """Splits a row of x into 8 planes, int8 [8, width], and stores the sum of the row: int32.

    Plane p holds the inputs p, 8 + p, 16 + p, …, as bits 0 and 1, or as pixels minus 128. A plane ends with zeros.
    `columns` is the number of bytes of packed weights of these inputs.
    """
    r = tl.program_id(0).to(tl.int64)
    total = tl.zeros((BYTES,), tl.int32)
    for begin in range(0, width, BYTES):
        j = begin + tl.arange(0, BYTES)
        packed = tl.load(x + r * row + j, (j < columns) & (not PIXELS), 0).to(tl.int32)
        for p in tl.static_range(8):
            if PIXELS:
                there = 8 * j + p < inputs
                values = tl.load(x + r * row + 8 * j + p, there, 0).to(tl.int32)
                total += values
                values = tl.where(there, values - 128, 0)
            else:
                values = (packed >> p) & 1
                total += values
            tl.store(planes + (8 * r + p) * width + j, values.to(tl.int8), j < width)
    tl.store(totals + r, tl.sum(total, 0))


@triton.jit
def _lowest_bits(w):
    """Returns the lowest bit of each uint8, as int8. A register holds four uint8, and one instruction computes all four."""
    if COMPILED:
        return tl.inline_asm_elementwise("and.b32 $0, $1, 0x01010101;", "=r,r", [w], dtype=tl.int8, is_pure=True, pack=4)
    return (w & 1).to(tl.int8)


@triton.jit
def _next_bits(w):
    """Returns each uint8 shifted right by one bit. The highest bits are not defined."""
    if COMPILED:
        return tl.inline_asm_elementwise("shr.u32 $0, $1, 1;", "=r,r", [w], dtype=tl.uint8, is_pure=True, pack=4)
    return w >> 1


@triton.jit(do_not_specialize=["rows"])
def many(
    planes,
    totals,
    rows,
    weights,
    stride,
    zero,
    out,
    width,
    outputs,
    constants,
    RESULT: tl.constexpr,
    PIXELS: tl.constexpr,
    TILE: tl.constexpr,
    ROWS: tl.constexpr,
    BYTES: tl.constexpr,
):
    """Multiplies the planes and totals of `spread` by packed weights. A row of weights and of a plane has `stride` bytes.

    A program computes TILE outputs of ROWS rows, and reads BYTES bytes of packed weights of an output at a time.
    """
    first = tl.program_id(0) * TILE
    n, r, j = first + tl.arange(0, TILE), tl.program_id(1) * ROWS + tl.arange(0, ROWS), tl.arange(0, BYTES)
    w_at = weights + n[:, None].to(tl.int64) * stride + j[None, :]
    x_at = planes + r[None, :].to(tl.int64) * 8 * stride + j[:, None]
    sums, ones = tl.zeros((TILE, ROWS), tl.int32), tl.zeros((TILE,), tl.int32)
    for begin in range(0, stride, BYTES):
        w = tl.load(w_at + begin, (n < outputs)[:, None], 0)
        if PIXELS:
            ones += tl.sum(popcount(w.to(tl.uint32)), 1)
        for p in tl.static_range(8):
            x = tl.load(x_at + p * stride + begin, (r < rows)[None, :], 0)
            sums = tl.dot(_lowest_bits(w), x, sums, out_dtype=tl.int32)
            w = _next_bits(w)
    if PIXELS:
        sums += 128 * ones[:, None]
    sums = (1 - zero) * sums + zero * tl.load(totals + r, r < rows, 0)[None, :]
    _finish(sums, first, r, rows, out, width, outputs, constants, RESULT)
