"""Makes the plan of a run that resumes: finds its checkpoint, and applies new values of the settings that may change.

Imports torch only to read a checkpoint.
"""

from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bnn_exp.config import plugins, zoo
from bnn_exp.config.migrate import migrated
from bnn_exp.config.paths import at_home
from bnn_exp.config.settings import load_settings
from bnn_exp.data.sources import Arrays
from bnn_exp.errors import UserError
from bnn_exp.records import directories, loggers, metrics, summary
from bnn_exp.records.directories import CHECKPOINTS
from bnn_exp.records.runs import as_text, flat, run_of
from bnn_exp.training import engine, precision
from bnn_exp.training.plan import Plan, device_for, make_plan, read, values_of, with_devices

AUTO = "auto"  # resume=auto: resume the run if there is one, else begin
SHORTCUT = "delta"  # the key sets optimizer.delta, which is compared in its place
OF_THE_COMMAND = ("min_accuracy", "which")  # settings of a command, not of a run
MAY_CHANGE = ("resume", "device", "engine.devices", "engine.name", "engine.memory", "dataset.path", "plugins")


def plan_to_resume(composed: DictConfig, overrides: Sequence[str], directory: Path) -> Plan:
    """Returns the plan of `resume=RUN`: the run's own configuration, with the `overrides` of keys that may change.

    Raises:
        UserError: there is no run, the run has no checkpoint that can be read, or an override sets a key that may not change.
    """
    resumed = Path(composed.resume)
    values = _values_in(resumed, f"resume={resumed}")
    allowed = {*MAY_CHANGE, *OF_THE_COMMAND, f"dataset={values.get('dataset', {}).get('name')}"}
    others = [item for item in overrides if _key(item) not in allowed and item not in allowed]
    if others:
        raise UserError(
            f"{others[0]}: a resumed run keeps its own configuration\n"
            f"allowed beside resume: {', '.join(MAY_CHANGE[1:])}; "
            f"or a new run: init_from={resumed} {others[0]} begins with its bits, config={resumed} {others[0]} with new bits"
        )
    directories.check_same(directory, resumed, "hydra.run.dir", "resume")
    earlier = (summary.read(resumed) or {}).get("overrides", [])
    return replace(plan_to_go_on(resumed, _changed(values, composed, overrides), overrides), overrides=earlier)


def plan_to_go_on_or_begin(composed: DictConfig, overrides: Sequence[str], directory: Path) -> Plan:
    """Returns the plan of `resume=auto`: resumes the run in `directory` if it is finished or has a checkpoint, else begins one.

    Raises:
        UserError: the configuration is wrong, or differs from the run's configuration in a key that may not change.
    """
    if not can_go_on(directory):
        _check_nothing_lost(directory)
        return replace(make_plan(composed, overrides), remark=f"nothing to resume in {directory}: the run begins")
    values = _values_in(directory, f"hydra.run.dir={directory}")
    load_settings(composed)
    if different := difference(values, values_of(composed)):
        key, there, asked = different
        raise UserError(
            f"{key}={as_text(asked)}: the run in {directory} has {key}={as_text(there)}\n"
            f"allowed: the same configuration except {', '.join(MAY_CHANGE[1:])}; or another folder"
        )
    return plan_to_go_on(directory, _changed(values, composed, overrides), overrides)


def can_go_on(directory: Path) -> bool:
    """Returns True if the directory holds a run that is finished or has a checkpoint."""
    return directories.has_checkpoint(directory) or (summary.read(directory) or {}).get("status") == "completed"


def _check_nothing_lost(directory: Path) -> None:
    directories.check_writable(directory, "hydra.run.dir")
    if directories.holds_sweep(directory):
        raise UserError(f"hydra.run.dir={directory}: a sweep is there\nallowed: another folder")
    if epochs := len(metrics.read(directory / "metrics.jsonl")):
        raise UserError(
            f"{directory}: holds a run of {epochs} epochs without a checkpoint; a new run would overwrite them\n"
            "allowed: its checkpoints/last.pt put back, or another folder"
        )


def plan_to_go_on(directory: Path, values: dict[str, Any], overrides: Sequence[str] = ()) -> Plan:
    """Returns the plan that continues the run in `directory`.

    Args:
        values: the configuration of the run, as plain values.
        overrides: the overrides of the command line.

    Raises:
        UserError: no checkpoint can be read, or the folder of the data no longer exists.
    """
    settings = with_devices(load_settings(values), values, _requested_devices(values, overrides))
    ended = summary.read(directory)
    if ended and ended["status"] == "completed":
        test = ended["test_accuracy"]
        finished = f"{directory} is finished: test accuracy {test:.2f}%; nothing to resume"
        return Plan(settings, values, None, finished=finished, accuracy=ended.get("best_validation_accuracy", test))
    loggers.check(settings.logger)
    saved, remark = _newest_whole(directory)
    arrays = _data(directory, settings.dataset)
    device = device_for(settings)
    settings = precision.as_begun(engine.as_begun(settings, device, saved.get("engine")), device, saved)
    return Plan(settings, values, arrays, device, saved, overrides=list(overrides), remark=remark)


def _newest_whole(directory: Path) -> tuple[dict[str, Any], str]:
    """Returns the newest checkpoint that can be read, and a remark for the user ("" if the newest checkpoint is whole).

    The newest checkpoint is best.pt if the process was killed between writing best.pt and last.pt. best.pt also replaces a
    damaged last.pt.
    """
    from bnn_exp.records import checkpoint

    last, best = (directory / name for name in CHECKPOINTS)
    try:
        saved = checkpoint.load(last)
    except UserError as error:
        if not best.is_file():
            raise
        saved = checkpoint.load(best)
        return saved, f"{str(error).splitlines()[0]}\nthe run resumes from {best}, after epoch {saved['progress']['epoch']}"
    if best.is_file() and best.stat().st_mtime_ns > last.stat().st_mtime_ns:
        with suppress(UserError):
            saved = max(saved, checkpoint.load(best), key=lambda state: state.get("progress", {}).get("epoch", 0))
    return saved, ""


def _data(directory: Path, dataset: Any) -> Arrays:
    path = getattr(dataset, "path", None)
    if path and not Path(path).exists():
        raise UserError(
            f"dataset.path={path}: no such folder; the run in {directory} has read its data there\n"
            "allowed: dataset.path=FOLDER beside resume, with the folder of the data now"
        )
    return read(dataset)


def _values_in(directory: Path, requested_by: str) -> dict[str, Any]:
    """Returns the configuration in the directory of a run, as plain values.

    Args:
        requested_by: the setting that names the directory, for messages.

    Raises:
        UserError: there is no run, or its configuration cannot be read.
    """
    file = directory / "config.yaml"
    if not file.is_file():
        if directories.holds_sweep(directory):
            reason = "a sweep, and no run\nallowed: bnn-train -m … sweep.resume=SWEEP, with the settings of the sweep"
        else:
            reason = _no_run(directory)
        raise UserError(f"{requested_by}: {reason}")
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
    """Returns a message of two lines: why `place` is not the directory of a run."""
    if place.is_file():
        return f"a file\nallowed: the directory of the run, {run_of(place)}"
    if place.as_posix() in zoo.names():
        return f"a network of the zoo, not a run\nallowed: init_from={place.as_posix()}, or the directory of a run"
    found = "no config.yaml in it" if place.is_dir() else "no such folder"
    return f"{found}\nallowed: the directory of a run, outputs/DATE/TIME-…"


def _changed(values: dict[str, Any], composed: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Returns the `values` of a run, with the `composed` value of each key that the overrides set and that may change."""
    for key in {_key(item) for item in overrides} & set(MAY_CHANGE[1:]):
        group, _, name = key.rpartition(".")
        value = OmegaConf.select(composed, key)
        (values[group] if group else values)[name] = str(Path(at_home(value)).resolve()) if key == "dataset.path" else value
    return values | {"plugins": plugins.entries(composed.get("plugins"))}


def _requested_devices(values: dict[str, Any], overrides: Sequence[str]) -> int | None:
    return values["engine"]["devices"] if "engine.devices" in map(_key, overrides) else None


def asked_of_run(overrides: Sequence[str]) -> list[str]:
    """Returns the overrides that configure a run, without the overrides that only say how the run starts (resume)."""
    return [item for item in overrides if _key(item) not in ("resume", "sweep.resume")]


def _key(override: str) -> str:
    key = override.lstrip("+~").partition("=")[0]
    return "engine.name" if key == "engine" else key


def difference(there: dict[str, Any], asked: dict[str, Any], but: Collection[str] = MAY_CHANGE) -> tuple[str, Any, Any] | None:
    """Compares the configurations `there` and `asked`, given as plain values. A missing key counts as its default value.

    Args:
        but: the keys that may differ.

    Returns:
        The first key that differs and its two values; None if there is no difference.
    """
    one, other = flat(there), flat(asked)
    if one.keys() != other.keys():
        one, other = (flat(asdict(load_settings(values))) for values in (there, asked))
    for key in one | other:
        if key not in (*but, SHORTCUT) and one.get(key) != other.get(key):
            return key, one.get(key), other.get(key)
    return None
