"""The cache of machine code: a kernel is compiled anew once an intrinsic in another file has changed, and only then."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numba
import numpy as np
import pytest
from numba.core.caching import IndexDataCacheFile

import bnn_exp.bits.cpu.kernels
from bnn_exp.bits.cpu.kernels.compiler import kernel

COUNT = """
import numpy as np
from bnn_exp.bits.cpu.kernels.packed_bits import negated_sums

sums = np.empty(1, np.float32)
negated_sums(np.array([[7, 1]], np.uint8), 16, sums)
stats = negated_sums.stats
print(int(16 - sums[0]) // 2, sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
"""


@pytest.mark.slow
def test_a_changed_intrinsic_is_never_run_from_the_cache(tmp_path):
    """The test copies the kernels alone into a new package, which imports no torch."""
    kernels = tmp_path / "bnn_exp" / "bits" / "cpu" / "kernels"
    source = Path(bnn_exp.bits.cpu.kernels.__file__).parent
    shutil.copytree(source, kernels, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in kernels.parents[:3]:
        (folder / "__init__.py").touch()
    (tmp_path / "bnn_exp" / "bits" / "reference.py").write_text("LANES = 64\n")
    (tmp_path / "bnn_exp" / "bits" / "scalar_rules.py").touch()
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}

    def result() -> list[int]:
        """Returns the number of ones in the bytes 7 and 1, of cache hits and of cache misses, in a new process."""
        python = [sys.executable, "-c", COUNT]  # imports from the current folder first
        done = subprocess.run(python, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        return [int(number) for number in done.stdout.split()]

    assert result() == [4, 0, 1]
    assert result() == [4, 1, 0]
    llvm = kernels / "llvm.py"
    text = llvm.read_text()
    assert text.count("b.ctpop(v)") == 1
    llvm.write_text(text.replace("b.ctpop(v)", "b.add(b.ctpop(v), I64(10))"))
    assert result() == [24, 0, 1]
    assert result() == [24, 1, 0]


def double(x):
    return x + x


def test_processes_that_compile_a_kernel_at_one_time_share_no_file(tmp_path, monkeypatch):
    """Both processes have read the index of the cache before the other one writes to it."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(IndexDataCacheFile, "_load_index", lambda self: {})
    for dtype in (np.float32, np.int16):
        kernel(double)(np.ones(3, dtype))
    assert len(list(tmp_path.rglob("*.nbc"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["numba.np.linalg.ensure_blas", "numba.core.dispatcher._DispatcherBase._compile_for_args"])
def test_another_version_of_numba_costs_speed_only(name):
    """Names that numba does not promise may be missing."""
    module, _, missing = name.rpartition(".")
    code = f"import pkgutil; delattr(pkgutil.resolve_name({module!r}), {missing!r})\n"
    code += "from bnn_exp.bits.cpu.kernels.compiler import only_noted\nwith only_noted() as calls: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
