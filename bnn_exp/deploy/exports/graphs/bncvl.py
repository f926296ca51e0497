"""Writes packed BNCVL networks of real activations as ONNX nodes in floats, with weights from bits."""

from typing import Any

import numpy as np
import torch
from onnx import TensorProto
from torch import nn

from bnn_exp.bits import from_tiles
from bnn_exp.bits.reference import unpacked
from bnn_exp.deploy.bncvl import DeployedBNCVL, DeployedConvolution, DeployedDense
from bnn_exp.deploy.exports.graphs.graph import Graph
from bnn_exp.nn.binary import two_values
from bnn_exp.nn.standardize import Standardize


def bncvl(graph: Graph, network: DeployedBNCVL, pixels: str) -> str:
    """Adds the nodes of a packed BNCVL network: `pixels`, uint8 [batch, channels, height, width] → logits."""
    layer: Any
    h = graph("Div", graph.cast(pixels, TensorProto.FLOAT), graph.floats(255.0))
    h = graph("Div", graph("Sub", h, graph.floats(network.mean)), graph.floats(network.std))
    for i, layer in enumerate(network.convolutions):
        if i and i % network.per_width == 0:
            h = graph("MaxPool", h, kernel_shape=[network.pool] * 2, strides=[network.pool] * 2)
        bits = unpacked(layer.packed, torch.uint8)[:, : int(np.prod(layer.shape[1:]))].reshape(layer.shape)
        inputs = [h, graph.weights(bits, *two_values(layer.encoding), np.float32)]
        inputs += [] if layer.bias is None else [graph.floats(layer.bias)]
        h = _finish(graph, graph("Conv", *inputs, pads=[layer.padding] * 4), layer, (-1, 1, 1))
    h = graph("ReduceMean", h, graph.constant([2, 3], np.int64), keepdims=0)
    for layer in network.dense:
        bits = unpacked(from_tiles(layer.tiles, layer.outputs), torch.uint8)[:, : layer.inputs]
        h = graph("MatMul", h, graph.weights(bits.T, *two_values(layer.encoding), np.float32))
        h = h if layer.bias is None else graph("Add", h, graph.floats(layer.bias))
        h = _finish(graph, h, layer, (-1,))
    return h


def _finish(graph: Graph, h: str, layer: DeployedConvolution | DeployedDense, shape: tuple[int, ...]) -> str:
    """Adds the nodes of a layer's normalisation and activation after `h`. `shape` broadcasts a vector of channels over `h`."""
    if isinstance(layer.norm, Standardize):
        axes = graph.constant(layer.norm.dims, np.int64)
        centred = graph("Sub", h, graph("ReduceMean", h, axes, keepdims=1))
        squares = graph("ReduceSum", graph("Mul", centred, centred), axes, keepdims=1)
        one = graph.constant([1], np.int64)
        size = graph("ReduceProd", graph("Gather", graph("Shape", h), axes), keepdims=1)
        variance = graph("Div", squares, graph.cast(graph("Sub", size, one), TensorProto.FLOAT))
        h = graph("Div", centred, graph("Add", graph("Sqrt", variance), graph.floats(1e-8)))
    else:
        h = graph.affine(h, layer.norm, shape)
    return graph("Relu", h) if isinstance(layer.activation, nn.ReLU) else h
