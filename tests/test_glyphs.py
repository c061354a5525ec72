"""Text read off pictures that are drawn here with a font."""

from __future__ import annotations

import random
import struct

import pytest

from imagebuilder.console import glyphs
from imagebuilder.console.glyphs import HEIGHT, WIDTH, Recognition
from imagebuilder.console.picture import Picture

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.:/=_-"
TEXT = ["linux inst.ks=http://10.0.2.2:8000/ks.cfg", "", "Please choose an Entry", "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]


def made_up_font() -> dict[int, str]:
    """Glyphs with a margin as fonts have it, no two alike."""
    dice = random.Random(5)
    font = {0: " "}
    for letter in LETTERS:
        rows = [0, 0, *(dice.getrandbits(7) << 1 for _ in range(10)), 0, 0, 0, 0]
        font[int.from_bytes(bytes(rows), "big")] = letter
    return font


FONT = made_up_font()


def drawn(
    lines: list[str],
    x: int = 0,
    y: int = 0,
    ink: bytes = b"\xaa\xaa\xaa",
    ground: bytes = b"\0\0\0",
    size: tuple[int, int] = (640, 200),
) -> Picture:
    """A picture with these lines, whose first cell begins at that pixel."""
    width, height = size
    shapes = {letter: glyph for glyph, letter in FONT.items()}
    pixels = bytearray(ground * (width * height))
    for row, line in enumerate(lines):
        for column, letter in enumerate(line):
            for bit in range(WIDTH * HEIGHT):
                if shapes[letter] >> (WIDTH * HEIGHT - 1 - bit) & 1:
                    place = (y + row * HEIGHT + bit // WIDTH) * width + x + column * WIDTH + bit % WIDTH
                    pixels[place * 3 : place * 3 + 3] = ink
    return Picture(width, height, bytes(pixels))


def read(picture: Picture, recognition: Recognition | None = None) -> list[str]:
    lines = [line.strip() for line in (recognition or Recognition(FONT)).lines(picture)]
    while lines and not lines[-1]:
        lines.pop()
    return lines


@pytest.mark.parametrize(("x", "y"), [(0, 0), (2, 10), (7, 15), (8, 16)])
def test_text_anywhere(x: int, y: int) -> None:
    assert [line for line in read(drawn(TEXT, x, y)) if line] == [line for line in TEXT if line]


@pytest.mark.parametrize(
    ("ink", "ground"),
    [(b"\0\0\0", b"\xff\xff\xff"), (b"\xff\x55\x55", b"\0\0\xaa"), (b"\x01\0\0", b"\0\0\0")],
)
def test_any_pair_of_colours(ink: bytes, ground: bytes) -> None:
    assert read(drawn(TEXT, ink=ink, ground=ground)) == TEXT


def test_a_few_pixels_may_differ() -> None:
    picture = drawn(TEXT)
    pixels = bytearray(picture.pixels)
    pixels[(9 * 640 + 3) * 3 : (9 * 640 + 5) * 3] = b"\xaa\xaa\xaa\xaa\xaa\xaa"
    assert read(Picture(640, 200, bytes(pixels)))[2:] == TEXT[2:]
    assert read(Picture(640, 200, bytes(pixels)))[0][1:] == TEXT[0][1:]


def test_text_over_a_picture() -> None:
    picture = drawn(TEXT, ink=b"\xff\xff\xff", ground=b"\0\0\0")
    shaded = bytearray()
    for place in range(0, len(picture.pixels), 3):
        grey = 40 + place // 3 % 640 // 8
        shaded += picture.pixels[place : place + 3] if picture.pixels[place] else bytes([grey, grey, grey])
    assert read(Picture(640, 200, bytes(shaded))) == TEXT


def test_a_picture_without_text_is_blank() -> None:
    noise = random.Random(1).randbytes(640 * 200 * 3)
    assert read(Picture(640, 200, noise)) == []
    assert read(Picture(640, 200, bytes(640 * 200 * 3))) == []


def test_what_was_learnt_serves_the_next_picture() -> None:
    recognition = Recognition(FONT)
    assert read(drawn(TEXT, 3, 5), recognition) == TEXT
    assert read(drawn(TEXT[::-1], 3, 5), recognition)[:2] == TEXT[:1:-1]
    assert read(drawn(TEXT, 0, 0), recognition) == TEXT


def test_tiny_pictures_and_missing_fonts() -> None:
    assert Recognition(FONT).lines(Picture(8, 8, bytes(192))) == []
    assert Recognition({}).lines(drawn(TEXT)) == []


def test_rom_font_is_found_by_its_letter() -> None:
    table = bytearray(256 * HEIGHT)
    shape = bytes.fromhex("000010386cc6c6fec6c6c6c600000000")
    table[65 * HEIGHT : 66 * HEIGHT] = shape
    table[0xC4 * HEIGHT : 0xC5 * HEIGHT] = bytes(7) + b"\xff" + bytes(8)
    font = glyphs.rom_font(b"\x55\xaa junk" + bytes(table) + b"more")
    assert font[int.from_bytes(shape, "big")] == "A"
    assert font[0xFF << 64] == "─"
    assert font[0] == " "
    assert glyphs.rom_font(b"no font") == glyphs.rom_font(shape) == {}


def test_grub_font() -> None:
    rows = [0b0110, 0b1001, 0b1111, 0b1001]  # 4 by 4, its foot on the base line, 2 pixels from the left
    glyph = struct.pack(">HHhhh", 4, 4, 2, 0, 8) + bytes([rows[0] << 4 | rows[1], rows[2] << 4 | rows[3]])

    def section(name: bytes, body: bytes) -> bytes:
        return name + struct.pack(">I", len(body)) + body

    head = section(b"FILE", b"PFF2") + section(b"ASCE", struct.pack(">H", 14))
    offset = len(head) + 8 + 9 + 8
    content = head + section(b"CHIX", struct.pack(">IBI", ord("A"), 0, offset)) + b"DATA\xff\xff\xff\xff" + glyph
    wanted = bytes(10) + bytes(row << 2 for row in rows) + bytes(2)
    assert glyphs.grub_font(content) == {int.from_bytes(wanted, "big"): "A"}
    assert glyphs.grub_font(b"something else") == {}
