"""What can change the result of a build's step, and the fingerprint that follows from it.

A fingerprint is sha256 over the parent's and the digests of all inputs in their order. Labels (paths, mostly) and times
of files never enter it: they only let a person read what has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from imagebuilder.errors import StoreError

FORMAT = "imgbuild layer 1"  # changes when what a layer holds, or what a fingerprint means, does
_CHUNK = 1 << 20
_OVERLAP = 256  # bytes of a chunk looked at again with the next one

# What differs between builds of a template: PACKER_BUILD_NAME and its like, by name or with the whole environment.
_NAMES_BUILD = re.compile(
    rb"""PACKER_|\bprintenv\b|\bexport\s+-p\b|\bdeclare\s+-x\b|/environ\b"""
    rb"""|(?m:(?:^|[;&|("])\s*env\s*(?:$|[|>;&)"]))"""
)
_LATE = re.compile(r"\{\{[^}]*\b(build|user)(?:_name|_type)?\b")  # what a late template asks for when the step runs


@dataclass(frozen=True)
class Input:
    """One thing that can change a result. `names_build`: a script of it may read which build it is in, so that builds
    can't share it; `late`: what a template in it asks for when the step runs, "build" or "user" (variables)."""

    label: str  # how a person calls it: an option's name, a file's path
    digest: str  # sha256 of its role and content
    names_build: bool = field(default=False, compare=False)
    late: frozenset[str] = field(default=frozenset(), compare=False)
    stamp: str = field(default="", compare=False)  # of its files: another one when they were touched at all


def option(name: str, value: object) -> Input:
    """An option of the template: anything that JSON can hold, paths as text."""
    text = json.dumps(value, sort_keys=True, default=str)
    return replace(content(name, name, text), late=frozenset(_LATE.findall(text)))


def options(values: Iterable[tuple[str, object]], *without: frozenset[str]) -> list[Input]:
    """Every option of a component (a pydantic model gives such pairs) but those named: a new key is an input."""
    harmless = frozenset().union(*without)
    return [option(name, value) for name, value in values if name not in harmless]


def content(role: str, label: str, data: bytes | str) -> Input:
    """Bytes; `role` tells what they are for, so that the same bytes elsewhere are another input."""
    raw = data.encode(errors="surrogateescape") if isinstance(data, str) else data
    return Input(label, _digest(role, hashlib.sha256(raw).hexdigest()), _NAMES_BUILD.search(raw) is not None)


def file(role: str, path: Path, *, mode: bool = False) -> Input:
    """A file's bytes, and with `mode` its permissions; a directory's whole tree. StoreError when it can't be read."""
    try:
        stamped = stamp(path)  # before it is read
        names_build, digests = False, []
        for name, digest, named in _entries(path, mode=mode or path.is_dir()):
            digests += [name, digest]
            names_build = names_build or named
    except OSError as error:
        raise StoreError(f"can't read '{error.filename}': {error.strerror}") from error
    return Input(str(path), _digest(role, *digests), names_build, stamp=stamped)


def stamp(top: Path) -> str:
    """What is another text after any of the files was written, replaced or touched: nobody can set st_ctime (stat(2)).

    Raises OSError.
    """
    found = [path.lstat() for path in _walk(top)] + [top.stat()]
    return _digest(*(f"{one.st_dev} {one.st_ino} {one.st_size} {one.st_ctime_ns}" for one in found))


def combined(role: str, label: str, parts: Iterable[Input]) -> Input:
    """Many things that a person calls by one name, like all that is in a directory."""
    found = list(parts)
    digest, stamped = _digest(role, *(part.digest for part in found)), _digest(*(part.stamp for part in found))
    return Input(label, digest, any(part.names_build for part in found), stamp=stamped)


def fingerprint(parent: str, inputs: Iterable[Input]) -> str:
    """The fingerprint of a step: 64 hexadecimal digits. `parent` is that of the step before, '' for the first."""
    return _digest(FORMAT, parent, *(one.digest for one in inputs))


def _digest(*words: str) -> str:
    return hashlib.sha256("\n".join(words).encode(errors="surrogateescape")).hexdigest()


def _entries(top: Path, *, mode: bool) -> Iterator[tuple[str, str, bool]]:
    """(relative name and kind, digest, whether it names the build) of a file, or of all that is in a directory."""
    for path in _walk(top):
        status = path.stat() if path == top else path.lstat()
        kind = stat.S_IFMT(status.st_mode) | (stat.S_IMODE(status.st_mode) if mode else 0)
        name = f"{os.path.relpath(path, top)!r} {kind:o}"
        if stat.S_ISREG(status.st_mode):
            yield name, *_read(path)
        else:
            yield name, str(path.readlink()) if stat.S_ISLNK(status.st_mode) else "", False


def _walk(top: Path) -> Iterator[Path]:
    """The path itself, then what is below it, in an order that doesn't depend on the file system."""
    yield top
    if top.is_dir() and not (top.is_symlink() and not top.exists()):
        for path in sorted(top.iterdir()):
            yield from [path] if path.is_symlink() else _walk(path)


def _read(path: Path) -> tuple[str, bool]:
    hasher, names_build, last = hashlib.sha256(), False, b""
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            hasher.update(chunk)
            names_build = names_build or _NAMES_BUILD.search(last + chunk) is not None
            last = chunk[-_OVERLAP:]
    return hasher.hexdigest(), names_build
