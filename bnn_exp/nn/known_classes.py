"""Checks that a network computes exactly what its class defines.

The packed engine (`bnn_exp.training.steps.packed`) and packed networks (`bnn_exp.deploy`) implement the computation of some
classes again, on bits. A subclass, a layer of another class, a replaced `forward` or a hook may compute something else, and
`isinstance` cannot detect that.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from bnn_exp.config.registry import home

Kind = TypeVar("Kind", bound=type[nn.Module])
# The attributes in which nn.Module keeps hooks.
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class _Known:
    kind: type[nn.Module]
    forward: Callable


_known: dict[str, _Known] = {}  # the key is the name of the class


def exact(kind: Kind) -> Kind:
    """Class decorator: records the class `kind` and its `forward`, because other code implements this `forward` on bits."""
    _known[kind.__name__] = _Known(kind, kind.forward)
    return kind


for _plain in (nn.ModuleList, nn.BatchNorm1d, nn.BatchNorm2d, nn.ReLU, nn.Identity):
    exact(_plain)


def is_exactly(kind: type, *names: str) -> bool:
    """Returns True if `kind` is the class that `exact` recorded under one of `names`, not a subclass of it."""
    return kind in [_known[name].kind for name in names]


def difference(network: nn.Module | type[nn.Module], *names: str) -> str:
    """Returns why `network` may compute something else than the classes `names` compute, in a few words; "" if it does not.

    Args:
        network: a network, which is checked with all its layers, or a class.
        names: the names of classes decorated with `exact`.
    """
    kind = network if isinstance(network, type) else type(network)
    if not is_exactly(kind, *names):
        return f"the network {home(kind)}, only exactly {' or '.join(home(_known[name].kind) for name in names)}"
    modules = {} if isinstance(network, type) else dict(network.named_modules())
    return next(
        filter(None, (_other_class(kind), *(_altered_module(name or "the network", m) for name, m in modules.items()))), ""
    )


def altered(network: nn.Module) -> str:
    """Returns which module of `network` has a replaced forward or hooks, in a few words; "" if none has."""
    return next(
        filter(None, (_altered_instance(name or "the network", module) for name, module in network.named_modules())), ""
    )


def _altered_module(name: str, module: nn.Module) -> str:
    found = _other_class(type(module))
    return _altered_instance(name, module) or (found and f"{name}: {found}")


def _altered_instance(name: str, module: nn.Module) -> str:
    if "forward" in vars(module):
        return f"{name}: its forward was replaced"
    return f"{name}: it has hooks" if any(getattr(module, hooks) for hooks in HOOKS) else ""


def _other_class(kind: type[nn.Module]) -> str:
    known = _known.get(kind.__name__)
    if known is None or known.kind is not kind:
        return f"a layer of the class {home(kind)}"
    return "" if kind.forward is known.forward else f"another {home(kind)}.forward"
