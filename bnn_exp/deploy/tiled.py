"""The base class of layers that keep their weights as tiles, in the order in memory that the kernels of their device read."""

from typing import Any

from torch import Tensor

from bnn_exp.bits import laid_out
from bnn_exp.deploy.check import Evaluating


class Tiled(Evaluating):
    """A layer with packed weights in the buffer `tiles`, see `bnn_exp.bits.to_tiles`."""

    tiles: Tensor

    def _apply(self, *arguments: Any, **named: Any) -> "Tiled":
        super()._apply(*arguments, **named)
        self.tiles = laid_out(self.tiles)
        return self
