"""The cache of machine code: a kernel is compiled anew once an intrinsic in another file has changed, and only then."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import bnn_exp.bits.cpu.kernels

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
