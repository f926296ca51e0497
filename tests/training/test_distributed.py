"""Tests ranks on one machine, connected by gloo. A server that has imported torch forks them, as in a run."""

import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from functools import partial

import pytest
import torch
import torch.distributed as dist
from helpers import forkserver, rest_slow, settings_of, trainer_for, use_tapes
from torch import nn

from bnn_exp.bits import bits_sha256
from bnn_exp.data.augment import Augment
from bnn_exp.errors import RankLost, UserError
from bnn_exp.nn import BinaryLinear, device
from bnn_exp.optim import HyperMask
from bnn_exp.training.distributed.batch_norm import synchronize
from bnn_exp.training.distributed.gradients import SEND
from bnn_exp.training.distributed.ranks import Ranks, share, voters
from bnn_exp.training.launch import HERE
from bnn_exp.training.steps.recorded import Recorded

RUN = (
    "model.hidden_size=32",
    "trainer.epochs=3",
    "trainer.batch_size=64",
    "seed=3",
    "optimizer=hypermask",
    "optimizer.mask=random",
)
RUN += ("dataset.augment=standard", "engine.threads=1")


def on_ranks(size: int, work, folder) -> list:
    """Calls `work(ranks)` on `size` ranks. Returns the results in the order of the ranks; None for a rank that was killed."""
    store = dist.TCPStore(HERE, 0, is_master=True, wait_for_workers=False)
    context = forkserver()
    files = [folder / f"{rank}.pt" for rank in range(size)]
    started = [context.Process(target=_rank, args=(store.port, r, size, work, file)) for r, file in enumerate(files)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
        assert process.exitcode is not None, "it hangs"
    return [torch.load(file) if file.exists() else None for file in files]


def _rank(port, rank, size, work, file):
    torch.set_num_threads(1)
    ranks = Ranks(dist.TCPStore(HERE, port), rank, size, rank)
    torch.save(work(ranks), file)
    dist.destroy_process_group()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_shares_are_each_row_once_in_order_and_never_a_single_row(size):
    for rows in range(2, 40):
        shares = [range(rows)[share(rows, rank, size)] for rank in range(size)]
        assert [row for own in shares for row in own] == list(range(rows))
        lengths = [len(own) for own in shares]
        assert 1 not in lengths and [n > 0 for n in lengths] == [rank < voters(rows, size) for rank in range(size)]
        assert rows < 2 * size or max(lengths) - min(lengths) <= 1


def test_a_share_of_a_batch_is_varied_as_in_the_whole_batch():
    pictures = torch.randint(0, 256, (23, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    augment = Augment(5, shift=2, flip=True, cutout=3)
    whole = augment(pictures, 1, 2)
    for own in (share(23, rank, 4) for rank in range(4)):
        assert torch.equal(augment(pictures[own], 1, 2, own, 23), whole[own])


# BatchNorms and the shapes of their inputs. Four ranks have unequal shares of them; of 3 samples only one rank has a share.
NORMS = (
    (lambda: nn.BatchNorm1d(5), (23, 5)),
    (lambda: nn.BatchNorm1d(5, affine=False, momentum=None), (3, 5)),
    (lambda: nn.BatchNorm1d(5, track_running_stats=False), (9, 5)),
    (lambda: nn.BatchNorm2d(5), (9, 5, 4, 3)),
)


def _norm_case(make, shape):
    """Returns a norm, inputs far from 0, and the weight of each output in the loss."""
    draw = torch.Generator().manual_seed(len(shape))
    norm = make()
    if norm.affine:
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(-1, 2, 5))
            norm.bias.copy_(torch.linspace(0, 1, 5))
    return norm, torch.randn(shape, generator=draw) * 3 + 10, torch.randn(shape, generator=draw)


def _normalized(norm, x, weights):
    """Takes two steps. Returns outputs, input gradients, parameter gradients summed over both steps, and running statistics."""
    for _ in range(2):
        x = x.detach().clone().requires_grad_()
        out = norm(x)
        (out * weights).sum().backward()
    return out.detach(), x.grad, [p.grad for p in norm.parameters()], list(norm.buffers())


def _normalize_shares(ranks):
    results = []
    for norm, x, weights in (_norm_case(*case) for case in NORMS):
        own = share(len(x), ranks.rank, ranks.size)
        synchronize(norm, ranks)
        results.append(_normalized(norm, x[own], weights[own]))
        norm.eval()
        assert ranks.rank or len(norm(x)) == len(x)  # rank 0 evaluates alone
    return results


@pytest.mark.parametrize("size", [2, 4])
def test_batch_norm_over_ranks_is_batch_norm_over_the_batch(size, tmp_path):
    by_rank = on_ranks(size, _normalize_shares, tmp_path)
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=2e-5)
    for case, theirs in zip(NORMS, zip(*by_rank, strict=True), strict=True):
        out, dx, gradients, statistics = _normalized(*_norm_case(*case))
        close(torch.cat([r[0] for r in theirs]), out)
        close(torch.cat([r[1] for r in theirs]), dx)
        for mine, expected in zip(zip(*(r[2] for r in theirs), strict=True), gradients, strict=True):
            close(sum(mine), expected)
        for r in theirs:
            close(r[3], statistics)


def _normalize_in_bf16(ranks):
    norm, x, _ = _norm_case(*NORMS[-1])
    own = share(len(x), ranks.rank, ranks.size)
    synchronize(norm, ranks)
    return norm(x.bfloat16()[own]).detach()


def test_batch_norm_over_ranks_takes_the_bfloat16_of_a_convolution(tmp_path):
    norm, x, _ = _norm_case(*NORMS[-1])
    out = torch.cat(on_ranks(2, _normalize_in_bf16, tmp_path))
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out, norm(x.bfloat16().float()).detach().bfloat16(), rtol=1e-2, atol=1e-2)


# Networks and batch sizes. The shares of four ranks have 16 or 17 samples, 3 or none, 2 or 3.
BATCHES = (
    (("model.hidden_size=32", "delta=0.0", "engine=dense"), (65, 3)),
    (("model=bncvl", "model.channels=[4,6]", "model.convolutions=1", "model.dense=[8]"), (9,)),
)


def _gradients(cases, ranks):
    """Returns loss, right answers and gradients of one step of a new network, for each case, on the first samples."""
    results = []
    for settings, rows in cases:
        trainer = trainer_for(settings, ranks)
        trainer.step.begin_epoch(lambda: False)
        loss, correct = trainer.train_on(torch.arange(rows))
        results.append((float(loss), int(correct), [p.grad.clone() for p in trainer.network.parameters()]))
    return results


@pytest.mark.parametrize("size", [2, 4])
def test_the_gradient_is_that_of_the_whole_batch_whatever_the_shares(size, tmp_path):
    cases = [(settings_of(*overrides), rows) for overrides, sizes in BATCHES for rows in sizes]
    by_rank = on_ranks(size, partial(_gradients, cases), tmp_path)
    for case, (loss, correct, gradients) in enumerate(_gradients(cases, None)):
        for theirs in (results[case] for results in by_rank):
            assert theirs[0] == pytest.approx(loss, rel=1e-5) and theirs[1] == correct
            for mine, expected in zip(theirs[2], gradients, strict=True):
                torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def _recorded(settings, ranks):
    """Trains two epochs as on a GPU: by steps as usual, then by steps that tapes record. Returns bits and losses of both."""
    results = []
    for recorded in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            made = use_tapes(patch)
            patch.setattr(device, "on_host", lambda where: False)
            trainer = trainer_for(settings, ranks)
            if recorded:
                trainer.step = Recorded(trainer.step, required=True)
            losses = [trainer.epoch()["train_loss"] for _ in range(2)]
            results.append((bits_sha256(trainer.network), losses, len(made)))
    return results


@pytest.mark.parametrize("form", rest_slow(["sign", "fp32", "int8"]))
def test_steps_of_ranks_are_recorded_with_their_exchange(form, tmp_path):
    """On a GPU the exchange is by NCCL, which CUDA graphs can record. Here tapes record that of gloo."""
    settings = settings_of(*RUN, "dataset.limit=150", f"engine.all_reduce={form}")
    first, second = on_ranks(2, partial(_recorded, settings), tmp_path)
    assert first == second and first[0][:2] == first[1][:2]
    assert [tapes for _, _, tapes in first] == [0, 2]


def _train_on_integers(ranks):
    """Trains a layer by each mask, with gradients that are small integers, so no sum of them is rounded.

    Returns the bits before the first of twenty steps and after each, by the name of the mask.
    """
    draw = torch.Generator().manual_seed(0)
    x = torch.randint(-3, 4, (26, 12), generator=draw).float()
    sides = torch.randint(0, 2, (26, 9), generator=draw) * 2.0 - 1
    own = share(26, ranks.rank, ranks.size) if ranks else slice(None)
    bits = {}
    for mask in ("random", "top", "ewm", "wpm"):
        torch.manual_seed(1)
        layer = BinaryLinear(12, 9)
        rule = HyperMask([layer.weight], 0.1, mask, lr=0.04, temperature="const")
        steps = [layer.weight.detach().clone()]
        for _ in range(20):
            layer.zero_grad()
            (2 - sides[own] * layer(x[own])).relu().sum().backward()
            if ranks:
                SEND["fp32"](ranks, [layer.weight], [], torch.zeros(1), ranks.size)
            rule.step()
            steps.append(layer.weight.detach().clone())
        bits[mask] = torch.stack(steps)
    return bits


@pytest.mark.parametrize("size", [2, 4])
def test_where_sums_are_exact_any_number_of_ranks_gives_the_same_bits(size, tmp_path):
    bits = _train_on_integers(None)
    assert all(0 < steps[-1].mean() < 1 and not torch.equal(steps[0], steps[-1]) for steps in bits.values())
    for theirs in on_ranks(size, _train_on_integers, tmp_path):
        assert all(torch.equal(theirs[mask], bits[mask]) for mask in bits)


def _sent(rank):
    """Returns two tensors of bits and their gradients on a rank. All ranks have the same largest gradient; one row is 0."""
    draw = torch.Generator().manual_seed(7)
    weights = [torch.randint(0, 2, shape, generator=draw).float() for shape in ((30, 11), (7,))]
    draw = torch.Generator().manual_seed(rank)
    gradients = [scale * torch.randn(w.shape, generator=draw) for w, scale in zip(weights, (1e-3, 50), strict=True)]
    gradients[0][0] = 0
    gradients[0][1, 0] = 0.01
    return weights, gradients


def _send(ranks):
    results = {}
    for name, active in (("fp32", 4), ("int8", 4), ("sign", 4), ("sign", 3)):
        weights, gradients = _sent(ranks.rank)
        real = torch.zeros(3)
        real.grad = torch.full((3,), 0.1 * (ranks.rank + 1))
        for w, g in zip(weights, gradients, strict=True):
            w.grad = g
        scalars, count = SEND[name](ranks, weights, [real], torch.tensor([float(ranks.rank), 1.0]), active)
        results[name, active] = ([w.grad for w in weights], real.grad, scalars, count)
    return results


def test_what_is_sent_of_gradients_is_their_sum_or_the_vote_of_the_majority(tmp_path):
    by_rank = on_ranks(4, _send, tmp_path)
    weights = _sent(0)[0]
    each = [torch.stack(gradients) for gradients in zip(*(_sent(rank)[1] for rank in range(4)), strict=True)]
    bits, rest = 330 + 7, 4 * (3 + 2)
    for results in by_rank:
        for _, real, scalars, _ in results.values():
            torch.testing.assert_close(real, torch.full((3,), 1.0))
            assert scalars.tolist() == [6.0, 4.0]
        assert {key: count for key, (*_, count) in results.items()} == {
            ("fp32", 4): 4 * bits + rest,
            ("int8", 4): bits + 4 * 2 + rest,
            ("sign", 4): -(-bits // 8) + rest,
            ("sign", 3): -(-bits // 8) + rest,
        }
        for i, g in enumerate(each):
            torch.testing.assert_close(results["fp32", 4][0][i], g.sum(0))
            scale = float(g.abs().max()) / 31  # ⌊127/4⌋
            eight = results["int8", 4][0][i]
            assert float((eight - g.sum(0)).abs().max()) <= 4 * scale / 2 * 1.0001
            assert float(((eight / scale).round() - eight / scale).abs().max()) < 1e-4 and float(eight.abs().max()) > scale
            for active in (4, 3):
                for_one = (g[:active] <= 0).sum(0)  # each rank's w* = 1[−g ≥ 0]
                majority = torch.where(2 * for_one > active, 1.0, 0.0).where(2 * for_one != active, weights[i])
                assert torch.equal((results["sign", active][0][i] <= 0).float(), majority)
        assert results["int8", 4][0][0][1, 0] == pytest.approx(0.04)  # four times the largest gradient does not overflow


def _lose_one(ranks):
    if ranks.rank == ranks.size - 2:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(RankLost, match="another rank has ended"):
        for _ in range(3):
            ranks.sum(torch.ones(5))
    return True


@pytest.mark.parametrize("size", [2, 3])
def test_who_waits_for_a_killed_rank_notices_even_if_it_is_the_first(size, tmp_path):
    assert on_ranks(size, _lose_one, tmp_path) == [rank != size - 2 or None for rank in range(size)]


def _go_wrong(ranks):
    said = []
    with pytest.raises(UserError) as error, ranks.failing_together():
        if ranks.rank == 1:
            raise UserError("no such folder here")
    said.append(str(error.value))
    network = nn.Linear(2, 1)
    with torch.no_grad():
        network.weight.fill_(1 + ranks.rank * 2**-23)
        network.bias.fill_(0)
    with pytest.raises(RuntimeError, match="no longer hold the same network"):
        ranks.check_same(network)
    if ranks.rank == 1:
        ranks.tell_failure(MemoryError("out of\nluck"))
        return said
    with pytest.raises(RankLost) as error:
        ranks.sum(torch.ones(1))
    return [*said, str(error.value)]


def test_what_goes_wrong_on_another_rank_is_known_to_the_first(tmp_path):
    first, second = on_ranks(2, _go_wrong, tmp_path)
    assert first == ["no such folder here", "rank 1 failed: out of luck"] and second == first[:1]


def _train_unsynchronized(settings, ranks):
    trainer = trainer_for(settings, ranks)
    metrics = trainer.epoch()
    return metrics["flips"], trainer.network.norms[0].running_mean


def test_without_synchronisation_each_rank_normalises_its_own_rows_and_all_train_the_same_weights(tmp_path):
    small = (
        "trainer.limit_batches=3",
        "trainer.batch_size=5",
        "model.hidden_size=16",
        "engine.sync_batch_norm=false",
        "engine=dense",
    )
    by_rank = on_ranks(4, partial(_train_unsynchronized, settings_of(*small)), tmp_path)  # shares of 2, 3, 0 and 0 samples
    assert all(flips == by_rank[0][0] for flips, _ in by_rank)
    means = [mean for _, mean in by_rank]
    assert not torch.equal(means[0], means[1]) and all(torch.equal(mean, torch.zeros(16)) for mean in means[2:])


@pytest.fixture(scope="module")
def alone():
    """Returns the hash of the bits that one process trains with the settings RUN.

    Several ranks must train the same bits. Their forward passes equal those of one process, because products of bits are
    integers, and BatchNorm sums its statistics in float64. Their gradients are sums in another order and differ in the last
    digits. But the mask reads only signs. A sign differs for about one weight in 10⁷, and a step reads 442 weights.
    """
    trainer = trainer_for(settings_of(*RUN))
    for _ in range(3):
        trainer.epoch()
    return bits_sha256(trainer.network)


def test_two_devices_give_the_bits_of_one(bnn_train, summary, alone):
    done = bnn_train(*RUN, "engine.devices=2")
    assert done.code == 0 and done.err == "" and len(done.runs) == 1 and "2 devices" in done.out
    assert summary(done.runs[0])["bits_sha256"] == alone
    lines = [json.loads(line) for line in (done.runs[0] / "metrics.jsonl").read_text().splitlines()]
    weights, reals = 64 * 32 + 2 * 32 * 32 + 32 * 10, 2 * (3 * 32 + 10)
    assert [line["bytes_reduced"] for line in lines] == [4 * (weights + reals + 3)] * 3  # 3: loss, right answers, stop
    assert multiprocessing.active_children() == []


def to_a_rank(monkeypatch, number, epoch):
    """Makes rank 0 send a signal to rank 1 before the sixth step of an epoch. Epochs count from 0."""
    from bnn_exp.training.trainer import Trainer

    original = Trainer.train_on

    def train_on(self, rows, *place):
        if place == (epoch, 5) and multiprocessing.active_children():
            os.kill(multiprocessing.active_children()[0].pid, number)
        return original(self, rows, *place)

    monkeypatch.setattr(Trainer, "train_on", train_on)


@pytest.mark.slow
def test_killed_and_interrupted_runs_resume_with_other_numbers_to_the_same_bits(bnn_train, summary, alone, monkeypatch):
    to_a_rank(monkeypatch, signal.SIGKILL, 1)
    done = bnn_train(*RUN, "engine.devices=2")
    run = done.runs[0]
    assert done.code == 1 and len(done.err.splitlines()) == 1 and f"another rank has ended; bnn-train resume={run}" in done.err
    assert summary(run)["status"] == "failed" and summary(run)["epochs"] == 1
    monkeypatch.undo()
    to_a_rank(monkeypatch, signal.SIGINT, 2)
    done = bnn_train(f"resume={run}", "engine.devices=3")
    assert done.code == 130 and done.err == "" and "resumed after epoch 1, batch 0" in done.out
    assert summary(run)["status"] == "interrupted" and summary(run)["binary_verified"]
    assert multiprocessing.active_children() == []
    monkeypatch.undo()
    done = bnn_train(f"resume={run}", "engine.devices=1")
    assert done.code == 0 and "resumed after epoch 2, batch" in done.out and "devices: 1" in (run / "config.yaml").read_text()
    assert summary(run)["bits_sha256"] == alone


@pytest.mark.slow
def test_torchrun_gives_the_bits_of_one_in_one_directory(tmp_path, summary, alone):
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = subprocess.run([*torchrun, "-m", "bnn_exp", *RUN], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.rglob("summary.json")
    assert summary(file.parent)["bits_sha256"] == alone and done.stdout.count("epoch 3/3") == 1
    assert "devices: 2" in (file.parent / "config.yaml").read_text()


def _as_torchrun(port, rank, arguments, file):
    from bnn_exp.cli import main

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": HERE, "MASTER_PORT": str(port)}
    sys.argv = ["bnn-train", *arguments]
    with file.open("w") as sys.stderr, file.open("w") as sys.stdout:
        code = 0
        try:
            code = main()
        except SystemExit as error:
            code = error.code
    sys.exit(code)


@pytest.mark.parametrize(
    "arguments, code, said",
    [
        (("-m", "seed=0,1"), 2, "-m under torchrun"),
        (("engine.devices=3",), 2, "engine.devices=3: torchrun has started 2 processes"),
        (("--version",), 0, ""),
    ],
)
def test_under_torchrun_the_first_rank_speaks_and_the_others_go_when_nothing_is_to_do(tmp_path, arguments, code, said):
    with socket.socket() as free:
        free.bind((HERE, 0))
        port = free.getsockname()[1]
    context = forkserver()
    files = [tmp_path / "0", tmp_path / "1"]
    started = [context.Process(target=_as_torchrun, args=(port, r, arguments, file)) for r, file in enumerate(files)]
    for process in started:
        process.start()
    for process in started:
        process.join(60)
    assert [process.exitcode for process in started] == [code, 0]
    assert said in files[0].read_text() and len(files[0].read_text().splitlines()) <= 2 and files[1].read_text() == ""


@pytest.mark.parametrize("device", ["cuda", "auto", "cuda:0"])
def test_more_devices_than_gpus_are_refused(bnn_train, tmp_path, monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    done = bnn_train("engine.devices=2", f"device={device}")
    assert done.code == 2 and "engine.devices=2: this machine has 1 CUDA device" in done.err
    assert len(done.err.splitlines()) == 2 and list(tmp_path.iterdir()) == []


def test_more_devices_than_eight_bits_can_sum_are_refused(bnn_train):
    done = bnn_train("engine.devices=128", "engine.all_reduce=int8")
    assert done.code == 2 and "engine.all_reduce=int8: the sum of 128 devices" in done.err
    assert "allowed: up to engine.devices=127" in done.err
