"""`model.safetensors`: a trained network in one file, its binary weights eight to a byte, its configuration in the metadata."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from bnn_exp import models
from bnn_exp.bits import deployed_state, load_state
from bnn_exp.config import model as model_settings
from bnn_exp.errors import UserError
from bnn_exp.records.files import replacing

FORMAT = "bnn_exp model 1"


def save_model(file: Path, network: nn.Module, config: dict, image_shape: tuple[int, ...], classes: tuple[str, ...]) -> None:
    """Write the network atomically, with the resolved configuration of its run; images are (channels, height, width)."""
    about = {"config": config, "image_shape": image_shape, "classes": classes}
    with replacing(file) as temporary:
        metadata = {"format": FORMAT} | {key: json.dumps(value) for key, value in about.items()}
        save_file(deployed_state(network), temporary, metadata)


def load_model(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a run directory or of a `model.safetensors`, in evaluation mode on the CPU, and what the file says of it:
    `config`, `image_shape` (channels, height, width) and `classes`. Its input is pixels, uint8 or float32 in [0, 1].

    Raises:
        UserError: there is no such file, it is damaged, or something else wrote it.
    """
    file = Path(path) / "model.safetensors" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UserError(f"{file}: no such file\nallowed: a run directory, or the model.safetensors of one")
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"it does not say that it is a {FORMAT!r}")
            about = {key: json.loads(metadata[key]) for key in ("config", "image_shape", "classes")}
            state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        settings = model_settings(about["config"]["model"])
        if settings.weights == "latent":
            settings = replace(settings, weights="bits")  # the file holds the bits of latents, not the latents
        network = models.build(settings, tuple(about["image_shape"]), len(about["classes"]))
        load_state(network, state)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError, UserError) as error:
        raise UserError(f"{file}: not a readable model ({str(error).splitlines()[0]})") from error
    return network.eval(), about
