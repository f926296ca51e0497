"""The console output of a run: rich on a terminal, one plain line per epoch elsewhere. train.log gets every line too."""

import io
from collections.abc import Sequence
from time import monotonic
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bnn_exp.models.cost import LayerCost
from bnn_exp.records import terminal
from bnn_exp.records.formatting import bytes_in_words, taken_for
from bnn_exp.records.log import log
from bnn_exp.records.optional import attempt
from bnn_exp.records.terminal import Plain, started_bar

WIDTHS = {
    "epoch": 9, "loss": 8, "train %": 8, "valid %": 8, "test %": 8, "flips": 11, "ones %": 7, "seconds": 8, "images/s": 10,
    "left": 8,
}  # fmt: skip


class Report:
    """The output of one run on the console and in train.log.

    Args:
        epochs: the number of epochs of the run.
        batches: the number of batches of an epoch, for the progress bar.
        binary_weights: the number of binary weights, for the percentage of ones.
    """

    def __init__(self, epochs: int, batches: int, binary_weights: int, console: Console | None = None):
        self.epochs, self.batches, self.binary_weights = epochs, batches, binary_weights
        self.console = console or terminal.console()
        self.seconds: list[float] = []
        self.bar: Progress | None = None
        self.epoch_began = 0.0

    def say(self, line: str) -> None:
        log.info(line)
        self._show(line)

    def warn(self, text: str) -> None:
        """Shows and logs a warning. The run continues."""
        log.warning(text)
        self._show(f"warning: {text}")

    def _show(self, what: str | Table) -> None:
        """Prints `what` on the console. After a failed print the console stays silent."""
        if not attempt("output", self.console.print, what):
            self.console.quiet = True

    def network(self, layers: list[LayerCost]) -> None:
        """Shows a table of the network: one row per layer, and a row with the sums."""
        table = Table("layer", "kind", title="network", title_justify="left")
        for column in ("output", "binary", "real", "as bits", "as fp32", "1-bit multiply-adds"):
            table.add_column(column, justify="right")
        for x in layers:
            shape = "×".join(map(str, x.output))
            size = (bytes_in_words(x.bytes_as_bits), bytes_in_words(x.bytes_as_fp32))
            table.add_row(x.name, x.kind, shape, f"{x.binary:,}", f"{x.real:,}", *size, f"{x.multiply_adds:,}")
        binary, real, macs = (sum(getattr(x, k) for x in layers) for k in ("binary", "real", "multiply_adds"))
        bits, fp32 = (sum(getattr(x, k) for x in layers) for k in ("bytes_as_bits", "bytes_as_fp32"))
        table.add_section()
        table.add_row("sum", "", "", f"{binary:,}", f"{real:,}", bytes_in_words(bits), bytes_in_words(fp32), f"{macs:,}")
        self.table(table)

    def table(self, table: Table) -> None:
        self._show(table)
        attempt("a table in the log", lambda: log.info("\n%s", plain(table)))

    def tick(self, batch: int) -> None:
        """Updates the progress bar after batch number `batch`, from 1.

        The bar appears only on a terminal, after the first second of an epoch.
        """
        now = monotonic()
        if batch == 1:
            self.epoch_began = now
        if not self.console.is_terminal or now - self.epoch_began < 1:
            return
        if self.bar is None:
            self.bar = started_bar(self.console, "  batch", self.batches)
        self.bar.update(self.bar.task_ids[0], completed=batch)

    def stop_bar(self) -> None:
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def epoch(self, m: dict[str, Any]) -> None:
        """Shows and logs one epoch. `m` is the line of the epoch in metrics.jsonl."""
        self.stop_bar()
        first = not self.seconds
        self.seconds.append(m["train_seconds"] + m["eval_seconds"])
        left = sum(self.seconds) / len(self.seconds) * (self.epochs - m["epoch"])
        cells = {
            "epoch": f"{m['epoch']}/{self.epochs}",
            "loss": f"{m['train_loss']:.4f}",
            "train %": f"{m['train_accuracy']:.2f}",
            **({"valid %": f"{m['validation_accuracy']:.2f}"} if "validation_accuracy" in m else {}),
            "test %": f"{m['test_accuracy']:.2f}",
            "flips": f"{sum(m['flips'].values()):,}",
            "ones %": f"{100 * sum(m['ones'].values()) / self.binary_weights:.2f}" if self.binary_weights else "—",
            "seconds": f"{self.seconds[-1]:.2f}",
            "images/s": f"{m['images_per_second']:,.0f}",
            "left": f"{left // 3600:.0f}:{left // 60 % 60:02.0f}:{left % 60:02.0f}",
        }
        line = "  ".join(f"{name} {cell}" for name, cell in cells.items())
        log.info(line)
        if self.console.is_terminal:
            row = Table(show_header=first, box=None, padding=(0, 1), pad_edge=False)
            for name in cells:
                row.add_column(name, justify="right", width=WIDTHS[name], no_wrap=True)
            row.add_row(*cells.values())
            self._show(row)
        else:
            self._show(line)

    def confusion(self, counts: list[list[int]], classes: tuple[str, ...]) -> None:
        self.table(by_class(counts, classes))


def by_class(counts: list[list[int]], classes: Sequence[str]) -> Table:
    """Returns a table with one row per class: rows, accuracy, and the most frequent wrong answer. `counts` are the rows per
    [label][answer]."""
    table = Table("class", title="test rows by class", title_justify="left")
    for column in ("rows", "right %", "most often taken for"):
        table.add_column(column, justify="right")
    for i, (name, row) in enumerate(zip(classes, counts, strict=True)):
        table.add_row(name, str(sum(row)), f"{100 * row[i] / max(sum(row), 1):.2f}", taken_for(i, row, classes))
    return table


def plain(table: Table) -> str:
    """Returns a table as text without colours, 120 columns wide."""
    text = io.StringIO()
    Plain(width=120, color_system=None, force_terminal=False, file=text).print(table)
    return text.getvalue().rstrip()
