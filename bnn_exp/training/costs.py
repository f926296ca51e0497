"""The work of a training step of an MLP of bits on a GPU, counted kernel by kernel for both engines. Imports no torch.

The counts hold for gradients in bfloat16. Each kernel reads its inputs once and writes its outputs once. A multiplication and
an addition count as two operations. Work that both engines do alike is not counted: samples, loss, optimizers, metrics.

Each weight meets each sample three times: in the forward pass, for the weight's gradient, and for the gradient of the layer's
inputs. The first layer needs no gradient of its inputs.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

FEW = 1024  # the most rows for which one kernel computes BatchNorm and activation, in each direction
MOST_IN_HALF = 4096  # the most inputs for which the packed engine keeps bipolar sums in two bytes
BIT, FP8, HALF, SINGLE = 1 / 8, 1, 2, 4  # bytes of a packed bit, of a value in fp8, of a number in 16 and in 32 bits


@dataclass(frozen=True)
class Work:
    """The work of one kernel: arithmetic operations on numbers of the dtype `kind`, and the bytes that it reads and writes."""

    operations: float
    bytes: float = 0
    kind: str = "float32"


@dataclass(frozen=True)
class Rates:
    """The speed of a GPU.

    Args:
        launch: the seconds from the start of a short kernel to the start of the next, in a CUDA graph.
        bytes: bytes read plus bytes written, per second.
        operations: operations per second of a product, by the dtype of its operands.
    """

    launch: float
    bytes: float
    operations: dict[str, float]

    def seconds(self, works: Iterable[Work]) -> float:
        """Returns the seconds of some kernels, one after the other. A product overlaps its operations and its bytes."""
        return sum(
            self.launch + max(work.bytes / self.bytes, work.operations and work.operations / self.operations[work.kind])
            for work in works
        )


# Measured on an NVIDIA H200 with torch 2.11: products of 16384 × 1024 × 1024 numbers, and a copy.
H200 = Rates(2.5e-6, 4.25e12, {"bfloat16": 6.7e14, "float16": 6.7e14, "float8_e4m3fn": 1.03e15})


def packed(sizes: Sequence[int], rows: int, values: str = "float8_e4m3fn") -> Iterator[Work]:
    """Yields the work of each kernel in a step of the packed engine (`bnn_exp.bits.cuda.training`) on `rows` samples.

    Args:
        sizes: the number of pixels, the widths of the hidden layers, and the number of classes.
        values: the dtype in which the GPU multiplies values: float8_e4m3fn, or float16.
    """
    passes, value = 1 if rows <= FEW else 2, FP8 if values == "float8_e4m3fn" else HALF
    last = len(sizes) - 2
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        width, weights, x = _filled(outputs), inputs * outputs, rows * (inputs if i == 0 else _filled(inputs))
        z, once = rows * width, 2 * weights * rows
        operand, kind = (value, values) if i else (HALF, "bfloat16")
        kept = SINGLE if i == 0 or inputs > MOST_IN_HALF else HALF
        if i == 0:
            yield Work(0, x * (1 + HALF))  # converts pixels
        yield Work(0, weights * (BIT + operand))  # unpacks weights
        yield Work(once, operand * (x + weights) + kept * z, kind)
        if i == last:
            yield from _in_passes(passes, kept * z, SINGLE * (rows * outputs if passes == 1 else z))
        else:
            yield from _in_passes(passes, kept * z, value * z)
        gradient = SINGLE * rows * outputs if i == last else HALF * z
        yield from _in_passes(passes, kept * z + gradient, 2 * HALF * z)  # the gradient at the sums, and the activation
        if i:
            yield Work(0, weights * (BIT + HALF))  # unpacks weights
            yield Work(once, HALF * (z + weights + x), "bfloat16")  # the gradient at the inputs
        yield Work(once, HALF * (z + x) + SINGLE * weights, "bfloat16")  # the gradient of the weights
        yield Work(0, weights * (SINGLE + 2 * BIT))  # flips


def dense(sizes: Sequence[int], rows: int) -> Iterator[Work]:
    """Yields the work of each kernel in a step of the dense engine on `rows` samples. `packed` explains `sizes`."""
    passes, last = 1 if rows <= FEW else 2, len(sizes) - 2
    for i, (inputs, outputs) in enumerate(pairwise(sizes)):
        weights, x, z = inputs * outputs, rows * inputs, rows * outputs
        once = 2 * weights * rows
        yield Work(0, weights * (SINGLE + HALF))  # values of bits
        if i == 0:
            yield Work(0, x * (1 + HALF))  # converts pixels
        yield Work(once, HALF * (x + weights) + SINGLE * z, "bfloat16")
        if i == 0:
            yield Work(0, 2 * SINGLE * z)  # divides by 255
        yield from _in_passes(passes, SINGLE * z, (SINGLE if i == last else HALF) * z)
        yield from _in_passes(passes, (SINGLE + (SINGLE if i == last else HALF)) * z, SINGLE * z)
        yield Work(0, (SINGLE + HALF) * z)  # converts the gradient
        if i:
            yield Work(once, HALF * (z + weights + x), "bfloat16")
        yield Work(once, HALF * (z + x) + SINGLE * weights, "bfloat16")
        yield Work(0, weights * 3 * SINGLE)  # flips


def _in_passes(passes: int, read: float, written: float) -> Iterator[Work]:
    """Yields the kernels of BatchNorm and activation: one, or three: sums over blocks, sums over all rows, results."""
    if passes == 2:
        yield from (Work(0, read), Work(0))
    yield Work(0, read + written)


def _filled(width: int) -> int:
    return width + -width % 64


STEPS: dict[str, Callable[[Sequence[int], int], Iterator[Work]]] = {"dense": dense, "packed": packed}  # by engine


def cheaper(hidden: int, layers: int, batch: int) -> str:
    """Returns the engine whose step takes less time by these counts, at the rates of an H200. Images have 784 pixels."""
    sizes = [784, *[hidden] * (layers - 1), 10]
    return min(STEPS, key=lambda engine: H200.seconds(STEPS[engine](sizes, batch)))
