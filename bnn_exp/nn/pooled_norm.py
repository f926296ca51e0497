"""BatchNorm, the activation that follows it, and max-pooling, as one operator in each direction.

A CPU has a compiled form, which reads z once in the forward pass and twice in the backward pass, and stores no image between
BatchNorm and pooling. The definitions call the operators of `bnn_exp.nn.batch_norm` and `bnn_exp.nn.pooling`.
"""

import torch
from torch import Tensor

from bnn_exp.nn.batch_norm import AFFINE, LOWEST, normalize, normalize_gradient
from bnn_exp.nn.operators import operator
from bnn_exp.nn.pooling import pooled, pooled_gradient, pooled_shape

_COMPILED = "bnn_exp.bits.cpu.pooled_norm:"


@operator(
    f"(Tensor z, int size, Tensor mean, Tensor variance, {AFFINE}, str activation, ScalarType dtype)"
    " -> (Tensor, Tensor places)",
    kernels=None,
    launches=3,
    fake=lambda z, size, *given: tuple(z.new_empty(pooled_shape(z, size), dtype=dtype) for dtype in (given[-1], torch.uint8)),
    cpu=f"{_COMPILED}normalize_pooled",
)
def normalize_pooled(
    z: Tensor,
    size: int,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Returns the largest activation of each window of size × size positions, and its place as `pooled` does.

    The place is size² where the activation has no gradient. The largest activation is found before it is rounded to `dtype`.

    Args:
        z: [batch, height, width, channels], contiguous.
        activation: `relu` or `identity`.
    """
    rows, norm = z.flatten(0, 2), (mean, variance, weight, bias, eps)
    y = normalize(rows, *norm, activation, 0.0, 0.0, torch.float32).view(z.shape)
    largest, places = pooled(y, size)
    return largest.to(dtype), torch.where(largest <= LOWEST[activation], size * size, places).to(torch.uint8)


@operator(
    f"(Tensor grad, Tensor places, Tensor z, int size, Tensor mean, Tensor variance, {AFFINE})"
    " -> (Tensor, Tensor of_weight, Tensor of_bias)",
    kernels=None,
    launches=4,
    fake=lambda grad, places, z, size, mean, *_: (torch.empty_like(z), torch.empty_like(mean), torch.empty_like(mean)),
    cpu=f"{_COMPILED}normalize_pooled_gradient",
)
def normalize_pooled_gradient(
    grad: Tensor,
    places: Tensor,
    z: Tensor,
    size: int,
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the gradients at z (in z's dtype), at BatchNorm's weight and at its bias.

    Args:
        grad: the gradient at the result of `normalize_pooled`, contiguous.
        places: the places that `normalize_pooled` has returned.
        mean, variance: the statistics of the batch z.
    """
    spread = pooled_gradient(grad, places, size, z.shape[1], z.shape[2]).flatten(0, 2)
    norm = mean, variance, weight, bias, eps
    at_z, *others = normalize_gradient(spread, z.flatten(0, 2), *norm, "identity", torch.inf)
    return at_z.view(z.shape), *others
