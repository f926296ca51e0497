"""Inherits settings from an earlier run: makes the saved settings of the run a choice that Hydra can compose.

- `config=RUN` inherits all settings, to train again with these settings.
- `init_from=RUN` inherits the model and the rule, with a strength that suits fine-tuning.
- `task=evaluate`, `predict`, `export` and `benchmark` with `from=RUN` inherit the dataset.
- Each of these, `resume=RUN` and `sweep.resume=SWEEP` inherit the plugins, unless `plugins=` is given.

The saved settings become a choice `saved` of each group, beside the files of conf/. The choice `inherited=run` selects the
choices `saved`. An experiment or an override of the command line replaces a choice `saved` like any other choice.

Imports no torch.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore

from bnn_exp.config import command_line, experiments, plugins, rules, zoo
from bnn_exp.config.registry import CONF
from bnn_exp.config.request import NETWORK_TASKS
from bnn_exp.errors import UserError
from bnn_exp.records import saved
from bnn_exp.records.runs import as_text, flat

TUNED = ("model", "optimizer", "real_optimizer")  # the groups that fine-tuning inherits
KEYS = ("resume", "config", "init_from", "from", "sweep.resume")  # the keys of the command line that name runs


@contextmanager
def inherited(overrides: list[str], folder: str | None = None) -> Iterator[list[str]]:
    """Context manager: while its body runs, Hydra composes the settings that a command inherits from earlier runs.

    Loads the plugins of the command first. Yields entries of the setting `plugins` that the caller must add to the command
    line: if an experiment names a plugin by a path relative to its file, all plugins of the command; else none.

    Args:
        overrides: the overrides of the command line.
        folder: the folder that --config-dir names.

    Raises:
        UserError: a run is missing or cannot be read, runs differ in an inherited setting, or a plugin cannot be loaded.
    """
    try:
        loaded = _load_plugins(overrides, folder)
        values = _inherited_values(overrides)
        if loaded or "plugins" in values:
            values["plugins"] = loaded
        if values:
            _offer(values)
        yield loaded if _names_beside(overrides, folder) else []
    finally:
        _forget()


def _load_plugins(overrides: list[str], folder: str | None) -> list[str]:
    """Loads the plugins of the command and of the running program. Returns these plugins as entries of the setting `plugins`.

    The override `plugins=` names the plugins of the command. Without it, the experiments and the runs that the command reads
    name the plugins.
    """
    given = "plugins" in command_line.keys(overrides)
    named = [("", command_line.values(overrides, "plugins"))] if given else list(_named_plugins(overrides, folder))
    found = [entry for named_by, entries in named for entry in plugins.load(entries, named_by)]
    return list(dict.fromkeys([*found, *plugins.load(plugins.program())]))


def _named_plugins(overrides: list[str], folder: str | None) -> Iterator[tuple[str, list[str]]]:
    """Yields (override, plugins) for each experiment, run or sweep that a command names. The override names it, such as
    `resume=RUN`."""
    for name, file in experiments.files(overrides, folder, CONF):
        yield f"experiment={name}", saved.plugins_in(file, file)
    for key, value in _named_runs(overrides):
        if (Path(value) / "multirun.yaml").is_file() and key in ("sweep.resume", "hydra.sweep.dir"):
            yield f"{key}={value}", saved.plugins_in(Path(value) / "multirun.yaml")
        elif zoo.located(value, key).exists():
            yield f"{key}={value}", saved.plugins_of_run(f"{key}={value}", Path(value))


def _named_runs(overrides: list[str]) -> Iterator[tuple[str, str]]:
    """Yields (key, path) for each run or sweep that a command names. With `resume=auto`, the key hydra.run.dir or
    hydra.sweep.dir names the run or sweep."""
    given = command_line.keys(overrides)
    for key in KEYS:
        if key in given and not (key == "from" and _task(overrides) == "report"):  # a report needs no plugin
            yield from ((key, value) for value in command_line.values(overrides, key) if value != "auto")
    for key, place in (("resume", "hydra.run.dir"), ("sweep.resume", "hydra.sweep.dir"), ("resume", "hydra.sweep.dir")):
        if given.get(key) == "auto":
            yield from ((place, value) for value in command_line.values(overrides, place))


def _task(overrides: list[str]) -> str:
    return next(iter(command_line.values(overrides, "task")), "train")


def _names_beside(overrides: list[str], folder: str | None) -> bool:
    """Returns True if an experiment names a plugin by a path relative to the experiment's file, not to the current folder."""
    files = () if "plugins" in command_line.keys(overrides) else experiments.files(overrides, folder, CONF)
    return any(saved.plugins_in(file, file) != saved.plugins_in(file) for _, file in files)


def _inherited_values(overrides: list[str]) -> dict[str, Any]:
    """Returns the plain values of the settings that a command inherits, by key. The value of a group is a dictionary."""
    given, task = command_line.keys(overrides), _task(overrides)
    runs = {key: command_line.values(overrides, key) for key in ("config", "init_from", "from")}
    if runs["config"]:
        return _whole(runs["config"], given)
    if runs["init_from"] and task == "train":
        return _agreed(runs["init_from"], given)
    if task in NETWORK_TASKS and len(runs["from"]) == 1 and zoo.located(runs["from"][0]).exists():
        return {"dataset": saved.dataset(f"from={runs['from'][0]}", Path(runs["from"][0]))}
    return {}


def _whole(places: list[str], given: Mapping[str, str]) -> dict[str, Any]:
    """Returns all settings of the run that `config=RUN` names.

    Args:
        places: the values of `config`, of which there must be one.
        given: the overrides of the command line, by key.
    """
    if len(places) > 1:
        raise UserError(f"config={given['config']}: it takes one run\nallowed: a command for each, or -m init_from=A,B")
    values = asdict(saved.settings(f"config={places[0]}", Path(places[0]))) | {"resume": None}
    other_rule = {"optimizer", "experiment"} & given.keys() or values["delta"] != values["optimizer"].get("delta")
    return values | ({"delta": None} if other_rule else {})


def _agreed(places: list[str], given: Iterable[str]) -> dict[str, Any]:
    """Returns the model and the rule of the runs in `places`. The runs must agree, except in the keys `given` that the command
    line sets."""
    given = {"optimizer.delta" if key == "delta" else key for key in given}
    first, *others = [_tuned(f"init_from={place}", Path(place)) for place in places]
    for place, other in zip(places[1:], others, strict=True):
        ours, theirs = flat(first), flat(other)
        for key in ours.keys() | theirs.keys():
            if not given & {key, key.partition(".")[0]} and ours.get(key) != theirs.get(key):
                raise UserError(
                    f"init_from={','.join(places)}: {key} is {as_text(ours.get(key))} in the first, "
                    f"{as_text(theirs.get(key))} in {place}\nallowed: runs of one model and rule, or {key}=VALUE for all"
                )
    return first


def _tuned(name: str, place: Path) -> dict[str, Any]:
    """Returns the model and the rule of the run in `place`, with a strength of the rule that suits fine-tuning. `name` is the
    override that names the run, for messages."""
    found = saved.settings(name, place)
    groups = {group: asdict(getattr(found, group)) for group in TUNED}
    if not found.init_from:  # the settings of a fine-tuned run hold the gentler strength already
        groups["optimizer"] = asdict(rules.gentler(found.optimizer))
    return groups


def _offer(values: Mapping[str, Any]) -> None:
    """Gives Hydra a choice `saved` of each group among `values`, and the choice `inherited=run`, which sets all `values`."""
    store, groups = ConfigStore.instance().store, [key for key, value in values.items() if isinstance(value, dict)]
    for group in groups:
        store(group=group, name="saved", node=_with_references(group, values))
    if "model" in values:
        for group in ("optimizer", "trainer"):
            store(group=group, name="of_saved", node={"defaults": [f"of_{values['model']['name']}"]})
    plain = {key: _plain(value) for key, value in values.items() if key not in groups}
    defaults = [{f"override /{group}": "saved"} for group in groups]
    store(group="inherited", name="run", package="_global_", node={"defaults": defaults, **plain})


def _with_references(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a group. A setting whose default depends on another setting refers to the other, as in conf/."""
    found = {key: _plain(value) for key, value in values[group].items()}
    if group == "optimizer" and "delta" in found:
        found["delta"] = f"${{strength:{found['delta']}}}"
    if group == "model" and found.get("weights") == rules.trained_by(values["optimizer"]["name"]):
        found["weights"] = "${weights_for:${optimizer.name}}"
    return found


def _plain(value: Any) -> Any:
    """Returns a value with escapes, so OmegaConf does not interpret `${` in its texts."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.replace("${", r"\${") if isinstance(value, str) else value


def _forget() -> None:
    """Removes the choices `saved`, `of_saved` and `inherited=run`, which `_offer` stored."""
    repo = ConfigStore.instance().repo
    repo.pop("inherited", None)
    for group in repo.values():
        for name in ("saved.yaml", "of_saved.yaml"):
            if isinstance(group, dict):
                group.pop(name, None)
