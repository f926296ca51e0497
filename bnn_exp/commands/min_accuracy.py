"""The accuracy that `min_accuracy` asks for. A command that stays below it ends with an exit code of its own, for CI. Imports
no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

REACHED = {"last": "test_accuracy", "best": "best_test_accuracy"}  # of summary.json, by the network that counts


@dataclass(frozen=True)
class Gate:
    """The least test accuracy, in percent, of the `last` network of a run or of the `best` one. None: any accuracy will do."""

    least: float | None = None
    which: str = "last"

    def shortfall(self, accuracy: float | None) -> str:
        """Returns a sentence where an accuracy, in percent, is below the least one; else ""."""
        if self.least is None or accuracy is None or accuracy >= self.least:
            return ""
        network = " of the best epoch" if self.which == "best" else ""
        return f"test accuracy {accuracy:.2f}%{network} is below min_accuracy={self.least:g}"

    def of_run(self, summary: Mapping[str, Any] | None) -> str:
        """Returns the same of a run, by its summary. A run that is not completed reached nothing that could be too low."""
        done = summary is not None and summary.get("status") == "completed"
        return self.shortfall(summary.get(REACHED[self.which])) if done else ""
