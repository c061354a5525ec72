"""Pictures of a screen: read from PPM, written as PNG."""

from __future__ import annotations

import struct
import zlib

import pytest

from imagebuilder.console.picture import Picture, from_ppm

RED_BLUE = Picture(2, 2, b"\xff\0\0\0\0\xff\0\0\0\xff\xff\xff")


def test_ppm() -> None:
    assert from_ppm(b"P6\n2 2\n255\n" + RED_BLUE.pixels) == RED_BLUE


@pytest.mark.parametrize(
    "content", [b"", b"P5\n2 2\n255\n....", b"P6\n2 2\n255\n" + bytes(11), b"P6\n2 2\n65535\n" + bytes(24)]
)
def test_what_is_no_picture(content: bytes) -> None:
    with pytest.raises(ValueError, match="PPM"):
        from_ppm(content)


def test_a_cell() -> None:
    picture = Picture(4, 3, bytes(range(36)))
    assert picture.cell(1, 1, 2, 2) == bytes([*range(15, 21), *range(27, 33)])


def test_png_is_well_formed() -> None:
    content = RED_BLUE.png()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    chunks, position = [], 8
    while position < len(content):
        size, kind = struct.unpack_from(">I4s", content, position)
        body = content[position + 8 : position + 8 + size]
        assert zlib.crc32(kind + body) == struct.unpack_from(">I", content, position + 8 + size)[0]
        chunks.append((kind, body))
        position += 12 + size
    assert [kind for kind, _ in chunks] == [b"IHDR", b"IDAT", b"IEND"]
    assert chunks[0][1] == struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0)
    assert zlib.decompress(chunks[1][1]) == b"\0" + RED_BLUE.pixels[:6] + b"\0" + RED_BLUE.pixels[6:]
