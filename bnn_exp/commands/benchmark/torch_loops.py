"""Usual training loops in plain torch, with the data in memory. Benchmarks compare our engines with these loops.

Pixels lie on the device as float32 in [0, 1]. Weights are the values that layers multiply by, stored as float32, so every
product is torch's own. Each gradient is dense and is kept until the optimizer's step. The networks come from
`bnn_exp.models`. The configuration names the loss, the batches and the optimizer of the real parameters.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization

from bnn_exp import optim
from bnn_exp.config.losses import loss_named
from bnn_exp.config.settings import Settings
from bnn_exp.data import augment
from bnn_exp.data.dataset import Dataset, Split
from bnn_exp.nn import BinaryLinear, binary_layers, device
from bnn_exp.nn.binary import two_values
from bnn_exp.nn.graphs import Graphs
from bnn_exp.optim.rule import Rule
from bnn_exp.optim.trained import Trained
from bnn_exp.training.setup import first_network


def in_floats(data: Dataset) -> Dataset:
    """Returns the dataset with its train images as float32 in [0, 1], as the loops of plain torch need them."""
    return replace(data, train=Split(data.train.images.float().div_(255), data.train.labels))


class Loop:
    """A training loop in plain torch: `network`, on the train rows of `data` from `in_floats`. `bf16` turns on autocast.

    `optimizers` are torch's own; `rule` trains the bits, if the network has any.
    """

    def __init__(
        self,
        settings: Settings,
        network: nn.Module,
        data: Dataset,
        optimizers: Sequence[Any],
        bf16: bool = False,
        rule: Trained | None = None,
    ):
        self.network, self.optimizers, self.bf16, self.rule = network, optimizers, bf16, rule
        self.images, self.labels = data.train.images, data.train.labels
        self.changes = augment.build(settings.dataset, settings.seed, data.image_shape)
        self.loss = loss_named(settings.trainer.loss)
        self.work: Callable[[Tensor], Tensor] = self._train

    def record(self) -> None:
        """Makes later steps replay one CUDA graph for each batch size. The first step is not recorded.

        Each replay draws new random numbers.
        """
        self.work = Graphs(self._train, required=True)

    def step(self, rows: Tensor) -> Tensor:
        """Makes one training step. Returns the mean loss of the batch before the step, as a tensor without dimensions.

        Args:
            rows: indices of train rows, int64, on the device.
        """
        if self.rule:
            self.rule.announce()
        loss = self.work(rows)
        if self.rule:
            self.rule.count()
        return loss

    def _train(self, rows: Tensor) -> Tensor:
        x = self._augmented(self.images[rows])
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.loss(self.network(x), self.labels[rows])
        self.network.zero_grad()
        loss.backward()
        self.update()
        return loss.detach()

    def _augmented(self, x: Tensor) -> Tensor:
        """Returns randomly changed images, by the random numbers of torch's own generator, which a CUDA graph can replay."""
        c = self.changes
        draw = partial(torch.randint, size=(len(x),), device=x.device)
        return augment.varied(x, draw, c.shift, c.flip, c.cutout) if c.varies else x

    def update(self) -> None:
        """Trains all parameters by their gradients."""
        if self.rule:
            self.rule.apply()
        for optimizer in self.optimizers:
            optimizer.step()


class HyperMaskLoop(Loop):
    """A training loop with HyperMask and a random mask (Shibuya et al., BinSFO, Algorithm 1).

    The weights are stored as values, not as bits.
    """

    def __init__(self, settings: Settings, data: Dataset, bf16: bool = False):
        network = float_network(settings, data)
        self.weights = [(w, *two_values(encoding)) for w, encoding in _weights(network)]
        with torch.no_grad():
            for w, zero, one in self.weights:
                w.copy_(torch.where(torch.rand_like(w) < 0.5, one, zero))
        super().__init__(settings, network, data, _real_optimizers(settings, network), bf16)
        self.delta = settings.optimizer.delta

    def mask(self, w: Tensor) -> Tensor:
        """Draws the mask m ~ Bernoulli(δ): bool, of the shape of `w`."""
        return torch.rand_like(w) < self.delta

    @torch.no_grad()
    def update(self) -> None:
        for w, zero, one in self.weights:
            w.copy_(torch.where(self.mask(w), torch.where(w.grad <= 0, one, zero), w))
        super().update()


def rule_loop(settings: Settings, data: Dataset, bf16: bool = False) -> Loop:
    """Returns a training loop with the rule of the settings, by the rule's own class, on dense gradients.

    The layers store bits, and compute their values anew in each step. On a GPU the rule has its kernels.
    """
    network = first_network(settings, data).to(data.train.labels.device)
    for _, layer in binary_layers(network):
        if isinstance(layer, BinaryLinear):
            layer.binary_input = False  # the layer then multiplies by `F.linear`
    rule = _by_torch(optim.build_binary(settings.optimizer, network, settings.trainer.batch_size, 1, settings.seed))
    return Loop(settings, network, data, _real_optimizers(settings, network), bf16, rule)


def _by_torch(rule: Trained) -> Trained:
    """Makes a rule on a CPU do its steps by torch's operators and random numbers, not by compiled code. Returns the rule."""
    kind: Any = type(rule)
    if isinstance(rule, Rule) and device.on_host(rule.param_groups[0]["params"][0]):
        own = {"update": kind.update, "_draw": _draw}  # a class with an `update` of its own inherits no kernels
        rule.__class__ = type(kind.__name__, (kind,), own)
    return rule


def _draw(rule: Rule, p: Tensor, i: int, k: int) -> torch.Generator:
    return torch.default_generator


def same_rule(settings: Settings, data: Dataset, bf16: bool = False) -> Loop:
    """Returns the training loop for the rule of the settings: HyperMaskLoop if the rule is HyperMask with a random mask."""
    random = settings.optimizer.name == "hypermask" and settings.optimizer.mask == "random"
    return (HyperMaskLoop if random else rule_loop)(settings, data, bf16)


def adam_loop(settings: Settings, data: Dataset) -> Loop:
    """Returns the usual loop for binary networks: latent weights, straight-through gradients, Adam on all parameters.

    Source: Courbariaux et al. 2016, arXiv 1602.02830.
    """
    network = float_network(settings, data)
    for _, layer in list(binary_layers(network)):
        for name in ("weight", "bias"):
            if getattr(layer, name) is not None:
                register_parametrization(layer, name, Sign(layer.encoding))
    return Loop(settings, network, data, [torch.optim.Adam(network.parameters())])


class Sign(nn.Module):
    """A parametrization of a latent weight w by the value of its bit 1[w ≥ 0], with a straight-through gradient."""

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
    """Returns a new network of the settings whose weights are real numbers, on the device of the data."""
    settings = replace(settings, model=replace(settings.model, weights="float"))
    return first_network(settings, data).to(data.train.labels.device)


def _weights(network: nn.Module) -> Iterator[tuple[nn.Parameter, str]]:
    """Yields (parameter, encoding) for each parameter that stands for bits, in the order of the modules."""
    for _, layer in binary_layers(network):
        yield from ((p, layer.encoding) for p in (layer.weight, layer.bias) if p is not None)


def _real_optimizers(settings: Settings, network: nn.Module) -> list[torch.optim.Optimizer]:
    return [real.optimizer for real in optim.build_real(settings.real_optimizer, network, 1)]
