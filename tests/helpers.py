"""Functions that several tests share: they make settings, trainers and small datasets, run the command and read its pages."""

import json
import multiprocessing
import os
import re
import shlex
import struct
import subprocess
import sys
from collections.abc import Iterable
from contextlib import contextmanager, nullcontext
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bnn_exp.errors import UserError
from bnn_exp.models.mlp import MLP
from bnn_exp.records.runs import Record

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "bnn_exp")  # bnn-train, also where its script is not installed
TINY = ("model.hidden_size=8", "trainer.epochs=3", "trainer.batch_size=64", "trainer.limit_batches=4")
VOID = {"meta", "img", "link", "br", "input"}
EVIL = ["<script>alert(1)</script>", "\"'&amp;</table>", "{{ 7 * 7 }}"]
HARD = (0.0, -0.0, 1.0, -1.0, 1e-30, -1e-38, 1e-45, 1e5, -3e3)  # scales and shifts at the edges of float32 arithmetic
SMALL = ("model.hidden_size=32", "trainer.epochs=4", "trainer.batch_size=64", "seed=3")
TIMES = {"train_seconds", "eval_seconds", "images_per_second"}
aten = torch.ops.aten
# Operators whose result Python reads, and functions that make a tensor on the CPU if no device is given
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten.is_nonzero, aten.unique_dim}
MAKES = {torch.tensor, torch.empty, torch.zeros, torch.ones, torch.full, torch.arange, torch.rand, torch.randn, torch.randint}


def drawn(count: int, seed: int, tensor: int, step: int) -> torch.Tensor:
    """Returns the random numbers that a rule with this seed draws for `count` weights of a tensor, float32 on the CPU."""
    from bnn_exp.bits.draws import Purpose, number
    from bnn_exp.bits.philox import Philox

    return Philox(number(Purpose.MASK, seed, tensor) >> 1, torch.tensor(step)).uniform(count)


def where() -> str:
    """Returns the device of tests that run on a CPU and on a GPU: "cuda" under `pytest -m gpu`, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def on_both() -> list[pytest.MarkDecorator]:
    """Returns the marks of tests that run on the device `where()`."""
    return [pytest.mark.gpu] if where() == "cuda" else []


COMPILER = """
import sys
from types import SimpleNamespace

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

capability, arguments, launched = int(sys.argv[1]), sys.argv[2:], []
current = {"get_current_target": GPUTarget("cuda", capability, 32), "get_current_device": 0, "get_current_stream": 0}
driver.set_active(SimpleNamespace(**{name: lambda *_, value=value: value for name, value in current.items()}))


def compiled(kernel, grid):
    return lambda *given, **named: launched.append((kernel, kernel.warmup(*given, grid=grid, **named)))


JITFunction.__getitem__ = compiled
"""


def compiled(cache: Path, capability: int, code: str, *arguments: str) -> list[str]:
    """Runs Python code that launches kernels of Triton. Each launch compiles the kernel for a GPU, in place of running.

    The machine needs no GPU. The code finds its `arguments`, and the pairs of kernel and binary that it has `launched`.

    Args:
        cache: an empty folder for the binaries.
        capability: the compute capability of the GPU, 80 or 90.

    Returns:
        The words that the code prints.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", COMPILER + code, str(capability), *arguments]
    done = subprocess.run(command, env=environment | {"TRITON_CACHE_DIR": str(cache)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def rest_slow(cases: Iterable, quick: int = 1) -> list:
    """Returns cases for `parametrize`: all after the first `quick` are marked slow, because they take long and add little."""
    cases = [*cases]
    return [*cases[:quick], *(pytest.param(case, marks=pytest.mark.slow) for case in cases[quick:])]


def command(patch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Runs `bnn-train` in this process and in the current folder. Returns its exit code."""
    from bnn_exp.cli import main

    patch.setattr(sys, "argv", ["bnn-train", *arguments])
    try:
        return main()
    except SystemExit as error:
        return error.code or 0


def code_of(page: str) -> list[str]:
    """Returns the blocks of Python code of the page docs/`page`."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def forkserver():
    """Returns the multiprocessing context of the ranks: a server imports torch once, and every process is forked from it."""
    from bnn_exp.training.launch import PRELOAD

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD, "bnn_exp.training.run", "pytest", "helpers"])
    return context


def real(name: str) -> Path:
    """Returns the folder $BNN_EXP_DATA/`name` with a real dataset. Skips the test where there is none."""
    folder = Path(os.environ.get("BNN_EXP_DATA", "")) / name
    if "BNN_EXP_DATA" not in os.environ or not folder.is_dir():
        pytest.skip(f"needs the real dataset: set BNN_EXP_DATA to a folder that holds {name}/ in the hub's layout")
    return folder.resolve()


def write_dataset(folder: Path, train, test, label_names=("no", "yes"), labels=True) -> Path:
    """Writes a dataset as the Hugging Face hub serves it, one Parquet file for each split. Returns `folder`.

    `train` and `test` are lists of images: uint8 arrays [height, width] or [height, width, channels].
    """
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    for split, images in (("train", train), ("test", test)):
        features = {"picture": datasets.Image()} | ({"kind": datasets.ClassLabel(names=list(label_names))} if labels else {})
        columns = {"picture": images} | ({"kind": [i % len(label_names) for i in range(len(images))]} if labels else {})
        table = datasets.Dataset.from_dict(columns, datasets.Features(features))
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def random_images(count: int, height: int = 6, width: int = 5) -> list[np.ndarray]:
    """Returns `count` random grey images, uint8 [height, width]."""
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width), dtype=np.uint8) for _ in range(count)]


def plain_config(*overrides: str) -> dict:
    """Returns the composed configuration as plain dicts, lists and values."""
    import hydra
    from omegaconf import OmegaConf

    from bnn_exp.cli import CONF
    from bnn_exp.config import versions

    with hydra.initialize_config_dir(str(CONF), **versions.HYDRA):
        return OmegaConf.to_container(hydra.compose("config", list(overrides)), resolve=True)


def settings_of(*overrides: str):
    """Returns the typed settings of the composed configuration."""
    from hydra import compose, initialize_config_dir

    from bnn_exp.cli import CONF
    from bnn_exp.config import versions
    from bnn_exp.config.settings import load_settings

    with initialize_config_dir(str(CONF), **versions.HYDRA):
        return load_settings(compose("config", list(overrides)))


def trainer_of(*overrides: str):
    """Returns a new Trainer on the digits dataset, on the CPU unless the overrides contain `device=cuda`."""
    return trainer_for(settings_of(*overrides))


def trainer_for(settings, ranks=None):
    """Returns a new Trainer for the settings; with `ranks`, the RankTrainer of this rank."""
    from bnn_exp.training.plan import Plan
    from bnn_exp.training.setup import prepare

    return prepare(Plan(settings, {}, None, device="cuda:0" if settings.device == "cuda" else "cpu"), Path(), ranks)


def picture():
    """Returns a random RGB image of 8×8 pixels."""
    return Image.fromarray(np.random.randint(0, 256, (8, 8, 3), dtype=np.uint8))


def pictures(root, classes, n=4, make=picture, suffix="png", splits=("train/", "test/")) -> Path:
    """Writes `n` images for each split and class: `root`/SPLIT/CLASS/0.png and so on. Returns `root`. Splits end in a slash."""
    for split in splits:
        for name in classes:
            folder = Path(f"{root}/{split}{name}")
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(n):
                make().save(folder / f"{i}.{suffix}")
    return Path(root)


def table(file, labels, names, images=None):
    """Writes a Parquet file of images and labels. Labels are numbers of classes; without `names` they are plain values."""
    import datasets

    kind = datasets.ClassLabel(names=names) if names else datasets.Value(names or _kind(labels))
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": images or [picture() for _ in labels], "label": labels}
    datasets.Dataset.from_dict(columns, features).to_parquet(file)


def _kind(labels):
    return {str: "string", bool: "bool", int: "int64"}[type(labels[0])]


def own(path, **settings):
    """Reads the user's own dataset in the folder or file `path`: `dataset=local`."""
    from bnn_exp.data.sources import read

    return read("local", path=str(path), **settings)


def refused(path, **settings) -> str:
    """Returns the message of two or three lines with which reading `path` fails."""
    with pytest.raises(UserError) as error:
        own(path, **settings)
    lines = str(error.value).splitlines()
    assert 2 <= len(lines) <= 3 and max(map(len, lines)) < 500
    return str(error.value)


def idx(values: np.ndarray) -> bytes:
    """Returns the content of an IDX file with these uint8 values."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def contents(folder: Path) -> dict[Path, bytes]:
    """Returns the content of each file below `folder`."""
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


class Page(HTMLParser):
    """The elements of an HTML page as (tag, attributes, text), in the order in which they end.

    Raises:
        AssertionError: an element is not closed.
    """

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.text, self.open, self.elements = text, [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag in VOID:
            self.elements.append((tag, dict(attributes), ""))
        else:
            self.open.append((tag, dict(attributes), []))

    def handle_endtag(self, tag):
        name, attributes, texts = self.open.pop()
        assert name == tag
        self.elements.append((tag, attributes, "".join(texts)))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), ""))

    def handle_data(self, data):
        for _, _, texts in self.open:
            texts.append(data)

    def all(self, tag, **having):
        return [e for e in self.elements if e[0] == tag and all(e[1].get(key) == value for key, value in having.items())]

    def rows(self):
        """Returns the texts of the cells, for each row of all tables."""
        rows, cells = [], []
        for tag, _, text in self.elements:
            if tag in ("td", "th"):
                cells.append(" ".join(text.split()))
            elif tag == "tr":
                rows.append(cells)
                cells = []
        return rows

    def charts(self):
        """Returns the plotted values of each chart, by its title."""
        titles = [e[2] for e in self.elements if e[0] in ("h3", "script")]
        return {title: json.loads(values) for title, values in pairwise(titles) if values.startswith('{"')}


def record_of(count: int, layers: int, classes: list[str], **summary) -> Record:
    """Returns the Record of a run of `count` epochs with random numbers. No files are written."""
    rng = np.random.default_rng(0)
    names = [f"layers.{i}.weight" for i in range(layers)]
    lines = []
    for i in range(count):
        numbers = rng.random(6).tolist()
        line = {"epoch": i + 1, "train_loss": numbers[0], "train_seconds": numbers[1], "eval_seconds": numbers[2]}
        line |= {"images_per_second": 1e4 * numbers[3], "train_accuracy": 100 * numbers[4], "test_accuracy": 100 * numbers[5]}
        line |= {"delta": 0.1, "flips": dict(zip(names, rng.integers(0, 999, layers).tolist(), strict=True))}
        lines.append(line | {"ones": dict(zip(names, rng.integers(450, 550, layers).tolist(), strict=True))})
    about = {"kind": "BinaryLinear", "output": [64], "binary": 1000, "real": 0, "multiply_adds": 1000}
    facts = {
        "status": "completed",
        "classes": classes,
        "confusion": rng.integers(0, 50, (len(classes), len(classes))).tolist(),
        "layers": [{"name": name.removesuffix(".weight"), **about} for name in names],
    }
    return Record(Path("run"), {"trainer": {"epochs": count}}, facts | summary, lines)


@torch.no_grad()
def with_any_norms(network: nn.Module) -> nn.Module:
    """Puts the network in evaluation mode and draws all numbers of its BatchNorms at random. Returns the network.

    A third of the weights, biases and means come from `HARD`; a tenth of the variances is 0.
    """
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)):
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            if tensor is not None:
                tensor.normal_(0, 10 ** torch.empty(()).uniform_(-3, 2).item())
                hard = torch.tensor(HARD)[torch.randint(0, len(HARD), tensor.shape)]
                tensor.copy_(torch.where(torch.rand_like(tensor) < 1 / 3, hard, tensor))
        norm.running_var.uniform_(0, 100).mul_(torch.rand_like(norm.running_var) > 0.1)
    return network.eval()


def following(text: str) -> list[str]:
    """Returns the arguments of the command in the only `next: bnn-train …` line of `text`, split as a shell does."""
    (line,) = re.findall(r"^next(?: \([^)]*\))?: bnn-train ?(.*)$", text, re.MULTILINE)
    return shlex.split(line)


def epochs(directory):
    """Returns the lines of metrics.jsonl, one dict for each epoch."""
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def timeless(lines):
    """Returns the lines of metrics.jsonl without the measured times."""
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def small_trainer(*overrides, mask="top", real="sgd"):
    """Returns a new Trainer of a small MLP that HyperMask trains."""
    return trainer_of(*SMALL, "optimizer=hypermask", f"optimizer.mask={mask}", f"real_optimizer={real}", *overrides)


def other_data(folder, seed=0):
    """Writes random 8×8 images: two splits, ten classes, two images for each class. Returns `folder`."""
    rng = np.random.default_rng(seed)
    for split in ("train", "test"):
        for name in "0123456789":
            (folder / split / name).mkdir(parents=True)
            for i in range(2):
                Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / split / name / f"{i}.png")
    return folder


def study_run(directory: Path, seed: int, accuracy: float, epochs: int = 4, status="completed", **config) -> Record:
    """Returns the Record of one run of a sweep. `config` holds further settings; no files are written."""
    lines = record_of(epochs, 1, []).epochs
    lines[-1]["test_accuracy"] = accuracy
    summary = {"status": status, "test_accuracy": accuracy, "train_seconds": 3.0, "epochs": epochs, "error": None}
    return Record(directory, {**config, "seed": seed}, summary, lines)


class WaitsForTheGPU(RuntimeError):
    pass


class NeverWaits(TorchDispatchMode):
    """Context manager: raises WaitsForTheGPU where Python would wait for a GPU, or makes a tensor without a given device."""

    def __enter__(self):
        self.makes = Makes()
        self.makes.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.makes.__exit__(*error)

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        packet = operator.overloadpacket
        boolean = packet == aten.index and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if packet in WAITS or boolean:
            raise WaitsForTheGPU(operator)
        return operator(*args, **(kwargs or {}))


class Makes(TorchFunctionMode):
    """Context manager: raises WaitsForTheGPU where a tensor is made without a given device."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in MAKES and (kwargs or {}).get("device") is None:
            raise WaitsForTheGPU(function)
        return function(*args, **(kwargs or {}))


class Tape(TorchDispatchMode):
    """A replacement for a CUDA graph: it records operations and repeats them on the same tensors.

    After the recording, `rewind` restores all tensors, because recording a graph executes nothing.
    """

    def __init__(self):
        super().__init__()
        self.notes, self.undo = [], []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = (
            zip(operator._schema.arguments, args, strict=False),
            ((a, kwargs.get(a.name)) for a in operator._schema.arguments),
        )
        for argument, x in (pair for pairs in given for pair in pairs):
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written or argument.name.startswith("running_"):  # batch norm writes to these, but its schema does not say so
                self.undo += [(t, t.detach().clone()) for t in tree_leaves(x) if isinstance(t, torch.Tensor)]
        results = operator(*args, **kwargs)
        self.notes.append((operator, args, kwargs, results))
        return results

    @torch.no_grad()
    def rewind(self):
        for t, before in reversed(self.undo):
            t.copy_(before)

    def pool(self):
        return "a pool"

    @torch.no_grad()
    def replay(self):
        for operator, args, kwargs, results in self.notes:
            again = operator(*args, **kwargs)
            for place, x in zip(tree_leaves(results), tree_leaves(again), strict=True):
                if operator.namespace == "c10d" and isinstance(x, torch.ScriptObject):  # an exchange between ranks
                    x.wait()
                elif isinstance(x, torch.Tensor) and x.data_ptr() != place.data_ptr():
                    place.copy_(x)


def use_tapes(patch: pytest.MonkeyPatch) -> list[Tape]:
    """Replaces CUDA graphs by tapes. Returns the list of all tapes that will be recorded."""
    made, stream = [], SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)

    def new():
        made.append(Tape())
        return made[-1]

    @contextmanager
    def record(tape, pool, stream, capture_error_mode):
        assert pool in (None, "a pool") and stream is not None and capture_error_mode == "thread_local"
        with tape, NeverWaits():
            yield
        tape.rewind()

    patch.setattr(torch.cuda, "CUDAGraph", new)
    patch.setattr(torch.cuda, "graph", record)
    patch.setattr(torch.cuda, "Stream", lambda *device: stream)
    patch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    patch.setattr(torch.cuda, "current_stream", lambda: stream)
    patch.setattr(torch.cuda, "current_device", lambda: 0)
    return made


def random_mlp(seed: int) -> tuple[MLP, torch.Tensor]:
    """Returns an MLP of random shape in evaluation mode with random BatchNorms, and images uint8 [200, 1, 1, inputs] for it."""
    torch.manual_seed(seed)
    inputs, hidden = (int(torch.randint(1, n, ())) for n in (100, 90))
    encoding = ("boolean", "bipolar", "centred")[seed % 3]
    network = with_any_norms(MLP(inputs, 10, hidden, 1 + seed % 4, encoding, 1.0, seed % 5 == 4))
    return network, torch.randint(0, 256, (200, 1, 1, inputs), dtype=torch.uint8)
