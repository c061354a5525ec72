"""What is written down of a layer: `layer.json`, and the directory that it describes.

Whatever doesn't read exactly as this version writes it is not a layer: it is built again, never guessed at.
"""

from __future__ import annotations

import dataclasses
import json
import stat
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import ConfigDict, StringConstraints, TypeAdapter

NAME = "layer.json"
MEMORY = "memory.zst"

_Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
_DigestOrNone = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]
_IdOrNone = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{32})?$")]
_FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # flat: never a path
_FORBID = ConfigDict(extra="forbid")


@dataclass(frozen=True)
class FileRecord:
    """One file of a layer as it was sealed."""

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    size: int  # bytes
    sha256: _Digest


@dataclass(frozen=True, kw_only=True)
class Record:
    """One layer: what it is found by, what it stands on, what a person wants to know of it, and its files."""

    __pydantic_config__: ClassVar[ConfigDict] = _FORBID

    fingerprint: _Digest
    parent: _DigestOrNone = ""  # the parent's fingerprint, "" for none
    id: _Id = field(default_factory=lambda: uuid.uuid4().hex)
    parent_id: _IdOrNone = ""
    template: str = ""  # path as given
    build: str = ""
    step: int = 0
    name: str = ""  # the step's: "base", a provisioner's type ...
    title: str = ""
    created: float = field(default_factory=time.time)  # Unix seconds
    since: float = field(default_factory=time.time)  # Unix seconds; when the oldest layer that it stands on was made
    inputs: tuple[tuple[str, str], ...] = ()  # (label, digest)
    files: Mapping[_FileName, FileRecord] = field(default_factory=dict)

    def to_json(self) -> bytes:
        """UTF-8; what isn't a character in a path is lost, which only a person would read."""
        return (json.dumps(dataclasses.asdict(self), ensure_ascii=False, indent=1) + "\n").encode(errors="replace")


_RECORD = TypeAdapter(Record)


@dataclass(frozen=True)
class Layer:
    """A whole layer as it was found; `used` and `size` are as of then."""

    record: Record
    path: Path
    used: float = field(compare=False)  # Unix seconds of the last use: mtime of layer.json
    size: int = field(compare=False)  # bytes that its files take up on the disk

    @property
    def has_memory(self) -> bool:
        """Whether it can be restored as a running machine."""
        return MEMORY in self.record.files

    def files(self) -> Iterator[tuple[Path, FileRecord]]:
        """Where each of its files lies, and what it should hold."""
        for name, expected in self.record.files.items():
            yield self.path / name, expected


def from_json(text: bytes) -> Record:
    """ValueError for whatever `Record.to_json` doesn't write."""
    record = _RECORD.validate_json(text, strict=True)
    if bool(record.parent) != bool(record.parent_id) or record.parent == record.fingerprint or NAME in record.files:
        raise ValueError("a parent is another layer and has an id; a record doesn't describe itself")
    return record


def read(path: Path) -> Layer | None:
    """The layer in a directory, by its record and its files' names and sizes; None when that isn't one."""
    try:
        record = from_json((path / NAME).read_bytes())
        found = {entry.name: entry.lstat() for entry in path.iterdir()}
    except (OSError, ValueError):
        return None
    about = found.pop(NAME, None)
    sizes = {name: status.st_size for name, status in found.items() if stat.S_ISREG(status.st_mode)}
    expected = {name: file.size for name, file in record.files.items()}
    if about is None or record.fingerprint != path.name or len(sizes) < len(found) or sizes != expected:
        return None
    size = sum(status.st_blocks * 512 for status in (about, *found.values()))
    return Layer(record, path, about.st_mtime, size)
