"""`Machine` owns a QEMU process from its start to its end: monitor, ports, serial log, and what became of it.

The monitor's socket is bound before QEMU starts and inherited by it, so there is no moment without a monitor and no
port or path that somebody else could take. Started with `-S`: the guest runs when all is set.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from imagebuilder import process
from imagebuilder.errors import GuestError, ImgbuildError
from imagebuilder.qemu import memory, tpm
from imagebuilder.qemu.arguments import Drive, MachineConfig, Runtime, VncConfig, arguments, dropped
from imagebuilder.qemu.firmware import Firmware
from imagebuilder.qemu.qmp import Event, Monitor, QmpError
from imagebuilder.qemu.tpm import TpmConfig
from imagebuilder.ui import Ui, duration

__all__ = [
    "Drive", "Firmware", "Kept", "Machine", "MachineConfig", "Runtime", "TpmConfig", "VncConfig",
    "arguments", "dropped",
]  # fmt: skip

log = logging.getLogger(__name__)
T = TypeVar("T")

_RESTORE = 300.0  # seconds to read a saved state
_START_HINTS = {
    "gtk initialization failed": "there is no display here: set 'headless': true",
    "to find an available port": "no port of vnc_port_min to vnc_port_max is free: widen the range, or leave it out",
    "bridge helper failed": "allow the bridge in /etc/qemu/bridge.conf and make qemu-bridge-helper setuid root",
}
_BROKEN = {
    "internal-error": "QEMU stopped the guest: an internal error of the accelerator",
    "io-error": "QEMU stopped the guest: an error while it wrote to its disk",
}


@dataclass(frozen=True)
class Kept:
    """A machine that was left running, and how to reach it."""

    pid: int
    host_port: int | None
    vnc_address: str | None
    qmp_socket: Path
    directory: Path

    def __str__(self) -> str:
        lines = [f"QEMU runs as process {self.pid}; end it with: kill {self.pid}"]
        if self.host_port:
            lines.append(f"guest's port: 127.0.0.1:{self.host_port} (SSH: ssh -p {self.host_port} USER@127.0.0.1)")
        if self.vnc_address:
            lines.append(f"screen: VNC at {self.vnc_address}")
        return "\n".join([*lines, f"monitor: QMP at {self.qmp_socket}", f"logs: {self.directory}"])


class Machine:
    """A QEMU process. `directory` is private to it: sockets, logs, UEFI variables, TPM state.

    Entering starts QEMU and lets the guest run (after restoring it, with `incoming`); leaving always ends QEMU, unless
    `release` was called (which needs `may_survive`). Raises GuestError with QEMU's own words when it can't start.
    """

    def __init__(
        self, config: MachineConfig, directory: Path, ui: Ui, *, paused: bool = False, may_survive: bool = True
    ) -> None:
        self._may_survive = may_survive
        self.config = config
        self.directory = directory
        self.argv: list[str] = []
        self.resets = 0
        self.host_port: int | None = None
        self.vnc_address: str | None = None
        self.panicked: Event | None = None
        self.shutdown: Event | None = None
        self.nvram = config.nvram or directory / "efivars.fd"
        self.serial_log = directory / "serial.log"
        self.qemu_log = directory / "qemu.log"
        self.qmp_socket = directory / "qmp.sock"
        self._ui = ui
        self._paused = paused
        self._stopped = self._disk_full = False
        self._stack = contextlib.ExitStack()
        self._process: process.Process | None = None
        self._monitor: Monitor | None = None
        self._tpm: tpm.Tpm | None = None
        self._saved: memory.Reader | None = None

    # ---- start

    def __enter__(self) -> Machine:
        with contextlib.ExitStack() as stack:
            stack.callback(self.stop)
            self._prepare()
            self._start()
            self._settle()
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def monitor(self) -> Monitor:
        if self._monitor is None:
            raise GuestError("the machine does not run")
        return self._monitor

    @property
    def pid(self) -> int:
        if self._process is None:
            raise GuestError("the machine does not run")
        return self._process.pid

    def _prepare(self) -> None:
        """Files that QEMU finds when it starts."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (self.serial_log, self.qemu_log):
            path.touch(mode=0o600)
        firmware = self.config.firmware
        if firmware and firmware.vars and not self.nvram.exists():
            shutil.copyfile(firmware.vars, self.nvram)
            self.nvram.chmod(0o600)
        if len(self.config.initrd) > 1:
            _join(self.config.initrd, self.directory / "initrd.img")

    def _start(self) -> None:
        """Start QEMU with the sockets it inherits, and greet it."""
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            ours = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            with _short(self.qmp_socket) as address:
                self.qmp_socket.unlink(missing_ok=True)
                listener.bind(address)
                listener.listen(4)
                ours.connect(address)  # waits in the queue: QEMU takes it first
            inherited = {"qmp_fd": listener.fileno()}
            if self.config.tpm:
                self._tpm = self._stack.enter_context(tpm.running(self.config.tpm, self.directory))
                inherited["tpm_fd"] = self._tpm.socket.fileno()
            if self.config.incoming:
                self._saved = self._stack.enter_context(memory.reading(self.config.incoming))
                inherited["memory_fd"] = self._saved.descriptor
            self._launch(inherited)
            listener.close()
            if self._tpm:
                self._tpm.socket.close()
            monitor = Monitor(ours, self._why_ended)
            monitor.on_event(self._on_event)
            try:
                self._monitor = self._stack.enter_context(monitor)
            except GuestError as error:
                raise self._not_started(error) from error
            stack.pop_all()

    def _not_started(self, error: GuestError) -> GuestError:
        """QEMU's own words about why it didn't start, and what to do when we know."""
        said = self._said()
        hints = [hint for sign, hint in _START_HINTS.items() if sign in "\n".join(said)]
        if not said:
            return error
        return GuestError("\n".join(["QEMU could not start; it says:", *said]), hint=hints[0] if hints else None)

    def _launch(self, inherited: dict[str, int]) -> None:
        runtime = Runtime(
            serial_log=self.serial_log, nvram=self.nvram, initrd=self.directory / "initrd.img", **inherited
        )
        self.argv = arguments(self.config, runtime)
        with self.qemu_log.open("ab") as said:
            self._process = process.start(
                self.argv, stdout=said, stderr=said, pass_fds=list(inherited.values()), may_survive=self._may_survive
            )  # what ends it when we are killed is the janitor

    def _settle(self) -> None:
        """What has to be set before the guest runs."""
        vnc = self.config.vnc
        if vnc and vnc.password:
            self._ui.mask(vnc.password)
            self.monitor.execute("set_password", {"protocol": "vnc", "password": vnc.password})
        self.host_port = self._forward()
        self.vnc_address = self._query_vnc()
        if self._saved:
            self._restore(self._saved)
        if not self._paused:
            self.monitor.execute("cont")

    def _forward(self) -> int | None:
        """The port of 127.0.0.1 that leads to the guest's; of the range that was asked for, or the kernel's choice."""
        if self.config.net_bridge or not self.config.guest_port:
            return None
        low, high = self.config.host_port_min, self.config.host_port_max
        if (low is not None or high is not None) and not self._forwarded():
            first = low or 1
            self._add_forward(first, max(first, high or 65535))
        return self._forwarded()

    def _add_forward(self, first: int, last: int) -> None:
        if "user.0" not in self.monitor.hmp("info usernet") and self._has_row("-netdev"):
            return  # a -netdev row of the person's: theirs to forward
        refusal = ""
        for port in range(first, last + 1):
            refusal = self.monitor.hmp(f"hostfwd_add user.0 tcp:127.0.0.1:{port}-:{self.config.guest_port}").strip()
            if not refusal:
                return
        raise ImgbuildError(
            f"no port from {first} to {last} (host_port_min, host_port_max) is free on 127.0.0.1: {refusal}",
            hint="widen the range, or leave it out: a free port is found then",
        )

    def _forwarded(self) -> int | None:
        """What `info usernet` lists as TCP[HOST_FORWARD] to the guest's port."""
        for line in self.monitor.hmp("info usernet").splitlines():
            found = re.match(r"\s*TCP\[HOST_FORWARD\]\s+\d+\s+\S+\s+(\d+)\s+\S+\s+(\d+)", line)
            if found and int(found[2]) == self.config.guest_port:
                return int(found[1])
        return None

    def _has_row(self, switch: str) -> bool:
        return any(row and row[0] == switch for row in self.config.qemuargs)

    def _query_vnc(self) -> str | None:
        with contextlib.suppress(QmpError):  # a QEMU without VNC
            answer = self.monitor.execute("query-vnc")
            if answer.get("enabled") and answer.get("service"):
                return f"{answer['host']}:{answer['service']}"
        return None

    def _restore(self, saved: memory.Reader) -> None:
        """Wait until a saved state was read; QEMU ends by itself when it can't be."""
        deadline = time.monotonic() + _RESTORE
        while self.monitor.execute("query-status")["status"] == "inmigrate":
            saved.check()
            if time.monotonic() > deadline:
                raise GuestError(f"the saved state was not read within {duration(_RESTORE)}")
            time.sleep(0.02)

    # ---- what becomes of it

    def _on_event(self, event: Event) -> None:
        """In the monitor's thread: only notes."""
        if event.name == "RESET" and event.data.get("guest"):
            self.resets += 1
        elif event.name == "SHUTDOWN":
            self.shutdown = event
        elif event.name == "GUEST_PANICKED":
            self.panicked = event
        elif event.name == "BLOCK_IO_ERROR" and event.data.get("action") == "stop":
            self._disk_full = bool(event.data.get("nospace"))
        elif event.name in ("STOP", "RESUME"):
            self._stopped = event.name == "STOP"

    def check(self) -> None:
        """Raise GuestError when the guest can't go on: QEMU ended, the kernel panicked, the host's disk is full."""
        self._check_guest()
        if self.shutdown and self.shutdown.data.get("guest"):
            raise GuestError(f"the guest ended by itself ({self.shutdown.data.get('reason', 'shutdown')})")
        if not self.running:
            raise GuestError(self._why_ended())

    def check_health(self) -> None:
        """Raise GuestError for what no guest does by itself: QEMU died, a kernel panicked, the host's disk is full."""
        self._check_guest()
        if not self.running and self.shutdown is None:
            raise GuestError(self._why_ended())

    def _check_guest(self) -> None:
        if self.panicked:
            raise GuestError(
                "the guest's kernel panicked", hint="the serial log and the screenshot show its last words"
            )
        if self._disk_full:
            raise GuestError("the host's disk is full: QEMU stopped the guest", hint="free some space and build again")
        if self._stopped and self.running and not self.monitor.ended:
            status = self.monitor.execute("query-status")["status"]
            if status in _BROKEN:
                raise GuestError(_BROKEN[status], hint=f"QEMU's own log: {self.qemu_log}")

    @property
    def running(self) -> bool:
        """Whether the QEMU process is there."""
        return self._process is not None and self._process.poll() is None

    def _why_ended(self) -> str:
        """One sentence about QEMU's end, and its last words."""
        if self._process is None:
            return "the machine does not run"
        deadline = time.monotonic() + 2
        while (code := self._process.poll()) is None and time.monotonic() < deadline:
            time.sleep(0.01)  # its sockets close a little before it is gone
        if code is None:
            return "QEMU closed its monitor but still runs"
        how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        reason = self.shutdown.data.get("reason") if self.shutdown else None
        said = [f"QEMU {how}" + (f" ({reason})" if reason else ""), *self._said()]
        return "\n".join(said) if code or not self.shutdown else said[0]

    def _said(self, lines: int = 8) -> list[str]:
        with contextlib.suppress(OSError):
            text = self.qemu_log.read_text(encoding="utf-8", errors="replace")
            return [f"  {line}" for line in text.strip().splitlines()[-lines:]]
        return []

    def wait(self, ready: Callable[[], T | None], timeout: float, what: str) -> T:
        """Ask `ready` until it answers something true; GuestError after `timeout` seconds, or when the guest ended."""
        deadline = time.monotonic() + timeout
        while not (answer := ready()):
            self.check()
            if time.monotonic() > deadline:
                raise GuestError(f"waited {duration(timeout)} for {what}")
            time.sleep(0.05)
        return answer

    def wait_shutdown(self, timeout: float) -> str:
        """Wait until the guest has shut down and QEMU has ended; QEMU's reason ('guest-shutdown', 'guest-reset' ...).

        Raises GuestError when it takes longer than `timeout` seconds, or ends in another way.
        """
        deadline = time.monotonic() + timeout
        while self.running and time.monotonic() < deadline:
            self._check_guest()
            time.sleep(0.05)
        if self.running:
            raise GuestError(
                f"the guest did not shut down within {duration(timeout)}",
                hint="give 'shutdown_command', or a longer 'shutdown_timeout'",
            )
        assert self._process is not None
        self.monitor.join(5)  # it has told everything then
        if self.shutdown is None or not self.shutdown.data.get("guest") or self._process.poll() != 0:
            raise GuestError(self._why_ended())
        return str(self.shutdown.data.get("reason", "guest-shutdown"))

    # ---- end

    def powerdown(self) -> None:
        """Press the power button (ACPI)."""
        self.monitor.execute("system_powerdown")

    def stop(self) -> None:
        """End QEMU: ask it, then TERM, then KILL; reaped in any case. Disks are flushed by all but KILL."""
        with self._stack:
            if self._process is not None:
                self._end(self._process)

    def _end(self, qemu: process.Process) -> None:
        try:
            if self._monitor is not None and qemu.poll() is None:
                with contextlib.suppress(GuestError, TimeoutError):
                    self._monitor.execute("quit", timeout=3)
                    qemu.wait(5)
        finally:
            qemu.stop()
            self.qmp_socket.unlink(missing_ok=True)

    def release(self) -> Kept:
        """Leave QEMU running after our end; from now on it is the person's. The directory must be kept as well."""
        kept = Kept(self.pid, self.host_port, self.vnc_address, self.qmp_socket, self.directory)
        assert self._process is not None
        self._process.forget()
        if self._tpm:
            self._tpm.release()
        if self._monitor:
            self._monitor.close()
        self._stack.pop_all()
        self._process = self._monitor = self._tpm = None
        return kept


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A socket address for a path of any length (sun_path holds 108 bytes): through its directory's descriptor."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _join(parts: tuple[Path, ...], target: Path) -> None:
    """Several initrds as one: the kernel reads cpio archives one after the other, each from a multiple of 4 bytes."""
    with target.open("wb") as out:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, out)
            out.write(bytes(-out.tell() % 4))
