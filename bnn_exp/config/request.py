"""The dataclass `Request` of the settings that say what a command does: types and ranges. Imports no torch."""

from typing import Annotated, Literal

from pydantic import Field

from bnn_exp.config.schema import Count, Place, schema


@schema
class Predict:
    centre: bool


@schema
class Report:
    x: str | None
    y: str | None
    group: str | None


@schema
class Export:
    format: Literal["onnx", "c", "torch", "qonnx"]
    dir: Place | None


@schema
class Sweep:
    resume: str | None
    search: Literal["grid", "optuna"]
    trials: Count


@schema
class Local:
    name: Literal["local"]
    jobs: Count | None
    per_gpu: Count


@schema
class Elsewhere:
    name: Literal["none", "slurm", "ray"]


@schema
class Inference:
    name: Literal["inference"]


@schema
class Training:
    name: Literal["training"]
    rounds: Annotated[int, Field(ge=3)]  # the quartiles of fewer rounds would lie outside the measured times
    reference_program: Place | None


@schema
class Machine:
    name: Literal["machine"]


@schema
class Request:
    """The settings that say what a command does. The configuration that a run keeps does not contain them."""

    task: Literal["train", "report", "evaluate", "predict", "export", "benchmark"]
    from_: Annotated[
        Place | tuple[Place, ...] | None, Field(alias="from", description="a run or sweep directory, or a list of them")
    ]
    which: Literal["last", "best"]
    config: str | None
    min_accuracy: Annotated[float, Field(ge=1, le=100, description="a percentage, 1 to 100")] | None = None
    input: Annotated[Place | tuple[Place, ...] | None, Field(description="images, folders or patterns, or a list of them")]
    predict: Predict
    report: Report
    export: Export
    sweep: Sweep
    launcher: Annotated[Local | Elsewhere, Field(discriminator="name")]
    benchmark: Annotated[Inference | Training | Machine, Field(discriminator="name")]


REQUEST = (
    "task",
    "from",
    "which",
    "config",
    "min_accuracy",
    "input",
    "predict",
    "report",
    "export",
    "sweep",
    "launcher",
    "benchmark",
)
NETWORK_TASKS = ("evaluate", "predict", "export", "benchmark")  # the tasks that read the trained network of `from`
