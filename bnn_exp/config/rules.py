"""The registry of the rules that train binary weights: the name, the settings with their ranges, and the class of each rule.

No other module lists the rules. A class here has the name of a class of `bnn_exp.optim`, and holds the settings of that rule.
`register` adds your own rule (docs/add_a_rule.md). Imports no torch.
"""

import sys
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from bnn_exp.config import plugins
from bnn_exp.config.registry import Registry, fields_of, found, name_of, offer
from bnn_exp.config.schema import Fraction, NonNegative, Positive, Schedule, schema

Scale = Literal["tensor", "neuron", "factored"]  # the unit of gradients, see bnn_exp.optim.gradients.scaled


@schema
class HyperMask:
    name: Literal["hypermask"]
    mask: Literal["random", "top", "ewm", "wpm"]
    delta: Fraction
    scale: Scale
    schedule: Schedule
    lr: Positive
    temperature: Literal["const", "gaussian", "scaled_gaussian"]


@schema
class Counter:
    name: Literal["counter"]
    bits: Annotated[int, Field(ge=1, le=8)]
    delta: NonNegative
    scale: Scale
    schedule: Schedule


@schema
class Bop:
    name: Literal["bop"]
    gamma: Fraction
    tau: NonNegative
    schedule: Schedule


@schema
class Bop2:
    name: Literal["bop2"]
    gamma: Fraction
    sigma: Fraction
    tau: NonNegative
    schedule: Schedule


@schema
class CEMA:
    name: Literal["cema"]
    gamma: Fraction
    alpha: Fraction
    schedule: Schedule


@schema
class Bold:
    name: Literal["bold"]
    eta: Positive
    schedule: Schedule


@schema
class LatentSGD:
    name: Literal["latent_sgd"]
    lr: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)]
    schedule: Schedule


@schema
class LatentAdam:
    name: Literal["latent_adam"]
    lr: Positive
    schedule: Schedule


@schema
class Latent:
    name: Literal["latent"]
    torch: Annotated[str, Field(min_length=1, description="a class of torch.optim, such as RMSprop, or package.module:Class")]
    lr: Positive
    options: Annotated[dict[str, Any], Field(description="{NAME:VALUE,…}, further arguments of the class")] | None
    schedule: Schedule


@dataclass(frozen=True)
class Entry:
    """A registered rule."""

    settings: type  # the dataclass of the rule's settings
    home: str | type  # the class, or its name as "module:class", which is imported when a run needs the class
    trains: tuple[str, ...]  # the kinds of weights that the rule trains: bits, latent, float
    strength: str | None = None  # the setting that says how much a step changes
    gentler: float = 1.0  # fine-tuning divides the strength by this number, see docs/rules.md

    def load(self) -> type:
        """Imports and returns the class of the rule."""
        return found(self.home)


RULES: Registry[Entry] = Registry("optimizer")  # optimizer=NAME chooses an entry
LATENTS = ("latent", "float")


def register(
    settings: Any,
    home: str | type,
    trains: tuple[str, ...] = ("bits",),
    values: dict[str, Any] | None = None,
    strength: str = "delta",
    gentler: float = 5.0,
) -> None:
    """Registers a rule, which `optimizer=NAME` then chooses.

    Args:
        settings: a `bnn_exp.schema` dataclass. Its first field is `name: Literal["NAME"]`, the other fields are the settings.
        home: the class, usually derived from `bnn_exp.optim.Rule`, or its name as "module:class".
        trains: the kinds of weights that the rule trains: `bits`, `latent`, `float`.
        values: the values of the settings without `name`. They replace a file `conf/optimizer/NAME.yaml`.
        strength: the setting that says how much a step changes. A rule without a setting of this name has no strength.
        gentler: the number by which `init_from` divides the strength of a run, see docs/rules.md. A strength that is a whole
            number stays a whole number, of at least 1.

    Raises:
        UserError: another rule has the name, or `settings` has no name.
    """
    name = name_of(settings)
    plugins.note(sys._getframe(1))
    known = strength if strength in fields_of(settings) else None
    RULES.add(name, Entry(settings, home, trains, known, gentler), settings, home)
    if values is not None:
        own = {"delta": f"${{strength:{values['delta']}}}"} if "delta" in values else {}
        offer("optimizer", name, {"name": name, **values, **own})


def strength(settings: Any) -> str | None:
    """Returns the setting that says how much a step changes, for a rule with these `settings`; None if there is none."""
    if settings.name == "hypermask" and settings.mask in ("ewm", "wpm"):
        return "lr"
    return RULES[settings.name].strength


def gentler(settings: Any) -> Any:
    """Returns the settings of a rule with the smaller strength that fine-tuning needs.

    A strength that is a whole number stays a whole number, of at least 1. The settings stay unchanged if the rule has no
    strength, or if the range of the strength excludes the smaller value.
    """
    key = strength(settings)
    own = getattr(settings, key) if key else None
    if key is None or not isinstance(own, int | float):
        return settings
    wanted = own / RULES[settings.name].gentler
    try:
        return replace(settings, **{key: max(1, round(wanted)) if isinstance(own, int) else wanted})
    except ValidationError:
        return settings


def trainers(weights: str) -> list[str]:
    """Returns the names of the rules that train `weights`: `bits`, `latent` or `float`."""
    return [name for name, rule in RULES.items() if weights in rule.trains]


def trained_by(name: str) -> str:
    """Returns the default weights of a network that the rule `name` trains: `bits` or `latent`."""
    return RULES[name].trains[0] if name in RULES else "bits"


register(HyperMask, "bnn_exp.optim.hypermask:HyperMask")
register(Counter, "bnn_exp.optim.counter:Counter")
register(Bop, "bnn_exp.optim.bop:Bop", strength="gamma", gentler=10.0)
register(Bop2, "bnn_exp.optim.bop:Bop2", strength="gamma")
register(CEMA, "bnn_exp.optim.cema:CEMA", strength="alpha")
register(Bold, "bnn_exp.optim.bold:Bold", strength="eta")
register(LatentAdam, "bnn_exp.optim.latent:LatentAdam", LATENTS, strength="lr", gentler=1.0)
register(LatentSGD, "bnn_exp.optim.latent:LatentSGD", LATENTS, strength="lr", gentler=1.0)
register(Latent, "bnn_exp.optim.latent:Latent", LATENTS, strength="lr", gentler=1.0)
