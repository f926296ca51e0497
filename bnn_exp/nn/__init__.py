"""Binary weights, the layers made of them, and the binary activation."""

from bnn_exp.nn.binary import (
    ENCODINGS,
    BinaryLayer,
    BinaryLinear,
    NotBinary,
    binarize,
    binary_parameters,
    encode,
    real_parameters,
    verify_binary,
)

__all__ = [
    "ENCODINGS",
    "BinaryLayer",
    "BinaryLinear",
    "NotBinary",
    "binarize",
    "binary_parameters",
    "encode",
    "real_parameters",
    "verify_binary",
]
