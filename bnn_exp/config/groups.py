"""The dataclass `Settings` of the settings that a run keeps, and a dataclass for each group of settings: types and ranges.

`conf/` holds the default values and explains each setting. Imports no torch.
"""

from typing import Annotated, Generic, Literal, TypeVar

from pydantic import Field

from bnn_exp.config.losses import LOSSES
from bnn_exp.config.schema import Count, Fraction, Named, Positive, Schedule, schema


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
class Trainer:
    epochs: Count
    batch_size: Annotated[int, Field(ge=2)]  # BatchNorm cannot take one sample
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
ModelSettings = TypeVar("ModelSettings")
RuleSettings = TypeVar("RuleSettings")
DatasetSettings = TypeVar("DatasetSettings")


@schema
class Settings(Generic[RuleSettings, ModelSettings, DatasetSettings]):
    """The settings of a run, checked and typed. `bnn_exp.config.settings` makes them from a configuration."""

    model: ModelSettings  # settings of an entry of bnn_exp.config.models.MODELS
    optimizer: RuleSettings  # settings of an entry of bnn_exp.config.rules.RULES
    real_optimizer: Annotated[SGD | Adam, Field(discriminator="name")]
    dataset: DatasetSettings
    trainer: Trainer
    engine: Engine
    delta: Fraction | None  # sets optimizer.delta; at most 1, although optimizer.delta of a counter may be larger
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")]
    resume: str | None
    init_from: str | None
    fresh: Annotated[int, Field(ge=0)] | None
    freeze: Annotated[int, Field(ge=0)]
    logger: Logger
    plugins: Annotated[str | tuple[str, ...], Field(description="a Python file, a module, or a list of them")] = ()
