"""What came over the serial line, as text: without escape sequences (ECMA-48), overwritten lines as they last were."""

from __future__ import annotations

import re
from pathlib import Path

_KEPT = 65536  # bytes
# A sequence that moves the cursor begins a new line: a menu's entries must not run together.
_MOVE = re.compile(r"\x1b\[[0-9;:?]*[ABEFHJdf]")
_SEQUENCE = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)|[ -/]+[0-~]|(?!\[)[0-~])|\x1b\[?[0-?]*$"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class SerialLog:
    """Follows a growing serial log; keeps the last 64 KiB of it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0
        self._recent = b""
        self._text: str | None = None

    def read(self) -> bool:
        """Take in what was added; whether there was anything."""
        try:
            with self._path.open("rb") as log:
                size = log.seek(0, 2)
                if size < self._position:  # begun anew
                    self._position, self._recent, self._text = 0, b"", None
                log.seek(max(self._position, size - _KEPT))
                added = log.read(_KEPT)
                self._position = log.tell()
        except OSError:
            return False
        if added:
            self._recent, self._text = (self._recent + added)[-_KEPT:], None
        return bool(added)

    def text(self) -> str:
        """The recent part as text."""
        if self._text is None:
            self._text = clean(self._recent)
        return self._text

    def forget(self, lines: int) -> None:
        """Drop all but the last lines: what stands on a terminal."""
        kept = b"\n".join(self._recent.split(b"\n")[-lines:])
        if kept != self._recent:
            self._recent, self._text = kept, None


def clean(content: bytes) -> str:
    """Bytes of a serial line as text of lines."""
    text = _MOVE.sub("\n", content.decode("utf-8", "replace"))
    text = _SEQUENCE.sub("", text)
    return "\n".join(_CONTROL.sub("", _as_it_was_left(line)) for line in text.split("\n"))


def _as_it_was_left(line: str) -> str:
    """A line after what was written over and taken back."""
    line = line.rstrip("\r").rpartition("\r")[2]
    if "\b" not in line:
        return line
    kept: list[str] = []
    for character in line:
        if character != "\b":
            kept.append(character)
        elif kept:
            kept.pop()
    return "".join(kept)
