"""One rank of a run: its share of each batch, and what it computes together with the other ranks.

gloo transports small values and tensors on the CPU; NCCL transports tensors on a GPU. If another rank has ended, each method
raises RankLost, so no rank waits for a dead one.
"""

import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bnn_exp.errors import RankLost, UserError

PATIENCE = timedelta(hours=1)  # how long a rank waits for a living one: rank 0 may be reading a dataset or evaluating
FAILURE = "failure"  # the key of the store under which a rank writes why it has failed


def voters(rows: int, size: int) -> int:
    """Returns the number of ranks with a share of a batch of `rows` samples: `size`, or as many as can have two samples."""
    return max(1, min(size, rows // 2))


def share(rows: int, rank: int, size: int) -> slice:
    """Returns the share of a batch that a rank trains on: a contiguous piece of the batch's `rows` samples.

    A share has two samples or more, because BatchNorm cannot take one. The first `voters` ranks have shares, whose sizes differ
    by at most one. The shares of other ranks are empty.
    """
    active = voters(rows, size)
    first, last = (min(rows * i // active, rows) for i in (rank, rank + 1))
    return slice(first, last)


class Ranks:
    """The connection of this process, rank `rank` of `size`, to the other ranks of its run.

    Args:
        store: the key-value store through which the ranks connect.
        local_rank: the number of this rank on its machine, which is also the number of its GPU.

    Raises:
        RankLost: in any method, if another rank has ended.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, local_rank: int):
        self.store, self.rank, self.size, self.local_rank = store, rank, size, local_rank
        self.group: dist.ProcessGroup | None = None  # for tensors on a GPU; None: the default group, gloo
        with self._noticing():
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # gloo, NCCL and the store raise a RuntimeError for a lost rank
            reason = "another rank has ended"
            if self.rank == 0 and self.store.check([FAILURE]):
                reason, _, trace = self.store.get(FAILURE).decode().partition("\n")
                error.add_note(trace)
            raise RankLost(reason) from error

    def tell_failure(self, error: Exception) -> None:
        """Stores why this rank ends, so that rank 0 can report it. Call this method before the rank ends."""
        line = " ".join((str(error) or type(error).__name__).splitlines())
        self.store.set(FAILURE, f"rank {self.rank} failed: {line}\n{''.join(traceback.format_exception(error))}")

    def device(self, name: str) -> torch.device:
        """Returns the device of this rank, and connects GPUs by NCCL.

        Args:
            name: the device of rank 0. For `cpu` every rank computes on the CPU, else every rank on its own GPU.
        """
        if name == "cpu":
            return torch.device(name)
        device = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(device)
        with self._noticing():
            self.group = dist.new_group(backend="nccl")
        return device

    def sum(self, tensor: Tensor) -> Tensor:
        """Returns the sum over all ranks, written into `tensor`: the same numbers on every rank, to the bit."""
        return self._all_reduce(tensor, dist.ReduceOp.SUM)

    def max(self, tensor: Tensor) -> Tensor:
        """Returns the elementwise maximum over all ranks, written into `tensor`."""
        return self._all_reduce(tensor, dist.ReduceOp.MAX)

    def _all_reduce(self, tensor: Tensor, op: Any) -> Tensor:
        with self._noticing():
            dist.all_reduce(tensor, op, self.group if tensor.is_cuda else None)
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Returns the `tensor` of every rank, in the order of the ranks."""
        all_of_them = [torch.empty_like(tensor) for _ in range(self.size)]
        with self._noticing():
            dist.all_gather(all_of_them, tensor, self.group if tensor.is_cuda else None)
        return all_of_them

    def any(self, here: bool) -> bool:
        """Returns True if `here` is True on any rank. All ranks call this method together."""
        return bool(self.max(torch.tensor([int(here)])))

    def from_first(self, what: Any = None) -> Any:
        """Returns on every rank the picklable object `what` of rank 0. All ranks call this method together."""
        box = [what]
        with self._noticing():
            dist.broadcast_object_list(box, 0)
        return box[0]

    def everyones(self, what: Any) -> list[Any]:
        """Returns on every rank the objects `what` of all ranks, in their order. All ranks call this method together."""
        found = [None] * self.size
        with self._noticing():
            dist.all_gather_object(found, what)
        return found

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Context manager: a UserError on one rank is raised on every rank, so rank 0 reports it and no rank waits."""
        mistake = None
        try:
            yield
        except UserError as error:
            mistake = str(error)
        if first := next(filter(None, self.everyones(mistake)), None):
            raise UserError(first)

    def check_same(self, network: nn.Module) -> None:
        """Checks that all ranks hold the same parameters, to the bit.

        Raises:
            RuntimeError: they do not. Different kinds of processors can be the reason.
        """
        code = 0
        for parameter in network.parameters():
            code = zlib.crc32(parameter.detach().cpu().numpy(), code)
        greatest = self.max(torch.tensor([code, -code]))
        if greatest[0] != -greatest[1]:
            raise RuntimeError("the ranks no longer hold the same network: their processors compute different numbers")
