"""Functions that the YAML files of conf/ call, as in `${weights_for:counter}`. Importing this module registers
these functions. Imports no torch.

Every process of a sweep composes configurations, so every module that such a process imports first must import this one.
"""

import secrets
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from omegaconf import DictConfig

from bnn_exp.config import versions


def run_directory(resume: str | None, task: str, name: str) -> str:
    """Returns the directory of a run: the directory that the run resumes, else a new one with the time and `name`.

    With `resume=auto` a training has no default directory, so the result is "". A task other than training has the name of
    the task in place of `name`.
    """
    if resume == "auto":
        return "" if task == "train" else run_directory(None, task, name)
    return resume or f"{_now()}-{name if task == 'train' else task}-{secrets.token_hex(2)}"


def sweep_directory(*resume: str | None) -> str:
    """Returns the directory of a sweep: the directory that the sweep resumes, else a new name; "" if one of `resume` is `auto`.

    Args:
        resume: the settings `sweep.resume` and `resume`.
    """
    return "" if "auto" in resume else resume[0] or f"{_now()}-sweep-{secrets.token_hex(2)}"


def weights_for(rule: str) -> str:
    """Returns the kind of weights that `rule` trains: the default of `model.weights`."""
    from bnn_exp.config import rules

    return rules.trained_by(rule)


def strength(own: float, *, _root_: DictConfig) -> Any:
    """Returns the δ of a rule: the setting `delta`, or the rule's `own` default if `delta` is null."""
    return own if _root_.delta is None else _root_.delta


def by(value: Any, choices: Mapping[Any, Any]) -> Any:
    """Returns `choices[value]`, or `choices["else"]` if `value` is no key: a default that depends on another setting."""
    return choices[value] if value in choices else choices["else"]


def _now() -> str:
    return datetime.now().strftime("outputs/%Y-%m-%d/%H-%M-%S.%f")


CACHED = (run_directory, sweep_directory)  # cached, because their results contain the time, and a command has one directory
for resolver in (*CACHED, weights_for, strength, by):
    versions.register_resolver(resolver, use_cache=resolver in CACHED)
