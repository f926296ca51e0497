"""The interface through which the packed engine passes the gradient of a layer's weights to a rule.

A weight gradient is the product of two factors: the gradient at the layer's sums, and the layer's inputs. A rule that reads
few entries of the gradient has only those computed.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Factors(Protocol):
    """A weight gradient [neurons, inputs] that has not been computed, stored as its two factors."""

    @property
    def inputs(self) -> int:
        """The number of inputs of each neuron."""

    def entries(self, positions: Tensor) -> Tensor:
        """Returns the gradient at flat positions `positions`, int64, sorted: float32 of the same length."""

    def whole(self) -> Tensor:
        """Returns the whole gradient, float32 [neurons, inputs]."""


@dataclass(frozen=True)
class ComputedGradient:
    """A computed weight gradient, float32 [neurons, inputs], behind the interface of `Factors`."""

    gradient: Tensor

    @property
    def inputs(self) -> int:
        """The number of inputs of each neuron."""
        return self.gradient.shape[1]

    def entries(self, positions: Tensor) -> Tensor:
        """Returns the gradient at flat positions `positions`, int64: float32 of the same length."""
        return self.gradient.flatten()[positions]

    def whole(self) -> Tensor:
        """Returns the whole gradient, float32 [neurons, inputs]."""
        return self.gradient
