"""A training: epochs of steps over a network and a dataset, resumable after any step."""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bnn_exp import optim
from bnn_exp.bits import load_state, packed_state
from bnn_exp.config.settings import Settings
from bnn_exp.data.dataset import Dataset, Split, pieces
from bnn_exp.errors import Diverged
from bnn_exp.nn import named_bits, verify_binary
from bnn_exp.nn.graphs import Graphs
from bnn_exp.nn.known_classes import home
from bnn_exp.records.terminal import progress
from bnn_exp.training import finetune, precision, steps
from bnn_exp.training.batches import Batches
from bnn_exp.training.diagnostics import dead_outputs
from bnn_exp.training.steps.recorded import FAILING, Recorded

if TYPE_CHECKING:
    from bnn_exp.training.distributed.ranks import Ranks


@dataclass
class Progress:
    """The progress of a training: finished epochs, finished batches of the next epoch, and sums over these batches.

    The step's `Tally` adds up losses and right answers of these batches.
    """

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    images: int = 0
    best_accuracy: float = -1.0  # on validation samples, if there are any, else on test samples
    best_test_accuracy: float = -1.0  # the test accuracy of the epoch of `best_accuracy`
    best_epoch: int = 0

    def next_epoch(self) -> None:
        self.epoch, self.batch, self.seconds, self.images = self.epoch + 1, 0, 0.0, 0


class Trainer:
    """The training of a network for `settings.trainer.epochs` epochs.

    Args:
        ranks: this process and the others that train the same network; None for a training of one process.
    """

    def __init__(self, settings: Settings, network: nn.Module, data: Dataset, ranks: "Ranks | None" = None):
        self.network, self.data = network, data
        self.device = data.train.labels.device
        self.progress = Progress()
        # The fields of a training.finetune.Beginning; None if the whole network begins anew.
        self.beginning: dict | None = None
        self.frozen = finetune.freeze(network, settings.freeze)
        self.engine = steps.prepare(settings, network, self.device.type)
        settings = precision.settled(settings, self.device.type, self.engine)
        self.settings = settings if ranks is None else ranks.everyones(settings)[0]
        self.batches = Batches(settings, data)
        total_steps = sum(self.batches.count(epoch) for epoch in range(settings.trainer.epochs))
        self.binary = optim.build_binary(settings.optimizer, network, settings.trainer.batch_size, total_steps, settings.seed)
        self.real = optim.build_real(settings.real_optimizer, network, total_steps)
        optim.check_ownership(network, [self.binary, *(real.optimizer for real in self.real)])
        self.step = steps.build(self.settings, self.engine, network, self.batches, self.binary, self.real, ranks)
        # Maps pixels to logits in an evaluation. If steps are recorded as CUDA graphs, evaluations are too.
        self.answer = self.step.answer
        if isinstance(self.step, Recorded):
            self.answer = Graphs(self.step.answer, failing=FAILING.format("evaluations"))
        self.names = [name for name, _ in named_bits(network)]
        # A function to call after each step, if training.callbacks has set one.
        self.after_step: Callable[[Trainer, Tensor], None] | None = None

    @property
    def batch_count(self) -> int:
        """The number of batches of the current epoch; between two epochs, of the next epoch."""
        return self.batches.count(self.progress.epoch)

    def epoch(self, stop: Callable[[], bool] = lambda: False, tick: Callable[[int], None] = lambda batch: None) -> dict | None:
        """Trains the next epoch, or the rest of an epoch that was interrupted.

        Args:
            stop: called before each step. If it returns True, the epoch ends before this step.
            tick: called after each step with the number of batches done.

        Returns:
            The metrics of the epoch; None if `stop` ended it.

        Raises:
            Diverged: a loss is not a finite number; the message names the first such batch.
            RankLost: another rank has ended.
        """
        p, began = self.progress, time.perf_counter()
        before = p.seconds
        self.network.train()
        for module in self.frozen:
            module.eval()
        stop = self.step.begin_epoch(stop)
        for batch, rows in list(enumerate(self.batches.of_epoch(p.epoch)))[p.batch :]:
            if stop():
                return None
            loss, _ = self.train_on(rows, p.epoch, batch)
            p.batch, p.images = batch + 1, p.images + len(rows)
            if self.after_step:
                self.after_step(self, loss)
            p.seconds = before + time.perf_counter() - began
            tick(p.batch)
        self.batches.prepare(p.epoch + 1)
        losses = self.step.tally.losses[: p.batch].double().cpu()  # an epoch waits for the device here only
        p.seconds = before + time.perf_counter() - began
        self._check_losses(losses)
        metrics = {
            "epoch": p.epoch + 1,
            "train_loss": float(losses.sum()) / p.images,
            "train_accuracy": 100 * int(self.step.tally.correct) / p.images,
            "train_seconds": p.seconds,
            "images_per_second": p.images / p.seconds,
            **self.binary.strengths,
            "flips": dict(zip(self.names, (int(flips) for flips in self.binary.flips), strict=True)),
        }
        if self.step.diagnostics:
            metrics |= self.step.diagnostics.epoch(self.binary.flips)
        metrics |= self.step.end_epoch()
        p.next_epoch()
        for count in (*self.binary.flips, self.step.tally.correct):
            count.zero_()
        return metrics

    def train_on(self, rows: Tensor, epoch: int = 0, batch: int = 0) -> tuple[Tensor, Tensor]:
        """Trains on one batch, number `batch` of epoch `epoch`: the samples `rows`, int64 indices on the device.

        Returns:
            The mean loss and the number of right answers before the step, scalars on the device. A later step may overwrite
            both tensors.
        """
        self.step.before(rows, epoch, batch)
        loss, correct = self.step(rows)
        self.step.after()
        return loss, correct

    def _check_losses(self, losses: Tensor) -> None:
        if not losses.isfinite().all():
            p, first = self.progress, int((~losses.isfinite()).nonzero()[0]) + 1
            raise Diverged(
                f"the loss is {float(losses[first - 1]):g} at epoch {p.epoch + 1}, batch {first} of {self.batch_count}\n"
                "what may help: a smaller real_optimizer.lr or delta, data without extreme values"
            )

    def evaluate(self) -> tuple[dict, Tensor]:
        """Evaluates the network on validation and test samples.

        Returns:
            The metrics (accuracies in percent, seconds, and the number of ones of every binary tensor), and the confusion
            matrix [label, answer] of the test samples, int64.

        Raises:
            NotBinary: a binary weight is neither 0 nor 1.
        """
        began = time.perf_counter()
        self.network.eval()
        metrics: dict[str, Any] = {}
        ones = verify_binary(self.network)
        for name, split in (("validation", self.data.validation), ("test", self.data.test)):
            if split is not None:
                size = self.settings.trainer.eval_batch_size
                confusion = confusion_matrix(self.answer, split, len(self.data.classes), size)
                metrics[f"{name}_accuracy"] = 100 * float(confusion.trace()) / len(split)
        if self.step.diagnostics:
            x, _ = self.data.test.batch(torch.arange(min(len(self.data.test), 4096), device=self.device))
            metrics["dead_outputs"] = dead_outputs(self.network, x)
        return metrics | {"eval_seconds": time.perf_counter() - began, "ones": ones}, confusion

    def state(self) -> dict:
        """Returns everything that a run needs to resume, as tensors and plain values. Binary weights are packed."""
        return {
            "class": home(type(self.network)),
            "engine": self.engine,
            "precision": self.settings.engine.precision,
            "device": self.device.type,
            "network": packed_state(self.network),
            "binary": self.binary.state_dict(),
            "flips": [int(flips) for flips in self.binary.flips],
            "real": [real.state() for real in self.real],
            "diagnostics": self.step.diagnostics and self.step.diagnostics.state(),
            "progress": vars(self.progress) | self.step.tally.state(self.progress.batch),
        }

    def load(self, state: dict) -> None:
        """Restores a state that the method `state` has returned.

        Raises:
            ValueError, KeyError, RuntimeError: the state belongs to another training.
        """
        load_state(self.network, state["network"])
        self.binary.load_state_dict(state["binary"])
        for flips, count in zip(self.binary.flips, state["flips"], strict=True):
            flips.fill_(count)
        for real, saved in zip(self.real, state["real"], strict=True):
            real.load(saved)
        if self.step.diagnostics:
            self.step.diagnostics.load(state["diagnostics"])
        own = {f.name for f in fields(Progress)}
        self.progress = Progress(**{name: value for name, value in state["progress"].items() if name in own})
        self.step.tally.load(**{name: value for name, value in state["progress"].items() if name not in own})
        if isinstance(self.step, Recorded):
            self.step.graphs.forget()  # they read the tensors of the state before


@torch.no_grad()
def confusion_matrix(network: Callable[[Tensor], Tensor], split: Split, classes: int, batch_size: int) -> Tensor:
    """Returns the number of samples of class i to which the network answers class j: int64 [classes, classes] on the CPU."""
    answers = []
    with progress("rows evaluated", len(split)) as done:
        for rows in pieces(torch.arange(len(split), device=split.labels.device), batch_size):
            x, _ = split.batch(rows)
            answers.append(network(x).argmax(1))
            done(len(rows))
    pairs = split.labels * classes + torch.cat(answers)
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes).cpu()  # the only wait for a GPU
