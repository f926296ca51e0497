"""What the tests share: a cache of their own, the command in this process, and small datasets on disk."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

if "PYTEST_XDIST_WORKER" in os.environ:  # before anything imports torch: each worker has a core, not all of them
    os.environ.setdefault("OMP_NUM_THREADS", "1")
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
COMMAND = (sys.executable, "-m", "bnn_exp")  # bnn-train, wherever it is installed, or in a source tree


def pytest_configure(config):
    """`pytest -m gpu` runs the tests that mean a GPU. All other tests mean the CPU: no process of theirs finds a GPU.

    This comes before anything imports torch or triton, whose kernels run in its interpreter then.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored, by all processes of the tests too
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items):
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a GPU, and `pytest -m gpu`"))


def where() -> str:
    """The device of tests that run on both: `cuda` in `pytest -m gpu`, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def on_both() -> list[pytest.MarkDecorator]:
    """The marks of tests that run on the device `where()`."""
    return [pytest.mark.gpu] if where() == "cuda" else []


@pytest.fixture(scope="session")
def triton_runs():
    """Triton is there and, where there is no GPU, its interpreter works with the NumPy that is there."""
    pytest.importorskip("triton")
    if where() == "cpu":
        import torch
        from triton.runtime.errors import InterpreterError

        from bnn_exp.bits import pack, to_tiles
        from bnn_exp.bits.cuda import inference

        try:
            inference.bit_sums(pack(torch.ones(1, 64)), to_tiles(pack(torch.ones(1, 64))), 1, 0)
        except InterpreterError as error:
            if "only 0-dimensional arrays can be converted" in str(error):
                pytest.skip("this version of Triton's interpreter does not run with NumPy 2.5 or later")
            raise


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory):
    os.environ["BNN_EXP_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def bnn_train(tmp_path, monkeypatch, capfd):
    """Runs the command in this process, in an empty folder: code, out, err and the run directories so far."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> SimpleNamespace:
        capfd.readouterr()  # what fixtures said
        code = command(monkeypatch, *arguments)
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err, runs=sorted(f.parent for f in tmp_path.rglob("summary.json")))

    return run


def command(patch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The command in this process and folder: its exit code."""
    from bnn_exp.cli import main

    patch.setattr(sys, "argv", ["bnn-train", *arguments])
    try:
        return main()
    except SystemExit as error:
        return error.code or 0


@pytest.fixture(scope="session")
def copy_of_run(tmp_path_factory) -> Callable[..., Path]:
    """Makes `folder` a copy of the run of some overrides, which is trained when it is first asked for."""
    trained: dict[tuple[str, ...], Path] = {}

    def copy(folder: Path, *overrides: str) -> Path:
        if overrides not in trained:
            place = tmp_path_factory.mktemp("trained")
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(place)
                assert command(patch, *overrides, "hydra.run.dir=run") == 0
            trained[overrides] = place / "run"
        return Path(shutil.copytree(trained[overrides], folder))

    return copy


@pytest.fixture
def forget(tmp_path_factory):
    """Forgets what was registered since the test began, when it is called and at the end: as a new process would."""
    from hydra.core.config_store import ConfigStore

    from bnn_exp.config import datasets as datasets
    from bnn_exp.config import losses, models, plugins, rules
    from bnn_exp.training import callbacks

    registries = [rules.RULES, models.MODELS, datasets.DATASETS, losses.LOSSES]
    entries = [(dict(r), dict(r._definitions)) for r in registries]
    called = list(callbacks.CALLBACKS)
    known, programs, modules, path = dict(plugins._loaded), dict(plugins._programs), set(sys.modules), list(sys.path)

    def again() -> None:
        for registry, (own, definitions) in zip(registries, entries, strict=True):
            for name in registry.keys() - own.keys():
                for group in ("optimizer", "model", "dataset", "trainer"):
                    for choice in (f"{name}.yaml", f"of_{name}.yaml"):
                        ConfigStore.instance().repo.get(group, {}).pop(choice, None)
            registry.clear()
            registry.update(own)
            registry._definitions = dict(definitions)
        callbacks.CALLBACKS[:] = called
        for there, before in ((plugins._loaded, known), (plugins._programs, programs)):
            there.clear()
            there.update(before)
        for name in set(sys.modules) - modules:
            if Path(getattr(sys.modules[name], "__file__", None) or __file__).is_relative_to(tmp_path_factory.getbasetemp()):
                del sys.modules[name]
        sys.path[:] = path

    yield again
    again()


def code_of(page: str) -> list[str]:
    """The Python code of a page of docs/, block by block."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


@pytest.fixture
def summary():
    return lambda directory: json.loads((Path(directory) / "summary.json").read_text())


def forkserver():
    """Starts processes from a server that has imported torch once, as the ranks of the command are."""
    from bnn_exp.training.distributed.launch import PRELOAD

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOAD, "bnn_exp.training.run", "pytest", "conftest"])
    return context


def real(name: str) -> Path:
    folder = Path(os.environ.get("BNN_EXP_DATA", "")) / name
    if "BNN_EXP_DATA" not in os.environ or not folder.is_dir():
        pytest.skip(f"needs the real dataset: set BNN_EXP_DATA to a folder that holds {name}/ in the hub's layout")
    return folder.resolve()


@pytest.fixture(scope="session")
def mnist_folder():
    """The real MNIST in the hub's layout: $BNN_EXP_DATA/mnist."""
    return real("mnist")


@pytest.fixture(scope="session")
def cifar10_folder():
    """The real CIFAR-10 in the hub's layout: $BNN_EXP_DATA/cifar10."""
    return real("cifar10")


def write_dataset(folder: Path, train, test, label_names=("no", "yes"), labels=True) -> Path:
    """A dataset as the hub serves it: one parquet a split. `train` and `test` are lists of images (uint8 arrays)."""
    import datasets

    folder.mkdir(parents=True, exist_ok=True)
    for split, images in (("train", train), ("test", test)):
        features = {"picture": datasets.Image()} | ({"kind": datasets.ClassLabel(names=list(label_names))} if labels else {})
        columns = {"picture": images} | ({"kind": [i % len(label_names) for i in range(len(images))]} if labels else {})
        table = datasets.Dataset.from_dict(columns, datasets.Features(features))
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def random_images(count: int, height: int = 6, width: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width), dtype=np.uint8) for _ in range(count)]


def plain_config(*overrides: str) -> dict:
    """The plain values of a configuration."""
    import hydra
    from omegaconf import OmegaConf

    from bnn_exp.cli import CONF
    from bnn_exp.config import versions

    with hydra.initialize_config_dir(str(CONF), **versions.HYDRA):
        return OmegaConf.to_container(hydra.compose("config", list(overrides)), resolve=True)


def settings_of(*overrides: str):
    """The settings that the overrides give."""
    from hydra import compose, initialize_config_dir

    from bnn_exp.cli import CONF
    from bnn_exp.config import versions
    from bnn_exp.config.settings import load_settings

    with initialize_config_dir(str(CONF), **versions.HYDRA):
        return load_settings(compose("config", list(overrides)))


def trainer_of(*overrides: str):
    """A new Trainer on digits, on the CPU unless they say `device=cuda`, for the configuration that the overrides give."""
    return trainer_for(settings_of(*overrides))


def trainer_for(settings, ranks=None):
    """The same for settings; with `ranks`, that of one rank."""
    from bnn_exp.training.plan import Plan
    from bnn_exp.training.setup import prepare

    return prepare(Plan(settings, {}, None, device="cuda:0" if settings.device == "cuda" else "cpu"), Path(), ranks)


RNG = np.random.default_rng(0)


def picture():
    return Image.fromarray(RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8))


def pictures(root, classes, n=4, make=picture, suffix="png", splits=("train/", "test/")) -> Path:
    """SPLIT/CLASS/0.png … of `n` pictures each; the splits end in a slash."""
    for split in splits:
        for name in classes:
            folder = Path(f"{root}/{split}{name}")
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(n):
                make().save(folder / f"{i}.{suffix}")
    return Path(root)


def table(file, labels, names, images=None):
    """A parquet file with the classes `names`; labels are plain values where `names` is None."""
    import datasets

    kind = datasets.ClassLabel(names=names) if names else datasets.Value(names or _kind(labels))
    features = datasets.Features({"image": datasets.Image(), "label": kind})
    file.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": images or [picture() for _ in labels], "label": labels}
    datasets.Dataset.from_dict(columns, features).to_parquet(file)


def _kind(labels):
    return {str: "string", bool: "bool", int: "int64"}[type(labels[0])]


def own(path, **settings):
    """The dataset in a folder of one's own."""
    from bnn_exp.data.sources import read

    return read("local", path=str(path), **settings)


def refused(path, **settings) -> str:
    """Returns the two or three lines that refuse a folder."""
    from bnn_exp.errors import UserError

    with pytest.raises(UserError) as error:
        own(path, **settings)
    lines = str(error.value).splitlines()
    assert 2 <= len(lines) <= 3 and max(map(len, lines)) < 500
    return str(error.value)


def idx(values: np.ndarray) -> bytes:
    """The content of an IDX file."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()
