"""Going on with a run: from what, and with which of its settings changed. Imports torch only to read a checkpoint."""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bnn_exp.config import plugins
from bnn_exp.config.migrate import migrated
from bnn_exp.config.paths import at_home
from bnn_exp.config.settings import load_settings
from bnn_exp.data.sources import Arrays
from bnn_exp.errors import UserError
from bnn_exp.records import directories, loggers, metrics, summary
from bnn_exp.records.directories import CHECKPOINTS
from bnn_exp.records.runs import as_text, flat, run_of
from bnn_exp.training.plan import Plan, device_for, make_plan, read, values_of, with_devices

AUTO = "auto"  # resume=auto: go on if there is something to go on from, else begin
SAID_TWICE = "delta"  # stands in optimizer.delta, which is compared
OF_THE_COMMAND = ("min_accuracy", "which")  # no settings of a run
MAY_CHANGE = ("resume", "device", "engine.devices", "engine.name", "engine.memory", "dataset.path", "plugins")


def plan_to_resume(composed: DictConfig, overrides: Sequence[str], directory: Path) -> Plan:
    """The plan of `resume=RUN`: the run's own configuration, but for what `overrides` say of the keys that may change.

    Raises:
        UserError: there is no run, nothing to go on from, or another key is set.
    """
    resumed = Path(composed.resume)
    values = _values_in(resumed, f"resume={resumed}")
    allowed = {*MAY_CHANGE, *OF_THE_COMMAND, f"dataset={values.get('dataset', {}).get('name')}"}
    others = [item for item in overrides if _key(item) not in allowed and item not in allowed]
    if others:
        raise UserError(
            f"{others[0]}: a resumed run keeps its own configuration\n"
            f"allowed beside resume: {', '.join(MAY_CHANGE[1:])}; "
            f"or a new run: init_from={resumed} {others[0]} begins with its bits, config={resumed} {others[0]} from nothing"
        )
    directories.check_same(directory, resumed, "hydra.run.dir", "resume")
    earlier = (summary.read(resumed) or {}).get("overrides", [])
    return replace(plan_to_go_on(resumed, _changed(values, composed, overrides), overrides), overrides=earlier)


def plan_to_go_on_or_begin(composed: DictConfig, overrides: Sequence[str], directory: Path) -> Plan:
    """The plan of `resume=auto` in `directory`: its run goes on, if it has a checkpoint, else one begins.

    Raises:
        UserError: what is wrong with the configuration, or it is not that of the run.
    """
    if not can_go_on(directory):
        _check_nothing_lost(directory)
        return replace(make_plan(composed, overrides), remark=f"nothing to go on from in {directory}: the run begins")
    values = _values_in(directory, f"hydra.run.dir={directory}")
    load_settings(composed)
    if different := difference(values, values_of(composed)):
        key, there, asked = different
        raise UserError(
            f"{key}={as_text(asked)}: the run in {directory} has {key}={as_text(there)}\n"
            f"allowed: the same configuration, but for {', '.join(MAY_CHANGE[1:])}; or another folder"
        )
    return plan_to_go_on(directory, _changed(values, composed, overrides), overrides)


def can_go_on(directory: Path) -> bool:
    """Whether there is a run that is finished or has a checkpoint."""
    return directories.has_checkpoint(directory) or (summary.read(directory) or {}).get("status") == "completed"


def _check_nothing_lost(directory: Path) -> None:
    directories.check_writable(directory, "hydra.run.dir")
    if directories.holds_sweep(directory):
        raise UserError(f"hydra.run.dir={directory}: a sweep is there\nallowed: another folder")
    if epochs := len(metrics.read(directory / "metrics.jsonl")):
        raise UserError(
            f"{directory}: a run of {epochs} epochs without a checkpoint, which would be written over\n"
            "allowed: its checkpoints/last.pt put back, or another folder"
        )


def plan_to_go_on(directory: Path, values: dict[str, Any], overrides: Sequence[str] = ()) -> Plan:
    """The plan for the run of configuration `values` that stopped in `directory`.

    Raises:
        UserError: there is nothing to go on from, or its data have gone.
    """
    settings = with_devices(load_settings(values), values, _asked_devices(values, overrides))
    ended = summary.read(directory)
    if ended and ended["status"] == "completed":
        test = ended["test_accuracy"]
        finished = f"{directory} is finished: test accuracy {test:.2f}%; nothing to resume"
        return Plan(settings, values, None, finished=finished, accuracy=ended.get("best_validation_accuracy", test))
    loggers.check(settings.logger)
    saved, remark = _newest_whole(directory)
    arrays = _data(directory, settings.dataset)
    return Plan(settings, values, arrays, device_for(settings), saved, overrides=list(overrides), remark=remark)


def _newest_whole(directory: Path) -> tuple[dict[str, Any], str]:
    """The newest checkpoint that can be read, and what there is to say of it.

    That is best.pt where a kill fell between the two of an epoch, or where a disk has lost a piece of last.pt.
    """
    from bnn_exp.records import checkpoint

    last, best = (directory / name for name in CHECKPOINTS)
    try:
        saved = checkpoint.load(last)
    except UserError as error:
        if not best.is_file():
            raise
        saved = checkpoint.load(best)
        return saved, f"{str(error).splitlines()[0]}\ngoes on from {best}, after epoch {saved['progress']['epoch']}"
    if best.is_file() and best.stat().st_mtime_ns > last.stat().st_mtime_ns:
        with suppress(UserError):
            saved = max(saved, checkpoint.load(best), key=lambda state: state.get("progress", {}).get("epoch", 0))
    return saved, ""


def _data(directory: Path, dataset: Any) -> Arrays:
    path = getattr(dataset, "path", None)
    if path and not Path(path).exists():
        raise UserError(
            f"dataset.path={path}: no such folder; the run in {directory} has read its data there\n"
            "allowed: dataset.path=FOLDER beside resume, where they lie now"
        )
    return read(dataset)


def _values_in(directory: Path, asked: str) -> dict[str, Any]:
    """The plain values of the configuration that a run keeps."""
    file = directory / "config.yaml"
    if not file.is_file():
        if directories.holds_sweep(directory):
            reason = "a sweep, and no run\nallowed: bnn-train -m … sweep.resume=SWEEP, with the settings of the sweep"
        else:
            reason = _no_run(directory)
        raise UserError(f"{asked}: {reason}")
    values: Any = {}
    try:
        saved: Any = OmegaConf.to_container(OmegaConf.load(file))
        values = migrated(saved)
        load_settings(values)
    except Exception as error:
        reason = str(error).splitlines()[0]
        hint = plugins.not_loaded(values.get("plugins")) if isinstance(values, dict) else ""
        raise UserError(f"{file}: not the configuration of a run ({reason})" + f"\n{hint}" * bool(hint)) from error
    return values


def _no_run(place: Path) -> str:
    """Says in two lines why there is no run to go on with at `place`."""
    if place.is_file():
        return f"a file\nallowed: the directory of the run, {run_of(place)}"
    found = "no config.yaml in it" if place.is_dir() else "no such folder"
    return f"{found}\nallowed: the directory of a run, outputs/DATE/TIME-…"


def _changed(values: dict[str, Any], composed: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """The `values` of a run with what `overrides` say of the keys that may change, as the `composed` configuration has it."""
    for key in {_key(item) for item in overrides} & set(MAY_CHANGE[1:]):
        group, _, name = key.rpartition(".")
        asked = OmegaConf.select(composed, key)
        (values[group] if group else values)[name] = str(Path(at_home(asked)).resolve()) if key == "dataset.path" else asked
    return values | {"plugins": plugins.entries(composed.get("plugins"))}


def _asked_devices(values: dict[str, Any], overrides: Sequence[str]) -> int | None:
    return values["engine"]["devices"] if "engine.devices" in map(_key, overrides) else None


def asked_of_run(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides that configure a run, without those that only say how it starts (resume)."""
    return [item for item in overrides if _key(item) not in ("resume", "sweep.resume")]


def _key(override: str) -> str:
    key = override.lstrip("+~").partition("=")[0]
    return "engine.name" if key == "engine" else key


def difference(there: dict[str, Any], asked: dict[str, Any], but: Collection[str] = MAY_CHANGE) -> tuple[str, Any, Any] | None:
    """The first setting, of all `but` some, that differs between two configurations, and its two values.

    Keys that one of them does not have, since an earlier version wrote it, count as their defaults.
    """
    one, other = flat(there), flat(asked)
    if one.keys() != other.keys():
        one, other = (flat(asdict(load_settings(values))) for values in (there, asked))
    for key in one | other:
        if key not in (*but, SAID_TWICE) and one.get(key) != other.get(key):
            return key, one.get(key), other.get(key)
    return None
