"""The network as onnxruntime computes it, in fp32 and in int8, for comparisons. Needs onnx and onnxruntime."""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bnn_exp.nn.known_classes import is_exactly


def sessions(network: nn.Module, packed: nn.Module, about: dict[str, Any], threads: int) -> dict[str, Callable]:
    """Returns functions of numpy arrays, pixels → logits, by the name of the way. Without onnxruntime: an empty dict.

    The ways are `onnxruntime fp32`, and for an MLP `onnxruntime int8`: onnxruntime's dynamic quantization, weights and
    inputs of a layer in int8. Its static quantization took 5% to 15% longer for networks of 256 and 1024 neurons a layer.

    Args:
        network: the float network.
        packed: its packed form.
        about: the description of the network, see `bnn_exp.load_model`.
    """
    try:
        from bnn_exp.deploy.onnx_graph import float_model, own_model
        from bnn_exp.deploy.to_onnx import numpy_session

        shape, classes = tuple(about["image_shape"]), tuple(about["classes"])
        if is_exactly(type(network), "MLP", "BNCVLNet"):
            model = float_model(network, packed, shape, classes)
        elif hasattr(type(packed), "onnx"):
            model = own_model(packed, shape, classes)
        else:
            return {}
        found: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "onnxruntime fp32": numpy_session(model.SerializeToString(), threads)
        }
        if is_exactly(type(network), "MLP"):
            found["onnxruntime int8"] = numpy_session(_in_int8(model), threads)
        return found
    except ImportError:
        return {}


def _in_int8(model: Any) -> bytes:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # onnxruntime advises to simplify the graph first; here nothing is left to simplify
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "int8.onnx"
            quantize_dynamic(model, str(file), weight_type=QuantType.QInt8)
            return file.read_bytes()
    finally:
        logging.disable(before)
