"""The test accuracy that `min_accuracy` requires: a lower accuracy has its own exit code, for CI. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

REACHED = {"last": "test_accuracy", "best": "best_test_accuracy"}  # value of `which`: the key of the accuracy in summary.json


@dataclass(frozen=True)
class Gate:
    """The least test accuracy, in percent, that the `last` or `best` network of a run must reach; None requires nothing."""

    least: float | None = None
    which: str = "last"

    def shortfall(self, accuracy: float | None) -> str:
        """Returns a sentence for the user if `accuracy`, in percent, is too low; else ""."""
        if self.least is None or accuracy is None or accuracy >= self.least:
            return ""
        network = " of the best epoch" if self.which == "best" else ""
        return f"test accuracy {accuracy:.2f}%{network} is below min_accuracy={self.least:g}"

    def of_run(self, summary: Mapping[str, Any] | None) -> str:
        """Returns a sentence for the user if `summary` is of a completed run whose accuracy is too low; else ""."""
        done = summary is not None and summary.get("status") == "completed"
        return self.shortfall(summary.get(REACHED[self.which])) if done else ""
