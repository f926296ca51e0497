"""Jobs of `launcher=local`: processes that end when the command that started them is asked to end.

submitit starts two processes a job: the job, and one beside it that waits for the job and passes SIGTERM on to it.
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

from bnn_exp import cli
from bnn_exp.training import signals

if TYPE_CHECKING:
    from submitit import LocalJob

PAUSE = 0.1  # seconds between two looks at the jobs
PASSED_ON = signals.SIGNALS - {signal.SIGTERM}  # what this process alone reacts to: the jobs get SIGTERM from it


class LocalLauncher(submitit_launcher.LocalLauncher):
    """Hydra's launcher of processes on this machine. What jobs say is said here too; a signal ends them as it ends a run."""

    def __call__(self, *arguments: Any) -> JobReturn:
        """Runs a job, in its own process."""
        with signals.listening():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
            result = super().__call__(*arguments)
        result.outcome = cli.outcome()
        return result

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Runs a batch of jobs at once. Returns their results, in the order of `job_overrides`.

        Raises:
            KeyboardInterrupt: a signal has asked for the end; the jobs have ended before.
        """
        with signals.stop_on_signals() as stop, _held(PASSED_ON):
            jobs = self._start(job_overrides, initial_job_idx)
        try:
            if stop():
                raise KeyboardInterrupt
            return _results(jobs)
        except KeyboardInterrupt:
            _end(jobs)
            raise

    def _start(self, job_overrides: Sequence[Sequence[str]], first: int) -> list["LocalJob"]:
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
    """Has Hydra take this launcher in the place of submitit's own for local processes: it looks that up by its name."""
    submitit_launcher.LocalLauncher = LocalLauncher


@contextmanager
def _held(numbers: set[int]) -> Iterator[None]:
    """Within the block the signals wait. A process that starts in it never gets them, unless it lets them in."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _results(jobs: Sequence["LocalJob"]) -> list[JobReturn]:
    """Waits for the jobs. Says what each has said, when it ends."""
    results: dict[int, JobReturn] = {}
    while len(results) < len(jobs):
        for place, job in enumerate(jobs):
            if place not in results and job.done():
                results[place] = _result(job)
        time.sleep(PAUSE)
    return [results[place] for place in range(len(jobs))]


def _result(job: "LocalJob") -> JobReturn:
    """Returns what an ended job returned. Of a job that was killed, or that could not begin, this is None."""
    task = job.task(0)
    if not task.paths.result_pickle.exists():
        return _lost(task, "it ended without a result")
    try:
        result = task.result()
    except Exception as error:  # submitit has the text of whatever the job raised
        return _lost(task, str(error).strip(" \n-").splitlines()[-1])
    cli.take_over(result.outcome)
    return result


def _lost(task: "LocalJob", why: str) -> JobReturn:
    cli.take_over(cli.Outcome([f"failed: a job of the sweep: {why}\n{task.paths.stderr} says more"], [cli.FAILED]))
    return JobReturn(status=JobStatus.COMPLETED)


def _end(jobs: Sequence["LocalJob"]) -> None:
    """Asks the jobs to end, and waits until they have. A second Ctrl-C does not wait.

    Each is asked again and again: one that is only beginning does not listen yet.
    """
    with signals.stop_on_signals(), suppress(KeyboardInterrupt):
        left = [job for job in jobs if not job.done()]
        if left:
            cli.say(f"waiting for {len(left)} job{'s' * (len(left) > 1)} to end, each with a checkpoint")
        while left:
            for job in left:
                os.kill(int(job.job_id), signal.SIGTERM)
            time.sleep(PAUSE)
            left = [job for job in left if not job.done()]
