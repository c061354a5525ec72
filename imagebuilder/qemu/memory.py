"""A machine's memory and devices, written into a file and read back: QEMU's migration through a pipe and zstd.

No name and no shell in between: both ends of the pipe are descriptors (QEMU: docs/devel/migration, `fd:`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from imagebuilder import process
from imagebuilder.errors import GuestError, ImgbuildError, StoreError
from imagebuilder.qemu.qmp import Monitor

_LIMIT = 600.0  # seconds to write a memory out
_BANDWIDTH = 1 << 40  # bytes a second: the machine stands still meanwhile, so as fast as it goes
_PIPE = 1 << 20  # bytes
_FD = "imgbuild-memory"


def save(monitor: Monitor, target: Path) -> None:
    """Write what a stopped machine holds into `target` (zstd, mode 0600); the machine can go on afterwards.

    Raises QmpError when this machine can't be saved (a device that QEMU can't migrate), StoreError when the file can't
    be written.
    """
    monitor.execute("migrate-set-parameters", {"max-bandwidth": _BANDWIDTH})
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file, contextlib.ExitStack() as stack:
        source, sink = _pipe()
        # No end of it stays open here: when zstd dies of a full disk, QEMU's next write must fail, not wait.
        with os.fdopen(sink, "wb") as end:
            with os.fdopen(source, "rb") as begin:
                argv = [_zstd(), "-q", "-1", "-T0", "-c"]
                zstd = stack.enter_context(process.start(argv, stdin=begin, stdout=file))
            monitor.send_fd(_FD, end.fileno())
        try:
            monitor.execute("migrate", {"uri": f"fd:{_FD}"})
        except GuestError:
            with contextlib.suppress(GuestError):
                monitor.execute("closefd", {"fdname": _FD})
            raise
        status = _until_done(monitor)
        code = zstd.wait(_LIMIT)
    if status != "completed" or code != 0:
        raise StoreError(f"the machine's memory could not be written to '{target.parent}' (is there room?)")


def _until_done(monitor: Monitor) -> str:
    """Wait for the end of a migration; its status (query-migrate)."""
    deadline = time.monotonic() + _LIMIT
    while (status := str(monitor.execute("query-migrate").get("status"))) not in ("completed", "failed", "cancelled"):
        if time.monotonic() > deadline:
            monitor.execute("migrate_cancel")
            raise GuestError(f"the machine's memory was not written within {_LIMIT:g} s")
        time.sleep(0.02)
    return status


class Reader:
    """What `save` wrote, on its way into a QEMU that starts: it inherits `descriptor` for `-incoming fd:`."""

    def __init__(self, descriptor: int, zstd: process.Process) -> None:
        self.descriptor, self._zstd = descriptor, zstd

    def check(self) -> None:
        """Raise StoreError when the file is broken: QEMU waits for ever for the first byte."""
        if self._zstd.poll():
            raise StoreError("the machine's memory could not be read: the file is broken")


@contextlib.contextmanager
def reading(source: Path) -> Iterator[Reader]:
    """Unpack what `save` wrote, as QEMU takes it."""
    out, sink = _pipe()
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, out)
        with os.fdopen(sink, "wb") as end:
            zstd = stack.enter_context(process.start([_zstd(), "-q", "-dc", source], stdout=end))
        yield Reader(out, zstd)


def _pipe() -> tuple[int, int]:
    source, sink = os.pipe()
    with contextlib.suppress(OSError):  # more than an ordinary user may have
        fcntl.fcntl(sink, fcntl.F_SETPIPE_SZ, _PIPE)
    return source, sink


def _zstd() -> str:
    """A machine without it keeps no memory, and builds all the same."""
    try:
        return process.find("zstd", package="zstd")
    except ImgbuildError as error:
        raise StoreError(error.message, hint=error.hint) from error
