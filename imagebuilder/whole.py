"""Files that appear complete or not at all: written beside their name, on the disk before they get it (rename(2))."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Collection, Iterator
from pathlib import Path

from imagebuilder import process
from imagebuilder.errors import StoreError


@contextlib.contextmanager
def whole(target: Path, keeping: Collection[Path] = ()) -> Iterator[Path]:
    """A name to write to; when the block ends well, its file replaces `target`, else nothing is left of it.

    Directories above are made. Raises StoreError for what the file system refuses, and when `target` is one of the
    files that shall be kept (the image that something is made of).
    """
    if target.resolve() in {file.resolve() for file in keeping}:
        raise StoreError(f"'output' is the image's own file '{target}'", hint="give it another name")
    try:
        target.absolute().parent.mkdir(parents=True, exist_ok=True)
        with process.temporary_path(target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")) as aside:
            yield aside
            sync(aside)
            aside.replace(target)
            sync(target.absolute().parent)
    except OSError as error:
        raise StoreError(f"can't write '{target}': {error.strerror or error}") from error


def write(target: Path, text: str, keeping: Collection[Path] = ()) -> None:
    """A small text file. Raises StoreError."""
    with whole(target, keeping) as aside:
        aside.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Wait until a file or directory is on the disk (fsync(2))."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
