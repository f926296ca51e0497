"""The ONNX models of networks: packed ones, and those of a plugin."""

from collections.abc import Callable
from typing import Any

import onnx
from torch import nn

from bnn_exp.deploy.bncvl import DeployedBNCVL
from bnn_exp.deploy.cnn import DeployedCNN
from bnn_exp.deploy.exports.graphs.bncvl import bncvl
from bnn_exp.deploy.exports.graphs.cnn import cnn
from bnn_exp.deploy.exports.graphs.graph import Graph, model
from bnn_exp.deploy.exports.graphs.mlp import mlp
from bnn_exp.deploy.mlp import DeployedMLP

BUILDERS: dict[type[nn.Module], Callable[[Graph, Any, str], str]] = {DeployedMLP: mlp, DeployedBNCVL: bncvl, DeployedCNN: cnn}


def packed_model(network: nn.Module, shape: tuple[int, ...], classes: tuple[str, ...]) -> onnx.ModelProto:
    """Returns the ONNX model of a packed network, see `bnn_exp.deploy.exports.graphs.graph.model`."""
    return model(BUILDERS[type(network)], network, shape, classes)


def own_model(network: nn.Module, shape: tuple[int, ...], classes: tuple[str, ...]) -> onnx.ModelProto:
    """Returns the ONNX model of a network of a plugin. Its method `onnx(graph, pixels)` adds the nodes."""
    return model(lambda graph, network, pixels: network.onnx(graph, pixels), network, shape, classes)
