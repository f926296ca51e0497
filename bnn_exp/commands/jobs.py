"""The launcher of `launcher=local`: each job is a process. A job ends when the command that started the job ends.

submitit starts two processes for each job: the job, and a process that waits for the job and passes SIGTERM on to it.
"""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

from bnn_exp.commands import command
from bnn_exp.errors import FAILED
from bnn_exp.training import signals

if TYPE_CHECKING:
    from submitit import LocalJob

PAUSE = 0.1  # seconds between two checks whether jobs have ended
# Signals that are blocked while jobs start. SIGTERM is not among them: the command ends its jobs by it.
FOR_THE_COMMAND = signals.SIGNALS - {signal.SIGTERM}


class LocalLauncher(submitit_launcher.LocalLauncher):
    """Hydra's launcher of local processes. The command prints the messages of its jobs, and ends the jobs at a signal."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self.__dict__,)

    def __call__(self, *arguments: Any) -> JobReturn:
        """Executes one job. submitit calls this method in the process of the job."""
        with signals.listening():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FOR_THE_COMMAND)
            result = super().__call__(*arguments)
        result.command = command.current()
        return result

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Executes a batch of jobs in parallel, and returns their results in the order of `job_overrides`.

        Args:
            job_overrides: the overrides of each job.
            initial_job_idx: the number of the first job in its sweep.

        Raises:
            KeyboardInterrupt: a signal has arrived, and all jobs have ended.
        """
        with signals.stop_on_signals() as stop, _blocked(FOR_THE_COMMAND):
            jobs = self._start(job_overrides, initial_job_idx)
        try:
            if stop():
                raise KeyboardInterrupt
            return results(jobs)
        except KeyboardInterrupt:
            _end(jobs)
            raise

    def _start(self, job_overrides: Sequence[Sequence[str]], first: int) -> list[Any]:
        import submitit

        sweep = self.config.hydra.sweep
        Path(sweep.dir).mkdir(parents=True, exist_ok=True)
        if "mode" in sweep:
            Path(sweep.dir).chmod(int(str(sweep.mode), 8))
        settings = {key: value for key, value in self.params.items() if key != "submitit_folder"}
        general = BaseQueueConf.__dataclass_fields__
        executor = submitit.AutoExecutor(self.params["submitit_folder"], cluster="local")
        executor.update_parameters(**{key if key in general else f"local_{key}": value for key, value in settings.items()})
        calls = [
            (list(overrides), "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state())
            for number, overrides in enumerate(job_overrides, first)
        ]
        return executor.map_array(self, *zip(*calls, strict=True))


def use() -> None:
    """Replaces submitit's own launcher of local processes with `LocalLauncher`. Hydra finds the class by its name.

    The class takes the full name of submitit's class: Hydra 1.4 instantiates only targets whose names it trusts.
    """
    own = submitit_launcher.LocalLauncher
    LocalLauncher.__module__, LocalLauncher.__qualname__ = own.__module__, own.__qualname__
    submitit_launcher.LocalLauncher = LocalLauncher


def _restored(attributes: dict[str, Any]) -> LocalLauncher:
    """Returns the launcher with these attributes, in the process of a job, which has not called `use`."""
    launcher = object.__new__(LocalLauncher)
    launcher.__dict__.update(attributes)
    return launcher


@contextmanager
def _blocked(numbers: set[int]) -> Iterator[None]:
    """Context manager: while the body runs, blocks the signals `numbers`. A process started in the body keeps them blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def results(jobs: Sequence["LocalJob"]) -> list[JobReturn]:
    """Waits for the jobs and returns their results in the order of `jobs`. Prints the messages of each job when it ends."""
    results: dict[int, JobReturn] = {}
    while len(results) < len(jobs):
        for place, job in enumerate(jobs):
            if place not in results and job.done():
                results[place] = _result(job)
        time.sleep(PAUSE)
    return [results[place] for place in range(len(jobs))]


def _result(job: Any) -> JobReturn:
    """Returns the result of an ended job. The result of a job that was killed or could not begin has the return value None."""
    task = job.task(0)
    if not task.paths.result_pickle.exists():
        return _lost(task, "it ended without a result")
    try:
        result = task.result()
    except Exception as error:  # submitit wraps any exception that the job raised
        return _lost(task, str(error).strip(" \n-").splitlines()[-1])
    command.current().include(result.command)
    return result


def _lost(task: "LocalJob", why: str) -> JobReturn:
    command.current().fail(f"failed: a job of the sweep: {why}\n{task.paths.stderr} has the details", FAILED)
    return JobReturn(status=JobStatus.COMPLETED)


def _end(jobs: Sequence["LocalJob"]) -> None:
    """Sends SIGTERM to the jobs again and again until all have ended, since a job that is just beginning ignores signals.

    A second Ctrl-C ends the wait.
    """
    with signals.stop_on_signals(), suppress(KeyboardInterrupt):
        left = [job for job in jobs if not job.done()]
        if left:
            command.current().say(f"waiting for {len(left)} job{'s' * (len(left) > 1)} to end, each with a checkpoint")
        while left:
            for job in left:
                os.kill(int(job.job_id), signal.SIGTERM)
            time.sleep(PAUSE)
            left = [job for job in left if not job.done()]
