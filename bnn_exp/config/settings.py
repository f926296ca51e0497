"""The schema of the configuration: a dataclass per group, types and ranges. The only reader of raw configuration.

The values live in `conf/`, each beside the sentence that explains it; here stand their types. No torch is imported, so that
a mistake is answered at once.
"""

import json
from typing import Annotated, Any, Generic, Literal, TypeVar, Union

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

from bnn_exp.config import explain, models, rules
from bnn_exp.config.datasets import DATASETS, Rows
from bnn_exp.config.losses import LOSSES
from bnn_exp.config.migrate import migrated
from bnn_exp.config.models import MODELS
from bnn_exp.config.schema import Count, Fraction, Named, Place, Positive, Schedule, schema
from bnn_exp.errors import UserError


def _rising(limits: tuple[float, float]) -> tuple[float, float]:
    if not limits[0] < limits[1]:
        raise ValueError("LOW is not below HIGH")
    return limits


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
class Digits(Rows):
    name: Literal["digits"]


@schema
class Pictures(Rows):
    """Settings of a dataset of pictures: how rows are read, and how a picture becomes pixels."""

    label: str | None
    size: Count | None
    channels: Literal[1, 3] | None = None
    fit: Literal["squash", "crop", "pad"] = "squash"
    background: Annotated[
        str, Field(pattern=r"^(white|grey|black|#[0-9a-fA-F]{6})$", description='white, grey, black or "#rrggbb"')
    ] = "white"
    range: (
        Annotated[tuple[float, float], AfterValidator(_rising), Field(description="[LOW,HIGH], two numbers with LOW < HIGH")]
        | None
    ) = None
    test_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.2


@schema
class HubDataset(Pictures):
    name: Literal["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "food101"]
    hub: str  # OWNER/NAME, or OWNER/NAME:CONFIGURATION where it has several
    path: Place | None


@schema
class Local(Pictures):
    name: Literal["local"]
    path: Annotated[
        Place, Field(description="a folder or file of your own pictures: train/CLASS/… and test/CLASS/…, or a table")
    ]


@schema
class Trainer:
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]  # BatchNorm can't take one sample
    final_batch_size: Annotated[int, Field(ge=2)] | None
    limit_batches: Count | None
    eval_batch_size: Annotated[int, Field(ge=2)]
    limit_eval: Annotated[int, Field(ge=2)] | None = None
    loss: Annotated[str, Named(LOSSES)]
    diagnostics: bool


@schema
class Engine:
    name: Literal["auto", "dense", "packed"]
    precision: Literal["auto", "fp32", "bf16"]
    compile: bool
    graphs: bool | None
    gradient_bits: Literal[4, 8] | None
    memory: Literal["fast", "lean"]
    threads: Count | None
    devices: Count
    sync_batch_norm: bool
    all_reduce: Literal["fp32", "int8", "sign"]


@schema
class NoLogger:
    name: Literal["none"]


@schema
class TensorBoard:
    name: Literal["tensorboard"]


@schema
class MLflow:
    name: Literal["mlflow"]
    uri: str | None
    experiment: str


@schema
class WandB:
    name: Literal["wandb"]
    project: str
    mode: Literal["offline", "online"]


Logger = Annotated[NoLogger | TensorBoard | MLflow | WandB, Field(discriminator="name")]
Rule, Model, Dataset = TypeVar("Rule"), TypeVar("Model"), TypeVar("Dataset")


@schema
class Settings(Generic[Rule, Model, Dataset]):
    model: Model  # one of bnn_exp.config.models.MODELS
    optimizer: Rule  # one of bnn_exp.config.rules.RULES
    real_optimizer: Annotated[SGD | Adam, Field(discriminator="name")]
    dataset: Dataset
    trainer: Trainer
    engine: Engine
    delta: Fraction | None  # of every rule; a counter takes more by optimizer.delta
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")]
    resume: str | None
    init_from: str | None
    fresh: Annotated[int, Field(ge=0)] | None
    freeze: Annotated[int, Field(ge=0)]
    logger: Logger
    plugins: Annotated[str | tuple[str, ...], Field(description="a Python file, a module, or a list of them")] = ()


@schema
class Report:
    x: str | None
    y: str | None
    group: str | None


@schema
class Export:
    format: Literal["onnx", "c", "torch"]
    dir: Place | None


@schema
class Sweep:
    resume: str | None
    search: Literal["grid", "optuna"]
    trials: Count


@schema
class Inference:
    name: Literal["inference"]


@schema
class Training:
    name: Literal["training"]
    rounds: Annotated[int, Field(ge=3)]  # quartiles of fewer lie outside of them
    reference_program: Place | None


@schema
class Request:
    """Keys of the configuration that ask the command for something and that no run keeps."""

    task: Literal["train", "report", "evaluate", "predict", "export", "benchmark"]
    from_: Annotated[
        Place | tuple[Place, ...] | None, Field(alias="from", description="a run or sweep directory, or a list of them")
    ]
    which: Literal["last", "best"]
    config: str | None
    min_accuracy: Annotated[float, Field(ge=1, le=100, description="a percentage, 1 to 100")] | None = None
    input: Annotated[Place | tuple[Place, ...] | None, Field(description="images, folders or patterns, or a list of them")]
    report: Report
    export: Export
    sweep: Sweep
    benchmark: Annotated[Inference | Training, Field(discriminator="name")]


REQUEST = ("task", "from", "which", "config", "min_accuracy", "input", "report", "export", "sweep", "benchmark")


def _one_of(*kinds: type) -> Any:
    """The type of a group of which `name` chooses one."""
    return Annotated[Union[kinds], Field(discriminator="name")]  # noqa: UP007


def _models() -> Any:
    return _one_of(*(entry.settings for entry in MODELS.values()))


def _datasets() -> Any:
    return _one_of(Digits, HubDataset, Local, *(entry.settings for entry in DATASETS.values()))


def _settings() -> type:
    """The schema with the rules, networks and datasets that there are by now."""
    return Settings[_one_of(*(entry.settings for entry in rules.RULES.values())), _models(), _datasets()]


def _sendable(optimizer, weights: str) -> tuple[str, ...]:
    """Returns the forms in which ranks may send gradients of binary weights: those that hold all that the rule reads."""
    if weights != "bits":
        return ("fp32",)  # latents are real
    return ("fp32", "int8", "sign") if getattr(optimizer, "mask", None) == "random" else ("fp32", "int8")


def load_settings(config: DictConfig | dict) -> Settings:
    """The typed settings of a configuration: a composed one (without Hydra's own node), or plain values as a run keeps them.

    Raises:
        UserError: all that is wrong with it, a line each.
    """
    settings = _checked(_settings(), config)
    weights = models.weights_of(settings.model)
    able = rules.trainers(weights)
    if settings.optimizer.name not in able:
        raise UserError(
            f"optimizer={settings.optimizer.name}: can't train model.weights={weights}\n"
            f"allowed: {', '.join(f'optimizer={name}' for name in able)}"
        )
    sent, sendable = settings.engine.all_reduce, _sendable(settings.optimizer, weights)
    if sent not in sendable:
        mask = getattr(settings.optimizer, "mask", None)
        rule = f"optimizer={settings.optimizer.name}" + (f" optimizer.mask={mask}" if mask else "")
        raise UserError(f"engine.all_reduce={sent}: too little of a gradient for {rule}\nallowed: {', '.join(sendable)}")
    return settings


def load_request(config: DictConfig) -> Request:
    """Returns the request in a composed configuration.

    Raises:
        UserError: all that is wrong with it, a line each.
    """
    return _checked(Request, config)


def _checked(kind: type, config: DictConfig | dict):
    if isinstance(config, DictConfig):
        raw, values = OmegaConf.to_container(config), resolved(config)
    else:
        raw = values = migrated(config)
    values = {key: value for key, value in values.items() if (key in REQUEST) == (kind is Request)}
    try:
        return TypeAdapter(kind).validate_json(json.dumps(values))  # strictly: no text for a number
    except ValidationError as error:
        found: dict[str, str] = {}
        for mistake in (explain.mistake(e, raw, known_keys()) for e in error.errors()):
            found.setdefault(mistake.splitlines()[0], mistake)  # delta, which is optimizer.delta too, once
        raise UserError("\n".join(found.values())) from error


def model_settings(values: dict) -> Any:
    """The settings of a network alone, from plain values: whichever rule trained it.

    Raises:
        ValueError: they are not such settings.
    """
    return TypeAdapter(_models()).validate_json(json.dumps(values))


def dataset_settings(values: dict) -> Rows:
    """The settings of a dataset alone, from plain values.

    Raises:
        ValueError: they are not such settings.
    """
    return TypeAdapter(_datasets()).validate_json(json.dumps(values))


def resolved(config: DictConfig) -> dict:
    """The plain values of a composed configuration.

    Raises:
        UserError: a reference that leads nowhere.
    """
    try:
        return OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from error


def known_keys() -> list[explain.Key]:
    """Every dotted key of every choice of every group."""
    return [key for kind in (_settings(), Request) for key in explain.keys(TypeAdapter(kind).json_schema())]
