"""Chooses the benchmark that the user requests. Imports no torch, so a refusal of bad input comes at once."""

import pkgutil

from bnn_exp.commands.task import Task
from bnn_exp.config import unread
from bnn_exp.config.settings import load_settings
from bnn_exp.records import directories
from bnn_exp.records.files import check_writable

FUNCTIONS = {
    "inference": "bnn_exp.commands.benchmark.inference:benchmark",
    "machine": "bnn_exp.commands.benchmark.engine_times:benchmark",
    "training": "bnn_exp.commands.benchmark.training:benchmark",
}


def benchmark(task: Task) -> str:
    """Executes the benchmark that the setting `benchmark` names, and returns the message that ends it.

    Raises:
        UserError: the input is wrong, or the directory for the results can't be used.
    """
    unread.check_training(load_settings(task.composed), task.overrides)
    if not task.request.from_:
        directories.check_no_other_run(task.directory)
        check_writable(task.directory, "hydra.run.dir")  # checked first, because a measurement takes minutes
    return pkgutil.resolve_name(FUNCTIONS[task.request.benchmark.name])(task)
