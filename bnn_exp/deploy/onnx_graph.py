"""Writes packed networks as ONNX graphs (opset 18): weights are initialisers of packed bits, and nodes unpack them.

A file then takes one bit for each weight. A runtime unpacks the weights once, when it loads the graph.
"""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from bnn_exp.bits import from_tiles
from bnn_exp.bits.reference import unpacked
from bnn_exp.deploy.bncvl import DeployedBNCVL, DeployedConvolution, DeployedDense
from bnn_exp.deploy.mlp import DeployedMLP, HiddenLayer, LastLayer
from bnn_exp.models.mlp import MLP
from bnn_exp.nn.binary import two_values
from bnn_exp.nn.standardize import Standardize
from bnn_exp.records.formatting import in_a_line

OPSET, IR = 18, 10  # versions that onnxruntime reads since 2023


class Graph:
    """An ONNX graph under construction. Each method adds nodes or initialisers and returns the name of the result.

    A call `graph(OPERATOR, *inputs, **attributes)` adds a node; `inputs` are names.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._number = count()

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"{operator}_{next(self._number)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, **attributes))
        return name

    def constant(self, values: Tensor | np.ndarray | float, dtype: type | None = None) -> str:
        array: np.ndarray = np.asarray(values.detach().cpu().numpy() if isinstance(values, Tensor) else values, dtype)
        name = f"constant_{next(self._number)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def bits(self, packed: Tensor, columns: int) -> str:
        """Adds nodes that unpack rows, uint8 [rows, bytes], into bits, uint8 [rows, columns]."""
        rows, width = packed.shape
        spread = self("Reshape", self.constant(packed), self.constant([rows, width, 1], np.int64))
        places = self.constant(np.arange(8), np.uint8)
        ones = self("BitwiseAnd", self("BitShift", spread, places, direction="RIGHT"), self.constant(1, np.uint8))
        wide = self("Reshape", ones, self.constant([rows, 8 * width], np.int64))
        return self("Slice", wide, *(self.constant([n], np.int64) for n in (0, columns, 1)))

    def cast(self, value: str, to: int) -> str:
        return self("Cast", value, to=to)

    def floats(self, values: Tensor | float) -> str:
        return self.constant(values, np.float32)


def mlp(graph: Graph, network: DeployedMLP, pixels: str) -> str:
    """Adds the nodes of a packed MLP: `pixels`, uint8 [batch, …] → logits. Only the last BatchNorm is not in integers."""
    h = graph("Flatten", pixels, axis=1)
    for layer in network.layers:
        sums = _sums(graph, layer, h)
        if isinstance(layer, HiddenLayer):
            h = graph.cast(_steps(graph, sums, layer.thresholds[: layer.outputs], _inverted(layer)), TensorProto.UINT8)
        elif network.binarize_logits:
            zero, one = two_values(network.encoding)
            h = graph("Where", _steps(graph, sums, *layer.folded(layer.norm)), graph.floats(one), graph.floats(zero))
        else:
            h = _logits(graph, sums, layer)
    return h


def _sums(graph: Graph, layer: HiddenLayer | LastLayer, x: str) -> str:
    """Adds nodes for Σ x·w, int32 [batch, outputs], of x in uint8. With bits b, weights ±1 give 2·Σ x·b − Σ x."""
    weights = graph("Transpose", graph.bits(from_tiles(layer.tiles, layer.outputs), layer.inputs), perm=[1, 0])
    common = graph("MatMulInteger", x, weights)
    if layer.zero == 0:
        return common
    total = graph("ReduceSum", graph.cast(x, TensorProto.INT32), graph.constant([1], np.int64), keepdims=1)
    return graph("Sub", graph("Add", common, common), total)


def _steps(graph: Graph, sums: str, thresholds: Tensor, inverted: Tensor) -> str:
    steps = graph("GreaterOrEqual", sums, graph.constant(thresholds, np.int32))
    return graph("Xor", steps, graph.constant(inverted)) if inverted.any() else steps


def _inverted(layer: HiddenLayer) -> Tensor:
    return unpacked(layer.inverted[None], torch.bool)[0, : layer.outputs]


def _logits(graph: Graph, sums: str, layer: LastLayer) -> str:
    scaled = sums if layer.scale == 1 else graph("Mul", sums, graph.constant(layer.scale, np.int32))
    product = graph.cast(graph("Add", scaled, graph.constant(layer.offset)), TensorProto.FLOAT)
    return _affine(graph, graph("Div", product, graph.floats(layer.divisor)), layer.norm, (-1,))


def bncvl(graph: Graph, network: DeployedBNCVL, pixels: str) -> str:
    """Adds the nodes of a packed BNCVL network: `pixels`, uint8 [batch, channels, height, width] → logits."""
    h = graph("Div", graph.cast(pixels, TensorProto.FLOAT), graph.floats(255.0))
    h = graph("Div", graph("Sub", h, graph.floats(network.mean)), graph.floats(network.std))
    for i, layer in enumerate(network.convolutions):
        if i and i % network.per_width == 0:
            h = graph("MaxPool", h, kernel_shape=[network.pool] * 2, strides=[network.pool] * 2)
        inputs = [h, _convolution_weight(graph, layer)] + ([graph.floats(layer.bias)] if layer.bias is not None else [])
        h = _finish(graph, graph("Conv", *inputs, pads=[layer.padding] * 4), layer, (-1, 1, 1))
    h = graph("ReduceMean", h, graph.constant([2, 3], np.int64), keepdims=0)
    for layer in network.dense:
        bits = graph.bits(from_tiles(layer.tiles, layer.outputs), layer.inputs)
        h = graph("MatMul", h, graph("Transpose", _values(graph, bits, layer.encoding), perm=[1, 0]))
        h = h if layer.bias is None else graph("Add", h, graph.floats(layer.bias))
        h = _finish(graph, h, layer, (-1,))
    return h


def _convolution_weight(graph: Graph, layer: DeployedConvolution) -> str:
    values = _values(graph, graph.bits(layer.packed, int(np.prod(layer.shape[1:]))), layer.encoding)
    return graph("Reshape", values, graph.constant(layer.shape, np.int64))


def _values(graph: Graph, bits: str, encoding: str) -> str:
    zero, one = two_values(encoding)
    return graph("Where", graph.cast(bits, TensorProto.BOOL), graph.floats(one), graph.floats(zero))


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
        h = _affine(graph, h, layer.norm, shape)
    return graph("Relu", h) if isinstance(layer.activation, nn.ReLU) else h


def _affine(graph: Graph, h: str, norm: nn.Module, shape: tuple[int, ...]) -> str:
    scaled = graph("Mul", h, graph.floats(norm.weight.reshape(shape)))
    return graph("Add", scaled, graph.floats(norm.bias.reshape(shape)))


def float_mlp(graph: Graph, network: MLP, pixels: str) -> str:
    """Adds the nodes of an MLP with float weights and folded norms. Benchmarks compare the packed graph with this graph."""
    h = graph("Div", graph.cast(graph("Flatten", pixels, axis=1), TensorProto.FLOAT), graph.floats(255.0))
    zero, one = (graph.floats(value) for value in two_values(network.encoding))
    for i, (layer, norm) in enumerate(zip(network.layers, network.norms, strict=True), 1):
        h = _affine(graph, graph("MatMul", h, graph.floats(layer.value.T)), norm, (-1,))
        if i < len(network.layers) or network.binarize_logits:
            h = graph("Where", graph("GreaterOrEqual", h, graph.floats(0.0)), one, zero)
    return h


BUILDERS: dict[type[nn.Module], Callable[[Graph, Any, str], str]] = {DeployedMLP: mlp, DeployedBNCVL: bncvl}


def packed_model(network: nn.Module, shape: tuple[int, ...], classes: tuple[str, ...]) -> onnx.ModelProto:
    """Returns the ONNX model of a packed network: `pixels`, uint8 [batch, channels, height, width] → `logits`, float32
    [batch, classes]. The model's metadata hold the class names, one a line.
    """
    return _model(BUILDERS[type(network)], network, shape, classes)


def own_model(network: nn.Module, shape: tuple[int, ...], classes: tuple[str, ...]) -> onnx.ModelProto:
    """Returns the ONNX model of a network of a plugin. Its method `onnx(graph, pixels)` adds the nodes."""
    return _model(lambda graph, network, pixels: network.onnx(graph, pixels), network, shape, classes)


def float_model(network: nn.Module, packed: nn.Module, shape: tuple[int, ...], classes: tuple[str, ...]) -> onnx.ModelProto:
    """Returns the ONNX model with float weights. For a CNN this is the packed model: a runtime unpacks when it loads."""
    if type(network) is MLP:
        return _model(float_mlp, network, shape, classes)
    return packed_model(packed, shape, classes)


def _model(
    build: Callable[[Graph, nn.Module, str], str], network: nn.Module, shape: Sequence[int], classes: Sequence[str]
) -> onnx.ModelProto:
    graph = Graph()
    logits = build(graph, network, "pixels")
    graph.nodes.append(helper.make_node("Identity", [logits], ["logits"], name="logits"))
    made = helper.make_graph(
        graph.nodes,
        "network",
        [helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", len(classes)])],
        graph.constants,
    )
    result = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR, producer_name="bnn_exp")
    helper.set_model_props(result, {"classes": "\n".join(map(in_a_line, classes))})
    onnx.checker.check_model(result, full_check=True)
    return result
