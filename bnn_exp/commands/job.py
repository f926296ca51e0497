"""The function that Hydra calls to execute the task of the command, or one training of a sweep.

A job of a sweep may run in another process, which imports this module but not `cli`. Torch is imported only when needed.
"""

import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig

from bnn_exp.commands import command
from bnn_exp.config import resolvers as resolvers  # its import registers the resolvers that conf/ uses
from bnn_exp.errors import FAILED, Expected
from bnn_exp.records.standard_streams import forgiving_output

if TYPE_CHECKING:
    from bnn_exp.commands.task import Task


@forgiving_output()  # a job in another process has not entered this context yet
def job(composed: DictConfig) -> float | None:
    """Executes the job with the configuration `composed`.

    Exceptions become messages and exit codes, so a sweep continues with its next job.

    Returns:
        For a training its best validation accuracy in percent, or its test accuracy if no validation rows exist; a search
        maximises this number. None for any other task, and for a training that failed.

    Raises:
        KeyboardInterrupt: a signal ended the job. A sweep ends too.
    """
    now, directory = command.current(), Path(HydraConfig.get().runtime.output_dir)
    prepared: Any = now.prepared
    now.prepared = None
    if composed.get("task", "train") != "train":
        _execute(prepared)
        return None
    from bnn_exp.commands.train import train

    return train(composed, directory, prepared)


def _execute(task: "Task") -> None:
    from bnn_exp.commands.task import perform

    now = command.current()
    try:
        now.say(perform(task))
    except (Expected, HydraException) as error:
        now.fail_with(error)
    except Exception:
        traceback.print_exc()
        now.codes.append(FAILED)
