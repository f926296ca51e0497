"""What a network costs, layer by layer: parameters, bytes, multiply-adds."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bnn_exp.nn import BinaryLayer


@dataclass(frozen=True)
class Layer:
    """A layer with parameters or buffers of its own. `bytes_as_bits`: its binary weights at one bit, its reals at fp32."""

    name: str
    kind: str
    output: tuple[int, ...]  # of one sample
    binary: int
    real: int
    multiply_adds: int  # with binary weights, for one sample
    tensors: tuple[str, ...] = ()  # its binary weights, by their names in the state dict

    @property
    def bytes_as_bits(self) -> int:
        return -(-self.binary // 8) + 4 * self.real

    @property
    def bytes_as_fp32(self) -> int:
        return 4 * (self.binary + self.real)


@torch.no_grad()
def layers(network: nn.Module, sample: Tensor) -> list[Layer]:
    """The layers of `network` in the order in which `sample` (a batch of ≥ 1, any) meets them; buffers are not counted."""
    found: list[Layer] = []

    def note(name: str, module: nn.Module):
        def hook(_module, _inputs, output: Tensor) -> None:
            bits = module.bits() if isinstance(module, BinaryLayer) else {}
            binary = sum(b.numel() for b in bits.values())
            real = sum(p.numel() for n, p in module.named_parameters(recurse=False) if n not in bits)
            shape = tuple(output.shape[1:])
            positions = output[0].numel() // len(bits["weight"]) if bits else 0
            adds = bits["weight"].numel() * positions if bits else 0
            tensors = tuple(f"{name}.{own}" if name else own for own in bits)
            found.append(Layer(name, type(module).__name__, shape, binary, real, adds, tensors))

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
