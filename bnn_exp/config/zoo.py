"""The zoo: trained networks inside the package. `zoo/NAME` names one where a task, a setting or a function reads a network.

A network is a folder, which scripts/add_to_zoo.py writes: `model.safetensors`, `summary.json`, and for fine-tuning
`norms.safetensors` (the statistics of BatchNorm). docs/zoo.md lists the networks. Imports no torch.
"""

import difflib
from pathlib import Path

from bnn_exp.config.paths import is_there
from bnn_exp.config.registry import PACKAGE
from bnn_exp.errors import UserError

PREFIX = "zoo"
FOLDER = PACKAGE / PREFIX


def names() -> list[str]:
    """Returns the names of all networks of the zoo, such as `zoo/mnist_best`, sorted."""
    return sorted(f"{PREFIX}/{file.parent.name}" for file in FOLDER.glob("*/model.safetensors"))


def located(place: str | Path, key: str = "") -> Path:
    """Returns the folder of the package that `zoo/NAME` names. Returns any other place unchanged.

    A folder of the user that is really called zoo/NAME wins over the network of the package.

    Args:
        place: a path as the user writes it.
        key: the setting that holds the path, for the message.

    Raises:
        UserError: the zoo has no network of this name.
    """
    path = Path(place)
    if path.parts[:1] != (PREFIX,) or is_there(str(place)):
        return path
    known = names()
    if (name := path.as_posix()) in known:
        return FOLDER / path.name
    close = difflib.get_close_matches(name, known, 1)
    meant = f"; did you mean {close[0]}?" if close else ""
    raise UserError(
        f"{key}{'=' * bool(key)}{name}: no such folder, and no network of the zoo{meant}\nallowed: {', '.join(known)}"
    )


def holds(file: Path) -> bool:
    """Returns True if a file lies in the package's zoo, where nothing may be written."""
    return file.resolve().is_relative_to(FOLDER.resolve())
