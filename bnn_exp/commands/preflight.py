"""Checks a command before Hydra makes a directory, so bad input leaves nothing behind. Imports no torch."""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write

from bnn_exp.commands import command
from bnn_exp.config import command_line
from bnn_exp.config.paths import at_home
from bnn_exp.errors import FAILED, Expected

if TYPE_CHECKING:
    from bnn_exp.commands.task import Task
    from bnn_exp.training.plan import Plan

NOWHERE = "."  # the current folder exists already, so Hydra makes no directory


class Preflight(Callback):
    """Hydra's hooks before and after jobs. `conf/config.yaml` names this class."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        """Prepares the input of the command's only job. Hydra then makes a directory for a training, but for no other task."""
        _expand_home(config, "hydra.run.dir")
        command.current().goes_on = config.resume == "auto"
        with _leaving_on_failure():
            command.current().prepared = _prepare(config)
        if config.task != "train":
            with read_write(config.hydra):
                config.hydra.run.dir, config.hydra.output_subdir = NOWHERE, None

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Checks a sweep. If Optuna chooses the trials, the whole search runs here: Hydra's own sweeper knows only grids."""
        from bnn_exp.commands import sweep

        _expand_home(config, "hydra.sweep.dir")
        command.current().goes_on = "auto" in (config.resume, config.sweep.resume)
        with _leaving_on_failure():
            command.current().sweep = sweep.prepare(config)
            if "submitit_launcher.LocalLauncher" in config.hydra.launcher.get("_target_", ""):
                from bnn_exp.commands import jobs

                jobs.use()
            if config.sweep.search == "optuna":
                sweep.search(config)
                sys.exit()  # the search has ended: Hydra's own sweeper has nothing left to do

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        """Frees the two configurations of a job, 250 kB each, which Hydra would keep until the end of a sweep."""
        job_return.cfg = job_return.hydra_cfg = None


def _expand_home(config: DictConfig, place: str) -> None:
    """Replaces ~ by the home directory in the directory that the key `place` of the configuration holds."""
    given = OmegaConf.select(config, place)
    if (path := at_home(given)) != given:
        with read_write(config.hydra):
            OmegaConf.update(config, place, path)
            config.hydra.overrides.hydra.append(f"{place}={path}")  # Hydra composes each job of a sweep from these overrides


def _prepare(config: DictConfig) -> "Plan | Task":
    """Returns the checked input of a job: the plan of a training, or another task.

    Raises:
        UserError: the input is wrong.
    """
    from bnn_exp.commands.sweep_jobs import without_hydra
    from bnn_exp.commands.task import Task
    from bnn_exp.config import plugins, unread
    from bnn_exp.config.settings import load_request
    from bnn_exp.training import engine

    composed, overrides = without_hydra(config), list(config.hydra.overrides.task)
    request = load_request(composed)
    plugins.check_loaded(composed.get("plugins"))
    unread.check_command(request, overrides)
    if request.task == "train":
        from bnn_exp.commands.train import plan_run

        return plan_run(composed, overrides, config.hydra.run.dir)
    engine.let_waiting_threads_sleep(str(composed.device))
    chosen = any(item.startswith("hydra.run.dir=") for item in config.hydra.overrides.hydra)
    return Task(request, composed, overrides, Path(config.hydra.run.dir), chosen, command_line.flags(config.hydra))


@contextmanager
def _leaving_on_failure() -> Iterator[None]:
    """Context manager: ends the process if the body raises an exception, since Hydra only warns of exceptions in a callback."""
    try:
        yield
    except (Expected, HydraException) as error:
        command.current().fail_with(error)
        sys.exit(command.current().codes[-1])
    except Exception:
        traceback.print_exc()
        sys.exit(FAILED)
