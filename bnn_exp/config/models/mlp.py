"""Settings of `model=mlp`, the binary multi-layer perceptron (`bnn_exp.models.mlp`)."""

from typing import Literal

from bnn_exp.config.models.registry import Encoding, Weights, register_model
from bnn_exp.config.schema import Count, Positive, schema


@schema
class BatchNorm:
    affine: bool
    running_stats: bool


@schema
class MLP:
    name: Literal["mlp"]
    hidden_size: Count
    num_layers: Count
    encoding: Encoding
    window: Positive | None
    binarize_logits: bool
    batch_norm: BatchNorm
    weights: Weights

    packed_training = True

    @property
    def depth(self) -> int:
        return self.num_layers

    @property
    def binary_activations(self) -> bool:
        return self.num_layers > 1 or self.binarize_logits

    @property
    def real_parameters(self) -> bool:
        return self.batch_norm.affine


register_model(MLP, "bnn_exp.models.mlp:MLP", optimizer="counter")
