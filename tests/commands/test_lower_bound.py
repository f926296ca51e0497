"""The least work of an epoch, compared with the operations that torch counts and the tensors that kernels receive."""

import pytest
import torch
import torch.nn.functional as F
from helpers import trainer_of
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from bnn_exp.commands.benchmark.lower_bound import lower_bound, products, rates, step_of_mlp
from bnn_exp.nn import device


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
    """Counts the bytes of the arguments and results of all operators that read or write memory."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        results = operator(*args, **(kwargs or {}))
        name, aliases = operator.overloadpacket.__name__, any(r.alias_info is not None for r in operator._schema.returns)
        if not name.startswith(("empty", "new_empty", "detach")) and (not aliases or name.endswith("_")):
            self.bytes += nbytes(args, kwargs, results)
        return results


def test_bytes_of_a_step_are_those_of_its_tensors(monkeypatch):
    pytest.importorskip("triton")
    from bnn_exp.bits.cuda import training as gpu

    moved = Moved()

    class Kernel:
        def __getitem__(self, grid):
            return lambda *arguments, **flags: setattr(moved, "bytes", moved.bytes + nbytes(arguments))

    monkeypatch.setattr(device, "on_host", lambda where: False)
    monkeypatch.setattr(gpu, "matmul", lambda a, b, bf16: a.new_empty(len(a), b.shape[1], dtype=torch.float32))
    for name in ("unpack", "moments", "normalize", "activate", "total", "slopes", "center"):
        monkeypatch.setattr(gpu.kernels, name, Kernel())
    overrides = "engine=packed optimizer=hypermask optimizer.mask=random model.hidden_size=512 trainer.batch_size=1024"
    trainer = trainer_of(*overrides.split(), "real_optimizer=sgd")
    trainer.step.forward.bits = gpu.OnGPU(True)
    trainer.network.train()
    rows = trainer.batches.of_epoch(0)[0]
    x, labels = trainer.data.train.batch(rows)
    trainer.step.before(rows, 0, 0)
    with moved:
        trainer.step.passes(x, labels)
        trainer.step.update()
    works = list(step_of_mlp(trainer.network, len(rows)))
    replaced = sum(work.bytes for work in works if work.kind == "bfloat16")  # the test replaces these products
    assert moved.bytes == pytest.approx(sum(work.bytes for work in works) - replaced, rel=0.06)


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
    found = rates({"float32", "int8"}, torch.device("cpu"))
    assert set(found) == {"float32", "int8", "bytes"} and min(found.values()) > 1e6
