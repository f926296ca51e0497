"""Binary weights, the layers made of them, and the binary activation."""

from bnn_exp.nn.binary import (
    ENCODINGS,
    BinaryConv2d,
    BinaryLayer,
    BinaryLinear,
    NotBinary,
    binarize,
    binary_layers,
    binary_parameters,
    encode,
    latent_parameters,
    named_bits,
    quantize,
    real_parameters,
    verify_binary,
)
from bnn_exp.nn.bncvl import BNCVL, BinaryNormalizedLinear

__all__ = [
    "BNCVL",
    "ENCODINGS",
    "BinaryConv2d",
    "BinaryLayer",
    "BinaryLinear",
    "BinaryNormalizedLinear",
    "NotBinary",
    "binarize",
    "binary_layers",
    "binary_parameters",
    "encode",
    "latent_parameters",
    "named_bits",
    "quantize",
    "real_parameters",
    "verify_binary",
]
