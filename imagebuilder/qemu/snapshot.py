"""A running machine's state, taken between two instructions: its disks sealed, its memory written out.

The guest stands still meanwhile and notices nothing. Afterwards it writes to overlays; the files below them don't
change any more (QMP: blockdev-snapshot-sync, migrate).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from imagebuilder.errors import GuestError, StoreError
from imagebuilder.qemu import memory
from imagebuilder.qemu.qmp import Monitor, QmpError

_LIMIT = 600.0  # seconds; what the guest has written is brought to the disk first


@contextlib.contextmanager
def standing_still(monitor: Monitor) -> Iterator[None]:
    """Stop the guest for the block. GuestError when it can't be stopped, or doesn't go on."""
    try:
        monitor.execute("stop", timeout=_LIMIT)
        yield
    except BaseException:
        try:
            monitor.execute("cont", timeout=_LIMIT)
        except GuestError:
            if not monitor.ended:  # it stands still for good; else what happened first is what the person must read
                raise
        raise
    monitor.execute("cont", timeout=_LIMIT)


def seal(monitor: Monitor, overlays: Sequence[Path]) -> None:
    """Let the guest write to these overlays from now on, the nth for the disk `drive<n>`; all of them, or none.

    Raises QmpError: a disk that QEMU can't do it with, or that isn't ours (the person's own -drive rows).
    """
    actions = [
        {
            "type": "blockdev-snapshot-sync",
            "data": {
                "device": f"drive{number}", "snapshot-file": str(path), "format": "qcow2", "mode": "existing",
            },
        }
        for number, path in enumerate(overlays)
    ]  # fmt: skip
    monitor.execute("transaction", {"actions": actions}, timeout=_LIMIT)


def memory_can_be_kept(monitor: Monitor) -> bool:
    """Whether QEMU knows nothing that stands against it; that it works is only known when it was done."""
    return not monitor.execute("query-migrate").get("blocked-reasons")


def save_memory(monitor: Monitor, target: Path) -> bool:
    """Write the memory of a machine that stands still; False when this machine's can't be. StoreError: no room."""
    try:
        memory.save(monitor, target)
    except QmpError:
        target.unlink(missing_ok=True)
        return False
    except StoreError:
        target.unlink(missing_ok=True)
        raise
    return True
