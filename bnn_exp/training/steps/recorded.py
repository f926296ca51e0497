"""CUDA graphs: a step is recorded once for each batch size, and then replayed by one call.

The step of a small network launches about two hundred kernels. Python takes longer to launch them than a GPU takes to run them.
Shapes and addresses of tensors are the same in every step, so one graph can hold the whole step.
"""

from typing import Any

from torch import Tensor

from bnn_exp.nn.graphs import Graphs
from bnn_exp.training.steps.dense import Dense


class Recorded:
    """A step that replays another step: batch, passes, rule and optimizers.

    `before` and `after` run in Python around each replay. They write the number of the step, the strengths and the learning
    rates into tensors that the graph reads.

    Args:
        step: the step to record, on a GPU.
        required: raise an exception if the recording fails; else log a warning, and run the step without a graph.
    """

    def __init__(self, step: Dense, required: bool = False):
        self.step, self.graphs = step, Graphs(step, required)

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.graphs(rows)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)
