"""Chooses the kernels that train an MLP on packed bits: numba's on a CPU, Triton's on a GPU.

`bnn_exp.bits.cpu.passes.OnCPU` and `bnn_exp.bits.cuda.training.OnGPU` have the same methods.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from bnn_exp.nn import device

if TYPE_CHECKING:
    from bnn_exp.bits.cpu.passes import OnCPU
    from bnn_exp.bits.cuda.training import OnGPU


def arithmetic(
    weights: Tensor,
    bf16: bool = False,
    gradient_bits: int | None = None,
    key: Callable[[int, int], int] = lambda *_: 0,
    bf16_products: bool = True,
    lean: bool = False,
) -> "OnCPU | OnGPU":
    """Returns the operations on packed bits for the device of `weights`.

    Args:
        bf16: products round gradients to bfloat16.
        gradient_bits: on a CPU, products round gradients at random to 4 or 8 bits; with None they do not.
        key: returns the random key, below 2³², of one rounding. Its arguments are the number of a layer, and 0 for the gradient
            of the layer's inputs or 1 for the gradient of its weights.
        bf16_products: on a CPU, True if torch multiplies bf16 faster than float32.
        lean: on a CPU, True if rules take weight gradients in blocks of neurons. Gradients that are rounded at random are
            never taken in blocks: the random numbers of a row depend on its place.
    """
    if not device.on_host(weights):
        from bnn_exp.bits.cuda.products import has_fp8
        from bnn_exp.bits.cuda.training import OnGPU

        return OnGPU(bf16, has_fp8(weights.device))
    from bnn_exp.bits.cpu.passes import OnCPU
    from bnn_exp.bits.cpu.rounding import Rounding
    from bnn_exp.bits.cpu.ways import InBF16, InFloat32

    if gradient_bits is not None:
        bits = gradient_bits
        return OnCPU(lambda layer, gradient: Rounding(bits, key(layer, gradient)))
    way = InBF16(bf16_products) if bf16 else InFloat32()
    return OnCPU(lambda layer, gradient: way, lean)
