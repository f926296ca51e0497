"""Binary weights, the layers made of them, and the binary activation."""

from bnn_exp.nn.binary import ENCODINGS, Binarize, NotBinary, binarize, encode, quantize
from bnn_exp.nn.bncvl import BNCVL, BinaryNormalizedLinear
from bnn_exp.nn.layers import BinaryConv2d, BinaryLayer, BinaryLinear
from bnn_exp.nn.normalization import normalized
from bnn_exp.nn.parameters import (
    binary_layers,
    binary_parameters,
    latent_parameters,
    named_bits,
    real_parameters,
    verify_binary,
)

__all__ = [
    "BNCVL",
    "ENCODINGS",
    "Binarize",
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
    "normalized",
    "quantize",
    "real_parameters",
    "verify_binary",
]
