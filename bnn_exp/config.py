"""The schema of the configuration: a dataclass per group, types and ranges. The only reader of raw configuration.

The values live in `conf/`, each beside the sentence that explains it; here stand their types. No torch is imported, so that
a mistake is answered at once.
"""

import json
from typing import Annotated, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from bnn_exp import explain
from bnn_exp.errors import UserError

schema = dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Schedule = Literal["constant", "linear", "cosine"]


@schema
class BatchNorm:
    affine: bool
    running_stats: bool


@schema
class MLP:
    name: Literal["mlp"]
    hidden_size: Count
    num_layers: Count
    encoding: Literal["boolean", "bipolar", "centred"]
    window: Positive | None
    binarize_logits: bool
    batch_norm: BatchNorm


def _odd(size: int) -> int:
    if size % 2 == 0:
        raise ValueError("even")
    return size


@schema
class BNCVL:
    name: Literal["bncvl"]
    channels: Annotated[tuple[Count, ...], Field(min_length=1)]
    convolutions: Count
    kernel_size: Annotated[int, Field(ge=1, description="an odd whole number ≥ 1"), AfterValidator(_odd)]
    pool: Count
    dense: tuple[Count, ...]
    encoding: Literal["boolean", "bipolar", "centred"]
    normalization: Literal["sample", "batch", "channel"]
    weights: Literal["latent", "bits", "float"]


@schema
class HyperMask:
    name: Literal["hypermask"]
    mask: Literal["random", "top", "ewm", "wpm"]
    delta: Fraction
    schedule: Schedule
    lr: Positive
    temperature: Literal["const", "gaussian", "scaled_gaussian"]


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
class SGD:
    name: Literal["sgd"]
    lr: Positive
    momentum: Annotated[float, Field(ge=0, lt=1)]
    schedule: Schedule


@schema
class Adam:
    name: Literal["adam"]
    lr: Positive
    schedule: Schedule


@schema
class Rows:
    """What every dataset has: which of its rows are trained on, and how they are varied."""

    limit: Annotated[int, Field(ge=2)] | None
    validation: Annotated[float, Field(ge=0, le=0.5)]
    augment: Literal["none", "standard"]
    shift: Annotated[int, Field(ge=0)] | None
    flip: bool
    cutout: Annotated[int, Field(ge=0)]


@schema
class Digits(Rows):
    name: Literal["digits"]


@schema
class HubDataset(Rows):
    name: Literal["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "food101"]
    hub: str  # OWNER/NAME, or OWNER/NAME:CONFIGURATION where it has several
    path: str | None
    label: str | None
    size: Count | None


@schema
class Local(Rows):
    name: Literal["local"]
    path: Annotated[str, Field(description="a folder that holds train/CLASS/… and test/CLASS/…, or parquet files")]
    label: str | None
    size: Count | None


@schema
class Trainer:
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]  # BatchNorm can't take one sample
    limit_batches: Count | None
    eval_batch_size: Annotated[int, Field(ge=2)]
    threads: Count | None
    devices: Count
    sync_batch_norm: bool
    all_reduce: Literal["fp32", "int8", "sign"]


@schema
class Settings:
    model: Annotated[MLP | BNCVL, Field(discriminator="name")]
    optimizer: Annotated[HyperMask | LatentSGD | LatentAdam, Field(discriminator="name")]
    real_optimizer: Annotated[SGD | Adam, Field(discriminator="name")]
    dataset: Annotated[Digits | HubDataset | Local, Field(discriminator="name")]
    trainer: Trainer
    delta: Fraction
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")]
    resume: str | None


LATENT = ("latent_adam", "latent_sgd")
TRAINS = {"bits": ("hypermask",), "latent": LATENT, "float": LATENT}  # which optimizers train which kind of weights


def _sendable(optimizer: HyperMask | LatentSGD | LatentAdam) -> tuple[str, ...]:
    """What ranks may send of the gradients of the binary weights: what the rule that trains them reads."""
    if optimizer.name != "hypermask":
        return ("fp32",)  # latents are real
    return ("fp32", "int8", "sign") if optimizer.mask == "random" else ("fp32", "int8")


def load(config: DictConfig | dict) -> Settings:
    """The typed settings of a configuration: a composed one (without Hydra's own node), or plain values as a run keeps them.

    Raises:
        UserError: all that is wrong with it, a line each.
    """
    raw = values = config
    if isinstance(config, DictConfig):
        raw, values = OmegaConf.to_container(config), resolved(config)
    try:
        settings = TypeAdapter(Settings).validate_json(json.dumps(values))  # strictly: no text for a number
    except ValidationError as error:
        raise UserError("\n".join(dict.fromkeys(explain.mistake(e, raw, keys()) for e in error.errors()))) from error
    weights = getattr(settings.model, "weights", "bits")
    if settings.optimizer.name not in TRAINS[weights]:
        raise UserError(
            f"optimizer={settings.optimizer.name}: can't train model.weights={weights}\n"
            f"allowed: {', '.join(f'optimizer={name}' for name in TRAINS[weights])}"
        )
    if settings.trainer.all_reduce not in (sendable := _sendable(settings.optimizer)):
        rule = f"optimizer.mask={settings.optimizer.mask}" if settings.optimizer.name == "hypermask" else "latent weights"
        raise UserError(
            f"trainer.all_reduce={settings.trainer.all_reduce}: too little of a gradient for {rule}\n"
            f"allowed: {', '.join(sendable)}"
        )
    return settings


def resolved(config: DictConfig) -> dict:
    """The plain values of a composed configuration.

    Raises:
        UserError: a reference that leads nowhere.
    """
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error


def keys() -> list[explain.Key]:
    """Every dotted key of every choice of every group."""
    return list(explain.keys(TypeAdapter(Settings).json_schema()))
