"""The methods `predict` and `scores` of packed networks, which take pictures as torch tensors or numpy arrays."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

Pixels = TypeVar("Pixels", Tensor, np.ndarray)


class Predicting(nn.Module):
    """A base class of packed networks with the methods `predict` and `scores`. A subclass defines `takes`."""

    image_shape: tuple[int, ...] | None = None  # (channels, height, width), where it is known

    def predict(self, pixels: Pixels) -> Any:
        """Returns the class of each picture: the position of its greatest score, the first among equals.

        Args:
            pixels: uint8, a tensor or a numpy array. A batch [n, …], or one picture: [channels, height, width].

        Returns:
            int64 [n], a tensor or an array as `pixels` is. For one picture: a tensor without dimensions, or a numpy integer.

        Raises:
            ValueError: `pixels` has another dtype, or a shape that the network does not take.
        """
        return self._classes(pixels) if self._is_batch(pixels) else self._classes(pixels[None])[0]

    def scores(self, pixels: Pixels) -> Any:
        """Returns the logits of each picture, float32 [n, classes], or [classes] for one picture.

        For `pixels`, the kind of the result and errors, see `predict`.
        """
        return self._scores(pixels) if self._is_batch(pixels) else self._scores(pixels[None])[0]

    def takes(self, picture: Sequence[int]) -> bool:
        """Returns True if the network takes a picture of this shape."""
        raise NotImplementedError

    def _is_batch(self, pixels: Pixels) -> bool:
        """Returns True if `pixels` is a batch, False if it is one picture."""
        if _is_uint8(pixels):
            shape = pixels.shape
            if shape == self.image_shape:
                return False
            if shape and self.takes(shape[1:]):
                return True
            if self.takes(shape):
                return False
        raise ValueError(self._refusal(pixels))

    def _refusal(self, pixels: Any) -> str:
        shape = ", ".join(map(str, self.image_shape or ("channels", "height", "width")))
        given = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, (np.ndarray, Tensor)) else type(pixels).__name__
        return f"pixels are {given}: must be uint8 [n, {shape}] or [{shape}], a torch tensor or a numpy array"

    def _scores(self, pixels: Pixels) -> Pixels:
        """Returns the logits of a batch."""
        x = _tensor(pixels)
        where = next((held.device for held in (*self.buffers(), *self.parameters())), x.device)
        with torch.no_grad():
            scores = self(x.to(where)).to(x.device)
        return scores.numpy() if isinstance(pixels, np.ndarray) else scores

    def _classes(self, pixels: Pixels) -> Pixels:
        """Returns the classes of a batch."""
        return self._scores(pixels).argmax(1)


def _is_uint8(pixels: Any) -> bool:
    if isinstance(pixels, np.ndarray):
        return pixels.dtype == np.uint8
    return isinstance(pixels, Tensor) and pixels.dtype is torch.uint8


def _tensor(pixels: Tensor | np.ndarray) -> Tensor:
    if isinstance(pixels, Tensor):
        return pixels
    pixels = np.ascontiguousarray(pixels)
    return torch.from_numpy(pixels if pixels.flags.writeable else pixels.copy())  # torch warns of arrays that are read-only
