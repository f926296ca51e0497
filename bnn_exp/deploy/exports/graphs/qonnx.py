"""Writes packed networks in QONNX, the dialect of ONNX that FINN and hls4ml read.

All tensors are float32 and hold whole numbers; `Quant` and `BipolarQuant` nodes say which. A graph has the nodes that Brevitas
writes: quantised weights, `Conv` or `MatMul`, a scale and a shift, and a quantised activation. The integers are those of the
packed network: products P = Σ w·x of values (see `bnn_exp.deploy.exports.products`), codes, and the values of bits.
"""

from collections.abc import Callable, Sequence
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from bnn_exp.bits import from_tiles
from bnn_exp.bits.reference import unpacked
from bnn_exp.deploy.cnn import DeployedCNN
from bnn_exp.deploy.exports.graphs.graph import Graph
from bnn_exp.deploy.exports.products import hidden_threshold, in_channels_first, step_threshold
from bnn_exp.deploy.integers import Average, CodeLayer, IntegerLayer, StepLayer, factors
from bnn_exp.deploy.mlp import DeployedMLP, HiddenLayer, LastLayer
from bnn_exp.nn.binary import two_values
from bnn_exp.records.formatting import in_a_line

OPSET, IR, DOMAIN = 13, 8, "qonnx.custom_op.general"


def mlp(graph: Graph, network: DeployedMLP, pixels: str) -> str:
    """Adds the nodes of a packed MLP: `pixels`, float32 [batch, …] → logits. The values that layer i gives are `layer_i`."""
    h = graph("Flatten", pixels, axis=1)
    for i, layer in enumerate(network.layers):
        bits = unpacked(from_tiles(layer.tiles, layer.outputs), torch.uint8)[:, : layer.inputs]
        products = graph("MatMul", h, _weights(graph, bits.T, layer.encoding))
        if isinstance(layer, HiddenLayer):
            h = graph.named(_step(graph, products, *hidden_threshold(layer), layer.encoding), f"layer_{i}")
        elif network.binarize_logits:
            h = _binarized(graph, products, layer)
        else:
            h = _logits(graph, products, layer)
    return h


def cnn(graph: Graph, network: DeployedCNN, pixels: str) -> str:
    """Adds the nodes of a packed CNN: `pixels`, float32 [batch, channels, height, width] → logits.

    The codes, or the values of bits, that layer i gives are called `layer_i`.
    """
    h, shapes, rows = pixels, network.shapes(), False
    *layers, last = network.layers
    for i, layer in enumerate(layers):
        if isinstance(layer, Average):
            h, rows = _average(graph, h, layer, shapes[i]), True
        elif isinstance(layer, StepLayer):
            h = _bits(graph, h, layer, shapes[i])
        else:
            h = _codes(graph, h, layer, rows)
        h = graph.named(h, f"layer_{i}")
    weights = _weights(graph, in_channels_first(last, shapes[-1]).T, last.encoding)
    return _logits(graph, graph("MatMul", graph("Flatten", h, axis=1), weights), last)


def _weights(graph: Graph, bits: Tensor, encoding: str) -> str:
    """Adds quantised weights, the values of `bits`: −1 and 1, or 0 and 1 (boolean)."""
    values = graph.floats(factors(bits, encoding))
    return _quant(graph, values, 1, signed=0) if encoding == "boolean" else _bipolar(graph, values)


def _bipolar(graph: Graph, x: str) -> str:
    return graph("BipolarQuant", x, graph.floats(1.0), domain=DOMAIN)


def _quant(graph: Graph, x: str, bits: int, **attributes: int) -> str:
    """Adds a quantisation to whole numbers of `bits` bits, with rounding half to even."""
    given = {"signed": 0, "narrow": 0, "rounding_mode": "ROUND", "domain": DOMAIN} | attributes
    return graph("Quant", x, graph.floats(1.0), graph.floats(0.0), graph.floats(float(bits)), **given)


def _code(graph: Graph, x: str, levels: int) -> str:
    """Adds nodes for clamp(rint(x), 0, levels). FINN wants a ReLU before unsigned numbers."""
    return _quant(graph, graph("Relu", x), levels.bit_length())


def _norm(graph: Graph, x: str, scale: Tensor, shift: Tensor) -> str:
    """Adds a BatchNorm for scale · x + shift of each channel. FINN and hls4ml read this node in any order of dimensions."""
    statistics = graph.floats(torch.zeros(len(scale))), graph.floats(torch.ones(len(scale)))
    return graph("BatchNormalization", x, graph.floats(scale), graph.floats(shift), *statistics, epsilon=0.0)


def _step(graph: Graph, products: str, threshold: Tensor, inverted: Tensor, encoding: str) -> str:
    """Adds nodes for the values of the bits (P ≥ threshold) ≠ inverted, by the sign of the odd number ±(2P + 1 − 2·threshold).

    The values −1 and 1 are whole numbers of two bits, not bipolar ones: convolutions pad them with 0, and hls4ml 1.3 computes
    other products of bipolar activations (it quantises the weights twice).

    Args:
        products, threshold, inverted: P, and int64 and bool [out].
    """
    sign = torch.where(inverted, -1, 1)
    odd = _norm(graph, products, 2 * sign, sign * (1 - 2 * threshold))
    return _code(graph, odd, 1) if encoding == "boolean" else _quant(graph, odd, 2, signed=1, narrow=1)


def _convolution(graph: Graph, x: str, layer: IntegerLayer, bias: Tensor | None = None) -> str:
    """Adds nodes for P + bias. Where the codes m outside the picture are not 0, codes x become x − m, and Σ w·m is added.

    The numbers x − m have 9 bits. FINN turns them into integers by `default_filter_function_generator(9)`.
    """
    weights = _weights(graph, layer.bits().permute(0, 3, 1, 2), layer.encoding)
    if layer.takes == "codes" and layer.size > 1 and layer.padding.any():
        x = _quant(graph, _norm(graph, x, torch.ones(layer.channels), -layer.padding.long()), 9, signed=1)
        total = (layer.weights() * layer.padding).sum((1, 2, 3))
        bias = total if bias is None else total + bias
    given = [x, weights] if bias is None else [x, weights, graph.floats(bias)]
    return graph("Conv", *given, group=1, **_windows(layer.size, layer.size, padding=layer.size // 2))


def _pooled(graph: Graph, h: str, pool: int) -> str:
    return h if pool == 1 else graph("MaxPool", h, ceil_mode=0, **_windows(pool, pool, stride=pool))


def _windows(height: int, width: int, stride: int = 1, padding: int = 0) -> dict[str, list[int]]:
    """Returns the attributes of a convolution or a pooling. FINN and hls4ml need even those with default values."""
    return {"kernel_shape": [height, width], "strides": [stride] * 2, "pads": [padding] * 4, "dilations": [1, 1]}


def _bits(graph: Graph, x: str, layer: StepLayer, shape: Sequence[int]) -> str:
    products = _pooled(graph, _convolution(graph, x, layer), layer.pool)
    return _step(graph, products, step_threshold(layer, shape[:2]), layer.inverted_outputs(), layer.encoding)


def _codes(graph: Graph, x: str, layer: CodeLayer, rows: bool) -> str:
    if rows:
        products = graph("MatMul", x, _weights(graph, layer.bits().flatten(1).T, layer.encoding))
        sums = graph("Add", products, graph.floats(layer.bias[None]))
    else:
        sums = _convolution(graph, x, layer, layer.bias)
    scaled = _norm(graph, sums, layer.multiplier, torch.zeros(layer.outputs))
    return _pooled(graph, _code(graph, scaled, layer.levels), layer.pool)


def _average(graph: Graph, x: str, layer: Average, shape: tuple[int, int, int]) -> str:
    """Adds the sum over all positions as a convolution of each channel with ones, which is exact; then its code."""
    height, width, channels = shape
    ones = _bipolar(graph, graph.floats(torch.ones(channels, 1, height, width)))
    sums = graph("Conv", x, ones, group=channels, **_windows(height, width))
    scaled = _norm(graph, sums, layer.multiplier.expand(channels), torch.zeros(channels))
    return graph("Flatten", _code(graph, scaled, layer.levels), axis=1)


def _logits(graph: Graph, products: str, layer: LastLayer) -> str:
    """Adds nodes for norm(P / divisor). A divisor that is a power of two becomes a part of the scale, which stays exact."""
    within = layer.divisor if layer.divisor in (1, 2, 4) else 1
    quotient = products if within == layer.divisor else graph("Div", products, graph.floats(layer.divisor))
    return _norm(graph, quotient, layer.norm.weight / within, layer.norm.bias)


def _binarized(graph: Graph, products: str, layer: LastLayer) -> str:
    """Adds nodes for the values of 1[norm(product) ≥ 0], the logits of an MLP with `binarize_logits`."""
    found, inverted = layer.folded(layer.norm)
    values = _step(graph, products, layer.scale * found + layer.offset, inverted, layer.encoding)
    return graph("Mul", values, graph.floats(two_values(layer.encoding)[1]))


BUILDERS: dict[type[nn.Module], Callable[[Graph, Any, str], str]] = {DeployedMLP: mlp, DeployedCNN: cnn}


def qonnx_model(network: nn.Module, shape: Sequence[int], classes: Sequence[str]) -> onnx.ModelProto:
    """Returns the QONNX model of a packed network, for one picture.

    The input is `pixels`, whole numbers from 0 to 255 as float32 [1, *shape], with the annotation UINT8. The output is
    `logits`, float32 [1, classes]. The model's metadata hold the class names, one a line.
    """
    graph = Graph()
    graph.named(BUILDERS[type(network)](graph, network, "pixels"), "logits")
    whole = onnx.TensorAnnotation(tensor_name="pixels")
    whole.quant_parameter_tensor_names.add(key="finn_datatype", value="UINT8")
    made = helper.make_graph(
        graph.nodes,
        "network",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, *shape])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, len(classes)])],
        graph.constants,
    )
    made.quantization_annotation.append(whole)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, 1)]
    result = helper.make_model(made, opset_imports=opsets, ir_version=IR, producer_name="bnn_exp")
    helper.set_model_props(result, {"classes": "\n".join(map(in_a_line, classes))})
    return result
