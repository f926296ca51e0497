"""Puts the network of a run into the zoo of the package, and prints its row for docs/zoo.md.

    bnn-train experiment=mnist_best dataset.path=FOLDER hydra.run.dir=RUN
    python scripts/add_to_zoo.py RUN mnist_best

The file holds all settings of the run except the folder of the data and the device.
"""

import sys
from pathlib import Path

from safetensors.torch import save

from bnn_exp.bits import bits_sha256
from bnn_exp.config import zoo
from bnn_exp.nn import binary_parameters
from bnn_exp.records import summary
from bnn_exp.records.files import file_sha256, write_json
from bnn_exp.records.model import load_model, save_model
from bnn_exp.records.restore_norms import NORMS

# The facts that `task=evaluate` compares with, and those of the machine that trained the network
KEPT = ("status", "dataset", "test_accuracy", "seed", "device", "precision", "versions")


def add(run: Path, name: str) -> str:
    """Writes the folder of the network `name` in the zoo, and returns its row of the table."""
    folder = zoo.FOLDER / name
    network, about = load_model(run)
    config = about["config"] | {"dataset": about["config"]["dataset"] | {"path": None}, "device": "auto"}
    save_model(folder / "model.safetensors", network, config, tuple(about["image_shape"]), tuple(about["classes"]))
    if (run / "checkpoints/last.pt").is_file():
        network.train()  # restores the statistics of BatchNorm
        bits = {parameter for parameter, _ in binary_parameters(network)}
        real = {key: value for key, value in network.state_dict().items() if key not in bits}
        (folder / NORMS).write_bytes(save(real))
    ended = summary.read(run)
    write_json(folder / "summary.json", {key: ended[key] for key in KEPT if key in ended})
    return row(name)


def row(name: str) -> str:
    """Returns the row of docs/zoo.md for a network of the zoo."""
    folder = zoo.FOLDER / name
    file, accuracy = folder / "model.safetensors", summary.read(folder)["test_accuracy"]
    hashes = f"`{file_sha256(file)}` | `{bits_sha256(load_model(folder)[0])}`"
    return f"| `zoo/{name}` | {accuracy:.2f} | {file.stat().st_size:,} | {hashes} |"


if __name__ == "__main__":
    print(add(Path(sys.argv[1]), sys.argv[2]))
