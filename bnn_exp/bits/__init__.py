"""Packed bits: how they lie in memory, and the operations that compute on packed bits without unpacking."""

from bnn_exp.bits.layout import laid_out
from bnn_exp.bits.operators import bit_steps, bit_sums, pixel_steps, pixel_sums, real_product, scores
from bnn_exp.bits.packing import bits_sha256, deployed_state, load_state, pack, packed_state, unpack
from bnn_exp.bits.reference import LANES, from_tiles, to_tiles

__all__ = [
    "LANES",
    "bit_steps",
    "bit_sums",
    "bits_sha256",
    "deployed_state",
    "from_tiles",
    "laid_out",
    "load_state",
    "pack",
    "packed_state",
    "pixel_steps",
    "pixel_sums",
    "real_product",
    "scores",
    "to_tiles",
    "unpack",
]
