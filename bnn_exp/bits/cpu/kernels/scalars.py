"""The operations of `bnn_exp.bits.scalar_rules` on float32 numbers, for numba. A loop of them becomes vector instructions."""

import math

import numpy as np
from numba import njit


@njit
def where(condition, x, y):
    return x if condition else y


@njit
def minimum(x, y):
    return x if x < y else y


@njit
def maximum(x, y):
    return x if x > y else y


@njit
def absolute(x):
    return abs(x)


@njit(error_model="numpy")
def divide(x, y):
    return x / y


@njit
def root(x):
    return np.sqrt(x)


@njit
def floor(x):
    return np.float32(math.floor(x))


OPERATIONS = {
    "where": where, "minimum": minimum, "maximum": maximum, "absolute": absolute, "divide": divide, "root": root,
    "floor": floor, "real": np.float32,
}  # fmt: skip
