"""The packed engine on a CPU against the dense engine: the same draws, and flips that differ only where rounding decides."""

import copy
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from helpers import rest_slow, settings_of, trainer_of

from bnn_exp.bits import bits_sha256
from bnn_exp.bits.cpu.passes import OnCPU
from bnn_exp.errors import Diverged
from bnn_exp.models.mlp import MLP
from bnn_exp.nn import binary_layers, processor
from bnn_exp.nn.layers import packed_at_once
from bnn_exp.optim import Rule
from bnn_exp.training import costs, cpu_costs, engine, measured
from bnn_exp.training.steps.packed import PackedMLP
from bnn_exp.training.trainer import Trainer

RANDOM = ("optimizer=hypermask", "optimizer.mask=random", "trainer.epochs=3", "trainer.batch_size=512")
UNIT = 2.0**-24  # half the distance from 1 to the next float32


@pytest.fixture(autouse=True)
def _one_thread():
    """Gives torch one thread, whose BatchNorm sums equal ours. With more threads their last bits differ."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("window", [1.0, None])
@pytest.mark.parametrize("encoding", ["bipolar", "boolean"])
def test_a_pass_is_that_of_the_network(encoding, window):
    """The logits, the running statistics and all gradients of a pass agree with torch's autograd."""
    torch.manual_seed(0)
    network = MLP(37, 5, hidden_size=70, encoding=encoding, window=window)
    exact, received, rows = copy.deepcopy(network), {}, 300
    x = torch.randint(0, 256, (rows, 37), dtype=torch.uint8, generator=torch.Generator().manual_seed(6))
    labels = torch.arange(rows) % 5
    for layer in network.layers:
        layer.pack()
    packed = PackedMLP(network, OnCPU(), lambda weight, factors: received.update({weight: factors.whole()}))
    for model in (packed, exact):
        F.cross_entropy(model(x), labels).backward()
    for i, (layer, norm) in enumerate(zip(exact.layers, exact.norms, strict=True)):
        ours = network.norms[i]
        torch.testing.assert_close(received[network.layers[i].weight], layer.weight.grad, rtol=1e-4, atol=1e-7)
        assert torch.equal(ours.running_mean, norm.running_mean) and ours.num_batches_tracked == 1
        torch.testing.assert_close(ours.running_var, norm.running_var)
        for name in ("weight", "bias"):
            torch.testing.assert_close(getattr(ours, name).grad, getattr(norm, name).grad, rtol=1e-4, atol=1e-7)
    network.eval(), exact.eval()
    torch.testing.assert_close(packed(x), exact(x))


def test_threads_share_the_work_and_change_nothing():
    before, ends = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            trainer = trainer_of(*RANDOM, "engine=packed", "trainer.batch_size=700")
            ends.append((trainer.epoch()["train_loss"], bits_sha256(trainer.network), trainer.network.norms[0].weight.tolist()))
    finally:
        torch.set_num_threads(before)
    assert ends[0] == ends[1]


@pytest.mark.parametrize("amx", [True, False])
def test_bf16_trains_as_float32_does_with_any_number_of_threads(amx, monkeypatch):
    if not amx and not processor.AVX512_BF16:
        pytest.skip("this processor has no AVX512-BF16")
    monkeypatch.setattr(processor, "AMX", amx)
    before, ends = torch.get_num_threads(), {}
    try:
        for precision, threads in (("fp32", 1), ("bf16", 1), ("bf16", 3)):
            torch.set_num_threads(threads)
            trainer = trainer_of("optimizer=counter", "trainer.epochs=4", "engine=packed", f"engine.precision={precision}")
            losses = [trainer.epoch()["train_loss"] for _ in range(4)]
            ends[precision, threads] = losses[-1], bits_sha256(trainer.network)
    finally:
        torch.set_num_threads(before)
    assert (amx or ends["bf16", 1] == ends["bf16", 3]) and ends["bf16", 1][1] != ends["fp32", 1][1]
    assert ends["bf16", 1][0] == pytest.approx(ends["fp32", 1][0], rel=0.2)


@pytest.mark.parametrize(
    "overrides",
    [
        (*RANDOM, "delta=0.1"),
        (*RANDOM, "model.encoding=boolean", "delta=0.01", "real_optimizer=sgd"),
        (*RANDOM, "model.hidden_size=100", "trainer.batch_size=100"),
        (*RANDOM, "delta=0.9", "model.binarize_logits=true"),
        ("optimizer=hypermask_top", "delta=0.1", "model.batch_norm.affine=false"),
        ("optimizer=counter_4bit", "freeze=1", "seed=1"),
        ("optimizer=bop", "model.num_layers=1"),
    ],
    ids=" ".join,
)
def test_both_engines_end_with_the_same_bits(overrides):
    few = ("trainer.epochs=3", "trainer.batch_size=512")  # in a longer training rounding decides a flip at some point
    dense, packed = (trainer_of(*few, *overrides, f"engine={name}") for name in ("dense", "packed"))
    assert (dense.engine, packed.engine) == ("dense", "packed")
    start = bits_sha256(dense.network)
    for _ in range(3):
        metrics = [{k: v for k, v in t.epoch().items() if k in ("flips", "delta", "train_accuracy")} for t in (dense, packed)]
        assert metrics[0] == metrics[1]
        assert bits_sha256(dense.network) == bits_sha256(packed.network) != start


@pytest.mark.parametrize("rule", [(*RANDOM, "delta=0.1"), ("optimizer=counter", "seed=1")])
def test_a_processor_without_the_look_up_trains_the_same(rule, monkeypatch):
    monkeypatch.setattr(processor, "AVX512", False)
    test_both_engines_end_with_the_same_bits(rule)


def test_a_loss_that_is_no_number_is_named():
    trainer = trainer_of("engine=packed", "real_optimizer=sgd", "real_optimizer.lr=1e38")
    with pytest.raises(Diverged, match="the loss is inf at epoch 1, batch 2"):
        trainer.epoch()


def differing_flips(overrides, steps, monkeypatch):
    """Counts the flips of `steps` steps, each done by both engines from the same state.

    Returns:
        The number of flips of the dense engine, the number of weights that end differently, and the number of the latter whose
        gradient is larger than its rounding. The test takes 3 · rows · u · Σ |grad| as the rounding. The order of a sum of
        `rows` terms changes the sum by at most rows · u · Σ |grad · input|, and no |input| is greater than 1. This rounding
        happens in each engine, and once more in `grad`, because the gradient at a layer's sums is a sum itself.
    """
    rounding, original = {}, Rule.flip

    def watched(rule, p, g):
        if not isinstance(g, torch.Tensor):
            i = next(i for i, q in enumerate(rule.tensors()) if q is p)
            rounding[i] = 3 * len(g.grad) * UNIT * g.grad.abs().sum(0)[: g.neurons, None]
        original(rule, p, g)

    monkeypatch.setattr(Rule, "flip", watched)
    dense, packed = (trainer_of(*RANDOM, *overrides, f"engine={name}") for name in ("dense", "packed"))
    flips = differing = unexplained = 0
    batches = [(epoch, batch, rows) for epoch in range(3) for batch, rows in enumerate(dense.batches.of_epoch(epoch))]
    for epoch, batch, rows in batches[:steps]:
        packed.load(dense.state())
        before = [p.clone() for p in dense.binary.tensors()]
        for trainer in (dense, packed):
            trainer.network.train()
            for module in trainer.frozen:
                module.eval()
            trainer.train_on(rows, epoch, batch)
        theirs = [layer.bits()["weight"] for _, layer in binary_layers(packed.network)]
        for i, (old, p, q) in enumerate(zip(before, dense.binary.tensors(), theirs, strict=True)):
            flips += int((p != old).sum())
            if (p != q).any():
                differing += int((p != q).sum())
                unexplained += int(((p != q) & (p.grad.abs() > rounding[i])).sum())
    return flips, differing, unexplained


def test_flips_that_differ_have_a_gradient_below_rounding(monkeypatch):
    """Some outputs of frozen layers never change. The gradients of the weights that read them are nothing but rounding."""
    flips, differing, unexplained = differing_flips(("freeze=2", "delta=0.5"), 9, monkeypatch)
    assert flips > 1000 and unexplained == 0 and differing <= flips / 100


@pytest.mark.slow
def test_mnist_flips_are_the_same(mnist_folder, monkeypatch):
    overrides = ("dataset=mnist", f"dataset.path={mnist_folder}", "trainer.batch_size=4096", "delta=0.1")
    flips, differing, unexplained = differing_flips(overrides, 6, monkeypatch)
    assert flips > 10_000 and unexplained == 0 and differing <= flips / 1000


def test_a_run_goes_on_by_the_other_engine():
    straight, first, second = (trainer_of(*RANDOM, f"engine={name}") for name in ("dense", "dense", "packed"))
    for _ in range(3):
        straight.epoch()
    first.epoch()
    second.load(first.state())
    second.epoch()
    first.load(second.state())
    first.epoch()
    assert bits_sha256(first.network) == bits_sha256(straight.network)


def test_resume_may_name_the_engine(bnn_train, summary, monkeypatch):
    original = Trainer.train_on
    small = (*RANDOM, "model.hidden_size=32")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_on", lambda *batch: os.kill(os.getpid(), signal.SIGINT) or original(*batch))
        run = bnn_train(*small, "engine=dense").runs[0]
    done = bnn_train(f"resume={run}", "engine=packed")
    assert done.code == 0 and "resumed after epoch 0, batch 1" in done.out
    assert "name: packed" in (run / "config.yaml").read_text()
    straight = bnn_train(*small, "hydra.run.dir=straight").runs
    assert summary(run)["bits_sha256"] == summary(next(d for d in straight if d.name == "straight"))["bits_sha256"]


@pytest.mark.parametrize(
    "overrides",
    ["optimizer=latent_adam", "model=bncvl", "trainer.diagnostics=true",
     "engine.compile=true", "engine.devices=2", "model.encoding=centred", "model.hidden_size=40000"],
)  # fmt: skip
def test_packed_is_refused_where_it_can_not_train_and_auto_is_dense(bnn_train, overrides):
    rule = () if overrides.startswith("optimizer") else RANDOM  # latent_adam chooses model.weights=latent
    refused = bnn_train(*rule, overrides, "engine=packed")
    assert refused.code == 2 and refused.err.count("\n") <= 2 and "engine=packed" in refused.err
    assert overrides.partition("=")[0].partition(".")[2] in refused.err and not refused.runs
    assert engine.choose(settings_of(*rule, overrides), "cpu") == "dense"
    assert engine.choose(settings_of(*rule, overrides), "cuda") == "dense"


@pytest.mark.parametrize("rule", rest_slow(["counter", "hypermask_random", "hypermask_ewm", "hypermask_factored", "bold"]))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_lean_memory_changes_no_bit(rule, precision):
    same = f"optimizer={rule}", "trainer.batch_size=500", "engine=packed", f"engine.precision={precision}"
    fast, lean = (trainer_of(*same, "model.hidden_size=81", f"engine.memory={memory}") for memory in ("fast", "lean"))
    before = bits_sha256(lean.network)
    fast.epoch(), lean.epoch()
    assert bits_sha256(fast.network) == bits_sha256(lean.network) != before


def test_lean_memory_packs_bits_as_they_are_made():
    with packed_at_once():
        network = MLP(37, 5, hidden_size=70)
    assert [layer.weight.shape for layer in network.layers] == [(70, 5), (70, 9), (70, 9), (5, 9)]


def test_waiting_threads_sleep_on_a_cpu_unless_the_user_says_how_they_wait(monkeypatch):
    for given, device, expected in (
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "cpu", {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({}, "cuda:0", {}),
        ({}, "cpu", {"OMP_WAIT_POLICY": "PASSIVE"}),
        ({}, "auto", {"OMP_WAIT_POLICY": "PASSIVE"}),
    ):
        monkeypatch.setattr(engine.os, "environ", given)
        engine.let_waiting_threads_sleep(device)
        assert given == expected


@pytest.mark.parametrize("avx512", [True, False])
@pytest.mark.parametrize("rule", ["entries", "whole"])
def test_auto_packs_bits_on_a_cpu_from_a_certain_work_on(rule, avx512, monkeypatch):
    """More work never turns the choice back."""
    monkeypatch.setattr(cpu_costs, "has_avx512", lambda: avx512)
    sizes = [16, 64, 256, 1024, 16384]
    table = [[cpu_costs.cheaper(rule, hidden, batch) for batch in sizes] for hidden in sizes]
    assert (table[0][0], table[-1][-1]) == ("dense", "packed")
    assert all(row == sorted(row) for row in (*table, *map(list, zip(*table, strict=True))))  # dense, …, packed, …


def test_auto_distinguishes_rules_by_the_gradient_that_they_read(monkeypatch):
    monkeypatch.setattr(cpu_costs, "cheaper", lambda rule, hidden, batch: rule)
    rules = RANDOM, ("optimizer=counter",), ("optimizer=hypermask", "optimizer.mask=top")
    assert [engine.choose(settings_of(*rule), "cpu") for rule in rules] == ["entries", "whole", "whole"]


def test_auto_weighs_the_measurements_near_the_sizes(tmp_path, monkeypatch):
    monkeypatch.setenv("BNN_EXP_CACHE", str(tmp_path))
    measured.place("cpu").parent.mkdir()
    fast = {"dense": 1.0, "packed": 0.5}
    slow = {"dense": 1.0, "packed": 1.5}
    steps = [
        {"rule": "whole", "hidden": 64, "batch": 64, **slow},
        {"rule": "whole", "hidden": 1024, "batch": 64, **fast},
        {"rule": "entries", "hidden": 64, "batch": 64, **fast},
    ]
    measured.place("cpu").write_text(json.dumps({"steps": steps}))
    chosen = {hidden: measured.faster("cpu", "whole", hidden, 64) for hidden in (16, 64, 128, 512, 1024, 4096)}
    assert chosen == {16: "dense", 64: "dense", 128: "dense", 512: "packed", 1024: "packed", 4096: "packed"}
    assert measured.faster("cpu", "whole", 256, 64) == "packed"  # halfway the greater ratio counts
    assert measured.faster("cpu", "entries", 64, 64) == "packed" and measured.faster("cuda", "whole", 64, 64) is None


@pytest.mark.parametrize("batch", [32, 1024, 16384])
@pytest.mark.parametrize("hidden", [64, 1024, 8192])
def test_auto_takes_the_engine_of_less_work_on_a_gpu(hidden, batch, monkeypatch):
    settings = settings_of("optimizer=counter", f"model.hidden_size={hidden}", f"trainer.batch_size={batch}")
    works = {name: list(step([784, hidden, hidden, hidden, 10], batch)) for name, step in costs.STEPS.items()}
    assert len(works["packed"]) < len(works["dense"])
    assert sum(work.bytes for work in works["packed"]) < sum(work.bytes for work in works["dense"])
    assert engine.choose(settings, "cuda:0") == "packed"
    monkeypatch.setitem(costs.STEPS, "packed", lambda sizes, rows: 2 * list(costs.dense(sizes, rows)))
    assert engine.choose(settings, "cuda:0") == "dense"


def test_auto_reads_what_was_measured_here(tmp_path, monkeypatch):
    monkeypatch.setenv("BNN_EXP_CACHE", str(tmp_path))
    large, small = ((*RANDOM, "model.hidden_size=900"), (*RANDOM, "model.hidden_size=20", "trainer.batch_size=16"))
    usual = [engine.choose(settings_of(*sizes), "cpu") for sizes in (large, small)]
    assert usual == ["packed", "dense"]
    for device in ("cpu", "cuda:0"):
        file = measured.place(device.partition(":")[0])
        file.parent.mkdir(exist_ok=True)
        steps = [
            {"rule": "entries", "hidden": 1024, "batch": 512, "dense": 1.0, "packed": 2.0},
            {"rule": "entries", "hidden": 32, "batch": 32, "dense": 2.0, "packed": 1.0},
        ]
        file.write_text(json.dumps({"steps": steps}))
        assert [engine.choose(settings_of(*sizes), device) for sizes in (large, small)] == ["dense", "packed"]
        assert engine.choose(settings_of(*large, "engine.memory=lean"), device) == "packed"
    for content in ("", "[]", '{"steps": []}', '{"steps": [{"hidden": 1}]}', '{"steps": 3}'):
        measured.place("cpu").write_text(content)
        assert [engine.choose(settings_of(*sizes), "cpu") for sizes in (large, small)] == usual


def test_a_resumed_run_keeps_its_engine_whatever_was_measured_meanwhile(copy_of_run, bnn_train, tmp_path, monkeypatch, summary):
    small = (*RANDOM, "model.hidden_size=24", "dataset.limit=200", "trainer.epochs=2", "trainer.batch_size=50")
    run = copy_of_run(tmp_path / "run", *small)
    assert torch.load(run / "checkpoints/last.pt")["engine"] == "dense"
    monkeypatch.setenv("BNN_EXP_CACHE", str(tmp_path))
    measured.place("cpu").parent.mkdir()
    measured.place("cpu").write_text('{"steps": [{"rule": "entries", "hidden": 24, "batch": 50, "dense": 2, "packed": 1}]}')
    assert engine.choose(settings_of(*small), "cpu") == "packed"
    for begun in ("dense", "packed"):
        assert engine.choose(engine.as_begun(settings_of(*small), "cpu", begun), "cpu") == begun
    assert engine.as_begun(settings_of(*small, "engine.devices=2"), "cpu", "packed").engine.name == "auto"
    (run / "summary.json").write_text(json.dumps(summary(run) | {"status": "interrupted"}))
    done = bnn_train(f"resume={run}")
    assert done.code == 0 and (run / "train.log").read_text().count("engine=dense") == 2


def test_a_machine_is_measured_for_auto(bnn_train, tmp_path, monkeypatch):
    monkeypatch.setenv("BNN_EXP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("bnn_exp.commands.benchmark.engine_times.SIZES", {"cpu": ((16, 24), (32,))})
    done = bnn_train("task=benchmark", "benchmark=machine", "device=cpu", "engine.threads=1", "hydra.run.dir=there")
    found = json.loads((tmp_path / "there" / "benchmark.json").read_text())
    assert (
        done.code == 0
        and json.loads(measured.place("cpu").read_text()) == found
        and str(measured.place("cpu")) in done.out + done.err
    )
    assert [(step["rule"], step["hidden"], step["batch"]) for step in found["steps"]] == [
        (rule, hidden, 32) for rule in ("entries", "whole") for hidden in (16, 24)
    ]
    assert all(step["dense"] > 0 and step["packed"] > 0 for step in found["steps"])
    assert {tuple(found["products"][kind]) for kind in ("matrices", "bits")} == {("fp32", "bf16")}
    ratios = [step["dense"] / step["packed"] for step in found["steps"][:2]]
    if min(ratios) > 1 or max(ratios) < 1:
        faster = "packed" if min(ratios) > 1 else "dense"
        assert engine.choose(settings_of(*RANDOM, "model.hidden_size=900"), "cpu") == faster
    for override in ("optimizer=counter", "model.hidden_size=8", "from=x", "dataset.limit=8"):
        refused = bnn_train("task=benchmark", "benchmark=machine", override)
        assert refused.code == 2 and "benchmark=machine" in refused.err and refused.err.count("\n") == 2


def test_auto_needs_no_torch():
    code = (
        "import sys; from bnn_exp.training.engine import choose; from bnn_exp.training import costs, cpu_costs; "
        "costs.cheaper(256, 4, 1024); cpu_costs.cheaper('whole', 256, 1024); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


PORTABLE = """
import torch
torch.set_num_threads(1)
from helpers import trainer_of
from bnn_exp import pack_network
from bnn_exp.bits import bits_sha256
from bnn_exp.models.mlp import MLP
from bnn_exp.nn import processor
from bnn_exp.nn.bncvl import BNCVL

assert not (processor.AVX512 or processor.VNNI or processor.AVX512_BF16)
for rule in ("optimizer=counter", "optimizer=hypermask_random"):
    few = (rule, "trainer.epochs=2", "trainer.batch_size=300", "model.hidden_size=70", "engine.precision=fp32")
    dense, packed = (trainer_of(*few, f"engine={name}") for name in ("dense", "packed"))
    assert packed.epoch()["flips"] == dense.epoch()["flips"]
    assert bits_sha256(packed.network) == bits_sha256(dense.network)
rounded = trainer_of(*few, "engine=packed", "engine.precision=bf16")
assert rounded.epoch()["train_loss"] < 3
layer, images = BNCVL(16, 16, 3, weights="bits", normalization="batch", pool=2), torch.randn(128, 16, 14, 14).bfloat16()
with torch.autocast("cpu", torch.bfloat16):
    layer(images).float().square().sum().backward()
assert layer.weight.grad.any()
network, pixels = MLP(99, 10, 70).eval(), torch.randint(256, (9, 1, 9, 11), dtype=torch.uint8)
assert torch.allclose(pack_network(network, (1, 9, 11)).scores(pixels), network(pixels), atol=1e-4)
"""


@pytest.mark.slow
def test_kernels_take_no_instruction_that_the_processor_lacks(tmp_path):
    """Numba compiles for a processor without AVX. LLVM refuses an instruction of another processor, on which ARM fails too."""
    environment = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "NUMBA_CPU_NAME": "generic"}
    environment |= {"NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", PORTABLE], env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
