"""The decorators that compile a kernel with numba and cache its machine code on disk.

Numba's own cache looks only at the file of the compiled function. A kernel here also contains the code of intrinsics and of
kernels from other files. Its cached machine code therefore counts only as long as no file of this folder has changed.
"""

import hashlib
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch
from uuid import uuid4

from numba import njit
from numba.core.caching import FunctionCache
from numba.core.dispatcher import Dispatcher

from bnn_exp.bits.reference import LANES


def _import_array_functions() -> None:
    """Imports numba's array functions without `scipy.linalg`, whose import takes a tenth of a second.

    Numba imports `scipy.linalg` to learn whether scipy is installed. Only functions of linear algebra need it. A version of
    numba without these names imports `scipy.linalg`.
    """
    linalg = importlib.import_module("numba.np.linalg")
    if not hasattr(linalg, "ensure_blas"):
        return
    with patch.object(linalg, "ensure_blas", side_effect=ImportError):
        arrays = importlib.import_module("numba.np.arraymath")
    arrays._HAVE_BLAS = find_spec("scipy") is not None


if "numba.np.arraymath" not in sys.modules:
    with suppress(ImportError):
        _import_array_functions()


def _sources() -> str:
    """Returns a fingerprint of LANES, of all source files of this folder, and of the functions that they compile."""
    digest, folder = hashlib.sha256(f"LANES = {LANES}".encode()), Path(__file__).parent
    for file in (*sorted(folder.glob("*.py")), folder.parents[1] / "scalar_rules.py"):
        digest.update(file.read_bytes())
    return digest.hexdigest()


SOURCES = _sources()


class _KernelCache(FunctionCache):
    """Numba's cache of one compiled function, whose key also holds `SOURCES`."""

    def __init__(self, function: Callable):
        super().__init__(function)
        with suppress(AttributeError):
            # Two processes that compile a kernel at one time, for other types, would write to one file: the index of the cache
            # would then name the machine code of one type for the other.
            file = self._cache_file
            file._data_name_pattern = file._data_name_pattern.replace("{number", f"{uuid4().hex[:8]}.{{number")

    def _index_key(self, sig, codegen) -> tuple:
        return *super()._index_key(sig, codegen), SOURCES


def kernel(function: Callable, **options) -> Callable:
    """Returns `function`, compiled by numba at its first call. The compiled code runs without the interpreter's lock.

    Numba keeps the machine code beside the source file, or in the user's cache folder.

    Args:
        options: further options of `numba.njit`.
    """
    compiled = njit(nogil=True, error_model="numpy", **options)(function)
    with suppress(RuntimeError):  # numba found no writable folder for its cache: every process compiles the kernel again
        compiled._cache = _KernelCache(function)
    return compiled


def fused_kernel(function: Callable) -> Callable:
    """Returns `function` compiled as by `kernel`. It rounds a·b + c only once where the processor can."""
    return kernel(function, fastmath={"contract"})


@contextmanager
def only_noted() -> Iterator[list[tuple[Dispatcher, tuple]]]:
    """Context manager: a call of a kernel that is not compiled yet does nothing while the body runs, except to note itself.

    Yields the list of calls: the kernel, and the types of the arguments as its method `compile` takes them. Each pair stands
    in the list once, in the order of the first calls. A version of numba without the patched method notes none.
    """
    noted: dict[tuple[Dispatcher, tuple], None] = {}

    def note(kernel: Dispatcher, *arguments: object) -> Callable:
        noted[kernel, tuple(kernel.typeof_pyval(argument) for argument in arguments)] = None
        return lambda *_: None

    calls: list[tuple[Dispatcher, tuple]] = []
    with patch.object(Dispatcher, "_compile_for_args", note) if hasattr(Dispatcher, "_compile_for_args") else nullcontext():
        yield calls
    calls += noted
