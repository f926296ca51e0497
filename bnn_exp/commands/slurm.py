"""Makes SLURM queue a stopped batch job again. The job then continues, because its command has resume=auto.

Jobs of `launcher=slurm` do not need this: submitit queues them again itself, after its signal has ended the training.
"""

import os
import signal
import subprocess

WARNINGS = {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}  # a queue sends these before it kills a job (sbatch --signal=…)


def requeue(number: int) -> str:
    """Asks SLURM to queue the batch job of this process again.

    Nothing happens if the job was cancelled, or if SLURM queues the job again by itself and reports that the job is ending.

    Args:
        number: the signal that has stopped the process.

    Returns:
        A message for the user; "" if SLURM was not asked.
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
    return f"SLURM queues job {job} again, which continues from here"


def _scontrol(*arguments: str) -> str:
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, timeout=60, check=True).stdout
