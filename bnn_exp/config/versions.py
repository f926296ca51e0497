"""Hides the differences between the supported versions of Hydra and OmegaConf. Imports no torch."""

import importlib.metadata
import warnings
from collections.abc import Callable

from omegaconf import OmegaConf


def _at_least(package: str, *version: int) -> bool:
    parts = importlib.metadata.version(package).split(".")[: len(version)]
    return tuple(int(part) for part in parts) >= version


# Arguments of hydra.main, of which Hydra 1.4 deprecates version_base.
HYDRA = {} if _at_least("hydra-core", 1, 4) else {"version_base": "1.3"}
# OmegaConf 2.4 renames the function that registers resolvers.
_register: Callable = OmegaConf.register_resolver if _at_least("omegaconf", 2, 4) else OmegaConf.register_new_resolver


def register_resolver(function: Callable, use_cache: bool) -> None:
    """Registers a function that `${NAME:…}` in a configuration calls. NAME is the name of the function.

    Args:
        use_cache: True if a second call with equal arguments returns the first result.
    """
    _register(function.__name__, function, use_cache=use_cache, replace=True)


def hush() -> None:
    """Suppresses the warning of Hydra 1.4 about the callback of this package in conf/config.yaml."""
    warnings.filterwarnings("ignore", r"hydra\.utils\.instantiate\(\) resolved _target_='bnn_exp", UserWarning)
