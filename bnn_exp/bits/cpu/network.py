"""Packed networks that one compiled call computes on a CPU, from pixels to logits or classes (`bits.cpu.kernels.network`)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from bnn_exp.bits.checks import check_outputs, check_thresholds, sizes
from bnn_exp.bits.cpu.convolutions import Fields, as_record, result_shape, work
from bnn_exp.bits.cpu.inference import THREAD_WORK
from bnn_exp.bits.cpu.kernels import network as kernels
from bnn_exp.bits.cpu.kernels import padded_pictures as places
from bnn_exp.bits.cpu.kernels import pictures
from bnn_exp.bits.cpu.threads import share
from bnn_exp.bits.reference import LANES

Pixels = TypeVar("Pixels", Tensor, np.ndarray)


@dataclass(frozen=True)
class Steps:
    """A layer whose results are packed bits: the operators `pixel_steps` and `bit_steps` of `bnn_exp.bits.operators`."""

    pixels: bool  # True if the input of the layer is pixels, False if it is packed bits
    tiles: Tensor
    thresholds: Tensor
    inverted: Tensor
    zero: int

    def fields(self) -> dict[int, int | Tensor]:
        """Returns the fields of the layer's record by their places; a tensor stands for its address."""
        return _product(self) | {kernels.THRESHOLDS: self.thresholds, kernels.INVERTED: self.inverted}


@dataclass(frozen=True)
class Scores:
    """The last layer, whose results are logits: the operator `scores` of `bnn_exp.bits.operators`."""

    pixels: bool
    tiles: Tensor
    offset: Tensor
    weight: Tensor
    bias: Tensor
    factor: int
    divisor: float
    zero: int

    def fields(self) -> dict[int, int | Tensor]:
        """Returns the fields of the layer's record by their places; a tensor stands for its address."""
        affine = {kernels.OFFSET: self.offset, kernels.SCALE: self.weight, kernels.SHIFT: self.bias}
        constants = {kernels.OUTPUTS: len(self.offset), kernels.FACTOR: self.factor, kernels.DIVISOR: int(self.divisor)}
        return _product(self) | affine | constants


def _product(layer: Steps | Scores) -> dict[int, int | Tensor]:
    groups, columns, _ = layer.tiles.shape
    kind = kernels.PIXELS if layer.pixels else kernels.BITS
    return {
        kernels.KIND: kind,
        kernels.COLUMNS: columns,
        kernels.GROUPS: groups,
        kernels.ZERO: layer.zero,
        kernels.TILES: layer.tiles,
    }


class Network:
    """A packed network that one compiled call computes. Calls share no memory, so several threads may call a
    network at the same time.

    Args:
        inputs: the number of pixels of a picture.
        layers: any number of `Steps`, then one `Scores`. Their tensors are contiguous and in the CPU's memory. Each call reads
            them, so a change in place counts.

    Raises:
        ValueError: the sizes or dtypes of the layers do not fit together.
    """

    kernel = staticmethod(kernels.network)

    def __init__(self, inputs: int, layers: Sequence[Steps | Scores]):
        _check(inputs, layers)
        self._keep([as_record(layer.fields(), kernels.RECORD) for layer in layers])
        last: Any = layers[-1]
        self.inputs, self.outputs = inputs, len(last.offset)
        rows = [inputs, *(layer.tiles.shape[1] for layer in layers[1:])]  # bytes of one row of each layer's input
        work = [row * len(layer.tiles) for row, layer in zip(rows, layers, strict=True)]
        self.work, self.heaviest = sum(work), max(work)

    def _keep(self, records: Sequence[tuple[Tensor, list[Tensor]]]) -> None:
        """Joins the records of the layers to a plan. Other tensors may take the place of the layers' tensors in a module."""
        plan = torch.cat([record for record, _ in records])
        self.plan = plan.data_ptr(), len(records)
        self.kept = plan, [kept for _, kept in records]

    def better_by_layers(self, rows: int) -> bool:
        """Returns True if threads should share the outputs of each layer in turn: for few rows and a large layer."""
        if rows * self.heaviest < 2 * THREAD_WORK:
            return False
        threads = torch.get_num_threads()
        return threads > 1 and rows < LANES * threads

    def logits(self, x: Pixels) -> Pixels:
        """Returns the logits of a batch, float32 [rows, outputs]: a tensor if x is a tensor, an array if x is an array.

        Args:
            x: pixels, uint8 [rows, …], `inputs` of them in each row.

        Raises:
            ValueError: a row has another number of pixels.
        """
        out = _empty(x, (len(x), self.outputs), np.float32, torch.float32)
        self._run(x, _address(out), 0)
        return out

    def classes(self, x: Pixels) -> Pixels:
        """Returns the position of each row's greatest logit, int64 [rows]: the first among equals. For x see `logits`."""
        out = _empty(x, (len(x),), np.int64, torch.int64)
        self._run(x, 0, _address(out))
        return out

    def _run(self, x: Pixels, logits: int, classes: int) -> None:
        x = np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x.contiguous()
        at, rows, work = _address(x), len(x), len(x) * self.work
        if x.nbytes != rows * self.inputs:
            raise ValueError(f"pixels {x.dtype} {list(x.shape)}: must be uint8, {self.inputs} in each row")
        if work < 2 * THREAD_WORK:
            self.kernel(*self.plan, at, self.inputs, rows, logits, classes)
            return

        def part(begin: int, end: int) -> None:
            to = (start and start + begin * size for start, size in ((logits, 4 * self.outputs), (classes, 8)))
            self.kernel(*self.plan, at + begin * self.inputs, self.inputs, end - begin, *to)

        share(part, rows, min(torch.get_num_threads(), work // THREAD_WORK, rows))


class PictureNetwork(Network):
    """A packed CNN that one compiled call computes; see `Network`. Pixels are uint8 [batch, channels, height, width].

    Args:
        shape: (channels, height, width) of the pictures.
        layers: the fields of at least one layer of `bits.cpu.convolutions`; the first one reads pixels as codes.
        last: the last layer, which reads the results of the layer before as one row.

    Raises:
        ValueError: the sizes of the layers do not fit together.
    """

    kernel = staticmethod(pictures.pictures)

    def __init__(self, shape: tuple[int, int, int], layers: Sequence[Fields], last: Scores):
        _check_pictures(shape, layers, last)
        self._keep([*map(as_record, layers), as_record(last.fields(), kernels.RECORD)])
        self.inputs, self.outputs = math.prod(shape), len(last.offset)
        each = [*map(work, layers), last.tiles.shape[1] * len(last.tiles)]
        self.work, self.heaviest = sum(each), max(each)

    def better_by_layers(self, rows: int) -> bool:
        """Returns True if threads should share the rows of each layer's pictures: for few pictures and a large layer."""
        return rows < torch.get_num_threads() and rows * self.heaviest >= 2 * THREAD_WORK


def _check_pictures(shape: tuple[int, int, int], layers: Sequence[Fields], last: Scores) -> None:
    channels, height, width = shape
    given = height, width, channels
    codes = True
    for fields in layers:
        reads = tuple(fields[place] for place in (places.HEIGHT, places.WIDE, places.CHANNELS))
        if reads != given or codes != (fields[places.KIND] != places.BITS):
            raise ValueError(f"a layer reads pictures of {reads}, but the layer before gives pictures of {given}")
        given, codes = result_shape(fields), places.THRESHOLDS not in fields
    height, width, channels = given
    row = torch.empty(0, height * width * (channels if codes else (channels + 7) // 8), dtype=torch.uint8)
    if last.pixels != codes or not row.shape[1]:
        raise ValueError("the last layer reads other numbers than the layer before gives")
    _check(row.shape[1], [last])


def _check(inputs: int, layers: Sequence[Steps | Scores]) -> None:
    row = torch.empty(0, inputs, dtype=torch.uint8)  # an input without rows, as a layer takes it
    for layer in layers:
        _, _, groups, _ = sizes(row, layer.tiles, "pixel" if layer.pixels else "bit")
        if isinstance(layer, Steps):
            check_thresholds(layer.thresholds, layer.inverted, layer.tiles)
            row = row.new_empty(0, LANES // 8 * groups)
        else:
            check_outputs(len(layer.offset), groups)
            if not layer.offset.shape == layer.weight.shape == layer.bias.shape:
                raise ValueError(f"{len(layer.weight)} scales must be {len(layer.offset)}, one for each output")


def _empty(like: Pixels, shape: tuple[int, ...], in_numpy: type, in_torch: torch.dtype) -> Pixels:
    return np.empty(shape, in_numpy) if isinstance(like, np.ndarray) else like.new_empty(shape, dtype=in_torch)


def _address(array: Pixels) -> int:
    return kernels.address(array.reshape(-1)) if isinstance(array, np.ndarray) else array.data_ptr()
