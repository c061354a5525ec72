"""A 1.44 MB floppy image without host tools: FAT12 with long file names.

The layout is that of the "Microsoft FAT Specification" (2005): boot sector, two FATs, a root directory of 224 entries
and 2847 clusters of one sector each.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from imagebuilder.errors import TemplateError
from imagebuilder.ui import size as shown_size
from imagebuilder.whole import whole

_SECTOR = 512
_SECTORS = 2880
_FAT_SECTORS, _FATS = 9, 2
_ROOT_ENTRIES = 224
_FIRST_DATA = 1 + _FATS * _FAT_SECTORS + _ROOT_ENTRIES * 32 // _SECTOR
_CLUSTERS = _SECTORS - _FIRST_DATA
_END_OF_CHAIN = 0xFFF
_ARCHIVE, _DIRECTORY, _LABEL, _LONG_NAME = 0x20, 0x10, 0x08, 0x0F
_DATE = (0, (1 << 5) | 1)  # time and date, 1980-01-01: the same content gives the same image
_SHORT = r"[A-Z0-9!#$%&'()\-@^_`{}~]"
_FORBIDDEN = re.compile(r'[\x00-\x1f"*/:<>?\\|]')


def write_floppy(path: Path, files: Mapping[str, bytes | Path], label: str = "packer") -> None:
    """Make an image of `files` (path on it -> content or file; a path ending in '/' is an empty directory).

    Appears complete or not at all. Raises TemplateError (label or name not allowed, too much data), StoreError.
    """
    volume = _volume_name(label)
    _check_size(sum(len(data) if isinstance(data, bytes) else data.stat().st_size for data in files.values()))
    with whole(path) as aside:
        aside.write_bytes(_image(_tree(files), volume))


def _volume_name(label: str) -> bytes:
    if len(label) > 11 or not re.fullmatch(r"[A-Za-z0-9 !#$%&'()\-@^_`{}~]*", label):
        raise TemplateError(f"the label '{label}' can't be a floppy's: at most 11 letters, digits, '-', '_' and blanks")
    return label.upper().encode().ljust(11)


@dataclass
class _Node:
    """A file or directory, and the clusters it has been given."""

    content: bytes = b""
    children: dict[str, _Node] | None = None  # None: a file
    above: _Node | None = None  # None: the root
    clusters: list[int] = field(default_factory=list)

    @property
    def first(self) -> int:
        return self.clusters[0] if self.clusters else 0


def _tree(files: Mapping[str, bytes | Path]) -> _Node:
    root = _Node(children={})
    for name in sorted(files):
        *folders, last = name.strip("/").split("/") + ([""] if name.endswith("/") else [])
        node = root
        for folder in folders:
            assert node.children is not None
            node = node.children.setdefault(_allowed(folder, name), _Node(children={}, above=node))
            if node.children is None:
                raise TemplateError(f"'{name}' can't be on a floppy: '{folder}' would be both a file and a directory")
        if last:
            content = files[name]
            assert node.children is not None
            _allowed(last, name)
            node.children[last] = _Node(content if isinstance(content, bytes) else content.read_bytes())
    _check_case(root)
    return root


def _allowed(name: str, path: str) -> str:
    units = len(name.encode("utf-16-le", "replace")) // 2
    if _FORBIDDEN.search(name) or name in ("", ".", "..") or name != name.rstrip(". ") or units > 255:
        raise TemplateError(f"'{path}' can't be on a floppy: '{name}' is not a name that FAT allows")
    return name


def _check_case(node: _Node) -> None:
    seen: dict[str, str] = {}
    for name, child in (node.children or {}).items():
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise TemplateError(f"'{other}' and '{name}' can't both be on a floppy: FAT takes them for the same name")
        _check_case(child)


def _image(root: _Node, label: bytes) -> bytes:
    """The whole disk: clusters are handed out in order, so that chains are contiguous."""
    nodes = _below(root)
    _check_size(sum(map(_clusters, nodes)) * _SECTOR)
    fat = [0xFF0, _END_OF_CHAIN] + [0] * _CLUSTERS
    free = 2
    for node in nodes:
        count = _clusters(node)
        node.clusters = list(range(free, free + count))
        for cluster in node.clusters:
            fat[cluster] = cluster + 1
        if count:
            fat[free + count - 1] = _END_OF_CHAIN
        free += count
    table = _packed(fat)
    directory = _entry(label, _LABEL, 0, 0) + _entries(root)
    if len(directory) > _ROOT_ENTRIES * 32:
        raise TemplateError(
            f"{len(root.children or {})} files are too many for the top of a floppy ({_ROOT_ENTRIES} entries, and "
            "a long name takes several)",
            hint="put them into a directory, or use cd_files",
        )
    data = b"".join(_padded(_body(node)) for node in nodes)
    image = table * _FATS + directory.ljust(_ROOT_ENTRIES * 32, b"\0") + data
    return (_boot_sector(label, zlib.crc32(image)) + image).ljust(_SECTORS * _SECTOR, b"\0")


def _below(node: _Node) -> list[_Node]:
    """Everything below, each directory before what is in it."""
    return [entry for child in (node.children or {}).values() for entry in (child, *_below(child))]


def _clusters(node: _Node) -> int:
    length = len(node.content) if node.children is None else len(_entries(node)) + 64
    return -(-length // _SECTOR)


def _check_size(needed: int) -> None:
    room = _CLUSTERS * _SECTOR
    if needed > room:
        raise TemplateError(
            f"the files for the floppy need {shown_size(needed)}, and {shown_size(room)} fit on it",
            hint="use cd_files: a CD takes any size",
        )


def _boot_sector(label: bytes, serial: int) -> bytes:
    parameters = struct.pack(
        "<HBHBHHBHHHLLBBBL",
        _SECTOR, 1, 1, _FATS, _ROOT_ENTRIES, _SECTORS, 0xF0, _FAT_SECTORS, 18, 2, 0, 0, 0, 0, 0x29, serial,
    )  # fmt: skip
    head = b"\xeb\x3c\x90" + b"MSDOS5.0" + parameters + label + b"FAT12   "
    code = b"\xcd\x18\xf4\xeb\xfd"  # int 18h (try the next boot device); hlt; again
    return (head + code).ljust(510, b"\0") + b"\x55\xaa"


def _packed(fat: list[int]) -> bytes:
    """Two 12-bit entries in three bytes."""
    pairs = zip(fat[::2], [*fat[1::2], 0], strict=False)
    table = b"".join(struct.pack("<L", one | other << 12)[:3] for one, other in pairs)
    return table.ljust(_FAT_SECTORS * _SECTOR, b"\0")


def _padded(body: bytes) -> bytes:
    return body + b"\0" * (-len(body) % _SECTOR)


def _body(node: _Node) -> bytes:
    """What stands in a node's clusters; the root directory counts as cluster 0."""
    if node.children is None:
        return node.content
    above = node.above.first if node.above else 0
    dots = _entry(b".".ljust(11), _DIRECTORY, node.first, 0) + _entry(b"..".ljust(11), _DIRECTORY, above, 0)
    return dots + _entries(node)


def _entries(node: _Node) -> bytes:
    """The directory's entries: each name's long form, last part first, then the short one."""
    listing, used = b"", set[bytes]()
    for name, child in (node.children or {}).items():
        short = _short(name, used)
        used.add(short)
        kind = _ARCHIVE if child.children is None else _DIRECTORY
        listing += _long(name, short) + _entry(short, kind, child.first, len(child.content))
    return listing


def _entry(name: bytes, kind: int, cluster: int, length: int) -> bytes:
    time, date = _DATE
    return struct.pack("<11sBBBHHHHHHHL", name, kind, 0, 0, time, date, date, 0, time, date, cluster, length)


def _short(name: str, used: set[bytes]) -> bytes:
    """The 8.3 name; one that had to be changed, or is taken, ends in ~1, ~2 ..."""
    stem, _, extension = name.rpartition(".") if "." in name.strip(".") else (name, "", "")
    plain = "".join(re.findall(_SHORT, re.sub(r"[^\x21-\x7e]|[+,;=\[\]]", "_", stem.replace(".", "")).upper()))
    suffix = "".join(re.findall(_SHORT, re.sub(r"[^\x21-\x7e]|[+,;=\[\]]", "_", extension).upper()))[:3]
    whole = f"{plain}.{suffix}" if suffix else plain
    candidate, number = plain[:8].ljust(8) + suffix.ljust(3), 0
    while whole.upper() != name.upper() or len(plain) > 8 or candidate.encode() in used:
        number += 1
        mark = f"~{number}"
        candidate = (plain[: 8 - len(mark)] + mark).ljust(8) + suffix.ljust(3)
        if candidate.encode() not in used:
            break
    return candidate.encode()


def _long(name: str, short: bytes) -> bytes:
    """The long name's entries (none for a name that is its own short form); 13 UTF-16 units in each."""
    stem, suffix = short[:8].decode().rstrip(), short[8:].decode().rstrip()
    if name == (f"{stem}.{suffix}" if suffix else stem):
        return b""
    checksum = 0
    for byte in short:
        checksum = ((checksum >> 1) + ((checksum & 1) << 7) + byte) & 0xFF
    units = name.encode("utf-16-le")
    parts = [units[start : start + 26] for start in range(0, len(units), 26)]
    if len(parts[-1]) < 26:
        parts[-1] = (parts[-1] + b"\0\0").ljust(26, b"\xff")
    listing = b""
    for order, part in reversed(list(enumerate(parts, 1))):
        number = order | 0x40 if order == len(parts) else order
        listing += struct.pack("<B10sBBB12sH4s", number, part[:10], _LONG_NAME, 0, checksum, part[10:22], 0, part[22:])
    return listing
