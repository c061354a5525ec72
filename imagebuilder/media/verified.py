"""What is known of big files: digests that were computed once and hold while a file's size and mtime stay the same."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

from imagebuilder import paths, whole
from imagebuilder.errors import StoreError
from imagebuilder.ui import Ui

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Record:
    """What was found out about a file when it was last read from end to end."""

    checksum: str  # "sha256:..."
    size: int  # bytes
    mtime_ns: int
    path: str
    url: str = ""
    etag: str = ""
    last_modified: str = ""
    fetched: float = 0.0  # Unix seconds; when its source was last asked
    identity: str = ""  # of a file of the user's: another one after anybody wrote or replaced it

    def describes(self, file: Path) -> bool:
        """Whether the file is, by size and time, the one that was read."""
        try:
            status = file.stat()
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (self.size, self.mtime_ns)


def directory() -> Path:
    """Where downloads and what is known of files lie."""
    return paths.cache_directory() / "downloads"


def read(path: Path) -> Record | None:
    """A record; None when there is none that can be understood."""
    try:
        return Record(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write(path: Path, record: Record) -> None:
    """Keep a record; it appears complete or not at all."""
    whole.write(path, json.dumps(dataclasses.asdict(record), indent=1) + "\n")


def digest(file: Path, algorithm: str, ui: Ui, name: str) -> str:
    """Read a file from end to end. StoreError when it can't be read."""
    hasher = hashlib.new(algorithm, usedforsecurity=False)
    try:
        with file.open("rb", buffering=0) as stream, ui.progress(f"Verifying {name}", file.stat().st_size) as update:
            done = 0
            while chunk := stream.read(_CHUNK):
                hasher.update(chunk)
                done += len(chunk)
                update(done)
    except OSError as error:
        raise StoreError(f"can't read '{file}': {error.strerror}") from error
    return hasher.hexdigest()


def _identity(file: Path) -> str:
    """Times that people can set don't count (stat(2): nobody sets st_ctime)."""
    status = file.stat()
    return f"{status.st_dev} {status.st_ino} {status.st_ctime_ns}"


def remembered(file: Path, algorithm: str, ui: Ui) -> str:
    """The digest of a file of the user's, read only when it changed since it was last asked for."""
    absolute = file.resolve()
    key = hashlib.sha256(f"{algorithm}:{absolute}".encode(errors="surrogateescape")).hexdigest()
    place = directory() / "known" / f"{key}.json"
    record = read(place)
    if record is None or not record.describes(absolute) or record.identity != _identity(absolute):
        before, identity = absolute.stat(), _identity(absolute)
        checksum = f"{algorithm}:{digest(absolute, algorithm, ui, file.name)}"
        record = Record(
            checksum, before.st_size, before.st_mtime_ns, str(absolute), fetched=time.time(), identity=identity
        )
        if record.describes(absolute):  # it did not change while it was read
            with contextlib.suppress(StoreError):  # a cache that can't be written only costs the next reading
                write(place, record)
    return record.checksum.partition(":")[2]
