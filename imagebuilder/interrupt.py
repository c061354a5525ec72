"""Signals: the first Ctrl-C, SIGTERM or SIGHUP is a KeyboardInterrupt, so that `with` unwinds; the second ends all."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_CODE = 130


def _at_once(_signal: int, _frame: FrameType | None) -> None:
    os._exit(EXIT_CODE)  # the janitor kills and removes what is left


def _first(_signal: int, _frame: FrameType | None) -> None:
    for number in _SIGNALS:
        signal.signal(number, _at_once)
    raise KeyboardInterrupt


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Handle signals this way inside the block. Only on the main thread.

    A signal that was ignored when we started (nohup) stays ignored.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _first)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
