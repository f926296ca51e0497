"""Bits as bits: packing, and what is computed on packed words."""

from bnn_exp.bits.packing import bits_sha256, deployed_state, load_state, pack, packed_state, unpack

__all__ = ["bits_sha256", "deployed_state", "load_state", "pack", "packed_state", "unpack"]
