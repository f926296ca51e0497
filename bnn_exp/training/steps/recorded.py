"""CUDA graphs: a step is recorded once for each batch size, and then replayed by one call.

A step launches tens of kernels: about 40 for the default MLP, about 90 for the default BNCVL network (counted). Python takes
longer to launch the kernels of a small network than a GPU takes to run them. Shapes and addresses of tensors are the same in
every step, so one graph can hold the whole step.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from bnn_exp.nn.graphs import Graphs

if TYPE_CHECKING:
    from bnn_exp.training.steps.dense import Dense
    from bnn_exp.training.steps.ranks import Exchanged

FAILING = "{} are not recorded as CUDA graphs (engine.graphs=false avoids the attempt)"


class Recorded:
    """A step that replays another step: choice of the samples, batch, passes, exchange of gradients, rule, optimizers, sums.

    Before each replay one copy announces all numbers that the graph reads: where the samples begin in the permutation of the
    epoch, the number of the step, strengths and learning rates. `after` counts the step in Python.

    Args:
        step: the step to record, on a GPU.
        required: raise an exception if the recording fails; else log a warning, and run the step without a graph.
        anyone: see `Graphs`.
    """

    def __init__(self, step: "Dense | Exchanged", required: bool = False, anyone: Callable[[bool], bool] = bool):
        self.step, self.constants = step, ()
        self.parameters = [*step.network.parameters()]
        self.graphs = Graphs(self._train, required, failing=FAILING.format("steps"), anyone=anyone)

    def _train(self, size: int) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        loss, correct = self.step(self.step.batches.chosen(size))
        return loss, correct, [p.grad for p in self.parameters]

    def __call__(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        loss, correct, gradients = self.graphs(len(rows))
        for p, gradient in zip(self.parameters, gradients, strict=True):
            if p.grad is not gradient:  # each graph writes to gradients of its own, and callbacks read `grad`
                p.grad = gradient
        return loss, correct

    def before(self, rows: Tensor, epoch: int, batch: int) -> None:
        """Prepares the step, see `Dense.before`.

        If the batch size grows with this epoch, or a callback has changed a number that graphs hold, frees the graphs.
        """
        self.step.before(rows, epoch, batch)
        constants = self.step.batches.size(epoch), *self.step.constants()
        if constants != self.constants:
            self.constants = constants
            self.graphs.forget()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)
