"""The facts that decide how an image becomes the pixels of a network. Every export carries these facts.

`read_preprocessing(FILE).prepare(image)` makes the pixels of an exported network. docs/deploy.md lists the keys of the JSON
text.
"""

import base64
import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor, nn

from bnn_exp import __version__
from bnn_exp.data.images import Encoded, Pixels, opened
from bnn_exp.deploy.exports.c import prepare
from bnn_exp.deploy.exports.frames import columns_first, frames_of
from bnn_exp.errors import UserError, reason
from bnn_exp.records.formatting import in_a_line

FORMAT = "bnn_exp preprocessing 1"
KEY = "preprocessing"  # the key of the JSON text in the metadata of ONNX files
EXPORTS = "allowed: network.onnx, network.qonnx.onnx, network.pt2 or preprocessing.json of task=export, or their folder"
FILE = f"{KEY}.json"  # the name of the JSON text beside an export, and inside a torch.export program


@dataclass(frozen=True)
class Vector:
    """A test vector: a frame of a camera, the pixels that it becomes, and the scores of the network for them.

    Args:
        frame: uint8 [height, width, channels].
        pixels: uint8 [channels, height, width], in the shape of the network.
        scores: the logits, one a class.
    """

    frame: np.ndarray
    pixels: np.ndarray
    scores: tuple[float, ...]

    @property
    def answer(self) -> int:
        """The index of the predicted class: the first one with the highest score."""
        return int(np.argmax(np.asarray(self.scores, np.float32)))

    def facts(self, arrays: bool) -> dict[str, Any]:
        """Returns the values of the JSON text: hashes of the frame and the pixels, and with `arrays` also their bytes."""
        height, width, channels = self.frame.shape
        both = {"frame": self.frame.tobytes(), "pixels": self.pixels.tobytes()}
        known = {f"{name}_sha256": hashlib.sha256(data).hexdigest() for name, data in both.items()}
        if arrays:
            known |= {f"{name}_base64": base64.b64encode(data).decode() for name, data in both.items()}
        return {
            "width": width,
            "height": height,
            "channels": channels,
            **known,
            "scores": list(self.scores),
            "class": self.answer,
        }


@dataclass(frozen=True)
class Preprocessing:
    """The facts that turn images into the pixels of a network, the hashes of the network, and test vectors.

    Args:
        shape: (channels, height, width) of the network's pixels, uint8. Three channels are red, green and blue.
        classes: the names of the classes.
        pixels: the settings of the conversion; None if they are unknown, such as those of a network from memory.
        dataset: the name of the dataset of the training, or None.
        network: the hashes of the network: `sha256` (the content of its model file), `file_sha256`, `bits_sha256`.
        versions: the versions of bnn_exp and Pillow that made the test vectors.
    """

    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    pixels: Pixels | None = None
    dataset: str | None = None
    network: Mapping[str, str] = field(default_factory=dict)
    vectors: tuple[Vector, ...] = ()
    versions: Mapping[str, str] = field(default_factory=lambda: {"bnn_exp": __version__, "pillow": PIL.__version__})

    @classmethod
    def of(cls, about: Mapping[str, Any], **network: str) -> "Preprocessing":
        """Returns the facts in the description of a saved network (see `bnn_exp.load_model`).

        Args:
            network: hashes of the network beyond `sha256`, by name.
        """
        settings, (channels, height, width) = about["config"]["dataset"], about["image_shape"]
        return cls(
            (channels, height, width),
            tuple(about["classes"]),
            Pixels.of_settings(settings),
            settings["name"],
            {"sha256": about["sha256"], **network},
        )

    @classmethod
    def of_images(cls, images: Tensor, classes: Sequence[str]) -> "Preprocessing":
        """Returns what is known of a network in memory: the shape of its `images`, uint8 [n, …], and its classes."""
        channels, height, width = images.shape[1:]
        return cls((channels, height, width), tuple(classes))

    @property
    def complete(self) -> bool:
        """True if the facts tell how a frame, which has one or three channels, becomes pixels."""
        return self.pixels is not None and self.shape[0] in (1, 3)

    def prepare(self, image: Image.Image | Encoded) -> np.ndarray:
        """Returns the pixels of an image, uint8 [channels, height, width], as training and `task=predict` make them.

        Args:
            image: a file, the bytes of a file, a Pillow image, or an array [height, width] or [height, width, channels].

        Raises:
            UserError: the facts are not complete.
            Exception: Pillow raises exceptions of many types for a broken image.
        """
        if self.pixels is None or not self.complete:
            raise UserError("the export does not say how an image becomes pixels\nallowed: an export by task=export from=RUN")
        channels, height, width = self.shape
        picture = image if isinstance(image, Image.Image) else opened(Path(image) if isinstance(image, str) else image)
        made = self.pixels.of(picture, channels, (width, height))
        return made[None] if channels == 1 else made.transpose(2, 0, 1)

    @torch.inference_mode()
    def with_vectors(self, network: nn.Module, images: Tensor) -> "Preprocessing":
        """Returns these facts with test vectors. Their frames come from `images`, uint8 [n, channels, height, width]."""
        if not self.complete:
            return self
        frames = frames_of(images[:2].numpy())
        pixels = np.stack([self.prepare(frame) for frame in frames])
        scores = network(torch.from_numpy(pixels)).float().tolist()
        return replace(self, vectors=tuple(map(Vector, frames, pixels, map(tuple, scores))))

    def facts(self, arrays: bool = False) -> dict[str, Any]:
        """Returns the values of the JSON text. `arrays`: with the bytes of the test vectors too, not only their hashes."""
        steps = {
            "orientation": "upright, by EXIF",
            "grey": "(19595 red + 38470 green + 7471 blue + 32768) >> 16, before the image is fitted",
            "filter": "bicubic, a = -0.5, antialiased; lines first, 8 bits after each direction",
            "columns_first": columns_first(),
        }
        return {
            "format": FORMAT,
            "shape": list(self.shape),
            "layout": "uint8: channels, rows, columns",
            "channels": {1: ["grey"], 3: ["red", "green", "blue"]}.get(self.shape[0]),
            "values": "0 to 255, as they are: the network standardises them",
            **(asdict(self.pixels) | steps if self.pixels else dict.fromkeys([*asdict(Pixels()), *steps])),
            "classes": list(map(in_a_line, self.classes)),
            "dataset": self.dataset,
            "network": dict(self.network),
            "versions": dict(self.versions),
            "vectors": [vector.facts(arrays) for vector in self.vectors],
        }

    def json(self, arrays: bool = False) -> str:
        """Returns the facts as a JSON text."""
        return json.dumps(self.facts(arrays), indent=1 if arrays else None)

    def describe(self, model: Any) -> None:
        """Adds the facts to the metadata of an ONNX model (`onnx.ModelProto`)."""
        model.metadata_props.add(key=KEY, value=self.json())

    def c_memory(self) -> int:
        """Returns the bytes of the variables of network_prepare.c, at most, for frames of the default size."""
        fixed, per_side = prepare.memory(self.shape)
        return fixed + per_side * prepare.frame_most(self.shape)

    def c_source(self) -> str | None:
        """Returns network_prepare.c, which makes pixels of a camera's frame; None if the facts are not complete."""
        return prepare.SOURCE.read_text() if self.complete else None


def read_preprocessing(file: str | Path) -> Preprocessing:
    """Returns the preprocessing of an export: of `network.onnx`, `network.pt2`, or the `preprocessing.json` beside `network.c`.

    The test vectors are not read: they are for programs in other languages.

    Raises:
        UserError: there is no such file, or it does not hold the facts.
    """
    file = Path(file) / FILE if Path(file).is_dir() else Path(file)
    if not file.exists():
        raise UserError(f"{file}: no such file\n{EXPORTS}")
    try:
        facts = json.loads(_text(file))
        if facts["format"] != FORMAT:
            raise ValueError(f"its format is {facts['format']!r}")
        known = {key: facts[key] for key in ("fit", "background", "range", "reduced")}
        channels, height, width = facts["shape"]
        return Preprocessing(
            (channels, height, width),
            tuple(facts["classes"]),
            None if known["fit"] is None else Pixels(**known | {"range": known["range"] and tuple(known["range"])}),
            facts["dataset"],
            facts["network"],
            versions=facts["versions"],
        )
    except Exception as error:  # json, zipfile and onnx raise exceptions of many types for a damaged file
        raise UserError(f"{file}: it does not say how images become pixels ({reason(error)})\n{EXPORTS}") from error


def _text(file: Path) -> str:
    """Returns the JSON text that an export holds."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as program:
            (name,) = (name for name in program.namelist() if name.endswith(f"/{FILE}"))
            return program.read(name).decode()
    if file.suffix == ".onnx":
        import onnx

        return {prop.key: prop.value for prop in onnx.load(file, load_external_data=False).metadata_props}[KEY]
    return file.read_text(encoding="utf-8")
