"""ONNX graphs of networks in floats, to compare packed networks with: an MLP, and the float twin of a CNN.

The twin of a CNN has real activations: ReLU in place of codes, in the unit of codes, or hardtanh in place of bits. All else is
that of the network.
"""

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from torch import Tensor, nn

from bnn_exp.deploy.exports.graphs.graph import Graph, model
from bnn_exp.deploy.exports.graphs.mlp import float_mlp
from bnn_exp.models.bncvl import BNCVLNet
from bnn_exp.models.mlp import MLP
from bnn_exp.models.vgg import VGG
from bnn_exp.nn.codes import FIRST_CLIP, per_code
from bnn_exp.nn.norm import scale_and_shift
from bnn_exp.nn.requantize import least_clip
from bnn_exp.nn.standardize import Standardize


def float_model(network: nn.Module, shape: tuple[int, ...], classes: tuple[str, ...]) -> onnx.ModelProto | None:
    """Returns the ONNX model of a network with float weights, see `bnn_exp.deploy.exports.graphs.graph.model`.

    BatchNorms are a part of weights and biases. Returns None for a network without such a form: of another class, or a BNCVL
    network that normalises each sample.
    """
    builders: dict[type, Any] = {MLP: float_mlp, BNCVLNet: _bncvl, VGG: _vgg}
    if type(network) not in builders or any(isinstance(module, Standardize) for module in network.modules()):
        return None
    return model(builders[type(network)], network, shape, classes)


def _bncvl(graph: Graph, network: BNCVLNet, pixels: str) -> str:
    h = _standardized(graph, network, pixels)
    layer: Any
    for layer in network.convolutions:
        h = _pooled(graph, graph("Relu", _convolution(graph, h, layer, layer.norm)), layer.pool)
    h = graph("ReduceMean", h, graph.constant([2, 3], np.int64), keepdims=0)
    if (mean := network.mean_over_image.quantizer) is not None:
        h = graph("Mul", h, graph.floats(FIRST_CLIP / least_clip(mean.clip.detach().cpu())))
    for layer in network.dense:
        h = _dense(graph, h, layer, layer.norm)
        h = graph("Relu", h) if isinstance(layer.activation, nn.ReLU) else h
    return h


def _vgg(graph: Graph, network: VGG, pixels: str) -> str:
    h, limits = _standardized(graph, network, pixels), (graph.floats(-1.0), graph.floats(1.0))
    for i, (layer, norm) in enumerate(zip(network.convolutions, network.norms, strict=True), 1):
        h = graph("Clip", _convolution(graph, h, layer, norm), *limits)  # rises with h, so the pooling may come after it
        h = _pooled(graph, h, 2 if i % network.per_width == 0 else 1)
    return _dense(graph, graph("Flatten", h, axis=1), network.last, network.last_norm)


def _standardized(graph: Graph, network: Any, pixels: str) -> str:
    h = graph("Sub", graph.cast(pixels, TensorProto.FLOAT), graph.floats(255 * network.mean))
    return graph("Mul", h, graph.floats(1 / (255 * network.std)))


def _convolution(graph: Graph, h: str, layer: Any, norm: Any) -> str:
    scale, shift = _line(layer, norm)
    weights = graph.floats(layer.value.detach().cpu() * scale[:, None, None, None])
    sizes = {"pads": [layer.kernel_size // 2] * 4, "kernel_shape": [layer.kernel_size] * 2}
    return graph("Conv", h, weights, graph.floats(shift), **sizes)


def _dense(graph: Graph, h: str, layer: Any, norm: Any) -> str:
    scale, shift = _line(layer, norm)
    return graph("Gemm", h, graph.floats(layer.value.detach().cpu() * scale[:, None]), graph.floats(shift), transB=1)


def _line(layer: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Returns scale and shift of the BatchNorm, in the unit of codes if the layer gives codes."""
    quantizer = getattr(layer, "quantizer", None)
    factor = 1.0 if quantizer is None else per_code(quantizer.clip.detach().cpu(), quantizer.levels)
    scale, shift = scale_and_shift(norm)
    return scale * factor, shift * factor


def _pooled(graph: Graph, h: str, pool: int) -> str:
    return h if pool == 1 else graph("MaxPool", h, kernel_shape=[pool] * 2, strides=[pool] * 2)
