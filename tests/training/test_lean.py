"""Tests engine.memory=lean: the bits of `fast` in fewer bytes, and the table of bytes."""

import json
from contextlib import nullcontext
from dataclasses import asdict

import pytest
import torch
from helpers import NeverWaits, trainer_of, use_tapes

from bnn_exp.bits import bits_sha256
from bnn_exp.nn import BinaryConv2d, device, saved
from bnn_exp.training.memory.footprint import saved_by_mlp
from bnn_exp.training.steps.low_memory import Bits, Saving, Whole, compact, restored
from bnn_exp.training.steps.recorded import Recorded

SMALL = ("trainer.epochs=2", "trainer.batch_size=128", "dataset.limit=512", "engine=dense", "engine.threads=1")
MLP = ("model.hidden_size=64",)
RULE = ("optimizer=counter",)
BNCVL = ("model=bncvl", "model.weights=bits", "model.channels=[8,16]", "model.dense=[32]")
VGG = ("model=vgg", "model.channels=[16,32]")


def trainer(*overrides):
    return trainer_of(*SMALL, *overrides)


def random(shape, *ends, dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    return torch.randint(*ends, shape, generator=draw).to(dtype)


def nhwc(t):
    return t.to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("tensor", "kind", "size"),
    [
        (random((65, 33), 0, 2), Bits, -(-65 * 33 // 8)),
        (random((65, 33), 0, 2) - 0.5, Bits, -(-65 * 33 // 8)),
        (2 * random((64, 40), 0, 2, dtype=torch.bfloat16).t() - 1, Bits, 320),
        (nhwc(random((8, 4, 9, 11), 0, 2, dtype=torch.bool)), Bits, 396),
        (torch.full((2000,), -1.5), Bits, 250),
        (random((50, 60), -(2**15), 2**15), Whole, 6000),
        (nhwc(random((2, 8, 16, 16), -(2**15), 2**15) / 4), Whole, 8192),
        (random((50, 60), 0, 900, dtype=torch.int64), Whole, 6000),
        (random((50, 60), -(2**16), 2**16), torch.Tensor, None),
        (torch.cat([torch.zeros(5000), torch.tensor([0.3, 1.0])]), torch.Tensor, None),
        (torch.cat([torch.zeros(5000), torch.tensor([float("nan"), 1.0])]), torch.Tensor, None),
        (random((1, 30), 0, 2).expand(100, 30), torch.Tensor, None),
    ],
)
def test_a_saved_tensor_comes_back_as_it_was(tensor, kind, size):
    kept = compact(tensor)
    assert isinstance(kept, kind) and (size is None or kept.data.nbytes == size)
    back = restored(kept)
    torch.testing.assert_close(back, tensor, rtol=0, atol=0, equal_nan=True)
    assert back.dtype == tensor.dtype and back.stride() == tensor.stride()


@pytest.mark.parametrize(
    "model",
    [
        MLP,
        (*MLP, "model.encoding=boolean"),
        (*MLP, "model.encoding=centred"),
        (*MLP, "engine.precision=bf16"),
        (*BNCVL, *RULE),
        VGG,
    ],
)
def test_gradients_are_the_same_to_the_bit(model):
    gradients, saved = [], []
    for memory in ("fast", "lean"):
        one = trainer(*model)
        if memory == "lean":
            one.step.footprint.hooks = Saving(one.network)
        one.network.train()
        one.step.passes(*one.batches.first(128))
        gradients.append([p.grad for p in one.network.parameters()])
        saved.append(one.step.footprint.bytes().saved)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert saved[1] < saved[0]


@pytest.mark.parametrize(
    "overrides",
    [
        (*MLP, *RULE),
        (*MLP, "optimizer=hypermask", "optimizer.mask=random", "model.encoding=boolean"),
        (*MLP, "optimizer=hypermask", "optimizer.mask=top", "freeze=1", "trainer.final_batch_size=200"),
        (*MLP, "optimizer=hypermask", "optimizer.mask=ewm", "model.encoding=centred"),
        (*MLP, "optimizer=bop2", "real_optimizer=sgd"),
        (*BNCVL, *RULE, "model.normalization=sample"),
        (*VGG, "optimizer=bop"),
    ],
)
def test_it_ends_with_the_bits_of_fast_also_where_they_take_turns(overrides):
    straight = trainer(*overrides)
    expected = [straight.epoch(), straight.epoch()]
    for first, second in (("fast", "lean"), ("lean", "fast")):
        begun, resumed = (trainer(*overrides, f"engine.memory={memory}") for memory in (first, second))
        lines = [begun.epoch()]
        resumed.load(begun.state())
        lines.append(resumed.epoch())
        assert bits_sha256(resumed.network) == bits_sha256(straight.network)
        for line, of_fast in zip(lines, expected, strict=True):
            assert (line["train_loss"], line["flips"]) == (of_fast["train_loss"], of_fast["flips"])


def test_no_gradient_of_bits_is_kept():
    lean, fast = trainer(*MLP, "engine.memory=lean"), trainer(*MLP)
    bits = [p.nbytes for p in lean.binary.tensors()]
    reals = sum(p.nbytes for p in lean.network.parameters()) - sum(bits)
    for one, most in ((lean, max(bits)), (fast, sum(bits))):
        one.step.passes(*one.batches.first(128))
        one.step.update()
        assert all((p.grad is None) == (one is lean) for p in one.binary.tensors())
        assert most <= one.step.footprint.bytes().gradients <= most + reals


@pytest.mark.parametrize("model", [MLP, (*MLP, "model.encoding=boolean", "model.window=null"), BNCVL])
def test_the_bytes_under_adam_are_those_of_such_a_training(model):
    ours = trainer(*model, *RULE, "engine.memory=lean")
    ours.epoch()
    model = [override for override in model if not override.startswith("model.weights")]
    twin = trainer(*model, "model.weights=latent", "optimizer=latent_adam", "real_optimizer=adam")
    twin.epoch()
    real = asdict(twin.step.footprint.bytes(twin.binary, *(real.optimizer for real in twin.real)))
    expected = asdict(ours.step.footprint.under_adam(dense=True))
    steps = 4 * len(list(twin.network.parameters()))  # Adam keeps a step counter per parameter
    assert real == expected | {"state": expected["state"] + steps}
    if ours.settings.model.name == "mlp":
        assert saved_by_mlp(ours.network, ours.step.footprint.rows) == real["saved"]


def test_the_table_is_in_the_summary_and_on_the_page(bnn_train, summary):
    run = bnn_train("trainer=smoke", "engine.memory=lean", *MLP, *RULE, "engine=dense").runs[0]
    memory = summary(run)["memory"]
    weights = 64 * 64 + 2 * 64**2 + 64 * 10
    reals = 2 * (3 * 64 + 10)
    assert memory["run"]["weights"] == 4 * (weights + reals)
    assert memory["run"]["state"] - 8 * reals - weights in range(100)
    assert memory["adam"]["state"] == 8 * (weights + reals)
    page = (run / "report.html").read_text()
    for numbers in memory.values():
        assert all(f"{number:,}" in page for number in (*numbers.values(), sum(numbers.values())))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("trainer.diagnostics=true",), "trainer.diagnostics=true"),
        (("engine.devices=2",), "engine.devices=2"),
        (("engine.compile=true",), "engine.compile=true"),
        (("model.weights=latent", "optimizer=latent_adam"), "optimizer=latent_adam"),
        (("engine.memory=tiny",), "fast"),
    ],
)
def test_what_needs_all_gradients_is_refused(bnn_train, tmp_path, overrides, said):
    done = bnn_train("engine.memory=lean", *overrides)
    assert done.code == 2 and said in done.err and "allowed: " in done.err and len(done.err.splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


def test_a_resume_may_name_the_memory(copy_of_run, bnn_train, tmp_path):
    run = copy_of_run(tmp_path / "run", "trainer=smoke", *MLP)
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"status": "interrupted"}))
    done = bnn_train(f"resume={run}", "engine.memory=lean")
    assert done.code == 0 and "memory: lean" in (run / "config.yaml").read_text(), done.err


@pytest.fixture
def on_gpu(monkeypatch):
    """Makes `device.on_host` take every tensor for one on a GPU, until the test ends."""
    monkeypatch.setattr(device, "on_host", lambda where: False)


ON_GPU = [
    (*MLP, *RULE, "engine.precision=bf16"),
    (*MLP, *RULE),
    (*MLP, "optimizer=hypermask", "optimizer.mask=top", "model.encoding=boolean"),
    (*MLP, *RULE, "model.encoding=centred"),
    (*BNCVL, *RULE),
    (*VGG, *RULE),
    (*VGG, *RULE, "engine.precision=bf16"),
]


@pytest.mark.parametrize("overrides", ON_GPU)
def test_on_a_gpu_the_notes_of_the_layers_decide(overrides, on_gpu):
    """The step waits for nothing, saves fewer bytes, and ends with the bits and the losses of `fast`."""
    ends, saved = [], []
    for memory in ("fast", "lean"):
        one = trainer(*overrides, "dataset.limit=256", f"engine.memory={memory}")
        rows = one.batches.of_epoch(0)
        one.network.train()
        with NeverWaits():
            losses = [one.train_on(rows[batch], 0, batch)[0].clone() for batch in range(2)]
        ends.append((bits_sha256(one.network), [float(loss) for loss in losses]))
        saved.append(one.step.footprint.bytes().saved)
    assert ends[0] == ends[1]
    assert saved[1] < {"model=bncvl": 1, "model=vgg": 0.9}.get(overrides[0], 0.55) * saved[0]


@pytest.mark.parametrize("overrides", [ON_GPU[0], ON_GPU[-1]])
def test_lean_steps_can_be_recorded(overrides, on_gpu, monkeypatch):
    tapes, ends = use_tapes(monkeypatch), []
    for recorded in (True, False):
        one = trainer(*overrides, "engine.memory=lean", "dataset.limit=300")
        if recorded:
            one.step = Recorded(one.step, required=True)
        metrics = [one.epoch() for _ in range(2)]
        ends.append((bits_sha256(one.network), *(m[key] for m in metrics for key in ("train_loss", "flips"))))
    assert ends[0] == ends[1] and len(tapes) == 2


def test_notes_are_kept_only_while_a_step_wants_them():
    t = torch.ones(2, 2)
    assert saved.note_values(t, 0, 1) is t and saved.known(t) is None
    with saved.noting():
        saved.note_values(t, -1, 1)
        assert saved.known(t.view(4)) == saved.TwoValues(-1, 1) and saved.known(t.clone()) is None
        x, v = saved.note_values(torch.ones(3), -1, 1), saved.note_values(torch.ones(3), -0.5, 0.5)
        for terms, factors, expected in (
            (32767, (x, x), saved.Whole(torch.int16)),
            (32768, (x, x), None),
            (8191, (x, v), saved.Whole(torch.int16, 4)),
            (8192, (x, v), None),
            (3, (x, torch.ones(3)), None),
        ):
            assert saved.known(saved.note_sums(torch.zeros(1), *factors, terms)) == expected
    assert saved.known(t) is None


class Residual(torch.nn.Module):
    """A convolution of values ±1, to whose sums a shortcut of real numbers is added in place."""

    def __init__(self):
        super().__init__()
        self.convolution = BinaryConv2d(4, 4)

    def forward(self, x):
        h = self.convolution(saved.note_values(x.sign(), -1, 1))
        h += x
        return h.square()


def test_a_note_ends_when_its_tensor_is_written_to(on_gpu):
    """The square saves sums that are not whole any more."""
    network, x, gradients = Residual(), torch.randn(3, 4, 12, 12), []
    for hooks in (nullcontext(), Saving(network)):
        network.zero_grad()
        with saved.noting(), hooks:
            y = network(x)
        y.sum().backward()
        gradients.append(network.convolution.weight.grad)
    assert torch.equal(*gradients)
