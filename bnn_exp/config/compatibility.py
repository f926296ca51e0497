"""The table of settings that exclude each other. Each entry names a requested feature, its conditions and the message.

Imports no torch, since a mistake is answered before torch is loaded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bnn_exp.config import rules
from bnn_exp.config.groups import Settings
from bnn_exp.config.installed import has_triton
from bnn_exp.config.models import weights_of
from bnn_exp.config.registry import fields_of
from bnn_exp.config.request import Request
from bnn_exp.errors import UserError

MOST_INPUTS = 2**15 - 1  # the most inputs of a layer: the packed engine adds them up in int16
MOST_RANKS_OF_INT8 = 127  # the most ranks that can share the 127 positive numbers of int8


@dataclass(frozen=True)
class Condition:
    """A condition on the settings `s` and the device (`cpu`, `cuda` or `cuda:N`).

    `reason` names the setting that breaks the condition. It is a format string over `s` and `device`.
    """

    holds: Callable[[Settings, str], Any]
    reason: str


@dataclass(frozen=True)
class Feature:
    """A feature that a configuration can request, and the conditions that the feature needs."""

    key: str  # the setting that requests the feature: a format string over the settings `s`
    requested: Callable[[Settings], Any]
    conditions: tuple[Condition, ...]
    allowed: str

    def reason_against(self, settings: Settings, device: str) -> str:
        """Returns the first setting that excludes the feature, in words; "" if none does."""
        broken = (condition.reason for condition in self.conditions if not condition.holds(settings, device))
        return next(broken, "").format(s=settings, device=device)

    def check(self, settings: Settings, device: str, other_reason: str = "") -> None:
        """Raises UserError if the settings request the feature, but break a condition or `other_reason` excludes the feature.

        `other_reason` is a reason that the caller knows, in words; "" if there is none.
        """
        if self.requested(settings) and (reason := self.reason_against(settings, device) or other_reason):
            raise UserError(f"{self.key.format(s=settings)}: not with {reason}\nallowed: {self.allowed}")


DIAGNOSTICS = Condition(lambda s, _: not s.trainer.diagnostics, "trainer.diagnostics=true, which reads all gradients")
ONE_SENDER = Condition(lambda s, _: s.engine.devices == 1, "engine.devices={s.engine.devices}, which send all gradients")

PACKED = Feature(
    "engine=packed",
    lambda s: s.engine.name == "packed",
    (
        Condition(lambda s, _: getattr(s.model, "packed_training", False), "model={s.model.name}, only mlp"),
        Condition(lambda s, _: s.model.weights == "bits", "model.weights={s.model.weights}, only bits"),
        Condition(lambda s, _: s.model.encoding != "centred", "model.encoding=centred"),
        Condition(
            lambda s, _: s.model.hidden_size <= MOST_INPUTS,
            f"model.hidden_size={{s.model.hidden_size}}, only up to {MOST_INPUTS}",
        ),
        Condition(
            lambda _, device: device == "cpu" or has_triton(),
            "device={device}, for which the package triton or a C compiler is missing",
        ),
        Condition(
            lambda s, device: device == "cpu" or not s.engine.gradient_bits,
            "device={device} and engine.gradient_bits={s.engine.gradient_bits}",
        ),
        Condition(lambda s, _: not s.engine.compile, "engine.compile=true"),
        DIAGNOSTICS,
        ONE_SENDER,
    ),
    "engine=auto or dense",
)
GRADIENT_BITS = Feature(
    "engine.gradient_bits={s.engine.gradient_bits}",
    lambda s: s.engine.gradient_bits,
    (
        *PACKED.conditions,
        Condition(lambda s, _: s.engine.name != "dense", "engine=dense"),
        Condition(lambda s, _: s.engine.precision != "bf16", "engine.precision=bf16"),
    ),
    "engine.gradient_bits=null, or what engine=packed can train",
)
RECORDED = Feature(
    "engine.graphs=true",
    lambda s: s.engine.graphs,
    (Condition(lambda _, device: device != "cpu", "device={device}"),),
    "engine.graphs=null or false",
)
LEAN = Feature(
    "engine.memory=lean",
    lambda s: s.engine.memory == "lean",
    (
        Condition(
            lambda s, _: weights_of(s.model) == "bits",
            "optimizer={s.optimizer.name}, whose step needs all gradients",
        ),
        DIAGNOSTICS,
        ONE_SENDER,
        Condition(
            lambda s, _: not s.engine.compile,
            "engine.compile=true, which computes all gradients before it gives the first",
        ),
    ),
    "engine.memory=fast",
)
CODES = Feature(
    "model.activation_bits={s.model.activation_bits}",
    lambda s: getattr(s.model, "activation_bits", None),
    (
        Condition(
            lambda s, _: s.model.normalization == "batch",
            "model.normalization={s.model.normalization}, which computes in real numbers",
        ),
    ),
    "model.normalization=batch, or model.activation_bits=null",
)


def check(settings: Settings, device: str) -> None:
    """Checks that the device can compute everything that the settings request.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.

    Raises:
        UserError: two settings exclude each other, or a setting and the device exclude each other.
    """
    for feature in (PACKED, GRADIENT_BITS, RECORDED, LEAN, CODES):
        feature.check(settings, device)


def check_rule(settings: Settings) -> None:
    """Checks that the rule can train the weights of the network.

    Raises:
        UserError: the rule trains another kind of weights.
    """
    weights = weights_of(settings.model)
    able = rules.trainers(weights)
    if settings.optimizer.name not in able:
        raise UserError(
            f"optimizer={settings.optimizer.name}: can't train model.weights={weights}\n"
            f"allowed: {', '.join(f'optimizer={name}' for name in able)}"
        )


def check_exchange(settings: Settings) -> None:
    """Checks that ranks send gradients in a form that keeps all that the rule reads, and has room for the sum over ranks.

    Raises:
        UserError: `engine.all_reduce` loses a part of the gradient, or has no room for the sum.
    """
    form, devices, mask = settings.engine.all_reduce, settings.engine.devices, getattr(settings.optimizer, "mask", None)
    if weights_of(settings.model) != "bits":
        forms = ["fp32"]  # ranks must exchange float32: optimizers of latent weights read the exact numbers of a gradient
    elif mask == "random":
        forms = ["fp32", "int8", "sign"]  # a random mask reads only the signs of a gradient
    else:
        forms = ["fp32", "int8"]
    if form not in forms:
        rule = f"optimizer={settings.optimizer.name}" + (f" optimizer.mask={mask}" if mask else "")
        raise UserError(f"engine.all_reduce={form}: too little of a gradient for {rule}\nallowed: {', '.join(forms)}")
    if form == "int8" and devices > MOST_RANKS_OF_INT8:
        raise UserError(
            f"engine.all_reduce=int8: the sum of {devices} devices has no room in 8 bits\n"
            f"allowed: up to engine.devices={MOST_RANKS_OF_INT8}"
        )


def check_measured(settings: Settings, request: Request) -> None:
    """Checks that `benchmark=training` can measure a training with the settings, from its first step and in one process.

    Raises:
        UserError: plain torch cannot train the network, or the training does not begin anew in one process.
    """
    if "weights" not in fields_of(type(settings.model)):
        raise UserError(
            f"model={settings.model.name}: it lacks the setting weights, which plain torch needs to train real weights\n"
            "allowed: a model that has this setting, or benchmark=inference"
        )
    begins = "null; the configuration is measured, as it begins"
    for key, value, usual, allowed in (
        ("from", request.from_, None, begins),
        ("resume", settings.resume, None, begins),
        ("init_from", settings.init_from, None, begins),
        ("freeze", settings.freeze, 0, "0"),
        ("engine.devices", settings.engine.devices, 1, "1"),
    ):
        if value and value != usual:
            raise UserError(f"{key}={value}: not with benchmark=training\nallowed: {key}={allowed}")
