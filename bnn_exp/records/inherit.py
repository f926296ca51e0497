"""Takes settings over from an earlier run.

- `config=RUN`: its whole configuration, to be trained anew.
- `init_from=RUN`: its model and its rule, at a strength that suits fine-tuning.
- `task=evaluate`, `predict`, `export`, `benchmark` with `from=RUN`: its dataset.
- of each of these, of `resume=RUN` and of `sweep.resume=SWEEP`: its plugins, unless `plugins=` is said.

The saved values become a choice `saved` of each group, beside the files of conf/, and `inherited=run` names them. So an
experiment or an override of the command line takes their place as it does with any choice. Imports no torch.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from bnn_exp.config import command_line, experiments, plugins, rules
from bnn_exp.config.registry import CONF
from bnn_exp.config.request import NETWORK_TASKS
from bnn_exp.config.settings import dataset_settings, load_settings
from bnn_exp.errors import UserError
from bnn_exp.records.runs import as_text, flat, metadata, of_several

TUNED = ("model", "optimizer", "real_optimizer")  # groups that a fine-tuning takes over
KEYS = ("resume", "config", "init_from", "from", "sweep.resume")  # of the command line that name runs


@contextmanager
def taken_over(overrides: list[str], folder: str | None = None) -> Iterator[list[str]]:
    """Within it Hydra composes with what a command of these overrides takes over, and with the plugins that it needs. Yields
    the plugins that the command line has to name, since an experiment names them by their places beside its own file.

    Args:
        folder: that of --config-dir.

    Raises:
        UserError: a run is not there, can't be read, or several differ in what is to be taken over; or a plugin can't be
            loaded.
    """
    try:
        loaded = _load_plugins(overrides, folder)
        values = _values_to_take(overrides)
        if loaded or "plugins" in values:
            values["plugins"] = loaded
        if values:
            _offer(values)
        yield loaded if _names_beside(overrides, folder) else []
    finally:
        _forget()


def _load_plugins(overrides: list[str], folder: str | None) -> list[str]:
    """Loads the plugins that the command names, else those of its experiments and of the runs that it reads, and those of the
    program that is running. Returns their entries."""
    said_here = "plugins" in command_line.keys(overrides)
    named = [("", command_line.values(overrides, "plugins"))] if said_here else list(_named_plugins(overrides, folder))
    found = [entry for of, entries in named for entry in plugins.load(entries, of)]
    return list(dict.fromkeys([*found, *plugins.load(plugins.program())]))


def _named_plugins(overrides: list[str], folder: str | None) -> Iterator[tuple[str, list[str]]]:
    """The plugins of each experiment and of each run or sweep that a command names, with what names them.

    A file that can't be read has none here: who reads it next says what is wrong with it.
    """
    for name, file in experiments.files(overrides, folder, CONF):
        yield f"experiment={name}", _plugins_in(file, file)
    told, task = command_line.keys(overrides), next(iter(command_line.values(overrides, "task")), "train")
    keys = [key for key in KEYS if not (key == "from" and task == "report")]  # which reads files alone
    here = [("resume", "hydra.run.dir"), ("sweep.resume", "hydra.sweep.dir"), ("resume", "hydra.sweep.dir")]
    places = [(key, value) for key in keys if key in told for value in command_line.values(overrides, key) if value != "auto"]
    places += [
        (place, value) for key, place in here if told.get(key) == "auto" for value in command_line.values(overrides, place)
    ]
    for key, value in places:
        if (Path(value) / "multirun.yaml").is_file() and key in ("sweep.resume", "hydra.sweep.dir"):
            yield f"{key}={value}", _plugins_in(Path(value) / "multirun.yaml")
        elif Path(value).exists():
            yield f"{key}={value}", _plugins_of_run(f"{key}={value}", Path(value))


def _names_beside(overrides: list[str], folder: str | None) -> bool:
    """Whether an experiment names a plugin that lies beside its file, and not in the folder of the shell."""
    found = () if "plugins" in command_line.keys(overrides) else experiments.files(overrides, folder, CONF)
    return any(_plugins_in(file, file) != _plugins_in(file) for _, file in found)


def _plugins_of_run(name: str, place: Path) -> list[str]:
    try:
        return plugins.entries(_read(_file(name, place)).get("plugins"))
    except Exception:  # no run, or a damaged file: YAML's and OmegaConf's errors have no common base
        return []


def _plugins_in(file: Path, beside: Path | None = None) -> list[str]:
    try:
        return plugins.entries(OmegaConf.to_container(OmegaConf.load(file)).get("plugins"), beside)
    except Exception:  # as above
        return []


def _values_to_take(overrides: list[str]) -> dict[str, Any]:
    """The plain values of the configuration that a command of these overrides takes over; groups as dictionaries."""
    told, task = command_line.keys(overrides), next(iter(command_line.values(overrides, "task")), "train")
    runs = {key: command_line.values(overrides, key) for key in ("config", "init_from", "from")}
    if runs["config"]:
        if len(runs["config"]) > 1:
            raise UserError(f"config={told['config']}: it takes one run\nallowed: a command for each, or -m init_from=A,B")
        values = settings(f"config={runs['config'][0]}", Path(runs["config"][0]))
        other_rule = {"optimizer", "experiment"} & told.keys() or values["delta"] != values["optimizer"].get("delta")
        without = dict.fromkeys(("resume", *(["delta"] if other_rule else [])))
        return values | without
    if runs["init_from"] and task == "train":
        return _agreed(runs["init_from"], told)
    if task in NETWORK_TASKS and len(runs["from"]) == 1 and Path(runs["from"][0]).exists():
        return {"dataset": _dataset(f"from={runs['from'][0]}", Path(runs["from"][0]))}
    return {}


def settings(name: str, place: Path) -> dict[str, Any]:
    """The plain values of a run's configuration, what an earlier version did not have filled in.

    Args:
        name: what the user said, for messages.
        place: a run directory, or its config.yaml, model.safetensors or a checkpoint.

    Raises:
        UserError: there is none, or it is damaged.
    """
    return _checked(name, place, lambda values: asdict(load_settings(values)))


def _dataset(name: str, place: Path) -> dict[str, Any]:
    return _checked(name, place, lambda values: asdict(dataset_settings(values["dataset"])))


def _checked(name: str, place: Path, check: Callable[[dict], dict]) -> dict[str, Any]:
    file = _file(name, place)
    values: dict[str, Any] = {}
    try:
        values = _read(file)
        return check(values)
    except Exception as error:  # a damaged file: YAML's and OmegaConf's errors have no common base
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        as_written = "allowed: a run directory, or its config.yaml or model.safetensors, as they were written"
        hint = plugins.not_loaded(values.get("plugins")) if isinstance(values, dict) else ""
        raise UserError(f"{name}: not the configuration of a run ({reason[:300]})\n{hint or as_written}") from error


def _file(name: str, place: Path) -> Path:
    """The file at `place` that holds the configuration of a run."""
    if place.is_file() and place.suffix == ".pt" and (place.parent.parent / "config.yaml").is_file():
        place = place.parent.parent
    if place.is_file():
        return place
    files = [place / file for file in ("config.yaml", "model.safetensors") if (place / file).is_file()]
    if not files:
        if several := of_several(name.partition("=")[0], place):
            raise UserError(several)
        what = "no config.yaml in it" if place.is_dir() else "no such file or folder"
        raise UserError(f"{name}: {what}\nallowed: the directory of a run, outputs/DATE/TIME-…")
    return files[0]


def _read(file: Path) -> dict[str, Any]:
    if file.suffix == ".pt":  # away from its run
        from bnn_exp.records import checkpoint

        return checkpoint.load(file)["config"]
    if file.suffix != ".safetensors":
        return OmegaConf.to_container(OmegaConf.load(file))
    return json.loads(metadata(file)["config"])


def _agreed(places: list[str], told: Iterable[str]) -> dict[str, Any]:
    """Model and rule of runs, in which they must be alike but for the keys that are `told`."""
    told = {"optimizer.delta" if key == "delta" else key for key in told}
    first, *others = [_tuned(f"init_from={place}", Path(place)) for place in places]
    for place, other in zip(places[1:], others, strict=True):
        ours, theirs = flat(first), flat(other)
        for key in ours.keys() | theirs.keys():
            if not told & {key, key.partition(".")[0]} and ours.get(key) != theirs.get(key):
                raise UserError(
                    f"init_from={','.join(places)}: {key} is {as_text(ours.get(key))} in the first, "
                    f"{as_text(theirs.get(key))} in {place}\nallowed: runs of one model and rule, or {key}=VALUE for all"
                )
    return first


def _tuned(name: str, place: Path) -> dict[str, Any]:
    """Model and rule of a run, the rule at the strength that suits fine-tuning."""

    def taken(values: dict) -> dict:
        found = load_settings(values)
        groups, rule = {group: asdict(getattr(found, group)) for group in TUNED}, found.optimizer
        if not found.init_from:  # else it is gentle already
            groups["optimizer"] = asdict(rules.gentler(rule))
        return groups

    return _checked(name, place, taken)


def _offer(values: Mapping[str, Any]) -> None:
    """Store `values` of groups as their choices `saved`, the other ones beside them."""
    store, groups = ConfigStore.instance().store, [key for key, value in values.items() if isinstance(value, dict)]
    for group in groups:
        store(group=group, name="saved", node=_alive(group, values))
    if "model" in values:
        for group in ("optimizer", "trainer"):
            store(group=group, name="of_saved", node={"defaults": [f"of_{values['model']['name']}"]})
    plain = {key: _plain(value) for key, value in values.items() if key not in groups}
    defaults = [{f"override /{group}": "saved"} for group in groups]
    store(group="inherited", name="run", package="_global_", node={"defaults": defaults, **plain})


def _alive(group: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a group, those that follow others as references to them, as in conf/."""
    found = {key: _plain(value) for key, value in values[group].items()}
    if group == "optimizer" and "delta" in found:
        found["delta"] = f"${{strength:{found['delta']}}}"
    if group == "model" and found.get("weights") == rules.trained_by(values["optimizer"]["name"]):
        found["weights"] = "${weights_for:${optimizer.name}}"
    return found


def _plain(value: Any) -> Any:
    """A value that OmegaConf takes as it is."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.replace("${", r"\${") if isinstance(value, str) else value


def _forget() -> None:
    repo = ConfigStore.instance().repo
    repo.pop("inherited", None)
    for group in repo.values():
        for name in ("saved.yaml", "of_saved.yaml"):
            if isinstance(group, dict):
                group.pop(name, None)
