"""The compiled convolutions of codes and bits give the integers of their definitions in plain torch."""

import os
import platform
import subprocess
import sys

import pytest
import torch
from convolution_cases import KINDS, case
from llvmlite.binding import get_host_cpu_features
from torch import Tensor

from bnn_exp.bits import convolutions, to_tiles
from bnn_exp.bits.convolutions import to_rows


def both(kind: str, arguments: tuple) -> tuple[Tensor, Tensor]:
    """Returns the results of the compiled form and of the definition."""
    operator = getattr(convolutions, kind)
    return operator(*arguments), operator.__wrapped__(*arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_a_convolution_equals_its_definition(kind):
    for seed in range(60):
        found, expected = both(kind, case(kind, seed))
        assert torch.equal(found, expected), seed


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_many_convolutions_equal_their_definitions(kind):
    for seed in range(100, 1500):
        found, expected = both(kind, case(kind, seed))
        assert torch.equal(found, expected), seed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [2, 5])
def test_threads_share_a_convolution(kind, threads, monkeypatch):
    from bnn_exp.bits.cpu import convolutions as compiled

    monkeypatch.setattr(compiled, "THREAD_WORK", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for seed in range(8):
            found, expected = both(kind, case(kind, seed, batch=1 + seed % 2 * 6))
            assert torch.equal(found, expected), seed
    finally:
        torch.set_num_threads(before)


def test_a_half_is_rounded_to_the_even_code():
    """The sums are 0 … 7 and the multiplier is ½, so every second product lies between two codes."""
    x, tiles = torch.arange(8, dtype=torch.uint8).view(1, 1, 8, 1), to_tiles(torch.ones(1, 1, dtype=torch.uint8))
    none, half = torch.zeros(1, dtype=torch.int32), torch.tensor([0.5])
    codes = convolutions.codes_of_codes(x, tiles, torch.zeros(1, dtype=torch.uint8), 1, -1, none, half, 255, 1)
    assert codes.flatten().tolist() == [0, 0, 1, 2, 2, 2, 3, 4]


def test_a_bias_that_is_no_number_of_float32_is_added_exactly():
    """The sum u + bias is −(254½ · 2¹⁶ + 1). A bias rounded to float32 first would give 254½ exactly, and the even code."""
    x = torch.full((1, 1, 1, 386), 255, dtype=torch.uint8)
    x[..., 0] = 129
    tiles = to_tiles(to_rows(torch.ones(1, 1, 1, 386, dtype=torch.uint8), codes=True))
    bias, multiplier = torch.tensor([-(2**24) - 1], dtype=torch.int32), torch.tensor([-(2.0**-16)])
    found, expected = both("codes_of_codes", (x, tiles, torch.zeros(386, dtype=torch.uint8), 1, 0, bias, multiplier, 255, 1))
    assert found.item() == expected.item() == 255


@pytest.mark.parametrize("channels", [1, 5, 16, 17, 130])
def test_an_average_equals_its_definition(channels):
    x = torch.randint(256, (3, 5, 7, channels), dtype=torch.uint8)
    for multiplier in (0.001, 1 / 35, -1.0, 3.0):
        found, expected = both("average_codes", (x, torch.tensor(multiplier), 15))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tensor_of_another_size_is_refused(kind):
    """A kernel sees addresses only, so a check must find every tensor that is too short."""
    arguments = case(kind, 1)
    tensors = [i for i, argument in enumerate(arguments) if isinstance(argument, Tensor)]
    for i in tensors:
        for wrong in (arguments[i].flatten()[:-1], arguments[i].double(), arguments[i][..., None]):
            with pytest.raises(ValueError, match="must be"):
                getattr(convolutions, kind)(*arguments[:i], wrong, *arguments[i + 1 :])
    sizes = len(arguments) - 1, 3  # pool, and size or channels
    for i in sizes:
        with pytest.raises(ValueError, match="must be"):
            getattr(convolutions, kind)(*arguments[:i], 0, *arguments[i + 1 :])


SELF = (
    "import pytest, sys; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-m', 'not slow', '-k', 'equal', sys.argv[1]]))"
)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors have no such features")
@pytest.mark.parametrize("more", ["", "avxvnni", "avx512f avx512bw avx512vl avx512vnni", None])
def test_other_processors_compute_the_same(more, tmp_path):
    names = ["sse2"] if more is None else ["avx", "avx2", "fma", "popcnt", *more.split()]
    has = get_host_cpu_features()
    if not all(has.get(name) for name in names):
        pytest.skip(f"this processor lacks one of {', '.join(names)}")
    features = ",".join(f"+{name}" for name in names)
    environment = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SELF, __file__], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
