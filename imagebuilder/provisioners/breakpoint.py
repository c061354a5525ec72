"""Stops the build until the person at the terminal goes on."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pydantic import Field

from imagebuilder.inputs import Input
from imagebuilder.options import Bool, Options, Text
from imagebuilder.plugins import BuildContext, Guest
from imagebuilder.ui import Ui


class BreakpointOptions(Options):
    """Keys of the breakpoint provisioner."""

    note: Text = Field("", description="Shown when the build stops there")
    disable: Bool = Field(False, description="Go on without stopping")

    def inputs(self) -> Sequence[Input] | None:
        return [] if self.disable else None  # the person may do anything meanwhile


class Breakpoint:
    """The breakpoint provisioner. With nobody at a terminal the build goes on, and says so."""

    Options = BreakpointOptions

    def __init__(self, options: BreakpointOptions, _context: BuildContext) -> None:
        self._options = options

    def provision(self, guest: Guest, ui: Ui) -> None:
        note = f": {self._options.note}" if self._options.note else ""
        if self._options.disable:
            ui.say(f"Breakpoint is disabled{note}")
            return
        if sys.stdin is None or not sys.stdin.isatty():
            ui.warning(f"Going on at a breakpoint, because nobody is at a terminal to answer{note}")
            return
        for line in _way_in(guest):
            ui.message(line)
        ui.ask(f"Breakpoint{note}. Press enter to go on.")


def _way_in(guest: Guest) -> list[str]:
    """How to look around in the guest meanwhile."""
    data = guest.data
    if guest.communicator is None or not data.get("Host"):
        return []
    key = f" -i {data['SSHPrivateKeyFile']}" if data.get("SSHPrivateKeyFile") else ""
    return [f"Meanwhile: ssh -p {data.get('Port', '22')}{key} {data.get('User', '')}@{data['Host']}"]
