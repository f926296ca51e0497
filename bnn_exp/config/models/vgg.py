"""Settings of `model=vgg`, the binary VGG-small (`bnn_exp.models.vgg`)."""

from typing import Annotated, Literal

from pydantic import Field

from bnn_exp.config.models.registry import Encoding, Odd, Weights, check_pooling, register_model
from bnn_exp.config.schema import Count, Positive, schema


@schema
class VGG:
    name: Literal["vgg"]
    channels: Annotated[tuple[Count, ...], Field(min_length=1)]
    convolutions: Count
    kernel_size: Odd
    encoding: Encoding
    window: Positive | None
    weights: Weights

    @property
    def depth(self) -> int:
        return len(self.channels) * self.convolutions + 1

    def check_images(self, size: tuple[int, int]) -> None:
        check_pooling(self.channels, size, len(self.channels), 2, "fewer channels")


register_model(VGG, "bnn_exp.models.vgg:VGG", optimizer="counter", trainer={"epochs": 100, "batch_size": 128})
