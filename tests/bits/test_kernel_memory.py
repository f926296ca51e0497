"""Kernels that use addresses of arrays of their own: numba must not free an array while the kernel uses its address."""

import ast
import re
from pathlib import Path

import numpy as np
from numba import njit

import bnn_exp.bits.cpu.kernels
from bnn_exp.bits.cpu.kernels.llvm import keep


def test_an_array_that_a_kernel_keeps_is_not_free_memory():
    @njit
    def addresses(n, kept):
        """Returns the address of an array, and those of arrays that are made later."""
        array = np.zeros(n, np.uint8)
        found = np.zeros(4, np.intp)
        if kept:
            found[0] = array.ctypes.data
        for i in range(1, 4):
            found[i] = np.empty(n, np.uint8).ctypes.data
        keep(array)
        return found

    first, *others = addresses(1000, True)
    assert first not in others


def test_every_kernel_keeps_the_arrays_whose_addresses_it_uses():
    kept = 0
    for file in Path(bnn_exp.bits.cpu.kernels.__file__).parent.glob("*.py"):
        for function in ast.walk(ast.parse(file.read_text())):
            if isinstance(function, ast.FunctionDef):
                made, used, held = arrays_of(function)
                assert made & used <= held, f"{file.name}: {function.name}"
                kept += len(held)
    assert kept


def arrays_of(function: ast.FunctionDef) -> tuple[set[str], set[str], set[str]]:
    """Returns the names of arrays that a function makes, of those whose address it takes, and of those that it keeps."""
    made, used, held = set(), set(), set()
    for node in ast.walk(function):
        match node:
            case ast.Assign(targets=[target], value=value) if re.search(r"np\.(empty|zeros)", ast.unparse(value)):
                made |= {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}
            case ast.Attribute(value=ast.Name(id=name), attr="ctypes"):
                used.add(name)
            case ast.Call(func=ast.Name(id="keep"), args=[ast.Name(id=name)]):
                held.add(name)
    return made, used, held
