"""Training as one writes it in torch today, with the data in memory: what ours is measured against.

Pixels lie on the device as float32 from 0 to 1; weights are float32 of the values that layers multiply by, so that every
product is torch's own; each gradient is dense, and is there until the step. The networks are those of `bnn_exp.models`, with
the loss, the batches and the optimizer of the real parameters that the configuration names.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from bnn_exp import optim
from bnn_exp.config.losses import loss_named
from bnn_exp.config.settings import Settings
from bnn_exp.data import augment
from bnn_exp.data.dataset import Dataset, Split
from bnn_exp.nn import BinaryLinear, binary_layers
from bnn_exp.nn.binary import two_values
from bnn_exp.training.setup import first_network


def in_floats(data: Dataset) -> Dataset:
    """The same with train images as float32 from 0 to 1, which is what these loops train on."""
    return replace(data, train=Split(data.train.images.float().div_(255), data.train.labels))


class Loop:
    """A loop around `network` on the train rows of `data`, which are `in_floats`; `bf16` computes under autocast."""

    def __init__(
        self,
        settings: Settings,
        network: nn.Module,
        data: Dataset,
        optimizers: Sequence[torch.optim.Optimizer],
        bf16: bool = False,
    ):
        self.network, self.optimizers, self.bf16 = network, optimizers, bf16
        self.images, self.labels = data.train.images, data.train.labels
        varied = settings.dataset.augment != "none"
        self.augment = augment.build(settings.dataset, settings.seed, data.image_shape) if varied else None
        self.loss = loss_named(settings.trainer.loss)

    def step(self, rows: Tensor) -> Tensor:
        """One step on those rows (int64, on the device); their mean loss before it."""
        x = self.images[rows]
        x = self.augment(x, 0, 0) if self.augment else x
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.loss(self.network(x), self.labels[rows])
        self.network.zero_grad()
        loss.backward()
        self.update()
        return loss.detach()

    def update(self) -> None:
        """The optimizers' step, by the gradients that are there."""
        for optimizer in self.optimizers:
            optimizer.step()


class HyperMaskLoop(Loop):
    """HyperMask with a random mask (Shibuya et al., BinSFO, Algorithm 1), in a line, on weights that are values."""

    def __init__(self, settings: Settings, data: Dataset, bf16: bool = False):
        network = float_network(settings, data)
        self.weights = [(w, *two_values(encoding)) for w, encoding in _weights(network)]
        with torch.no_grad():
            for w, zero, one in self.weights:
                w.copy_(torch.where(torch.rand_like(w) < 0.5, one, zero))
        super().__init__(settings, network, data, _real_optimizers(settings, network), bf16)
        self.delta = settings.optimizer.delta

    def mask(self, w: Tensor) -> Tensor:
        """m ~ Bernoulli(δ), bool of the shape of `w`."""
        return torch.rand_like(w) < self.delta

    @torch.no_grad()
    def update(self) -> None:
        for w, zero, one in self.weights:
            w.copy_(torch.where(self.mask(w), torch.where(w.grad <= 0, one, zero), w))
        super().update()


def rule_loop(settings: Settings, data: Dataset, bf16: bool = False) -> Loop:
    """Any rule, by its class in `bnn_exp.optim`, on dense gradients; the values of its bits are made anew in each step."""
    network = first_network(settings, data).to(data.train.labels.device)
    for _, layer in binary_layers(network):
        if isinstance(layer, BinaryLinear):
            layer.binary_input = False  # so that its product is `F.linear`
    binary = optim.build_binary(settings.optimizer, network, settings.trainer.batch_size, 1, settings.seed)
    return Loop(settings, network, data, [binary, *_real_optimizers(settings, network)], bf16)


def same_rule(settings: Settings, data: Dataset, bf16: bool = False) -> Loop:
    """The loop that trains by the rule of the settings."""
    random = settings.optimizer.name == "hypermask" and settings.optimizer.mask == "random"
    return (HyperMaskLoop if random else rule_loop)(settings, data, bf16)


def adam_loop(settings: Settings, data: Dataset) -> Loop:
    """The usual way to train a binary network: real latent weights, their sign straight through, Adam on all parameters.

    (Courbariaux et al. 2016, arXiv 1602.02830.)
    """
    network = float_network(settings, data)
    for _, layer in list(binary_layers(network)):
        for name in ("weight", "bias"):
            if getattr(layer, name) is not None:
                register_parametrization(layer, name, Sign(layer.encoding))
    return Loop(settings, network, data, [torch.optim.Adam(network.parameters())])


class Sign(nn.Module):
    """The value of the bit 1[w ≥ 0] of a latent weight, with a straight-through gradient."""

    def __init__(self, encoding: str):
        super().__init__()
        self.ends = two_values(encoding)

    def forward(self, w: Tensor) -> Tensor:
        return _Sign.apply(w, *self.ends)


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, zero: float, one: float) -> Tensor:
        return torch.where(w >= 0, one, zero)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None, None


def float_network(settings: Settings, data: Dataset) -> nn.Module:
    """The network of the settings with real weights that are used as they are, on the device of the data."""
    settings = replace(settings, model=replace(settings.model, weights="float"))
    return first_network(settings, data).to(data.train.labels.device)


def _weights(network: nn.Module) -> Iterator[tuple[nn.Parameter, str]]:
    """What stands for bits in a network, in the order of the modules, and its encoding."""
    for _, layer in binary_layers(network):
        yield from ((p, layer.encoding) for p in (layer.weight, layer.bias) if p is not None)


def _real_optimizers(settings: Settings, network: nn.Module) -> list[torch.optim.Optimizer]:
    return [real.optimizer for real in optim.build_real(settings.real_optimizer, network, 1)]
