"""Signals: the first Ctrl-C, SIGTERM or SIGHUP is a KeyboardInterrupt, so that `with` unwinds; the second ends all."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_CODE = 130


def _at_once(_signal: int, _frame: FrameType | None) -> None:
    if os.isatty(2):
        os.write(2, b"\x1b[?25h")  # the cursor that a progress bar has hidden
    os._exit(EXIT_CODE)  # the janitor kills and removes what is left


def _first(_signal: int, _frame: FrameType | None) -> None:
    for number in _SIGNALS:
        signal.signal(number, _at_once)
    raise KeyboardInterrupt


@contextlib.contextmanager
def noted(note: Callable[[], None]) -> Iterator[None]:
    """Inside the block the first signal only calls `note`; the second ends all. Only on the main thread."""

    def first(_signal: int, _frame: FrameType | None) -> None:
        for number in _SIGNALS:
            signal.signal(number, _at_once)
        note()

    with _handled(first):
        yield


@contextlib.contextmanager
def unwinding() -> Iterator[None]:
    """Handle signals this way inside the block. Only on the main thread.

    A signal that was ignored when we started (nohup) stays ignored.
    """
    with _handled(_first):
        yield


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, present in before.items():
        if present is not signal.SIG_IGN:
            signal.signal(number, handler)
    try:
        yield
    finally:
        for number, present in before.items():
            signal.signal(number, present)
