"""Disk images, through qemu-img: create, overlay, inspect, resize, convert.

What an image says of itself is not trusted: its format is told by its first bytes, before qemu-img opens anything, and
an image that leads to files elsewhere is refused unless that is asked for (QEMU: docs/system/security, qcow2 format §
header). What is made appears complete, written through to the disk, or not at all.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from imagebuilder import process
from imagebuilder.errors import CommandError, ImgbuildError, StoreError
from imagebuilder.image.header import Header, read_header
from imagebuilder.process import Completed
from imagebuilder.ui import size as in_words
from imagebuilder.whole import whole

Compression = Literal["zstd", "zlib"]
Progress = Callable[[float], None]
"""Called with how far something is, in percent."""

_QUICK = 120.0  # seconds for what only reads or writes metadata
_LONG = 24 * 3600.0  # seconds for what copies a disk
_PERCENT = re.compile(r"\((\d+\.\d+)/100%\)")
_BEST_RATIO = 8  # no disk of an operating system compresses better; so much room is needed at the least


@dataclass(frozen=True)
class DiskInfo:
    """An image as it is; sizes in bytes, `actual_size` is what it takes on the host."""

    format: str
    virtual_size: int
    actual_size: int
    backing: Path | None = None
    compression: str = ""  # "zstd" or "zlib" where the format says what its compressed clusters use


def create(path: Path, size_bytes: int, format: str, extra_options: Sequence[str] = ()) -> None:
    """An empty image; `extra_options` are more arguments for `qemu-img create`."""
    with whole(path) as aside:
        _qemu_img(["create", "-q", "-f", format, *extra_options, aside, str(size_bytes)], _QUICK)


def overlay(
    path: Path, backing: Path, backing_format: str, size_bytes: int | None = None, *, relative: bool = False
) -> None:
    """A qcow2 that holds only what differs from `backing`, which is never written to.

    `relative`: the backing file is named as seen from the overlay, so that both can be moved together.
    """
    name = os.path.relpath(backing.absolute(), path.absolute().parent) if relative else str(backing.absolute())
    with whole(path) as aside:
        size = [str(size_bytes)] if size_bytes is not None else []
        _qemu_img(["create", "-q", "-f", "qcow2", "-b", name, "-F", backing_format, aside, *size], _QUICK)


def rebase(path: Path, backing: Path) -> None:
    """Let an overlay stand on a file further down its chain, named by its full path; what lay between goes into it."""
    format = _header(backing).format
    _qemu_img(["rebase", "-q", "-f", "qcow2", "-b", backing.absolute(), "-F", format, path], _LONG)
    _qemu_img(["rebase", "-q", "-u", "-f", "qcow2", "-b", backing.resolve(), "-F", format, path], _QUICK)


def info(path: Path, *, follow: bool = False) -> DiskInfo:
    """What an image is; the user's or a downloaded one as well.

    An image that names a backing or data file outside its own directory is refused: it could bring any file of this
    machine into the guest. `follow`: the caller knows the image and takes it. Raises ImgbuildError.
    """
    header = _header(path)
    if header.descriptor:
        _refuse(path, "the extents its text names")
    if not follow:
        _refuse_strangers(path, header.references)
    done = _qemu_img(["info", "-U", "-f", header.format, "--output=json", path.absolute()], _QUICK)
    facts = json.loads(done.stdout)
    if facts.get("backing-filename") and not follow:  # also of formats whose header we don't read that far
        _refuse_strangers(path, [facts["backing-filename"]])
    details: dict[str, Any] = facts.get("format-specific", {}).get("data", {})
    backing = facts.get("full-backing-filename") or facts.get("backing-filename")
    return DiskInfo(
        format=facts["format"], virtual_size=facts["virtual-size"], actual_size=facts["actual-size"],
        backing=Path(backing) if backing else None, compression=details.get("compression-type", ""),
    )  # fmt: skip


def is_compressed(path: Path) -> bool:
    """Whether a qcow2 has compressed clusters."""
    done = _qemu_img(["check", "-U", "-f", "qcow2", "--output=json", path.absolute()], _QUICK, check=False)
    return bool(json.loads(done.stdout).get("compressed-clusters", 0))


def resize(path: Path, size_bytes: int, format: str, extra_options: Sequence[str] = ()) -> None:
    """Grow an image. Raises ImgbuildError when that would cut something off."""
    present = info(path, follow=True).virtual_size
    if size_bytes < present:
        raise ImgbuildError(
            f"'{path.name}' has {in_words(present)} and can't be shrunk to {in_words(size_bytes)}",
            hint=f"ask for at least {in_words(present)}",
        )
    _qemu_img(["resize", "-q", "-f", format, *extra_options, path, str(size_bytes)], _QUICK)


def convert(
    source: Path,
    source_format: str,
    target: Path,
    *,
    format: str,
    compression: Compression | None = None,
    progress: Progress = lambda _: None,
    extra: Sequence[str] = (),
) -> None:
    """Copy a disk into another format, without what is empty in it. `target` appears when all is on the disk.

    Compressed clusters keep qcow2's 64 KiB: docs/decisions/0004-export-format.md. `extra` are more arguments for
    `qemu-img convert`. Raises StoreError when there is no room, CommandError.
    """
    check_space(source, source_format, target, compression=compression)
    unordered = ["-W"] if format in ("qcow2", "raw") else []  # other formats are laid out in the order of writing
    compressed = ["-c", "-o", f"compression_type={compression}"] if compression else []
    arguments = ["convert", "-p", "-m", "16", *unordered, "-f", source_format, "-O", format, *compressed, *extra]

    def follow(line: str) -> None:
        if found := _PERCENT.search(line):
            progress(float(found.group(1)))

    with whole(target) as aside:
        try:
            _qemu_img([*arguments, source.absolute(), aside], _LONG, follow)
        except CommandError as error:
            raise _explained(error, target) from error


def check_space(source: Path, source_format: str, target: Path, *, compression: Compression | None = None) -> None:
    """Raise StoreError when a conversion can't fit on the target's file system, and say how much is missing."""
    needed = _measured(source, source_format) // (_BEST_RATIO if compression else 1)
    where = next(path for path in target.absolute().parents if path.exists())
    free = shutil.disk_usage(where).free
    if needed > free:
        raise StoreError(
            f"'{where}' has {in_words(free)} free, and the image needs about {in_words(needed)}",
            hint=f"make room for {in_words(needed - free)} more, or choose another directory",
        )


def version() -> str:
    """QEMU's version as qemu-img tells it, such as '7.2.22'."""
    found = re.search(r"version (\S+)", _qemu_img(["--version"], _QUICK).stdout)
    return found.group(1) if found else ""


def _qemu_img(
    arguments: Sequence[str | Path], timeout: float, on_line: Callable[[str], None] | None = None, check: bool = True
) -> Completed:
    program = process.find("qemu-img", package="qemu-utils")
    return process.run([program, *arguments], timeout=timeout, on_line=on_line, check=check)


def _header(path: Path) -> Header:
    try:
        return read_header(path)
    except OSError as error:
        raise StoreError(f"can't read the image '{path}': {error.strerror}") from error
    except ValueError as error:
        raise ImgbuildError(f"'{path}' is a damaged image: {error}") from error


def _refuse_strangers(path: Path, references: Sequence[str]) -> None:
    home = path.resolve().parent
    for name in references:
        if ":" in name or not (home / name).resolve().is_relative_to(home):  # a colon: 'json:', 'nbd:' and their like
            _refuse(path, f"'{name}'")


def _refuse(path: Path, name: str) -> None:
    raise ImgbuildError(
        f"the image '{path}' is not whole: it leads to {name}, outside its directory",
        hint="if you trust it, flatten it: qemu-img convert -O qcow2 IMAGE WHOLE.qcow2",
    )


def _measured(source: Path, source_format: str) -> int:
    """Bytes that a sparse copy takes when nothing is compressed."""
    done = _qemu_img(["measure", "-U", "--output=json", "-f", source_format, "-O", "qcow2", source.absolute()], _QUICK)
    return int(json.loads(done.stdout)["required"])


def _explained(error: CommandError, target: Path) -> ImgbuildError:
    if "No space left" not in error.output:
        return error
    free = shutil.disk_usage(target.absolute().parent).free
    return StoreError(
        f"'{target.absolute().parent}' became full while '{target.name}' was written ({in_words(free)} free now)",
        hint="make room, or choose another directory",
    )
