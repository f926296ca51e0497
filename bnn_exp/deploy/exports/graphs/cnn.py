"""Writes packed CNNs of integers as ONNX nodes: int8 convolutions with the integers of the network.

`QLinearConv` computes clamp(rint((Σ (x − z)·w + bias) · scale), 0, 255), with z also outside the picture. Codes take z = 0, and
pixels z = their mean. A bit is 0 or 1 (boolean, z = 0), or 0 or 2 (the values −1 and 1, z = 1). Scales are positive: where
codes or bits fall with the sum, the weights of the output are negated.
"""

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from bnn_exp.deploy.cnn import DeployedCNN
from bnn_exp.deploy.exports.graphs.graph import Graph
from bnn_exp.deploy.exports.graphs.mlp import logits
from bnn_exp.deploy.exports.products import in_channels_first, step_threshold
from bnn_exp.deploy.integers import Average, CodeLayer, IntegerLayer, StepLayer


def cnn(graph: Graph, network: DeployedCNN, pixels: str) -> str:
    """Adds the nodes of a packed CNN: `pixels`, uint8 [batch, channels, height, width] → logits.

    The codes or bits that layer i gives are called `layer_i`.
    """
    h, zero, rows = pixels, 0, False
    for i, (layer, shape) in enumerate(zip(network.layers[:-1], network.shapes(), strict=False)):
        if isinstance(layer, Average):
            h, rows = _average(graph, h, layer), True
        elif isinstance(layer, StepLayer):
            h, zero = _steps(graph, h, zero, layer, shape), 0 if layer.zero == 0 else 1
        else:
            h = _dense(graph, h, layer) if rows else _codes(graph, h, layer, shape)
        h = graph.named(h, f"layer_{i}")
    last = network.layers[-1]
    weights = graph.weights(in_channels_first(last, network.shapes()[-1]).T, last.zero, 1, np.int8)
    h = graph("Flatten", h, axis=1)
    return logits(graph, graph("MatMulInteger", h, weights, graph.constant(zero, np.uint8)), last)


def _codes(graph: Graph, x: str, layer: CodeLayer, shape: tuple[int, ...]) -> str:
    """Adds nodes for the codes of a convolution, uint8 [batch, out, height // pool, width // pool]."""
    falling, flat = layer.multiplier < 0, layer.multiplier == 0  # where flat, the code is 0 whatever the sum
    bias = torch.where(falling, -1, 1) * layer.bias.long()
    bias, scale = torch.where(flat, -255 * layer.bits()[0].numel(), bias), torch.where(flat, 1.0, layer.multiplier.abs())
    codes = _convolution(graph, x, 0, layer, shape, falling, bias, scale)
    return codes if layer.levels == 255 else _clip(graph, codes, layer.levels)


def _steps(graph: Graph, x: str, zero: int, layer: StepLayer, shape: tuple[int, ...]) -> str:
    """Adds nodes for the bits, 0 and `one`. A sum that reaches the threshold gives `one` or more, any other sum 0."""
    one = 1 if layer.zero == 0 else 2
    threshold, inverted = step_threshold(layer, shape[:2]), layer.inverted_outputs()
    negated = inverted if layer.pool == 1 else torch.zeros_like(inverted)  # a pooling comes before the inversion
    bias = torch.where(negated, -1, 1) * (1 - threshold) + negated.long()  # the output is 1 where −P > −threshold
    bits = _clip(graph, _convolution(graph, x, zero, layer, shape, negated, bias, torch.tensor(float(one))), one)
    if layer.pool == 1 or not inverted.any():
        return bits
    return graph("BitwiseXor", bits, graph.constant(one * inverted[:, None, None], np.uint8))


def _convolution(
    graph: Graph,
    x: str,
    zero: int,
    layer: IntegerLayer,
    shape: tuple[int, ...],
    negated: Tensor,
    bias: Tensor,
    scale: Tensor,
) -> str:
    """Adds nodes for clamp(rint((P + bias) · scale), 0, 255), max-pooled. Where `negated`, −P takes the place of P.

    Args:
        x: uint8 [batch, channels, height, width], in which `zero` stands for the value 0.
        bias: int64 [out].
        scale: float32 [out], or without dimensions.
    """
    sides = [layer.size // 2] * 4
    if layer.takes == "codes" and layer.size > 1:
        zero = int(layer.padding[0])
        if (layer.padding != zero).any():
            x, zero, sides = _padded(graph, x, layer, shape), 0, [0] * 4
        total = (layer.weights().long().sum((1, 2, 3))) * zero  # Σ x·w = Σ (x − zero)·w + total
        bias = bias + torch.where(negated, -total, total)
    one, z = graph.floats(1.0), graph.constant(zero, np.uint8)
    weights, none = _weights(graph, layer, negated), graph.constant(0, np.int8)
    constants = weights, graph.floats(scale), none, one, graph.constant(0, np.uint8), graph.constant(bias, np.int32)
    h = graph("QLinearConv", x, one, z, *constants, pads=sides, kernel_shape=[layer.size] * 2)
    pool = [layer.pool] * 2
    return h if layer.pool == 1 else graph("MaxPool", h, kernel_shape=pool, strides=pool)


def _weights(graph: Graph, layer: IntegerLayer, negated: Tensor) -> str:
    """Adds nodes for the weights, int8 [out, channels, size, size]."""
    bits, rows = layer.bits().permute(0, 3, 1, 2), negated[:, None, None, None]
    if layer.zero:
        return graph.weights(bits ^ rows.to(torch.uint8), layer.zero, 1, np.int8)
    if not negated.any():
        return graph.weights(bits, 0, 1, np.int8)
    signed = graph("Mul", graph.weights(bits, 0, 1, np.int32), graph.constant(torch.where(rows, -1, 1), np.int32))
    return graph.cast(signed, TensorProto.INT8)


def _padded(graph: Graph, x: str, layer: IntegerLayer, shape: tuple[int, ...]) -> str:
    """Adds nodes that pad each channel with its own code."""
    side = layer.size // 2
    ends = graph.constant([0, 0, side, side] * 2, np.int64)
    inside = graph("Pad", graph.constant(np.ones((1, 1, *shape[:2]), bool)), ends)
    return graph("Where", inside, graph("Pad", x, ends), graph.constant(layer.padding[:, None, None]))


def _clip(graph: Graph, h: str, top: int) -> str:
    return graph("Clip", h, graph.constant(0, np.uint8), graph.constant(top, np.uint8))


def _average(graph: Graph, x: str, layer: Average) -> str:
    """Adds nodes for the codes of the means over all positions, uint8 [batch, channels]."""
    sums = graph("ReduceSum", graph.cast(x, TensorProto.INT32), graph.constant([2, 3], np.int64), keepdims=0)
    return _rounded(graph, sums, layer.multiplier, layer.levels)


def _dense(graph: Graph, x: str, layer: CodeLayer) -> str:
    """Adds nodes for the codes of a dense layer, uint8 [batch, out]."""
    weights = graph.weights(layer.bits().flatten(1).T, layer.zero, 1, np.int8)
    sums = graph("Add", graph("MatMulInteger", x, weights), graph.constant(layer.bias))
    return _rounded(graph, sums, layer.multiplier, layer.levels)


def _rounded(graph: Graph, sums: str, multiplier: Tensor, levels: int) -> str:
    """Adds nodes for clamp(rint(sums · multiplier), 0, levels), uint8."""
    scaled = graph("Mul", graph.cast(sums, TensorProto.FLOAT), graph.floats(multiplier))
    codes = graph("Clip", graph("Round", scaled), graph.floats(0.0), graph.floats(float(levels)))
    return graph.cast(codes, TensorProto.UINT8)
