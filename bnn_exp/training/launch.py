"""Ranks begun and ended: those that rank 0 starts for `engine.devices=N`, and those of torchrun."""

import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from bnn_exp.config import plugins
from bnn_exp.errors import Diverged, RankLost, UserError
from bnn_exp.training.distributed.ranks import PATIENCE, Ranks
from bnn_exp.training.plan import Plan
from bnn_exp.training.setup import prepare
from bnn_exp.training.signals import SIGNALS, stop_on_signals
from bnn_exp.training.torchrun import torchrun_size

HERE = "127.0.0.1"
PRELOAD = [__name__]  # of the server
GRACE = 10  # seconds in which a rank must end by itself when the run has

_joined = False  # whether this process has met torchrun's other ranks


@contextmanager
def ranks_of(plan: Plan, directory: Path) -> Iterator[Ranks | None]:
    """Within the block this process is rank 0 of as many as the plan asks for, and the others follow it; None if it is alone.

    Raises:
        RankLost: a rank could not begin.
    """
    size, threads = plan.settings.engine.devices, torch.get_num_threads()
    if size == 1:
        try:
            yield None
        finally:
            torch.set_num_threads(threads)  # of a run that has another number of its own
        return
    others: list[BaseProcess] = []
    try:
        ranks = _join_torchrun() if torchrun_size() > 1 else _start(size, others)
        ranks.from_first(plan.config.get("plugins", []))  # whose classes the plan may hold
        ranks.from_first((replace(plan, arrays=None), directory))
        yield ranks
    finally:
        _leave()
        for other in others:
            other.join(GRACE)
            other.kill()
        torch.set_num_threads(threads)


def dismiss() -> None:
    """Let torchrun's other ranks go, if nothing was given to them to do."""
    if not _joined:
        _join_torchrun().from_first(None)
        _leave()


def follow_torchrun() -> int:
    """What a rank of torchrun's other than the first does, from beginning to end; its exit code."""
    return _follow(_join_torchrun())


def _join_torchrun() -> Ranks:
    global _joined
    _joined = True
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    return Ranks(store, rank, size, int(os.environ.get("LOCAL_RANK", rank)))


def _start(size: int, others: list[BaseProcess]) -> Ranks:
    """This process as rank 0, having started the `others`.

    They are forked from a server that has imported torch once, and has neither threads at work nor a GPU in use.
    """
    store = dist.TCPStore(HERE, 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    resource_tracker.ensure_running()  # which would unblock signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until they train, Ctrl-C and the like are rank 0's alone
    try:
        with stop_on_signals() as stop:  # a rank that is half started could not be ended
            for rank in range(1, size):
                others.append(context.Process(target=_begin, args=(store.port, rank, size), daemon=True))
                others[-1].start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if stop():
        raise KeyboardInterrupt
    while store.add("started", 0) < len(others):
        if not all(other.is_alive() for other in others):
            raise RankLost("a rank could not begin")
        time.sleep(0.01)
    return Ranks(store, 0, size, 0)


def _begin(port: int, rank: int, size: int) -> None:
    """What a process that `_start` has started does."""
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    store = dist.TCPStore(HERE, port)
    store.add("started", 1)
    sys.exit(_follow(Ranks(store, rank, size, rank)))


def _end_with(rank_0: BaseProcess) -> None:
    """End this process as soon as `rank_0` is gone, wherever it waits: a rank that was killed could not tell the others."""
    rank_0.join()
    os._exit(1)


def _follow(ranks: Ranks) -> int:
    """Train in step with rank 0, which evaluates, records and speaks; the exit code."""
    warnings.simplefilter("ignore")
    try:
        named = ranks.from_first()
        if named is not None:
            _load_plugins(named, ranks)
            plan, directory = ranks.from_first()
            _train(plan, directory, ranks)
    except (UserError, Diverged, RankLost, KeyboardInterrupt):  # rank 0 has met it too
        return 1
    except Exception as error:
        ranks.tell_failure(error)
        return 1
    finally:
        _leave()
    return 0


def _load_plugins(named: list[str], ranks: Ranks) -> None:
    """Load the plugins of the run. Rank 0 has them, and is told where this machine has not."""
    try:
        plugins.load(named)
    except UserError as error:
        ranks.tell_failure(error)
        raise


def _train(plan: Plan, directory: Path, ranks: Ranks) -> None:
    trainer = prepare(plan, directory, ranks)
    with stop_on_signals() as stop:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        while trainer.progress.epoch < plan.settings.trainer.epochs and trainer.epoch(stop):
            pass


def _leave() -> None:
    """Close the connections: who still waits for this rank notices."""
    if dist.is_initialized():
        dist.destroy_process_group()
