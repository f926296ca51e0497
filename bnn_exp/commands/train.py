"""`task=train`: plans a run before Hydra makes its directory, then executes the run. Imports torch only when a run begins."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bnn_exp.commands import command, sweep_jobs
from bnn_exp.commands.min_accuracy import Gate
from bnn_exp.config import plugins
from bnn_exp.errors import FAILED, INTERRUPTED, TOO_LOW, Expected, NotWritten, RankLost, UserError, place, reason
from bnn_exp.records import directories, summary
from bnn_exp.training import signals
from bnn_exp.training.plan import Plan, make_plan
from bnn_exp.training.resume import AUTO, asked_of_run, plan_to_go_on_or_begin, plan_to_resume


def plan_run(composed: DictConfig, overrides: list[str], directory: str) -> Plan:
    """Returns the plan of a run that begins in `directory`, or continues there as the setting `resume` says.

    Raises:
        UserError: the configuration is wrong, or another run is in `directory`.
    """
    where, found = Path(directory), directories.state(Path(directory))
    if composed.resume == AUTO:
        if not directory:
            raise UserError("resume=auto: the directory of the run is missing\nallowed: hydra.run.dir=FOLDER beside it")
        plan = plan_to_go_on_or_begin(composed, asked_of_run(overrides), where)
    elif composed.resume:
        plan = plan_to_resume(composed, overrides, where)
    else:
        directories.check_free_for_run(where)
        plan = make_plan(composed, overrides)
    return replace(plan, found=found)


def train(composed: DictConfig, directory: Path, plan: Plan | None) -> float | None:
    """Executes one run. Every exception becomes a message and an exit code; the summary of the run holds the reason.

    Args:
        directory: the directory that Hydra chose for the job.
        plan: the plan of the run; None for a job of a sweep, which this function plans.

    Returns:
        The best validation accuracy in percent, or the test accuracy if no validation rows exist; None if the run failed.

    Raises:
        KeyboardInterrupt: a signal ended the run.
    """
    now = command.current()
    try:
        plugins.load(composed.get("plugins"))  # a job in another process has not loaded the plugins yet
        if plan is None:
            plan, directory = _plan_of_job(composed, directory)
        result = _finished(plan, directory) if plan.finished else _execute(plan, directory)
    except NotWritten as error:
        now.fail_with(error, f"next: {_command_to_go_on(directory)}, when there is room")
    except RankLost as error:
        now.fail(f"{error.prefix}{error}; bnn-train resume={directory} continues after the last epoch", error.exit_code)
    except Expected as error:
        now.fail_with(error)
    except Exception as error:
        log = directory / "train.log"
        details = f"\n{log} has the details" if log.is_file() else ""
        now.fail(f"failed: {reason(error)} ({place(error)}){details}", FAILED)
    else:
        # A signal that comes when the run is complete still ends the sweep.
        if result["status"] == "interrupted" or (now.sweep and signals.asked()):
            now.codes.append(INTERRUPTED)
            raise KeyboardInterrupt
        if shortfall := Gate(composed.min_accuracy, composed.which).of_run(result):
            now.fail(shortfall, TOO_LOW)
        return plan.accuracy if plan.finished else result.get("best_validation_accuracy", result["test_accuracy"])


def _plan_of_job(composed: DictConfig, directory: Path) -> tuple[Plan, Path]:
    if "sweep" not in composed:
        raise UserError("--config-name: this configuration lacks our settings\nallowed: defaults that begin with `- config`")
    hydra, resumed = HydraConfig.get(), composed.resume or composed.sweep.resume
    overrides = asked_of_run(hydra.overrides.task)
    return sweep_jobs.plan_in(directory, composed, overrides, Path(hydra.sweep.dir) if resumed else None)


def _finished(plan: Plan, directory: Path) -> dict[str, Any]:
    command.current().say(plan.finished)
    return summary.read(directory)


def _execute(plan: Plan, directory: Path) -> dict[str, Any]:
    from bnn_exp.training.launch import ranks_of  # imported here, because it loads torch
    from bnn_exp.training.run import Run

    with ranks_of(plan, directory) as ranks:
        return Run(plan, directory, ranks).execute()


def _command_to_go_on(directory: Path) -> str:
    """Returns the command that continues the run in `directory`, or begins the run anew if the run has no checkpoint."""
    if directories.has_checkpoint(directory):
        return f"bnn-train resume={directory}"
    return f"the same command with hydra.run.dir={directory} resume=auto"
