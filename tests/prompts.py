"""Guests that wait at a prompt: an ISO with ISOLINUX made here from the host's files, and a plain QEMU to boot it."""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import string
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from imagebuilder import process
from imagebuilder.console import keyboard, screen
from imagebuilder.console.bootcommand import parse
from imagebuilder.qemu.qmp import Monitor
from imagebuilder.ui import Event, Ui

ISOLINUX = Path("/usr/lib/ISOLINUX/isolinux.bin")
MODULES = Path("/usr/lib/syslinux/modules/bios")
PLAIN = "PROMPT 1\nTIMEOUT 0\nSAY Hello from the test\nLABEL linux\n  KERNEL /nothing\n"
MENU = "DEFAULT vesamenu.c32\nMENU TITLE A Menu\nLABEL linux\n  MENU LABEL Install Test Linux\n  KERNEL /nothing\n"


@dataclass(frozen=True)
class Prompt:
    """A running QEMU and what it says."""

    qemu: process.Process
    monitor: Monitor
    serial: Path
    events: list[Event]

    def type(self, text: str, key_interval: float | None = None) -> int:
        ui = Ui("test", self.events.append)
        return keyboard.type_command(parse(text), self.monitor, waiter=self.wait_for, ui=ui, key_interval=key_interval)

    def wait_for(self, text: str, timeout: float = 60) -> screen.Where:
        return screen.wait_for_text(
            text, monitor=self.monitor, serial_log=self.serial, timeout=timeout, check=self.check
        )

    def check(self) -> None:
        assert self.qemu.poll() is None, "QEMU ended"

    def typed(self) -> str:
        """What stands after ISOLINUX's prompt, without white space (it breaks long lines in its own way)."""
        shown = "".join("".join(screen.text(self.monitor)).split())
        return shown.rpartition("boot:")[2]

    def settled(self) -> str:
        """The same when it no longer grows."""
        shown = self.typed()
        while True:
            time.sleep(0.3)
            if shown == (shown := self.typed()):
                return shown


def make_iso(directory: Path, configuration: str = PLAIN) -> Path:
    """An ISO whose ISOLINUX has that configuration; skips the test when the host lacks what it is made from."""
    missing = [str(path) for path in (ISOLINUX, MODULES / "ldlinux.c32") if not path.is_file()]
    if missing or shutil.which("xorriso") is None or shutil.which("qemu-system-x86_64") is None:
        pytest.skip(
            f"needs isolinux, syslinux-common, xorriso and qemu-system-x86 ({', '.join(missing) or 'programs'})"
        )
    tree, iso = directory / "tree", directory / "prompt.iso"
    tree.mkdir()
    shutil.copy(ISOLINUX, tree)
    for module in ("ldlinux.c32", "libcom32.c32", "libutil.c32", "vesamenu.c32"):
        shutil.copy(MODULES / module, tree)
    (tree / "isolinux.cfg").write_text(configuration)
    process.run([
        "xorriso", "-as", "mkisofs", "-quiet", "-o", iso, "-b", "isolinux.bin", "-c", "boot.cat",
        "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", tree,
    ])  # fmt: skip
    return iso


@contextlib.contextmanager
def booted(directory: Path, *arguments: str | Path) -> Iterator[Prompt]:
    """A QEMU with a VGA, a serial log and these arguments more."""
    serial = directory / "serial.log"
    serial.touch()
    ours, theirs = socket.socketpair()
    argv: Sequence[str | Path] = [
        "qemu-system-x86_64", "-accel", "tcg", "-display", "none", "-m", "256", "-nodefaults", "-vga", "std",
        "-serial", f"file:{serial}", "-chardev", f"socket,id=qmp,fd={theirs.fileno()}",
        "-mon", "chardev=qmp,mode=control", *arguments,
    ]  # fmt: skip
    with process.start(argv, pass_fds=[theirs.fileno()]) as qemu:
        theirs.close()
        with Monitor(ours) as monitor:
            yield Prompt(qemu, monitor, serial, [])


def random_text(length: int, seed: int) -> str:
    """Printable characters that mean themselves in a boot command."""
    letters = (string.ascii_letters + string.digits + string.punctuation).replace("<", "")
    return "".join(random.Random(seed).choices(letters, k=length))
