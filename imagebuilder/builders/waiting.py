"""Waiting for a guest, looking at it meanwhile: what can't come any more ends the wait at once."""

from __future__ import annotations

import time

from imagebuilder.builders.run import Run
from imagebuilder.console import symptoms
from imagebuilder.errors import GuestError
from imagebuilder.qemu.machine import Machine
from imagebuilder.ui import duration

_POLL = 0.5  # seconds between two looks at a guest that we wait for


def pause(seconds: float, machine: Machine) -> None:
    """Let the guest run for so long. GuestError when it can't."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        machine.check()
        time.sleep(min(left, _POLL))


def until_end(machine: Machine, run: Run, what: str, limit: float, key: str) -> None:
    """Wait until the guest reboots or powers off by itself; the machine ends with that."""
    began = time.monotonic()
    watcher = symptoms.Watcher(machine.serial_log, machine.monitor)
    with run.ui.step(what), run.ui.progress(what, limit, "seconds") as update:
        while machine.running:
            try:
                machine.check_health()
                look(watcher, run)
            except GuestError:
                if machine.shutdown is None:
                    raise
                break  # it ended while we looked
            update(time.monotonic() - began)
            if time.monotonic() - began > limit:
                raise GuestError(f"The guest did not end within {duration(limit)}", hint=f"raise {key} if it is slow")
            time.sleep(_POLL)
        machine.wait_shutdown(_POLL)


def look(watcher: symptoms.Watcher, run: Run) -> None:
    """Raise what ends a wait at once: a fatal sign of the guest, a kickstart that can't be rendered."""
    if run.http is not None and run.http.failures:
        raise run.http.failures[0]
    symptom = watcher.scan()
    if symptom is not None and symptom.fatal:
        raise GuestError(f"The guest can't go on: {symptom.sentence}", hint=symptom.advice)
