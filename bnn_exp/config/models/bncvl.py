"""Settings of `model=bncvl`, the binary normalised CNN (`bnn_exp.models.bncvl`)."""

from math import prod
from typing import Annotated, Literal

from pydantic import Field

from bnn_exp.config.models.registry import Encoding, Odd, Weights, check_pooling, register_model, train_by
from bnn_exp.config.schema import Count, schema
from bnn_exp.errors import UserError

MOST_INPUTS = 2**21 // 255  # the most inputs of a layer of codes, see bnn_exp.nn.requantize
MOST_POSITIONS = 2**24 // 255  # the most positions of a mean: float32 holds the sum of their codes exactly


@schema
class BNCVL:
    name: Literal["bncvl"]
    channels: Annotated[tuple[Count, ...], Field(min_length=1)]
    convolutions: Count
    kernel_size: Odd
    pool: Count
    dense: tuple[Count, ...]
    encoding: Encoding
    normalization: Literal["sample", "batch", "channel"]
    weights: Weights
    latent_std: Literal["one", "fan_in"]
    activation_bits: Literal[4, 8] | None = None  # configurations of earlier versions lack it

    binary_activations = False

    @property
    def depth(self) -> int:
        return len(self.channels) * self.convolutions + len(self.dense) + 1

    @property
    def real_parameters(self) -> bool:
        return self.normalization == "batch"

    def check_images(self, size: tuple[int, int]) -> None:
        check_pooling(self.channels, size, len(self.channels) - 1, self.pool, "fewer channels, or model.pool=1")
        if self.activation_bits:
            self._check_sums(size)

    def _check_sums(self, size: tuple[int, int]) -> None:
        """Raises UserError if sums of codes are too large for whole numbers in float32."""
        convolved = self.channels if self.convolutions > 1 else self.channels[:-1]
        inputs = max([self.channels[-1], *self.dense, *(self.kernel_size**2 * width for width in convolved)])
        positions = prod(side // self.pool ** (len(self.channels) - 1) for side in size)
        for count, most, what in (
            (inputs, MOST_INPUTS, "inputs of a layer"),
            (positions, MOST_POSITIONS, "positions of the mean over the image"),
        ):
            if count > most:
                raise UserError(
                    f"model.activation_bits={self.activation_bits}: {count:,} {what}\nallowed: up to {most:,} {what}, or null"
                )


SMALL = "${by:${dataset.name},{digits:%d,local:%d,else:%d}}"  # digits and local datasets have few samples
TRAINER = {"epochs": SMALL % (40, 40, 20), "batch_size": SMALL % (32, 32, 128)}

register_model(BNCVL, "bnn_exp.models.bncvl:BNCVLNet", optimizer="latent_adam", trainer=TRAINER)
train_by("bncvl_paper", "latent_adam", TRAINER)  # conf/model/bncvl_paper.yaml: the same network at the size of the paper
