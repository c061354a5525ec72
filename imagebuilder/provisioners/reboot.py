"""Reboots the guest and waits until it is up again: until Linux has another boot id (proc(5), random/boot_id)."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence

from pydantic import Field

from imagebuilder import inputs
from imagebuilder.errors import GuestError
from imagebuilder.inputs import Input
from imagebuilder.options import Duration, Options, Text
from imagebuilder.plugins import BuildContext, Communicator, Guest
from imagebuilder.ui import Ui, duration

_BOOT_ID = "cat /proc/sys/kernel/random/boot_id 2>/dev/null || sysctl -n kern.boottime"
_REBOOT = (
    'if [ "$(id -u)" = 0 ]; then systemctl reboot 2>/dev/null || reboot; '
    "else sudo -n systemctl reboot 2>/dev/null || sudo -n reboot; fi"
)
_TRIGGER_TIMEOUT = 120.0  # seconds for the guest to begin
_ASK_TIMEOUT = 30.0  # seconds for one look at the boot id
_HARMLESS = frozenset({"reboot_timeout"})  # only how long we wait
_PAUSE = 1.0  # seconds between two looks
_ENDED = {128 + signal.SIGTERM, 128 + signal.SIGHUP, 128 + signal.SIGKILL, 255}  # by the shutdown itself


class RebootOptions(Options):
    """Keys of the reboot provisioner."""

    command: Text = Field("", description="What reboots the guest; default: systemctl reboot or reboot, with sudo -n")
    reboot_timeout: Duration = Field(600.0, description="How long the guest may be away")

    def inputs(self) -> Sequence[Input]:
        effective = self.model_copy(update={"command": self.command or _REBOOT})
        return inputs.options(effective, _HARMLESS)


class Reboot:
    """The reboot provisioner."""

    Options = RebootOptions

    def __init__(self, options: RebootOptions, _context: BuildContext) -> None:
        self._options = options

    def provision(self, guest: Guest, ui: Ui) -> None:
        if guest.communicator is None:
            raise GuestError("A reboot provisioner needs a communicator, and this build has none")
        before = _boot_id(guest.communicator)
        if not before:
            raise GuestError("The guest does not tell its boot id, so a reboot could not be noticed")
        with ui.step("Rebooting the guest"):
            self._trigger(guest.communicator, ui)
            self._wait(guest.communicator, before)

    def _trigger(self, communicator: Communicator, ui: Ui) -> None:
        last: list[str] = []

        def heard(line: str) -> None:
            last[:] = [line]
            ui.message(line)

        command = self._options.command or _REBOOT
        status = communicator.run(command, on_line=heard, on_error_line=heard, timeout=_TRIGGER_TIMEOUT)
        if status not in (None, 0, *_ENDED):
            raise GuestError(
                f"The guest refused to reboot (exit status {status})" + (f": {last[0]}" if last else ""),
                hint="it takes root: log in as root, allow sudo without a password, or give a command of your own",
            )

    def _wait(self, communicator: Communicator, before: str) -> None:
        limit = self._options.reboot_timeout
        until = time.monotonic() + limit
        while (left := until - time.monotonic()) > 0:
            communicator.reconnect(left)
            now = _boot_id(communicator)
            if now and now != before:
                return
            time.sleep(_PAUSE)
        raise GuestError(
            f"The guest did not reboot within {duration(limit)}: it still answers from the same boot",
            hint="see that the command reboots it, or raise reboot_timeout",
        )


def _boot_id(communicator: Communicator) -> str:
    """What is another one after each boot; empty when the guest is going down just now."""
    lines: list[str] = []
    try:
        status = communicator.run(f"sh -c '{_BOOT_ID}'", on_line=lines.append, timeout=_ASK_TIMEOUT)
    except GuestError as error:
        if not error.lost:
            raise
        return ""
    return " ".join(lines).strip() if status == 0 else ""
