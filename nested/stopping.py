"""Ctrl-C and SIGTERM: a run stops where it stands, with everything saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nested.loop import Loop


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM as Ctrl-C, outside of loops."""

    def stop(number: int, _: Any) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stoppable(loop: Loop) -> Iterator[None]:
    """The first Ctrl-C or SIGTERM stops at the next step with everything saved; the second one stops at once."""

    def ask(number: int, _: Any) -> None:
        if loop.stop:
            raise KeyboardInterrupt
        loop.stop = True

    def install() -> None:
        for number in numbers:
            signal.signal(number, ask)

    numbers = (signal.SIGINT, signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's business
        return
    before = {number: signal.getsignal(number) for number in numbers}
    install()
    loop.learner.on_start = install  # again: Lightning has put its own in place by then
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
