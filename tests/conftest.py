"""Fixtures of all tests. `helpers` is imported inside them: it imports torch, and `pytest_configure` comes first."""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

if "PYTEST_XDIST_WORKER" in os.environ:  # before anything imports torch: each worker has a core, not all of them
    os.environ.setdefault("OMP_NUM_THREADS", "1")
import pytest


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


@pytest.fixture(scope="session")
def triton_runs():
    """Triton is there and, where there is no GPU, its interpreter works with the NumPy that is there."""
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
                pytest.skip("this version of Triton's interpreter does not run with NumPy 2.5 or later")
            raise


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory):
    os.environ["BNN_EXP_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def bnn_train(tmp_path, monkeypatch, capfd):
    """Runs the command in this process, in an empty folder: code, out, err and the run directories so far."""
    from helpers import command

    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> SimpleNamespace:
        capfd.readouterr()  # what fixtures said
        code = command(monkeypatch, *arguments)
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err, runs=sorted(f.parent for f in tmp_path.rglob("summary.json")))

    return run


@pytest.fixture(scope="session")
def copy_of_run(tmp_path_factory) -> Callable[..., Path]:
    """Makes `folder` a copy of the run of some overrides, which is trained when it is first asked for."""
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


@pytest.fixture
def summary():
    return lambda directory: json.loads((Path(directory) / "summary.json").read_text())


@pytest.fixture(scope="session")
def mnist_folder():
    """The real MNIST in the hub's layout: $BNN_EXP_DATA/mnist."""
    from helpers import real

    return real("mnist")


@pytest.fixture(scope="session")
def cifar10_folder():
    """The real CIFAR-10 in the hub's layout: $BNN_EXP_DATA/cifar10."""
    from helpers import real

    return real("cifar10")


@pytest.fixture
def stopping_at(monkeypatch):
    """Once called, it sends `signals` to a training just before step `batch` of epoch `epoch`, both counted from 0."""
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
