"""Sends key events to a guest (QMP `input-send-event`) as fast as it takes them: nothing lost, nothing doubled.

Guests can be asked how far they have read. A PC's keyboard controller (8042; IBM PS/2 Technical Reference) says in bit
0 of port 0x64 whether a byte waits to be taken; QEMU queues 16 (hw/input/ps2.c) and drops what comes after. A BIOS
moves keys to a ring of 15 in guest memory (BIOS Data Area, 0040:001A), from where its programs take them. We never send
more than both have room for. UEFI's driver takes one key at a tick of its timer, 20 ms (edk2, Ps2KeyboardDxe), so it
gets one key at a time. A USB keyboard shows only in the BIOS's ring; where there is none either, the pace is fixed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from imagebuilder.errors import GuestError
from imagebuilder.ui import Ui, duration

QUEUE = 16  # bytes, PS2_QUEUE_SIZE
RING = 15  # keys; the ring has 16 places, one of which stays free
BLIND = 0.05  # seconds for each event of a keyboard that can't be asked; UEFI and Linux poll USB every 8 to 20 ms
STALLED = 20.0  # seconds that a guest may leave its keys before we go on regardless
_NOT_THE_BIOS = 2.0  # seconds without a key in the ring: an operating system reads the keyboard
_POLL = 0.001

_TWO_BYTES = {
    "up", "down", "left", "right", "insert", "delete", "home", "end", "pgup", "pgdn", "compose", "alt_r", "ctrl_r",
    "meta_l", "meta_r",
}  # fmt: skip
_SILENT = {"shift", "shift_r", "ctrl", "ctrl_r", "alt", "alt_r", "meta_l", "meta_r", "compose"}  # never in the ring


class Monitor(Protocol):
    """What of QEMU's monitor is used here."""

    def execute(self, command: str, arguments: Any = None, timeout: float = 10) -> Any: ...

    def hmp(self, line: str) -> str: ...


@dataclass(frozen=True)
class Event:
    """A key that goes down or up, by its QKeyCode (qapi/ui.json)."""

    key: str
    down: bool

    @property
    def size(self) -> int:
        """Bytes that a PS/2 keyboard sends for it (scan code set 1, to which QEMU's controller translates)."""
        return 2 if self.key in _TWO_BYTES else 1


Stroke = tuple[Event, ...]
"""Events that belong together: a key with the Shift it needs."""


class Keyboard:
    """The keyboard of a guest. `interval`: seconds to rest after each event, however fast the guest reads."""

    def __init__(self, monitor: Monitor, ui: Ui, interval: float = 0.0) -> None:
        self._monitor, self._ui, self._interval = monitor, ui, interval
        self._controller = _has_controller(monitor)
        self._bios = _has_bios(monitor)
        self._stalled: set[str] = set()
        self._ring = (0, 0)  # first key and first free place when last looked at
        self._tail_before: int | None = None  # where the free place was when the last keys for a BIOS were sent

    def type(self, strokes: Sequence[Stroke]) -> None:
        """Send them all; returns when they were taken from the keyboard."""
        if self._interval:
            for events in strokes:
                self._send_resting(events)
        elif self._controller:
            self._send_all(strokes)
        else:
            for events in strokes:
                self._send_blindly(events)
        self._wait_taken()

    def _send_all(self, strokes: Sequence[Stroke]) -> None:
        waiting = list(strokes) if self._bios else [part for events in strokes for part in _single_keys(events)]
        while waiting:
            count = self._fitting(waiting)
            self._send([event for events in waiting[:count] for event in events])
            del waiting[:count]

    def _send_resting(self, events: Stroke) -> None:
        for event in events:
            if self._controller:
                self._fitting([(event,)])
            self._send([event])
            time.sleep(self._interval)

    def _send_blindly(self, events: Stroke) -> None:
        """Down and up go together: QEMU queues 16 events, and as the guest polls both in turn no key repeats."""
        keys = _keys(events)
        if not (self._bios and keys):
            self._send(events)
            time.sleep(BLIND * len(events))
            return
        self._until(lambda: bool(self._look()) and self._used() < RING, "BIOS")
        before = self._ring[1]
        self._send(events)
        if not self._until(lambda: self._look()[1] != before, "USB", _NOT_THE_BIOS):
            time.sleep(BLIND * len(events))

    def _send(self, events: Sequence[Event]) -> None:
        keys = [
            {"type": "key", "data": {"down": event.down, "key": {"type": "qcode", "data": event.key}}}
            for event in events
        ]
        self._monitor.execute("input-send-event", {"events": keys})

    def _fitting(self, strokes: Sequence[Stroke]) -> int:
        """Wait until the guest can take keys; how many of these strokes it can take now, at least one."""
        self._wait_taken()
        room = self._room() if self._bios else 1
        count = size = keys = 0
        for events in strokes:
            size += sum(event.size for event in events)
            keys += _keys(events)
            if count and (size > QUEUE or keys > room or not self._bios):
                break
            count += 1
        self._tail_before = self._ring[1] if self._bios and keys else None
        return count

    def _wait_taken(self) -> None:
        """Until every byte was taken from the keyboard controller."""
        if self._controller:
            self._until(lambda: not (_status(self._monitor) or 0) & 1, "controller")

    def _room(self) -> int:
        """Keys that fit into the BIOS's ring; when that is not what the guest reads, as many as the queue holds."""
        if self._look()[1] == self._tail_before:
            return QUEUE  # the last keys did not go there: an operating system reads the keyboard
        if self._used() == RING:
            self._until(lambda: bool(self._look()) and self._used() < RING, "BIOS")
        return RING - self._used()

    def _look(self) -> tuple[int, int]:
        """Read where the ring's first key and its first free place are."""
        found = memory(self._monitor, 0x41A, 4)
        self._ring = int.from_bytes(found[:2], "little"), int.from_bytes(found[2:], "little")
        return self._ring

    def _used(self) -> int:
        head, tail = self._ring
        return (tail - head) % 32 // 2

    def _until(self, done: Callable[[], bool], what: str, patience: float | None = None) -> bool:
        """Whether it came true. When it did not, there is little patience from then on, until it does again."""
        first = STALLED if patience is None else patience
        end = time.monotonic() + (0.1 if what in self._stalled else first)
        while not done():
            if time.monotonic() > end:
                if patience is None and what not in self._stalled:
                    self._ui.warning(f"The guest took no key for {duration(first)}: typing on, keys may be lost")
                self._stalled.add(what)
                return False
            time.sleep(_POLL)
        self._stalled.discard(what)
        return True


def memory(monitor: Monitor, address: int, count: int) -> bytes:
    """Bytes of the guest's physical memory."""
    listing = monitor.hmp(f"xp /{count}bx {address:#x}")
    found = bytes(int(word, 16) for line in listing.splitlines() for word in line.partition(": ")[2].split())
    if len(found) != count:
        raise GuestError(f"QEMU's monitor shows no memory at {address:#x}: {listing.strip()[:200]}")
    return found


def _keys(events: Stroke) -> int:
    """How many keys of the stroke a BIOS puts into its ring."""
    return sum(event.down and event.key not in _SILENT for event in events)


def _single_keys(events: Stroke) -> Iterator[Stroke]:
    """A stroke in parts of one key that goes down each."""
    part: list[Event] = []
    for event in events:
        if event.down and any(earlier.down for earlier in part):
            yield tuple(part)
            part = []
        part.append(event)
    yield tuple(part)


def _status(monitor: Monitor) -> int | None:
    """The status register of the keyboard controller; None where there are no I/O ports (or nothing at this one)."""
    found = re.search(r"= (0x[0-9a-f]+)", monitor.hmp("i /b 0x64"))
    return int(found.group(1), 16) if found and found.group(1) != "0xff" else None


def _has_controller(monitor: Monitor) -> bool:
    """Whether keys go through a PS/2 controller; a USB or virtio keyboard is preferred by QEMU when there is one."""
    if _status(monitor) is None:
        return False
    return not re.search(r"dev: (usb-kbd|virtio-keyboard)", monitor.hmp("info qtree"))


def _has_bios(monitor: Monitor) -> bool:
    """Whether a BIOS told where its ring of keys begins and ends; UEFI leaves that memory alone."""
    return _status(monitor) is not None and memory(monitor, 0x480, 4) == b"\x1e\0\x3e\0"
