"""The kernels of layers, losses, batches and augmentation compile for compute capabilities 8.0 and 9.0, without such a GPU."""

import pytest
from helpers import compiled

LAUNCHES = """
import torch

from bnn_exp.data.cuda import augment, gather
from bnn_exp.nn.cuda import batch_norm, codes, convolution, losses, pixels, pooling, standardize, tally, values

BF16, scalar, number, vector = torch.bfloat16, torch.tensor(0.5), torch.tensor(3), torch.empty(64)
few, many = torch.empty(1000, 64, dtype=BF16), torch.empty(128 * 32 * 32, 64, dtype=BF16)
running, statistics, affine = (vector, vector, number, 0.1), (vector, vector), (vector, vector, 1e-5)
batch_norm.batch_statistics(many, *running)
batch_norm.normalize(many, *statistics, None, None, 1e-5, "relu", 0.0, 0.0, BF16)
batch_norm.normalize_few(few, *running, *affine, "binary", -1.0, 1.0, BF16)
batch_norm.normalize_gradient(many, many, *statistics, *affine, "binary", 1.0)
batch_norm.normalize_few_gradient(few, few, *statistics, *affine, "binary", 1.0)
codes.codes_gradient(many, codes.codes_of(many, scalar, 255), scalar, 255)
samples = torch.empty(128, 16 * 32 * 32, 1, dtype=BF16)
_, mean, std = standardize.standardize(samples, "relu", 0.0, 0.0, BF16)
standardize.standardize_gradient(samples, samples, mean, std, "relu", 1.0)
_, places = pooling.pooled(torch.empty(128, 32, 32, 64, dtype=BF16), 2)
pooling.pooled_gradient(torch.empty(places.shape, dtype=BF16), places, 2, 32, 32)
values.above(torch.empty(64, 64, 3, 3), scalar, -1.0, 1.0, BF16)
values.numbers_of_pixels(torch.empty(128, 784, dtype=torch.uint8), 784, BF16)
for channels in (1, 16):
    convolution.weight_gradient(torch.empty(128, channels, 28, 28, dtype=BF16), torch.empty(128, 16, 28, 28, dtype=BF16), 3)
images, order = torch.empty(128, 3, 32, 32, dtype=torch.uint8), torch.zeros(999, dtype=torch.int64)
rows = gather.rows_from(order, number, 128)
_, labels = gather.gathered(images, rows, rows)
augment.varied_by_philox(images, number, 7, 0, 128, 4, True, 8)
pixels.standardize_pixels(images, vector, vector, BF16)
logits = torch.empty(128, 10, dtype=BF16)
for loss in ("cross_entropy", "squared_hinge"):
    losses.loss_in_blocks(logits, labels, 128, loss)
losses.loss_gradient(scalar, logits, labels, 128, "cross_entropy")
losses.right_in_blocks(logits, labels, 128)
tally.note_batch(vector, number, number, scalar, number, 128)
print(*{f"{kernel.__module__}.{kernel.__name__}" for kernel, _ in launched})
"""


@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), 90])
def test_the_kernels_compile_for_a_gpu(capability, tmp_path):
    pytest.importorskip("triton")
    assert len(compiled(tmp_path, capability, LAUNCHES)) == 26
