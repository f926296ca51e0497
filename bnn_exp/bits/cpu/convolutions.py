"""The operators of `bnn_exp.bits.convolutions` on a CPU: they check sizes, reserve memory and divide the work among threads.

The operators and compiled networks (`bits.cpu.network`) describe a layer by its *fields*. A field is a number or a tensor, and
its key is its place in a record of `bits.cpu.kernels.padded_pictures`. A kernel sees only addresses, so the functions that make
fields check all sizes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bnn_exp.bits.cpu.inference import THREAD_WORK
from bnn_exp.bits.cpu.kernels import convolutions
from bnn_exp.bits.cpu.kernels import padded_pictures as places
from bnn_exp.bits.cpu.threads import share
from bnn_exp.bits.reference import LANES

Fields = dict[int, int | Tensor]
Shape = Sequence[int]  # height, width and channels of the pictures that a layer reads


def codes_of_codes(
    x: Tensor, tiles: Tensor, padding: Tensor, size: int, zero: int, bias: Tensor, multiplier: Tensor, levels: int, pool: int
) -> Tensor:
    """Returns the codes of a convolution of codes; see `bnn_exp.bits.convolutions`."""
    shape = _shape(x, x.shape[-1], x.shape[-1])
    return _convolved(x, code_fields(shape, tiles, padding, size, zero, bias, multiplier, levels, pool), len(bias))


def bits_of_codes(
    x: Tensor,
    tiles: Tensor,
    padding: Tensor,
    size: int,
    outputs: int,
    zero: int,
    thresholds: Tensor,
    inverted: Tensor,
    pool: int,
) -> Tensor:
    """Returns the bits of a convolution of codes; see `bnn_exp.bits.convolutions`."""
    shape = _shape(x, x.shape[-1], x.shape[-1])
    return _convolved(x, step_fields(shape, tiles, padding, size, outputs, zero, thresholds, inverted, pool), _bytes(outputs))


def bits_of_bits(
    x: Tensor,
    tiles: Tensor,
    channels: int,
    size: int,
    outputs: int,
    zero: int,
    thresholds: Tensor,
    inverted: Tensor,
    pool: int,
) -> Tensor:
    """Returns the bits of a convolution of bits; see `bnn_exp.bits.convolutions`."""
    shape = _shape(x, channels, _bytes(channels))
    return _convolved(x, step_fields(shape, tiles, None, size, outputs, zero, thresholds, inverted, pool), _bytes(outputs))


def average_codes(x: Tensor, multiplier: Tensor, levels: int) -> Tensor:
    """Returns the mean of codes over all positions, as codes; see `bnn_exp.bits.convolutions`."""
    shape = _shape(x, x.shape[-1], x.shape[-1])
    return _convolved(x, mean_fields(shape, multiplier, levels), shape[2])


def code_fields(
    shape: Shape,
    tiles: Tensor,
    padding: Tensor,
    size: int,
    zero: int,
    bias: Tensor,
    multiplier: Tensor,
    levels: int,
    pool: int,
) -> Fields:
    """Returns the fields of the layer `codes_of_codes` for pictures of a shape.

    Raises:
        ValueError: sizes, dtypes or devices of the tensors do not fit together.
    """
    _check_levels(levels)
    _check("bias", bias, torch.int32, len(bias))
    _check("multiplier", multiplier, torch.float32, len(bias))
    fields = _convolution(shape, tiles, padding, size, len(bias), zero, pool)
    return fields | {places.BIAS: bias, places.MULTIPLIER: multiplier, places.LEVELS: levels}


def step_fields(
    shape: Shape,
    tiles: Tensor,
    padding: Tensor | None,
    size: int,
    outputs: int,
    zero: int,
    thresholds: Tensor,
    inverted: Tensor,
    pool: int,
) -> Fields:
    """Returns the fields of the layer `bits_of_codes`, or `bits_of_bits` if `padding` is None, for pictures of a shape.

    Raises:
        ValueError: sizes, dtypes or devices of the tensors do not fit together.
    """
    fields = _convolution(shape, tiles, padding, size, outputs, zero, pool)
    classes = size if padding is None and len(thresholds) > 1 else 1
    _check("thresholds", thresholds, torch.int32, classes, classes, LANES * len(tiles))
    _check("inverted", inverted, torch.uint8, LANES // 8 * len(tiles))
    return fields | {places.THRESHOLDS: thresholds, places.CLASSES: classes, places.INVERTED: inverted}


def mean_fields(shape: Shape, multiplier: Tensor, levels: int) -> Fields:
    """Returns the fields of the layer `average_codes` for pictures of a shape.

    Raises:
        ValueError: `multiplier` is no float32 without dimensions, or `levels` is no code.
    """
    _check_levels(levels)
    _check("multiplier", multiplier, torch.float32)
    height, width, channels = shape
    sides: Fields = {places.HEIGHT: height, places.WIDE: width, places.CHANNELS: channels, places.SIZE: 1, places.POOL: 1}
    return sides | {places.KIND: places.AVERAGE, places.MULTIPLIER: multiplier, places.LEVELS: levels}


def as_record(fields: Fields, size: int = places.RECORD) -> tuple[Tensor, list[Tensor]]:
    """Returns the record of a layer, int64, of `size` bytes, and the tensors whose addresses the record holds."""
    kept = [field.detach().contiguous() for field in fields.values() if isinstance(field, Tensor)]
    addresses = iter([tensor.data_ptr() for tensor in kept])
    record = [0] * (size // 8)
    for place, field in fields.items():
        record[place // 8] = next(addresses) if isinstance(field, Tensor) else field
    return torch.tensor(record), kept


def result_shape(fields: Fields) -> tuple[int, int, int]:
    """Returns the height, width and channels of a layer's results."""
    if fields[places.KIND] == places.AVERAGE:
        return 1, 1, int(fields[places.CHANNELS])
    height, width, pool = (int(fields[place]) for place in (places.HEIGHT, places.WIDE, places.POOL))
    return height // pool, width // pool, int(fields[places.OUTPUTS])


def work(fields: Fields) -> int:
    """Returns the work of a layer for one picture, in the unit of THREAD_WORK.

    The work is positions × bytes of an output's weights × tiles. A layer that reads codes counts 4 times, because its products
    take about 4 times as long as those of bits.
    """
    if fields[places.KIND] == places.AVERAGE:
        return 0
    height, width, columns, groups = (
        int(fields[place]) for place in (places.HEIGHT, places.WIDE, places.COLUMNS, places.GROUPS)
    )
    return height * width * columns * groups * (4 if fields[places.KIND] == places.CODES else 1)


def _bytes(bits: int) -> int:
    return (bits + 7) // 8


def _shape(x: Tensor, channels: int, each: int) -> tuple[int, int, int]:
    """Returns the height, width and channels of pictures x, of `each` bytes at a position.

    Raises:
        ValueError: x has another shape or dtype.
    """
    if x.dim() != 4 or x.dtype is not torch.uint8 or x.shape[3] != each:
        raise ValueError(f"pictures {x.dtype} {list(x.shape)}: must be uint8 [batch, height, width, {each}]")
    return x.shape[1], x.shape[2], channels


def _check(name: str, tensor: Tensor, dtype: torch.dtype, *shape: int) -> None:
    if tensor.dtype is not dtype or tensor.shape != shape or not tensor.is_cpu:
        given = f"{tensor.dtype} {list(tensor.shape)} on {tensor.device}"
        raise ValueError(f"{name} {given}: must be {dtype} {list(shape)} on cpu")


def _check_levels(levels: int) -> None:
    if not 0 <= levels <= 255:
        raise ValueError(f"levels={levels}: must be from 0 to 255")


def _convolution(shape: Shape, tiles: Tensor, padding: Tensor | None, size: int, outputs: int, zero: int, pool: int) -> Fields:
    """Returns the fields that all convolutions have."""
    height, width, channels = shape
    if size < 1 or size % 2 == 0 or pool < 1 or zero not in (0, -1) or channels < 1 or outputs < 1:
        raise ValueError(
            f"size={size}, pool={pool}, zero={zero}, channels={channels}, outputs={outputs}: "
            "size must be odd, zero 0 or -1, and the others at least 1"
        )
    columns = size * _bytes(size * channels) if padding is not None else size * size * _bytes(channels)
    _check("tiles", tiles, torch.uint8, -(-outputs // LANES), columns, LANES)
    fields: Fields = {places.HEIGHT: height, places.WIDE: width, places.CHANNELS: channels, places.SIZE: size}
    fields |= {places.POOL: pool, places.OUTPUTS: outputs, places.ZERO: zero}
    fields |= {places.TILES: tiles, places.COLUMNS: columns, places.GROUPS: len(tiles)}
    if padding is None:
        return fields | {places.KIND: places.BITS}
    _check("padding", padding, torch.uint8, channels)
    return fields | {places.KIND: places.CODES, places.PADDING: padding}


def _convolved(x: Tensor, fields: Fields, last: int) -> Tensor:
    """Returns the results of a layer, uint8 [batch, …, `last`]."""
    record, _kept = as_record(fields)
    height, width, _ = result_shape(fields)
    x, batch = x.contiguous(), len(x)
    out = x.new_empty(batch, height, width, last)
    at, pictures, result = record.data_ptr(), x.data_ptr(), out.data_ptr()
    each, result_each = x[:1].numel(), out[:1].numel()
    threads = max(1, min(torch.get_num_threads(), batch * work(fields) // THREAD_WORK))

    def of_pictures(begin: int, end: int) -> None:
        convolutions.layer(at, pictures + begin * each, end - begin, 0, height, result + begin * result_each)

    def of_rows(begin: int, end: int) -> None:
        convolutions.layer(at, pictures, batch, begin, end, result)

    if batch >= threads:
        share(of_pictures, batch, threads)
    else:
        share(of_rows, height, max(1, min(threads, height)))
    return out
