"""benchmark=training: its loops train as our engines do, its numbers fit their names, its refusals are short."""

import json
import mmap
import textwrap
import time
from itertools import islice, pairwise

import pytest
import torch
from helpers import drawn, settings_of, trainer_for, use_tapes, write_dataset

from bnn_exp.commands.benchmark import (
    float_twin,
    peers,
    process_memory,
    torch_loops,
    training_memory,
    training_times,
    training_ways,
)
from bnn_exp.config.installed import has_cpp_compiler
from bnn_exp.data.dataset import Dataset
from bnn_exp.nn import binary_layers, device
from bnn_exp.optim.fused import Fused
from bnn_exp.optim.rule import Rule
from bnn_exp.training.plan import read

RANDOM = ("optimizer=hypermask", "optimizer.mask=random", "optimizer.schedule=constant", "engine.threads=1", "device=cpu")
TRAINING = ("task=benchmark", "benchmark=training", "benchmark.rounds=3")
UNIT = 2.0**-24  # unit roundoff of fp32


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return Dataset.from_arrays(read(settings_of().dataset), torch.device("cpu"))


@torch.no_grad()
def begin_alike(loop: torch_loops.Loop, trainer) -> None:
    """Copies the bits of the trainer's network into the network of the loop."""
    for (_, own), (_, other) in zip(binary_layers(loop.network), binary_layers(trainer.network), strict=True):
        own.weight.copy_(other.value if own.weights == "float" else other.weight)


@pytest.mark.parametrize("encoding", ["boolean", "bipolar", "centred"])
def test_the_plain_loop_flips_what_the_dense_engine_flips(encoding, digits, monkeypatch):
    settings = settings_of(*RANDOM, "engine=dense", f"model.encoding={encoding}", "delta=0.3", "model.hidden_size=64")
    trainer, loop = trainer_for(settings), torch_loops.same_rule(settings, torch_loops.in_floats(digits))
    begin_alike(loop, trainer)
    before = [w.clone() for w, _, _ in loop.weights]
    masks = [drawn(w.numel(), settings.seed, i, step=0) < 0.3 for i, w in enumerate(before)]
    masks_left = iter(masks)
    monkeypatch.setattr(loop, "mask", lambda w: next(masks_left).view_as(w))
    rows = torch.arange(512)
    loss, _ = trainer.train_on(rows)
    assert float(loop.step(rows)) == pytest.approx(float(loss), rel=1e-5)
    flips = differing = 0
    for (_, layer), old, (w, *_) in zip(binary_layers(trainer.network), before, loop.weights, strict=True):
        unsure = w.grad.abs() < 512 * UNIT * w.grad.abs().max()
        assert ((layer.value == w) | unsure).all()
        flips, differing = flips + int((w != old).sum()), differing + int((layer.value != w).sum())
    assert flips > 0.3 * sum(int(m.sum()) for m in masks)  # about half of the bits under a mask have the wrong sign
    assert differing <= flips / 1000


@pytest.mark.parametrize("rule", ["counter", "bop", "hypermask_top", "latent_adam"])
def test_other_rules_are_their_classes_on_the_same_gradients(rule, digits, monkeypatch):
    monkeypatch.setattr(torch_loops, "_draw", Rule._draw)  # the loop then draws the numbers of the engine
    held = (f"optimizer={rule}", "optimizer.schedule=constant", "real_optimizer.schedule=constant", "device=cpu")
    settings = settings_of(*held, "model.hidden_size=48")
    trainer, loop = trainer_for(settings), torch_loops.same_rule(settings, torch_loops.in_floats(digits))
    begin_alike(loop, trainer)
    for begin in range(0, 1024, 256):
        rows = torch.arange(begin, begin + 256)
        trainer.train_on(rows)
        loop.step(rows)
    pairs = zip(binary_layers(loop.network), binary_layers(trainer.network), strict=True)
    for (_, own), (_, other) in pairs:
        assert (own.bits()["weight"] != other.bits()["weight"]).float().mean() < 1e-3


@pytest.mark.parametrize("rule", ["counter", "bop", "hypermask_top"])
def test_the_loop_of_plain_torch_calls_no_compiled_rule(rule, digits, monkeypatch):
    settings = settings_of(f"optimizer={rule}", "device=cpu", "model.hidden_size=256")
    loop = torch_loops.same_rule(settings, torch_loops.in_floats(digits))
    monkeypatch.setattr(Fused, "step", lambda *_: pytest.fail("compiled code did the step"))
    loop.step(torch.arange(64))
    assert sum(loop.rule.flips) > 0


@pytest.mark.parametrize("rule", ["counter", "bop2", "hypermask_top", "hypermask_random delta=0", "latent_adam"])
def test_a_recorded_loop_makes_the_steps_of_the_loop(rule, digits, monkeypatch):
    """On the replacement for CUDA graphs. With δ = 0 the random mask, whose numbers differ, flips nothing."""
    monkeypatch.setattr(device, "on_host", lambda where: False)
    tapes = use_tapes(monkeypatch)
    settings = settings_of(*f"optimizer={rule} model.hidden_size=32 device=cpu".split())
    data = torch_loops.in_floats(digits)
    loops = [torch_loops.same_rule(settings, data, bf16=True) for _ in range(2)]
    loops[1].network.load_state_dict(loops[0].network.state_dict())
    loops[1].record()
    for begin in range(0, 1024, 256):
        one, other = (float(loop.step(torch.arange(begin, begin + 256))) for loop in loops)
        assert one == other
    state, recorded = (loop.network.state_dict() for loop in loops)
    assert len(tapes) == 1 and all(torch.equal(state[name], recorded[name]) for name in state)


def test_a_recorded_loop_augments_each_batch_anew(digits, monkeypatch):
    monkeypatch.setattr(device, "on_host", lambda where: False)
    tapes = use_tapes(monkeypatch)
    settings = settings_of("model.hidden_size=32", "device=cpu", "dataset.augment=standard")
    loop = torch_loops.same_rule(settings, torch_loops.in_floats(digits))
    images = loop._augmented(x := loop.images[:64])
    assert images.shape == x.shape and not torch.equal(images, x) and not torch.equal(images, loop._augmented(x))
    loop.record()
    losses = [float(loop.step(torch.arange(64))) for _ in range(4)]
    assert len(tapes) == 1 and len({*losses}) == 4


def test_the_loop_of_adam_trains_latents_by_their_signs(digits):
    settings = settings_of(*RANDOM, "model.hidden_size=32")
    loop = torch_loops.adam_loop(settings, torch_loops.in_floats(digits))
    layer = loop.network.layers[0]
    latent = layer.parametrizations.weight.original
    assert torch.equal(layer.weight, torch.where(latent >= 0, 1.0, -1.0))
    losses = [float(loop.step(rows)) for rows in islice(training_times.whole_batches(digits, 256), 60)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert set(layer.weight.unique().tolist()) == {-1.0, 1.0} and latent.unique().numel() > 1000


@pytest.mark.parametrize("normalization", ["batch", "sample", "channel"])
def test_the_float_twin_of_bncvl_computes_what_bncvl_computes_of_real_weights(normalization, digits):
    settings = settings_of("model=bncvl", f"model.normalization={normalization}")
    network = torch_loops.float_network(settings, digits)
    twin = float_twin.twin(network)
    layers = [layer for layer in twin if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)]
    for layer, (_, own) in zip(layers, binary_layers(network), strict=True):
        torch.nn.init.normal_(own.weight)
        layer.load_state_dict(dict(own.named_parameters(recurse=False)))
    x = digits.train.images[:64].float() / 255
    torch.testing.assert_close(twin(x), network(x), rtol=1e-4, atol=1e-4)


def test_the_float_twin_of_vgg_has_its_sizes_and_learns(digits):
    settings = settings_of("model=vgg", "model.channels=[16,32]")
    loop = float_twin.twin_loop(settings, torch_loops.in_floats(digits), bf16=False, compiled=False)
    shapes = [p.shape for _, layer in binary_layers(torch_loops.float_network(settings, digits)) for p in layer.parameters()]
    assert [p.shape for p in loop.network.parameters() if p.dim() > 1] == shapes
    losses = [float(loop.step(rows)) for rows in islice(training_times.whole_batches(digits, 64), 30)]
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])


def test_only_a_cnn_on_a_cpu_has_float_twins():
    assert not training_ways.twins(settings_of(), torch.device("cpu"))
    assert not training_ways.twins(settings_of("model=bncvl"), torch.device("cuda"))
    assert {"float twin fp32", "float twin bf16"} <= {*training_ways.twins(settings_of("model=bncvl"), torch.device("cpu"))}


def test_every_way_takes_the_same_whole_batches(monkeypatch, digits):
    """The test replaces the clock: a step of a takes 1 s, a step of b 3 s. A round of 2 s then has two batches."""
    now, taken = [0.0], {"a": [], "b": []}

    def way(name: str, seconds: float):
        def step(rows):
            taken[name].append(rows.tolist())
            now[0] += seconds

        return step

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr(training_times, "WINDOW", 2.0)
    found = training_times.time_steps({"a": way("a", 1.0), "b": way("b", 3.0)}, training_times.whole_batches(digits, 400), 3)
    assert taken["a"] == taken["b"] and len(taken["a"]) == 2 + 3 * 2  # two steps before the rounds, then two in each round
    assert all(len(rows) == 400 for rows in taken["a"])
    assert not {*taken["a"][1]} & {*taken["a"][2]}  # two batches of one permutation share no row
    assert (found["a"]["median"], found["b"]["median"]) == (1.0, 3.0)


@pytest.mark.parametrize("watch", [training_memory.Resident, training_memory.Sampled])
def test_a_peak_is_seen_after_it_is_gone(watch):
    if not process_memory.known():
        pytest.skip("the system does not tell")
    began = training_memory.watching(torch.device("cpu")) if watch is training_memory.Resident else watch()
    if not isinstance(began, watch):
        pytest.skip("the high-water mark can't be set back")
    before = began.now()
    with mmap.mmap(-1, 8 * 10**7) as block:  # an allocator would keep the memory
        block.write(bytes(8 * 10**7))
        time.sleep(0.1)  # long enough to be sampled
    assert began.now() < before + 10**8 and 7 * 10**7 < began.peak() - before < 2 * 10**8


@pytest.fixture
def no_compiler(monkeypatch):
    """Leaves out the ways that torch.compile compiles, which takes ten seconds for each."""
    monkeypatch.setattr(training_ways, "has_cpp_compiler", lambda: False)


@pytest.mark.parametrize("library", peers.LIBRARIES)
def test_other_libraries_train_latents_by_their_signs(library, digits):
    if not peers.is_installed(library):
        pytest.skip(f"{library} is not installed")
    settings = settings_of(*RANDOM, "model.hidden_size=32")
    loop = peers.loop(library, settings, torch_loops.in_floats(digits))
    losses = [float(loop.step(rows)) for rows in islice(training_times.whole_batches(digits, 256), 60)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    network = loop.network.eval()
    with torch.no_grad():
        sums = network[1](digits.test.images[:8].float().div(255).flatten(1)) * 255
    assert (sums - sums.round()).abs().max() < 1e-2  # sums of pixels with weights of ±1


def test_a_missing_library_is_named_and_not_measured(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    settings = settings_of("model.hidden_size=32")
    assert training_ways.usual(settings) == ("torch Adam",)
    assert peers.named(settings) == ("brevitas", "bitorch") and peers.named(settings_of("model=bncvl")) == ()


def test_a_way_of_other_software_that_fails_is_left_out_with_a_line(monkeypatch, digits, capsys):
    def fails(settings, data):
        raise RuntimeError("no back end")

    monkeypatch.setitem(training_ways.LOOPS, training_ways.COMPILED, fails)
    ways = training_ways.FP32, training_ways.COMPILED
    rows = training_times.measure(ways, settings_of(*RANDOM, "model.hidden_size=8"), digits, rounds=3)
    assert [row["way"] for row in rows] == [training_ways.FP32]
    assert "torch fp32 compiled is not measured: RuntimeError: no back end" in " ".join(capsys.readouterr().out.split())


def test_the_answers_of_other_libraries_stand_beside_the_packed_network(monkeypatch, digits):
    """A library of the test: the layers are torch's own."""
    layers = lambda sizes: [torch.nn.Linear(*pair) for pair in pairwise(sizes)]  # noqa: E731
    monkeypatch.setattr(peers, "LIBRARIES", {"json": layers})
    found = peers.answers(["json"], settings_of("model.hidden_size=32"), digits, rounds=3)
    assert [(row["batch"], row["way"]) for row in found] == [
        (batch, way) for batch in (1, 1024) for way in ("packed", "torch fp32", "json")
    ]
    for row, packed in zip(found, [found[0]] * 3 + [found[3]] * 3, strict=True):
        assert 0 < row["low"] <= row["median"] <= row["high"]
        assert row["speedup"] == pytest.approx(row["median"] / packed["median"])


def config_of(*overrides: str) -> dict:
    from helpers import plain_config

    from bnn_exp.config.settings import REQUEST

    values = plain_config(*RANDOM, *overrides)
    return training_ways.held({key: value for key, value in values.items() if key not in REQUEST}, 1)


def test_what_is_measured_begins_at_full_strength():
    values = config_of("optimizer.schedule=cosine", "trainer.final_batch_size=4096", "engine.threads=2")
    assert values["optimizer"]["schedule"] == "constant" and values["trainer"]["final_batch_size"] is None
    assert values["engine"]["threads"] == 1


@pytest.mark.slow
def test_the_command_leaves_table_json_and_plot(bnn_train, tmp_path, monkeypatch):
    """Memory in fp32 for n weights: Adam holds n weights, n gradients and 2n moments; HyperMask n weights and n gradients."""
    n = 64 * 1024 + 2 * 1024**2 + 10 * 1024
    monkeypatch.setattr(training_memory, "PROCESSES", 1)
    sizes = ("model.hidden_size=1024", "trainer.batch_size=64", "trainer.limit_batches=2")
    done = bnn_train(*TRAINING, *RANDOM, *sizes, "delta=0.1", "hydra.run.dir=out")
    assert done.code == 0, done.err
    assert all(word in done.out for word in ("packed", "dense", "torch fp32", "torch Adam", "s/epoch"))
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["benchmark.json", "benchmark.png"]
    found = json.loads((tmp_path / "out/benchmark.json").read_text())
    compiled = ["torch fp32 compiled"] * has_cpp_compiler()
    others = ["torch fp32", "torch bf16", *compiled, "torch Adam", *filter(peers.is_installed, peers.LIBRARIES)]
    assert [row["way"] for row in found["ways"]] == ["packed", "dense", *others]
    for row in found["ways"]:
        assert 0 < row["low"] <= row["median"] <= row["high"] and row["processor_median"] > 0
        assert row["images_per_second"] * row["median"] == pytest.approx(64)
        assert row["seconds_per_epoch"] == pytest.approx(2 * row["median"])
        assert row["speedup"] == pytest.approx(row["median"] / found["ways"][0]["median"])
    assert found["speedup_over_dense_torch"] == found["ways"][2]["speedup"] and found["speedup_over_seed"] is None
    assert (found["training"]["engine"], found["training"]["batch"], found["machine"]["threads"]) == ("packed", 64, 1)
    if found["memory"]:
        assert list(found["memory"]) == ["packed", "torch fp32", "torch Adam"]
        for way, least in (("torch fp32", 8 * n), ("torch Adam", 16 * n)):
            taken = found["memory"][way]
            assert 3.9 * n < taken["built"] < taken["peak_bytes"] and least < taken["peak_bytes"] < 3 * least
            assert taken["peaks"] == [taken["peak_bytes"]]
            assert taken["total_bytes"] == taken["before"] + taken["peak_bytes"]
        ours, adam = (found["memory"][way]["peak_bytes"] for way in ("packed", "torch Adam"))
        assert found["memory_saved_over_adam"] == pytest.approx(1 - ours / adam)


@pytest.fixture
def small_folder(tmp_path):
    images = torch.randint(0, 256, (64, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    return write_dataset(tmp_path / "data", list(images), list(images[:8]))


def program(tmp_path, text: str) -> str:
    (tmp_path / "reference.py").write_text(textwrap.dedent(text))
    return f"benchmark.reference_program={tmp_path / 'reference.py'}"


@pytest.mark.slow
def test_the_reference_program_is_measured_beside_ours(bnn_train, tmp_path, small_folder, monkeypatch, no_compiler):
    says = """
        import sys, os
        _, folder, hidden, epochs, delta = sys.argv
        assert os.path.isdir(folder) and os.environ["OMP_NUM_THREADS"] == "1"
        assert (hidden, delta) == ("32", "0.25"), sys.argv
        for epoch in range(int(epochs)):
            print(f"epoch {epoch + 1} loss 0.1 train 9.00 test 9.00 train_s 0.50 eval_s 1.00")
    """
    monkeypatch.setattr(training_memory, "measure", lambda *_: None)  # new processes take seconds
    data = ("dataset=mnist", f"dataset.path={small_folder}", "model.hidden_size=32", "trainer.batch_size=16", "delta=0.25")
    done = bnn_train(*TRAINING, *RANDOM, *data, program(tmp_path, says), "hydra.run.dir=out")
    assert done.code == 0, done.err
    found = json.loads((tmp_path / "out/benchmark.json").read_text())
    assert found["seed"]["seed"] == {"median": 0.5, "low": 0.5, "high": 0.5, "images_per_second": 128.0}
    ours = found["seed"]["ours"]
    assert ours["images_per_second"] == pytest.approx(64 / ours["median"])
    assert found["speedup_over_seed"] == pytest.approx(0.5 / ours["median"])
    assert found["memory"] is None and found["memory_saved_over_adam"] is None
    assert "the reference program" in done.out


BAD = {
    ("benchmark=nonsense",): ("benchmark=nonsense", "inference, machine, training"),
    ("benchmark.reference_program=x",): ("benchmark.reference_program", "benchmark=training"),
    (*TRAINING, "benchmark.rounds=2"): ("benchmark.rounds=2", "a whole number ≥ 3"),
    (*TRAINING, "from=x"): ("from=x", "null"),
    (*TRAINING, "resume=x"): ("resume=x", "null"),
    (*TRAINING, "freeze=1"): ("freeze=1", "0"),
    (*TRAINING, "engine.devices=2"): ("engine.devices=2", "1"),
    (*TRAINING, "engine=packed", "model=vgg"): ("engine=packed", "auto or dense"),
    (*TRAINING, "benchmark.reference_program=/nowhere.py"): ("benchmark.reference_program=/nowhere.py", "no such file"),
    (*TRAINING, f"benchmark.reference_program={__file__}"): ("dataset=digits", "dataset.path=FOLDER"),
    (*TRAINING, f"benchmark.reference_program={__file__}", "model=vgg"): ("model=vgg", "model=mlp"),
    (*TRAINING, f"benchmark.reference_program={__file__}", "model.num_layers=3"): ("model.num_layers", "4"),
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_said_in_two_lines_and_leaves_nothing(bnn_train, arguments, tmp_path):
    done = bnn_train(*arguments)
    assert done.code == 2 and all(part in done.err for part in BAD[arguments]), done.err
    assert len(done.err.splitlines()) == 2 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys\nsys.exit('no column image')", "exit code 1, 0 of 2 epochs: no column image"),
        ("print('hello')", "exit code 0, 0 of 2 epochs: hello"),
        ("print('epoch 1 train_s 1.5')\nraise KeyError('label')", "exit code 1, 1 of 2 epochs: KeyError: 'label'"),
    ],
)
def test_a_program_that_fails_is_told_by_its_last_line(bnn_train, tmp_path, small_folder, text, said):
    data = ("dataset=mnist", f"dataset.path={small_folder}", "model.hidden_size=8")
    done = bnn_train(*TRAINING, *RANDOM, *data, program(tmp_path, text), "hydra.run.dir=out")
    assert done.code == 2 and said in done.err and len(done.err.splitlines()) == 2, done.err
    assert not (tmp_path / "out").exists()
