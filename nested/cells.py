"""Cells of a study in processes of their own: each outcome as it comes, and a kill costs the cell in hand alone."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

SAVE_SECONDS = 20.0  # from the first word to stop to the second


class _Process:
    """A process that takes one cell after the other, and is told to stop when this one ends or wants it to."""

    def __init__(self) -> None:
        spawn = get_context("spawn")
        self._ear, self._mouth = spawn.Pipe(duplex=False)
        self.pool = ProcessPoolExecutor(1, spawn, _listen, (self._ear,))

    def take(self, one: Callable[[Any], Any], cell: Any) -> Future[Any]:
        """Begin a cell. The process starts with its first one, and hears of no Ctrl-C, not even while it imports."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # a process inherits it
        try:
            return self.pool.submit(one, cell)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def stop(self) -> None:
        """Tell it to stop, by SIGTERM where it has a cell in hand."""
        self._mouth.close()

    def end(self) -> None:
        """Stop it, and wait for it."""
        self.stop()
        self.pool.shutdown()
        self._ear.close()


def _listen(ear: Connection) -> None:
    """SIGTERM, and again later, when the parent closes its end or is gone.

    In a session of its own, a terminal's signals are the parent's alone: Ctrl-C; Ctrl-Z, which holds no cell in hand.
    """
    os.setsid()

    def stop() -> None:
        ear.poll(None)  # nothing is ever sent: this is its end
        while True:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(SAVE_SECONDS)

    threading.Thread(target=stop, daemon=True).start()


def outcomes(one: Callable[[Any], Any], cells: Sequence[Any], workers: int) -> Iterator[tuple[Any, Any]]:
    """(cell, what it gave or the exception) as each comes; every process is a pool, so a kill is of a known cell."""
    left, running = list(reversed(cells)), dict[Future[Any], tuple[_Process, Any]]()
    there = [_Process() for _ in range(min(workers, len(left)))]
    idle = list(there)
    try:
        while left or running:
            while left and idle:
                process, cell = idle.pop(), left.pop()
                try:
                    future = process.take(one, cell)
                except BrokenExecutor:  # killed in its last cell, or after it
                    process.end()
                    there.remove(process)
                    there.append(process := _Process())
                    future = process.take(one, cell)
                running[future] = process, cell
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                process, cell = running.pop(future)
                idle.append(process)
                yield cell, future.exception() or future.result()
    finally:
        for process in there:  # all at once: each may have to save
            process.stop()
        for process in there:
            process.end()
