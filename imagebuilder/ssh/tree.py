"""Files and directories on their way into a guest or out of it: what every transfer method has in common.

A link that stays inside its directory travels as a link; one that leads out of it is followed, as scp does; one that
leads nowhere travels as it is. What comes out of a guest never lands outside of where it was sent to.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol

from imagebuilder.errors import GuestError

CHUNK = 32768
_DEEPEST = 8  # links within what links lead to; more is a circle


class Reader(Protocol):
    def read(self, count: int, /) -> bytes: ...


class Writer(Protocol):
    def write(self, data: bytes, /) -> object: ...


class Missing(Exception):
    """The guest doesn't have what this method needs."""


@dataclass(frozen=True)
class Entry:
    """Something below a directory of this machine. `name` is relative with '/'; `mode` are permission bits."""

    name: str
    kind: Literal["file", "directory", "link"]
    path: Path
    mode: int
    size: int = 0  # bytes
    modified: int = 0  # seconds since 1970
    target: str = ""  # of a link


class Transfer(Protocol):
    """One way to move files. Methods raise Missing, OSError, EOFError and paramiko's errors."""

    def put(self, source: Reader, size: int, destination: str, mode: int) -> None:
        """Write a file of the guest."""

    def get(self, source: str, target: Writer) -> None:
        """Read a file of the guest."""

    def put_tree(self, entries: Sequence[Entry], destination: str, meter: Meter) -> None:
        """Put everything into the directory `destination`, which is made with its parents."""

    def get_tree(self, source: str, receiver: Receiver) -> None:
        """Fetch everything that is in the directory `source`."""


class Meter:
    """Counts bytes that pass through what it wraps."""

    def __init__(self, update: Callable[[float], None]) -> None:
        self._update = update
        self.count = 0

    def passed(self, count: int) -> None:
        self.count += count
        self._update(self.count)

    def reader(self, file: Reader, seen: Callable[[bytes], None] | None = None) -> Reader:
        """The same file; `seen` gets what was read."""
        return _MeteredReader(file, self, seen)

    def writer(self, file: Writer) -> Writer:
        return _MeteredWriter(file, self)


class _MeteredReader:
    def __init__(self, file: Reader, meter: Meter, seen: Callable[[bytes], None] | None) -> None:
        self._file, self._meter, self._seen = file, meter, seen

    def read(self, count: int, /) -> bytes:
        data = self._file.read(count)
        self._meter.passed(len(data))
        if self._seen is not None:
            self._seen(data)
        return data


class _MeteredWriter:
    def __init__(self, file: Writer, meter: Meter) -> None:
        self._file, self._meter = file, meter

    def write(self, data: bytes, /) -> object:
        self._meter.passed(len(data))
        return self._file.write(data)


def entries(source: Path) -> list[Entry]:
    """Everything below a directory, directories before what is in them, sorted; sockets and devices are left out."""
    return list(_entries(source, source.resolve(), "", (source.resolve(),)))


def _entries(directory: Path, root: Path, prefix: str, above: tuple[Path, ...]) -> Iterator[Entry]:
    for path in sorted(directory.iterdir()):
        name = prefix + path.name
        if path.is_symlink() and _stays(path, root):
            yield Entry(name, "link", path, 0o777, target=os.fspath(path.readlink()))
            continue
        status = path.stat()
        common = (path, stat.S_IMODE(status.st_mode))
        if stat.S_ISREG(status.st_mode):
            yield Entry(name, "file", *common, size=status.st_size, modified=int(status.st_mtime))
        elif stat.S_ISDIR(status.st_mode):
            if path.resolve() in above:
                raise GuestError(f"'{path}' leads back to a directory that it is in")
            yield Entry(name, "directory", *common, modified=int(status.st_mtime))
            yield from _entries(path, root, f"{name}/", (*above, path.resolve()))


def _stays(link: Path, root: Path) -> bool:
    """Whether a link is to be kept: it is relative and leads to something in the tree, or leads nowhere."""
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):
        return True
    return not link.readlink().is_absolute() and target.is_relative_to(root)


def followed(listed: Iterable[Entry], depth: int = 0) -> Iterator[Entry]:
    """The same with what links lead to in place of the links; those that lead nowhere are left out."""
    for entry in listed:
        if entry.kind != "link":
            yield entry
        elif depth > _DEEPEST:
            raise GuestError(f"'{entry.path}' leads back to a directory that it is in")
        elif entry.path.is_file():
            status = entry.path.stat()
            yield replace(entry, kind="file", mode=stat.S_IMODE(status.st_mode), size=status.st_size)
        elif entry.path.is_dir():
            yield replace(entry, kind="directory", mode=stat.S_IMODE(entry.path.stat().st_mode))
            for inner in followed(entries(entry.path), depth + 1):
                yield replace(inner, name=f"{entry.name}/{inner.name}")


class Receiver:
    """Puts what comes out of a guest below a directory of this machine, which is new and ours."""

    def __init__(self, directory: Path, meter: Meter) -> None:
        self._directory, self._meter = directory, meter
        self._links: list[tuple[Path, str]] = []

    def directory(self, name: str, mode: int = 0o755) -> None:
        path = self._path(name)
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode & 0o777 | 0o700)

    def file(self, name: str, mode: int, content: Callable[[Writer], None]) -> None:
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:
            content(self._meter.writer(file))
        path.chmod(mode & 0o777 | 0o600)

    def copy(self, existing: str, name: str) -> None:
        """A second name of a file that has arrived."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(self._path(existing), path)

    def link(self, name: str, target: str) -> None:
        """Made by `finish`: nothing can be written through it."""
        self._links.append((self._path(name), target))

    def finish(self) -> None:
        for path, target in self._links:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(target)

    def _path(self, name: str) -> Path:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\0" in name:
            raise GuestError(f"The guest sent a file name that leads elsewhere: '{name}'")
        return self._directory / pure


def quoted(path: str) -> str:
    """A path of the guest for its shell; a leading '~/' is the home directory."""
    if path == "~" or path.startswith("~/"):
        return "~/" + (shlex.quote(path[2:]) if path[2:] else "")
    return shlex.quote(f"./{path}" if path.startswith("-") else path)


def relative_to_home(path: str) -> str:
    """The same for SFTP, whose working directory is the home directory."""
    if path == "~" or path.startswith("~/"):
        return path[2:].lstrip("/") or "."
    return path
