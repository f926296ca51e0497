"""Random arguments of the operators of `bnn_exp.bits.convolutions`, for tests of their forms."""

import random

import torch
import torch.nn.functional as F

from bnn_exp.bits import to_tiles
from bnn_exp.bits.convolutions import thresholds_of, to_rows
from bnn_exp.bits.reference import packed

CHANNELS, OUTPUTS = (1, 3, 5, 16, 17, 64, 65, 130), (1, 3, 10, 16, 17, 32, 33, 64, 65, 100, 130)
HEIGHTS, WIDTHS = (1, 2, 3, 4, 5, 7, 8, 9, 14), (1, 2, 3, 4, 5, 6, 7, 8, 11, 14, 28)
KINDS = ("codes_of_codes", "bits_of_codes", "bits_of_bits")


def case(kind: str, seed: int, batch: int | None = None) -> tuple:
    """Returns random arguments of the operator `kind`."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    channels, outputs, size, pool = (draw.choice(each) for each in (CHANNELS, OUTPUTS, (1, 3, 5, 7), (1, 1, 2, 3)))
    shape = batch or draw.randint(1, 3), draw.choice(HEIGHTS), draw.choice(WIDTHS), channels
    weights, zero, groups = torch.randint(2, (outputs, size, size, channels)), draw.choice([0, -1]), -(-outputs // 64)
    codes = kind != "bits_of_bits"
    tiles, inputs = to_tiles(to_rows(weights.to(torch.uint8), codes)), size * size * channels
    inverted = packed(F.pad(torch.randint(2, (1, outputs)), (0, 64 * groups - outputs)))[0]
    if codes:
        x, padding = torch.randint(256, shape, dtype=torch.uint8), torch.randint(256, (channels,), dtype=torch.uint8)
        if kind == "codes_of_codes":
            multiplier = torch.randn(outputs) * draw.choice([1e-6, 1e-3, 0.01, 0.5, 1e4, 1e30]) * (torch.rand(outputs) > 0.1)
            bias = torch.randint(-3000, 3000, (outputs,), dtype=torch.int32)
            return x, tiles, padding, size, zero, bias, multiplier, draw.choice([15, 255]), pool
        found = thresholds_of(torch.randint(-60 * inputs - 1, 60 * inputs + 1, (1, 1, outputs)), groups)
        return x, tiles, padding, size, outputs, zero, found, inverted, pool
    bits = packed(F.pad(torch.randint(2, shape), (0, -channels % 8)).flatten(0, 2)).unflatten(0, shape[:3])
    classes = draw.choice([1, size])
    found = thresholds_of(torch.randint(-inputs // 3 - 1, inputs // 3 + 1, (classes, classes, outputs)), groups)
    return bits, tiles, channels, size, outputs, zero, found, inverted, pool
