"""Counts the parameters, bytes and multiply-adds of a network, layer by layer."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bnn_exp.nn import BinaryLayer


@dataclass(frozen=True)
class LayerCost:
    """The cost of one layer of a network."""

    name: str
    kind: str  # the name of the layer's class
    output: tuple[int, ...]  # the shape of the layer's output for one sample
    binary: int  # the number of binary weights
    real: int  # the number of real parameters
    multiply_adds: int  # products with binary weights, for one sample
    tensors: tuple[str, ...] = ()  # the names of the layer's binary weights in the state dict

    @property
    def bytes_as_bits(self) -> int:
        """The size in bytes if a binary weight takes one bit and a real parameter four bytes."""
        return -(-self.binary // 8) + 4 * self.real

    @property
    def bytes_as_fp32(self) -> int:
        return 4 * (self.binary + self.real)


@torch.enable_grad()  # without gradients a layer that gives codes computes without its BatchNorm
def layers(network: nn.Module, sample: Tensor) -> list[LayerCost]:
    """Returns the costs of all layers with parameters, in the order in which the network applies them to the batch `sample`.

    The batch holds one sample or more. Buffers do not count.
    """
    found: list[LayerCost] = []

    def note(name: str, module: nn.Module) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: Any, output: Tensor) -> None:
            bits = module.bits() if isinstance(module, BinaryLayer) else {}
            binary = sum(b.numel() for b in bits.values())
            real = sum(p.numel() for n, p in module.named_parameters(recurse=False) if n not in bits)
            shape = tuple(output.shape[1:])
            positions = output[0].numel() // len(bits["weight"]) if bits else 0
            if getattr(module, "pool", 1) > 1:  # the layer multiplies before it pools, at all positions of its inputs
                positions = inputs[0][0, 0].numel()
            adds = bits["weight"].numel() * positions if bits else 0
            tensors = tuple(f"{name}.{own}" if name else own for own in bits)
            found.append(LayerCost(name, type(module).__name__, shape, binary, real, adds, tensors))

        return hook

    owners = [(n, m) for n, m in network.named_modules() if any(True for _ in m.parameters(recurse=False))]
    hooks = [module.register_forward_hook(note(name, module)) for name, module in owners]
    was_training = network.training
    try:
        network.eval()(sample)
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return found
