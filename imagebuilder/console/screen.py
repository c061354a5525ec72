"""What the guest shows: its screen as text and as a picture, its serial line, and waiting for a text on either."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from pathlib import Path

from imagebuilder import process
from imagebuilder.console import picture, textmode
from imagebuilder.console.glyphs import Recognition
from imagebuilder.console.keypace import Monitor
from imagebuilder.console.picture import Picture
from imagebuilder.console.serialtext import SerialLog
from imagebuilder.errors import GuestError, StoreError
from imagebuilder.qemu.qmp import QmpError
from imagebuilder.ui import duration

POLL = 0.25  # seconds between two looks
_TERMINAL = 25  # lines of the serial line that count as standing there
_QUOTED = 8
_LOOSE = 4  # characters that a text needs to be found regardless of white space


class Where(StrEnum):
    """Where a text was found."""

    SCREEN = "screen"
    SERIAL = "serial line"


class Screen:
    """Reads a guest's screen again and again; what it learnt of its letters makes the next time quick."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._recognition = Recognition()

    def lines(self) -> list[str]:
        """Its rows from the top, padded with spaces; none for a machine without a screen. Raises GuestError."""
        try:
            shown = _look(self._monitor)
        except QmpError:
            return []  # there is no graphics device
        found = textmode.lines(self._monitor, shown) if textmode.is_text_mode(shown) else None
        return self._recognition.lines(shown) if found is None else found


def text(monitor: Monitor) -> list[str]:
    """The rows of the guest's screen, as `Screen.lines`."""
    return Screen(monitor).lines()


def screenshot(monitor: Monitor, path: Path) -> None:
    """Write what the screen shows as a PNG file. Raises GuestError when QEMU is gone or has no screen, StoreError."""
    image = _look(monitor).png()
    with process.temporary_path(path.with_name(f".{path.name}.new")) as new:
        try:
            with new.open("wb") as file:
                file.write(image)
                file.flush()
                os.fsync(file.fileno())
            new.replace(path)
        except OSError as error:
            raise StoreError(f"Can't write the screenshot '{path}': {error.strerror}") from error


def last_lines(serial_log: Path, count: int) -> list[str]:
    """The last lines of a serial log that are not blank; none when there is no log."""
    log = SerialLog(serial_log)
    log.read()
    return [line.rstrip() for line in log.text().splitlines() if line.strip()][-count:]


def wait_for_text(text: str, *, monitor: Monitor, serial_log: Path, timeout: float, check: Callable[[], None]) -> Where:
    """Wait until the text stands on the screen, or in the last lines of the serial line or what comes after them.

    `check` is called at each look and raises when waiting has become useless. Raises GuestError after `timeout`
    seconds, with what the guest showed instead.
    """
    screen, serial = Screen(monitor), SerialLog(serial_log)
    serial.read()
    serial.forget(_TERMINAL)
    end = time.monotonic() + timeout
    while True:
        check()
        serial.read()
        if stands_in(text, serial.text().splitlines()):
            return Where.SERIAL
        lines = screen.lines()
        if stands_in(text, lines):
            return Where.SCREEN
        if time.monotonic() >= end:
            raise GuestError(
                f"The guest did not show '{text}' within {duration(timeout)}. {_instead(lines, serial_log)}",
                hint='compare the text with what the guest shows, or give more time: <waitfor "text" 10m>',
            )
        time.sleep(min(POLL, max(0.0, end - time.monotonic())))


def stands_in(text: str, lines: Sequence[str]) -> bool:
    """Whether the lines show the text: in a line, broken at the right edge, or with other white space."""
    if any(text in line for line in lines) or text in "".join(lines):
        return True
    squeezed = "".join(text.split())
    return len(squeezed) >= _LOOSE and squeezed in "".join("".join(lines).split())


def _instead(lines: Sequence[str], serial_log: Path) -> str:
    shown = list(_block("Its screen shows", [line.rstrip() for line in lines if line.strip()]))
    serial = list(_block("Its serial line said", last_lines(serial_log, _QUOTED)))
    return "\n".join([*shown, *serial]) or "Its screen is empty, and so is its serial line."


def _block(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield f"{title}:"
        yield from (f"    {line}" for line in lines[-_QUOTED:])


def _look(monitor: Monitor) -> Picture:
    """A picture of the screen, through memory that has no name: an interrupt can leave no file behind."""
    with os.fdopen(os.memfd_create("screendump"), "rb") as file:
        monitor.execute("screendump", {"filename": f"/proc/{os.getpid()}/fd/{file.fileno()}"}, timeout=30)
        try:
            return picture.from_ppm(file.read())
        except ValueError as error:
            raise GuestError(f"QEMU gave no picture of the screen: {error}") from error
