"""Counts the kernels that a training step launches on a GPU, without a GPU: the step runs on the CPU.

`bnn_exp.nn.device.on_host` returns False meanwhile, so the step calls the operators that a step on a GPU would call. The steps
that are counted compute in fp32. A step in bf16, as on a GPU, launches a few kernels more or less.
"""

from collections import Counter
from typing import Any
from unittest.mock import patch

from torch.utils._python_dispatch import TorchDispatchMode

from bnn_exp.nn import device
from bnn_exp.nn.operators import LAUNCHES
from bnn_exp.training.trainer import Trainer

# Operators of torch that launch no kernel on a GPU, besides those that return views of their arguments
NONE = {
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "detach",
    "lift_fresh",
    "set_",
    "is_same_size",
    "promote_types",
    "_record_function_enter_new",
    "_record_function_exit",
}
# Operators of torch that launch several kernels on a GPU
SEVERAL = {
    "sort": 8,  # a radix sort of float32: a histogram and its scan, then passes over 4 bytes
    "topk": 6,
    "count_nonzero": 2,
    "native_batch_norm": 2,
    "_native_batch_norm_legit": 2,
    "native_batch_norm_backward": 2,
    "convolution_backward": 2,
    "nll_loss_backward": 2,
    "std": 1,
}


class Launches(TorchDispatchMode):
    """A context manager that counts launches. `found` holds the launches of each operator that its body calls, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name = operator._schema.name.partition("::")[2]
        if operator.namespace == "bnn_exp":
            self.found[name] += LAUNCHES.get(name, 1)
        elif not (operator.is_view or name in NONE):
            self.found[name] += SEVERAL.get(name, 1)
        return operator(*args, **(kwargs or {}))


def of_step(trainer: Trainer) -> Counter[str]:
    """Returns the number of launches of one step of `trainer`, which has a CPU as its device, by operator name.

    The step before the counted one makes the states of the optimizers. Both steps change the network.
    """
    with patch.object(device, "on_host", lambda where: False):
        rows = trainer.batches.of_epoch(0)
        trainer.network.train()
        trainer.train_on(rows[0], 0, 0)
        trainer.step.before(rows[1], 0, 1)
        with Launches() as launches:
            trainer.step(trainer.batches.chosen(len(rows[1])))  # as a recorded step
    return launches.found
