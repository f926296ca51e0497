"""The kernels of layers compile for compute capabilities 8.0 and 9.0, without such a GPU."""

import subprocess
import sys

import pytest

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bnn_exp.nn.cuda import batch_norm_kernels, pixels, values

POINTERS = "mean variance weight bias running_mean running_variance means squares sums products of_weight of_bias std"
KINDS = dict.fromkeys(POINTERS.split(), "*fp32") | dict.fromkeys("eps momentum low high window".split(), "fp32")
KINDS |= dict.fromkeys("z grad out".split(), "*bf16") | {"batches": "*i64", "pixels": "*u8", "weights": "*fp32"}
TILES = [{"ROWS": 64, "COLUMNS": 64}, {"ROWS": 256, "COLUMNS": 16}, {"ROWS": 4096, "COLUMNS": 1}]
WHOLE = [{"ROWS": 1024, "COLUMNS": 8}, {"ROWS": 128, "COLUMNS": 32}, {"ROWS": 2, "COLUMNS": 1}]
NORM, COMBINING = {"AFFINE": True, "ACTIVATION": "binary"}, [{"PARTS": 256, "GROUP": 16}]
CONSTANTS = {
    batch_norm_kernels.part_moments: TILES,
    batch_norm_kernels.combined_moments: [{"RUNNING": True, **c} for c in COMBINING],
    batch_norm_kernels.elements: [NORM | size for size in TILES],
    batch_norm_kernels.whole: [{"RUNNING": True, **NORM, **size} for size in WHOLE],
    batch_norm_kernels.part_sums: [NORM | size for size in TILES],
    batch_norm_kernels.combined_sums: COMBINING,
    batch_norm_kernels.element_gradients: [NORM | size for size in TILES],
    batch_norm_kernels.whole_gradient: [NORM | size for size in WHOLE],
    pixels.standardize_kernel: [{"TILE": 1024}],
    values.above_kernel: [{"LATENT": True, "INPUTS": 64, "SPACE": 16}],
}
for kernel, choices in CONSTANTS.items():
    for constants in choices:
        for more in ({"ACTIVATION": "relu", "AFFINE": False}, {}):
            constants |= {name: value for name, value in more.items() if name in constants}
            kinds = {n: "constexpr" if n in constants else KINDS.get(n, "i32") for n in kernel.arg_names}
            kinds |= {"threshold": "*fp32"} if "threshold" in kinds else {}
            for capability in (80, 90):
                source = ASTSource(fn=kernel, signature=kinds, constexprs=constants)
                triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
    print(kernel.__name__)
"""


def test_the_kernels_compile_for_a_gpu(tmp_path):
    pytest.importorskip("triton")
    environment = {"PATH": "/usr/bin:/bin", "TRITON_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.split()) == 10, done.stderr
