"""Who computes a training: torch on dense tensors, or kernels on packed bits.

`dense` computes with bits as float32, for any rule, model and device. `packed` is for an MLP of bits: its weights lie eight to
a byte, and a layer's gradient goes to the rule in the backward pass, as two factors, and is never kept. A rule that draws
which entries it reads before it sees the gradient (HyperMask's random mask) computes those alone on a CPU; for the others the
whole gradient of one layer is there for a moment. On a CPU both engines draw the same numbers; their gradients are sums of the
same terms in another order, so that a flip can differ only where rounding decides. On a GPU a random mask is drawn by Triton.
"""

import os
from typing import TYPE_CHECKING

from bnn_exp.config import compatibility
from bnn_exp.config.settings import Settings
from bnn_exp.errors import UserError

if TYPE_CHECKING:
    from torch import nn


WAITING = "OMP_WAIT_POLICY"  # how OpenMP's threads wait; GOMP_SPINCOUNT and KMP_BLOCKTIME go before it
LEAST_WORK = 50_000  # batch size · hidden size from which on `packed` is the faster one (measured on a Zen 4)


def choose(settings: Settings, device: str, network: "nn.Module | type[nn.Module] | None" = None) -> str:
    """`dense` or `packed`, whichever `engine` names; of `auto` the faster one. Imports no torch.

    Args:
        network: the network or its class, once it is known: `packed` trains an MLP, and nothing derived from it.

    Raises:
        UserError: what is asked for needs `packed`, which can't compute this training.
    """
    engine, hindrance = settings.engine, _hindrance(settings, device, network)
    if engine.name == "packed" and hindrance:
        raise UserError(f"engine=packed: not with {hindrance}\nallowed: engine=auto or dense")
    if engine.gradient_bits and (hindrance or engine.name == "dense"):
        raise UserError(
            f"engine.gradient_bits={engine.gradient_bits}: not with {hindrance or 'engine=dense'}\n"
            "allowed: engine.gradient_bits=null, or what engine=packed can train"
        )
    return _chosen(settings, device, hindrance)


def _chosen(settings: Settings, device: str, hindrance: str) -> str:
    engine = settings.engine
    if engine.name != "auto":
        return engine.name
    if hindrance or device != "cpu":  # on a GPU neither is measured yet
        return "dense"
    large = settings.trainer.batch_size * settings.model.hidden_size >= LEAST_WORK
    return "packed" if large or engine.gradient_bits or engine.memory == "lean" else "dense"


def _hindrance(settings: Settings, device: str, network: "nn.Module | type[nn.Module] | None" = None) -> str:
    """Returns the first setting that the packed engine can't train, in words; "" where there is none."""
    found = compatibility.reason_not_packed(settings, device)
    if found or network is None:
        return found
    from bnn_exp.nn.exact import difference

    return difference(network, "MLP")


def records(settings: Settings, device: str) -> bool:
    """Whether steps on that kind of device become CUDA graphs (`bnn_exp.training.steps.recorded`). Imports no torch.

    Raises:
        UserError: `engine.graphs` asks for them, and they can't be.
    """
    engine, hindrance = settings.engine, compatibility.reason_not_recorded(settings, device)
    if engine.graphs and hindrance:
        raise UserError(f"engine.graphs=true: not with {hindrance}\nallowed: engine.graphs=null or false")
    return not hindrance and engine.graphs is not False


def let_waiting_threads_sleep(device: str) -> None:
    """For work on a CPU, before torch is loaded: has OpenMP's threads sleep when they have nothing to do.

    By default they wait for their next work by spinning, some 10 ms after every operation, on the cores that our kernels and
    other processes want. Beside several busy processes for each core, steps on two threads took 12 to 42 times as long as on
    one; with threads that sleep, no longer than on one. What the user says of it by OpenMP's variables stays.
    """
    if not device.startswith("cuda"):
        os.environ.setdefault(WAITING, "PASSIVE")
