"""Search beyond grids: Optuna asks, Hydra's launcher runs, Optuna is told (Akiba et al. 2019, arXiv 1907.10902).

Not Hydra's own Optuna sweeper, whose last release wants Optuna 2. The space is written in Hydra's sweep syntax, the trials
are kept in the sweep's directory, and they run under any launcher, as many at a time as `hydra.sweeper.max_batch_size` says.
"""

import math
from collections.abc import Mapping
from pathlib import Path

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
from optuna.trial import TrialState

from bnn_exp.errors import UserError

JOURNAL = "optuna.log"


def search(config: DictConfig, job: TaskFunction) -> None:
    """Run trials of `job` until `sweep.trials` of the sweep's directory have ended; `job` returns what is to be large.

    Raises:
        UserError: a sweep that is no space to search.
    """
    loader = GlobalHydra.instance().config_loader()
    overrides = OverridesParser.create(loader).parse_overrides(list(config.hydra.overrides.task))
    space = {o.get_key_element(): distribution(o) for o in overrides if o.is_sweep_override()}
    fixed = [o.input_line for o in overrides if not o.is_sweep_override()]
    if not space:
        raise UserError("sweep.search=optuna: nothing to search\nallowed: KEY=interval(A,B), KEY=A,B,…")
    _check_names(loader, config, fixed, space)
    launcher = Plugins.instance().instantiate_launcher(HydraContext(loader, Callbacks(config)), job, config)
    directory = Path(config.hydra.sweep.dir)
    directory.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(config, directory / "multirun.yaml")
    study = _study(directory, config.seed)
    at_a_time = config.hydra.sweeper.get("max_batch_size") or 1
    while (left := config.sweep.trials - _ended(study)) > 0:
        trials = [study.ask(space) for _ in range(min(at_a_time, left))]
        asked = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in trials]
        returned = launcher.launch(asked, initial_job_idx=trials[0].number)
        for trial, result in zip(trials, returned, strict=True):
            value = result.return_value
            trial.set_user_attr("ended", True)
            study.tell(trial, value, state=TrialState.COMPLETE if value is not None else TrialState.FAIL)


def _ended(study: optuna.Study) -> int:
    """Trials that ran to an end, good or bad; not those that were stopped and asked for again."""
    return sum("ended" in trial.user_attrs for trial in study.trials)


def _study(directory: Path, seed: int) -> optuna.Study:
    """The study kept in `directory`; trials that were under way when it was stopped are asked for again."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(directory / JOURNAL)))
    study = optuna.create_study(storage=storage, study_name="search", direction="maximize", load_if_exists=True)
    study.sampler = optuna.samplers.TPESampler(seed=(seed + len(study.trials)) % 2**32)
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=TrialState.FAIL)
    return study


def _check_names(loader: ConfigLoader, config: DictConfig, fixed: list[str], space: Mapping[str, BaseDistribution]) -> None:
    """Composes configurations that together have every choice of every group.

    Raises:
        HydraException: a key or a choice does not exist.
    """
    values = {key: d.choices if isinstance(d, CategoricalDistribution) else (d.low,) for key, d in space.items()}
    groups = [len(choices) for key, choices in values.items() if loader.get_group_options(key)]
    for number in range(max(groups, default=1)):
        trial = [f"{key}={choices[min(number, len(choices) - 1)]}" for key, choices in values.items()]
        loader.load_sweep_config(config, [*fixed, *trial])


def distribution(override: Override) -> BaseDistribution:
    """Reads Hydra's sweep syntax as a space: A,B are choices; range and int(interval) whole numbers; interval numbers.

    Raises:
        UserError: a sweep that is none of these, or that holds no value.
    """
    sweep = override.value()
    log = isinstance(sweep, IntervalSweep | RangeSweep) and "log" in sweep.tags
    if isinstance(sweep, ChoiceSweep):
        return CategoricalDistribution(list(override.sweep_string_iterator()))
    if isinstance(sweep, RangeSweep) and sweep.step and all(isinstance(n, int) for n in (sweep.start, sweep.stop, sweep.step)):
        return _whole_numbers(override, range(sweep.start, sweep.stop, sweep.step), log)
    if isinstance(sweep, IntervalSweep):
        low, high = sweep.start, sweep.end
        if not (low <= high and math.isfinite(low) and math.isfinite(high)):
            raise UserError(f"{override.input_line}: no space to search\nallowed: interval(A,B) of two numbers with A ≤ B")
        _check_log(override, log, low)
        kind = IntDistribution if isinstance(low, int) and isinstance(high, int) else FloatDistribution
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
