"""The VGA's text mode: characters in guest memory at 0xB8000, two bytes each, of which a screen shows a window.

Which part of the 32 KiB is shown stands in registers that can't be read without disturbing the guest (CRTC start
address; Linux scrolls by it). So the picture decides: equal cells in memory must look equal in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from imagebuilder.console.glyphs import CP437
from imagebuilder.console.keypace import Monitor, memory
from imagebuilder.console.picture import Picture

COLUMNS = 80
_MEMORY, _SIZE = 0xB8000, 0x8000
_ROW = COLUMNS * 2  # bytes
_CURSOR = 4  # cells that may look different: the cursor, and what changed between two looks


def is_text_mode(picture: Picture) -> bool:
    """Whether a screen of that size is in text mode: 80 columns of 9 (or 8) by 16 pixels, 25 rows (or 50 of half)."""
    return (picture.width, picture.height) in ((720, 400), (640, 400))


def lines(monitor: Monitor, picture: Picture) -> list[str] | None:
    """The rows of the screen, each 80 characters; None when memory and picture don't go together."""
    looks = {rows: _looks(picture, rows) for rows in (25, 50)}
    first = memory(monitor, _MEMORY, 50 * _ROW)
    for rows in looks:
        if _fits(first[: rows * _ROW], looks[rows]):
            return list(_rows(first[: rows * _ROW]))
    everything = memory(monitor, _MEMORY, _SIZE)
    for rows in looks:
        for start in range(_ROW, _SIZE - rows * _ROW + 1, _ROW):
            window = everything[start : start + rows * _ROW]
            if _fits(window, looks[rows]):
                return list(_rows(window))
    return None


def _looks(picture: Picture, rows: int) -> list[int]:
    """A number for the look of each cell; equal ones look equal."""
    width, height = picture.width // COLUMNS, picture.height // rows
    numbers: dict[bytes, int] = {}
    return [
        numbers.setdefault(picture.cell(column * width, row * height, width, height), len(numbers))
        for row in range(rows)
        for column in range(COLUMNS)
    ]


def _fits(window: bytes, looks: Sequence[int]) -> bool:
    """Whether cells with the same character and attribute look the same, but for a few."""
    codes = zip(window[::2], window[1::2], strict=True)
    usual: dict[tuple[int, int], int] = {}
    for (code, _), count in Counter(zip(codes, looks, strict=True)).items():
        usual[code] = max(usual.get(code, 0), count)
    return len(looks) - sum(usual.values()) <= _CURSOR


def _rows(window: bytes) -> Iterator[str]:
    for start in range(0, len(window), _ROW):
        yield "".join(CP437[code] for code in window[start : start + _ROW : 2])
