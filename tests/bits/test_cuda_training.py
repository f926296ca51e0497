"""The packed engine on a GPU against torch. Without a GPU, Triton's interpreter runs the kernels."""

import copy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import NeverWaits, on_both, trainer_of, where

from bnn_exp.bits import bits_sha256, pack
from bnn_exp.bits.packing import PackedBits
from bnn_exp.config import compatibility
from bnn_exp.models.mlp import MLP
from bnn_exp.nn import device
from bnn_exp.training.steps.packed import PackedMLP

pytest.importorskip("triton")
from bnn_exp.bits.cuda import training as gpu

pytestmark, WHERE = [*on_both(), pytest.mark.usefixtures("triton_runs")], where()
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


def bits(*shape):
    return torch.full(shape, 0.5, device=WHERE).bernoulli_()


def packed(x):
    return PackedBits(pack(x).to(WHERE), x.shape[1])


@pytest.mark.parametrize("zero", [0.0, -1.0])
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 5, 3), (37, 64, 10), (130, 200, 70)])
def test_sums_are_exact(rows, inputs, outputs, zero):
    x, v = bits(rows, -(-inputs // 64) * 64), bits(outputs, inputs)
    pixels = torch.randint(0, 256, (rows, inputs), dtype=torch.uint8, device=WHERE)
    values, weights = v.double() * (1 - zero) + zero, packed(v)
    found = gpu.sums_of_bits(pack(x).to(WHERE), weights, zero)
    assert found.z.dtype == torch.int16 and found.a == 1 and found.z.shape == (rows, -(-outputs // 64) * 64)
    assert torch.equal(found.z[:, :outputs].double(), (x[:, :inputs].double() * (1 - zero) + zero) @ values.T)
    found = gpu.sums_of_pixels(pixels, weights, zero)
    assert found.a == 1 / 255 and torch.equal(found.z[:, :outputs].double(), pixels.double() @ values.T)


def test_values_are_exact_in_eight_and_sixteen_bits():
    values, pixels = torch.tensor([-1.0, 0.0, 1.0]), torch.arange(256.0)
    for dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8):
        assert torch.equal(values.to(dtype).float(), values)
    assert torch.equal(pixels.bfloat16().float(), pixels) and not torch.equal(pixels.to(torch.float8_e4m3fn).float(), pixels)


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
        {"encoding": "boolean"},
        {"window": None},
        {"affine": False, "running_stats": False},
        {"encoding": "boolean", "window": 0.3, "affine": False},
    ],
    ids=str,
)
def test_a_pass_is_that_of_the_network(options):
    """The gradients of weights and norms, the running statistics and the evaluation agree with torch's autograd."""
    (network, exact), received, rows = network_and_twin(**options), {}, 300
    x, labels = decided_pixels(network, rows), torch.arange(rows, device=WHERE) % 5
    for layer in network.layers:
        layer.pack()
    ours = PackedMLP(network, gpu.OnGPU(False), lambda weight, factors: received.update({weight: factors.whole()}))
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


def test_gradients_in_bf16_are_off_by_its_rounding(monkeypatch):
    """Each product rounds each gradient by a factor of at most 2⁻⁹, which acts like random noise."""
    network, exact = network_and_twin()
    x, labels = torch.randint(0, 256, (256, 37), dtype=torch.uint8, device=WHERE), torch.arange(256, device=WHERE) % 5
    received = {}
    for layer in network.layers:
        layer.pack()
    ours = PackedMLP(network, gpu.OnGPU(True), lambda weight, factors: received.update({weight: factors.whole()}))
    for model in (ours, exact):
        F.cross_entropy(model(x), labels).backward()
    for i, layer in enumerate(exact.layers):
        off = (received[network.layers[i].weight] - layer.weight.grad).norm() / layer.weight.grad.norm()
        assert 0 < off < (4 - i) * 2**-8


def test_moments_of_many_rows_are_those_of_all():
    """There are more blocks of rows than a program adds at a time; the last block is not full; the mean is far from 0."""
    norm, rows = torch.nn.BatchNorm1d(3).to(WHERE), 64 * 64 + 70
    z = torch.zeros(rows, 64, dtype=torch.int16, device=WHERE)
    z[:, :3] = torch.randint(900, 1100, (rows, 3))
    found, exact = gpu.normalization(norm, gpu.Sums(z, 1.0)), z[:, :3].double()
    torch.testing.assert_close(found.mean[:3].double(), exact.mean(0), rtol=1e-6, atol=0)
    variance = exact.var(0, correction=0)
    torch.testing.assert_close(found.inverse[:3].double(), (variance + norm.eps).rsqrt(), rtol=1e-5, atol=0)
    torch.testing.assert_close(norm.running_var.double(), 0.9 + 0.1 * exact.var(0), rtol=1e-5, atol=0)
    assert (found.shift[3:] == -torch.inf).all() and (found.scale[3:] == 0).all()


@pytest.mark.parametrize("rule", ["counter", "hypermask optimizer.mask=top", "hypermask optimizer.mask=random", "bop"])
def test_a_training_ends_with_the_bits_of_the_dense_engine(rule, on_gpu):
    ends = []
    for engine in ("dense", "packed"):
        trainer = trainer_of(f"optimizer={rule}".split()[0], *rule.split()[1:], f"engine={engine}", *SMALL)
        metrics = [trainer.epoch() for _ in range(2)]
        ends.append((bits_sha256(trainer.network), [m["flips"] for m in metrics], [m["train_accuracy"] for m in metrics]))
    assert ends[0] == ends[1]


class NoKernel:
    def __getitem__(self, grid):
        assert all(isinstance(size, int) and size > 0 for size in grid)
        return lambda *arguments, **flags: None


@pytest.mark.parametrize("rule", ["hypermask optimizer.mask=random", "hypermask optimizer.mask=top", "counter_4bit", "bop2"])
def test_no_step_waits_for_a_gpu(rule, on_gpu, monkeypatch):
    """Python does not depend on the results of a kernel either: the kernels of this test write nothing."""
    for name in ("unpack", "moments", "normalize", "activate", "total", "slopes", "center"):
        monkeypatch.setattr(gpu.kernels, name, NoKernel())
    trainer = trainer_of(f"optimizer={rule}".split()[0], *rule.split()[1:], "engine=packed", "real_optimizer=sgd", *SMALL)
    rows = trainer.batches.of_epoch(0)
    with NeverWaits():
        for batch in range(2):
            trainer.train_on(rows[batch], 0, batch)


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


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bnn_exp.bits.cuda import draws, kernels

VECTORS = dict.fromkeys("means squares sums products scale shift mean inverse slope offset of_weight of_bias".split(), "*fp32")
VECTORS |= dict.fromkeys("weight bias running_mean running_variance grad gradient".split(), "*fp32")
OTHERS = {"packed": "*u8", "bits": "*u8", "flips": "*i64", "out": "*bf16", "key": "i64", "z": "*i16", "step": "*i64"}
OTHERS |= dict.fromkeys(("a", "eps", "momentum", "zero", "window"), "fp32") | {"delta": "*fp32"}
names = ("unpack", "moments", "normalize", "activate", "total", "slopes", "center")
of_draws = {"uniform": draws.uniform_kernel, "flip": draws.flip_kernel}
for name, kernel in ({n: getattr(kernels, n) for n in names} | of_draws).items():
    kinds = {n: "constexpr" if n.isupper() else (VECTORS | OTHERS).get(n, "i32") for n in kernel.arg_names}
    kinds |= {"out": "*fp32"} if name == "uniform" else {}
    flags = {n: True for n, kind in kinds.items() if kind == "constexpr"}
    for capability in (80, 90):
        triton.compile(ASTSource(fn=kernel, signature=kinds, constexprs=flags), target=GPUTarget("cuda", capability, 32))
    print(name)
"""


def test_the_kernels_compile_for_a_gpu(tmp_path):
    """The kernels compile for compute capabilities 8.0 and 9.0 without such a GPU."""
    environment = {"PATH": "/usr/bin:/bin", "TRITON_CACHE_DIR": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and len(done.stdout.split()) == 9, done.stderr


@pytest.mark.parametrize(("precision", "bf16"), [("bf16", True), ("fp32", False)])
def test_the_precision_of_the_settings_reaches_the_kernels(precision, bf16, on_gpu, monkeypatch):
    monkeypatch.setattr(compatibility.Feature, "reason_against", lambda *_: "")  # the table refuses bf16 on a CPU
    trainer = trainer_of("optimizer=counter", "engine=packed", *SMALL[:-1], f"engine.precision={precision}")
    assert trainer.step.forward.bits.bf16 is bf16
