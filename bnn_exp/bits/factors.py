"""The interface through which the packed engine passes the gradient of a layer's weights to a rule.

A layer's sums are the products of its inputs with its weights. A weight gradient is the product of two factors: the gradient
at the layer's sums, and the layer's inputs. If a rule reads only a few entries of a weight gradient, only these entries are
computed. `engine.memory=lean` on a CPU computes the gradients of a few neurons at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor


class Factors(Protocol):
    """A weight gradient [neurons, inputs] that has not been computed, stored as its two factors.

    `lean` is True if the gradient should be computed in `blocks`, although a rule may then compute each block twice.
    """

    @property
    def lean(self) -> bool: ...

    @property
    def inputs(self) -> int:
        """The number of inputs of each neuron."""

    def entries(self, positions: Tensor) -> Tensor:
        """Returns the gradient at `positions`, float32. Positions are sorted int64 indices into the flattened gradient."""

    def whole(self) -> Tensor:
        """Returns the whole gradient, float32 or (on a CPU) bfloat16 [neurons, inputs]."""

    def blocks(self, neurons: int) -> Iterator[Tensor]:
        """Yields the gradients of `neurons` neurons at a time, from the first neuron to the last, in the dtype of `whole`."""


@dataclass(frozen=True)
class ComputedGradient:
    """A computed weight gradient [neurons, inputs] behind the interface of `Factors`."""

    lean: ClassVar[bool] = False
    gradient: Tensor

    @property
    def inputs(self) -> int:
        """The number of inputs of each neuron."""
        return self.gradient.shape[1]

    def entries(self, positions: Tensor) -> Tensor:
        """Returns the gradient at `positions`, float32. Positions are int64 indices into the flattened gradient."""
        return self.gradient.flatten()[positions]

    def whole(self) -> Tensor:
        """Returns the whole gradient, float32 or (on a CPU) bfloat16 [neurons, inputs]."""
        return self.gradient

    def blocks(self, neurons: int) -> Iterator[Tensor]:
        """Yields the gradients of `neurons` neurons at a time, from the first neuron to the last, in the dtype of `whole`."""
        yield from self.gradient.split(neurons)
