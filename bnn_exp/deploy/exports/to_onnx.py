"""Exports a packed network as an ONNX file, and checks the file with onnxruntime before it is written."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from bnn_exp.deploy.check import FORMS, check_alike, check_equal, check_packed, predictions
from bnn_exp.deploy.exports.given import in_folder, ready
from bnn_exp.deploy.exports.preprocessing import Preprocessing
from bnn_exp.errors import UserError
from bnn_exp.records.files import replacing


def export_onnx(
    network: nn.Module,
    directory: str | Path = ".",
    images: Tensor | None = None,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> dict:
    """Writes `network.onnx`: uint8 `pixels` [batch, channels, height, width] → `logits`, with one bit for each weight.

    Args:
        network: a packed network, or one that `pack_network` can pack.
        directory: created if it is missing.
        images: uint8 [n, channels, height, width], n ≥ 1. onnxruntime must predict the same classes for these images
            as the network. None: random pixels; the network must then know the shape of its images, or be an MLP for square
            images.
        classes: the names of the classes. None: "0", "1", …
        preprocessing: how images become pixels, for the metadata of the file. None: unknown.

    Returns:
        `file`, and `bytes`, its size.

    Raises:
        UserError: the network is of another kind, onnx or onnxruntime is not installed, or a prediction or logits differ.
            Then nothing is written.
    """
    network, directory, images, classes = ready("onnx", network, directory, images, classes)
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise UserError(f"export.format=onnx: {error}\nallowed: after pip install 'bnn-exp[onnx]'") from error
    from bnn_exp.deploy.exports.graphs.models import own_model, packed_model

    if hasattr(type(network), "onnx"):
        model = own_model(network, tuple(images.shape[1:]), classes)
    else:
        check_packed("onnx", network, *FORMS)
        model = packed_model(network, tuple(images.shape[1:]), classes)
    (preprocessing or Preprocessing.of_images(images, classes)).describe(model)
    data = model.SerializeToString()
    run = session(data)
    check_equal("onnxruntime", predictions(run, images), predictions(network, images))
    check_alike("onnxruntime", run, network, tuple(images.shape[1:]))
    file = directory / "network.onnx"
    with replacing(in_folder(file)) as temporary:
        temporary.write_bytes(data)
    return {"file": file, "bytes": len(data)}


def session(data: bytes, threads: int = 0) -> Callable[[Tensor], Tensor]:
    """Returns a function that runs the ONNX model `data` on the CPU: uint8 pixels → logits. threads=0: onnxruntime chooses."""
    run = numpy_session(data, threads)
    return lambda pixels: torch.from_numpy(run(pixels.contiguous().numpy()))


def numpy_session(data: bytes, threads: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the function of `session` with arrays in the place of tensors."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    running = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda pixels: running.run(["logits"], {"pixels": pixels})[0]
