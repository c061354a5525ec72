"""Reads text off a picture by comparing cells of 8 by 16 pixels with the glyphs of known fonts.

Consoles in graphics modes (Linux's framebuffer console, GRUB's gfxterm, the menus of SYSLINUX) draw the glyphs of the
VGA's ROM font or of GNU Unifont. Neither ships with us: they are taken from the host's VGA BIOS and GRUB at run time.
"""

from __future__ import annotations

import functools
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from imagebuilder.console.picture import Picture

WIDTH, HEIGHT = 8, 16  # pixels of a cell
NEAR = 4  # pixels of 128 that may differ: fonts made after the ROM's changed that much in some glyphs
_SAMPLE = 160
_LETTERS = 4  # different ones that are needed to believe that there is text
_PAUSE = 5.0  # seconds after a search in vain: moving pictures would keep a processor busy
_CONTRAST = 100  # of 765: the least difference in light between ink and ground in a picture

Font = Mapping[int, str]
"""Glyph -> character; a glyph is a number of 128 bits, the topmost row first, the leftmost pixel highest."""

_A = bytes.fromhex("000010386cc6c6fec6c6c6c600000000")  # the ROM's "A", by which the table is found
_ROMS = ("vgabios-stdvga.bin", "vgabios.bin", "vgabios-cirrus.bin", "vgabios-virtio.bin", "vgabios-qxl.bin")
_ROM_DIRECTORIES = (
    "/usr/share/seabios", "/usr/share/qemu", "/usr/share/qemu-kvm", "/usr/share/vgabios", "/usr/share/seavgabios",
    "/usr/local/share/qemu", "/opt/homebrew/share/qemu",
)  # fmt: skip
_GRUB_FONTS = ("/usr/share/grub/unicode.pf2", "/usr/share/grub2/unicode.pf2", "/boot/grub/fonts/unicode.pf2")

# Where Linux's console font (lib/fonts/font_8x16.c) is further from the ROM's than that; seen on a screen of Linux 6.1.
_LINUX = {
    "0": 0x0000386CC6C6D6D6C6C66C3800000000, "M": 0x0000C6EEFEFED6C6C6C6C6C600000000,
    "T": 0x00007E7E5A1818181818183C00000000, "V": 0x0000C6C6C6C6C6C6C66C381000000000,
    "W": 0x0000C6C6C6C6D6D6D6FEEE6C00000000, "X": 0x0000C6C66C7C38387C6CC6C600000000,
    "Y": 0x0000666666663C181818183C00000000, "Z": 0x0000FEC6860C183060C2C6FE00000000,
    "f": 0x00001C36323078303030307800000000, "m": 0x0000000000ECFED6D6D6D6C600000000,
    "v": 0x0000000000C6C6C6C6C66C3800000000, "w": 0x0000000000C6C6D6D6D6FE6C00000000,
    "x": 0x0000000000C66C3838386CC600000000, "~": 0x0076DC00000000000000000000000000,
}  # fmt: skip

# Code page 437 as the VGA shows it: Python's codec has control characters in the first 32 places.
CP437 = (
    " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼" + bytes(range(32, 127)).decode() + "⌂" + bytes(range(128, 256)).decode("cp437")
)
CP437 = CP437.replace("\xa0", " ")


@functools.cache
def fonts() -> Font:
    """The glyphs of every font found on this host."""
    found: dict[int, str] = {}
    for path in map(Path, _GRUB_FONTS):
        if path.is_file():
            found.update(grub_font(path.read_bytes()))
            break
    for path in (Path(directory) / name for directory in _ROM_DIRECTORIES for name in _ROMS):
        if path.is_file() and (rom := rom_font(path.read_bytes())):
            found.update(rom)
            break
    return found | {glyph: character for character, glyph in _LINUX.items()}


def rom_font(image: bytes) -> dict[int, str]:
    """The 8 by 16 font in a VGA BIOS; empty when there is none."""
    start = image.find(_A) - ord("A") * HEIGHT
    if start < 0 or start + 256 * HEIGHT > len(image):
        return {}
    rows = (image[start + code * HEIGHT : start + (code + 1) * HEIGHT] for code in range(256))
    # Later glyphs first, so that of equal ones (space and code 0, 255) the ASCII one stays.
    return {int.from_bytes(row, "big"): CP437[code] for code, row in reversed(list(enumerate(rows)))}


def grub_font(content: bytes) -> dict[int, str]:
    """The glyphs up to U+FFFF of a GRUB font (PF2, GRUB's developer manual) that fit a cell; empty for other files."""
    sections = dict(_sections(content))
    if b"CHIX" not in sections or b"ASCE" not in sections or content[:12] != b"FILE\0\0\0\4PFF2":
        return {}
    ascent = int.from_bytes(sections[b"ASCE"], "big")
    glyphs: dict[int, str] = {}
    for code, _, offset in struct.iter_unpack(">IBI", sections[b"CHIX"]):
        width, height, left, bottom = struct.unpack_from(">HHhh", content, offset)
        top = ascent - height - bottom
        if _console_character(code) and left >= 0 and top >= 0 and left + width <= WIDTH and top + height <= HEIGHT:
            size = (width * height + 7) // 8
            bits = int.from_bytes(content[offset + 10 : offset + 10 + size], "big") >> (size * 8 - width * height)
            glyphs.setdefault(_placed(bits, width, height, left, top), chr(code))
    return glyphs


def _console_character(code: int) -> bool:
    """Latin letters, arrows, lines and blocks; other scripts would only be mistaken for them."""
    return 0x20 <= code < 0x180 or 0x2190 <= code < 0x2194 or 0x2500 <= code < 0x2600


def _sections(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    position = 0
    while position + 8 <= len(content):
        name, size = content[position : position + 4], int.from_bytes(content[position + 4 : position + 8], "big")
        if name == b"DATA":
            return
        yield name, content[position + 8 : position + 8 + size]
        position += 8 + size


def _placed(bits: int, width: int, height: int, left: int, top: int) -> int:
    """A bitmap of that size at its place in a cell."""
    glyph = 0
    for row in range(height):
        line = bits >> (height - 1 - row) * width & (1 << width) - 1
        glyph |= line << (HEIGHT - 1 - top - row) * WIDTH + WIDTH - left - width
    return glyph


@dataclass
class Recognition:
    """Reads pictures; remembers every cell it has seen, and where the cells began."""

    font: Font = field(default_factory=fonts)
    _known: dict[bytes, str | None] = field(default_factory=dict)
    _origin: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    _last: tuple[Picture, list[str]] | None = None
    _next_search: float = 0.0

    def lines(self, picture: Picture) -> list[str]:
        """The lines of text in the picture, blank where there is anything else; none without a font."""
        if not self.font or picture.width < 2 * WIDTH or picture.height < 2 * HEIGHT:
            return []
        if self._last is None or self._last[0] != picture:
            self._last = (picture, self._lines(picture))
        return list(self._last[1])

    def _lines(self, picture: Picture) -> list[str]:
        if len(self._known) > 100_000:
            self._known.clear()
        size = (picture.width, picture.height)
        rows = self._read(picture, *self._origin.get(size, (0, 0)))
        if not _convincing(rows) and time.monotonic() >= self._next_search:
            origin = self._find_origin(picture)
            self._next_search = time.monotonic() + _PAUSE
            if origin is not None:
                self._origin[size], self._next_search = origin, 0.0
                rows = self._read(picture, *origin)
        return ["".join(cell or " " for cell in row) if _legible(row) else " " * len(row) for row in rows]

    def _read(self, picture: Picture, x: int, y: int) -> list[list[str | None]]:
        """What is in the rows of cells that begin at that pixel."""
        return [
            [
                self.character(picture.cell(left, top, WIDTH, HEIGHT))
                for left in range(x, picture.width - WIDTH + 1, WIDTH)
            ]
            for top in range(y, picture.height - HEIGHT + 1, HEIGHT)
        ]

    def character(self, cell: bytes) -> str | None:
        """The character in a cell; None for what is none."""
        if cell not in self._known:
            self._known[cell] = self._recognise(cell)
        return self._known[cell]

    def _recognise(self, cell: bytes) -> str | None:
        glyphs = _bitmaps(cell)
        if not glyphs:
            return " "
        for glyph in glyphs:
            if glyph in self.font:
                return self.font[glyph]
        distance, near = min(((glyph ^ known).bit_count(), known) for glyph in glyphs for known in self.font)
        return self.font[near] if distance <= NEAR else None

    def _find_origin(self, picture: Picture) -> tuple[int, int] | None:
        """Where in the first cell the cells begin: where a sample of cells shows most different letters."""
        inked = [
            (left, top)
            for top in range(0, picture.height - 2 * HEIGHT + 1, HEIGHT)
            for left in range(0, picture.width - 2 * WIDTH + 1, WIDTH)
            if _bitmaps(picture.cell(left, top, WIDTH, HEIGHT))
        ]
        sample = inked[:: len(inked) // _SAMPLE + 1]
        scores = {
            (x, y): len({self._letter(picture.cell(left + x, top + y, WIDTH, HEIGHT)) for left, top in sample})
            for y in range(HEIGHT)
            for x in range(WIDTH)
        }
        best = max(scores, key=lambda origin: scores[origin])
        return best if scores[best] > _LETTERS else None

    def _letter(self, cell: bytes) -> str | None:
        """The letter that a cell is exactly; lines and dots are found anywhere."""
        for glyph in _bitmaps(cell):
            if glyph in self.font and self.font[glyph].isalnum():
                return self.font[glyph]
        return None


def _convincing(rows: list[list[str | None]]) -> bool:
    """Whether most of what is not blank was recognised: the cells begin where we think."""
    unknown = sum(row.count(None) for row in rows)
    blank = sum(row.count(" ") for row in rows)
    return unknown * 3 <= sum(map(len, rows)) - blank


def _legible(row: list[str | None]) -> bool:
    """Whether a row is text, and no picture in which some cells look like letters."""
    return row.count(None) <= len(row) - row.count(None) - row.count(" ")


def _bitmaps(cell: bytes) -> list[int]:
    """What may be the glyph in a cell; none when it is empty.

    Ink of one colour on ground of another, or (over pictures, with shadows) what is much brighter or darker than most.
    """
    pixels = [cell[start : start + 3] for start in range(0, len(cell), 3)]
    colours = set(pixels)
    if len(colours) == 1:
        return []
    if len(colours) == 2:
        ink = min(colours, key=pixels.count)
        glyph = int("".join("1" if pixel == ink else "0" for pixel in pixels), 2)
        return [glyph, glyph ^ (1 << WIDTH * HEIGHT) - 1]
    light = [sum(pixel) for pixel in pixels]
    low, middle, high = min(light), sorted(light)[len(light) // 2], max(light)
    glyphs = []
    if high - middle >= _CONTRAST:
        glyphs.append(int("".join("1" if value * 2 > high + middle else "0" for value in light), 2))
    if middle - low >= _CONTRAST:
        glyphs.append(int("".join("1" if value * 2 < low + middle else "0" for value in light), 2))
    return glyphs
