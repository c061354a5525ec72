"""Real SSH servers for tests: OpenSSH's sshd and dropbear as the current user, on loopback, with keys of their own."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from imagebuilder.ssh.keys import KeyPair, generate
from imagebuilder.ssh.login import Login

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
DROPBEAR = shutil.which("dropbear", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_sshd = pytest.mark.skipif(SSHD is None, reason="sshd is not installed (package openssh-server)")
_UNSHARE = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--mount", "--map-root-user"]


def _can_unshare() -> bool:
    done = subprocess.run([*_UNSHARE, "mount", "--bind", "/tmp", "/mnt"], capture_output=True)
    return done.returncode == 0


needs_dropbear = pytest.mark.skipif(
    DROPBEAR is None or not _can_unshare(),
    reason="needs dropbear (package dropbear-bin) and a mount namespace to run it in",
)

# With SHLVL bash does not read the start files of whoever runs the tests.
_CONFIG = """\
{extra}
ListenAddress 127.0.0.1
Port {port}
HostKey {directory}/host_key
PidFile none
AuthorizedKeysFile {directory}/authorized_keys
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
AllowTcpForwarding yes
AllowAgentForwarding yes
SetEnv SHLVL=1 TZ=UTC
LogLevel VERBOSE
"""


@dataclass
class Server:
    """A server that runs, and who may log in."""

    port: int
    key: KeyPair
    directory: Path
    process: subprocess.Popen[bytes]
    user: str = getpass.getuser()

    @property
    def login(self) -> Login:
        return Login("127.0.0.1", self.port, self.user, key=self.key.key)

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def sshd(
    directory: Path, *, port: int | None = None, extra: str = "", key: KeyPair | None = None, sftp: bool = True
) -> Iterator[Server]:
    """OpenSSH's server with a new host key; `extra` lines go into its configuration, before the rest."""
    extra += "\nSubsystem sftp internal-sftp" if sftp else ""
    port = port or free_port()
    directory.mkdir(parents=True, exist_ok=True)
    key = _keys(directory, key)
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True) if os.getuid() == 0 else None
    (directory / "sshd_config").write_text(_CONFIG.format(port=port, directory=directory, extra=extra))
    assert SSHD is not None
    with _running([SSHD, "-D", "-e", "-f", str(directory / "sshd_config")], directory, port) as process:
        yield Server(port, key, directory, process)


@contextlib.contextmanager
def dropbear(directory: Path) -> Iterator[Server]:
    """dropbear, which has no SFTP of its own. It only knows the home directory of the user database, so it runs where
    a directory of the test's stands in that place."""
    port = free_port()
    directory.mkdir(parents=True, exist_ok=True)
    key = _keys(directory, None)
    home = directory / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    home.chmod(0o700)
    (home / ".ssh" / "authorized_keys").write_text(key.public + "\n")
    (home / ".ssh" / "authorized_keys").chmod(0o600)
    subprocess.run(["dropbearkey", "-t", "ed25519", "-f", directory / "dropbear_key"], check=True, capture_output=True)
    assert DROPBEAR is not None
    pid_file = str(directory / "pid")  # dropbear removes it at its end; /dev/null would be gone from the machine
    server = [DROPBEAR, "-F", "-E", "-r", str(directory / "dropbear_key"), "-p", f"127.0.0.1:{port}", "-P", pid_file]
    argv = [*_UNSHARE, "sh", "-c", 'mount --bind "$1" ~root && shift && exec "$@"', "sh", str(home), *server]
    with _running(argv, directory, port) as process:
        yield Server(port, key, directory, process, "root")


def _keys(directory: Path, key: KeyPair | None) -> KeyPair:
    host = generate()
    host_path = directory / "host_key"
    host_path.unlink(missing_ok=True)
    host.write(host_path)
    key = key or generate(comment="test")
    (directory / "authorized_keys").write_text(key.public + "\n")
    return key


@contextlib.contextmanager
def _running(argv: list[str], directory: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 10
        while time.monotonic() < until:
            assert process.poll() is None, (directory / "log").read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as probe:
                if probe.recv(4):
                    break
            time.sleep(0.02)
        yield process
    finally:
        process.terminate()
        process.wait(10)
