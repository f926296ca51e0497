"""The kernels of layers, losses, batches and augmentation compile for compute capabilities 8.0 and 9.0, without such a GPU."""

import subprocess
import sys

import pytest
from helpers import compiling

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bnn_exp.data.cuda.augment import vary_kernel
from bnn_exp.data.cuda.gather import gather_kernel, rows_kernel
from bnn_exp.nn.cuda import batch_norm_kernels, losses, pixels, pooling, standardize, tally, values

POINTERS = "stds mean variance weight bias running_mean running_variance means squares sums products of_weight of_bias std"
KINDS = dict.fromkeys(POINTERS.split(), "*fp32") | dict.fromkeys("eps momentum low high window".split(), "fp32")
KINDS |= dict.fromkeys("z grad out".split(), "*bf16") | {"batches": "*i64", "pixels": "*u8", "weights": "*fp32"}
KINDS |= {"places": "*u8", "x": "*bf16", "logits": "*bf16", "labels": "*i64", "scale": "*fp32"}
OTHERS = {"above_kernel": {"threshold": "*fp32"}, "loss_kernel": {"out": "*fp32"}, "right_kernel": {"out": "*i64"}}
OTHERS |= {"vary_kernel": {"x": "*u8", "out": "*u8", "number": "*i64", "key": "i64"}}
OTHERS |= {"rows_kernel": dict.fromkeys(("order", "begin", "out"), "*i64"), "gather_kernel": {"images": "*u8", "out": "*u8"}}
OTHERS["gather_kernel"] |= dict.fromkeys(("labels", "rows", "labels_out"), "*i64")
OTHERS["note_kernel"] = {"losses": "*fp32", "loss": "*fp32"} | dict.fromkeys(("correct", "batch", "right"), "*i64")
TILE, WHOLE = {"ROWS": 64, "COLUMNS": 64}, {"ROWS": 1024, "COLUMNS": 8}
NORM, COMBINING = {"AFFINE": True, "ACTIVATION": "binary"}, {"PARTS": 256, "GROUP": 16}
LOSSES = [{"LOSS": name, "ROWS": 1024, "CLASSES": 16} for name in ("cross_entropy", "squared_hinge")]
CONSTANTS = {
    batch_norm_kernels.part_moments: [TILE],
    batch_norm_kernels.combined_moments: [{"RUNNING": True, **COMBINING}],
    batch_norm_kernels.elements: [{"AFFINE": False, "ACTIVATION": "relu", **TILE}],
    batch_norm_kernels.whole: [{"RUNNING": True, **NORM, **WHOLE}],
    batch_norm_kernels.part_sums: [NORM | TILE],
    batch_norm_kernels.combined_sums: [COMBINING],
    batch_norm_kernels.element_gradients: [NORM | TILE],
    batch_norm_kernels.whole_gradient: [NORM | WHOLE],
    losses.loss_kernel: LOSSES,
    losses.gradient_kernel: LOSSES[:1],
    losses.right_kernel: [{"ROWS": 1024, "CLASSES": 16}],
    pixels.standardize_kernel: [{"TILE": 1024}],
    standardize.standardize_kernel: [{"ACTIVATION": "relu", "ROWS": 4096, "COLUMNS": 1}],
    standardize.gradient_kernel: [{"ACTIVATION": "relu", "ROWS": 4096, "COLUMNS": 1}],
    pooling.pool_kernel: [{"SIZE": 2, "POSITIONS": 32, "COLUMNS": 64}],
    pooling.gradient_kernel: [{"SIZE": 2, "POSITIONS": 32, "COLUMNS": 64}],
    vary_kernel: [{"FLIP": True, "SHIFT": 4, "CUTOUT": 8, "TILE": 1024}],
    rows_kernel: [{"BLOCK": 1024}],
    gather_kernel: [{"BLOCK": 1024}],
    tally.note_kernel: [{}],
    values.above_kernel: [{"LATENT": True, "INPUTS": 64, "SPACE": 16}],
}
for kernel, choices in CONSTANTS.items():
    for constants in choices:
        kinds = {n: "constexpr" if n in constants else KINDS.get(n, "i32") for n in kernel.arg_names}
        kinds |= OTHERS.get(kernel.__name__, {})
        for capability in (80, 90):
            source = ASTSource(fn=kernel, signature=kinds, constexprs=constants)
            triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 8})
    print(kernel.__name__)
"""


def test_the_kernels_compile_for_a_gpu(tmp_path):
    pytest.importorskip("triton")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE], env=compiling(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == 0 and len(done.stdout.split()) == 21, done.stderr
