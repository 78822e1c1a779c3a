"""Cells of a sweep in several processes: each runs whole cells one after the other, so that torch is imported once a process."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Iterator
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch

from ..pipelines.errors import Preempted
from .grid import Cell, Outcome, work, write_record

SIGNALS = (signal.SIGINT, signal.SIGTERM)
WAIT = 0.2  # seconds between looks at whether a signal came


def in_processes(cells: list[Cell], root: Path, *, jobs: int, checkpoints: bool = True) -> Iterator[Outcome]:
    """Works on the cells in `jobs` processes, which share the threads that this one would have had; outcomes as they come.

    Ctrl-C and SIGTERM are handed on once to each process at work: its run saves and stops. A process that dies takes its cell
    along, as a failure, and another one stands in.

    Raises:
        KeyboardInterrupt: a second Ctrl-C; the processes are ended.
    """
    threads = max(1, torch.get_num_threads() // jobs)
    waiting, came = deque(cells), _Came()
    workers = [Worker(root, threads, checkpoints) for _ in range(min(jobs, len(cells)))]
    handlers = {number: signal.signal(number, came) for number in SIGNALS}
    told = False
    try:
        while True:
            for worker in workers:
                if worker.cell is None and waiting and not came.number:
                    worker.begin(waiting.popleft())
            busy = [worker for worker in workers if worker.cell is not None]
            if not busy:
                if waiting:  # it came when every run at work had just ended
                    code = 130 if came.number == signal.SIGINT else Preempted.exit_code
                    yield Outcome(waiting[0].name, "stopped", code, "not begun")
                return
            if came.number and not told:
                told = True
                for worker in busy:
                    os.kill(worker.process.pid, came.number)
            ready = connection.wait([worker.pipe for worker in busy], timeout=WAIT)
            for worker in busy:
                if worker.pipe not in ready:
                    continue
                outcome = worker.outcome(stopping=came.number)
                if not worker.process.is_alive() and waiting and not came.number:
                    workers[workers.index(worker)] = Worker(root, threads, checkpoints)
                yield outcome
    except BaseException:
        for worker in workers:
            worker.process.kill()
        raise
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for worker in workers:
            worker.pipe.close()
            worker.process.join()


class _Came:
    """A handler that remembers the first signal, and raises at the second."""

    number: int = 0

    def __call__(self, number: int, frame: Any) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number


class Worker:
    """A process that works on the cells that come through its pipe."""

    def __init__(self, root: Path, threads: int, checkpoints: bool):
        context = multiprocessing.get_context("spawn")
        self.root, self.cell, self.since = root, None, 0.0
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, root, threads, checkpoints), name="fastssl-sweep")
        before = os.environ.get("OMP_NUM_THREADS")
        os.environ["OMP_NUM_THREADS"] = str(threads)  # for libraries that read it when they are imported
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until it has left this terminal's group, see `serve`
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            os.environ.pop("OMP_NUM_THREADS")
            if before is not None:
                os.environ["OMP_NUM_THREADS"] = before
        theirs.close()

    def begin(self, cell: Cell) -> None:
        self.cell, self.since = cell, time.perf_counter()
        try:
            self.pipe.send(cell)
        except OSError:
            pass  # it died while it had nothing to do: the pipe's end tells, and the cell is said to have failed

    def outcome(self, *, stopping: int) -> Outcome:
        """What became of the cell; a failure where the process is gone."""
        cell, self.cell = self.cell, None
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            self.process.join()
            code, wall = self.process.exitcode, time.perf_counter() - self.since
        if stopping:
            return Outcome(cell.name, "stopped", 130, "its process ended", wall)
        killed = code == -signal.SIGKILL
        reason = f"its process ended by signal {-code}" if code < 0 else f"its process ended with exit code {code}"
        reason += ", as where main memory is full; take fewer --jobs" if killed else ""
        write_record(cell, self.root, failure={"exit_code": 7 if killed else 1, "reason": reason})
        return Outcome(cell.name, "failed", 7 if killed else 1, reason, wall)


def serve(pipe: Any, root: Path, threads: int, checkpoints: bool) -> None:
    """Works on cells until the pipe is closed."""
    # A terminal's Ctrl-C reaches a whole group; here it comes by way of the parent alone, once. What came before is dropped.
    os.setpgrp()
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _preempted)
    torch.set_num_threads(threads)
    try:
        while True:
            pipe.send(work(pipe.recv(), root, checkpoints=checkpoints))
    except (EOFError, BrokenPipeError):  # the parent is done, or gone
        return
    except (KeyboardInterrupt, Preempted):  # between two cells
        return
    finally:
        gc.unfreeze()  # libraries look at exit whether all of theirs is gone


def _preempted(number: int, frame: Any) -> None:
    raise Preempted(f"stopped by signal {number} between steps")
