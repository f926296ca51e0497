"""Networks and weights as packed bits. `bnn_exp.nn.packing` defines the order of the bits."""

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn_exp.bits import device, reference
from bnn_exp.nn import binary_parameters, named_bits
from bnn_exp.nn.norm import STATISTICS, running_norms, scale_and_shift
from bnn_exp.nn.packing import pack, unpack


@dataclass(frozen=True)
class PackedBits:
    """Bits [rows, columns] that lie packed: what a rule sees of weights that are never unpacked.

    Args:
        packed: uint8 [rows, ⌈columns / 8⌉], whose bits `flip` changes.
    """

    packed: Tensor
    columns: int

    def numel(self) -> int:
        return len(self.packed) * self.columns

    def flatten(self) -> "PackedBits":
        """Itself: it is read by flat positions."""
        return self

    def __getitem__(self, positions: Tensor) -> Tensor:
        """The bits at flat positions, int64: float32, as many. On the CPU."""
        from bnn_exp.bits.cpu.batch_norm import bits_at

        found = torch.empty(len(positions))
        bits_at(self.packed.numpy(), self.columns, positions.numpy(), found.numpy())
        return found

    def flip(self, which: Tensor) -> int | Tensor:
        """Flip the bits where bool [rows, columns] is true, or, on the CPU, at flat positions, int64 and each once.

        Gives their number, on a GPU as int64 that is not waited for.
        """
        if which.dtype != torch.bool:
            from bnn_exp.bits.cpu.batch_norm import flip_at

            flip_at(self.packed.numpy(), self.columns, which.numpy())
            return len(which)
        if device.on_host(which):
            self.packed.bitwise_xor_(pack(which))
            return int(which.sum())
        self.packed.bitwise_xor_(reference.packed(F.pad(which.byte(), (0, -self.columns % 8))))
        return which.sum()

    def unpack(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The bits as `dtype` [rows, columns]."""
        if device.on_host(self.packed):
            return unpack(self.packed, (len(self.packed), self.columns), dtype)
        return reference.unpacked(self.packed, dtype)[:, : self.columns]

    def values(self, zero: float) -> Tensor:
        """The same with `zero` for 0."""
        return self.unpack().mul_(1 - zero).add_(zero)


def packed_state(network: nn.Module) -> dict[str, Tensor]:
    """The network's state_dict on the CPU, the parameters that hold bits packed; latents stay real."""
    state = {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}
    return state | {name: pack(p) for name, p in binary_parameters(network) if p.dtype != torch.uint8}


def deployed_state(network: nn.Module) -> dict[str, Tensor]:
    """What evaluation needs of the network: as `packed_state`, with packed bits in the place of latents too, and of every
    BatchNorm with running statistics its scale and shift alone (`bnn_exp.nn.norm`)."""
    state = packed_state(network) | {name: pack(bits) for name, bits in named_bits(network)}
    for name, norm in running_norms(network):
        prefix = f"{name}." if name else ""
        for statistic in STATISTICS:
            del state[prefix + statistic]
        state[prefix + "weight"], state[prefix + "bias"] = scale_and_shift(norm)
    return state


def load_state(network: nn.Module, state: dict[str, Tensor]) -> None:
    """Put what `packed_state` gave into a network of the same shape, in place.

    Raises:
        ValueError, RuntimeError: names or sizes differ.
    """
    shapes = {name: tuple(p.shape) for name, p in binary_parameters(network) if p.dtype != torch.uint8}
    network.load_state_dict({n: unpack(t, shapes[n]) if n in shapes else t for n, t in state.items()})


def bits_sha256(network: nn.Module) -> str:
    """A fingerprint of all bits: SHA-256 of their names, shapes and packed values."""
    digest = hashlib.sha256()
    for name, bits in named_bits(network):
        digest.update(f"{name} {list(bits.shape)}\n".encode())
        digest.update(pack(bits).numpy())
    return digest.hexdigest()
