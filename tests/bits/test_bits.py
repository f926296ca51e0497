"""The operators of inference against products of integers, on any processor, and Triton's kernels against them."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from bnn_exp.bits import bit_steps, bit_sums, from_tiles, operators, pack, pixel_steps, pixel_sums, real_product, to_tiles

SIZES = [(1, 1024, 1024), (1, 1, 1), (0, 8, 64), (5, 70, 5), (6, 785, 130), (4, 64, 64), (33, 257, 10), (3, 2100, 66)]


def weights(outputs: int, inputs: int, zero: float, one: float = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the values of random weights, [outputs, inputs], and their tiles."""
    bits = torch.randint(0, 2, (outputs, inputs))
    return torch.where(bits == 1, one, zero), to_tiles(pack(bits))


def bits_of(rows: torch.Tensor) -> torch.Tensor:
    return pack(rows) if len(rows) else torch.zeros(0, -(-rows.shape[1] // 8), dtype=torch.uint8)


@pytest.mark.parametrize("zero", [0, -1])
@pytest.mark.parametrize(("batch", "inputs", "outputs"), SIZES)
def test_sums_are_those_of_integers(batch, inputs, outputs, zero):
    values, tiles = weights(outputs, inputs, zero)
    bits = torch.randint(0, 2, (batch, inputs))
    pixels = torch.randint(0, 256, (batch, inputs), dtype=torch.uint8)
    assert torch.equal(bit_sums(bits_of(bits), tiles, outputs, zero).long(), bits @ values.T)
    assert torch.equal(pixel_sums(pixels, tiles, outputs, zero).long(), pixels.long() @ values.T)


@pytest.mark.parametrize("zero", [0, -1])
@pytest.mark.parametrize(("batch", "inputs", "outputs"), SIZES)
def test_steps_are_sums_against_thresholds(batch, inputs, outputs, zero):
    values, tiles = weights(outputs, inputs, zero)
    bits = torch.randint(0, 2, (batch, inputs))
    pixels = torch.randint(0, 256, (batch, inputs), dtype=torch.uint8)
    thresholds = torch.full((64 * len(tiles),), 2**31 - 1, dtype=torch.int32)
    inverted = torch.zeros(64 * len(tiles), dtype=torch.int64)
    inverted[:outputs] = torch.randint(0, 2, (outputs,))
    for x, steps, sums in ((bits_of(bits), bit_steps, bits @ values.T), (pixels, pixel_steps, pixels.long() @ values.T)):
        if batch:
            thresholds[:outputs] = sums[torch.randint(0, batch, (outputs,)), torch.arange(outputs)]  # a sum of each output
        packed = steps(x, tiles, thresholds, pack(inverted)[0], zero)
        expected = torch.zeros(batch, 64 * len(tiles), dtype=torch.bool)
        expected[:, :outputs] = (sums >= thresholds[:outputs]) ^ (inverted[:outputs] == 1)
        assert packed.shape == (batch, 8 * len(tiles))
        assert torch.equal(packed, bits_of(expected))


@pytest.mark.parametrize(("zero", "one"), [(0.0, 1.0), (-1.0, 1.0), (-0.5, 0.5)])
@pytest.mark.parametrize(("batch", "inputs", "outputs"), [*SIZES, (300, 129, 65)])
def test_real_inputs_are_multiplied_by_the_values(batch, inputs, outputs, zero, one):
    values, tiles = weights(outputs, inputs, zero, one)
    x = torch.randn(batch, inputs)
    exact = x.double() @ values.double().T
    scale = x.double().abs().sum(1, keepdim=True) + 1e-30
    assert ((real_product(x, tiles, outputs, zero, one) - exact).abs() <= 1e-6 * scale).all()


def test_inputs_of_any_strides():
    values, tiles = weights(70, 40, -1)
    bits = torch.randint(0, 2, (9, 40))
    wide = torch.cat([bits_of(bits), torch.randint(0, 256, (9, 3), dtype=torch.uint8)], 1)  # rows longer than the weights
    pixels = torch.randint(0, 256, (40, 18), dtype=torch.uint8).T[::2]
    x = torch.randn(40, 9).T
    spread = torch.stack([tiles, tiles], 3)[..., 0]
    for w in (tiles, spread):
        assert torch.equal(bit_sums(wide[::2], w, 70, -1).long(), (bits @ values.T)[::2])
        assert torch.equal(pixel_sums(pixels, w, 70, -1).long(), pixels.long() @ values.T)
        torch.testing.assert_close(real_product(x, w, 70, -1.0, 1.0), x @ values.float().T, atol=1e-4, rtol=1e-4)


def test_threads_share_rows_or_tiles():
    values, tiles = weights(1024, 1024, -1)
    few, many = torch.randint(0, 2, (60, 1024)), torch.randint(0, 2, (600, 1024))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for bits in (few, many):
                assert torch.equal(bit_sums(pack(bits), tiles, 1024, -1).float(), bits.float() @ values.float().T)
    finally:
        torch.set_num_threads(threads)


def test_tiles_hold_the_rows():
    for rows, columns in ((1, 1), (64, 8), (65, 9), (130, 784)):
        packed = pack(torch.randint(0, 2, (rows, columns)))
        assert torch.equal(from_tiles(to_tiles(packed), rows), packed)


@pytest.mark.parametrize("name", ["bit_sums", "pixel_sums", "bit_steps", "pixel_steps", "real_product"])
def test_the_operators_are_known_to_torch(name):
    _, tiles = weights(70, 40, 0)
    pixels = torch.randint(0, 256, (3, 40), dtype=torch.uint8)
    x = {"bit": pixels[:, :5], "pixel": pixels, "real": torch.randn(3, 40)}[name.split("_")[0]]
    thresholds = torch.zeros(128, dtype=torch.int32), torch.zeros(16, dtype=torch.uint8)
    constants = (0.0, 1.0) if name == "real_product" else (0,)
    arguments = (x, tiles, *(thresholds if name.endswith("steps") else (70,)), *constants)
    torch.library.opcheck(getattr(torch.ops.bnn_exp, name).default, arguments)
    function = getattr(operators, name)
    compiled = torch.compile(lambda x: function(x, *arguments[1:]), backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), function(*arguments))


def test_tensors_that_do_not_fit_are_refused():
    _, tiles = weights(70, 40, 0)
    bits, pixels = torch.zeros(2, 5, dtype=torch.uint8), torch.zeros(2, 40, dtype=torch.uint8)
    for call in (
        lambda: bit_sums(bits[:, :4], tiles, 70, 0),
        lambda: bit_sums(bits[0], tiles, 70, 0),
        lambda: bit_sums(bits.int(), tiles, 70, 0),
        lambda: bit_sums(bits, tiles[:, :, :32], 70, 0),
        lambda: bit_sums(bits, tiles.int(), 70, 0),
        lambda: bit_sums(bits, tiles, 129, 0),
        lambda: bit_sums(bits, tiles, 64, 0),
        lambda: pixel_sums(pixels[:, :32], tiles, 70, 0),
        lambda: pixel_sums(pixels.float(), tiles, 70, 0),
        lambda: real_product(pixels, tiles, 70, 0.0, 1.0),
        lambda: bit_steps(bits, tiles, torch.zeros(70, dtype=torch.int32), torch.zeros(16, dtype=torch.uint8), 0),
        lambda: bit_steps(bits, tiles, torch.zeros(128), torch.zeros(16, dtype=torch.uint8), 0),
        lambda: bit_steps(bits, tiles, torch.zeros(128, dtype=torch.int32), torch.zeros(9, dtype=torch.uint8), 0),
    ):
        with pytest.raises(ValueError, match=r"must be|have"):
            call()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_threads_work_in_a_forked_process():
    from bnn_exp.bits.cpu import threads

    def both() -> list:
        parts = []
        threads.share(lambda begin, end: parts.append((begin, end)), 10, 2)
        return sorted(parts)

    assert both() == [(0, 5), (5, 10)]
    child = os.fork()
    if not child:
        os._exit(0 if both() == [(0, 5), (5, 10)] else 1)
    assert os.waitpid(child, 0)[1] == 0


SELF = "import pytest, sys; sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-k', 'sums or steps or real', sys.argv[1]]))"


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other processors have no such features")
@pytest.mark.parametrize("features", ["+sse2", "+avx,+avx2,+fma,+popcnt", "+avx,+avx2,+fma,+popcnt,+avx512f,+avx512bw"])
def test_other_processors_compute_the_same(features, tmp_path):
    environment = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": features, "NUMBA_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", SELF, __file__], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
