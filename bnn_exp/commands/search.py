"""Searches a space of settings: Optuna chooses trials, Hydra's launcher runs them (Akiba et al. 2019, arXiv 1907.10902).

Hydra's own Optuna sweeper requires Optuna 2, so it is not used. The user writes the space in Hydra's sweep syntax. The
directory of the sweep keeps the trials. Any launcher can run the trials, `hydra.sweeper.max_batch_size` at a time, or as many
as `launcher=local` has places for.
"""

import copy
import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
from hydra._internal.callbacks import Callbacks
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from bnn_exp.commands.sweep_jobs import MAY_DIFFER, with_moved_data, without_hydra
from bnn_exp.config.migrate import migrated
from bnn_exp.config.settings import load_settings
from bnn_exp.errors import UserError
from bnn_exp.records.files import replacing, writing_to
from bnn_exp.records.runs import as_text, flat
from bnn_exp.training.plan import values_of
from bnn_exp.training.resume import difference

JOURNAL, NAME = "optuna.log", "search"
ENDED = "ended"  # Optuna's trials get this attribute when they end, also after a failure
Space = Mapping[str, Any]  # the keys that a search varies, each with its Optuna distribution


def search(config: DictConfig, job: TaskFunction) -> None:
    """Runs trials until `sweep.trials` trials of the sweep's directory have ended.

    Args:
        config: the composed configuration of the sweep, with Hydra's own settings.
        job: the function of one trial. Optuna maximises its return value; None means that the trial failed.

    Raises:
        UserError: the overrides are no space to search, or the directory holds another search.
    """
    loader = GlobalHydra.instance().config_loader()
    overrides = OverridesParser.create(loader).parse_overrides(list(config.hydra.overrides.task))
    space = {o.get_key_element(): distribution(o) for o in overrides if o.is_sweep_override()}
    fixed = [o.input_line for o in overrides if not o.is_sweep_override()]
    if not space:
        raise UserError("sweep.search=optuna: nothing to search\nallowed: KEY=interval(A,B), KEY=A,B,…")
    first = _check_names(loader, config, fixed, space)
    directory = Path(config.hydra.sweep.dir)
    _check_same_search(directory, config, space)
    for one in filter(Override.is_sweep_override, overrides):
        _check_values(one, space[one.get_key_element()], first)
    launcher = Plugins.instance().instantiate_launcher(HydraContext(loader, Callbacks(config)), job, config)
    with writing_to(directory):
        with replacing(directory / "multirun.yaml") as file:
            OmegaConf.save(config, file)
        study = _study(directory, config.seed, space)
    at_a_time = config.hydra.sweeper.get("max_batch_size") or getattr(launcher, "at_a_time", 1)
    while (left := config.sweep.trials - _ended(study)) > 0:
        trials = [study.ask(space) for _ in range(min(at_a_time, left))]
        asked = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in trials]
        returned = launcher.launch(asked, initial_job_idx=trials[0].number)
        for trial, result in zip(trials, returned, strict=True):
            value = result.return_value
            trial.set_user_attr(ENDED, True)
            study.tell(trial, value, state=TrialState.COMPLETE if value is not None else TrialState.FAIL)


def _ended(study: optuna.Study) -> int:
    """Returns the number of trials that ran to their end, good or bad. A stopped trial does not count: it will run again."""
    return sum(ENDED in trial.user_attrs for trial in study.trials)


def _study(directory: Path, seed: int, space: Space) -> optuna.Study:
    """Returns the study in `directory`, or a new one. Trials that were running when the search was stopped run again."""
    file = directory / JOURNAL
    if file.is_file():
        _fit(file, space)
    study = _open(file)
    study.sampler = optuna.samplers.TPESampler(seed=(seed + len(study.trials)) % 2**32)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def _open(file: Path) -> optuna.Study:
    return optuna.create_study(storage=_storage(file), study_name=NAME, direction="maximize", load_if_exists=True)


def _trials(file: Path) -> list[FrozenTrial]:
    """Returns the trials in the journal `file` of a search; none if the search was killed before it stored a study."""
    try:
        return optuna.load_study(storage=_storage(file), study_name=NAME).trials
    except KeyError:  # the search was killed before it made a study
        return []


def _storage(file: Path) -> JournalStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return JournalStorage(JournalFileBackend(str(file)))


def _fit(file: Path, space: Space) -> None:
    """Rewrites the trials in the journal `file` for a wider `space`: Optuna refuses a study whose choices have changed."""
    trials = _trials(file)
    if all(space[key] == known for trial in trials for key, known in trial.distributions.items()):
        return
    with replacing(file) as temporary:
        study = _open(temporary)
        for trial in trials:
            values = {key: _value_in(space[key], value) for key, value in trial.params.items()}
            trial.distributions = {key: space[key] for key in values}
            trial.params = values
            study.add_trial(trial)


def _value_in(space: BaseDistribution, value: Any) -> Any:
    """Returns the value of a trial in the form that `space`, the values of one key, uses; None if `space` lacks the value."""
    value = str(value) if isinstance(space, CategoricalDistribution) else value
    try:
        inner = space.to_internal_repr(value)
    except ValueError:
        return None
    return space.to_external_repr(inner) if space._contains(inner) else None


def _check_same_search(directory: Path, config: DictConfig, space: Space) -> None:
    """Checks that the search in `directory`, if there is one, can continue.

    Raises:
        UserError: a fixed setting differs, or a trial has a value that `space` lacks.
    """
    if not (directory / JOURNAL).is_file():
        return
    same = "allowed: the settings of that search, in its space or a wider one; or a new search, in another folder"
    for trial in _trials(directory / JOURNAL):
        for key, value in trial.params.items():
            if key not in space:
                raise UserError(f"{key}: the search in {directory} varies it (trial {trial.number}: {key}={value})\n{same}")
            if _value_in(space[key], value) is None:
                raise UserError(f"{key}: trial {trial.number} of the search in {directory} has {key}={value}\n{same}")
        others = [key for key in space if key not in trial.params]
        if others and ENDED in trial.user_attrs:
            raise UserError(f"{others[0]}: the search in {directory} does not vary it\n{same}")
    if different := _difference(directory, config, space):
        key, there, asked = different
        key = key.removesuffix(".name")
        raise UserError(f"{key}={as_text(asked)}: the search in {directory} has {key}={as_text(there)}\n{same}")


def _difference(directory: Path, config: DictConfig, space: Space) -> tuple[str, Any, Any] | None:
    """Returns (key, saved value, value now) of the first fixed setting that differs from the search saved in `directory`.

    None if no setting differs, or if the saved settings can't be read.
    """
    try:
        saved: Any = OmegaConf.load(directory / "multirun.yaml")
        there = migrated(values_of(without_hydra(saved)))
    except Exception:  # a missing or damaged file: YAML and OmegaConf have no common exception class
        return None
    asked = values_of(without_hydra(config))
    varied = {key for key in flat(asked) for own in space if key == own or key.startswith(f"{own}.")}
    return difference(with_moved_data(there, asked), asked, {*MAY_DIFFER, *varied})


def _check_names(loader: ConfigLoader, config: DictConfig, fixed: list[str], space: Space) -> list[DictConfig]:
    """Returns composed configurations of trials that together have every choice of every group in the space.

    Args:
        config: the composed configuration of the sweep.
        fixed: the overrides that all trials share.

    Raises:
        HydraException: a key or a choice does not exist.
    """
    values = {key: d.choices if isinstance(d, CategoricalDistribution) else (d.low,) for key, d in space.items()}
    groups = [len(choices) for key, choices in values.items() if loader.get_group_options(key)]
    composed = []
    for number in range(max(groups, default=1)):
        trial = [f"{key}={choices[min(number, len(choices) - 1)]}" for key, choices in values.items()]
        composed.append(loader.load_sweep_config(config, [*fixed, *trial]))
    return composed


def _check_values(override: Override, space: Any, composed: list[DictConfig]) -> None:
    """Checks that each end of a space of numbers is allowed in at least one of the composed configurations.

    Args:
        override: the override that varies a key over `space`. A space of choices is not checked.

    Raises:
        UserError: no configuration allows one of the ends.
    """
    if isinstance(space, CategoricalDistribution):
        return
    key, (low, high) = override.get_key_element(), (space.low, space.high)
    inner = (low, high) if isinstance(space, IntDistribution) else (math.nextafter(low, high), math.nextafter(high, low))
    for number in inner:
        refused = [_refused(key, number, one) for one in composed]
        if all(refused):
            n = math.ceil(low)
            whole = any(_refused(key, float(n), one) and not _refused(key, n, one) for one in composed)
            cure = f": {key}=int({override.input_line.partition('=')[2]})" if whole else ""
            raise UserError(f"{override.input_line}: some of its numbers are not allowed\n{refused[0]}{cure}")


def _refused(key: str, value: float, composed: DictConfig) -> str:
    """Returns the line `allowed: …` if the configuration `composed` refuses the value for `key`; "" if it accepts the value."""
    asked = copy.deepcopy(without_hydra(composed))
    OmegaConf.update(asked, key, value)
    try:
        load_settings(asked)
    except UserError as error:
        lines = str(error).splitlines()
        return next((after for line, after in itertools.pairwise(lines) if line.startswith(f"{key}=")), "")
    return ""


def distribution(override: Override) -> BaseDistribution:
    """Returns the space of values that an override in Hydra's sweep syntax describes.

    A,B are choices; range(A,B) and int(interval(A,B)) are whole numbers; interval(A,B) are real numbers.

    Raises:
        UserError: the override has another form, or its space is empty.
    """
    sweep: Any = override.value()
    log = isinstance(sweep, IntervalSweep | RangeSweep) and "log" in sweep.tags
    if isinstance(sweep, ChoiceSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    if isinstance(sweep, RangeSweep) and sweep.step and all(isinstance(n, int) for n in (sweep.start, sweep.stop, sweep.step)):
        return _whole_numbers(override, range(int(sweep.start), int(sweep.stop), int(sweep.step)), log)
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        if not (low <= high and math.isfinite(low) and math.isfinite(high)):
            raise UserError(f"{override.input_line}: no space to search\nallowed: interval(A,B) of two numbers with A ≤ B")
        _check_log(override, log, low)
        kind: Any = IntDistribution if isinstance(low, int) and isinstance(high, int) else FloatDistribution
        return kind(low, high, log=log)
    raise UserError(
        f"{override.input_line}: no space to search\nallowed: interval(A,B), tag(log,interval(A,B)), range(A,B), A,B,…"
    )


def _whole_numbers(override: Override, numbers: range, log: bool) -> IntDistribution:
    if not numbers:
        raise UserError(f"{override.input_line}: no number in it\nallowed: range(A,B) of whole numbers with A < B")
    low, high = min(numbers), max(numbers)
    _check_log(override, log, low)
    return IntDistribution(low, high, log=log, step=1 if log else abs(numbers.step))


def _check_log(override: Override, log: bool, low: float) -> None:
    if log and low <= 0:
        raise UserError(f"{override.input_line}: {low:g} has no logarithm\nallowed: tag(log,interval(A,B)) with 0 < A ≤ B")
