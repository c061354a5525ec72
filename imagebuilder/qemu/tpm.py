"""A virtual TPM: swtpm(8), the TPM emulator that QEMU's `-tpmdev emulator` talks to."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imagebuilder import process
from imagebuilder.errors import ImgbuildError

_START = 5.0  # seconds


@dataclass(frozen=True)
class TpmConfig:
    """`version`: 2.0 or 1.2; `device`: tpm-tis, tpm-crb, tpm-spapr, tpm-tis-device."""

    version: str = "2.0"
    device: str = "tpm-tis"


class Tpm:
    """A running swtpm. `socket` is what QEMU inherits and speaks to it over; it ends when QEMU hangs up."""

    def __init__(self, child: process.Process, sock: socket.socket) -> None:
        self.child = child
        self.socket = sock
        self._released = False

    def release(self) -> None:
        """Let it outlive us, with its QEMU."""
        self.child.forget()
        self._released = True

    def close(self) -> None:
        if not self._released:
            self.child.stop()


@contextlib.contextmanager
def running(config: TpmConfig, directory: Path) -> Iterator[Tpm]:
    """A TPM whose state is kept in `directory`/tpm (created, private); the caller closes `socket` when QEMU has it.

    Raises ImgbuildError when swtpm is missing or ends at once.
    """
    program = process.find("swtpm", package="swtpm")
    state = directory / "tpm"
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    ours, theirs = socket.socketpair()
    log = state / "swtpm.log"
    with ours, contextlib.ExitStack() as stack:
        argv = [
            program, "socket", *(["--tpm2"] if config.version == "2.0" else []), "--tpmstate", f"dir={state}",
            "--ctrl", f"type=unixio,clientfd={theirs.fileno()}", "--log", f"file={log}", "--terminate",
        ]  # fmt: skip
        with theirs:
            child = process.start(argv, pass_fds=[theirs.fileno()], may_survive=True)
        found = Tpm(child, ours)
        stack.callback(found.close)
        _prove(child, ours, log)
        yield found


def _prove(child: process.Process, ours: socket.socket, log: Path) -> None:
    """Ask for its capabilities (CMD_GET_CAPABILITY, swtpm_ioctls(3)): it answers when it is ready."""
    ours.settimeout(_START)
    try:
        ours.sendall(bytes([0, 0, 0, 1]))
        answer = ours.recv(8)
    except OSError:
        answer = b""
    if len(answer) < 8:
        code = child.stop()
        last = log.read_text(errors="replace").strip().splitlines()[-3:] if log.exists() else []
        raise ImgbuildError("\n".join([f"swtpm can't start (exit code {code})", *last]))
    ours.settimeout(None)
