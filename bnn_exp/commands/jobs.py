"""The launcher of `launcher=local`: each job is a process. A job ends when the command that started the job ends.

Jobs wait in a queue: the first job takes the first place that becomes free (`bnn_exp.commands.places`). A job that trains on
a GPU sees only the GPUs of its place. submitit starts two processes for each job: the job, and a process that waits for the
job and passes SIGTERM on to the job.
"""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra_plugins.hydra_submitit_launcher import submitit_launcher
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

from bnn_exp.commands import command, places
from bnn_exp.commands.places import VISIBLE, Places
from bnn_exp.config import command_line
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

    def __call__(self, visible: str | None, *arguments: Any) -> JobReturn:
        """Executes one job. submitit calls this method in the process of the job.

        Args:
            visible: the GPUs of the job, the value of CUDA_VISIBLE_DEVICES; None: all. Until now submitit has hidden all GPUs.
            arguments: those of submitit's method.
        """
        os.environ.pop(VISIBLE, None) if visible is None else os.environ.update({VISIBLE: visible})
        with signals.listening():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, FOR_THE_COMMAND)
            result = super().__call__(*arguments)
        result.command = command.current()
        return result

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Executes jobs in parallel, as many at a time as there are places, and returns their results in the order of
        `job_overrides`.

        Args:
            job_overrides: the overrides of each job.
            initial_job_idx: the number of the first job in its sweep.

        Raises:
            KeyboardInterrupt: a signal has arrived, and all jobs have ended.
        """
        executor, free = self._executor(), self._places()
        devices = [self._devices(overrides) for overrides in job_overrides]
        if max(devices):
            self._say_places(free, max(devices))
        starts = [partial(self._start, executor, overrides, i) for i, overrides in enumerate(job_overrides, initial_job_idx)]
        return in_queue(starts, devices, free)

    @property
    def at_a_time(self) -> int:
        """The greatest number of jobs that run at a time, if no job changes the sweep's device and number of devices."""
        return self._places().at_a_time(self._devices(()))

    @cached_property
    def _gpus(self) -> list[str]:
        return [] if self.config.device == "cpu" else places.gpus()

    def _places(self) -> Places:
        return Places(self._gpus, self.config.launcher.per_gpu, self.config.launcher.jobs)

    def _devices(self, overrides: Sequence[str]) -> int:
        """Returns the number of GPUs that a job takes: 0 on a CPU, and with `device=cuda:N`, where the user has chosen."""
        given = command_line.keys(overrides)
        if not self._gpus or given.get("device", self.config.device) not in ("auto", "cuda"):
            return 0
        devices = str(given.get("engine.devices", self.config.engine.devices))
        return int(devices) if devices.isdigit() else 1  # the job refuses any other value

    def _say_places(self, free: Places, devices: int) -> None:
        names = ", ".join(f"GPU {name}" if name.isdigit() else name for name in self._gpus)
        share = f"{free.per_gpu} a GPU" if devices == 1 else f"{devices} GPUs a job"
        count = free.at_a_time(devices)
        line = f"{count} job{'s' * (count > 1)} at a time, {share}: {names}"
        if line not in command.current().messages:  # a search launches one batch of jobs after the other
            command.current().say(line)

    def _executor(self) -> Any:
        import submitit

        sweep = self.config.hydra.sweep
        Path(sweep.dir).mkdir(parents=True, exist_ok=True)
        if "mode" in sweep:
            Path(sweep.dir).chmod(int(str(sweep.mode), 8))
        settings = {key: value for key, value in self.params.items() if key != "submitit_folder"}
        general = BaseQueueConf.__dataclass_fields__
        executor = submitit.AutoExecutor(self.params["submitit_folder"], cluster="local")
        executor.update_parameters(**{key if key in general else f"local_{key}": value for key, value in settings.items()})
        return executor

    def _start(self, executor: Any, overrides: Sequence[str], number: int, gpus: Sequence[str]) -> "LocalJob":
        visible = ",".join(gpus) if gpus else os.environ.get(VISIBLE)
        state = Singleton.get_state()
        return executor.submit(self, visible, list(overrides), "hydra.sweep.dir", number, f"job_id_for_{number}", state)


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


def in_queue(
    starts: Sequence[Callable[[tuple[str, ...]], "LocalJob"]], devices: Sequence[int], free: Places
) -> list[JobReturn]:
    """Executes jobs in their order, each when a place is free. Prints the messages of each job at its end.

    Args:
        starts: for each job the function that starts the job on the GPUs with the given names.
        devices: the number of GPUs that each job takes.
        free: the places of the machine.

    Returns:
        The results in the order of `starts`.

    Raises:
        KeyboardInterrupt: a signal has arrived, and all jobs have ended.
    """
    waiting, running = deque(range(len(starts))), dict[int, tuple[Any, tuple[str, ...]]]()
    results: dict[int, JobReturn] = {}
    try:
        while waiting or running:
            while waiting and (gpus := free.take(devices[waiting[0]])) is not None:
                number = waiting.popleft()
                with signals.stop_on_signals() as stop, _blocked(FOR_THE_COMMAND):
                    running[number] = starts[number](gpus), gpus
                if stop():
                    raise KeyboardInterrupt
            for number, (job, gpus) in [*running.items()]:
                if job.done():
                    results[number] = _result(job)
                    free.leave(gpus)
                    del running[number]
            time.sleep(PAUSE)
    except KeyboardInterrupt:
        _end([job for job, _ in running.values()])
        raise
    return [results[number] for number in range(len(starts))]


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
