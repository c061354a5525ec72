"""The VGA's text screen: which part of its memory is shown is told by the picture."""

from __future__ import annotations

import re
from typing import Any

import pytest

from imagebuilder.console import textmode
from imagebuilder.console.picture import Picture

LINES = [f"line {number:3d} " + chr(33 + number % 90) * (number % 60) for number in range(204)]


class Memory:
    """A monitor that shows 32 KiB of text at 0xb8000."""

    def __init__(self, lines: list[str]) -> None:
        text = "".join(line.ljust(80) for line in lines).ljust(0x4000)
        self.content = bytes(byte for code in text.encode("cp437") for byte in (code, 7))
        self.asked: list[str] = []

    def execute(self, command: str, arguments: Any = None, timeout: float = 10) -> Any:
        raise AssertionError

    def hmp(self, line: str) -> str:
        self.asked.append(line)
        found = re.fullmatch(r"xp /(\d+)bx 0x([0-9a-f]+)", line)
        assert found is not None
        start, count = int(found[2], 16) - 0xB8000, int(found[1])
        rows = range(start, start + count, 8)
        return "".join(
            f"{0xB8000 + row:016x}: "
            + " ".join(f"0x{byte:02x}" for byte in self.content[row : min(row + 8, start + count)])
            + "\n"
            for row in rows
        )


def shown(lines: list[str], rows: int = 25, width: int = 9, cursor: int | None = None) -> Picture:
    """A picture in which each character has a look of its own."""
    height = 400 // rows
    picture = bytearray()
    for line in [*lines, *[""] * rows][:rows]:
        row = b"".join(bytes([ord(letter), 0, 0]) * width for letter in line.ljust(80))
        picture += row * height
    if cursor is not None:
        picture[cursor * 3 : cursor * 3 + 3] = b"\xff\xff\xff"
    return Picture(80 * width, 400, bytes(picture))


@pytest.mark.parametrize("start", [0, 1, 37, 179])
@pytest.mark.parametrize("width", [8, 9])
def test_the_window_is_found(start: int, width: int) -> None:
    memory = Memory(LINES)
    picture = shown(LINES[start : start + 25], width=width, cursor=5)
    assert textmode.is_text_mode(picture)
    found = textmode.lines(memory, picture)
    assert found == [line.ljust(80) for line in LINES[start : start + 25]]
    assert len(memory.asked) == (1 if start == 0 else 2)


def test_fifty_rows() -> None:
    assert textmode.lines(Memory(LINES), shown(LINES[:50], rows=50)) == [line.ljust(80) for line in LINES[:50]]


def test_a_picture_of_something_else() -> None:
    assert textmode.lines(Memory(LINES), shown([line[::-1] + "#" for line in LINES])) is None
    assert not textmode.is_text_mode(Picture(1024, 768, b""))
