"""The least work of an epoch, compared with the operations that torch counts and the tensors that kernels receive."""

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
from bnn_exp.nn import operators
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
        if not name.startswith(("empty", "new_empty", "detach")) and (not aliases or name.endswith("_")):
            self.bytes += nbytes(args, kwargs, results)
            self.kernels += operators.LAUNCHES.get(name, 1)
        return results


@pytest.mark.parametrize("fp8", [True, False])
@pytest.mark.parametrize(("rows", "few"), [(512, 1024), (1500, 1024)])
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
    flips = [work for work in works if work.bytes in {4.25 * layer.weight.numel() * 8 for layer in network.layers}]
    assert len(flips) == 4 and moved.kernels == len(works) - 4
    assert costs.FEW == operations.FEW == few
    if rows <= few:
        assert moved.bytes == pytest.approx(sum(work.bytes for work in works) - sum(work.bytes for work in flips), rel=0.02)


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
