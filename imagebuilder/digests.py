"""Digests of big files: each is read once for all algorithms, several at a time, and the person sees how far it is."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from imagebuilder.errors import StoreError
from imagebuilder.ui import Ui

_CHUNK = 4 << 20  # bytes; hashlib lets other threads run while it works on so much


def digests(files: Sequence[Path], algorithms: Sequence[str], ui: Ui) -> dict[Path, dict[str, str]]:
    """File -> algorithm -> hexadecimal digest. Raises StoreError when a file can't be read."""
    total = sum(_size(file) for file in files)
    with ui.progress("Computing checksums", total) as update, _Reading(update) as reading:
        found = reading.all(files, algorithms)
    return dict(zip(files, found, strict=True))


class _Reading:
    """The threads that read; all of them end with the block, by an interrupt within a chunk."""

    def __init__(self, update: Callable[[float], None]) -> None:
        self._update, self._lock, self._done = update, threading.Lock(), 0
        self._stopped = threading.Event()
        self._pool = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="digest")

    def __enter__(self) -> _Reading:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)

    def all(self, files: Sequence[Path], algorithms: Sequence[str]) -> list[dict[str, str]]:
        return list(self._pool.map(lambda file: self._one(file, algorithms), files))

    def _one(self, path: Path, algorithms: Sequence[str]) -> dict[str, str]:
        hashers = {name: hashlib.new(name, usedforsecurity=False) for name in algorithms}
        try:
            with path.open("rb", buffering=0) as file:
                while (chunk := file.read(_CHUNK)) and not self._stopped.is_set():
                    for hasher in hashers.values():
                        hasher.update(chunk)
                    self._count(len(chunk))
        except OSError as error:
            raise StoreError(f"can't read '{path}': {error.strerror}") from error
        return {name: hasher.hexdigest() for name, hasher in hashers.items()}

    def _count(self, amount: int) -> None:
        with self._lock:
            self._done += amount
            self._update(self._done)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise StoreError(f"can't read '{file}': {error.strerror}") from error
