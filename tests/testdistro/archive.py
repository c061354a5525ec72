"""Trees of files as what boots: an initial RAM file system (cpio, newc), a tar, an ISO 9660 image with El Torito.

Everything belongs to root in them, whoever made them.
"""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pycdlib


def cpio(tree: Path, target: Path) -> None:
    """Write the tree in the format of the kernel's Documentation/driver-api/early-userspace/buffer-format.rst."""
    with target.open("wb") as file:
        for number, path in enumerate(_walk(tree), 1):
            name = os.fspath(path.relative_to(tree))
            file.write(_entry(number, name, path.lstat().st_mode, _content(path)))
        file.write(_entry(0, "TRAILER!!!", 0, b""))


def _entry(inode: int, name: str, mode: int, content: bytes) -> bytes:
    links = 2 if stat.S_ISDIR(mode) else 1
    path = name.encode() + b"\0"
    fields = (inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(path), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + path
    return _padded(head) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def _content(path: Path) -> bytes:
    if path.is_symlink():
        return os.fsencode(path.readlink())
    return path.read_bytes() if path.is_file() else b""


def _walk(tree: Path) -> Iterator[Path]:
    """Every path, folders before what is in them."""
    for path in sorted(tree.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def tar(tree: Path, target: Path) -> None:
    """Write the tree as .tar.gz, quick rather than small."""

    def owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        return member

    with gzip.open(target, "wb", compresslevel=1) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        archive.add(tree, ".", filter=owned_by_root)


def iso(tree: Path, target: Path, *, label: str) -> None:
    """Write the tree as an ISO that BIOS boots from isolinux/isolinux.bin and UEFI from images/efiboot.img."""
    image = pycdlib.PyCdlib()
    image.new(interchange_level=3, vol_ident=label, rock_ridge="1.09", joliet=3)
    for path in _walk(tree):
        name = path.relative_to(tree)
        if path.is_dir():
            image.add_directory(_iso_path(name), rr_name=name.name, joliet_path=f"/{name}")
        else:
            image.add_file(os.fspath(path), f"{_iso_path(name)};1", rr_name=name.name, joliet_path=f"/{name}")
    image.add_eltorito(
        "/ISOLINUX/ISOLINUX.BIN;1", bootcatfile="/ISOLINUX/BOOT.CAT;1", rr_bootcatname="boot.cat",
        joliet_bootcatfile="/isolinux/boot.cat", boot_load_size=4, boot_info_table=True,
    )  # fmt: skip
    image.add_eltorito("/IMAGES/EFIBOOT.IMG;1", efi=True)
    image.write(os.fspath(target))
    image.close()


def _iso_path(name: Path) -> str:
    """ISO 9660 knows capitals, digits and underscores, and a dot before a file's extension."""
    parts = [part.upper().replace("-", "_") for part in name.parts]
    if parts[-1].startswith("."):
        parts[-1] = "_" + parts[-1][1:]
    return "/" + "/".join(parts)
