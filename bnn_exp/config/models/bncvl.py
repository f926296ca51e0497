"""Settings of `model=bncvl`, the binary normalised CNN (`bnn_exp.models.bncvl`)."""

from typing import Annotated, Literal

from pydantic import Field

from bnn_exp.config.models.registry import Encoding, Odd, Weights, check_pooling, register_model, train_by
from bnn_exp.config.schema import Count, schema
from bnn_exp.errors import UserError

MOST_INPUTS = 2**21 // 255  # the most inputs of a layer of codes, see bnn_exp.nn.requantize


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
        inputs = max(max(self.channels) * self.kernel_size**2, *self.dense)
        if self.activation_bits and inputs > MOST_INPUTS:
            raise UserError(
                f"model.activation_bits={self.activation_bits}: a layer has {inputs:,} inputs\n"
                f"allowed: up to {MOST_INPUTS:,} inputs, kernel_size² · channels of a convolution"
            )


SMALL = "${by:${dataset.name},{digits:%d,local:%d,else:%d}}"  # digits and local datasets have few samples
TRAINER = {"epochs": SMALL % (40, 40, 20), "batch_size": SMALL % (32, 32, 128)}

register_model(BNCVL, "bnn_exp.models.bncvl:BNCVLNet", optimizer="latent_adam", trainer=TRAINER)
train_by("bncvl_paper", "latent_adam", TRAINER)  # conf/model/bncvl_paper.yaml: the same network at the size of the paper
