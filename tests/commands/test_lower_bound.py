"""The least work of an epoch, compared with the operations that torch counts and the tensors that kernels receive."""

import math

import pytest
import torch
import torch.nn.functional as F
from helpers import trainer_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from bnn_exp.bits.cuda import operations, training
from bnn_exp.commands.benchmark.lower_bound import lower_bound, products, rates, sizes_of
from bnn_exp.models.mlp import MLP
from bnn_exp.nn import device, operators
from bnn_exp.training import costs
from bnn_exp.training.steps.packed import PackedMLP


@pytest.mark.parametrize("model", ["mlp", "bncvl", "vgg model.channels=[8,16]"])
def test_operations_are_those_that_torch_counts(model):
    bits, floats = (
        trainer_of(f"optimizer={rule}", *f"model={model} dataset.limit=64 model.weights={weights}".split())
        for rule, weights in (("hypermask", "bits"), ("latent_sgd", "float"))
    )
    x, labels = floats.data.train.batch(torch.arange(32))
    with FlopCounterMode(display=False) as counted:
        F.cross_entropy(floats.network(x), labels).backward()
    found = sum(work.operations for work in products(bits.network, bits.data, 32, "float32"))
    assert found == counted.get_total_flops()


def nbytes(*values):
    return sum(t.numel() * t.element_size() for t in tree_leaves(values) if isinstance(t, torch.Tensor))


class Moved(TorchDispatchMode):
    """Counts the operators that read or write memory, and the bytes of their arguments and results."""

    def __init__(self):
        super().__init__()
        self.bytes = self.kernels = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        results = operator(*args, **(kwargs or {}))
        name, aliases = operator.overloadpacket.__name__, any(r.alias_info is not None for r in operator._schema.returns)
        writes = name.endswith("_") or "out" in (kwargs or {})
        if not name.startswith(("empty", "new_empty", "detach", "promote_types")) and (not aliases or writes):
            self.bytes += nbytes(args, results, {key: x for key, x in (kwargs or {}).items() if key != "out"})
            self.kernels += operators.LAUNCHES.get(name, 1)
        return results


@pytest.mark.parametrize("fp8", [True, False])
@pytest.mark.parametrize(("rows", "few"), [(500, 1024), (1500, 1024)])
def test_kernels_and_bytes_of_a_step_are_those_of_its_operators(rows, few, fp8, monkeypatch):
    """Where sums over the rows need blocks, one operator stands for kernels that read its tensors twice."""
    monkeypatch.setattr(training, "matmul", lambda a, b, bf16: operations.exact_product(a, b.t(), torch.float32))
    network = MLP(784, 10, hidden_size=512)
    for layer in network.layers:
        layer.pack()
    packed = PackedMLP(network, training.OnGPU(True, fp8), lambda weight, factors: None)
    pixels, grad = torch.zeros(rows, 784, dtype=torch.uint8), torch.zeros(rows, 10)
    with Moved() as moved:
        packed(pixels).backward(grad)
    works = list(costs.packed(sizes_of(network), rows, "float8_e4m3fn" if fp8 else "float16"))
    works = [work for work in works if not _flips(work, network, 4.25)]
    assert moved.kernels == len(works)
    assert costs.FEW == operations.FEW == few
    if rows <= few:
        assert moved.bytes == pytest.approx(sum(work.bytes for work in works), rel=0.02)


@pytest.mark.parametrize("rows", [500, 1500])
def test_the_dense_engine_on_a_gpu_takes_the_kernels_and_bytes_that_are_counted(rows, monkeypatch):
    monkeypatch.setattr(device, "on_host", lambda where: False)
    network, pixels, grad = MLP(784, 10, hidden_size=512), torch.zeros(rows, 784, dtype=torch.uint8), torch.zeros(rows, 10)
    with Moved() as moved, torch.autocast("cpu", torch.bfloat16):
        network(pixels).backward(grad)
    works = [work for work in costs.dense(sizes_of(network), rows) if not _flips(work, network, 12)]
    assert moved.kernels == len(works)
    if rows <= costs.FEW:
        assert moved.bytes == pytest.approx(sum(work.bytes for work in works), rel=0.02)


def _flips(work, network, per_weight):
    """Returns True for the work of a rule: it moves `per_weight` bytes for each weight of a layer, and multiplies nothing."""
    return not work.operations and work.bytes in [per_weight * math.prod(layer.shape) for layer in network.layers]


def test_the_least_time_is_that_of_the_operations_at_the_measured_rate(monkeypatch):
    trainer = trainer_of("dataset.limit=256")
    same = lambda kinds, where: dict.fromkeys(kinds, 1e9) | {"bytes": 1e6}  # noqa: E731
    monkeypatch.setattr("bnn_exp.commands.benchmark.lower_bound.rates", same)
    found = lower_bound(trainer.network, trainer.data, 64, 256, "dense")
    step = sum(work.operations for work in products(trainer.network, trainer.data, 64, "float32"))
    assert found["operations"] == 4 * step and found["seconds"] == pytest.approx(4 * step / 1e9) and found["bytes"] is None


def test_rates_are_measured(monkeypatch):
    monkeypatch.setattr("bnn_exp.commands.benchmark.lower_bound.SIDE", {"cpu": 128})
    monkeypatch.setattr("bnn_exp.commands.benchmark.lower_bound.COPIED", {"cpu": 2**20})
    found = rates({"float32", "float8_e4m3fn"}, torch.device("cpu"))
    assert set(found) == {"float32", "float8_e4m3fn", "bytes"} and min(found.values()) > 1e6
