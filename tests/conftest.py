"""The fixtures that every test can use.

They import `helpers` inside their functions: `helpers` imports torch, and `pytest_configure` must run before torch is imported.
"""

import copy
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

if "PYTEST_XDIST_WORKER" in os.environ:  # torch reads this when it is imported: every worker shall use one core
    os.environ.setdefault("OMP_NUM_THREADS", "1")
import pytest


def pytest_configure(config):
    """Hides every GPU from the tests, except under `pytest -m gpu`, and lets Triton interpret its kernels on the CPU.

    torch and Triton read these variables when they are imported, which happens after this function.
    """
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the processes of the tests would inherit that SIGHUP is ignored
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items):
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a GPU, and `pytest -m gpu`"))


@pytest.fixture(scope="session")
def triton_runs():
    """Skips the test if Triton is not installed, or if its interpreter does not run with the installed NumPy."""
    from helpers import where

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
                pytest.skip("this version of Triton's interpreter does not run with the installed NumPy")
            raise


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory):
    from bnn_exp.training import measured

    os.environ["BNN_EXP_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    for kind in ("matrices", "bits"):
        measured.keep_products(kind, {"fp32": 1.0, "bf16": 1.0})  # so engine.precision=auto is fp32 on any processor


@pytest.fixture(autouse=True, scope="session")
def _files_of_conf():
    """Parses each file of conf/ once in a process. Hydra parses some thirty of them for every command."""
    from omegaconf import OmegaConf

    from bnn_exp.config.registry import CONF

    parse, parsed = OmegaConf.load, {}

    def load(file):
        name = str(getattr(file, "name", file))
        if not Path(name).is_relative_to(CONF):
            return parse(file)
        if name not in parsed:
            parsed[name] = parse(file)
        return copy.deepcopy(parsed[name])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OmegaConf, "load", load)
        yield


@pytest.fixture(autouse=True)
def _seeds():
    """Seeds all global random generators before each test."""
    import numpy as np
    import torch

    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def bnn_train(tmp_path, monkeypatch, capfd):
    """Returns a function that runs `bnn-train` in this process, in an empty folder.

    The function returns the exit `code`, the texts `out` and `err`, and `runs`, all run directories in the folder.
    """
    from helpers import command

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> SimpleNamespace:
        capfd.readouterr()  # drops what fixtures have printed
        code = command(monkeypatch, *arguments)
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err, runs=sorted(f.parent for f in tmp_path.rglob("summary.json")))

    return run


@pytest.fixture(scope="session")
def copy_of_run(tmp_path_factory) -> Callable[..., Path]:
    """Returns a function that copies the run of some overrides to `folder`. Each run is trained once in a process."""
    from helpers import command

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
    """Returns a function that forgets what the test has registered and imported from its folders, like a new process.

    The fixture also calls the function after the test.
    """
    from hydra.core.config_store import ConfigStore

    from bnn_exp.config import datasets as datasets
    from bnn_exp.config import losses as losses
    from bnn_exp.config import models as models
    from bnn_exp.config import rules as rules
    from bnn_exp.training import callbacks as callbacks

    held = [(owner, owner.copy()) for owner in _registered()]
    groups = ("dataset", "model", "optimizer", "trainer")
    choices = {group: set(ConfigStore.instance().repo.get(group, {})) for group in groups}
    modules, path = set(sys.modules), list(sys.path)

    def again() -> None:
        for owner, before in held:
            owner.clear()
            (owner.update if isinstance(owner, dict) else owner.extend)(before)
        for group, before in choices.items():
            files = ConfigStore.instance().repo.get(group, {})
            for name in files.keys() - before:
                del files[name]
        for name in set(sys.modules) - modules:
            if Path(getattr(sys.modules[name], "__file__", None) or __file__).is_relative_to(tmp_path_factory.getbasetemp()):
                del sys.modules[name]
        sys.path[:] = path

    yield again
    again()


def _registered() -> list[dict | list]:
    """Returns the dicts and lists in which modules of the package keep what a user registers, each once."""
    modules = [
        m for name, m in sys.modules.items() if name.startswith("bnn_exp.config.") or name == "bnn_exp.training.callbacks"
    ]
    owners = [value for module in modules for name, value in vars(module).items() if not name.startswith("__")]
    owners += [
        value for owner in owners if isinstance(owner, dict) and hasattr(owner, "__dict__") for value in vars(owner).values()
    ]
    return list({id(owner): owner for owner in owners if isinstance(owner, dict | list)}.values())


@pytest.fixture
def summary():
    return lambda directory: json.loads((Path(directory) / "summary.json").read_text())


@pytest.fixture(scope="session")
def mnist_folder():
    """Returns the folder $BNN_EXP_DATA/mnist, which holds MNIST in the layout of the Hugging Face hub."""
    from helpers import real

    return real("mnist")


@pytest.fixture(scope="session")
def cifar10_folder():
    """Returns the folder $BNN_EXP_DATA/cifar10, which holds CIFAR-10 in the layout of the Hugging Face hub."""
    from helpers import real

    return real("cifar10")


@pytest.fixture
def stopping_at(monkeypatch):
    """Returns a function that makes trainings send `signals` to this process just before a step.

    `epoch` and `batch` name the step; both count from 0.
    """
    from bnn_exp.training.trainer import Trainer

    original = Trainer.train_on

    def stopping(epoch, batch, *signals):
        def step(self, *given):
            if (self.progress.epoch, self.progress.batch) == (epoch, batch):
                for number in signals:
                    os.kill(os.getpid(), number)
            return original(self, *given)

        monkeypatch.setattr(Trainer, "train_on", step)

    yield stopping
    monkeypatch.setattr(Trainer, "train_on", original)
