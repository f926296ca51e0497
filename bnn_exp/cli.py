"""The command bnn-train: composes the configuration with Hydra and turns the outcome into an exit code.

This module imports no torch, so --help, completion and bad input answer at once.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import hydra
from hydra.errors import HydraException

from bnn_exp import __version__
from bnn_exp.commands import command, implied, slurm
from bnn_exp.commands.command import Command
from bnn_exp.commands.garbage import rare_collections
from bnn_exp.commands.job import job
from bnn_exp.config import argv, command_line, experiments, hydra_errors, plugins, versions
from bnn_exp.config import models as _models  # noqa: F401 (registers the default training of each model for Hydra)
from bnn_exp.config.composition import composing_once
from bnn_exp.config.registry import CONF
from bnn_exp.errors import BAD_INPUT, FAILED, FULL, INTERRUPTED, UserError
from bnn_exp.records.standard_streams import forgiving_output
from bnn_exp.training import signals, torchrun


def main() -> int:
    """Executes the command line.

    Returns:
        The exit code: 0, or the worst outcome of the jobs (1 failed, 2 bad input, 3 below `min_accuracy`, 130 interrupted).

    Raises:
        SystemExit: the input was refused before any job began; its code is the exit code.
    """
    plugins.end_loading()
    versions.hush()
    with forgiving_output(), rare_collections(), signals.listening() as stop:
        now = command.begin()
        try:
            code = _lead_or_follow(now)
        except KeyboardInterrupt:
            code = INTERRUPTED
        if code == INTERRUPTED and now.goes_on and (message := slurm.requeue(stop.number)):
            now.say(message)
        return code


def _lead_or_follow(now: Command) -> int:
    """Executes the command `now` if this process is rank 0. Another rank, which torchrun started, follows rank 0."""
    if torchrun.torchrun_rank() > 0:
        from bnn_exp.training import launch

        with signals.stop_on_signals():
            return launch.follow_torchrun()
    try:
        if "--version" in sys.argv[1:]:
            print(f"bnn-train {__version__}")
            return 0
        return _execute(now)
    finally:
        if torchrun.torchrun_size() > 1:  # the other ranks wait for a plan: end them if the command sent none
            from bnn_exp.training import launch

            launch.dismiss()


def _execute(now: Command) -> int:
    with _exceptions_from_hydra() as user_wants_tracebacks:
        try:
            _compose_and_run()
        except UserError as error:  # the mistake is in the command line, or in a run from which the command inherits settings
            now.fail_with(error)
        except KeyboardInterrupt:
            if not now.codes:
                now.say("interrupted")
            now.codes.append(INTERRUPTED)
        except SystemExit as left:
            if not now.sweep or left.code == BAD_INPUT:  # a single job and a refused search have no sweep to conclude
                raise
            if left.code:
                now.codes.append(int(left.code))
        except Exception as error:  # from Hydra or the file system, since a job reports its exceptions itself
            if user_wants_tracebacks:
                raise
            _fail_in_hydra(now, error)
    if now.sweep and now.sweep.directory.is_dir():
        from bnn_exp.commands import sweep

        with signals.stop_on_signals():
            sweep.conclude(now)
    return max(now.codes, default=0)


@contextmanager
def _exceptions_from_hydra() -> Iterator[bool]:
    """Context manager: Hydra raises its exceptions to the body and does not print them. Yields a flag for the body.

    The flag is True if the user has set HYDRA_FULL_ERROR to see tracebacks. At the end the manager restores `sys.argv` and
    the environment.
    """
    before, given = os.environ.get("HYDRA_FULL_ERROR"), sys.argv
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield before not in (None, "", "0")
    finally:
        sys.argv = given
        os.environ.pop("HYDRA_FULL_ERROR") if before is None else os.environ.update(HYDRA_FULL_ERROR=before)


def _compose_and_run() -> None:
    """Rewrites the command line and starts Hydra. Hydra composes the configuration, calls `Preflight` and then `job`."""
    sys.argv = [sys.argv[0], *implied.completed(argv.arguments(sys.argv[1:], CONF))]
    if experiments.check(sys.argv[1:], CONF):
        # An experiment requests a sweep. Hydra 1.4 accepts this mode only on the command line.
        sys.argv.insert(1, "hydra.mode=MULTIRUN")
    overrides = command_line.overrides(sys.argv[1:], CONF)
    with implied.inherited(overrides, command_line.config_dir(sys.argv[1:])) as more_plugins:
        if more_plugins:
            sys.argv.insert(1, command_line.override("plugins", more_plugins))
        with composing_once(sys.argv[1:]):
            hydra.main(**versions.HYDRA, config_path=str(CONF), config_name="config")(job)()


def _fail_in_hydra(now: Command, error: Exception) -> None:
    """Reports an exception that Hydra or the file system raised outside of a job, as a failure of the command `now`."""
    if not isinstance(error, OSError) or isinstance(error, HydraException):
        now.fail(hydra_errors.in_words(error, sys.argv[1:]), BAD_INPUT)
        return
    full = error.errno in FULL
    key, place = ("hydra.sweep.dir", now.sweep.directory) if now.sweep else ("hydra.run.dir", "the directory of the run")
    message = f"{error.filename or place}: can't be written ({error.strerror or error})"
    allowed = f"allowed: {key}=FOLDER where {'there is room' if full else 'you may write'}"
    now.fail(f"{'failed: ' if full else ''}{message}\n{allowed}", FAILED if full else BAD_INPUT)
