"""Decides whether a network is better than always answering the most common class. If not, suggests changes."""

from math import sqrt
from typing import Any

from bnn_exp.config import rules
from bnn_exp.config.models import weights_of

FEW_ROWS = 32  # batches below this size, which take more steps, do not help any more
CLEAR = 3.0  # standard deviations above chance: luck exceeds 3 of them once in 700 trainings


def beyond_chance(accuracy: float, counts: list[int]) -> bool:
    """Returns True if `accuracy` is clearly above chance: the accuracy of always answering the most common class.

    Args:
        accuracy: in percent.
        counts: the number of evaluated rows per class.
    """
    rows, chance = sum(counts), chance_of(counts) / 100
    return accuracy / 100 > chance + CLEAR * sqrt(chance * (1 - chance) / max(rows, 1))


def chance_of(counts: list[int]) -> float:
    """Returns the accuracy in percent of always answering the most common class. `counts` are the rows per class."""
    return 100 * max(counts, default=0) / max(sum(counts), 1)


def near_chance(accuracy: float, counts: list[int]) -> bool:
    """Returns True if an accuracy (percent) is near chance or below, and the rows are enough to decide.

    `counts` are the rows per class. Chance is the accuracy of always answering the most common class.
    """
    chance = chance_of(counts)
    return chance < 100 and not beyond_chance(accuracy, counts) and (accuracy <= chance or beyond_chance(100.0, counts))


def remark(name: str, accuracy: float, counts: list[int]) -> str | None:
    """Returns a sentence if an accuracy (percent) called `name` is not clearly above chance; else None.

    `counts` are the rows per class. Chance is the accuracy of always answering the most common class.
    """
    if beyond_chance(accuracy, counts):
        return None
    chance = chance_of(counts)
    if chance == 100:
        reason = "measured on rows of a single class, and so says nothing"
    elif accuracy <= chance:
        reason = f"no better than the most common class alone ({chance:.2f}%)"
    elif near_chance(accuracy, counts):
        reason = f"near chance: the most common class alone gives {chance:.2f}%"
    else:
        reason = f"measured on {sum(counts)} rows, too few to tell it from chance ({chance:.2f}%)"
    return f"{name} accuracy {accuracy:.2f}% is {reason}"


def advice(settings: Any, channels: int, flips: int) -> str:
    """Returns a line of changes to the configuration that may help a network whose accuracy is near chance.

    Args:
        channels: the number of channels of the images.
        flips: the number of bits that flipped in the training.
    """
    strength = rules.strength(settings.optimizer)
    value = getattr(settings.optimizer, strength) if strength else None
    if weights_of(settings.model) == "bits" and strength and not flips:
        larger = f"a larger optimizer.{strength} than {value:g}"
        return f"what to try: {larger}; no bit has flipped, so no binary weight is trained"
    tried = ["look at samples.png (are the images and their classes right?)"]
    if settings.optimizer.name != "counter" and weights_of(settings.model) == "bits":
        tried.append("optimizer=counter")
    if strength == "delta":
        tried.append(f"a smaller optimizer.delta than {value:g}")
    tried.append(f"more trainer.epochs than {settings.trainer.epochs}")
    if settings.trainer.batch_size > FEW_ROWS:
        tried.append(f"a smaller trainer.batch_size than {settings.trainer.batch_size}")
    if settings.model.name != "bncvl" and channels > 1 and not settings.init_from:
        tried.append("model=bncvl, for photos")
    return f"what to try: {'; '.join(tried)}"
