"""Who computes a training: torch on dense tensors, or kernels on packed bits.

`dense` computes with bits as float32, for any rule, model and device. `packed` is for an MLP of bits: its weights lie eight to
a byte, and a layer's gradient goes to the rule in the backward pass, as two factors, and is never kept. A rule that draws
which entries it reads before it sees the gradient (HyperMask's random mask) computes those alone on a CPU; for the others the
whole gradient of one layer is there for a moment. On a CPU both engines draw the same numbers; their gradients are sums of the
same terms in another order, so that a flip can differ only where rounding decides. On a GPU a random mask is drawn by Triton.
"""

import os
from typing import TYPE_CHECKING

from bnn_exp.config.compatibility import GRADIENT_BITS, PACKED, RECORDED
from bnn_exp.config.groups import Settings

if TYPE_CHECKING:
    from torch import nn

WAITING = "OMP_WAIT_POLICY"  # how OpenMP's threads wait; GOMP_SPINCOUNT and KMP_BLOCKTIME go before it
LEAST_WORK = 50_000  # batch size · hidden size from which on `packed` is the faster one (measured on a Zen 4)


def choose(settings: Settings, device: str, network: "nn.Module | type[nn.Module] | None" = None) -> str:
    """Returns the engine of a training, `dense` or `packed`. For `engine=auto` it is the faster one. Imports no torch.

    Args:
        device: `cpu`, `cuda` or `cuda:N`.
        network: the network or its class, if known. The packed engine trains an MLP, and no class derived from it.

    Raises:
        UserError: the settings request the packed engine, which cannot train with them.
    """
    from_network = _reason_of_network(settings, network)
    for feature in (PACKED, GRADIENT_BITS):
        feature.check(settings, device, from_network)
    if settings.engine.name != "auto":
        return settings.engine.name
    if PACKED.reason_against(settings, device) or from_network or device != "cpu":  # nobody has compared them on a GPU
        return "dense"
    large = settings.trainer.batch_size * settings.model.hidden_size >= LEAST_WORK
    return "packed" if large or settings.engine.gradient_bits or settings.engine.memory == "lean" else "dense"


def _reason_of_network(settings: Settings, network: "nn.Module | type[nn.Module] | None") -> str:
    """Returns the reason why the packed engine cannot train a network, in words; "" if it can, or without a network."""
    if network is None or settings.model.name != "mlp":  # for another model the settings are the reason
        return ""
    from bnn_exp.nn.exact import difference

    return difference(network, "MLP")


def records(settings: Settings, device: str) -> bool:
    """Returns True if steps on this kind of device are recorded as CUDA graphs (`bnn_exp.training.steps.recorded`).

    Imports no torch.

    Raises:
        UserError: `engine.graphs=true` requests graphs, which another setting or the device excludes.
    """
    RECORDED.check(settings, device)
    return settings.engine.graphs is not False and not RECORDED.reason_against(settings, device)


def let_waiting_threads_sleep(device: str) -> None:
    """For work on a CPU, before torch is loaded: has OpenMP's threads sleep when they have nothing to do.

    By default they wait for their next work by spinning, some 10 ms after every operation, on the cores that our kernels and
    other processes want. Beside several busy processes for each core, steps on two threads took 12 to 42 times as long as on
    one; with threads that sleep, no longer than on one. What the user says of it by OpenMP's variables stays.
    """
    if not device.startswith("cuda"):
        os.environ.setdefault(WAITING, "PASSIVE")
