"""Tests that a step can be recorded as a CUDA graph, and that it never waits for the GPU.

The tests run on a CPU: a replacement for CUDA graphs records every operation.
"""

import copy

import pytest
import torch
from helpers import NeverWaits, WaitsForTheGPU, settings_of, trainer_of, use_tapes

from bnn_exp.bits import bits_sha256
from bnn_exp.errors import UserError
from bnn_exp.nn import device, operators
from bnn_exp.nn.graphs import Graphs, beside, join
from bnn_exp.training import engine, setup
from bnn_exp.training.steps.recorded import Recorded
from bnn_exp.training.trainer import Trainer

train_on = Trainer.train_on
SMALL = ("model=mlp", "model.hidden_size=64", "dataset.limit=300", "trainer.batch_size=64", "engine=dense")
RULES = [
    *(f"optimizer=hypermask optimizer.mask={mask}" for mask in ("random", "top", "ewm", "wpm")),
    *(f"optimizer={name}" for name in ("counter", "bop", "bop2", "cema", "bold", "latent_sgd model.weights=latent")),
]


@pytest.fixture
def tapes(monkeypatch):
    """Replaces CUDA graphs by tapes. Returns the list of all tapes that were recorded."""
    return use_tapes(monkeypatch)


def test_what_was_recorded_is_done_anew_for_every_shape(tapes):
    kept = torch.zeros(())
    graphs = Graphs(lambda x: (kept.add_(1), [x * 2.0 + kept]))
    for i, x in enumerate(
        [torch.arange(3.0), torch.ones(3), torch.zeros(2), torch.full((3,), 5.0), torch.ones(2), -torch.ones(2)]
    ):
        _, (found,) = graphs(x)
        assert found.tolist() == (2 * x + i + 1).tolist()
    assert len(tapes) == 2


def test_the_branches_of_a_graph_end_with_the_graph(tapes):
    """Branches run work of the recording, and outside of a recording the same work runs at once."""
    total = torch.zeros(())

    def work(x):
        for _ in range(6):
            with beside(x):
                total.add_(x.sum())
        join()
        return total.clone()

    graphs, x = Graphs(work), torch.ones(2)
    assert [graphs(x).item() for _ in range(4)] == [12, 24, 36, 48] and len(tapes) == 1


def test_the_next_epoch_is_prepared_by_the_same_permutation(on_gpu):
    trainer, other = (trainer_of(*SMALL) for _ in range(2))
    trainer.epoch()
    assert trainer.batches.prepared[0] == 1
    found = [torch.cat([rows.clone() for rows in trainer.batches.of_epoch(epoch)]) for epoch in (1, 1, 3)]
    trainer.batches.prepare(2)
    found.append(torch.cat(trainer.batches.of_epoch(0)))  # not the epoch that is prepared
    for rows, epoch in zip(found, (1, 1, 3, 0), strict=True):
        assert torch.equal(rows, torch.cat(other.batches.of_epoch(epoch)))


def waits(x):
    return torch.tensor(x.sum().item())


def test_what_cant_be_recorded_is_done_as_usual_and_said_once(tapes, caplog):
    graphs, x = Graphs(waits), torch.ones(3)
    assert [graphs(i * x).item() for i in range(4)] == [0, 3, 6, 9] and len(tapes) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "aten._local_scalar_dense" in caplog.text


def test_no_rank_replays_if_another_cannot_record(tapes, caplog):
    graphs, x = Graphs(lambda x: 2 * x, anyone=lambda here: True), torch.ones(3)
    assert [graphs(i * x).sum().item() for i in range(4)] == [0, 6, 12, 18] and not graphs.recorded and len(tapes) == 1
    assert caplog.text.count("another rank cannot record them") == 1


def test_a_recording_that_is_required_must_be_made(tapes):
    graphs, x = Graphs(waits, required=True), torch.ones(3)
    graphs(x)
    with pytest.raises(WaitsForTheGPU):
        graphs(x)


@pytest.fixture
def on_gpu(monkeypatch):
    """Makes all code treat tensors on the CPU as if they were on a GPU: strengths are tensors, and Philox draws."""
    monkeypatch.setattr(device, "on_host", lambda where: False)


def stepping(recorded, *overrides):
    """Returns a new trainer. Its steps are recorded if `recorded` is True."""
    trainer = trainer_of(*overrides)
    if recorded:
        trainer.step = Recorded(trainer.step, required=True)
    return trainer


def end(*overrides, epochs=2, recorded=False):
    """Trains, and returns the hash of the bits, the metrics, and parameters and statistics of the norms."""
    sizes = "dataset.limit=150", "trainer.batch_size=32", "engine=dense", f"trainer.epochs={epochs}"
    trainer = stepping(recorded, *overrides, *sizes)
    metrics = [trainer.epoch() for _ in range(epochs)]
    kept = {"train_loss", "train_accuracy", "flips", "gradient_snr", "flips_back"}
    metrics = [{key: value for key, value in line.items() if key in kept} for line in metrics]
    norms = {name: t.tolist() for name, t in trainer.network.state_dict().items() if "norm" in name}
    return bits_sha256(trainer.network), metrics, norms


@pytest.mark.parametrize("model", ["mlp", "bncvl", "vgg model.channels=[8,8]"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_replayed_training_is_the_same_training(model, precision, tapes, on_gpu):
    overrides = (*f"model={model} optimizer=counter dataset.augment=standard".split(), f"engine.precision={precision}")
    assert end(*overrides, recorded=True) == end(*overrides)
    assert len(tapes) == 2  # whole batches, and the smaller last batch


@pytest.mark.parametrize("rule", [*RULES, "optimizer=latent_adam model.weights=latent"])
@pytest.mark.parametrize("real", ["real_optimizer=sgd", "real_optimizer=adam real_optimizer.schedule=linear"])
def test_a_graph_holds_the_whole_step_of_every_rule(rule, real, tapes, on_gpu):
    """Strengths fall, random numbers differ from step to step, and states stay in the tensors that the graph reads."""
    falling = ("latent" not in rule and "optimizer.schedule=linear") or "optimizer.schedule=cosine"
    overrides = (*rule.split(), *real.split(), falling, "model.hidden_size=24", "trainer.diagnostics=true")
    assert end(*overrides, epochs=3, recorded=True) == end(*overrides, epochs=3)
    assert len(tapes) == 2


@pytest.mark.usefixtures("triton_runs")
def test_a_replay_launches_the_kernels_of_a_rule(tapes, on_gpu, monkeypatch):
    monkeypatch.setattr(operators, "kernels_everywhere", True)
    overrides = ("optimizer=counter", "optimizer.scale=factored", "model.hidden_size=8", "model.num_layers=2")
    assert end(*overrides, epochs=1, recorded=True) == end(*overrides, epochs=1)
    assert len(tapes) == 1 and any(operator.name() == "bnn_exp::counter_factored" for operator, *_ in tapes[0].notes)


@pytest.mark.parametrize("engine", ["dense", "packed"])
def test_a_replayed_evaluation_follows_the_training(engine, tapes, on_gpu):
    ends = []
    for recorded in (True, False):
        trainer = trainer_of(f"engine={engine}", "model.hidden_size=24", "dataset.limit=300", "trainer.eval_batch_size=150")
        if recorded:
            trainer.answer = Graphs(trainer.step.answer, required=True)
        found = []
        for _ in range(2):
            trainer.epoch()
            metrics, confusion = trainer.evaluate()
            found.append((metrics["test_accuracy"], confusion.tolist()))
        ends.append(found)
    assert ends[0] == ends[1] and ends[0][0] != ends[0][1] and len(tapes) == 2  # whole batches, and the smaller last one


def test_parameters_have_the_gradients_of_the_step_just_made(tapes, on_gpu):
    """Also after a batch of another size, whose graph writes to other gradients."""
    seen = []
    for recorded in (True, False):
        trainer = stepping(recorded, "optimizer=counter", "model.hidden_size=24", *SMALL[2:])
        gradients = []
        trainer.after_step = lambda trainer, loss, seen=gradients: seen.extend(
            p.grad.clone() for p in trainer.network.parameters()
        )
        for _ in range(3):
            trainer.epoch()
        seen.append(gradients)
    assert len(tapes) == 2 and all(map(torch.equal, *seen))


def test_a_growing_batch_has_a_graph_for_each_size(tapes, on_gpu):
    overrides = ("optimizer=counter", "trainer.final_batch_size=48", "model.hidden_size=24", "dataset.augment=standard")
    assert end(*overrides, epochs=3, recorded=True) == end(*overrides, epochs=3)
    assert len(tapes) == 3  # batches of 32, 39 and 48 samples; each smaller last batch occurs once


def test_a_callback_may_change_any_hyperparameter(tapes, on_gpu):
    """A graph holds those that no step announces, so a change frees the graphs."""
    ends = []
    for recorded in (True, False):
        trainer = stepping(recorded, "optimizer=bop2", "real_optimizer=sgd", "model.hidden_size=24", *SMALL[2:])
        rows, losses = trainer.batches.of_epoch(0), []
        for batch in range(9):
            if batch == 3:
                trainer.binary.param_groups[0]["tau"] = 0.5
            if batch == 6:
                trainer.real[0].optimizer.param_groups[0]["momentum"] = 0.3
            losses.append(float(trainer.train_on(rows[batch % 4], 0, batch % 4)[0]))
        ends.append((losses, bits_sha256(trainer.network)))
    assert ends[0] == ends[1] and len(tapes) == 3


def test_samples_that_the_caller_chooses_are_trained_on(tapes, on_gpu):
    """A recorded step takes its samples from the permutation of the epoch, or from a copy of the indices of the caller."""
    ends = []
    for recorded in (True, False):
        trainer = stepping(recorded, "optimizer=counter", "model.hidden_size=24", "dataset.augment=standard", *SMALL[2:])
        own = trainer.batches.of_epoch(0)
        chosen = [own[0], torch.arange(64), own[1], torch.arange(100, 164), trainer.batches.order[:128:2], own[2]]
        losses = [float(trainer.train_on(rows, 0, batch)[0]) for batch, rows in enumerate(chosen)]
        ends.append((losses, bits_sha256(trainer.network), trainer.step.tally.losses.tolist()))
    assert ends[0] == ends[1] and len(tapes) == 1


def test_a_replayed_training_resumes_to_the_same_bits(tapes, on_gpu):
    overrides = ("optimizer=counter", "real_optimizer=adam", "model.hidden_size=24", "dataset.augment=standard", *SMALL[2:])

    def new():
        trainer = trainer_of(*overrides, "trainer.epochs=4")
        trainer.step = Recorded(trainer.step, required=True)
        return trainer

    whole, first, second = new(), new(), new()
    for _ in range(4):
        whole.epoch()
    for _ in range(2):
        first.epoch()
    stopped = copy.deepcopy(first.state())
    for _ in range(2):
        first.epoch()
    first.load(copy.deepcopy(stopped))  # where graphs exist already
    second.load(stopped)
    for trainer in (first, second):
        for _ in range(2):
            trainer.epoch()
    assert bits_sha256(first.network) == bits_sha256(second.network) == bits_sha256(whole.network)


def test_a_run_of_a_gpu_goes_on_on_a_cpu(monkeypatch):
    """On a GPU the optimizers keep learning rates as tensors, and have options that a CPU does not have."""
    overrides = ("optimizer=latent_adam", "model.weights=latent", "real_optimizer=sgd", "model.hidden_size=24", *SMALL[2:])
    with monkeypatch.context() as patch:
        patch.setattr(device, "on_host", lambda where: False)
        there = trainer_of(*overrides)
        there.epoch()
        state = there.state()
    here = trainer_of(*overrides)
    here.load(state)
    metrics = here.epoch()
    assert metrics["epoch"] == 2 and sum(metrics["flips"].values()) > 0
    assert all(not group.get("fused") for real in here.real for group in real.optimizer.param_groups)
    assert isinstance(here.real[0].optimizer.param_groups[0]["lr"], float)


def test_what_python_has_to_do_in_a_step_is_not_recorded(on_gpu):
    """A torch optimizer that is not capturable reads its learning rate from Python."""
    rule = "optimizer=latent optimizer.torch=Rprop optimizer.options={etas:[0.5,1.2],capturable:false} model.weights=latent"
    assert not trainer_of(*rule.split(), *SMALL).binary.recordable
    for rule in ("optimizer=counter", "optimizer=latent_adam", "optimizer=latent_sgd"):
        assert trainer_of(rule, *SMALL).binary.recordable


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("model", ["mlp", "bncvl"])
def test_no_step_waits_for_a_gpu(rule, model, on_gpu):
    if "latent" not in rule:
        rule += " model.weights=bits"
    trainer = trainer_of(f"model={model}", *rule.split(), "real_optimizer=sgd", *SMALL[2:])
    rows = trainer.batches.of_epoch(0)
    before = trainer.binary.flips[0].clone()
    for batch in range(2):
        trainer.step.before(rows[batch], 0, batch)
        with NeverWaits():
            trainer.step(rows[batch])
        trainer.step.after()
    assert trainer.binary.flips[0] >= before


def test_kernels_are_compiled_before_the_first_epoch(monkeypatch):
    """The step that compiles them changes neither the training nor the stream of torch's random numbers."""
    trainer = trainer_of("optimizer=counter", *SMALL[2:])
    before, steps = bits_sha256(trainer.network), []
    monkeypatch.setattr(Trainer, "train_on", lambda self, *batch: steps.append(train_on(self, *batch)))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    setup.warm_up(trainer.settings, trainer.network, trainer.data)
    assert torch.equal(torch.rand(3), expected) and bits_sha256(trainer.network) == before and len(steps) == 1


def test_a_wait_would_be_seen():
    x = torch.ones(3)
    for wait in (
        lambda: x.sum().item(),
        lambda: x[x > 0],
        lambda: (x > 0).nonzero(),
        lambda: bool(x[0]),
        lambda: torch.zeros(3),
    ):
        with pytest.raises(WaitsForTheGPU), NeverWaits():
            wait()


def test_a_mask_on_a_gpu_flips_what_one_on_the_cpu_flips(monkeypatch):
    for mask in ("top", "wpm"):  # these masks draw no random numbers
        ends = []
        for there in (True, False):
            with monkeypatch.context() as patch:
                patch.setattr(device, "on_host", lambda where, there=there: there)
                trainer = trainer_of("optimizer=hypermask", f"optimizer.mask={mask}", *SMALL)
                trainer.epoch()
            ends.append(bits_sha256(trainer.network))
        assert ends[0] == ends[1]


def test_a_random_mask_on_a_gpu_selects_its_share(monkeypatch):
    monkeypatch.setattr(device, "on_host", lambda where: False)
    trainer = trainer_of("optimizer=hypermask", "optimizer.mask=random", "delta=0.3", "optimizer.schedule=constant", *SMALL)
    w = trainer.binary.tensors()[1]
    before = w.detach().clone()
    w.grad = torch.where(before > 0, 1.0, -1.0)  # against every bit
    trainer.binary.step()
    flipped = (w != before).double().mean()
    assert abs(flipped - 0.3) < 5 * (0.3 * 0.7 / w.numel()) ** 0.5 and trainer.binary.flips[1] == (w != before).sum()


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        ((), "device=cpu"),
    ],
)
def test_where_steps_are_recorded(overrides, reason):
    on = "cpu" if not overrides else "cuda:0"
    assert engine.records(settings_of("engine.graphs=true"), "cuda:0")
    assert engine.records(settings_of(), "cuda") and not engine.records(settings_of("engine.graphs=false"), "cuda")
    assert not engine.records(settings_of(*overrides), on)
    with pytest.raises(UserError, match=f"engine.graphs=true: not with {reason}"):
        engine.records(settings_of("engine.graphs=true", *overrides), on)
