"""The first bytes of a disk image: its format, and the files it leads to; read without opening any of those.

Formats: qcow2 and QED (QEMU docs/interop), VMDK (VMware Virtual Disk Format 1.1), VHD and VHDX (Microsoft), VDI. What
none of them claims is raw.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MAGICS = (
    (0, b"QFI\xfb", "qcow2"),
    (0, b"QED\0", "qed"),
    (0, b"KDMV", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vpc"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
)
_DESCRIPTOR = b"# Disk DescriptorFile"
_END, _DATA_FILE = 0, 0x44415441  # types of qcow2 header extensions
_LONGEST_NAME = 1023  # bytes, of a backing file's name in qcow2


@dataclass(frozen=True)
class Header:
    """What a file claims to be. `descriptor`: a VMDK that is only a text naming other files."""

    format: str
    references: tuple[str, ...] = ()  # backing and data files, as named
    descriptor: bool = False


def read_header(path: Path) -> Header:
    """Read the header. Raises OSError; ValueError when it contradicts itself."""
    with path.open("rb") as file:
        start = file.read(1 << 20)
    if start.lstrip().startswith(_DESCRIPTOR):
        return Header("vmdk", descriptor=True)
    for offset, magic, format in _MAGICS:
        if start[offset : offset + len(magic)] == magic:
            return Header(format, tuple(_qcow2_references(start)) if format == "qcow2" else ())
    return Header("raw")


def _qcow2_references(start: bytes) -> Iterator[str]:
    if len(start) < 72:
        raise ValueError("its header is cut off")
    version, backing, length = struct.unpack_from(">IQI", start, 4)
    if backing:
        if length > _LONGEST_NAME or backing + length > len(start):
            raise ValueError("the name of its backing file lies outside its header")
        yield start[backing : backing + length].decode(errors="surrogateescape")
    yield from _data_files(start, _extensions_begin(start, version))


def _extensions_begin(start: bytes, version: int) -> int:
    if version < 3:
        return 72
    if len(start) < 104:
        raise ValueError("its header is cut off")
    length: int = struct.unpack_from(">I", start, 100)[0]
    return length


def _data_files(start: bytes, position: int) -> Iterator[str]:
    while position + 8 <= len(start):
        sort, length = struct.unpack_from(">II", start, position)
        if sort == _END:
            return
        if sort == _DATA_FILE:
            yield start[position + 8 : position + 8 + length].decode(errors="surrogateescape")
        position += 8 + (length + 7) // 8 * 8
