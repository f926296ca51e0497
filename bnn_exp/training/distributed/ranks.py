"""A rank among its peers: which rows are its own, and what all of them compute together.

Whatever is short or on the CPU goes by gloo, tensors on a GPU by NCCL. Where a peer is gone every one of these methods
raises RankLost, so that no rank waits for a dead one.
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

PATIENCE = timedelta(hours=1)  # with a rank that lives: rank 0 may be reading a dataset, or evaluating
FAILURE = "failure"  # the key in the store of what a rank died of


def voters(rows: int, size: int) -> int:
    """How many of `size` ranks have a share of a batch of `rows` rows: all, or as many as can have two rows."""
    return max(1, min(size, rows // 2))


def share(rows: int, rank: int, size: int) -> slice:
    """The rows of a batch that are the rank's own: a contiguous piece, of two rows or more (BatchNorm can't take one), or none.

    The sizes of two ranks' pieces differ by one at most, but for ranks past the last of the `voters`, which have none.
    """
    active = voters(rows, size)
    first, last = (min(rows * i // active, rows) for i in (rank, rank + 1))
    return slice(first, last)


class Ranks:
    """Rank `rank` of `size`, which meet at `store`.

    Raises:
        RankLost: of every method, when another rank has ended.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, local_rank: int):
        self.store, self.rank, self.size, self.local_rank = store, rank, size, local_rank
        self.group: dist.ProcessGroup | None = None  # None: gloo's, the default one
        with self._noticing():
            dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)

    @contextmanager
    def _noticing(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # gloo's, NCCL's and the store's
            reason = "another rank has ended"
            if self.rank == 0 and self.store.check([FAILURE]):
                reason, _, trace = self.store.get(FAILURE).decode().partition("\n")
                error.add_note(trace)
            raise RankLost(reason) from error

    def tell_failure(self, error: Exception) -> None:
        """Before this rank ends: let rank 0 say why."""
        line = " ".join((str(error) or type(error).__name__).splitlines())
        self.store.set(FAILURE, f"rank {self.rank} failed: {line}\n{''.join(traceback.format_exception(error))}")

    def device(self, name: str) -> torch.device:
        """This rank's device, where rank 0 has `name`: a GPU each. From then on tensors of GPUs are exchanged by NCCL."""
        if name == "cpu":
            return torch.device(name)
        device = torch.device("cuda", self.local_rank)
        torch.cuda.set_device(device)
        with self._noticing():
            self.group = dist.new_group(backend="nccl")
        return device

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all ranks, in place of `tensor`; the same bits on every rank."""
        return self._all_reduce(tensor, dist.ReduceOp.SUM)

    def max(self, tensor: Tensor) -> Tensor:
        """The greatest of all ranks' values, in place of `tensor`."""
        return self._all_reduce(tensor, dist.ReduceOp.MAX)

    def _all_reduce(self, tensor: Tensor, op: Any) -> Tensor:
        with self._noticing():
            dist.all_reduce(tensor, op, self.group if tensor.is_cuda else None)
        return tensor

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's `tensor`, in the order of the ranks."""
        all_of_them = [torch.empty_like(tensor) for _ in range(self.size)]
        with self._noticing():
            dist.all_gather(all_of_them, tensor, self.group if tensor.is_cuda else None)
        return all_of_them

    def any(self, here: bool) -> bool:
        """Whether it is so on any rank. All ranks meet here."""
        return bool(self.max(torch.tensor([int(here)])))

    def from_first(self, what: Any = None) -> Any:
        """What rank 0 gives, which may be anything that can be pickled."""
        box = [what]
        with self._noticing():
            dist.broadcast_object_list(box, 0)
        return box[0]

    def everyones(self, what: Any) -> list[Any]:
        """Returns the objects that all ranks give, in their order. All ranks meet here."""
        found = [None] * self.size
        with self._noticing():
            dist.all_gather_object(found, what)
        return found

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """A UserError of any rank in the block is one of all of them: rank 0 says it, and none waits for one that has gone."""
        mistake = None
        try:
            yield
        except UserError as error:
            mistake = str(error)
        if first := next(filter(None, self.everyones(mistake)), None):
            raise UserError(first)

    def check_same(self, network: nn.Module) -> None:
        """Every rank must hold the same parameters, to the bit.

        Raises:
            RuntimeError: they do not (two kinds of processors among the machines can do it).
        """
        code = 0
        for parameter in network.parameters():
            code = zlib.crc32(parameter.detach().cpu().numpy(), code)
        greatest = self.max(torch.tensor([code, -code]))
        if greatest[0] != -greatest[1]:
            raise RuntimeError("the ranks no longer hold the same network: their processors compute different numbers")
