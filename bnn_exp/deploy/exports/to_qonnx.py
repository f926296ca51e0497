"""Exports a packed network as QONNX for FINN and hls4ml. The qonnx package runs the file before it is written."""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bnn_exp.deploy.check import check_alike, check_equal, check_integers, predictions
from bnn_exp.deploy.exports.given import in_folder, ready
from bnn_exp.deploy.exports.preprocessing import Preprocessing
from bnn_exp.errors import UserError
from bnn_exp.records.files import replacing

BATCH = 64  # pictures that the qonnx package computes at a time; it keeps the results of every node


def export_qonnx(
    network: nn.Module,
    directory: str | Path = ".",
    images: Tensor | None = None,
    classes: Sequence[str] | None = None,
    preprocessing: Preprocessing | None = None,
) -> dict:
    """Writes `network.qonnx.onnx`: whole numbers from 0 to 255 as float32 [1, channels, height, width] → `logits`.

    Weights are float32, as the dialect wants: the file takes 32 bits for each.

    Args:
        network: a packed network of integers, or one that `pack_network` can pack: an MLP, `vgg`, or `bncvl` with
            `activation_bits`.
        directory: created if it is missing.
        images: uint8 [n, channels, height, width], n ≥ 1. The qonnx package must predict the same classes for these images
            as the network. None: random pixels, see `export_onnx`.
        classes: the names of the classes. None: "0", "1", …
        preprocessing: how images become pixels, for the metadata of the file. None: unknown.

    Returns:
        `file`, and `bytes`, its size.

    Raises:
        UserError: the network is of another kind, the package qonnx is not installed, or a prediction or logits differ.
            Then nothing is written.
    """
    network, directory, images, classes = ready("qonnx", network, directory, images, classes)
    check_integers("qonnx", network, "QONNX describes integers")
    try:
        import qonnx  # noqa: F401
    except ImportError as error:
        raise UserError(f"export.format=qonnx: {error}\nallowed: after pip install 'bnn-exp[qonnx]'") from error
    from bnn_exp.deploy.exports.graphs.qonnx import qonnx_model

    shape = tuple(images.shape[1:])
    model = with_types(qonnx_model(network, shape, classes))
    many, single = (runner(model, batch, ["logits"]) for batch in (min(BATCH, len(images)), 1))
    check_equal("the qonnx package", predictions(lambda pixels: many(pixels)[0], images), predictions(network, images))
    check_alike("the qonnx package", lambda pixels: single(pixels)[0], network, shape)
    (preprocessing or Preprocessing.of_images(images, classes)).describe(model.model)
    data, file = model.model.SerializeToString(), directory / "network.qonnx.onnx"
    with replacing(in_folder(file)) as temporary:
        temporary.write_bytes(data)
    return {"file": file, "bytes": len(data)}


def with_types(model: Any) -> Any:
    """Returns the `ModelWrapper` of a model, with the shape and the data type of every tensor, and a constant for each use."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.general import GiveUniqueNodeNames, GiveUniqueParameterTensors
    from qonnx.transformation.infer_datatypes import InferDataTypes
    from qonnx.transformation.infer_shapes import InferShapes

    inferred = ModelWrapper(model)
    for each in (GiveUniqueNodeNames(), GiveUniqueParameterTensors(), InferShapes(), InferDataTypes()):
        inferred = inferred.transform(each)
    return inferred


def runner(model: Any, batch: int, outputs: Sequence[str]) -> Callable[[Tensor], list[Tensor]]:
    """Returns a function that runs a `ModelWrapper` by the qonnx package: uint8 pixels → the tensors called `outputs`.

    Args:
        batch: the number of pictures that are computed at a time.
    """
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.change_batchsize import ChangeBatchSize
    from qonnx.transformation.infer_shapes import InferShapes

    model = model.transform(ChangeBatchSize(batch)).transform(InferShapes())
    del model.graph.quantization_annotation[:]  # the package looks for the largest number of each annotated tensor in Python

    def run(pixels: Tensor) -> list[Tensor]:
        found: list[list[Tensor]] = []
        for part in pixels.float().split(batch):
            filled = torch.cat([part, part[:1].expand(batch - len(part), *part.shape[1:])])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                results = execute_onnx(model, {"pixels": filled.numpy()}, return_full_exec_context=True)
            found.append([torch.from_numpy(results[name][: len(part)]) for name in outputs])
        return [torch.cat(parts) for parts in zip(*found, strict=True)]

    return run
