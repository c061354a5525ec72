"""The VGA's text mode: characters in guest memory at 0xB8000, two bytes each, of which a screen shows a window.

Which part of the 32 KiB is shown stands in registers that can't be read without disturbing the guest (CRTC start
address; Linux scrolls by it). So the picture decides: equal cells in memory must look equal in it.
"""

from __future__ import annotations

from collections.abc import Iterator

from imagebuilder.glyphs import CP437
from imagebuilder.keypace import Monitor, memory
from imagebuilder.picture import Picture

COLUMNS = 80
_MEMORY, _SIZE = 0xB8000, 0x8000
_ROW = COLUMNS * 2  # bytes
_CURSOR = 4  # cells that may look different: the cursor, and what changed between two looks


def is_text_mode(picture: Picture) -> bool:
    """Whether a screen of that size is in text mode: 80 columns of 9 (or 8) by 16 pixels, 25 rows (or 50 of half)."""
    return (picture.width, picture.height) in ((720, 400), (640, 400))


def lines(monitor: Monitor, picture: Picture) -> list[str] | None:
    """The rows of the screen, each 80 characters; None when memory and picture don't go together."""
    first = memory(monitor, _MEMORY, 50 * _ROW)
    for rows in (25, 50):
        if _fits(first[: rows * _ROW], picture, rows):
            return list(_rows(first[: rows * _ROW]))
    everything = memory(monitor, _MEMORY, _SIZE)
    for rows in (25, 50):
        for start in range(_ROW, _SIZE - rows * _ROW + 1, _ROW):
            window = everything[start : start + rows * _ROW]
            if _fits(window, picture, rows):
                return list(_rows(window))
    return None


def _fits(window: bytes, picture: Picture, rows: int) -> bool:
    """Whether cells with the same character and attribute look the same everywhere in the picture."""
    width, height = picture.width // COLUMNS, picture.height // rows
    looks: dict[bytes, bytes] = {}
    different = 0
    for row in range(rows):
        for column in range(COLUMNS):
            place = row * _ROW + column * 2
            look = picture.cell(column * width, row * height, width, height)
            if looks.setdefault(window[place : place + 2], look) != look:
                different += 1
                if different > _CURSOR:
                    return False
    return True


def _rows(window: bytes) -> Iterator[str]:
    for start in range(0, len(window), _ROW):
        yield "".join(CP437[code] for code in window[start : start + _ROW : 2])
