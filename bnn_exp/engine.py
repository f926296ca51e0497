"""Who computes a training: torch on dense tensors, or kernels on packed bits that leave out what the rule will not read.

`dense` computes the gradient of every weight, for any rule, model and device. `packed` is for rules that draw which entries
they read before they see the gradient (HyperMask's random mask): in the backward pass a layer hands the rule its gradient as
two factors, of which the rule computes the entries that it asks for and flips its bits at once. No gradient of a weight is ever
made or kept, and of a layer's inputs it keeps bits. Both engines draw the same masks; their gradients are sums of the same
terms in another order, so that a flip can differ only where |g| is below the rounding of fp32.
"""

from typing import TYPE_CHECKING

from bnn_exp.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from bnn_exp.optim import Rule

DENSEST = 0.5  # δ up to which `auto` takes the packed engine


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
    return "dense" if hindrance or settings.optimizer.delta > DENSEST else "packed"


def _hindrance(settings, device: str) -> str:
    """What of the settings the packed engine can't do, or nothing."""
    model, optimizer, trainer = settings.model, settings.optimizer, settings.trainer
    needs = (
        (model.name == "mlp", f"model={model.name}, only mlp"),
        (optimizer.name == "hypermask", f"optimizer={optimizer.name}, only hypermask"),
        (getattr(optimizer, "mask", "random") == "random", "optimizer.mask other than random"),
        (model.encoding != "centred", "model.encoding=centred"),
        (device == "cpu", f"device={device}, only cpu"),
        (trainer.precision != "bf16", "trainer.precision=bf16"),
        (not trainer.compile, "trainer.compile=true"),
        (not trainer.diagnostics, "trainer.diagnostics=true, which reads all gradients"),
        (trainer.devices == 1, f"trainer.devices={trainer.devices}, which send all gradients"),
    )
    return next((hindrance for able, hindrance in needs if not able), "")


def pack(network: "nn.Module", rule: "Rule") -> None:
    """Make the layers of `network` (linear, of bits) hand their gradients to `rule` as factors."""
    from functools import partial

    from bnn_exp.nn import binary_layers
    from bnn_exp.packed import Products

    places = {id(p): i for i, p in enumerate(rule.tensors())}
    for _, layer in binary_layers(network):
        products = Products(partial(rule.step_early, places[id(layer.weight)]), 0.0 if layer.encoding == "boolean" else -1.0)
        layer.binary_product, layer.pixel_product = products.of_bits, products.of_pixels
