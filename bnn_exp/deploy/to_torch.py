"""The packed network as a `torch.export` program: a file that torch alone runs, its weights packed."""

import io
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from bnn_exp.bits import operators, reference
from bnn_exp.deploy.check import check_alike, check_equal, check_packed, predictions
from bnn_exp.deploy.given import in_folder, ready
from bnn_exp.records.files import replacing


def export_torch(network: nn.Module, directory: str | Path = ".", images: Tensor | None = None) -> dict:
    """Write `network.pt2`: uint8 pixels [batch, channels, height, width] → logits, in plain torch operators, any batch size.

    It needs torch and nothing of ours, and is slower than `load_packed`, whose kernels it does without.

    Args:
        network: a packed one, or one that `pack_network` packs.
        directory: made where it is missing.
        images: uint8 [n, channels, height, width], n ≥ 1; the program must predict for them as the network does. None: random
            pixels, for an MLP of square pictures.

    Returns:
        `file` and its `bytes`.

    Raises:
        UserError: another kind of network, or a prediction or logits differ; nothing is written.
    """
    network, directory, images, _ = ready("torch", network, directory, images)
    check_packed("torch", network, "PackedMLP", "BNCVLNet")
    return write_torch(network, network, directory, images)


def write_torch(network: nn.Module, form: nn.Module, directory: Path, images: Tensor) -> dict:
    """Does what `export_torch` does, by a `form` of `network` that `torch.export` can follow."""
    file = directory / "network.pt2"
    example = images[:1].expand(2, *images.shape[1:]).contiguous()
    shapes = {"x": {0: torch.export.Dim("batch", min=1)}}
    plain = {getattr(torch.ops.bnn_exp, name).default: getattr(reference, name) for name in operators.SCHEMAS}
    written = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch's own parts among themselves
        program = torch.export.export(form, (example,), dynamic_shapes=shapes)
        torch.export.save(program.run_decompositions(plain | {torch.ops.aten.std_mean.dim: _std_mean}), written)
        again = torch.export.load(io.BytesIO(written.getvalue())).module()
    check_equal("torch.export", predictions(again, images), predictions(network, images))
    check_alike("torch.export", again, network, tuple(images.shape[1:]))
    with replacing(in_folder(file)) as temporary:
        temporary.write_bytes(written.getvalue())
    return {"file": file, "bytes": file.stat().st_size}


def _std_mean(x: Tensor, dim: list[int], unbiased: bool = True, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """In the place of torch 2.13's own decomposition, which calls itself with the wrong arguments."""
    return torch.std(x, dim, correction=int(unbiased), keepdim=keepdim), x.mean(dim, keepdim=keepdim)
