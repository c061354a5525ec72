"""Who uses what in the store: locks that go with the process that holds them, however it ends.

A directory in use is locked shared through a descriptor of it (flock(2)), one that is to go exclusively; a step that is
being made is one locked byte of one file (open file description locks, fcntl(2)), so that no lock files pile up.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator
from pathlib import Path


def shared(path: Path, *, wait: bool = False) -> int | None:
    """Lock a directory that is used: the descriptor to close; None when it is gone or somebody removes it."""
    return _locked(path, fcntl.LOCK_SH | (0 if wait else fcntl.LOCK_NB))


def exclusive(path: Path) -> int | None:
    """Lock a directory that is to be removed: the descriptor to close; None when it is gone or used."""
    return _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _locked(path: Path, operation: int) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, operation)
        except BlockingIOError:
            return None
        if not _leads_to(path, descriptor):
            return None
        stack.pop_all()
    return descriptor


def _leads_to(path: Path, descriptor: int) -> bool:
    """Whether a path still names what was opened by it: it may have been renamed before the lock was had."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def byte(path: Path, offset: int) -> Iterator[bool]:
    """Whether one byte of a file is ours alone until the block ends; doesn't wait."""
    with contextlib.ExitStack() as stack:
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            stack.callback(os.close, descriptor)
            ours = _lock_byte(descriptor, offset)
            if not ours or _leads_to(path, descriptor):
                break
        yield ours


def _lock_byte(descriptor: int, offset: int) -> bool:
    # fcntl.lockf would do between processes only: it lets every thread of one process in, and closing any other
    # descriptor of the file frees the byte.
    request = struct.pack("hhqqi0q", fcntl.F_WRLCK, os.SEEK_SET, offset, 1, 0)  # struct flock, fcntl(2)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, request)
    except (BlockingIOError, PermissionError):
        return False
    return True
