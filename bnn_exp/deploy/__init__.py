"""Packs trained networks, evaluates them on bits, and exports them."""

from bnn_exp.deploy.layers import with_packed_layers
from bnn_exp.deploy.load import load_packed, pack_network
from bnn_exp.deploy.preprocessing import Preprocessing, read_preprocessing
from bnn_exp.deploy.to_c import export_c
from bnn_exp.deploy.to_onnx import export_onnx
from bnn_exp.deploy.to_qonnx import export_qonnx
from bnn_exp.deploy.to_torch import export_torch

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
