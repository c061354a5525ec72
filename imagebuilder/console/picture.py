"""A picture of the guest's screen: read from QEMU's `screendump` (PPM, netpbm ppm(5)), written as PNG (RFC 2083)."""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

_HEADER = re.compile(rb"P6\s+(\d+)\s+(\d+)\s+255\s")


@dataclass(frozen=True)
class Picture:
    """Pixels in rows from the top, three bytes (red, green, blue) each."""

    width: int
    height: int
    pixels: bytes

    def cell(self, x: int, y: int, width: int, height: int) -> bytes:
        """The pixels of a rectangle that lies within the picture."""
        row, first = self.width * 3, y * self.width * 3 + x * 3
        return b"".join(self.pixels[start : start + width * 3] for start in range(first, first + row * height, row))

    def png(self) -> bytes:
        """The picture as a PNG file."""
        row = self.width * 3
        lines = (b"\0" + self.pixels[start : start + row] for start in range(0, len(self.pixels), row))
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            _chunk(kind, content)
            for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(lines))), (b"IEND", b""))
        )


def from_ppm(content: bytes) -> Picture:
    """The picture in a binary PPM file with one byte a colour; ValueError for anything else."""
    header = _HEADER.match(content)
    if header is None:
        raise ValueError("no binary PPM picture")
    width, height = int(header.group(1)), int(header.group(2))
    pixels = content[header.end() :]
    if len(pixels) != width * height * 3:
        raise ValueError(f"a PPM picture of {width} x {height} with {len(pixels)} bytes of pixels")
    return Picture(width, height, pixels)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
