"""The provisioners sleep, breakpoint and reboot."""

from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.errors import GuestError
from imagebuilder.plugins import BuildContext, Guest
from imagebuilder.provisioners.breakpoint import Breakpoint, BreakpointOptions
from imagebuilder.provisioners.reboot import Reboot, RebootOptions
from imagebuilder.provisioners.sleep import Sleep, SleepOptions
from imagebuilder.ssh.communicator import SshCommunicator
from imagebuilder.ssh.login import Login
from imagebuilder.ssh.settings import SshSettings
from imagebuilder.templates.interpolate import Engine
from imagebuilder.ui import Event, Ui
from tests.sshd import Server, free_port, needs_sshd, sshd

CONTEXT = BuildContext("web", "qemu", Engine({}))
GUEST = Guest(None, {})


class Said(list[Event]):
    def ui(self) -> Ui:
        return Ui("web", self.append)

    def texts(self, kind: str) -> list[str]:
        return [event.text for event in self if event.kind == kind]


@pytest.fixture
def said() -> Said:
    return Said()


# -- sleep


def test_sleep(said: Said) -> None:
    began = time.monotonic()
    Sleep(SleepOptions.model_validate({"duration": "300ms"}), CONTEXT).provision(GUEST, said.ui())
    assert 0.3 <= time.monotonic() - began < 5
    assert said.texts("say") == ["Sleeping 0.3 s"]


@pytest.mark.parametrize("given", [{}, {"duration": "-1s"}, {"duration": "0s"}])
def test_sleep_needs_a_duration(given: dict[str, Any]) -> None:
    assert [key for key, _ in SleepOptions.model_validate(given).problems()] == ["duration"]


# -- breakpoint


def test_a_disabled_breakpoint(said: Said) -> None:
    Breakpoint(BreakpointOptions.model_validate({"disable": True, "note": "look"}), CONTEXT).provision(GUEST, said.ui())
    assert said.texts("say") == ["Breakpoint is disabled: look"]


def test_a_breakpoint_that_nobody_sees(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    Breakpoint(BreakpointOptions(), CONTEXT).provision(GUEST, said.ui())
    assert said.texts("warning") == ["Going on at a breakpoint, because nobody is at a terminal to answer"]


def test_a_breakpoint_waits_for_enter(said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    with os.fdopen(theirs, "r") as terminal, os.fdopen(ours, "wb", buffering=0) as keyboard:
        monkeypatch.setattr("sys.stdin", terminal)
        began = time.monotonic()
        threading.Timer(0.3, keyboard.write, [b"\n"]).start()
        guest = Guest(
            SshCommunicator(SshSettings(Login("127.0.0.1", 1, "me")), said.ui()),
            {"Host": "127.0.0.1", "Port": "22", "User": "me"},
        )
        Breakpoint(BreakpointOptions.model_validate({"note": "look"}), CONTEXT).provision(guest, said.ui())
        assert time.monotonic() - began > 0.25
    assert said.texts("message") == ["Meanwhile: ssh -p 22 me@127.0.0.1"]
    assert said.texts("say") == ["Breakpoint: look. Press enter to go on."]


# -- reboot


class Machine:
    """An SSH server that goes away when its guest reboots, and comes back with another boot id."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bin = directory / "bin"
        self.bin.mkdir()
        self.boot_id = directory / "boot_id"
        self.boot_id.write_text("first\n")
        self.port = free_port()
        self.asked = directory / "asked"
        self._tool(
            "cat",
            f'case "$1" in /proc/sys/kernel/random/boot_id) exec /bin/cat {self.boot_id};; esac; exec /bin/cat "$@"',
        )
        self._tool("systemctl", f"echo rebooting; touch {self.asked}")
        self._tool("sudo", 'shift; exec "$@"')
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._live)
        self.up = threading.Event()
        self.server: Server | None = None
        self.away = 0.5  # seconds
        self.changes = True

    def _tool(self, name: str, script: str) -> None:
        (self.bin / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.bin / name).chmod(0o755)

    def __enter__(self) -> Machine:
        self._thread.start()
        assert self.up.wait(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()

    def _live(self) -> None:
        key = None
        extra = f'ForceCommand PATH={self.bin}:$PATH /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
        while not self._ending.is_set():
            self.asked.unlink(missing_ok=True)
            with sshd(self.directory / "sshd", port=self.port, extra=extra, key=key) as self.server:
                key = self.server.key
                self.up.set()
                while not self.asked.exists() and not self._ending.is_set():
                    time.sleep(0.05)
                self._ending.wait(0.3)  # still answers for a moment, as a system that is going down does
            self._ending.wait(self.away)
            if self.changes:
                self.boot_id.write_text(f"{time.monotonic()}\n")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    with Machine(tmp_path) as running:
        yield running


def reboot(machine: Machine, said: Said, **given: Any) -> None:
    assert machine.server is not None
    options = RebootOptions.model_validate(given)
    with SshCommunicator(SshSettings(machine.server.login, timeout=20), said.ui()) as communicator:
        communicator.connect(20)
        Reboot(options, CONTEXT).provision(Guest(communicator, {}), said.ui())
        assert communicator.run("true") == 0


@needs_sshd
def test_reboot_waits_for_a_new_boot(machine: Machine, said: Said) -> None:
    reboot(machine, said)
    assert machine.boot_id.read_text() != "first\n"
    assert said.texts("say") == ["Rebooting the guest"]
    assert said.texts("message")[0] == "rebooting"


@needs_sshd
def test_a_command_of_ones_own(machine: Machine, said: Said) -> None:
    reboot(machine, said, command=f"touch {machine.asked}; exit 255")
    assert machine.boot_id.read_text() != "first\n"


@needs_sshd
def test_a_guest_that_refuses(machine: Machine, said: Said) -> None:
    with pytest.raises(GuestError) as caught:
        reboot(machine, said, command="echo not allowed >&2; exit 1")
    assert caught.value.message == "The guest refused to reboot (exit status 1): not allowed"
    assert "sudo" in str(caught.value.hint)


@needs_sshd
def test_a_guest_that_only_pretends(machine: Machine, said: Said) -> None:
    with pytest.raises(GuestError) as caught:
        reboot(machine, said, command="true", reboot_timeout="1500ms")
    assert caught.value.message == "The guest did not reboot within 1.5 s: it still answers from the same boot"


@needs_sshd
def test_a_guest_that_stays_away(machine: Machine, said: Said) -> None:
    machine.away = 60
    with pytest.raises(GuestError, match=r"Timed out after .* waiting for SSH"):
        reboot(machine, said, reboot_timeout="2500ms")


def test_reboot_needs_a_communicator(said: Said) -> None:
    with pytest.raises(GuestError, match="needs a communicator"):
        Reboot(RebootOptions(), CONTEXT).provision(GUEST, said.ui())
