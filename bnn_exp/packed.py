"""An MLP whose weights are packed bits, forward and backward, on a CPU: what the packed engine trains."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from bnn_exp.bits import training as bits
from bnn_exp.bits.gradients import BitFactors, Centering, Gate, PixelFactors, ToInputs, go_back
from bnn_exp.bits.packing import PackedBits
from bnn_exp.bits.rounding import RoundedBitFactors, RoundedPixelFactors, RoundedToInputs, Rounding
from bnn_exp.bits.training import Norm, Sums
from bnn_exp.models.mlp import MLP
from bnn_exp.nn import binarize


class PackedMLP:
    """Computes what `network` does, and packs its weights in place.

    In the backward pass each layer that trains hands its gradient over as two factors as soon as they are there, from the
    last to the first, and keeps nothing of it. Saved for it are the bits of every layer's inputs, along the batch, and its sums
    in int16 (the first layer's in float32).

    Args:
        network: an MLP of bits, encoded `boolean` or `bipolar`, on the CPU.
        hand_over: takes the number of a layer and its Factors; it may change the layer's bits.
        frozen: how many of its first layers, with their norms, do not train.
        rounding: how errors are rounded, of a layer and which of its gradients (0: its inputs', 1: its weights'); None: not.
    """

    def __init__(
        self,
        network: MLP,
        hand_over: Callable[[int, BitFactors | PixelFactors], None],
        frozen: int = 0,
        rounding: Callable[[int, int], Rounding] | None = None,
    ):
        self.network, self.hand_over, self.frozen, self.rounding = network, hand_over, frozen, rounding
        self.zero = 0.0 if network.encoding == "boolean" else -1.0
        self.window = inf if network.window is None else network.window
        for layer in network.layers:
            layer.pack()

    def __call__(self, pixels: Tensor) -> Tensor:
        """Pixels, uint8 [batch, …] → logits [batch, num_classes]."""
        network, x = self.network, pixels.flatten(1)
        if torch.is_grad_enabled() and network.training:
            anchor = torch.zeros((), requires_grad=True)  # BatchNorms may have no parameters, and bits have no gradients
            logits = _Pass.apply(x, self, anchor, *(p for norm in network.norms for p in (norm.weight, norm.bias)))
        else:
            *_, last = self.layers(x)
            logits = self.logits(last)
        return binarize(logits, network.encoding, network.window) if network.binarize_logits else logits

    def layers(self, x: Tensor) -> Iterator["Layer"]:
        """One layer after the other, on a batch of pixels."""
        for i, norm in enumerate(self.network.norms):
            product = bits.bit_sums if i else bits.pixel_sums
            sums = product(x, self.weights(i), self.zero)
            layer = Layer(x, sums, bits.normalization(norm, sums))
            yield layer
            x = bits.activations(sums, layer.norm)

    def logits(self, last: "Layer") -> Tensor:
        """The y of the last layer, float32 [batch, num_classes]."""
        return bits.normalized(last.sums, last.norm)[:, : self.network.norms[-1].num_features]

    def weights(self, i: int) -> PackedBits:
        """The bits of layer i."""
        layer = self.network.layers[i]
        return PackedBits(layer.weight.data, layer.in_features)

    def to_inputs(self, i: int, width: int) -> ToInputs | RoundedToInputs:
        """What takes the errors of layer i to those of the layer before, of that width."""
        given = self.weights(i), width, self.zero
        return ToInputs(*given) if self.rounding is None else RoundedToInputs(*given, self.rounding(i, 0))

    def factors(self, i: int, inputs: Tensor, errors: Tensor) -> BitFactors | PixelFactors:
        """The gradient of the weights of layer i."""
        layer, rounding = self.network.layers[i], () if self.rounding is None else (self.rounding(i, 1),)
        if i == 0:
            kind = RoundedPixelFactors if rounding else PixelFactors
            return kind(errors, inputs, layer.out_features, *rounding)
        kind = RoundedBitFactors if rounding else BitFactors
        return kind(errors, inputs, layer.out_features, layer.in_features, self.zero, *rounding)


@dataclass(frozen=True)
class Layer:
    """What a layer has to do with a batch. `x`: pixels, or the bits of its inputs, packed along the rows."""

    x: Tensor
    sums: Sums
    norm: Norm


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, packed: PackedMLP, anchor: Tensor, *parameters: Tensor) -> Tensor:
        ctx.packed, ctx.kept, saved = packed, [], []
        for i, layer in enumerate(packed.layers(x)):
            inputs = bits.columns_of(layer.x) if i else layer.x
            norm = layer.norm
            saved += inputs, layer.sums.z, layer.sums.c, norm.scale, norm.shift, norm.mean, norm.inverse
            ctx.kept.append((layer.sums.a, norm.batch))
        ctx.save_for_backward(*saved)
        return packed.logits(layer)

    @staticmethod
    def backward(ctx, grad: Tensor):
        packed, saved = ctx.packed, iter(ctx.saved_tensors)
        layers = []
        for (a, batch), inputs, z, c, *norm in zip(ctx.kept, *[saved] * 7, strict=True):
            layers.append(Layer(inputs, Sums(z, a, c), Norm(*norm, batch)))
        gradients = [None] * (2 * len(layers))
        sums, norm = layers[-1].sums, layers[-1].norm
        gate, errors = Gate(sums, norm, inf), bits.filled(grad, sums.z.shape[1])
        gate.all(errors)
        for i in reversed(range(packed.frozen, len(layers))):
            layer, totals, neurons = layers[i], gate.totals, packed.network.norms[i].num_features
            products = totals.products * layer.norm.inverse
            gradients[2 * i : 2 * i + 2] = products[:neurons].float(), totals.errors[:neurons].float()
            center = Centering(layer.sums, layer.norm, totals)
            at_sums = errors
            if i == packed.frozen:
                center.all(at_sums)
            else:
                below = layers[i - 1]
                gate = Gate(below.sums, below.norm, packed.window)
                errors = go_back(at_sums, center, packed.to_inputs(i, below.sums.z.shape[1]), gate)
            packed.hand_over(i, packed.factors(i, layer.x, at_sums))
        wanted = ctx.needs_input_grad[3:]
        return None, None, None, *(g if w else None for g, w in zip(gradients, wanted, strict=True))
