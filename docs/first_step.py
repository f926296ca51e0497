"""Measures where the time goes from the start of `bnn-train` to its first finished step.

Usage: python docs/first_step.py OVERRIDE… (the overrides of bnn-train)
"""

import subprocess
import sys
import time

STAGES: list[tuple[str, float]] = []
BUSY: list[float] = []


def after(owner, name: str, stage: str) -> None:
    """Replaces the function `owner.name` by one that notes the time when it first returns."""
    original = getattr(owner, name)

    def noted(*arguments, **keywords):
        result = original(*arguments, **keywords)
        note(stage)
        return result

    setattr(owner, name, noted)


def note(stage: str) -> None:
    if stage not in dict(STAGES):
        STAGES.append((stage, time.time()))
        BUSY.append(time.process_time())


def child(began: float) -> None:
    from bnn_exp import cli
    from bnn_exp.commands.preflight import Preflight
    from bnn_exp.data import sources

    note("Python, Hydra, numpy")
    after(sources, "read", "configuration composed and checked, data read")
    after(Preflight, "on_run_start", "import torch")
    job = cli.job

    def with_imports(composed):
        from bnn_exp.training import run, trainer

        note("import the rest")
        after(run, "prepare", "network, optimizers, data as tensors")
        after(run.plots, "samples", "layers counted, samples.png")
        after(trainer.Trainer, "evaluate", "the first evaluation")
        after(run.checkpoint, "save", "the first checkpoint")
        after(trainer.Trainer, "train_on", "the first step")
        return job(composed)

    with_imports.__name__ = "job"
    cli.job = with_imports
    code = cli.main()
    for (stage, at), before in zip(STAGES, [began, *(at for _, at in STAGES)], strict=False):
        print(f"{stage:50} {at - before:6.2f} s", file=sys.stderr)
    print(f"{'together':50} {STAGES[-1][1] - began:6.2f} s", file=sys.stderr)
    print(f"processor time of the process: {BUSY[-1]:.2f} s", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    if sys.argv[1].startswith("began="):
        child(float(sys.argv.pop(1).removeprefix("began=")))
    else:
        command = [sys.executable, __file__, f"began={time.time()}", *sys.argv[1:]]
        sys.exit(subprocess.run(command, stdout=subprocess.DEVNULL).returncode)
