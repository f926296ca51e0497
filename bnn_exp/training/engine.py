"""Chooses how a training is computed: by torch on dense tensors, or by kernels on packed bits. Imports no torch.

`dense` computes with bits as float32, for every rule, model and device. `packed` trains an MLP of bits, stored eight to a byte.
In the backward pass each layer passes its gradient to the rule as two factors, and no gradient is kept. A rule that selects
weights before it sees the gradient (the random mask of HyperMask) computes only their entries on a CPU. For any other rule, the
whole gradient of one layer exists for a moment.

On one kind of device both engines draw the same random numbers. Their gradients are sums of the same terms in another order, so
a flip can differ only where rounding decides.

`engine=auto` chooses `dense` if `packed` cannot train the settings (the table in `bnn_exp.config.compatibility`). It chooses
`packed` if the settings request `engine.memory=lean` or `engine.gradient_bits`. Otherwise `auto` chooses the faster engine, by
the speeds that `benchmark=machine` has measured on this machine (`bnn_exp.training.measured`). Without such speeds, `auto`
follows a rule for the kind of processor on a CPU (`bnn_exp.training.cpu_costs`), and on a GPU takes the engine whose counted
work takes less time (`bnn_exp.training.costs`).
"""

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bnn_exp.config.compatibility import GRADIENT_BITS, PACKED, RECORDED
from bnn_exp.config.groups import Settings
from bnn_exp.training import costs, cpu_costs, measured

if TYPE_CHECKING:
    from torch import nn

# The environment variable that sets how OpenMP's threads wait; GOMP_SPINCOUNT and KMP_BLOCKTIME take precedence.
WAITING = "OMP_WAIT_POLICY"


def choose(settings: Settings, device: str, network: "nn.Module | type[nn.Module] | None" = None) -> str:
    """Returns the engine of a training, `dense` or `packed`. `engine=auto` stands for the faster engine. Imports no torch.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
        network: the network or its class, if known. The packed engine trains an MLP, and no class derived from MLP.

    Raises:
        UserError: the settings request the packed engine, which cannot train with the other settings or the network.
    """
    from_network = _reason_of_network(settings, network)
    for feature in (PACKED, GRADIENT_BITS):
        feature.check(settings, device, from_network)
    if settings.engine.name != "auto":
        return settings.engine.name
    if PACKED.reason_against(settings, device) or from_network:
        return "dense"
    if settings.engine.gradient_bits or settings.engine.memory == "lean":
        return "packed"
    hidden, batch = settings.model.hidden_size, settings.trainer.batch_size
    rule = "entries" if getattr(settings.optimizer, "mask", None) == "random" else "whole"
    if engine := measured.faster(device.partition(":")[0], rule, hidden, batch):
        return engine
    if device == "cpu":
        return cpu_costs.cheaper(rule, hidden, batch)
    return costs.cheaper(hidden, settings.model.num_layers, batch)


def as_begun(settings: Settings, device: str, begun: str | None) -> Settings:
    """Returns the settings of a run that resumes. `engine=auto` becomes the engine with which the run began, if it can go on.

    Otherwise a measurement by `benchmark=machine` between two parts of a run would change the engine, and so the bits.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
        begun: the engine in the checkpoint; None in checkpoints of earlier versions.
    """
    if settings.engine.name != "auto" or not begun or (begun == "packed" and PACKED.reason_against(settings, device)):
        return settings
    if begun == "dense" and settings.engine.gradient_bits:
        return settings
    kept: Any = begun
    return replace(settings, engine=replace(settings.engine, name=kept))


def _reason_of_network(settings: Settings, network: "nn.Module | type[nn.Module] | None") -> str:
    """Returns the reason why the packed engine cannot train a network, in words; "" if it can, or without a network."""
    # Without a network nothing can be compared. PACKED itself refuses every model but mlp.
    if network is None or settings.model.name != "mlp":
        return ""
    from bnn_exp.nn.known_classes import difference

    return difference(network, "MLP")


def records(settings: Settings, device: str) -> bool:
    """Returns True if steps on this kind of device are recorded as CUDA graphs (`bnn_exp.training.steps.recorded`).

    Imports no torch.

    Raises:
        UserError: `engine.graphs=true` requests CUDA graphs, which another setting or the device excludes.
    """
    RECORDED.check(settings, device)
    return settings.engine.graphs is not False and not RECORDED.reason_against(settings, device)


def let_waiting_threads_sleep(device: str) -> None:
    """Makes OpenMP's threads sleep while they have no work. For a run on a CPU, call this function before torch is loaded.

    By default the threads wait by spinning, for about 10 ms after every operation, on cores that other processes and our own
    kernels need. Beside several busy processes per core, steps on two threads took 12 to 42 times as long as steps on one
    thread; with sleeping threads they took no longer. A value that the user has set for OpenMP stays.
    """
    if not device.startswith("cuda"):
        os.environ.setdefault(WAITING, "PASSIVE")
