"""Writes packed MLPs as ONNX nodes in integers, and MLPs of floats to compare with."""

import numpy as np
import torch
from onnx import TensorProto
from torch import Tensor

from bnn_exp.bits import from_tiles
from bnn_exp.bits.reference import unpacked
from bnn_exp.deploy.exports.graphs.graph import Graph
from bnn_exp.deploy.mlp import DeployedLayer, DeployedMLP, HiddenLayer, LastLayer
from bnn_exp.models.mlp import MLP
from bnn_exp.nn.binary import two_values


def mlp(graph: Graph, network: DeployedMLP, pixels: str) -> str:
    """Adds the nodes of a packed MLP: `pixels`, uint8 [batch, …] → logits. Only the last BatchNorm is not in integers.

    The bits that layer i gives are called `layer_i`, uint8 0 and 1.
    """
    h = graph("Flatten", pixels, axis=1)
    for i, layer in enumerate(network.layers):
        sums = _sums(graph, layer, h)
        if isinstance(layer, HiddenLayer):
            inverted = unpacked(layer.inverted[None], torch.bool)[0, : layer.outputs]
            steps = _steps(graph, sums, layer.thresholds[: layer.outputs], inverted)
            h = graph.named(graph.cast(steps, TensorProto.UINT8), f"layer_{i}")
        elif network.binarize_logits:
            zero, one = two_values(network.encoding)
            h = graph("Where", _steps(graph, sums, *layer.folded(layer.norm)), graph.floats(one), graph.floats(zero))
        else:
            scaled = sums if layer.scale == 1 else graph("Mul", sums, graph.constant(layer.scale, np.int32))
            h = logits(graph, graph("Add", scaled, graph.constant(layer.offset)), layer)
    return h


def logits(graph: Graph, products: str, layer: LastLayer) -> str:
    """Adds the nodes of the last layer after its products, int32 [batch, classes], in the unit of the network's integers."""
    h = graph.cast(products, TensorProto.FLOAT)
    return graph.affine(h if layer.divisor == 1 else graph("Div", h, graph.floats(layer.divisor)), layer.norm)


def _sums(graph: Graph, layer: DeployedLayer, x: str) -> str:
    """Adds nodes for Σ x·w, int32 [batch, outputs], of x in uint8."""
    bits = unpacked(from_tiles(layer.tiles, layer.outputs), torch.uint8)[:, : layer.inputs]
    return graph("MatMulInteger", x, graph.weights(bits.T, layer.zero, 1, np.int8))


def _steps(graph: Graph, sums: str, thresholds: Tensor, inverted: Tensor) -> str:
    steps = graph("GreaterOrEqual", sums, graph.constant(thresholds, np.int32))
    return graph("Xor", steps, graph.constant(inverted)) if inverted.any() else steps


def float_mlp(graph: Graph, network: MLP, pixels: str) -> str:
    """Adds the nodes of an MLP with float weights and folded norms. Benchmarks compare the packed graph with this graph."""
    h = graph("Div", graph.cast(graph("Flatten", pixels, axis=1), TensorProto.FLOAT), graph.floats(255.0))
    zero, one = (graph.floats(value) for value in two_values(network.encoding))
    for i, (layer, norm) in enumerate(zip(network.layers, network.norms, strict=True), 1):
        h = graph.affine(graph("MatMul", h, graph.floats(layer.value.T)), norm)
        if i < len(network.layers) or network.binarize_logits:
            h = graph("Where", graph("GreaterOrEqual", h, graph.floats(0.0)), one, zero)
    return h
