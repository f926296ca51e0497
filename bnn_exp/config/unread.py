"""Tables that say which settings a command reads. Refuses an override that nothing would read. Imports no torch.

An override without effect is a mistake that looks like a result: a sweep over such a setting compares equal runs.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bnn_exp.config import command_line, rules
from bnn_exp.config.datasets import DATASETS, SHARED
from bnn_exp.config.groups import Settings
from bnn_exp.config.models import MODELS, weights_of
from bnn_exp.config.request import NETWORK_TASKS, Request
from bnn_exp.errors import UserError


@dataclass(frozen=True)
class Case:
    """The facts of a command that decide which keys it reads. The table `COMMAND` uses `request`, the others `settings`."""

    given: Mapping[str, str]  # the keys of the overrides, with their values as text
    settings: Settings | None = None
    request: Request | None = None
    sweep: bool = False

    @property
    def trains(self) -> bool:
        """True if the command reads the settings of a training."""
        task, measured = self.request.task, self.request.benchmark.name
        if task == "benchmark":
            return measured == "training" or (measured == "inference" and not self.request.from_)
        return task == "train"

    @property
    def measures_machine(self) -> bool:
        """True if the command measures this machine, and no network of the user."""
        return self.request.task == "benchmark" and self.request.benchmark.name == "machine"

    @property
    def rule(self) -> str:
        """The overrides that choose the rule, such as `optimizer=hypermask optimizer.mask=top`."""
        mask = f" optimizer.mask={self.settings.optimizer.mask}" if self.settings.optimizer.name == "hypermask" else ""
        return f"optimizer={self.settings.optimizer.name}{mask}"


@dataclass(frozen=True)
class Entry:
    """A row of a table: keys of the configuration, a test if something reads the keys, and the message if nothing reads them.

    A key stands also for the keys below it: `report` stands also for `report.x`.
    """

    keys: tuple[str, ...]
    read: Callable[[Case], Any]  # returns a true value if something reads the keys
    why_not: Callable[[Case], str]
    allowed: Callable[[Case], str]


def _entry(keys: str, read: Callable[[Case], Any], why_not: str | Callable, allowed: str | Callable) -> Entry:
    texts = (text if callable(text) else (lambda case, text=text: text) for text in (why_not, allowed))
    return Entry(tuple(keys.split()), read, *texts)


def _task(case: Case) -> str:
    if case.measures_machine:
        return "task=benchmark benchmark=machine does not read it"
    return f"task={case.request.task}{' from=RUN' if case.request.task == 'benchmark' else ''} does not read it"


def _rule(case: Case) -> str:
    return f"{case.rule} does not read it"


def _strength(case: Case) -> str:
    name = rules.strength(case.settings.optimizer)
    return f"its strength, optimizer.{name}=…" if name else "the settings of this rule"


def _masks(*masks: str) -> Callable[[Case], bool]:
    """Returns a function that says if the rule of a case reads a setting that HyperMask reads for `masks` alone.

    For HyperMask the function returns True if its mask is one of `masks`. For any other rule it returns True, because such a
    rule reads all settings that it has.
    """
    return lambda case: case.settings.optimizer.name != "hypermask" or case.settings.optimizer.mask in masks


def _several_devices(case: Case) -> bool:
    return case.settings.engine.devices > 1


def _batch_norms(case: Case) -> bool:
    return getattr(case.settings.model, "normalization", "batch") == "batch"


def _real_parameters(case: Case) -> bool:
    return getattr(case.settings.model, "real_parameters", True)


def _hidden(case: Case) -> bool:
    return getattr(case.settings.model, "num_layers", 2) > 1


def _activations(case: Case) -> bool:
    return getattr(case.settings.model, "binary_activations", True)


def _names_network(case: Case) -> bool:
    """Returns True if the setting `which` has a network to choose: of the run that a task reads, or for `min_accuracy`."""
    if case.request.task == "train":
        return case.request.min_accuracy is not None
    return case.request.task in NETWORK_TASKS and bool(case.request.from_)


def _reads_engine(case: Case) -> bool:
    only_threads = set(_below("engine", case.given)) == {"engine.threads"}
    return case.trains or (case.request.task == "benchmark" and only_threads)


RUN = "a training: task=train, or task=benchmark benchmark=training"
FROM = "config=RUN (train with its settings), init_from=RUN (fine-tune it), resume=RUN (continue it), task=evaluate from=RUN, …"
WHICH = "task=evaluate from=RUN which=best, …; min_accuracy=N which=best; init_from=RUN/checkpoints/best.pt"
COMMAND = (
    _entry("from", lambda c: c.request.task != "train", "a training does not read it", FROM),
    _entry("from which optimizer", lambda c: not c.measures_machine, _task, "device, engine.threads"),
    _entry("which", _names_network, _task, WHICH),
    _entry("min_accuracy", lambda c: c.request.task in ("train", "evaluate"), _task, "task=train, evaluate"),
    _entry("predict", lambda c: c.request.task == "predict", _task, "task=predict"),
    _entry("input", lambda c: c.request.task == "predict", _task, "task=predict input=IMAGES"),
    _entry("export", lambda c: c.request.task == "export", _task, "task=export"),
    _entry("benchmark", lambda c: c.request.task == "benchmark", _task, "task=benchmark"),
    _entry("report", lambda c: c.request.task == "report" or c.sweep, "only a report reads it", "task=report, or a sweep (-m)"),
    _entry("sweep sweeper launcher", lambda c: c.sweep, "only a sweep reads it, which needs -m", "bnn-train -m …"),
    _entry("sweep.trials", lambda c: c.request.sweep.search == "optuna", "a grid does not read it", "sweeper=optuna"),
    _entry(
        "config model optimizer real_optimizer delta seed resume init_from fresh freeze logger", lambda c: c.trains, _task, RUN
    ),
    _entry("trainer", lambda c: c.trains, _task, RUN),
    _entry("engine", _reads_engine, _task, RUN),
    _entry(
        "device",
        lambda c: c.request.task in ("train", "benchmark", "evaluate", "predict") or c.given["device"] in ("cpu", "auto"),
        _task,
        "cpu, auto",
    ),
    _entry(
        "dataset",
        lambda c: c.request.task != "predict",
        "images are read with the settings of the training",
        "input=IMAGES",
    ),
    _entry("dataset", lambda c: c.trains or c.request.task in ("evaluate", "export"), _task, RUN),
    _entry(
        "dataset.limit dataset.validation dataset.augment dataset.shift dataset.flip dataset.cutout",
        lambda c: c.trains,
        lambda c: f"it concerns train rows, task={c.request.task} does not read it",
        RUN,
    ),
)
ROWS = (
    _entry("dataset.fit", lambda c: c.settings.dataset.size, "images keep their size", "dataset.size=N"),
    _entry("dataset.hub", lambda c: not c.settings.dataset.path, "dataset.path is read in its place", "one of the two"),
)
TRAINING = (
    _entry("fresh", lambda c: c.settings.init_from, "without init_from all layers begin anew", "init_from=RUN"),
    _entry("delta", lambda c: rules.strength(c.settings.optimizer) == "delta", _rule, _strength),
    _entry("delta", lambda c: "optimizer.delta" not in c.given, "optimizer.delta is given too, and wins", "one of the two"),
    _entry("optimizer.delta", _masks("random", "top"), _rule, "optimizer.mask=random, top"),
    _entry("optimizer.scale", _masks("top"), _rule, "optimizer.mask=top"),
    _entry("optimizer.lr optimizer.temperature", _masks("ewm", "wpm"), _rule, "optimizer.mask=ewm, wpm"),
    _entry("real_optimizer", _real_parameters, "all parameters of this network are binary", "a network with BatchNorm"),
    _entry("model.hidden_size", _hidden, "a network of one layer has no hidden layer", "model.num_layers=2 or more"),
    _entry("model.window", _activations, "this network has no binary activation", "model.num_layers=2 or more"),
    _entry(
        "model.encoding",
        lambda c: weights_of(c.settings.model) != "float" or _activations(c),
        "this network has neither bits nor binary activations",
        "model.weights=bits or latent",
    ),
    _entry(
        "model.pool", lambda c: len(c.settings.model.channels) > 1, "the network has one width", "two model.channels or more"
    ),
    _entry(
        "model.latent_std",
        lambda c: weights_of(c.settings.model) == "latent",
        lambda c: f"model.weights={weights_of(c.settings.model)} does not read it",
        "model.weights=latent",
    ),
    _entry(
        "dataset.shift dataset.flip dataset.cutout",
        lambda c: c.settings.dataset.augment != "none",
        "dataset.augment=none does not read it",
        "dataset.augment=standard",
    ),
    *ROWS,
    _entry(
        "trainer.final_batch_size",
        lambda c: c.settings.trainer.epochs > 1,
        "a training of one epoch does not read it",
        "trainer.epochs=2 or more",
    ),
    _entry("engine.all_reduce", _several_devices, "one device sends nothing", "engine.devices=2 or more"),
    _entry("engine.sync_batch_norm", _several_devices, "there is one device", "engine.devices=2 or more"),
    _entry("engine.sync_batch_norm", _batch_norms, "this network has no BatchNorm", "a network with BatchNorm"),
)


def check_command(request: Request, overrides: Iterable[str], sweep: bool = False) -> None:
    """Checks that the command reads every key that the overrides set. An override with the value null requests nothing.

    Args:
        sweep: True if the command runs a sweep.

    Raises:
        UserError: the command does not read a key, or an experiment file names a run to inherit from: only the
            command line may do that.
    """
    _check(COMMAND, Case(_given(overrides), request=request, sweep=sweep))
    check_named({"config": request.config, "from": request.task != "report" and request.from_}, overrides)


def check_named(runs: Mapping[str, Any], overrides: Iterable[str]) -> None:
    """Checks that the overrides name the runs from which settings are inherited. Hydra composes an
    experiment too late to name them.

    Args:
        runs: the values of `config`, `from` and `init_from` in the composed configuration. An `init_from` that is inherited by
            `config=RUN` is allowed.

    Raises:
        UserError: an experiment names a run.
    """
    named = _given(overrides).keys()
    for key, value in runs.items():
        if value and key not in named and not (key == "init_from" and "config" in named):
            raise UserError(f"{key}={value}: only the command line can name it\nallowed: bnn-train {key}={value}")


def check_training(settings: Settings, overrides: Iterable[str]) -> None:
    """Checks that a training with the settings reads every setting that the overrides set.

    Raises:
        UserError: the training does not read a setting.
    """
    _check(TRAINING, Case(_given(overrides), settings))
    check_named({"init_from": settings.init_from}, overrides)


def check_rows(settings: Settings, overrides: Iterable[str]) -> None:
    """Checks that a task on the test set reads every setting of the dataset that the overrides set.

    Raises:
        UserError: the task does not read a setting.
    """
    _check(ROWS, Case(_given(overrides), settings))


def check_data(own_test: bool, overrides: Iterable[str]) -> None:
    """Checks that the dataset reads `dataset.test_fraction`, if the overrides set it.

    Args:
        own_test: True if the data have a test set.

    Raises:
        UserError: the data have a test set, so that no fraction is split off.
    """
    key, given = "dataset.test_fraction", _given(overrides)
    if key in given and own_test:
        raise UserError(f"{key}={given[key]}: the data have their own test rows\nallowed: data without test rows")


def _given(overrides: Iterable[str]) -> dict[str, str]:
    return {key: value for key, value in command_line.keys(overrides).items() if value != "null"}


def _below(key: str, keys: Iterable[str]) -> list[str]:
    return [name for name in keys if name == key or name.startswith(f"{key}.")]


def _is_plugins(case: Case, key: str) -> bool:
    """Returns True if a key belongs to a network or a dataset of a plugin. The tables do not know
    if something reads such a key."""
    group, _, name = key.partition(".")
    if group == "model":
        return not MODELS[case.settings.model.name].ours
    return group == "dataset" and case.settings.dataset.name in DATASETS and name not in SHARED


def _check(table: tuple[Entry, ...], case: Case) -> None:
    for entry in table:
        for key in (found for group in entry.keys for found in _below(group, case.given)):
            if case.settings and _is_plugins(case, key):
                continue
            if not entry.read(case):
                shown = re.sub(r'^"(.*)"$', r"\1", case.given[key])  # drops the quotes that bnn_exp.config.quoting adds
                raise UserError(f"{key}={shown}: {entry.why_not(case)}\nallowed: {entry.allowed(case)}")
