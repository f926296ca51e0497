"""Training itself: epochs over a network, two optimizers and a dataset, resumable after any step."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bnn_exp import optim
from bnn_exp.bits import load_state, packed_state
from bnn_exp.config.losses import loss_named
from bnn_exp.data import augment
from bnn_exp.data.dataset import Dataset, Split, epoch_batches, piece_count, pieces
from bnn_exp.errors import Diverged
from bnn_exp.nn import named_bits, verify_binary
from bnn_exp.nn.exact import home
from bnn_exp.optim.rule import Factors
from bnn_exp.records.terminal import progress
from bnn_exp.training import engine, finetune
from bnn_exp.training.diagnostics import Diagnostics, dead_outputs
from bnn_exp.training.memory.footprint import Footprint
from bnn_exp.training.steps.low_memory import Saving, consume_gradients
from bnn_exp.training.steps.recorded import Graphs


@dataclass
class Progress:
    """Where a training stands: `epoch` epochs are done, and of the next one `batch` batches, which gave the sums below."""

    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    images: int = 0
    losses: list[Tensor] = field(default_factory=list)  # of each batch, times its size
    correct: Tensor | int = 0
    best_accuracy: float = -1.0  # in validation, where there are rows for it, else in the test
    best_test_accuracy: float = -1.0  # of the same epoch
    best_epoch: int = 0

    def next_epoch(self) -> None:
        self.epoch, self.batch, self.seconds, self.images, self.losses, self.correct = self.epoch + 1, 0, 0.0, 0, [], 0


class Trainer:
    """A network on its way through `settings.trainer.epochs` epochs."""

    def __init__(self, settings, network: nn.Module, data: Dataset):
        self.settings, self.network, self.data = settings, network, data
        self.device = data.train.labels.device
        self.augment = augment.build(settings.dataset, settings.seed, data.image_shape)
        self.loss = loss_named(settings.trainer.loss)
        self.progress = Progress()
        self.beginning: dict | None = None  # of a network that is fine-tuned, or partly frozen: see bnn_exp.training.finetune
        self.frozen = finetune.freeze(network, settings.freeze)
        self.engine = engine.choose(settings, self.device.type, network)
        self.bf16 = {"auto": self.device.type == "cuda", "fp32": False, "bf16": True}[settings.engine.precision]
        self.recorded = engine.records(settings, self.device.type)
        self.kept: dict[int, Factors] = {}  # gradients of packed bits, until recorded passes have ended
        if self.engine == "packed":
            self.forward = self.answer = engine.pack(settings, network, self._take, self._steps, self.bf16)
        else:
            self.answer = network
            self.forward = torch.compile(network, dynamic=False) if settings.engine.compile else network
        total_steps = sum(self.batches_in(epoch) for epoch in range(settings.trainer.epochs))
        self.binary = optim.build_binary(settings.optimizer, network, settings.trainer.batch_size, total_steps, settings.seed)
        self.real = optim.build_real(settings.real_optimizer, network, total_steps)
        optim.check_ownership(network, [self.binary, *(optimizer for optimizer, _ in self.real)])
        self.names = [name for name, _ in named_bits(network)]
        self.diagnostics = Diagnostics(network) if settings.trainer.diagnostics else None
        lean = settings.engine.memory == "lean"
        self.footprint = Footprint(network, Saving(network) if lean and self.engine == "dense" else None)
        if lean:
            consume_gradients(self.binary, self.footprint.note_gradients)
        self.passes = self._replayed if self.recorded else self._passes
        self.graphs = Graphs(self._with_gradients, settings.engine.graphs is True)
        self.after_step: Callable[[Trainer, Tensor], None] | None = None  # of bnn_exp.training.callbacks

    @property
    def batches(self) -> int:
        """The number of batches of the epoch under way, or the next."""
        return self.batches_in(self.progress.epoch)

    def batches_in(self, epoch: int) -> int:
        """The number of batches of an epoch."""
        count = piece_count(len(self.data.train), self.batch_size(epoch))
        return min(count, self.settings.trainer.limit_batches or count)

    def batch_size(self, epoch: int) -> int:
        """The batch of an epoch: from batch_size to final_batch_size, geometrically over the epochs."""
        trainer = self.settings.trainer
        growth = (trainer.final_batch_size or trainer.batch_size) / trainer.batch_size
        return round(trainer.batch_size * growth ** (epoch / max(trainer.epochs - 1, 1)))

    def _batches(self, epoch: int) -> list[Tensor]:
        trainer = self.settings.trainer
        rows = epoch_batches(len(self.data.train), self.batch_size(epoch), self.settings.seed, epoch, self.device)
        return rows[: trainer.limit_batches]

    def _batch(self, epoch: int, batch: int, rows: Tensor, share: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """The `share` of a batch's rows as training gets to see them, and their labels."""
        x, labels = self.data.train.batch(rows[share])
        return self.augment(x, epoch, batch, share, len(rows)), labels

    def first_pictures(self, count: int) -> tuple[Tensor, Tensor]:
        """`count` random train pictures as training gets to see them, and their labels."""
        return self._batch(0, 0, torch.cat(self._batches(0))[:count])

    def epoch(self, stop: Callable[[], bool] = lambda: False, tick: Callable[[int], None] = lambda batch: None) -> dict | None:
        """Train the next epoch, or the rest of it; its metrics, or None where `stop` ended it between two batches.

        Raises:
            Diverged: the loss is no number; the first such batch is named.
        """
        p, began = self.progress, time.perf_counter()
        before = p.seconds
        self.network.train()
        for module in self.frozen:
            module.eval()
        for batch, rows in list(enumerate(self._batches(p.epoch)))[p.batch :]:
            if stop():
                return None
            loss, correct = self.train_on(p.epoch, batch, rows)
            p.losses.append(loss * len(rows))
            p.correct = p.correct + correct
            p.batch, p.images = batch + 1, p.images + len(rows)
            if self.after_step:
                self.after_step(self, loss)
            p.seconds = before + time.perf_counter() - began
            tick(p.batch)
        losses = torch.stack(p.losses).double().cpu()  # the one wait for the device
        p.seconds = before + time.perf_counter() - began
        if not losses.isfinite().all():
            first = int((~losses.isfinite()).nonzero()[0]) + 1
            raise Diverged(
                f"the loss is {float(losses[first - 1]):g} at epoch {p.epoch + 1}, batch {first} of {self.batches}\n"
                "what may help: a smaller real_optimizer.lr or delta, data without extreme values"
            )
        metrics = {
            "epoch": p.epoch + 1,
            "train_loss": float(losses.sum()) / p.images,
            "train_accuracy": 100 * int(p.correct) / p.images,
            "train_seconds": p.seconds,
            "images_per_second": p.images / p.seconds,
            **self.binary.strengths,
            "flips": dict(zip(self.names, (int(flips) for flips in self.binary.flips), strict=True)),
        }
        if self.diagnostics:
            metrics |= self.diagnostics.epoch(self.binary.flips)
        p.next_epoch()
        for flips in self.binary.flips:
            flips.zero_()
        return metrics

    def train_on(self, epoch: int, batch: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        """What `step` gives, of the step on those rows."""
        return self.step(*self._batch(epoch, batch, rows))

    def step(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """One step on a batch; its mean loss and the number of right answers before the step, left on the device."""
        loss, correct = self.passes(x, labels)
        self.update()
        return loss, correct

    def _passes(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The forward and the backward pass; what `step` gives."""
        loss, logits = self.predict(x, labels)
        self.network.zero_grad()
        loss.backward()
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    def _with_gradients(self, x: Tensor, labels: Tensor) -> tuple[tuple, list[Tensor | None], dict[int, Factors]]:
        """Both passes, what they left as gradients of the parameters, and what those of packed bits are."""
        found = self._passes(x, labels)
        return found, [p.grad for p in self.network.parameters()], dict(self.kept)

    def _replayed(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The same by recorded passes, which leave gradients where they lay when they were recorded."""
        found, gradients, kept = self.graphs(x, labels)
        for p, gradient in zip(self.network.parameters(), gradients, strict=True):
            p.grad = gradient
        for layer, gradient in kept.items():
            self.binary.step_packed(layer, gradient)
        return found

    def _take(self, layer: int, gradient: Factors) -> None:
        """Let the rule have the gradient of a layer's packed bits as it appears in the backward pass.

        What is recorded can't change by the step, as draws and schedules do: then the rule has it afterwards.
        """
        if self.recorded:
            self.kept[layer] = gradient
        else:
            self.binary.step_packed(layer, gradient)

    def _steps(self) -> int:
        """How many steps the rule has done."""
        return self.binary.param_groups[0]["step"]

    def predict(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The mean loss of a batch, and its logits."""
        with self.footprint.saving(len(x)), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.forward(x)
            return self.loss(logits, labels), logits

    def update(self) -> None:
        """The optimizers' step, by the gradients that are there."""
        self.footprint.note_gradients()
        self.binary.step()
        if self.diagnostics:
            self.diagnostics.step()
        for optimizer, schedule in self.real:
            optimizer.step()
            schedule.step()

    def evaluate(self) -> tuple[dict, Tensor]:
        """Accuracies in test and validation and their seconds, the ones of every binary tensor, and the confusion matrix
        [label, answer] of the test.

        Raises:
            NotBinary: a binary weight is not binary.
        """
        began = time.perf_counter()
        self.network.eval()
        metrics, ones = {}, verify_binary(self.network)
        for name, split in (("validation", self.data.validation), ("test", self.data.test)):
            if split is not None:
                confusion = confusion_matrix(self.answer, split, len(self.data.classes), self.settings.trainer.eval_batch_size)
                metrics[f"{name}_accuracy"] = 100 * float(confusion.trace()) / len(split)
        if self.diagnostics:
            x, _ = self.data.test.batch(torch.arange(min(len(self.data.test), 4096), device=self.device))
            metrics["dead_outputs"] = dead_outputs(self.network, x)
        return metrics | {"eval_seconds": time.perf_counter() - began, "ones": ones}, confusion

    def state(self) -> dict:
        """All that a run needs to go on, as tensors and plain values; binary weights eight to a byte."""
        return {
            "class": home(type(self.network)),
            "network": packed_state(self.network),
            "binary": self.binary.state_dict(),
            "flips": [int(flips) for flips in self.binary.flips],
            "real": [(optimizer.state_dict(), schedule.state_dict()) for optimizer, schedule in self.real],
            "diagnostics": self.diagnostics and self.diagnostics.state(),
            "progress": dict(vars(self.progress)),
        }

    def load(self, state: dict) -> None:
        """Take up what `state` gave.

        Raises:
            ValueError, KeyError, RuntimeError: it is the state of another training.
        """
        load_state(self.network, state["network"])
        self.binary.load_state_dict(state["binary"])
        for flips, count in zip(self.binary.flips, state["flips"], strict=True):
            flips.fill_(count)
        for (optimizer, schedule), saved in zip(self.real, state["real"], strict=True):
            optimizer.load_state_dict(saved[0])
            schedule.load_state_dict(saved[1])
        if self.diagnostics:
            self.diagnostics.load(state["diagnostics"])
        self.progress = Progress(**state["progress"])


@torch.no_grad()
def confusion_matrix(network: Callable[[Tensor], Tensor], split: Split, classes: int, batch_size: int) -> Tensor:
    """How often a row of class i was answered with class j: int64 [classes, classes] on the CPU."""
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=split.labels.device)
    with progress("rows evaluated", len(split)) as done:
        for rows in pieces(torch.arange(len(split), device=counts.device), batch_size):
            x, labels = split.batch(rows)
            counts += torch.bincount(labels * classes + network(x).argmax(1), minlength=classes * classes)
            done(len(rows))
    return counts.reshape(classes, classes).cpu()
