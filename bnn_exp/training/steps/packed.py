"""An MLP whose weights are packed bits, forward and backward: what the packed engine trains."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from math import inf
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnn_exp.bits.packing import PackedBits
from bnn_exp.models.mlp import MLP
from bnn_exp.nn import binarize
from bnn_exp.optim.rule import Factors

if TYPE_CHECKING:
    from bnn_exp.bits.cpu.passes import OnCPU
    from bnn_exp.bits.cuda.training import OnGPU


class PackedMLP:
    """Computes what `network` does, and packs its weights in place.

    In the backward pass each layer that trains hands its gradient over as two factors as soon as they are there, from the
    last to the first, and keeps nothing of it. Saved for it are the bits of every layer's inputs, and its sums in int16 (the
    first layer's in four bytes).

    Args:
        network: an MLP of bits, encoded `boolean` or `bipolar`, where `bits` computes.
        bits: the arithmetic of bits.
        hand_over: takes the number of a layer and its Factors; it may change the layer's bits.
        frozen: how many of its first layers, with their norms, do not train.
    """

    def __init__(self, network: MLP, bits: "OnCPU | OnGPU", hand_over: Callable[[int, Factors], None], frozen: int = 0):
        self.network, self.bits, self.hand_over, self.frozen = network, bits, hand_over, frozen
        self.zero = 0.0 if network.encoding == "boolean" else -1.0
        self.window = inf if network.window is None else network.window
        for layer in network.layers:
            layer.pack()

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels, uint8 [batch, …] → logits [batch, num_classes]."""
        network, x = self.network, pixels.flatten(1)
        if torch.is_grad_enabled() and network.training:
            # BatchNorms may have no parameters, and bits have no gradients
            anchor = torch.zeros((), device=x.device, requires_grad=True)
            logits = _Pass.apply(x, self, anchor, *(p for norm in network.norms for p in (norm.weight, norm.bias)))
        else:
            *_, last = self.layers(x)
            logits = self.logits(last)
        return binarize(logits, network.encoding, network.window) if network.binarize_logits else logits

    def layers(self, x: Tensor) -> Iterator["Layer"]:
        """One layer after the other, on a batch of pixels."""
        for i, norm in enumerate(self.network.norms):
            product = self.bits.sums_of_bits if i else self.bits.sums_of_pixels
            sums = product(x, self.weights(i), self.zero)
            layer = Layer(x, sums, self.bits.normalization(norm, sums))
            yield layer
            x = self.bits.activations(sums, layer.norm)

    def logits(self, last: "Layer") -> Tensor:
        """The y of the last layer, float32 [batch, num_classes]."""
        return self.bits.normalized(last.sums, last.norm)[:, : self.network.norms[-1].num_features]

    def weights(self, i: int) -> PackedBits:
        """The bits of layer i."""
        layer = self.network.layers[i]
        return PackedBits(layer.weight.data, layer.in_features)

    def factors(self, i: int, inputs: Tensor, errors: Tensor) -> Factors:
        """The gradient of the weights of layer i."""
        layer = self.network.layers[i]
        if i == 0:
            return self.bits.pixel_factors(errors, inputs, layer.out_features)
        return self.bits.bit_factors(i, errors, inputs, layer.out_features, layer.in_features, self.zero)


@dataclass(frozen=True)
class Layer:
    """What a layer has to do with a batch: its sums and its BatchNorm, by the arithmetic that computes them.

    `x`: pixels, or the bits of its inputs, packed along the rows; in the backward pass as they were kept.
    """

    x: Tensor
    sums: Any
    norm: Any


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, packed: PackedMLP, anchor: Tensor, *parameters: Tensor) -> Tensor:
        ctx.packed, ctx.layers, saved = packed, [], []
        for i, layer in enumerate(packed.layers(x)):
            parts = [_taken_out(part) for part in (layer.sums, layer.norm)]
            ctx.layers.append([(shell, list(tensors)) for shell, tensors in parts])
            saved += packed.bits.kept(layer.x) if i else layer.x, *(t for _, tensors in parts for t in tensors.values())
        ctx.save_for_backward(*saved)
        return packed.logits(layer)

    @staticmethod
    def backward(ctx, grad: Tensor):
        packed, saved, layers = ctx.packed, iter(ctx.saved_tensors), []
        for parts in ctx.layers:
            x = next(saved)
            layers.append(Layer(x, *(replace(shell, **{name: next(saved) for name in names}) for shell, names in parts)))
        gradients = [None] * (2 * len(layers))
        back = packed.bits.backward(grad, layers[-1].sums, layers[-1].norm)
        for i in reversed(range(packed.frozen, len(layers))):
            neurons = packed.network.norms[i].num_features
            gradients[2 * i : 2 * i + 2] = back.of_weight[:neurons], back.of_bias[:neurons]
            if i == packed.frozen:
                at_sums = back.at_sums()
            else:
                below = layers[i - 1]
                to_inputs = packed.bits.to_inputs(i, packed.weights(i), below.sums.z.shape[1], packed.zero)
                at_sums = back.go_on(to_inputs, below.sums, below.norm, packed.window)
            packed.hand_over(i, packed.factors(i, layers[i].x, at_sums))
            del at_sums  # before those of the next layer are there
        wanted = ctx.needs_input_grad[3:]
        return None, None, None, *(g if w else None for g, w in zip(gradients, wanted, strict=True))


def _taken_out(part: Any) -> tuple[Any, dict[str, Tensor]]:
    """A dataclass without its tensors, and these by name."""
    tensors = {f.name: t for f in fields(part) if isinstance(t := getattr(part, f.name), Tensor)}
    return replace(part, **dict.fromkeys(tensors)), tensors
