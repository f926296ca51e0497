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


@njit(error_model="numpy")
def erf(x):
    """Returns the error function of a float32 within a few units of the last digit: a quotient of polynomials (Eigen)."""
    x = min(max(x, np.float32(-4)), np.float32(4))
    z = x * x
    p = np.float32(-2.72614225801306e-10)
    p = p * z + np.float32(2.77068142495902e-08)
    p = p * z + np.float32(-2.10102402082508e-06)
    p = p * z + np.float32(-5.69250639462346e-05)
    p = p * z + np.float32(-7.34990630326855e-04)
    p = p * z + np.float32(-2.95459980854025e-03)
    p = p * z + np.float32(-1.60960333262415e-02)
    q = np.float32(-1.45660718464996e-05)
    q = q * z + np.float32(-2.13374055278905e-04)
    q = q * z + np.float32(-1.68282697438203e-03)
    q = q * z + np.float32(-7.37332916720468e-03)
    q = q * z + np.float32(-1.42647390514189e-02)
    return x * p / q


OPERATIONS = {
    "where": where, "minimum": minimum, "maximum": maximum, "absolute": absolute, "divide": divide, "root": root,
    "floor": floor, "erf": erf, "real": np.float32,
}  # fmt: skip
