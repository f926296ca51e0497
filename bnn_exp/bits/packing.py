"""Networks and weights as packed bits. `bnn_exp.nn.packing` defines the order of the bits."""

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn_exp.bits import reference
from bnn_exp.nn import binary_parameters, device, named_bits
from bnn_exp.nn.norm import STATISTICS, running_norms, scale_and_shift
from bnn_exp.nn.packing import pack, unpack


@dataclass(frozen=True)
class PackedBits:
    """Bits [rows, columns] in packed form. A rule reads and flips weights through it, without unpacking them.

    Args:
        packed: uint8 [rows, ⌈columns / 8⌉]; `flip` changes it in place.
    """

    packed: Tensor
    columns: int

    def numel(self) -> int:
        """Returns the number of bits."""
        return len(self.packed) * self.columns

    def flatten(self) -> "PackedBits":
        """Returns itself, since indices are flat positions already."""
        return self

    def __getitem__(self, positions: Tensor) -> Tensor:
        """Returns the bits at flat positions, int64, as float32 of the same length. Works on the CPU only."""
        from bnn_exp.bits.cpu.kernels.packed_bits import bits_at

        found = torch.empty(len(positions))
        bits_at(self.packed.numpy(), self.columns, positions.numpy(), found.numpy())
        return found

    def flip(self, which: Tensor) -> int | Tensor:
        """Flips bits in place and returns their number, on a GPU as an int64 scalar on that GPU.

        Args:
            which: bool [rows, columns], True for each bit to flip; or, on the CPU only, flat positions, int64 and each once.
        """
        if which.dtype != torch.bool:
            from bnn_exp.bits.cpu.kernels.packed_bits import flip_at

            flip_at(self.packed.numpy(), self.columns, which.numpy())
            return len(which)
        if device.on_host(which):
            self.packed.bitwise_xor_(pack(which))
            return int(which.sum())
        self.packed.bitwise_xor_(reference.packed(F.pad(which.byte(), (0, -self.columns % 8))))
        return which.sum()

    def unpack(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Returns the bits as `dtype` [rows, columns]."""
        if device.on_host(self.packed):
            return unpack(self.packed, (len(self.packed), self.columns), dtype)
        return reference.unpacked(self.packed, dtype)[:, : self.columns]

    def values(self, zero: float) -> Tensor:
        """Returns the values of the bits, float32 [rows, columns]: 1 for a bit 1, `zero` for a bit 0."""
        return self.unpack().mul_(1 - zero).add_(zero)


def packed_state(network: nn.Module) -> dict[str, Tensor]:
    """Returns the network's state_dict on the CPU. Parameters that hold bits are packed; latent weights stay real."""
    state = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    return state | {name: pack(p) for name, p in binary_parameters(network) if p.dtype != torch.uint8}


def deployed_state(network: nn.Module) -> dict[str, Tensor]:
    """Returns the tensors that evaluation of the network needs; they lie on the CPU.

    The result differs from `packed_state` in two ways: packed bits replace latent weights, and a BatchNorm with running
    statistics keeps only its scale and shift (`bnn_exp.nn.norm`).
    """
    state = packed_state(network) | {name: pack(bits) for name, bits in named_bits(network)}
    for name, norm in running_norms(network):
        prefix = f"{name}." if name else ""
        for statistic in STATISTICS:
            del state[prefix + statistic]
        state[prefix + "weight"], state[prefix + "bias"] = scale_and_shift(norm)
    return state


def load_state(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Loads a state from `packed_state` into a network of the same shape, in place.

    Raises:
        ValueError, RuntimeError: names or sizes in `state` differ from those in the network.
    """
    shapes = {name: tuple(p.shape) for name, p in binary_parameters(network) if p.dtype != torch.uint8}
    network.load_state_dict({n: unpack(t, shapes[n]) if n in shapes else t for n, t in state.items()})


def bits_sha256(network: nn.Module) -> str:
    """Returns a fingerprint of all bits of a network: the SHA-256 of their names, shapes and packed bits, in hexadecimal."""
    digest = hashlib.sha256()
    for name, bits in named_bits(network):
        digest.update(f"{name} {list(bits.shape)}\n".encode())
        digest.update(pack(bits).numpy())
    return digest.hexdigest()
