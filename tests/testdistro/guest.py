"""A plain QEMU guest for tests of the test distribution: no builder in between, only QEMU and its monitor."""

from __future__ import annotations

import re
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import paramiko

from imagebuilder import process
from imagebuilder.qemu import firmware, qmp

_KEYS = {" ": ["spc"], ".": ["dot"], "/": ["slash"], "=": ["equal"], ":": ["shift", "semicolon"]}
_SCREEN = 80 * 25 * 2  # bytes of text and attributes, at 0xb8000 as long as nothing has scrolled


@dataclass(frozen=True)
class Guest:
    """A running QEMU; `serial` is the file that its serial line goes to."""

    qemu: process.Process
    monitor: qmp.Monitor
    serial: Path

    def text(self) -> str:
        return self.serial.read_text(errors="replace").replace("\r", "")

    def wait_for(self, words: str, timeout: float = 90) -> None:
        self.until(lambda: words in self.text(), f"'{words}'", timeout)

    def until(self, true: Callable[[], bool], what: str, timeout: float = 90) -> None:
        deadline = time.monotonic() + timeout
        while not true():
            assert time.monotonic() < deadline, f"{what} did not come; serial line:\n{self.text()[-4000:]}"
            assert self.qemu.poll() is None, f"QEMU ended before {what} came; serial line:\n{self.text()[-4000:]}"
            time.sleep(0.05)

    def ended(self, timeout: float = 90) -> str:
        """Wait until QEMU ends by itself; all that the guest said."""
        try:
            assert self.qemu.wait(timeout) == 0
        except TimeoutError as error:
            raise AssertionError(f"{error}; serial line:\n{self.text()[-4000:]}") from None
        return self.text()

    def screen(self) -> str:
        """What stands on a VGA text screen."""
        with tempfile.NamedTemporaryFile() as file:
            self.monitor.execute("pmemsave", {"val": 0xB8000, "size": _SCREEN, "filename": file.name})
            cells = Path(file.name).read_bytes()[::2].decode("cp437")
        return "\n".join(cells[start : start + 80].rstrip() for start in range(0, len(cells), 80))

    def press(self, *names: str) -> None:
        """Press these keys together."""
        keys = [{"type": "qcode", "data": name} for name in names]
        self.monitor.execute("send-key", {"keys": keys, "hold-time": 20})

    def type(self, text: str) -> None:
        """Type characters, each after the guest echoed the one before: a keyboard holds only 16 bytes."""
        for length, character in enumerate(text, 1):
            self.press(*_KEYS.get(character, [character]))
            self.until(lambda typed=text[:length]: self.text().endswith(typed), f"the echo of '{text[:length]}'")  # type: ignore[misc]

    def ssh_port(self) -> int:
        match = re.search(r"HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)", self.monitor.hmp("info usernet"))
        assert match is not None
        return int(match[1])

    @contextmanager
    def ssh(self, key: paramiko.PKey | None = None, password: str | None = None) -> Iterator[paramiko.SSHClient]:
        """Log in as root as soon as that can be done."""
        deadline = time.monotonic() + 90
        with paramiko.SSHClient() as client:
            client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
            while True:
                try:
                    client.connect(
                        "127.0.0.1", self.ssh_port(), "root", password, key, timeout=60, banner_timeout=4,
                        look_for_keys=False, allow_agent=False,
                    )  # fmt: skip
                    break
                except paramiko.AuthenticationException:
                    raise
                except (paramiko.SSHException, OSError):  # QEMU takes the connection before the guest listens
                    assert time.monotonic() < deadline, f"no SSH; serial line:\n{self.text()[-4000:]}"
                    time.sleep(0.2)
            yield client


def said(client: paramiko.SSHClient, command: str) -> str:
    """What a command of the guest printed; it must have succeeded."""
    _, out, err = client.exec_command(command, timeout=60)
    text = out.read().decode().strip()
    assert out.channel.recv_exit_status() == 0, err.read().decode()
    return text


@contextmanager
def running(directory: Path, *arguments: object, uefi: bool = False, nic: str = "virtio-net-pci") -> Iterator[Guest]:
    """Start a guest with a network card whose port 22 is forwarded; its files go to `directory`."""
    ours, theirs = socket.socketpair()
    serial = directory / "serial.log"
    argv = [
        "qemu-system-x86_64", "-accel", "tcg", "-m", "512", "-smp", "2", "-display", "none", "-vga", "std",
        "-nic", f"user,model={nic},hostfwd=tcp:127.0.0.1:0-:22", "-device", "virtio-rng-pci",
        "-serial", f"file:{serial}", "-chardev", f"socket,id=qmp,fd={theirs.fileno()}", "-mon", "qmp,mode=control",
        *(_flash(directory) if uefi else ()), *map(str, arguments),
    ]  # fmt: skip
    with (
        (directory / "qemu.log").open("wb") as log,
        process.start(argv, stderr=log, pass_fds=[theirs.fileno()]) as qemu,
        theirs,
        qmp.Monitor(ours, lambda: (directory / "qemu.log").read_text()) as monitor,
    ):
        theirs.close()
        yield Guest(qemu, monitor, serial)


def _flash(directory: Path) -> list[str]:
    found = firmware.find("x86_64", "pc")
    assert found.vars is not None
    variables = directory / "variables.fd"
    shutil.copy(found.vars, variables)
    return [
        "-drive", f"if=pflash,format={found.code_format},readonly=on,file={found.code}",
        "-drive", f"if=pflash,format={found.vars_format},file={variables}",
    ]  # fmt: skip


@contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[str]:
    """Serve files over HTTP on loopback; yields the URL as a guest of QEMU's user network writes it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = files.get(self.path)
            self.send_response(404 if content is None else 200)
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            self.wfile.write(content or b"")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, name="http", daemon=True)
        thread.start()
        yield f"http://10.0.2.2:{server.server_address[1]}"
        server.shutdown()
        thread.join()
