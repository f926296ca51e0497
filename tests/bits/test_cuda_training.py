"""The packed engine on a GPU against torch. Without a GPU, Triton's interpreter runs the kernels."""

import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from helpers import NeverWaits, compiled, on_both, trainer_of, use_tapes, where

from bnn_exp.bits import bits_sha256, pack
from bnn_exp.bits.cuda import operations, products
from bnn_exp.bits.cuda.training import OnGPU, Sums
from bnn_exp.bits.packing import PackedBits
from bnn_exp.config import compatibility
from bnn_exp.models.mlp import MLP
from bnn_exp.nn import device, operators
from bnn_exp.training.steps.packed import PackedMLP
from bnn_exp.training.steps.recorded import Recorded

pytest.importorskip("triton")
pytestmark, WHERE = [*on_both(), pytest.mark.usefixtures("triton_runs")], where()
FP8, HALF, BF16, FP32 = torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float32
HAS_FP8 = WHERE == "cpu" or products.has_fp8(torch.device(WHERE))
BOTH = [pytest.param(True, marks=pytest.mark.skipif(not HAS_FP8, reason="this GPU has no fp8 numbers")), False]
SMALL = (
    f"device={WHERE}",
    "model.num_layers=3",
    "model.hidden_size=40",
    "dataset.limit=150",
    "trainer.batch_size=60",
    "engine.precision=fp32",
)


@pytest.fixture
def on_gpu(monkeypatch):
    """Makes `device.on_host` take every tensor for one on a GPU, until the test ends."""
    monkeypatch.setattr(device, "on_host", lambda where: False)


@pytest.fixture
def kernels(monkeypatch):
    """Sends tensors on a CPU to the kernels too, until the test ends."""
    monkeypatch.setattr(operators, "kernels_everywhere", True)


@pytest.fixture(params=["one kernel", "blocks of rows"])
def rows_at_once(request, monkeypatch):
    """Runs the test twice: with all rows in one program, and in blocks."""
    if request.param == "blocks of rows":
        monkeypatch.setattr(operations, "FEW", 0)


def bits(*shape):
    return torch.full(shape, 0.5, device=WHERE).bernoulli_()


def packed(x):
    return PackedBits(pack(x).to(WHERE), x.shape[1])


@pytest.mark.parametrize("fp8", BOTH)
@pytest.mark.parametrize("zero", [0.0, -1.0])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 5, 3), (37, 64, 10), (130, 200, 70)])
def test_sums_are_exact(rows, inputs, outputs, zero, fp8, kernels):
    v, identity = bits(outputs, inputs), torch.nn.BatchNorm1d(inputs).to(WHERE).eval()
    values, weights, gpu = v.double() * (1 - zero) + zero, packed(v), OnGPU(False, fp8)
    y = torch.randint(-9, 10, (rows, -(-inputs // 64) * 64), dtype=HALF, device=WHERE)
    _, x = gpu.activated(identity, Sums(y, 1.0), zero)  # 1[y ≥ 0], since this BatchNorm is y = z
    assert x.dtype == (FP8 if fp8 else HALF)
    found = gpu.sums_of_bits(x, weights, zero)
    assert found.z.dtype == HALF and found.a == 1 and found.z.shape == (rows, -(-outputs // 64) * 64)
    assert torch.equal(found.z[:, :outputs].double(), ((y >= 0)[:, :inputs].double() * (1 - zero) + zero) @ values.T)
    pixels = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8, device=WHERE)
    found = gpu.sums_of_pixels(gpu.pixels(pixels), weights, zero)
    assert found.a == 1 / 255 and torch.equal(found.z[:, :outputs].double(), pixels.double() @ values.T)


def test_values_and_sums_are_exact_in_their_dtypes():
    values, pixels = torch.tensor([-1.0, 0.0, 1.0]), torch.arange(256.0)
    for dtype in (BF16, FP8, HALF):
        assert torch.equal(values.to(dtype).float(), values)
    assert torch.equal(pixels.bfloat16().float(), pixels) and not torch.equal(pixels.to(FP8).float(), pixels)
    for inputs, zero in product((2047, 2048, 2049, 4095, 4096, 4097, 4098), (0.0, -1.0)):
        sums = torch.arange(inputs + 1.0) if zero == 0 else torch.arange(-inputs, inputs + 1.0, 2)
        exact = torch.equal(sums.half().float(), sums)
        assert products.of_sums(inputs, zero) == (HALF if exact else FP32)


@pytest.mark.parametrize("fp8", BOTH)
@pytest.mark.parametrize("inputs", [products.MOST_IN_FP8, 1008])
def test_products_are_exact_up_to_their_bound(inputs, fp8):
    dtype = FP8 if fp8 else HALF
    ones, x = torch.ones(16, inputs, device=WHERE), torch.randint(-1, 2, (16, inputs), device=WHERE).float()
    for a, v in ((ones, ones), (x, ones), (x, x), (ones, -ones)):
        for product_of in (products.exact_product, operations.exact_product):
            with torch.autocast(WHERE, BF16):
                found = product_of(a.to(dtype), v.to(dtype), FP32)
            assert torch.equal(found.double(), a.double() @ v.double().T)
    assert products.of_values(products.MOST_IN_FP8, True) == FP8
    assert products.of_values(products.MOST_IN_FP8 + 1, True) == products.of_values(1, False) == HALF


@pytest.mark.skipif(not HAS_FP8, reason="this GPU has no fp8 numbers")
def test_fp8_is_tried_before_it_is_used(monkeypatch):
    assert products.fp8_is_exact(torch.device(WHERE))
    inexact = lambda a, v, dtype: (a.bfloat16() @ v.bfloat16().T).to(dtype)  # noqa: E731
    monkeypatch.setattr(products, "exact_product", inexact)
    assert not products.fp8_is_exact(torch.device(WHERE))


def agree(monkeypatch, operation, *given, rtol=1e-4, atol=1e-4):
    """Checks that the kernels of an operation give the results of its definition, and write the same to its arguments."""
    ends = []
    for kernels in (False, True):
        monkeypatch.setattr(operators, "kernels_everywhere", kernels)
        taken = [x.clone() if isinstance(x, torch.Tensor) else x for x in given]
        results = (operation if kernels else operation.__wrapped__)(*taken)
        ends.append([*([results] if isinstance(results, torch.Tensor) else results), *taken])
    for one, other in zip(*ends, strict=True):
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one.float(), other.float(), rtol=rtol, atol=atol)
    return ends[0]


@pytest.mark.parametrize("zero", [0.0, -1.0])
@pytest.mark.parametrize("dtype", [FP8, HALF, BF16, FP32])
def test_bits_are_unpacked_as_defined(dtype, zero, monkeypatch):
    given = packed(x := bits(13, 37)).packed, 37, zero, 64, 72, dtype
    found, *_ = agree(monkeypatch, operations.values_of_bits, *given, rtol=0, atol=0)
    assert torch.equal(found.float(), F.pad(x * (1 - zero) + zero, (0, 35, 0, 51)))


@pytest.mark.parametrize(("rows", "z_of"), [(37, HALF), (130, FP32)])
@pytest.mark.parametrize("options", [{}, {"affine": False, "track_running_stats": False}], ids=str)
def test_kernels_of_a_layer_compute_what_is_defined(rows, z_of, options, monkeypatch):
    """Random whole sums, 70 neurons in 128 columns, and gradients in fewer columns; the activation agrees in each bit."""
    norm = torch.nn.BatchNorm1d(70, **options).to(WHERE)
    for p in (*norm.parameters(), *(b for b in norm.buffers() if b.dim())):
        p.data.uniform_(0.5, 2.0)
    z = torch.randint(-70, 70, (rows, 128), device=WHERE).to(z_of)
    z[:, 70:] = 0
    statistics = norm.running_mean, norm.running_var, norm.num_batches_tracked
    given = z, 1 / 3, 70, norm.eps, norm.momentum, norm.weight, norm.bias, *statistics
    with torch.no_grad():
        scale, shift, mean, inverse = agree(monkeypatch, operations.norm_of_sums, *given)[:4]
        agree(monkeypatch, operations.normalized, *given)
        for zero, dtype in ((-1.0, FP8), (0.0, HALF)):
            agree(monkeypatch, operations.normalized_and_activated, *given, zero, dtype)
            agree(monkeypatch, operations.activated, z, scale, shift, zero, dtype, rtol=0, atol=0)
    vectors = scale, shift, mean
    for grad, window, dtype in ((torch.randn(rows, 128), 0.7, FP32), (torch.randn(rows, 70).bfloat16(), torch.inf, BF16)):
        near = {"rtol": 1e-2, "atol": 1e-2} if dtype == BF16 else {}
        grad = grad.to(WHERE)
        slopes = agree(monkeypatch, operations.slopes_of_gradient, grad, z, *vectors, inverse, window)[:2]
        for zero in (0.0, -1.0):
            agree(monkeypatch, operations.centered_gradient, grad, z, *vectors, window, *slopes, zero, dtype, **near)
            agree(monkeypatch, operations.gradient_at_sums, grad, z, *vectors, inverse, window, zero, dtype, **near)


def network_and_twin(**options):
    torch.manual_seed(0)
    network = MLP(37, 5, hidden_size=70, **options).to(WHERE)
    return network, copy.deepcopy(network)


def decided_pixels(network, rows):
    """Returns pixels whose activations all keep away from 0 and from the window's edge: rounding decides none of them."""
    near = []

    def note(_norm, _inputs, y):
        edges = [0.0] if network.window is None else [0.0, network.window]
        near.append(min(float((y.detach().abs() - edge).abs().min()) for edge in edges))

    probe = copy.deepcopy(network)
    for norm in probe.norms[:-1]:
        norm.register_forward_hook(note)
    for seed in range(100):
        near.clear()
        draw = torch.Generator().manual_seed(seed)
        x = torch.randint(0, 256, (rows, 37), dtype=torch.uint8, generator=draw).to(WHERE)
        probe(x)
        if min(near) > 3e-6:
            return x
    raise AssertionError("rounding decides everywhere")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"affine": False, "running_stats": False},
        {"encoding": "boolean", "window": 0.3, "affine": False},
        pytest.param({"encoding": "boolean"}, marks=pytest.mark.slow),
        pytest.param({"window": None}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_pass_is_that_of_the_network(options, kernels):
    """The gradients of weights and norms, the running statistics and the evaluation agree with torch's autograd."""
    (network, exact), received, rows = network_and_twin(**options), {}, 300
    x, labels = decided_pixels(network, rows), torch.arange(rows, device=WHERE) % 5
    for layer in network.layers:
        layer.pack()
    ours = PackedMLP(network, OnGPU(False, HAS_FP8), lambda weight, factors: received.update({weight: factors.whole()}))
    for model in (ours, exact):
        F.cross_entropy(model(x), labels).backward()
    for i, (layer, norm) in enumerate(zip(exact.layers, exact.norms, strict=True)):
        torch.testing.assert_close(received[network.layers[i].weight], layer.weight.grad, rtol=1e-4, atol=1e-6)
        for name, theirs in (*norm.named_buffers(), *((name, p.grad) for name, p in norm.named_parameters())):
            found = getattr(network.norms[i], name)
            torch.testing.assert_close(found if found.grad is None else found.grad, theirs, rtol=1e-4, atol=1e-6)
    network.eval(), exact.eval()
    for some in (x, x[:3]):
        torch.testing.assert_close(ours(some), exact(some), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("fp8", BOTH)
def test_a_pass_ends_at_the_first_trained_layer(fp8, kernels, rows_at_once):
    (network, exact), received, rows = network_and_twin(), {}, 130
    x, labels = decided_pixels(network, rows), torch.arange(rows, device=WHERE) % 5
    for layer in network.layers:
        layer.pack()
    ours = PackedMLP(network, OnGPU(False, fp8), lambda weight, factors: received.update({weight: factors.whole()}), frozen=1)
    for model in (ours, exact):
        F.cross_entropy(model(x), labels).backward()
    assert list(received) == [layer.weight for layer in reversed(network.layers[1:])]
    for layer, theirs in zip(network.layers[1:], exact.layers[1:], strict=True):
        torch.testing.assert_close(received[layer.weight], theirs.weight.grad, rtol=1e-4, atol=1e-6)
    assert network.norms[0].weight.grad is None and network.norms[1].weight.grad is not None


def test_gradients_in_bf16_are_off_by_its_rounding(kernels):
    """Each product rounds each gradient by a factor of at most 2⁻⁹, which acts like random noise."""
    network, exact = network_and_twin()
    x, labels = torch.randint(0, 256, (256, 37), dtype=torch.uint8, device=WHERE), torch.arange(256, device=WHERE) % 5
    received = {}
    for layer in network.layers:
        layer.pack()
    ours = PackedMLP(network, OnGPU(True, HAS_FP8), lambda weight, factors: received.update({weight: factors.whole()}))
    for model in (ours, exact):
        F.cross_entropy(model(x), labels).backward()
    for i, layer in enumerate(exact.layers):
        off = (received[network.layers[i].weight] - layer.weight.grad).norm() / layer.weight.grad.norm()
        assert 0 < off < (4 - i) * 2**-8


def test_moments_of_many_rows_are_those_of_all(kernels):
    """There are more blocks of rows than a program adds at a time; the last block is not full; the mean is far from 0."""
    norm, rows = torch.nn.BatchNorm1d(3).to(WHERE), 64 * 64 + 70
    z = torch.zeros(rows, 64, dtype=torch.float16, device=WHERE)
    z[:, :3] = torch.randint(900, 1100, (rows, 3))
    found, exact = OnGPU(False, False).normalization(norm, Sums(z, 1.0)), z[:, :3].double()
    torch.testing.assert_close(found.mean[:3].double(), exact.mean(0), rtol=1e-6, atol=0)
    variance = exact.var(0, correction=0)
    torch.testing.assert_close(found.inverse[:3].double(), (variance + norm.eps).rsqrt(), rtol=1e-5, atol=0)
    torch.testing.assert_close(norm.running_var.double(), 0.9 + 0.1 * exact.var(0), rtol=1e-5, atol=0)
    assert (found.shift[3:] == -torch.inf).all() and (found.scale[3:] == 0).all() and norm.num_batches_tracked == 1


@pytest.mark.parametrize(
    ("rule", "by"),
    [
        ("counter", "kernels"),
        ("hypermask optimizer.mask=random", "kernels"),
        *((rule, "definitions") for rule in ("counter", "bop", *(f"hypermask optimizer.mask={m}" for m in ("random", "top")))),
    ],
)
def test_a_training_ends_with_the_bits_of_the_dense_engine(rule, by, on_gpu, monkeypatch):
    ends = []
    monkeypatch.setattr(operators, "kernels_everywhere", by == "kernels")
    for engine in ("dense", "packed"):
        trainer = trainer_of(f"optimizer={rule}".split()[0], *rule.split()[1:], f"engine={engine}", *SMALL)
        metrics = [trainer.epoch() for _ in range(1 if by == "kernels" else 2)]  # the interpreter is slow
        ends.append((bits_sha256(trainer.network), [m["flips"] for m in metrics], [m["train_accuracy"] for m in metrics]))
    assert ends[0] == ends[1]


@pytest.mark.parametrize("rule", ["hypermask optimizer.mask=random", "hypermask optimizer.mask=top", "counter_4bit", "bop2"])
def test_no_step_waits_for_a_gpu(rule, on_gpu, rows_at_once):
    trainer = trainer_of(f"optimizer={rule}".split()[0], *rule.split()[1:], "engine=packed", "real_optimizer=sgd", *SMALL)
    rows = trainer.batches.of_epoch(0)
    with NeverWaits():
        for batch in range(2):
            trainer.train_on(rows[batch], 0, batch)


@pytest.mark.skipif(WHERE == "cuda", reason="tests/training/test_gpu.py records real graphs")
@pytest.mark.parametrize(("rule", "kernels"), [("counter", True), ("counter", False), ("hypermask optimizer.mask=top", False)])
def test_a_graph_holds_the_whole_step(rule, kernels, on_gpu, monkeypatch):
    monkeypatch.setattr(operators, "kernels_everywhere", kernels)
    tapes, ends = use_tapes(monkeypatch), []
    for recorded in (True, False):
        sizes = ["model.hidden_size=24", "model.num_layers=2", "dataset.limit=80", "trainer.batch_size=24"]
        trainer = trainer_of(*f"optimizer={rule} engine=packed".split(), *sizes)
        if recorded:
            trainer.step = Recorded(trainer.step, required=True)
        metrics = [trainer.epoch() for _ in range(1 if kernels else 2)]  # the interpreter is slow
        norms = {name: t.tolist() for name, t in trainer.network.state_dict().items() if "norm" in name}
        ends.append((bits_sha256(trainer.network), norms, *(m[key] for m in metrics for key in ("train_loss", "flips"))))
    assert ends[0] == ends[1] and len(tapes) == (1 if kernels else 2)


def test_a_random_mask_trains_the_same_each_time_and_goes_on_after_a_stop(on_gpu):
    def new():
        return trainer_of("optimizer=hypermask", "optimizer.mask=random", "delta=0.1", "engine=packed", *SMALL)

    whole, first, second = new(), new(), new()
    for _ in range(2):
        metrics = whole.epoch()
    first.epoch()
    second.load(first.state())
    assert second.epoch()["flips"] == metrics["flips"] and all(metrics["flips"].values())
    assert bits_sha256(second.network) == bits_sha256(whole.network)


LAUNCHES = """
import torch

from bnn_exp.bits.cuda import batch_norm, batch_norm_backward, draws, values

FP8, HALF, BF16, FP32 = torch.float8_e4m3fn, torch.float16, torch.bfloat16, torch.float32
vector, tracked = torch.empty(1024), torch.tensor(0)
with_all, without = (vector, vector, vector, vector, tracked), (None,) * 5
for z_of, values_of, grad_of, parameters in ((HALF, FP8, BF16, with_all), (FP32, HALF, FP32, without)):
    for rows in (1000, 16384):
        z, grad = torch.empty(rows, 1024, dtype=z_of), torch.empty(rows, 1000, dtype=grad_of)
        norm, vectors = (z, 1.0, 1000, 1e-5, 0.1, *parameters), (vector, vector, vector)
        if rows == 1000:
            batch_norm.normalized_and_activated(*norm, -1.0, values_of)
            batch_norm.normalized(*norm)
            batch_norm_backward.gradient_at_sums(grad, z, *vectors, vector, 1.0, -1.0, grad_of)
        else:
            batch_norm.norm_of_sums(*norm)
            batch_norm.activated(z, vector, vector, -1.0, values_of)
            batch_norm_backward.slopes_of_gradient(grad, z, *vectors, vector, 1.0)
            batch_norm_backward.centered_gradient(grad, z, *vectors, 1.0, vector, vector, -1.0, grad_of)
for dtype in (FP8, BF16, FP32):
    values.values_of_bits(torch.empty(1000, 125, dtype=torch.uint8), 1000, -1.0, 1024, 1024, dtype)
draws.uniform(1000, 7, tracked, 0)
print(*{kernel.__name__ for kernel, _ in launched})
"""


@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.slow), 90])
def test_the_kernels_compile_for_a_gpu(capability, tmp_path):
    assert len(compiled(tmp_path, capability, LAUNCHES)) == 11


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_the_precision_of_the_settings_rounds_gradients_alone(precision, on_gpu, monkeypatch):
    """The loss of the first step does not depend on the precision, since all sums are exact under autocast too."""
    monkeypatch.setattr(compatibility.Feature, "reason_against", lambda *_: "")  # the table refuses bf16 on a CPU
    losses, trainers = [], []
    for each in ("fp32", precision):
        torch.manual_seed(0)
        trainers.append(
            trainer_of("optimizer=counter", "engine=packed", "engine.graphs=false", *SMALL[:-1], f"engine.precision={each}")
        )
        losses.append(float(trainers[-1].train_on(trainers[-1].batches.of_epoch(0)[0], 0, 0)[0]))
    assert trainers[1].step.forward.bits.bf16 is (precision == "bf16") and losses[0] == losses[1]
