"""SLURM: a job that is stopped before its end asks to be queued again, and then goes on by resume=auto.

Jobs of `launcher=slurm` need none of this: submitit asks for them, when its signal has ended the training.
"""

import os
import signal
import subprocess

WARNINGS = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}  # that a queue sends before it kills (sbatch --signal=…)


def requeue(number: int) -> str:
    """Ask for this process's batch job again, which signal `number` has stopped. Returns what there is to say, if anything.

    A job that was cancelled, or that SLURM itself queues again, is ending already, and is left alone.
    """
    job = os.environ.get("SLURM_JOB_ID")
    if not job or number not in WARNINGS:
        return ""
    try:
        known = _scontrol("show", "job", job)
        waits = "JobState=RUNNING" in known or "Reason=TimeLimit" in known
        if "BatchFlag=1" not in known or not waits:
            return ""
        _scontrol("requeue", job)
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", "") or str(error)).strip().splitlines()[-1]
        return f"SLURM did not queue job {job} again: {reason}"
    return f"SLURM queues job {job} again, which goes on from here"


def _scontrol(*arguments: str) -> str:
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=60, check=True).stdout
