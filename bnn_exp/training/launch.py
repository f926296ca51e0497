"""Starts and ends the ranks of a run: those that rank 0 starts for `engine.devices=N`, and those that torchrun has started."""

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
PRELOAD = [__name__]  # modules that the fork server imports, torch among them
GRACE = 10  # seconds that a rank has to end by itself after the run; it is killed then

_joined = False  # True once this process is connected to torchrun's other ranks


@contextmanager
def ranks_of(plan: Plan, directory: Path) -> Iterator[Ranks | None]:
    """Context manager: starts the ranks of the plan. Yields this process as rank 0, or None if the plan needs no other ranks.

    The other ranks receive the plan and train in step with rank 0. At the end of the block the other ranks end.

    Raises:
        RankLost: a rank could not start.
    """
    size, threads = plan.settings.engine.devices, torch.get_num_threads()
    if size == 1:
        try:
            yield None
        finally:
            torch.set_num_threads(threads)  # the run may have set another number of threads
        return
    others: list[BaseProcess] = []
    try:
        ranks = _join_torchrun() if torchrun_size() > 1 else _start(size, others)
        # The plugins are sent first: the plan may hold objects whose classes they define.
        ranks.from_first(plan.config.get("plugins", []))
        ranks.from_first((replace(plan, arrays=None), directory))
        yield ranks
    finally:
        _leave()
        for other in others:
            other.join(GRACE)
            other.kill()
        torch.set_num_threads(threads)


def dismiss() -> None:
    """Ends the ranks that torchrun has started, if they still wait for a plan from rank 0."""
    if not _joined:
        _join_torchrun().from_first(None)
        _leave()


def follow_torchrun() -> int:
    """Trains as a rank that torchrun has started, not rank 0. Returns the exit code."""
    return _follow(_join_torchrun())


def _join_torchrun() -> Ranks:
    global _joined
    _joined = True
    store, rank, size = next(rendezvous("env://", timeout=PATIENCE))
    return Ranks(store, rank, size, int(os.environ.get("LOCAL_RANK", rank)))


def _start(size: int, others: list[BaseProcess]) -> Ranks:
    """Starts ranks 1 to size − 1 and adds them to `others`. Returns this process as rank 0.

    The ranks are forked from a server process that has imported torch, but has no running threads and uses no GPU.
    """
    store = dist.TCPStore(HERE, 0, is_master=True, wait_for_workers=False)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    resource_tracker.ensure_running()  # started before the signals are blocked: its start unblocks them
    # New ranks inherit blocked signals. Until they train, Ctrl-C reaches rank 0 alone.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        with stop_on_signals() as stop:  # a signal waits until all have started: a half-started rank could not be ended
            for rank in range(1, size):
                others.append(context.Process(target=_begin, args=(store.port, rank, size), daemon=True))
                others[-1].start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if stop():
        raise KeyboardInterrupt
    while store.add("started", 0) < len(others):
        if not all(other.is_alive() for other in others):
            raise RankLost("a rank could not start")
        time.sleep(0.01)
    return Ranks(store, 0, size, 0)


def _begin(port: int, rank: int, size: int) -> None:
    """Trains as rank `rank` of `size`, in a process that `_start` has started, and exits. `port` is the store's port."""
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    store = dist.TCPStore(HERE, port)
    store.add("started", 1)
    sys.exit(_follow(Ranks(store, rank, size, rank)))


def _end_with(rank_0: BaseProcess) -> None:
    """Ends this process as soon as `rank_0` has ended, because a killed rank cannot notify the others."""
    rank_0.join()
    os._exit(1)


def _follow(ranks: Ranks) -> int:
    """Trains in step with rank 0, which evaluates, records and prints. Returns the exit code."""
    warnings.simplefilter("ignore")
    try:
        named = ranks.from_first()
        if named is not None:
            _load_plugins(named, ranks)
            plan, directory = ranks.from_first()
            _train(plan, directory, ranks)
    except (UserError, Diverged, RankLost, KeyboardInterrupt):  # rank 0 has the same exception and reports it
        return 1
    except Exception as error:
        ranks.tell_failure(error)
        return 1
    finally:
        _leave()
    return 0


def _load_plugins(named: list[str], ranks: Ranks) -> None:
    """Loads the plugins of the run. If a plugin is missing on this machine, rank 0 reports the failure."""
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
    """Closes the connections. A rank that still waits for this one then raises RankLost."""
    if dist.is_initialized():
        dist.destroy_process_group()
