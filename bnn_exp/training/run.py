"""One run, top to bottom: data, network, optimizers, epochs, verification, artefacts."""

import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf
from torch import nn

from bnn_exp.bits import bits_sha256
from bnn_exp.config import plugins
from bnn_exp.errors import Diverged, NotWritten, UserError
from bnn_exp.models.cost import layers
from bnn_exp.nn import NotBinary, binary_layers, verify_binary
from bnn_exp.records import chance, checkpoint, directories, html, loggers, metrics, next_command, plots, summary
from bnn_exp.records.files import alone_in, existing, remove_temporaries, replacing, write_json
from bnn_exp.records.formatting import best_in_words, bytes_in_words
from bnn_exp.records.log import log, logging_to
from bnn_exp.records.model import save_model
from bnn_exp.records.optional import attempt
from bnn_exp.records.report import Report
from bnn_exp.training.callbacks import Callbacks
from bnn_exp.training.finetune import Beginning
from bnn_exp.training.plan import Plan
from bnn_exp.training.setup import prepare
from bnn_exp.training.signals import Stop, stop_on_signals

if TYPE_CHECKING:
    from bnn_exp.training.distributed.ranks import Ranks

FILES = ("report.html", "model.safetensors", "metrics.jsonl", "summary.json", "checkpoints/")
PICTURES = ("curves.png", "samples.png", "kernels.png")


class Run:
    """A training and its directory. With `ranks` it is that of rank 0, whose peers train in step with it."""

    def __init__(self, plan: Plan, directory: Path, ranks: "Ranks | None" = None):
        self.settings, self.config, self.directory, self.plan = plan.settings, plan.config, directory, plan
        self.began = time.perf_counter()
        self.trainer = prepare(plan, directory, ranks)
        self.network, self.data = self.trainer.network, self.trainer.data
        self.layers = layers(self.network, self.data.train.images[:2])
        self.epochs: list[dict] = []  # the lines of metrics.jsonl
        self.evaluation: dict | None = None  # the newest
        self.confusion: torch.Tensor | None = None
        self.notes = plan.arrays.notes if plan.arrays else ()  # of how the data were read
        self.warnings: list[str] = list(plan.arrays.warnings if plan.arrays else ())  # of the data; more come in the run
        self.resumed = plan.saved is not None
        self.earlier_seconds = plan.saved["seconds"] if plan.saved else 0.0
        self.logger: Any = loggers.Nothing()

    def execute(self) -> dict[str, Any]:
        """Train to the end, or to where the user stops it, and leave the directory complete. Returns the summary.

        Raises:
            UserError, NotBinary, NotWritten, Diverged: why the run failed; the summary says so too, where it can be written.
        """
        with stop_on_signals() as stop, alone_in(self.directory):
            if self.plan.found not in (None, directories.state(self.directory)):
                raise UserError(f"{self.directory}: another process has written there meanwhile\nallowed: start it again")
            with logging_to(self.directory / "train.log"):
                try:
                    return self._execute(stop)
                except BaseException as error:
                    self._fail(error)
                    raise

    def _fail(self, error: BaseException) -> None:
        """Leave the reason of the end in the directory."""
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        expected = isinstance(error, UserError | NotBinary | NotWritten | Diverged | KeyboardInterrupt)
        log.error("%s: %s", status, error, exc_info=not expected)
        attempt("summary.json", self._summarise, status, str(error) or type(error).__name__)  # the disk may be full
        attempt("report.html", html.write_run_page, self.directory)

    def _execute(self, stop: Stop) -> dict[str, Any]:
        directory, trainer, self.callbacks = self.directory, self.trainer, Callbacks()
        for folder in (directory, directory / "checkpoints"):
            remove_temporaries(folder)
        with replacing(directory / "config.yaml") as file:
            OmegaConf.save(self.config, file)
        self._keep_plugins()
        newest = (self.plan.saved or {}).get("metrics")
        self.epochs = metrics.keep(directory / "metrics.jsonl", trainer.progress.epoch, newest)
        self.report = Report(self.settings.trainer.epochs, trainer.batch_count, self._sum("binary"))
        (directory / "summary.json").unlink(missing_ok=True)  # of a run that goes on
        if self.plan.remark:
            self.report.say(self.plan.remark)
        self.report.network(self.layers)
        where = f"{trainer.device}, {torch.get_num_threads()} threads" if trainer.device.type == "cpu" else f"{trainer.device}"
        if (devices := self.settings.engine.devices) > 1:
            where = f"{devices} devices ({where} each)"
        self.report.say(
            f"{self.settings.dataset.name}: {self._rows()}, {len(self.data.classes)} classes; on {where}; in {directory}"
        )
        for text in self.notes:
            self.report.say(text)
        for text in self.warnings:
            self.report.warn(text)
        self.logger = loggers.start(self.settings.logger, directory, self.config, self.epochs, self._warn)
        if trainer.beginning:
            for line in Beginning(**trainer.beginning).lines():
                self.report.say(line)
        if self.plan.saved is not None:
            self.report.say(f"resumed after epoch {trainer.progress.epoch}, batch {trainer.progress.batch}")
            for name in self.callbacks.load(self.plan.saved.get("callbacks", {})):
                self._warn(f"the callback {name} is not registered now: its state is dropped")
        self.callbacks.start(trainer, directory)
        self._attempt("samples.png", self._samples)
        self.evaluation, self.confusion = trainer.evaluate()
        self._checkpoint("last")
        result = self._finish("completed" if self._epochs(stop) else "interrupted")
        self.callbacks.end(trainer, result)
        return result

    def _keep_plugins(self) -> None:
        """Leave the source of each plugin in the directory, and warn of one that is not what trained the run so far."""
        named = self.config.get("plugins")
        self.warnings += plugins.changed(named, self.directory)
        for plugin in plugins.used(named):
            with replacing(plugin.copy_in(self.directory)) as file:
                file.write_bytes(plugin.source)

    def _warn(self, text: str) -> None:
        self.warnings.append(text)
        self.report.warn(text)

    def _attempt(self, what: str, function: Callable, *arguments: Any) -> None:
        """Calls what only shows the run; a failure is a warning of the run."""
        attempt(what, function, *arguments, warn=self._warn)

    def _samples(self) -> None:
        pictures, labels = self.trainer.batches.first(64)
        names = [self.data.classes[i] for i in labels.tolist()]
        plots.samples(self.directory / "samples.png", pictures.cpu().numpy(), names)

    def _epochs(self, stop: Stop) -> bool:
        """Train the epochs that are left; False where the user stopped it."""
        trainer, progress = self.trainer, self.trainer.progress
        while progress.epoch < self.settings.trainer.epochs:
            self.report.batches = trainer.batch_count
            trained = trainer.epoch(stop, self.report.tick)
            if trained is None:
                self.report.stop_bar()
                self._checkpoint("last")
                return False
            self.report.stop_bar()
            self.evaluation, self.confusion = trainer.evaluate()
            of_epoch = trained | self.evaluation
            self.epochs.append(of_epoch | self.callbacks.epoch(trainer, of_epoch))
            test = self.evaluation["test_accuracy"]
            accuracy = self.evaluation.get("validation_accuracy", test)
            if accuracy > progress.best_accuracy:
                progress.best_accuracy, progress.best_test_accuracy, progress.best_epoch = accuracy, test, progress.epoch
                self._checkpoint("best")
            self._checkpoint("last")
            metrics.append(self.directory / "metrics.jsonl", self.epochs[-1])  # which the checkpoints hold too
            self.logger.log(self.epochs[-1])  # after the checkpoint: it never has an epoch that a resumed run trains again
            self.report.epoch(self.epochs[-1])
        return True

    def _checkpoint(self, name: str) -> None:
        about: dict[str, Any] = {"config": self.config, "image_shape": list(self.data.image_shape)}
        about |= {"classes": list(self.data.classes)}
        state = {"data": self.data.key, "seconds": self._seconds(), "beginning": self.trainer.beginning}
        about |= {"threads": torch.get_num_threads()}
        state |= about | {"metrics": self.epochs[-1] if self.epochs else None} | self.trainer.state()
        if kept := self.callbacks.state():
            state["callbacks"] = kept
        checkpoint.save(self.directory / "checkpoints" / f"{name}.pt", state)

    def _finish(self, status: str) -> dict[str, Any]:
        directory = self.directory
        about = (self.config, self.data.image_shape, self.data.classes)
        save_model(directory / "model.safetensors", self.network, *about, self.trainer.step.answer)
        if self.epochs:
            title = f"{directory.name} · {self.settings.optimizer.name}"
            self._attempt("curves.png", plots.curves, directory / "curves.png", self.epochs, title)
        self._attempt("kernels.png", plots.kernels, directory / "kernels.png", self.network, self.data.image_shape)
        remarks, advice = self._beside_chance() if status == "completed" and self.epochs else ([], "")
        self.warnings += [*remarks, advice] if advice else remarks
        known = len(self.warnings)
        result = self._summarise(status)
        self._attempt("report.html", html.write_run_page, directory)
        if len(self.warnings) > known:  # the summary says what failed after it was written
            attempt("summary.json", write_json, directory / "summary.json", result)
        self.report.confusion(self.confusion.tolist(), self.data.classes)
        bits, fp32 = self._sum("bytes_as_bits"), self._sum("bytes_as_fp32")
        best = f", {best_in_words(result)}" if self.epochs else ""
        tested = f" of {self._limited()} rows" if self._limited() else ""
        self.report.say(
            f"{status}: test {result['test_accuracy']:.2f}%{tested}{best}, {result['train_seconds']:.1f} s of training"
        )
        self.report.say(
            f"{result['binary_parameters']:,} binary weights, all verified to be 0 or 1, and "
            f"{result['real_parameters']:,} real parameters: {bytes_in_words(bits)} in place of {bytes_in_words(fp32)} as fp32"
        )
        if result["memory"]:
            own, adam = (bytes_in_words(sum(result["memory"][name].values())) for name in ("run", "adam"))
            self.report.say(f"memory of a step: {own}; {adam} under Adam with latent weights (summary.json: where they go)")
        self.report.say(f"in {directory}: {', '.join(existing(directory, FILES + PICTURES))}")
        for text in remarks:
            self.report.warn(text)
        if status == "interrupted":
            self.report.say(next_command.line([f"resume={directory}"]))
        elif following := f"next: {advice}" if advice else self._next(result.get("flags", [])):
            self.report.say(following)
        return result

    def _beside_chance(self) -> tuple[list[str], str]:
        """Remarks on the accuracies that are not clearly above chance, and what may help where one is near it."""
        rows = torch.bincount(self.data.train.labels, minlength=len(self.data.classes))
        accuracies = {
            "training": (self.epochs[-1]["train_accuracy"], rows.tolist()),
            "test": (self.evaluation["test_accuracy"], self.confusion.sum(1).tolist()),
        }
        remarks = [text for name, found in accuracies.items() if (text := chance.remark(name, *found))]
        near = any(chance.near_chance(*found) for found in accuracies.values())
        flips = sum(sum(epoch["flips"].values()) for epoch in self.epochs)
        return remarks, chance.advice(self.settings, self.data.image_shape[0], flips) if near else ""

    def _next(self, flags: list[str]) -> str:
        """Returns the line of the command that makes sense after this run, if any."""
        accuracies = self.epochs[-1]["train_accuracy"] if self.epochs else 0.0, self.evaluation["test_accuracy"]
        where = self.settings, self.plan.overrides, self.directory
        in_sweep = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
        about: Any = self.data.image_shape[0], self.resumed, in_sweep, self.config.get("plugins") or (), flags
        return next_command.Ended(*where, *accuracies, *about).next()

    def _rows(self) -> str:
        splits = {"train": self.data.train, "validation": self.data.validation, "test": self.data.test}
        counts = {name: f"{len(split):,} {name}" for name, split in splits.items() if split is not None}
        if limited := self._limited():
            counts["test"] = f"{limited} test"
        return f"{', '.join(counts.values())} rows"

    def _limited(self) -> str:
        """Returns "500 of 10,000" where not all test rows are evaluated; else ""."""
        evaluated, limit = len(self.data.test), self.settings.trainer.limit_eval
        there = len(self.plan.arrays.test_labels) if self.plan.arrays else evaluated
        return f"{evaluated:,} of {there:,}" if limit and there > evaluated else ""

    def _sum(self, cost: str) -> int:
        return sum(getattr(layer, cost) for layer in self.layers)

    def _summarise(self, status: str, error: str | None = None) -> dict[str, Any]:
        progress, verified = self.trainer.progress, is_binary(self.network)
        result = summary.write(
            self.directory,
            status,
            error=error,
            overrides=self.plan.overrides,
            plugins=plugins.facts(self.config.get("plugins")),
            **({"beginning": self.trainer.beginning} if self.trainer.beginning else {}),
            epochs=len(self.epochs),
            test_accuracy=self.evaluation and self.evaluation["test_accuracy"],
            best_test_accuracy=progress.best_test_accuracy if progress.best_epoch else None,
            **({"best_validation_accuracy": progress.best_accuracy} if self.data.validation and progress.best_epoch else {}),
            best_epoch=progress.best_epoch or None,
            best_chosen_by="validation" if self.data.validation else "test",
            warnings=self.warnings,
            binary_parameters=self._sum("binary"),
            real_parameters=self._sum("real"),
            bytes_as_bits=self._sum("bytes_as_bits"),
            state_bytes=self.trainer.binary.state_bytes,
            state_bytes_per_weight=self.trainer.binary.state_bytes
            / sum(layer.count for _, layer in binary_layers(self.network)),
            memory=self._memory(),
            binary_verified=verified,
            bits_sha256=bits_sha256(self.network) if verified else None,
            train_seconds=sum(epoch["train_seconds"] for epoch in self.epochs),
            seconds=self._seconds(),
            seed=self.settings.seed,
            device=str(self.trainer.device),
            threads=torch.get_num_threads(),
            dataset=self.data.key,
            classes=list(self.data.classes),
            confusion=self.confusion.tolist() if self.confusion is not None else None,
            layers=[asdict(layer) for layer in self.layers],
        )
        self.logger.finish(result)
        return result

    def _memory(self) -> dict[str, dict[str, int]] | None:
        """Where the bytes go, of this run and under Adam with latent weights; None before the first step."""
        trainer = self.trainer
        footprint = trainer.step.footprint
        if not footprint.rows:
            return None
        own = footprint.bytes(trainer.binary, *(real.optimizer for real in trainer.real))
        return {"run": asdict(own), "adam": asdict(footprint.under_adam(trainer.engine == "dense"))}

    def _seconds(self) -> float:
        return self.earlier_seconds + time.perf_counter() - self.began


def is_binary(network: nn.Module) -> bool:
    """Whether all its binary weights are."""
    try:
        verify_binary(network)
    except NotBinary:
        return False
    return True
