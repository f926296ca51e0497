"""The normalisation of each sample by itself, and its operators for a GPU, which take the activation too."""

import torch
from torch import Tensor, nn

from bnn_exp.nn.batch_norm import activated, passing
from bnn_exp.nn.known_classes import exact
from bnn_exp.nn.operators import operator

_LEAST = 1e-8  # added to a standard deviation


@exact
class Standardize(nn.Module):
    """A module that computes (z − mean)/(std + 1e−8), the mean and the unbiased standard deviation over `dims` of z."""

    def __init__(self, dims: tuple[int, ...]):
        super().__init__()
        self.dims = dims

    def forward(self, z: Tensor) -> Tensor:
        std, mean = torch.std_mean(z, dim=self.dims, keepdim=True)
        return (z - mean) / (std + _LEAST)


@operator(
    "(Tensor z, str activation, float low, float high, ScalarType dtype) -> (Tensor, Tensor mean, Tensor std)",
    kernels="bnn_exp.nn.cuda.standardize:standardize",
    launches=1,
    fake=lambda z, activation, low, high, dtype: (
        torch.empty_like(z, dtype=dtype),
        *(z.new_empty(len(z), z.shape[2], dtype=torch.float32) for _ in range(2)),
    ),
)
def standardize(z: Tensor, activation: str, low: float, high: float, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the activation of `Standardize` over the second dimension, as `dtype`, with mean and standard deviation.

    Args:
        z: [samples, numbers, columns], contiguous, at least two numbers.
        activation, low, high: see `bnn_exp.nn.batch_norm`.

    Returns:
        The activation in the shape of z; mean and standard deviation, float32 [samples, columns].
    """
    std, mean = torch.std_mean(z.float(), 1)
    y = (z - mean[:, None]) / (std + _LEAST)[:, None]
    return activated(y, activation, low, high).to(dtype), mean, std


@operator(
    "(Tensor grad, Tensor z, Tensor mean, Tensor std, str activation, float window) -> Tensor",
    kernels="bnn_exp.nn.cuda.standardize:standardize_gradient",
    launches=1,
    fake=lambda grad, z, *_: torch.empty_like(z),
)
def standardize_gradient(grad: Tensor, z: Tensor, mean: Tensor, std: Tensor, activation: str, window: float) -> Tensor:
    """Returns the gradient at z, in the shape and dtype of z.

    For a = z − mean and d = std + 1e−8 the gradient at z is (g − mean(g))/d − a·Σ(g·a) / (d²·std·(n − 1)), g the gradient at
    a/d and n the numbers of a sample. A deviation of 0 counts as constant, as in torch.

    Args:
        grad: the gradient at the activation's output.
        mean, std: results of `standardize`.
    """
    away, d = z - mean[:, None], std + _LEAST
    g = passing(grad.float(), away / d[:, None], activation, window)
    slope = torch.where(std > 0, (g * away).sum(1) / (d * d * std * (z.shape[1] - 1)), 0)
    return ((g - g.mean(1, keepdim=True)) / d[:, None] - slope[:, None] * away).to(z.dtype)
