"""The network as onnxruntime computes it, in fp32 and in int8, for comparisons. Needs onnx and onnxruntime."""

import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from bnn_exp.nn.known_classes import is_exactly
from bnn_exp.records import probe_logits

CALIBRATION = 64  # images of random pixels from which the static quantization takes the ranges of activations


def sessions(network: nn.Module, packed: nn.Module, about: dict[str, Any], threads: int) -> dict[str, Callable]:
    """Returns functions of numpy arrays, pixels → logits, by the name of the way. Without onnxruntime: an empty dict.

    - `onnxruntime fp32`: the network in floats. A CNN has real activations there: it is the float twin.
    - `onnxruntime int8`, for an MLP: onnxruntime's dynamic quantization, weights and inputs of a layer in int8. Its static
      quantization took 5% to 15% longer for networks of 256 and 1024 neurons a layer. For a CNN: the static quantization of
      the float twin, with int8 convolutions.
    - `onnxruntime, packed`, for a packed network: the graph that `task=export` writes.

    Args:
        network: the float network.
        packed: its packed form.
        about: the description of the network, see `bnn_exp.load_model`.
    """
    try:
        from bnn_exp.commands.benchmark.float_onnx import float_model
        from bnn_exp.deploy.exports.graphs.models import BUILDERS, own_model, packed_model
        from bnn_exp.deploy.exports.to_onnx import numpy_session
    except ImportError:
        return {}
    shape, classes = tuple(about["image_shape"]), tuple(about["classes"])
    models: dict[str, bytes] = {}
    floats = float_model(network, shape, classes)
    if floats is not None:
        models["onnxruntime fp32"] = floats.SerializeToString()  # first: a quantization changes the model that it is given
        dynamic = is_exactly(type(network), "MLP")
        models["onnxruntime int8"] = _in_int8(floats) if dynamic else _in_int8_by_calibration(floats, shape)
    elif hasattr(type(packed), "onnx"):
        models["onnxruntime fp32"] = own_model(packed, shape, classes).SerializeToString()
    if type(packed) in BUILDERS:
        name = "onnxruntime, packed" if models else "onnxruntime fp32"  # without a float form, packed weights are unpacked
        models[name] = packed_model(packed, shape, classes).SerializeToString()
    return {name: numpy_session(data, threads) for name, data in models.items()}


def _in_int8(model: Any) -> bytes:
    """Returns an ONNX model after the dynamic quantization of onnxruntime."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _quiet(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "int8.onnx"
        quantize_dynamic(model, str(file), weight_type=QuantType.QInt8)
        return file.read_bytes()


def _in_int8_by_calibration(model: Any, shape: tuple[int, ...]) -> bytes:
    """Returns an ONNX model after the static quantization of onnxruntime: uint8 activations, int8 weights for each channel.

    Args:
        shape: the shape of an image.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Pixels(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[np.ndarray] = iter(probe_logits.pixels(shape, CALIBRATION).numpy()[:, None])

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"pixels": batch}

    types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "int8.onnx"
        quantize_static(model, str(file), Pixels(), quant_format=QuantFormat.QOperator, per_channel=True, **types)
        return file.read_bytes()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the advice of onnxruntime to simplify a graph first. Here nothing is left to simplify."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
