"""Training steps. A step is an object that is called with indices of samples: `step(rows)` → (loss, right answers).

`dense` is the step in plain torch: read it first. `packed` and `low_memory` replace a part of `dense`; `recorded` and `ranks`
wrap another step. Only `build` chooses between them: the trainer calls every kind of step in the same way.
"""

from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from bnn_exp.config.losses import loss_named
from bnn_exp.config.settings import Settings
from bnn_exp.optim import Scheduled
from bnn_exp.optim.trained import Trained
from bnn_exp.training import engine
from bnn_exp.training.batches import Batches
from bnn_exp.training.diagnostics import Diagnostics
from bnn_exp.training.steps.dense import Dense
from bnn_exp.training.steps.low_memory import LowMemory
from bnn_exp.training.steps.packed import Packed
from bnn_exp.training.steps.ranks import Exchanged
from bnn_exp.training.steps.recorded import Recorded

if TYPE_CHECKING:
    from bnn_exp.config.losses import Loss
    from bnn_exp.training.distributed.ranks import Ranks

Step = Dense | Recorded | Exchanged


def prepare(settings: Settings, network: nn.Module, where: str) -> str:
    """Returns the engine, `dense` or `packed`, for devices of type `where`. Packs the network's weights for `packed`."""
    chosen = engine.choose(settings, where, network)
    if chosen == "packed":
        for layer in network.layers:
            layer.pack()
    return chosen


def build(
    settings: Settings,
    chosen: str,
    network: nn.Module,
    batches: Batches,
    rule: Trained,
    real: list[Scheduled],
    ranks: "Ranks | None" = None,
) -> Step:
    """Returns the training step that the settings choose, for the device of the batches.

    Args:
        settings: their `engine.precision` is fp32 or bf16, see `bnn_exp.training.precision.settled`.
        chosen: the engine that `prepare` has returned for this network.
    """
    where, wanted = batches.device.type, settings.engine
    bf16 = wanted.precision == "bf16"

    def step(loss: "Loss") -> Dense:
        parts = network, batches, loss, rule, real, bf16
        if chosen == "packed":
            return Packed(settings, *parts)
        watch = Diagnostics(network) if settings.trainer.diagnostics else None
        kind = LowMemory if wanted.memory == "lean" else partial(Dense, compiled=wanted.compile, diagnostics=watch)
        return kind(*parts)

    loss = loss_named(settings.trainer.loss)
    made = step(loss) if ranks is None else Exchanged(settings, step, loss, ranks)
    if engine.records(settings, where) and rule.recordable:
        return Recorded(made, required=wanted.graphs is True, anyone=ranks.any if ranks else bool)
    return made
