"""The networks that a configuration can name. Each module here describes and registers one network. No module imports torch.

A built-in network has two Python files: `config/models/NAME.py` holds its settings and its registration, `models/NAME.py` its
layers. One file would need torch for every refusal of a bad setting and for every report, which takes seconds. A network of a
plugin needs one file (docs/add_a_model.md), since plugins are loaded by request only.
"""

from importlib import import_module
from pkgutil import iter_modules

from bnn_exp.config.models.registry import (
    MODELS,
    Encoding,
    Entry,
    Weights,
    check_images,
    register_model,
    train_by,
    weights_of,
)

__all__ = ["MODELS", "Encoding", "Entry", "Weights", "check_images", "register_model", "train_by", "weights_of"]

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)
