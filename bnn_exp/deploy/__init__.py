"""Packs trained networks, evaluates them on bits, and exports them."""

from bnn_exp.deploy.exports.preprocessing import Preprocessing, read_preprocessing
from bnn_exp.deploy.exports.to_c import export_c
from bnn_exp.deploy.exports.to_onnx import export_onnx
from bnn_exp.deploy.exports.to_qonnx import export_qonnx
from bnn_exp.deploy.exports.to_torch import export_torch
from bnn_exp.deploy.layers import with_packed_layers
from bnn_exp.deploy.load import load_packed, pack_network

__all__ = [
    "Preprocessing",
    "export_c",
    "export_onnx",
    "export_qonnx",
    "export_torch",
    "load_packed",
    "pack_network",
    "read_preprocessing",
    "with_packed_layers",
]
