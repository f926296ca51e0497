"""Differences between the versions of Hydra and OmegaConf that the command runs with. Imports no torch."""

import importlib.metadata
import warnings
from collections.abc import Callable

from omegaconf import OmegaConf


def _at_least(package: str, *version: int) -> bool:
    parts = importlib.metadata.version(package).split(".")[: len(version)]
    return tuple(int(part) for part in parts) >= version


HYDRA = {} if _at_least("hydra-core", 1, 4) else {"version_base": "1.3"}  # of hydra.main; deprecated from 1.4 on
# before 2.4 register_resolver was another function
_register = OmegaConf.register_resolver if _at_least("omegaconf", 2, 4) else OmegaConf.register_new_resolver


def register_resolver(function: Callable, use_cache: bool) -> None:
    """Has `${NAME:…}` in a configuration call the function of that name."""
    _register(function.__name__, function, use_cache=use_cache, replace=True)


def hush() -> None:
    """Keeps Hydra 1.4 from warning that it makes our own callback, which conf/config.yaml names."""
    warnings.filterwarnings("ignore", r"hydra\.utils\.instantiate\(\) resolved _target_='bnn_exp", UserWarning)
