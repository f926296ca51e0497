"""bnn_exp: experiments with binary neural networks, whose weights are bits in training too.

The command is `bnn-train`. These names work in anyone's own training loop, without Hydra and without configuration.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {  # name: its module, imported at the first use of the name, because importing torch takes seconds
    "AveragedModel": "bnn_exp.optim.averaged",
    "BNCVL": "bnn_exp.nn",
    "BNCVLNet": "bnn_exp.models.bncvl",
    "BinaryLayer": "bnn_exp.nn",
    "BinaryLinear": "bnn_exp.nn",
    "BinaryNormalizedLinear": "bnn_exp.nn",
    "Bold": "bnn_exp.optim",
    "Bop": "bnn_exp.optim",
    "Bop2": "bnn_exp.optim",
    "CEMA": "bnn_exp.optim",
    "Callback": "bnn_exp.training.callbacks",
    "Counter": "bnn_exp.optim",
    "HyperMask": "bnn_exp.optim",
    "LatentAdam": "bnn_exp.optim",
    "LatentSGD": "bnn_exp.optim",
    "MLP": "bnn_exp.models.mlp",
    "Preprocessing": "bnn_exp.deploy",
    "Rule": "bnn_exp.optim",
    "binarize": "bnn_exp.nn",
    "binary_parameters": "bnn_exp.nn",
    "Rows": "bnn_exp.config.datasets",
    "check_ownership": "bnn_exp.optim",
    "export_c": "bnn_exp.deploy",
    "export_onnx": "bnn_exp.deploy",
    "export_qonnx": "bnn_exp.deploy",
    "export_torch": "bnn_exp.deploy",
    "latent_optimizer": "bnn_exp.optim",
    "latent_parameters": "bnn_exp.nn",
    "load_model": "bnn_exp.records.model",
    "load_packed": "bnn_exp.deploy",
    "named_bits": "bnn_exp.nn",
    "pack_network": "bnn_exp.deploy",
    "load_runs": "bnn_exp.records.sweeps.dataframe",
    "register_callback": "bnn_exp.training.callbacks",
    "read_preprocessing": "bnn_exp.deploy",
    "real_parameters": "bnn_exp.nn",
    "register_dataset": "bnn_exp.config.datasets",
    "register_loss": "bnn_exp.config.losses",
    "register_model": "bnn_exp.config.models",
    "register_rule": "bnn_exp.config.rules:register",
    "remembered": "bnn_exp.optim.gradients",
    "signs": "bnn_exp.optim.gradients",
    "uniform": "bnn_exp.bits.philox",
    "schema": "bnn_exp.config.schema",
    "Count": "bnn_exp.config.schema",
    "Fraction": "bnn_exp.config.schema",
    "Positive": "bnn_exp.config.schema",
    "NonNegative": "bnn_exp.config.schema",
    "Place": "bnn_exp.config.schema",
    "Schedule": "bnn_exp.config.schema",
    "Weights": "bnn_exp.config.models",
    "verify_binary": "bnn_exp.nn",
    "with_packed_layers": "bnn_exp.deploy",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, there = _HOMES[name].partition(":")
    return getattr(importlib.import_module(module), there or name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
