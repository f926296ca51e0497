"""Times of a training step, MLP on MNIST, HyperMask with a random mask: a plain torch loop, trainer.engine=dense and packed.

The three take the same rows in turn on one thread; seconds of the processor, so that other processes disturb less; medians.
usage: python docs/step_times.py MNIST_FOLDER HIDDEN BATCH DELTA ROUNDS
"""

import statistics
import sys
import time
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir

from bnn_exp import config
from bnn_exp.cli import CONF
from bnn_exp.plan import make_plan
from bnn_exp.prepare import prepare


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.where(x >= 0, 1.0, -1.0)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (x.abs() <= 1)


def plain_loop(images, labels, hidden: int, delta: float):
    """The step of a loop as one would write it: dense fp32, the rule in one line; a function of the rows."""
    images, sizes = images.flatten(1).float() / 255, [784, hidden, hidden, hidden, 10]
    weights = [torch.where(torch.rand(o, i) < 0.5, 1.0, -1.0).requires_grad_() for i, o in pairwise(sizes)]
    norms = torch.nn.ModuleList(torch.nn.BatchNorm1d(size) for size in sizes[1:])
    sgd = torch.optim.SGD(norms.parameters(), lr=0.1)

    def step(rows):
        x = images[rows]
        for layer, (w, norm) in enumerate(zip(weights, norms, strict=True)):
            x = norm(F.linear(x, w))
            x = Sign.apply(x) if layer < 3 else x
        sgd.zero_grad()
        grads = torch.autograd.grad(F.cross_entropy(x, labels[rows]), weights + list(norms.parameters()))
        with torch.no_grad():
            for w, g in zip(weights, grads, strict=False):
                w.copy_(torch.where(torch.rand_like(g) < delta, torch.where(g <= 0, 1.0, -1.0), w))
            for p, g in zip(norms.parameters(), grads[4:], strict=True):
                p.grad = g
        sgd.step()

    return step


def engine(name: str, folder: str, hidden: int, batch: int, delta: float):
    """The trainer of that engine."""
    rule = ["optimizer=hypermask", "optimizer.mask=random", f"delta={delta}", "real_optimizer=sgd", "device=cpu"]
    size = [f"model.hidden_size={hidden}", f"trainer.batch_size={batch}", f"trainer.engine={name}", "trainer.threads=1"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose("config", ["dataset=mnist", f"dataset.path={folder}", *rule, *size])
    config.load(composed)
    return prepare(make_plan(composed, []), Path())


def main(folder: str, hidden: int, batch: int, delta: float, rounds: int) -> None:
    trainers = {name: engine(name, folder, hidden, batch, delta) for name in ("dense", "packed")}
    train = trainers["dense"].data.train
    steps = {"loop": plain_loop(train.images, train.labels, hidden, delta)}
    steps |= {name: lambda rows, trainer=trainer: trainer.train_on(0, 0, rows) for name, trainer in trainers.items()}
    times = {name: [] for name in steps}
    for turn in range(rounds + 1):
        rows = torch.randperm(len(train))[:batch]
        for name, step in steps.items():
            began = time.process_time()
            step(rows)
            if turn:  # the first compiles
                times[name].append(time.process_time() - began)
    medians = {name: 1000 * statistics.median(seconds) for name, seconds in times.items()}
    print(f"hidden {hidden}, batch {batch}, δ {delta}:", ", ".join(f"{name} {ms:.1f} ms" for name, ms in medians.items()))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:4]), float(sys.argv[4]), int(sys.argv[5]))
