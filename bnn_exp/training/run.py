"""One run from top to bottom: data, network, optimizers, epochs, verification, files."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf

from bnn_exp.config import plugins
from bnn_exp.errors import Diverged, NotWritten, UserError
from bnn_exp.models.cost import layers
from bnn_exp.nn import NotBinary
from bnn_exp.records import checkpoint, directories, html, loggers, metrics, next_command, plots, summary
from bnn_exp.records.files import alone_in, remove_temporaries, replacing, write_json
from bnn_exp.records.log import log, logging_to
from bnn_exp.records.model import save_model
from bnn_exp.records.optional import attempt
from bnn_exp.records.report import Report
from bnn_exp.training import sentences
from bnn_exp.training.callbacks import Callbacks
from bnn_exp.training.facts import facts
from bnn_exp.training.plan import Plan
from bnn_exp.training.setup import prepare
from bnn_exp.training.signals import Stop, stop_on_signals

if TYPE_CHECKING:
    from bnn_exp.training.distributed.ranks import Ranks


class Run:
    """A training and its directory.

    Args:
        ranks: this process as rank 0, which writes the files, and the ranks that train with it; None without other ranks.
    """

    def __init__(self, plan: Plan, directory: Path, ranks: "Ranks | None" = None):
        self.settings, self.config, self.directory, self.plan = plan.settings, plan.config, directory, plan
        self.began = time.perf_counter()
        self.trainer = prepare(plan, directory, ranks)
        self.network, self.data = self.trainer.network, self.trainer.data
        self.layers = layers(self.network, self.data.train.images[:2])
        self.epochs: list[dict] = []  # the lines of metrics.jsonl
        self.evaluation: dict | None = None  # the metrics of the newest evaluation
        self.confusion: torch.Tensor | None = None  # the confusion matrix of the newest evaluation
        self.notes = plan.arrays.notes if plan.arrays else ()  # remarks on how the data were read
        # Warnings about the data, to which the run adds its own.
        self.warnings: list[str] = list(plan.arrays.warnings if plan.arrays else ())
        self.resumed = plan.saved is not None
        self.earlier_seconds = plan.saved["seconds"] if plan.saved else 0.0
        self.logger: Any = loggers.Nothing()

    def execute(self) -> dict[str, Any]:
        """Trains to the end, or until the user stops the run. Leaves the directory complete and returns the summary.

        Raises:
            UserError, NotBinary, NotWritten, Diverged: the run failed. The summary holds the reason, if it can be written.
        """
        with stop_on_signals() as stop, alone_in(self.directory):
            if self.plan.found not in (None, directories.state(self.directory)):
                raise UserError(
                    f"{self.directory}: another process has written to it meanwhile\nallowed: the command once more"
                )
            with logging_to(self.directory / "train.log"):
                try:
                    return self._execute(stop)
                except BaseException as error:
                    self._fail(error)
                    raise

    def seconds(self) -> float:
        """Returns the seconds that the run has taken so far, those before a resume included."""
        return self.earlier_seconds + time.perf_counter() - self.began

    def _fail(self, error: BaseException) -> None:
        """Writes into the directory why the run ends."""
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        expected = isinstance(error, UserError | NotBinary | NotWritten | Diverged | KeyboardInterrupt)
        log.error("%s: %s", status, error, exc_info=not expected)
        attempt("summary.json", self._summarise, status, str(error) or type(error).__name__)  # an attempt: the disk may be full
        attempt("report.html", html.write_run_page, self.directory)

    def _execute(self, stop: Stop) -> dict[str, Any]:
        directory, trainer, self.callbacks = self.directory, self.trainer, Callbacks()
        self._begin_files()
        self._begin_report()
        if self.plan.saved is not None:
            for name in self.callbacks.load(self.plan.saved.get("callbacks", {})):
                self._warn(f"the callback {name} is not registered now: its state is dropped")
        self.callbacks.start(trainer, directory)
        self._attempt("samples.png", self._samples)
        self.evaluation, self.confusion = trainer.evaluate()
        self._checkpoint("last")
        result = self._finish("completed" if self._epochs(stop) else "interrupted")
        self.callbacks.end(trainer, result)
        return result

    def _begin_files(self) -> None:
        """Writes config.yaml and the plugins, and keeps of metrics.jsonl the epochs that the checkpoint holds."""
        directory = self.directory
        for folder in (directory, directory / "checkpoints"):
            remove_temporaries(folder)
        with replacing(directory / "config.yaml") as file:
            OmegaConf.save(self.config, file)
        self._keep_plugins()
        newest = (self.plan.saved or {}).get("metrics")
        self.epochs = metrics.keep(directory / "metrics.jsonl", self.trainer.progress.epoch, newest)
        (directory / "summary.json").unlink(missing_ok=True)  # a resumed run has an outdated summary

    def _keep_plugins(self) -> None:
        """Copies the source of each plugin into the directory, and warns if a plugin has changed since the run began."""
        named = self.config.get("plugins")
        self.warnings += plugins.changed(named, self.directory)
        for plugin in plugins.used(named):
            with replacing(plugin.copy_in(self.directory)) as file:
                file.write_bytes(plugin.source)

    def _begin_report(self) -> None:
        """Prints the network, the data, the device and how the run begins; starts the loggers."""
        binary_weights = sum(layer.binary for layer in self.layers)
        self.report = Report(self.settings.trainer.epochs, self.trainer.batch_count, binary_weights)
        if self.plan.remark:
            self.report.say(self.plan.remark)
        self.report.network(self.layers)
        for text in (sentences.data_and_device(self), *self.notes):
            self.report.say(text)
        for text in self.warnings:
            self.report.warn(text)
        self.logger = loggers.start(self.settings.logger, self.directory, self.config, self.epochs, self._warn)
        for text in sentences.beginning(self):
            self.report.say(text)

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.report.warn(text)

    def _attempt(self, what: str, function: Callable, *arguments: Any) -> None:
        """Makes a file that only shows the run. If that fails, the run gets a warning and continues."""
        attempt(what, function, *arguments, warn=self._warn)

    def _samples(self) -> None:
        images, labels = self.trainer.batches.first(64)
        names = [self.data.classes[i] for i in labels.tolist()]
        plots.samples(self.directory / "samples.png", images.cpu().numpy(), names)

    def _epochs(self, stop: Stop) -> bool:
        """Trains the epochs that are left. Returns False if the user stopped the run."""
        trainer, progress = self.trainer, self.trainer.progress
        while progress.epoch < self.settings.trainer.epochs:
            self.report.batches = trainer.batch_count
            trained = trainer.epoch(stop, self.report.tick)
            self.report.stop_bar()
            if trained is None:
                self._checkpoint("last")
                return False
            self.evaluation, self.confusion = trainer.evaluate()
            of_epoch = trained | self.evaluation
            self.epochs.append(of_epoch | self.callbacks.epoch(trainer, of_epoch))
            test = self.evaluation["test_accuracy"]
            accuracy = self.evaluation.get("validation_accuracy", test)
            if accuracy > progress.best_accuracy:
                progress.best_accuracy, progress.best_test_accuracy, progress.best_epoch = accuracy, test, progress.epoch
                self._checkpoint("best")
            self._checkpoint("last")
            metrics.append(self.directory / "metrics.jsonl", self.epochs[-1])  # the checkpoint holds this line too
            # Loggers come after the checkpoint. So a resumed run never trains an epoch again that a logger has received.
            self.logger.log(self.epochs[-1])
            self.report.epoch(self.epochs[-1])
        return True

    def _checkpoint(self, name: str) -> None:
        state = {
            "data": self.data.key,
            "seconds": self.seconds(),
            "beginning": self.trainer.beginning,
            "config": self.config,
            "image_shape": list(self.data.image_shape),
            "classes": list(self.data.classes),
            "threads": torch.get_num_threads(),
            "metrics": self.epochs[-1] if self.epochs else None,
            **self.trainer.state(),
        }
        if kept := self.callbacks.state():
            state["callbacks"] = kept
        checkpoint.save(self.directory / "checkpoints" / f"{name}.pt", state)

    def _finish(self, status: str) -> dict[str, Any]:
        """Writes the files of the end, prints the result and returns the summary."""
        self._write_results()
        remarks, advice = sentences.beside_chance(self) if status == "completed" and self.epochs else ([], "")
        self.warnings += [*remarks, advice] if advice else remarks
        known = len(self.warnings)
        result = self._summarise(status)
        self._attempt("report.html", html.write_run_page, self.directory)
        if len(self.warnings) > known:  # report.html has failed since the summary was written: add its warning
            attempt("summary.json", write_json, self.directory / "summary.json", result)
        self.report.confusion(self.confusion.tolist(), self.data.classes)
        for text in sentences.result(self, result):
            self.report.say(text)
        for text in remarks:
            self.report.warn(text)
        if status == "interrupted":
            self.report.say(next_command.line([f"resume={self.directory}"]))
        elif following := f"next: {advice}" if advice else sentences.following(self, result.get("flags", [])):
            self.report.say(following)
        return result

    def _write_results(self) -> None:
        """Writes the trained network and the figures."""
        directory = self.directory
        about = (self.config, self.data.image_shape, self.data.classes)
        save_model(directory / "model.safetensors", self.network, *about, self.trainer.step.answer)
        if self.epochs:
            title = f"{directory.name} · {self.settings.optimizer.name}"
            self._attempt("curves.png", plots.curves, directory / "curves.png", self.epochs, title)
        self._attempt("kernels.png", plots.kernels, directory / "kernels.png", self.network, self.data.image_shape)

    def _summarise(self, status: str, error: str | None = None) -> dict[str, Any]:
        result = summary.write(self.directory, status, **facts(self, error))
        self.logger.finish(result)
        return result
