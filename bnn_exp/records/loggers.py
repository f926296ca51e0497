"""Sends the metrics of a run to TensorBoard, MLflow or Weights & Biases. None of these packages is required.

Metrics have the names of metrics.jsonl (`flips/layers.0.weight` for a metric per tensor), and the step is the epoch. After a
resume a logger continues, and each epoch appears once. The attribute `last` of a logger is the newest epoch that the logger
has.
"""

import importlib.util
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bnn_exp.errors import UserError
from bnn_exp.records.log import log
from bnn_exp.records.optional import attempt
from bnn_exp.records.runs import as_text, flat

Metrics = dict[str, Any]  # a line of metrics.jsonl


class Nothing:
    """The logger of `logger=none`, which does nothing."""

    last = 0

    def __init__(self, *_: Any):
        pass

    def log(self, metrics: Metrics) -> None:
        pass

    def finish(self, summary: dict[str, Any]) -> None:
        pass


class TensorBoard:
    """A logger that writes TensorBoard's event files to the folder tensorboard/ of the run."""

    def __init__(self, settings: Any, directory: Path, config: dict[str, Any]):
        from torch.utils.tensorboard import SummaryWriter

        folder = directory / "tensorboard"
        self.last = self._last(folder) if folder.is_dir() else 0
        self.writer = SummaryWriter(folder, purge_step=self.last + 1)
        if not self.last:
            self._text("config", flat(config), 0)

    @staticmethod
    def _last(folder: Path) -> int:
        """Returns the newest epoch for which the event files in `folder` have all metrics.

        A killed run may have written a part of a later epoch.
        """
        from tensorboard.backend.event_processing.event_accumulator import SCALARS, EventAccumulator

        events = EventAccumulator(str(folder), size_guidance={SCALARS: 0})
        events.Reload()
        return min((events.Scalars(tag)[-1].step for tag in events.Tags()[SCALARS]), default=0)

    def log(self, metrics: Metrics) -> None:
        for name, value in scalars(metrics).items():
            self.writer.add_scalar(name, value, metrics["epoch"])
        self.writer.flush()

    def finish(self, summary: dict[str, Any]) -> None:
        self._text("summary", plain(summary), summary["epochs"])
        self.writer.close()

    def _text(self, name: str, values: dict[str, Any], step: int) -> None:
        self.writer.add_text(name, f"```\n{json.dumps(values, indent=2)}\n```", step)  # TensorBoard reads Markdown


class MLflow:
    """A logger that writes an MLflow run, to a database in the folder mlflow/ of the run or to the server `settings.uri`."""

    STATUS = {"completed": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}  # noqa: RUF012

    def __init__(self, settings: Any, directory: Path, config: dict[str, Any]):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        folder = directory.absolute() / "mlflow"
        folder.mkdir(exist_ok=True)
        self.client = MlflowClient(tracking_uri=settings.uri or f"sqlite:///{folder / 'mlflow.db'}")
        known = folder / "run_id"
        if known.is_file():
            self.run = known.read_text().strip()
            self.client.update_run(self.run, status="RUNNING")
            self.last = max((m.step for m in self.client.get_metric_history(self.run, "train_loss")), default=0)
        else:
            experiment = self._experiment(settings.experiment, None if settings.uri else (folder / "artifacts").as_uri())
            self.run, self.last = self.client.create_run(experiment, run_name=directory.name).info.run_id, 0
            known.write_text(self.run)
            self.client.log_batch(self.run, params=[Param(key, as_text(value)) for key, value in flat(config).items()])

    def _experiment(self, name: str, artifacts: str | None) -> str:
        from mlflow.exceptions import MlflowException

        if found := self.client.get_experiment_by_name(name):
            return found.experiment_id
        try:
            return self.client.create_experiment(name, artifacts)
        except MlflowException:  # another run created the experiment meanwhile
            return self.client.get_experiment_by_name(name).experiment_id

    def log(self, metrics: Metrics) -> None:
        from mlflow.entities import Metric

        now, epoch = int(1000 * time.time()), metrics["epoch"]
        self.client.log_batch(self.run, [Metric(name, value, now, epoch) for name, value in scalars(metrics).items()])

    def finish(self, summary: dict[str, Any]) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(f"summary.{key}", as_text(value)) for key, value in plain(summary).items()]
        self.client.log_batch(self.run, tags=tags)
        self.client.set_terminated(self.run, self.STATUS[summary["status"]])


class WandB:
    """A logger that writes a Weights & Biases run to the folder wandb/ of the run. Weights & Biases can't continue an offline
    run, so a resume writes the offline run anew."""

    def __init__(self, settings: Any, directory: Path, config: dict[str, Any]):
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        folder = directory / "wandb"
        folder.mkdir(exist_ok=True)
        known = folder / "run_id"
        if not known.is_file():
            known.write_text(secrets.token_hex(8))
        name = known.read_text().strip()
        if settings.mode == "offline":
            for earlier in folder.glob(f"offline-run-*-{name}"):
                shutil.rmtree(earlier)
        self.run = wandb.init(
            project=settings.project,
            mode=settings.mode,
            dir=directory,
            id=name,
            name=directory.name,
            config=config,
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        self.last = max(self.run.starting_step - 1, 0)

    def log(self, metrics: Metrics) -> None:
        self.run.log(scalars(metrics), step=metrics["epoch"])

    def finish(self, summary: dict[str, Any]) -> None:
        self.run.summary.update(plain(summary))
        self.run.finish(exit_code=int(summary["status"] == "failed"))


LOGGERS = {"none": Nothing, "tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


class GuardedLogger:
    """A logger that stops logging after a failure, so a failing logger never ends a training."""

    def __init__(self, name: str, warn: Callable[[str], None], *arguments: Any):
        """Starts the logger `name` with `arguments`. `warn` receives a sentence if the logger fails."""
        self.name, self.warn, self.logger = name, warn, Nothing()
        attempt(f"logger={name}", self._begin, *arguments, warn=warn)

    def _begin(self, *arguments: Any) -> None:
        self.logger = LOGGERS[self.name](*arguments)

    def log(self, metrics: Metrics) -> None:
        self._try("log", metrics)

    def finish(self, summary: dict[str, Any]) -> None:
        self._try("finish", summary)

    def _try(self, method: str, *arguments: Any) -> None:
        if not attempt(f"logger={self.name}", getattr(self.logger, method), *arguments, warn=self.warn):
            self.logger = Nothing()


def check(settings: Any) -> None:
    """Checks that the package of the logger that `settings` choose is installed.

    Raises:
        UserError: the package is not installed.
    """
    found = settings.name == "none" or importlib.util.find_spec(settings.name)
    if not found or getattr(found, "origin", "") is None:  # a folder with the package's name does not count
        raise UserError(
            f"logger={settings.name}: the package {settings.name} is not installed\n"
            f"allowed: after pip install 'bnn-exp[{settings.name}]'; or logger=none"
        )


def start(
    settings: Any, directory: Path, config: dict[str, Any], epochs: list[Metrics], warn: Callable[[str], None] = log.warning
) -> GuardedLogger:
    """Returns the logger of the run in `directory`, after logging the earlier `epochs` that the logger lacks.

    Args:
        settings: the group `logger` of the configuration.
        config: the plain values of the whole configuration.
        epochs: lines of metrics.jsonl.
        warn: a function that receives a sentence if the logger fails. The logger is silent from then on.
    """
    logger = GuardedLogger(settings.name, warn, settings, directory, config)
    last = logger.logger.last
    for metrics in epochs:
        if metrics["epoch"] > last:
            logger.log(metrics)
    return logger


def scalars(metrics: Metrics) -> dict[str, float]:
    """Returns the numbers of an epoch by name, without the number of the epoch.

    Example: {"epoch": 3, "loss": 1, "delta": None, "flips": {"a": 2}} becomes {"loss": 1.0, "flips/a": 2.0}.
    """
    numbers: dict[str, Any] = {}
    for key, value in metrics.items():
        numbers |= {f"{key}/{name}": number for name, number in value.items()} if isinstance(value, dict) else {key: value}
    return {name: float(number) for name, number in numbers.items() if number is not None and name != "epoch"}


def plain(summary: dict[str, Any]) -> dict[str, Any]:
    """Returns the numbers and texts of a run's summary, without lists and dictionaries."""
    return {key: value for key, value in summary.items() if isinstance(value, str | int | float)}
