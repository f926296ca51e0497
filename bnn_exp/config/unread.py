"""Settings that are said on the command line and that nothing would read: a table of who reads what. Imports no torch.

A setting without effect is a mistake that looks like a result: a sweep over it compares equal runs.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bnn_exp.config import command_line, rules
from bnn_exp.config.datasets import DATASETS, SHARED
from bnn_exp.config.groups import Settings
from bnn_exp.config.models import MODELS
from bnn_exp.config.request import NETWORK_TASKS, Request
from bnn_exp.errors import UserError


@dataclass(frozen=True)
class Case:
    """The keys that are said, and what is asked for: `COMMAND` looks at the request, `TRAINING` at the settings."""

    said: Mapping[str, str]
    settings: Settings | None = None
    request: Request | None = None
    sweep: bool = False

    @property
    def trains(self) -> bool:
        """Whether the settings of a training are read."""
        task, measured = self.request.task, self.request.benchmark.name
        return task == "train" or (task == "benchmark" and (measured == "training" or not self.request.from_))

    @property
    def rule(self) -> str:
        """The rule as the command line names it."""
        mask = f" optimizer.mask={self.settings.optimizer.mask}" if self.settings.optimizer.name == "hypermask" else ""
        return f"optimizer={self.settings.optimizer.name}{mask}"


@dataclass(frozen=True)
class Entry:
    """Who reads some keys. A key stands for those below it too: `report` for `report.x`."""

    keys: tuple[str, ...]
    read: Callable[[Case], Any]  # whether somebody does
    why_not: Callable[[Case], str]
    allowed: Callable[[Case], str]


def _entry(keys: str, read: Callable[[Case], Any], why_not: str | Callable, allowed: str | Callable) -> Entry:
    texts = (text if callable(text) else (lambda case, text=text: text) for text in (why_not, allowed))
    return Entry(tuple(keys.split()), read, *texts)


def _task(case: Case) -> str:
    return f"task={case.request.task}{' from=RUN' if case.request.task == 'benchmark' else ''} does not read it"


def _rule(case: Case) -> str:
    return f"{case.rule} does not read it"


def _strength(case: Case) -> str:
    name = rules.strength(case.settings.optimizer)
    return f"its strength, optimizer.{name}=…" if name else "the settings of this rule"


def _masks(*masks: str) -> Callable[[Case], bool]:
    """Whether HyperMask has one of these masks; settings of the same name of another rule are always read."""
    return lambda case: case.settings.optimizer.name != "hypermask" or case.settings.optimizer.mask in masks


def _several_devices(case: Case) -> bool:
    return case.settings.engine.devices > 1


def _batch_norms(case: Case) -> bool:
    return getattr(case.settings.model, "normalization", "batch") == "batch"


def _real_parameters(case: Case) -> bool:
    model = case.settings.model
    return model.batch_norm.affine if model.name == "mlp" else _batch_norms(case)


def _hidden(case: Case) -> bool:
    return getattr(case.settings.model, "num_layers", 2) > 1


def _activations(case: Case) -> bool:
    model = case.settings.model
    return model.name != "bncvl" and (_hidden(case) or model.binarize_logits)


RUN = "a training: task=train, or task=benchmark benchmark=training"
FROM = "config=RUN (its configuration anew), init_from=RUN (fine-tune it), resume=RUN (go on), task=evaluate from=RUN, …"
WHICH = "task=evaluate from=RUN which=best, …; min_accuracy=N which=best; init_from=RUN/checkpoints/best.pt"
COMMAND = (
    _entry("from", lambda c: c.request.task != "train", "a training does not read it", FROM),
    _entry("which", lambda c: _names_network(c.request), _task, WHICH),
    _entry("min_accuracy", lambda c: c.request.task in ("train", "evaluate"), _task, "task=train, evaluate"),
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
    _entry("engine", lambda c: c.trains or (c.request.task == "benchmark" and _only_threads(c)), _task, RUN),
    _entry(
        "device", lambda c: c.request.task in ("train", "benchmark") or c.said["device"] in ("cpu", "auto"), _task, "cpu, auto"
    ),
    _entry("dataset", lambda c: c.request.task != "predict", "pictures are read as those of the training were", "input=IMAGES"),
    _entry("dataset", lambda c: c.trains or c.request.task in ("evaluate", "export"), _task, RUN),
    _entry(
        "dataset.limit dataset.validation dataset.augment dataset.shift dataset.flip dataset.cutout",
        lambda c: c.trains,
        lambda c: f"it is about train rows, task={c.request.task} does not read it",
        RUN,
    ),
)
ROWS = (
    _entry("dataset.fit", lambda c: c.settings.dataset.size, "pictures keep their size", "dataset.size=N"),
    _entry("dataset.hub", lambda c: not c.settings.dataset.path, "dataset.path is read in its place", "one of the two"),
)
TRAINING = (
    _entry("fresh", lambda c: c.settings.init_from, "without init_from all layers begin anew", "init_from=RUN"),
    _entry("delta", lambda c: rules.strength(c.settings.optimizer) == "delta", _rule, _strength),
    _entry("delta", lambda c: "optimizer.delta" not in c.said, "optimizer.delta is said too, and wins", "one of the two"),
    _entry("optimizer.delta", _masks("random", "top"), _rule, "optimizer.mask=random, top"),
    _entry("optimizer.scale", _masks("top"), _rule, "optimizer.mask=top"),
    _entry("optimizer.lr optimizer.temperature", _masks("ewm", "wpm"), _rule, "optimizer.mask=ewm, wpm"),
    _entry("real_optimizer", _real_parameters, "all parameters of this network are binary", "a network with BatchNorm"),
    _entry("model.hidden_size", _hidden, "a network of one layer has no hidden one", "model.num_layers=2 or more"),
    _entry("model.window", _activations, "this network has no binary activation", "model.num_layers=2 or more"),
    _entry(
        "model.encoding",
        lambda c: c.settings.model.weights != "float" or _activations(c),
        "this network has neither bits nor binary activations",
        "model.weights=bits or latent",
    ),
    _entry(
        "model.pool", lambda c: len(c.settings.model.channels) > 1, "the network has one width", "two model.channels or more"
    ),
    _entry(
        "model.latent_std",
        lambda c: c.settings.model.weights == "latent",
        lambda c: f"model.weights={c.settings.model.weights} does not read it",
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
        "it is the last epoch's",
        "trainer.epochs=2 or more",
    ),
    _entry("engine.all_reduce", _several_devices, "one device sends nothing", "engine.devices=2 or more"),
    _entry("engine.sync_batch_norm", _several_devices, "there is one device", "engine.devices=2 or more"),
    _entry("engine.sync_batch_norm", _batch_norms, "this network has no BatchNorm", "a network with BatchNorm"),
)


def _names_network(request: Request) -> bool:
    """Whether `which` says something: of a run that is read, or of the accuracy that a training has to reach."""
    if request.task == "train":
        return request.min_accuracy is not None
    return request.task in NETWORK_TASKS and bool(request.from_)


def _only_threads(case: Case) -> bool:
    return set(_of("engine", case.said)) == {"engine.threads"}


def _of(key: str, keys: Iterable[str]) -> list[str]:
    return [name for name in keys if name == key or name.startswith(f"{key}.")]


def check_command(request: Request, overrides: Iterable[str], sweep: bool = False) -> None:
    """See that the command reads every key that `overrides` set, and no run that they do not name. A null asks for nothing.

    Raises:
        UserError: the first key that it does not read, why, and what would.
    """
    _check(COMMAND, Case(_asked(overrides), request=request, sweep=sweep))
    check_named({"config": request.config, "from": request.task != "report" and request.from_}, overrides)


def check_named(runs: Mapping[str, Any], overrides: Iterable[str]) -> None:
    """See that `overrides` name the runs from which settings are taken over: an experiment is composed too late for that.

    Args:
        runs: `config`, `from` and `init_from`, where the composed configuration has them. A configuration that `config` takes
            over may have an `init_from` of its own.

    Raises:
        UserError: an experiment names one.
    """
    named = _asked(overrides).keys()
    for key, value in runs.items():
        if value and key not in named and not (key == "init_from" and "config" in named):
            raise UserError(f"{key}={value}: only the command line can name it\nallowed: bnn-train {key}={value}")


def check_training(settings: Settings, overrides: Iterable[str]) -> None:
    """See that a training of `settings` reads every setting that `overrides` set.

    Raises:
        UserError: as `check_command`.
    """
    _check(TRAINING, Case(_asked(overrides), settings))
    check_named({"init_from": settings.init_from}, overrides)


def check_rows(settings: Settings, overrides: Iterable[str]) -> None:
    """See that a task on test rows reads every setting of the dataset that `overrides` set.

    Raises:
        UserError: as `check_command`.
    """
    _check(ROWS, Case(_asked(overrides), settings))


def check_data(own_test: bool, overrides: Iterable[str]) -> None:
    """See that what `overrides` say of the rows is read with this dataset.

    Raises:
        UserError: as `check_command`.
    """
    key, said_ = "dataset.test_fraction", _asked(overrides)
    if key in said_ and own_test:
        raise UserError(f"{key}={said_[key]}: the data have test rows of their own\nallowed: data without test rows")


def _asked(overrides: Iterable[str]) -> dict[str, str]:
    return {key: value for key, value in command_line.keys(overrides).items() if value != "null"}


def _of_ones_own(case: Case, key: str) -> bool:
    """Whether a key is a setting of a network or a dataset of one's own, of which this table knows nothing."""
    group, _, name = key.partition(".")
    if group == "model":
        return not MODELS[case.settings.model.name].ours
    return group == "dataset" and case.settings.dataset.name in DATASETS and name not in SHARED


def _check(table: tuple[Entry, ...], case: Case) -> None:
    for entry in table:
        for key in (found for group in entry.keys for found in _of(group, case.said)):
            if case.settings and _of_ones_own(case, key):
                continue
            if not entry.read(case):
                shown = re.sub(r'^"(.*)"$', r"\1", case.said[key])  # the quotes of bnn_exp.config.quoting
                raise UserError(f"{key}={shown}: {entry.why_not(case)}\nallowed: {entry.allowed(case)}")
