"""The training step on packed bits: an MLP whose weights take one bit each, forward and backward.

In the backward pass each trained layer passes its weight gradient to the rule (on a CPU as two factors), and the rule flips
packed bits at once. No weight gradient is kept. In float32 the numbers equal those of `dense`, except that sums add their terms
in another order. A flip can therefore differ only where rounding decides.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from math import inf
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bnn_exp.bits.arithmetic import arithmetic
from bnn_exp.bits.draws import Purpose, number
from bnn_exp.bits.factors import Factors
from bnn_exp.bits.packing import PackedBits
from bnn_exp.config.settings import Settings
from bnn_exp.models.mlp import MLP
from bnn_exp.nn import binarize, device
from bnn_exp.nn.graphs import beside
from bnn_exp.optim.rule import Rule
from bnn_exp.training import precision
from bnn_exp.training.steps.dense import Dense

if TYPE_CHECKING:
    from bnn_exp.bits.cpu.passes import OnCPU
    from bnn_exp.bits.cuda.training import OnGPU


class Packed(Dense):
    """The step of a binary MLP, computed by kernels on packed bits.

    Args:
        settings: the step uses `freeze` (the number of first layers that are not trained), `engine.gradient_bits` (the bits to
            which a CPU rounds gradients) and `seed`.
        parts, options: the arguments of `Dense`.
    """

    network: MLP
    rule: Rule

    def __init__(self, settings: Settings, *parts: Any, **options: Any):
        super().__init__(*parts, **options)

        def key(layer: int, gradient: int) -> int:
            """Returns the key that rounds a layer's gradient of its inputs (0) or weights (1) in the coming step."""
            step = self.rule.param_groups[0]["step"]
            return number(Purpose.ROUNDING, settings.seed, step, layer, gradient) & 0xFFFFFFFF

        bits, lean = self.network.layers[0].weight, settings.engine.memory == "lean"
        bf16_products = self.bf16 and device.on_host(bits) and precision.bf16_is_faster()
        operations = arithmetic(bits, self.bf16, settings.engine.gradient_bits, key, bf16_products, lean)
        # In a branch a layer trains while the backward pass goes on. Branches keep what they read until the end of the step.
        branch = nullcontext if lean else beside
        self.forward = self.answer = PackedMLP(self.network, operations, self.rule.flip, settings.freeze, branch)


class PackedMLP:
    """A function that computes an MLP on packed weights.

    For the backward pass the function saves each layer's sums in two bytes, and on a CPU the bits of each layer's inputs. The
    first layer's sums take four bytes. So do sums on a GPU that float16 cannot hold (`bnn_exp.bits.cuda.products.of_sums`).

    Args:
        network: an MLP of packed bits, encoded `boolean` or `bipolar`, on the device of `arithmetic`.
        arithmetic: the operations on bits.
        take: receives the packed weights of a layer and their gradient, from the last layer to the first. `take` may change
            the weights.
        frozen: the number of first layers that are not trained, BatchNorms included.
        branch: makes the context in which a layer's gradient is computed and taken, from the tensors that this work reads.
    """

    def __init__(
        self,
        network: MLP,
        arithmetic: "OnCPU | OnGPU",
        take: Callable[[Tensor, Factors], None],
        frozen: int = 0,
        branch: Callable[..., AbstractContextManager] = nullcontext,
    ):
        self.network, self.bits, self.take, self.frozen, self.branch = network, arithmetic, take, frozen, branch
        self.zero = 0.0 if network.encoding == "boolean" else -1.0
        self.window = inf if network.window is None else network.window
        # Autograd needs an input with a gradient. Bits have none, and BatchNorms may have no parameters.
        self.anchor = torch.zeros((), device=network.layers[0].weight.device, requires_grad=True)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Maps pixels, uint8 [batch, …], to logits [batch, num_classes]."""
        network: MLP = self.network
        x = self.bits.pixels(pixels.flatten(1))
        if torch.is_grad_enabled() and network.training:
            logits = _Pass.apply(x, self, self.anchor, *(p for norm in network.norms for p in (norm.weight, norm.bias)))
        else:
            *_, last = self.layers(x)
            logits = last.y
        return binarize(logits, network.encoding, network.window) if network.binarize_logits else logits

    def layers(self, x: Any) -> Iterator["Layer"]:
        """Yields every layer with its results for a batch of pixels, from the first layer to the last.

        A layer and its activation are computed just before the layer is yielded.
        """
        *hidden, last = self.network.norms
        for i, norm in enumerate(hidden):
            sums = self.sums(i, x)
            normalization, following = self.bits.activated(norm, sums, self.zero)
            yield Layer(x, sums, normalization)
            x = following
        sums = self.sums(len(hidden), x)
        yield Layer(x, sums, *self.bits.normalized(last, sums))

    def sums(self, i: int, x: Any) -> Any:
        """Returns the sums of layer i, from the layer's inputs x."""
        product = self.bits.sums_of_bits if i else self.bits.sums_of_pixels
        return product(x, self.weights(i), self.zero)

    def weights(self, i: int) -> PackedBits:
        """Returns the packed bits of layer i."""
        layer = self.network.layers[i]
        return PackedBits(layer.weight.data, layer.in_features)

    def factors(self, i: int, inputs: Tensor, gradients: Tensor) -> Factors:
        """Returns the weight gradient of layer i, from the layer's inputs and the gradients at its sums."""
        layer = self.network.layers[i]
        if i == 0:
            return self.bits.pixel_factors(gradients, inputs, layer.out_features, layer.in_features)
        return self.bits.bit_factors(i, gradients, inputs, layer.out_features, layer.in_features, self.zero)


@dataclass(frozen=True)
class Layer:
    """The input, the sums and the normalisation of a layer for one batch, in the types of `OnCPU` or `OnGPU`.

    In the forward pass, `x` holds pixels in the form of the method `pixels`, or the activation of the layer below, in the form
    of `activated`. In the backward pass, `x` holds pixels, or the result of the method `kept`. The last layer also has `y`, the
    output of its BatchNorm, float32 [batch, num_classes].
    """

    x: Any
    sums: Any
    norm: Any
    y: Tensor | None = None


class _Pass(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: PackedMLP, anchor: Tensor, *parameters: Tensor) -> Tensor:
        ctx.packed, ctx.layers = packed, []
        saved: list[Tensor | None] = []
        for i, layer in enumerate(packed.layers(x)):
            parts = [_taken_out(part) for part in (layer.sums, layer.norm)]
            ctx.layers.append([(shell, list(tensors)) for shell, tensors in parts])
            saved.append(packed.bits.kept(layer.x, i == packed.frozen) if i else layer.x)
            saved += (t for _, tensors in parts for t in tensors.values())
        ctx.save_for_backward(*saved)
        return layer.y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        packed, saved, layers = ctx.packed, iter(ctx.saved_tensors), []
        for parts in ctx.layers:
            x = next(saved)
            layers.append(Layer(x, *(replace(shell, **{name: next(saved) for name in names}) for shell, names in parts)))
        gradients = [None] * (2 * len(layers))
        back = packed.bits.backward(grad, layers[-1].sums, layers[-1].norm, packed.zero)
        for i in reversed(range(packed.frozen, len(layers))):
            neurons = packed.network.norms[i].num_features
            gradients[2 * i : 2 * i + 2] = back.of_weight[:neurons], back.of_bias[:neurons]
            if i == packed.frozen:
                at_sums = back.at_sums()
            else:
                below = layers[i - 1]
                to_inputs = packed.bits.to_inputs(i, packed.weights(i), below.sums.z.shape[1], packed.zero)
                at_sums = back.go_on(to_inputs, below.sums, below.norm, packed.window)
            x = back.activation if layers[i].x is None else layers[i].x
            with packed.branch((at_sums, x)):
                packed.take(packed.network.layers[i].weight, packed.factors(i, x, at_sums))
            del at_sums, x  # frees their memory before the next layer needs as much
        wanted = ctx.needs_input_grad[3:]
        return None, None, None, *(g if w else None for g, w in zip(gradients, wanted, strict=True))


def _taken_out(part: Any) -> tuple[Any, dict[str, Tensor]]:
    """Returns a dataclass without its tensors, and the tensors by name."""
    tensors = {f.name: t for f in fields(part) if isinstance(t := getattr(part, f.name), Tensor)}
    return replace(part, **dict.fromkeys(tensors)), tensors
