"""bnn-train: compose, validate, hand over. Until a run begins it imports Hydra alone, so that --help is instant."""

import os
import secrets
import sys
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from bnn_exp import __version__
from bnn_exp.commands import slurm
from bnn_exp.commands.min_accuracy import Gate
from bnn_exp.config import argv, command_line, experiments, hydra_errors, plugins, versions
from bnn_exp.config import models as _models  # noqa: F401 (Hydra finds the default training of each model)
from bnn_exp.config.paths import at_home
from bnn_exp.config.registry import CONF
from bnn_exp.errors import FULL, NotWritten, RankLost, TooLow, UserError, WrongResult, place, reason
from bnn_exp.records.standard_streams import forgiving_output
from bnn_exp.training import distributed, signals

if TYPE_CHECKING:
    from bnn_exp.config.settings import Report
    from bnn_exp.training.plan import Plan

TAKEN = {"config", "init_from", "from", "resume", "sweep.resume", "plugins"}  # keys that name runs or plugins
FAILED, BAD_INPUT, TOO_LOW, INTERRUPTED = 1, 2, 3, 130  # exit codes

_checked: list["Plan"] = []  # what Preflight made for the one job of this command
_sweep: list[tuple[Path, "Report", Gate]] = []  # the directory of this command's sweep, if it is one; how to report on it
_codes: list[int] = []  # exit codes of what did not end well
_said: list[str] = []  # the messages of this process
_goes_on: list[bool] = []  # not empty: the same command goes on where it was stopped, by resume=auto


def main() -> int:
    """The command. Returns its exit code: 0, or the worst of what went on: 1 failed, 2 bad input, 3 below `min_accuracy`, 130
    interrupted."""
    plugins.end_loading()
    versions.hush()
    with forgiving_output(), signals.listening() as stop:
        try:
            code = _rank()
        except KeyboardInterrupt:
            code = INTERRUPTED
        if code == INTERRUPTED and _goes_on and (message := slurm.requeue(stop.number)):
            say(message)
        return code


def _rank() -> int:
    if distributed.torchrun_rank() > 0:
        from bnn_exp.training.distributed import launch

        with signals.stop_on_signals():
            return launch.follow_torchrun()
    with distributed.leading():
        return _main()


def _main() -> int:
    if "--version" in sys.argv[1:]:
        print(f"bnn-train {__version__}")
        return 0
    for state in (_checked, _sweep, _codes, _said, _goes_on):
        state.clear()
    before, given = os.environ.get("HYDRA_FULL_ERROR"), sys.argv
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's errors come here, to be said in a line
    try:
        typed_here = argv.arguments(sys.argv[1:], CONF)
        sys.argv = _with_program(_with_the_rule_of_masks(_with_path_of_any_dataset([sys.argv[0], *typed_here])))
        if experiments.check(sys.argv[1:], CONF):
            sys.argv.insert(1, "hydra.mode=MULTIRUN")  # Hydra 1.4 takes it from the command line alone
        overrides = command_line.overrides(sys.argv[1:], CONF)
        with _taken_over(overrides, command_line.config_dir(sys.argv[1:])) as beside:
            if beside:
                sys.argv.insert(1, command_line.override("plugins", beside))
            hydra.main(**versions.HYDRA, config_path=str(CONF), config_name="config")(job)()
    except UserError as error:  # in what is typed, or in what a run is to take over from another
        say(str(error))
        _codes.append(BAD_INPUT)
    except KeyboardInterrupt:
        _codes or say("interrupted")
        _codes.append(INTERRUPTED)
    except SystemExit as left:
        if not _sweep or left.code == BAD_INPUT:  # a search that can't be has no answer
            raise
        if left.code:
            _codes.append(left.code)
    except Exception as error:  # Hydra's; a job says itself what is wrong with it
        if before not in (None, "", "0"):
            raise
        full = isinstance(error, OSError) and error.errno in FULL
        say(f"failed: {in_words(error)}" if full else in_words(error))
        _codes.append(FAILED if full else BAD_INPUT)
    finally:
        sys.argv = given
        os.environ.pop("HYDRA_FULL_ERROR") if before is None else os.environ.update(HYDRA_FULL_ERROR=before)
    if _sweep and _sweep[0][0].is_dir():
        with signals.stop_on_signals():
            _conclude(*_sweep[0])
    return max(_codes, default=0)


def _taken_over(overrides: list[str], folder: str | None) -> AbstractContextManager[list[str]]:
    """For Hydra to compose in: what the command takes over from an earlier run, and its plugins; see `inherit.inherited`."""
    plugins.load_installed()
    told = command_line.keys(overrides).keys()
    if not (TAKEN | {"experiment"}) & told and not plugins.program():
        return nullcontext([])
    from bnn_exp.records import inherit

    return inherit.inherited(overrides, folder)


def _with_program(arguments: list[str]) -> list[str]:
    """The command line of a program that registers something. If it has `plugins=`, this names the program's file too."""
    own, given = plugins.program(), [i for i, argument in enumerate(arguments) if argument.startswith("plugins=")]
    if not own or not given:
        return arguments
    named = command_line.values([arguments[given[-1]]], "plugins")
    added = [entry for entry in own if entry not in plugins.entries(named)]
    others = [argument for i, argument in enumerate(arguments) if i not in given]
    return [*others, command_line.override("plugins", [*named, *added])] if added else arguments


def _with_path_of_any_dataset(arguments: list[str]) -> list[str]:
    """The command line of `resume=RUN dataset.path=FOLDER`, said so that Hydra takes the path for whatever dataset RUN has."""
    resumed = any(argument.startswith("resume=") for argument in arguments)
    named = any(argument.startswith("dataset=") for argument in arguments)
    if not resumed or named:
        return arguments
    return ["++" + argument if argument.startswith("dataset.path=") else argument for argument in arguments]


def _with_the_rule_of_masks(arguments: list[str]) -> list[str]:
    """Returns the command line of `optimizer.mask=…` with the rule that alone has masks, where nothing names a rule."""
    told = command_line.keys(arguments)
    names_rule = {"optimizer", "experiment", "config", "init_from"} & told.keys()
    if names_rule or "optimizer.mask" not in told:
        return arguments
    beside = next(i for i, argument in enumerate(arguments) if argument.lstrip("+").startswith("optimizer.mask="))
    return [*arguments[:beside], "optimizer=hypermask", *arguments[beside:]]


def _conclude(directory: Path, report: "Report", gate: Gate) -> None:
    from bnn_exp.commands import sweep

    try:
        completed = sweep.conclude(directory, report, INTERRUPTED in _codes)
    except UserError as error:
        say(str(error))
        _codes.append(BAD_INPUT)
    except NotWritten as error:
        say(f"failed: {error}\nnext: bnn-train task=report from={directory}, when there is room")
        _codes.append(FAILED)
    else:
        if completed is not None:  # in whatever process its jobs ran
            failed = not completed or {*_codes} - {TOO_LOW}
            low = sweep.below(directory, gate)
            low and say(low)
            _codes[:] = [INTERRUPTED] if INTERRUPTED in _codes else [FAILED] if failed else [TOO_LOW] if low else []


@forgiving_output()  # which a job in another process has not yet
def job(composed: DictConfig) -> float | None:
    """One run: the one of this command, or one of a sweep, perhaps in another process. Returns what a search maximises: its
    best validation accuracy in percent or, where no rows are kept back, its test accuracy.

    What goes wrong with it does not stop a sweep: it is said, and stands in the run's summary.
    """
    directory = Path(HydraConfig.get().runtime.output_dir)
    try:
        plugins.load(composed.get("plugins"))  # in another process than that of the command
        if _checked:
            plan = _checked.pop()
        else:
            plan, directory = _plan_in(directory, composed)
        if plan.finished:
            say(plan.finished)
            return plan.accuracy
        from bnn_exp.training.distributed.launch import ranks_of  # and torch with it
        from bnn_exp.training.run import Run

        with ranks_of(plan, directory) as ranks:
            result = Run(plan, directory, ranks).execute()
    except UserError as error:
        say(str(error))
        _codes.append(BAD_INPUT)
    except NotWritten as error:
        say(f"failed: {error}\nnext: {_again(directory)}, when there is room")
        _codes.append(FAILED)
    except RankLost as error:
        say(f"failed: {error}; bnn-train resume={directory} goes on from the last epoch")
        _codes.append(FAILED)
    except Exception as error:
        log = directory / "train.log"
        say(f"failed: {reason(error)} ({place(error)})" + (f"\n{log} says more" if log.is_file() else ""))
        _codes.append(FAILED)
    else:
        if result["status"] == "interrupted" or (_sweep and signals.asked()):  # asked too late for this run, not for the next
            _codes.append(INTERRUPTED)
            raise KeyboardInterrupt  # which ends a sweep too
        if low := Gate(composed.min_accuracy, composed.which).of_run(result):
            say(low)
            _codes.append(TOO_LOW)
        return result.get("best_validation_accuracy", result["test_accuracy"])


def _again(directory: Path) -> str:
    """The command that goes on with the run in `directory`, or begins it anew where it has no checkpoint."""
    from bnn_exp.records import directories

    if directories.has_checkpoint(directory):
        return f"bnn-train resume={directory}"
    return f"the same command with hydra.run.dir={directory} resume=auto"


def _plan_in(directory: Path, composed: DictConfig) -> tuple["Plan", Path]:
    from bnn_exp.commands import sweep
    from bnn_exp.training.resume import asked_of_run

    if "sweep" not in composed:
        raise UserError("--config-name: that configuration lacks ours\nallowed: one whose defaults begin with `- config`")
    hydra_config, resumed = HydraConfig.get(), composed.resume or composed.sweep.resume
    overrides = asked_of_run(hydra_config.overrides.task)
    return sweep.plan_in(directory, composed, overrides, Path(hydra_config.sweep.dir) if resumed else None)


class Preflight(Callback):
    """Checks what is asked for before Hydra makes a directory, so that bad input leaves nothing behind."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        from bnn_exp.commands import sweep, tasks

        self._note(config, "hydra.run.dir")
        chosen = any(item.startswith("hydra.run.dir=") for item in config.hydra.overrides.hydra)
        given = sweep.without_hydra(config), list(config.hydra.overrides.task), config.hydra.run.dir
        plan = self._or_leave(tasks.prepare, *given, chosen, command_line.flags(config.hydra))
        _checked.append(plan)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        from bnn_exp.commands import sweep, tasks

        self._note(config, "hydra.sweep.dir")
        given = sweep.without_hydra(config), list(config.hydra.overrides.task), config.hydra.sweep.dir
        report, gate = self._or_leave(tasks.prepare_sweep, *given, config.hydra.sweeper.get("params"))
        _sweep.append((Path(config.hydra.sweep.dir).absolute(), report, gate))
        if "submitit_launcher.LocalLauncher" in config.hydra.launcher.get("_target_", ""):
            from bnn_exp.commands import jobs

            jobs.use()
        if config.sweep.search == "optuna":
            self._or_leave(tasks.search, config, job)
            sys.exit()  # Hydra's own sweeper has nothing left to do

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        job_return.cfg = job_return.hydra_cfg = None  # which Hydra would keep, a quarter of a megabyte each, to a sweep's end

    @staticmethod
    def _note(config: DictConfig, place: str) -> None:
        """Keeps what the command line or an experiment says of where the results go, with ~ expanded."""
        given = OmegaConf.select(config, place)
        if (path := at_home(given)) != given:
            with read_write(config.hydra):
                OmegaConf.update(config, place, path)
                config.hydra.overrides.hydra.append(f"{place}={path}")  # jobs of a sweep are composed anew
        if "auto" in (config.resume, config.sweep.resume):
            _goes_on.append(True)

    @staticmethod
    def _or_leave(prepare: Callable, *arguments: Any) -> Any:
        """Returns what `prepare` returns. A message or an error is printed, and ends the process."""
        try:
            prepared = prepare(*arguments)
        except UserError as error:
            _leave(str(error), BAD_INPUT)
        except WrongResult as error:
            _leave(str(error), FAILED)
        except TooLow as error:
            _leave(str(error), TOO_LOW)
        except NotWritten as error:
            _leave(f"failed: {error}", FAILED)
        except HydraException as error:
            _leave(in_words(error), BAD_INPUT)
        except Exception:  # Hydra would only warn of it
            traceback.print_exc()
            sys.exit(FAILED)
        if isinstance(prepared, str):
            _leave(prepared, 0)
        return prepared


def _leave(message: str, code: int) -> NoReturn:
    say(message)
    sys.exit(code)


def run_directory(resume: str | None, task: str, name: str) -> str:
    """Where a run goes: the directory that it resumes, else one that no other run has; nowhere, where `auto` needs it said."""
    if resume == "auto":
        return "" if task == "train" else run_directory(None, task, name)
    return resume or f"{_now()}-{name if task == 'train' else task}-{secrets.token_hex(2)}"


def sweep_directory(*resume: str | None) -> str:
    """Returns the directory of a sweep, by `sweep.resume` and `resume`: one that is named, else a new one."""
    return "" if "auto" in resume else resume[0] or f"{_now()}-sweep-{secrets.token_hex(2)}"


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _now() -> str:
    return datetime.now().strftime("outputs/%Y-%m-%d/%H-%M-%S.%f")


def weights_for(rule: str) -> str:
    """The weights that a network has for a rule when nothing else is said."""
    from bnn_exp.config import rules

    return rules.trained_by(rule)


def strength(own: float, *, _root_: DictConfig) -> Any:
    """The δ of a rule: `delta` where it is said, else its `own`."""
    return own if _root_.delta is None else _root_.delta


def by(value: Any, choices: Mapping[Any, Any]) -> Any:
    """Returns what `choices` has for a value, else what it has for `else`: a default that follows another setting."""
    return choices[value] if value in choices else choices["else"]


# when imported, since the processes of a sweep import no more than this; a directory is chosen once
ONCE = (run_directory, sweep_directory)
for resolver in (*ONCE, cores, weights_for, strength, by):
    versions.register_resolver(resolver, use_cache=resolver in ONCE)


@dataclass(frozen=True)
class Outcome:
    """The messages of a job in another process, and the exit codes of all that did not end well."""

    said: list[str]
    codes: list[int]


def outcome() -> Outcome:
    """Returns the outcome of this process, so far."""
    return Outcome(_said, _codes)


def take_over(outcome: Outcome) -> None:
    """Says what a job in another process said, and lets it count as if it had run in this one."""
    for message in outcome.said:
        say(message)
    _codes.extend(outcome.codes)


def say(message: str) -> None:
    _said.append(message)
    print(f"bnn-train: {message}", file=sys.stderr)


def in_words(error: Exception) -> str:
    """A line or two for what Hydra or the file system refuses."""
    if isinstance(error, OSError) and not isinstance(error, HydraException):
        return _unwritten(error)
    return hydra_errors.in_words(error, sys.argv[1:])


def _unwritten(error: OSError) -> str:
    """Names what can't be written: a file or folder, where the error knows it, else the directory of the sweep or run."""
    key, place = ("hydra.sweep.dir", _sweep[0][0]) if _sweep else ("hydra.run.dir", "the directory of the run")
    room = "there is room" if error.errno in FULL else "you may write"
    return f"{error.filename or place}: can't be written ({error.strerror or error})\nallowed: {key}=FOLDER where {room}"
