"""Who computes a training: torch on dense tensors, or kernels on packed bits.

`dense` computes with bits as float32, for any rule, model and device. `packed` is for an MLP of bits on a CPU: its weights lie
eight to a byte, and a layer's gradient goes to the rule in the backward pass, as two factors, and is never kept. A rule that
draws which entries it reads before it sees the gradient (HyperMask's random mask) computes those alone; for the others the
whole gradient of one layer is there for a moment. Both engines draw the same numbers; their gradients are sums of the same
terms in another order, so that a flip can differ only where rounding decides.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from bnn_exp.errors import UserError

if TYPE_CHECKING:
    from bnn_exp.packed import PackedMLP

MOST_INPUTS = 2**15 - 1  # of a layer, whose sums int16 holds


def choose(settings, device: str) -> str:
    """`dense` or `packed`, whichever `trainer.engine` names; of `auto` the faster one. Imports no torch.

    Raises:
        UserError: it names `packed`, which can't compute this training.
    """
    engine, hindrance = settings.trainer.engine, _hindrance(settings, device)
    if engine == "packed" and hindrance:
        raise UserError(f"trainer.engine=packed: not with {hindrance}\nallowed: trainer.engine=auto or dense")
    if engine != "auto":
        return engine
    return "dense" if hindrance else "packed"


def _hindrance(settings, device: str) -> str:
    """What of the settings the packed engine can't do, or nothing."""
    model, trainer = settings.model, settings.trainer
    if model.name != "mlp":
        return f"model={model.name}, only mlp"
    needs = (
        (model.weights == "bits", f"model.weights={model.weights}, only bits"),
        (model.encoding != "centred", "model.encoding=centred"),
        (model.hidden_size <= MOST_INPUTS, f"model.hidden_size={model.hidden_size}, only up to {MOST_INPUTS}"),
        (device == "cpu", f"device={device}, only cpu"),
        (trainer.precision != "bf16", "trainer.precision=bf16"),
        (not trainer.compile, "trainer.compile=true"),
        (not trainer.diagnostics, "trainer.diagnostics=true, which reads all gradients"),
        (trainer.devices == 1, f"trainer.devices={trainer.devices}, which send all gradients"),
    )
    return next((hindrance for able, hindrance in needs if not able), "")


def pack(network, hand_over: Callable) -> "PackedMLP":
    """`network` on packed bits, see `bnn_exp.packed`."""
    from bnn_exp.packed import PackedMLP

    return PackedMLP(network, hand_over)
