"""The SSH communicator against real servers (OpenSSH, dropbear), and against servers that real ones won't be."""

from __future__ import annotations

import base64
import contextlib
import getpass
import os
import re
import select
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import paramiko
import pytest

from imagebuilder.errors import GuestError
from imagebuilder.ssh import installers
from imagebuilder.ssh import keys as sshkeys
from imagebuilder.ssh.communicator import SshCommunicator
from imagebuilder.ssh.config import CommunicatorOptions, Tunnel
from imagebuilder.ssh.login import Login, Offer
from imagebuilder.ssh.proxy import Proxy
from imagebuilder.ssh.settings import SshSettings
from imagebuilder.ui import Event, Ui
from tests.sshd import Server, dropbear, free_port, needs_dropbear, needs_sshd, sshd
from tests.sshfake import Behaviour, fake


class Heard(list[Event]):
    """A Ui's events."""

    def ui(self) -> Ui:
        return Ui("test", self.append)

    def texts(self, *kinds: str) -> list[str]:
        return [event.text for event in self if not kinds or event.kind in kinds]


@pytest.fixture
def heard() -> Heard:
    return Heard()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@contextlib.contextmanager
def connected(server: Server, heard: Heard, **settings: Any) -> Iterator[SshCommunicator]:
    with SshCommunicator(SshSettings(server.login, **settings), heard.ui()) as communicator:
        communicator.connect(30)
        yield communicator


@pytest.fixture(scope="module")
def guest(server: Server) -> Iterator[SshCommunicator]:
    """One session for many tests; what breaks it is mended by the next command."""
    with connected(server, Heard()) as communicator:
        yield communicator


def output_of(communicator: SshCommunicator, command: str) -> tuple[int | None, list[str], list[str]]:
    output: list[str] = []
    errors: list[str] = []
    status = communicator.run(command, on_line=output.append, on_error_line=errors.append, timeout=60)
    return status, output, errors


# -- options


def options(**given: Any) -> CommunicatorOptions:
    return CommunicatorOptions.model_validate({"ssh_username": "root", **given})


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "winrm": ({"communicator": "winrm"}, "communicator", "not supported yet"),
    "no username": ({"ssh_username": ""}, "ssh_username", "is missing"),
    "no key file": ({"ssh_private_key_file": "/nope"}, "ssh_private_key_file", "no such file"),
    "no private key": ({"ssh_private_key_file": __file__}, "ssh_private_key_file", "holds no private key"),
    "certificate alone": ({"ssh_certificate_file": "/nope"}, "ssh_certificate_file", "needs the private key"),
    "no agent": ({"ssh_agent_auth": True}, "ssh_agent_auth", "SSH_AUTH_SOCK is not set"),
    "bastion without login": ({"ssh_bastion_host": "b"}, "ssh_bastion_host", "needs a login"),
    "bastion and proxy": (
        {"ssh_bastion_host": "b", "ssh_bastion_password": "p", "ssh_proxy_host": "p"}, "ssh_proxy_host", "not both",
    ),
    "tunnel": ({"ssh_local_tunnels": ["80:80"]}, "ssh_local_tunnels", "write 'port:host:port'"),
    "tunnel port": ({"ssh_remote_tunnels": ["0:h:80"]}, "ssh_remote_tunnels", "not a tunnel"),
    "key bits": ({"temporary_key_pair_type": "rsa", "temporary_key_pair_bits": 512}, "temporary_key_pair_bits", "2048"),
    "timeout": ({"ssh_timeout": "-1s"}, "ssh_timeout", "longer than nothing"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "key", "part"), BAD.values(), ids=BAD)
def test_what_is_wrong_with_options_is_said(
    given: dict[str, Any], key: str, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    ((found, message),) = options(**given).problems()
    assert found == key
    assert part in message


@pytest.mark.parametrize("given", [{}, {"communicator": "none", "ssh_username": ""}, {"ssh_password": "x"}])
def test_good_options_have_no_problems(given: dict[str, Any]) -> None:
    assert list(options(**given).problems()) == []


def test_a_key_with_a_passphrase_is_refused(tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", tmp_path / "key"], check=True)
    ((_, message),) = options(ssh_private_key_file=str(tmp_path / "key")).problems()
    assert "has a passphrase: load it into an agent" in message


def test_the_deprecated_timeout_wins_as_in_packer() -> None:
    raw = {"ssh_timeout": "1m", "ssh_wait_timeout": "2m"}
    assert list(CommunicatorOptions.upgrade(raw)) == [("ssh_wait_timeout", "ssh_timeout")]
    assert raw == {"ssh_timeout": "2m"}


def test_agent_forwarding_is_off_unless_asked_for() -> None:
    assert not SshSettings.of(options(), 22, None).forward_agent
    asked = options(ssh_disable_agent_forwarding="false")
    assert SshSettings.of(asked, 22, None).forward_agent
    assert [key for key, _ in asked.doubts()] == ["ssh_disable_agent_forwarding"]


def test_passwords_are_in_no_representation() -> None:
    settings = SshSettings.of(
        options(ssh_password="hunter22", ssh_proxy_host="p", ssh_proxy_password="hunter22"), 1, None
    )
    assert "hunter22" not in repr(settings)


def test_a_bastion_takes_the_guests_key_by_default(tmp_path: Path) -> None:
    sshkeys.generate().write(tmp_path / "key")
    found = SshSettings.of(options(ssh_bastion_host="b", ssh_private_key_file=str(tmp_path / "key")), None, None)
    assert found.bastion is not None and found.bastion.key == found.login.key
    assert str(found.bastion) == "root@b:22"


# -- key pairs


@pytest.mark.parametrize(("kind", "bits"), [("", 0), ("ecdsa", 0), ("ecdsa", 521), ("rsa", 2048)])
def test_key_pairs_are_what_openssh_reads(kind: str, bits: int, tmp_path: Path) -> None:
    pair = sshkeys.generate(kind, bits, "some comment")
    pair.write(tmp_path / "key")
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    shown = subprocess.run(["ssh-keygen", "-y", "-f", tmp_path / "key"], capture_output=True, text=True, check=True)
    assert shown.stdout.split()[:2] == pair.public.split()[:2]
    assert pair.public.endswith(" some comment")


@pytest.mark.parametrize("given", [{"ssh_password": "x"}, {"ssh_agent_auth": True}, {"communicator": "none"}])
def test_no_key_pair_is_made_where_there_is_a_login(given: dict[str, Any], tmp_path: Path) -> None:
    assert sshkeys.for_build(options(**given), tmp_path) is None
    assert not (tmp_path / "key").exists()


def test_removal_takes_only_that_key_out(tmp_path: Path) -> None:
    ours, other = sshkeys.generate().public, sshkeys.generate().public
    (tmp_path / ".ssh").mkdir()
    file = tmp_path / ".ssh" / "authorized_keys"
    file.write_text(f'{other}\n{ours}\nfrom="10.0.0.1" {ours} again\n# it\'s a comment\n')
    file.chmod(0o640)
    before = file.stat().st_ino
    subprocess.run(
        ["sh", "-c", sshkeys.removal(ours)], env={"HOME": str(tmp_path), "PATH": _no_sudo(tmp_path)}, check=True
    )
    assert file.read_text() == f"{other}\n# it's a comment\n"
    assert (stat.S_IMODE(file.stat().st_mode), file.stat().st_ino) == (0o640, before)


def _no_sudo(directory: Path) -> str:
    """A PATH on which sudo does nothing: no test touches root's real keys."""
    bin = directory / "bin"
    bin.mkdir()
    (bin / "sudo").write_text("#!/bin/sh\nexit 1\n")
    (bin / "sudo").chmod(0o755)
    return f"{bin}:/usr/bin:/bin"


# -- getting in


@needs_sshd
def test_connects_runs_and_says_nothing(server: Server, heard: Heard) -> None:
    with connected(server, heard) as communicator:
        assert output_of(communicator, "echo out; echo err >&2; exit 3") == (3, ["out"], ["err"])
    assert heard == []


@needs_sshd
def test_one_session_carries_everything(guest: SshCommunicator, server: Server) -> None:
    before = server.log.count("Accepted publickey")
    for _ in range(3):
        guest.run("true")
    guest.upload(b"x", str(server.directory / "one"))
    assert server.log.count("Accepted publickey") == before


def test_timing_out_says_what_the_last_attempt_met(heard: Heard) -> None:
    port = free_port()
    with pytest.raises(GuestError) as caught:
        SshCommunicator(SshSettings(Login("127.0.0.1", port, "root")), heard.ui()).connect(1.2)
    assert caught.value.message == (
        f"Timed out after 1.2 s waiting for SSH at 127.0.0.1:{port}; last attempt: connection refused"
    )
    assert "guest's screen" in str(caught.value.hint)


def test_a_port_that_accepts_and_closes(heard: Heard) -> None:
    """As QEMU's forwarded port does while nothing listens in the guest."""
    with _answering(b"", close=True) as port, pytest.raises(GuestError, match="closed before an SSH greeting"):
        SshCommunicator(SshSettings(Login("127.0.0.1", port, "root")), heard.ui()).connect(0.6)


def test_a_port_that_accepts_and_is_silent(heard: Heard) -> None:
    """As QEMU's forwarded port does while the guest has no network."""
    with _answering(b"") as port, pytest.raises(GuestError, match="nothing answers"):
        SshCommunicator(SshSettings(Login("127.0.0.1", port, "root")), heard.ui()).connect(0.6)


def test_a_server_that_is_none(heard: Heard) -> None:
    with _answering(b"HTTP/1.1 400 Bad Request\r\n\r\n", close=True) as port, pytest.raises(GuestError) as caught:
        SshCommunicator(SshSettings(Login("127.0.0.1", port, "root")), heard.ui()).connect(1)
    assert "what answers does not speak SSH" in caught.value.message


@contextlib.contextmanager
def _answering(data: bytes, *, close: bool = False) -> Iterator[int]:
    ending, held = threading.Event(), list[socket.socket]()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)

        def accept() -> None:
            while not ending.is_set():
                with contextlib.suppress(TimeoutError):
                    stream, _ = listening.accept()
                    stream.sendall(data)
                    stream.close() if close else held.append(stream)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield int(listening.getsockname()[1])
        finally:
            ending.set()
            thread.join()
            for stream in held:
                stream.close()


@needs_sshd
def test_a_server_that_comes_late_is_found_at_once(tmp_path: Path, heard: Heard) -> None:
    port, key, up = free_port(), sshkeys.generate(), list[float]()
    login = Login("127.0.0.1", port, getpass.getuser(), key=key.key)
    done = threading.Event()

    def serve() -> None:
        time.sleep(1)
        with sshd(tmp_path, port=port, key=key):
            up.append(time.monotonic())
            done.wait(30)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with SshCommunicator(SshSettings(login), heard.ui()) as communicator:
            communicator.connect(30)
            assert time.monotonic() - up[0] < 4
    finally:
        done.set()
        thread.join()


def test_the_check_ends_the_wait_at_once(heard: Heard) -> None:
    def check() -> None:
        if time.monotonic() - began > 0.5:
            raise GuestError("QEMU died")

    began = time.monotonic()
    with _answering(b"") as port, pytest.raises(GuestError, match="QEMU died"):
        SshCommunicator(SshSettings(Login("127.0.0.1", port, "root")), heard.ui()).connect(60, check=check)
    assert time.monotonic() - began < 2


def test_ctrl_c_ends_the_wait_at_once(heard: Heard) -> None:
    with _answering(b"") as port:
        threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            SshCommunicator(SshSettings(Login("127.0.0.1", port, "root")), heard.ui()).connect(60)
    assert time.monotonic() - began < 3


# -- authentication


def password_login(port: int, password: str = "sesame") -> Login:
    return Login("127.0.0.1", port, "root", password)


@pytest.mark.parametrize("interactive", [False, True], ids=["password", "keyboard-interactive"])
def test_passwords(interactive: bool, heard: Heard) -> None:
    behaviour = Behaviour(password="sesame", interactive=interactive)
    with fake(behaviour) as port, SshCommunicator(SshSettings(password_login(port)), heard.ui()) as communicator:
        communicator.connect(20)
        assert communicator.run("anything", timeout=10) == 0
    assert behaviour.tried == ["sesame/sesame" if interactive else "sesame"]


def test_refused_logins_are_counted_and_told(heard: Heard) -> None:
    behaviour = Behaviour(password="sesame")
    with fake(behaviour) as port, pytest.raises(GuestError) as caught:
        SshCommunicator(SshSettings(password_login(port, "wrong"), attempts=2), heard.ui()).connect(60)
    assert caught.value.message == (
        "SSH did not let us in, 2 times: authentication failed for 'root' with password (the server takes password)"
    )
    assert "PermitRootLogin" in str(caught.value.hint) and "ssh_handshake_attempts" in str(caught.value.hint)
    assert behaviour.tried == ["wrong", "wrong"]
    assert heard.texts("message") == [
        "SSH answers, but authentication failed for 'root' with password (the server takes password); trying again"
    ]


def test_a_user_that_is_made_late_gets_in(heard: Heard) -> None:
    """As cloud-init makes it, after the server is up."""
    behaviour = Behaviour(password="sesame", refuse_first=1)
    with fake(behaviour) as port, SshCommunicator(SshSettings(password_login(port)), heard.ui()) as communicator:
        communicator.connect(20)
    assert behaviour.tried == ["sesame", "sesame"]


@needs_sshd
def test_what_the_server_would_take_is_named(server: Server, heard: Heard) -> None:
    settings = SshSettings(replace(server.login, key=None, password="x"), attempts=1)
    with pytest.raises(GuestError) as caught:
        SshCommunicator(settings, heard.ui()).connect(20)
    assert "(the server takes publickey)" in caught.value.message


@needs_sshd
def test_the_agents_keys(server: Server, heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with _agent(server, tmp_path, monkeypatch):
        login = replace(server.login, key=None, agent=True)
        with SshCommunicator(SshSettings(login), heard.ui()) as communicator:
            communicator.connect(20)
            assert output_of(communicator, 'echo "${SSH_AUTH_SOCK:-none}"')[1] == ["none"]
        with SshCommunicator(SshSettings(login, forward_agent=True), heard.ui()) as communicator:
            communicator.connect(20)
            listed = output_of(communicator, "ssh-add -L")[1]
            assert [line.split()[:2] for line in listed] == [server.key.public.split()[:2]]


@contextlib.contextmanager
def _agent(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    path = str(tmp_path / "agent")
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("SSH_AUTH_SOCK", path)
        until = time.monotonic() + 10
        while not Path(path).exists() and time.monotonic() < until:
            time.sleep(0.02)
        subprocess.run(["ssh-add", "-q", "-"], input=server.key.private, text=True, check=True, capture_output=True)
        yield
    finally:
        process.terminate()
        process.wait(10)


@needs_sshd
def test_a_certificate(tmp_path: Path, heard: Heard) -> None:
    authority = sshkeys.generate()
    authority.write(tmp_path / "ca")
    (tmp_path / "ca.pub").write_text(authority.public + "\n")
    own = sshkeys.generate()
    own.write(tmp_path / "own")
    (tmp_path / "own.pub").write_text(own.public + "\n")
    with sshd(tmp_path / "sshd", extra=f"TrustedUserCAKeys {tmp_path}/ca.pub") as server:
        user = server.login.username
        subprocess.run(
            ["ssh-keygen", "-q", "-s", tmp_path / "ca", "-I", "test", "-n", user, tmp_path / "own.pub"], check=True
        )
        given = options(
            ssh_username=user, ssh_private_key_file=str(tmp_path / "own"),
            ssh_certificate_file=str(tmp_path / "own-cert.pub"),
        )  # fmt: skip
        assert list(given.problems()) == []
        with SshCommunicator.of(given, server.port, None, heard.ui()) as communicator:
            communicator.connect(20)
            assert communicator.run("true") == 0
        assert "CA ED25519" in server.log


# -- algorithms


@needs_sshd
def test_cheap_key_exchange_first_and_chosen_ones_only(tmp_path: Path, heard: Heard) -> None:
    with sshd(tmp_path, extra="LogLevel DEBUG1") as server:
        with connected(server, heard):
            pass
        assert "kex: algorithm: curve25519-sha256" in server.log
        with connected(server, heard, offer=Offer(("aes256-ctr",), ("ecdh-sha2-nistp256",))):
            pass
        assert "kex: algorithm: ecdh-sha2-nistp256" in server.log
        assert "kex: client->server cipher: aes256-ctr" in server.log


@needs_sshd
@pytest.mark.parametrize(
    ("offer", "part"),
    [
        (Offer(("rot13",)), "Unknown SSH algorithm: rot13"),
        (Offer(("3des-cbc",)), "no common algorithm"),
    ],
    ids=["unknown", "not the server's"],
)
def test_algorithms_that_do_not_fit(offer: Offer, part: str, server: Server, heard: Heard) -> None:
    with pytest.raises(GuestError, match=part):
        SshCommunicator(SshSettings(server.login, offer=offer), heard.ui()).connect(1)


# -- readiness


def test_an_installer_is_waited_out(heard: Heard) -> None:
    behaviour = Behaviour(password="sesame", first_output="imgbuild-installer: Anaconda\n")
    with fake(behaviour) as port, SshCommunicator(SshSettings(password_login(port)), heard.ui()) as communicator:
        communicator.connect(20)
    assert heard.texts() == ["That is Anaconda, not the installed system: waiting for that"]
    assert behaviour.connections >= 2


def test_an_installer_that_stays_is_named(heard: Heard) -> None:
    with fake(Behaviour(password="sesame")) as port:
        settings = SshSettings(password_login(port))
        with pytest.raises(GuestError, match="last attempt: YaST answers, not the installed system"):
            SshCommunicator(settings, heard.ui(), readiness=lambda output: "YaST").connect(1.5)
    assert heard.texts() == ["That is YaST, not the installed system: waiting for that"]


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ((), None),
        (("run/anaconda/",), "Anaconda"),
        (("run/install/",), "Anaconda"),
        (("tmp/anaconda.log",), "Anaconda"),
        (("var/lib/cdebconf/questions.dat", "sbin/debian-installer"), "the Debian installer"),
        (("var/lib/cdebconf/questions.dat",), None),
        (("proc/cmdline=quiet boot=casper ---", "run/subiquity/"), "Ubuntu's installer"),
        (("proc/cmdline=boot=casper",), None),
        (("etc/install.inf",), "YaST"),
        (("proc/cmdline=root=live:CDLABEL=x", "run/agama/"), "Agama"),
    ],
)
def test_installers_are_recognised(files: tuple[str, ...], name: str | None, tmp_path: Path) -> None:
    for entry in files:
        path, _, text = entry.partition("=")
        file = tmp_path / path
        (file if path.endswith("/") else file.parent).mkdir(parents=True, exist_ok=True)
        if not path.endswith("/"):
            file.write_text(text + "\n")
    question = re.sub(r" /(run|tmp|var|sbin|proc|etc)/", rf" {tmp_path}/\1/", installers.question())
    said = subprocess.run(question, shell=True, capture_output=True, text=True)
    assert installers.answer(said.stdout) == name
    assert said.stderr == ""


def test_pause_before_connecting_logs_in_again(heard: Heard) -> None:
    behaviour = Behaviour(password="sesame")
    settings_of = lambda port: SshSettings(password_login(port), pause_before_connecting=0.3)  # noqa: E731
    with fake(behaviour) as port, SshCommunicator(settings_of(port), heard.ui()) as communicator:
        communicator.connect(20)
        communicator.reconnect(20)
    assert behaviour.tried == ["sesame"] * 3
    assert heard.texts() == ["Waiting 0.3 s before connecting again (pause_before_connecting)"]


# -- commands


OUTPUTS = {
    "lines": (r"printf 'a\nb\n'", ["a", "b"]),
    "empty lines": (r"printf 'a\n\nb\n'", ["a", "", "b"]),
    "no end": (r"printf 'a\nb'", ["a", "b"]),
    "dos": (r"printf 'a\r\nb\r\n'", ["a", "b"]),
    "progress": (r"printf '10%%\r50%%\r100%%\ndone'", ["100%", "done"]),
    "utf-8 in pieces": (r"printf '\303'; sleep 0.2; printf '\274\n'", ["ü"]),
    "no utf-8": (r"printf 'a\377b\n'", ["a\ufffdb"]),
    "long": ("head -c 200000 /dev/zero | tr '\\0' x; echo; echo end", None),
    "nothing": ("true", []),
    "input is empty": ("cat; read x || echo closed", ["closed"]),
}


@needs_sshd
@pytest.mark.parametrize(("command", "lines"), OUTPUTS.values(), ids=OUTPUTS)
def test_output_comes_as_lines(command: str, lines: list[str] | None, guest: SshCommunicator) -> None:
    status, output, errors = output_of(guest, command)
    assert errors == []
    if lines is None:
        assert ("".join(output), status) == ("x" * 200000 + "end", 0)
    else:
        assert output == lines


@needs_sshd
def test_lines_come_while_the_command_runs(guest: SshCommunicator) -> None:
    came: list[float] = []
    guest.run("echo a; sleep 0.6; echo b", on_line=lambda line: came.append(time.monotonic()))
    assert came[1] - came[0] > 0.4


@needs_sshd
def test_much_output_on_both_streams(guest: SshCommunicator) -> None:
    status, output, errors = output_of(guest, "seq 20000 >&2 & seq 30000; wait")
    assert (status, len(output), len(errors)) == (0, 30000, 20000)


@needs_sshd
def test_a_signal_is_told_by_the_status(guest: SshCommunicator) -> None:
    assert guest.run("kill -USR1 $$") == 128 + signal.SIGUSR1


@needs_sshd
def test_a_command_that_leaves_something_behind_ends(guest: SshCommunicator) -> None:
    began = time.monotonic()
    assert output_of(guest, "sleep 60 & echo started $!")[0] == 0
    assert time.monotonic() - began < 30


@needs_sshd
def test_timeout(guest: SshCommunicator) -> None:
    lines: list[str] = []
    with pytest.raises(GuestError, match=r"The command still runs after 0\.5 s"):
        guest.run("printf 'Password: '; sleep 60", on_line=lines.append, timeout=0.5)
    assert lines == ["Password: "]
    assert guest.run("true") == 0


@needs_sshd
def test_ctrl_c_ends_a_command_at_once(guest: SshCommunicator) -> None:
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        guest.run("sleep 60")
    assert time.monotonic() - began < 5


@needs_sshd
def test_a_lost_connection_is_none_and_the_next_command_has_a_new_one(guest: SshCommunicator) -> None:
    assert guest.run("kill -KILL $PPID; sleep 60") is None
    assert output_of(guest, "echo back") == (0, ["back"], [])


@needs_sshd
def test_a_terminal_when_asked_for(server: Server, heard: Heard) -> None:
    with connected(server, heard, pty=True) as communicator:
        status, output, errors = output_of(communicator, "test -t 1 && echo $TERM; echo err >&2; stty size")
    assert (status, output, errors) == (0, ["xterm", "err", "40 80"], [])


def test_a_guest_that_falls_silent_is_taken_for_dead(heard: Heard) -> None:
    relay = _Relay()
    with fake(Behaviour(password="sesame", silent=True)) as port, relay.running(port) as way:
        settings = SshSettings(password_login(way), silence=1.0)
        with SshCommunicator(settings, heard.ui(), readiness=None) as communicator:
            communicator.connect(20)
            threading.Timer(0.5, relay.stall).start()
            began = time.monotonic()
            assert communicator.run("never ends", timeout=30) is None
            assert time.monotonic() - began < 10


class _Relay:
    """Carries bytes until it is told to stall."""

    def __init__(self) -> None:
        self._stalled, self._ending = threading.Event(), threading.Event()

    def stall(self) -> None:
        self._stalled.set()

    @contextlib.contextmanager
    def running(self, port: int) -> Iterator[int]:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            thread = threading.Thread(target=self._carry, args=(listening, port))
            thread.start()
            try:
                yield int(listening.getsockname()[1])
            finally:
                self._ending.set()
                thread.join()

    def _carry(self, listening: socket.socket, port: int) -> None:
        near, _ = listening.accept()
        with near, socket.create_connection(("127.0.0.1", port)) as far:
            near.settimeout(0.02)
            far.settimeout(0.02)
            while not self._ending.is_set():
                for one, other in ((near, far), (far, near)):
                    with contextlib.suppress(TimeoutError):
                        if not self._stalled.is_set():
                            other.sendall(one.recv(65536))


@needs_sshd
@pytest.mark.parametrize(("interval", "sent"), [(1.0, True), (-1.0, False)], ids=["on", "off"])
def test_signs_of_life(interval: float, sent: bool, tmp_path: Path, heard: Heard) -> None:
    with sshd(tmp_path, extra="LogLevel DEBUG1") as server:
        with connected(server, heard, keep_alive=interval) as communicator:
            communicator.run("sleep 1.4")
        assert ("global_request: rtype keepalive" in server.log) is sent


@needs_sshd
def test_another_host_key_is_said(tmp_path: Path, heard: Heard) -> None:
    with sshd(tmp_path / "a") as first:
        communicator = SshCommunicator(SshSettings(first.login), heard.ui())
        communicator.connect(20)
        first.stop()
    keys = (tmp_path / "a" / "authorized_keys").read_text()
    with communicator, sshd(tmp_path / "a", port=first.port):
        (tmp_path / "a" / "authorized_keys").write_text(keys)
        communicator.reconnect(20)
    assert heard.texts("warning") == ["The guest has another SSH host key than before: is it still the same system?"]


# -- ways in


@needs_sshd
def test_through_a_bastion(server: Server, tmp_path: Path, heard: Heard) -> None:
    with sshd(tmp_path / "bastion") as bastion:
        with connected(server, heard, bastion=bastion.login) as communicator:
            assert output_of(communicator, "echo there")[1] == ["there"]
            communicator.reconnect(20)
            assert communicator.run("true") == 0
        assert bastion.log.count("Accepted publickey") == 1


@needs_sshd
def test_a_bastion_that_refuses_is_named(server: Server, tmp_path: Path, heard: Heard) -> None:
    with sshd(tmp_path / "bastion") as bastion:
        stranger = replace(bastion.login, key=sshkeys.generate().key)
        with pytest.raises(GuestError, match=r"at the bastion 127\.0\.0\.1: authentication failed"):
            SshCommunicator(SshSettings(server.login, bastion=stranger, attempts=1), heard.ui()).connect(20)


PROXIES = {
    "socks": Proxy("127.0.0.1", 0),
    "socks with login": Proxy("127.0.0.1", 0, "me", "sesame"),
    "http": Proxy("127.0.0.1", 0, http=True),
    "http with login": Proxy("127.0.0.1", 0, "me", "sesame", http=True),
}


@needs_sshd
@pytest.mark.parametrize("proxy", PROXIES.values(), ids=PROXIES)
def test_through_a_proxy(proxy: Proxy, server: Server, heard: Heard) -> None:
    with _proxy(proxy.password) as port, connected(server, heard, proxy=replace(proxy, port=port)) as communicator:
        assert output_of(communicator, "echo there")[1] == ["there"]


REFUSED = {
    "wrong password": (Proxy("127.0.0.1", 0, "me", "wrong"), 22, "refuses user 'me'"),
    "no login": (Proxy("127.0.0.1", 0), 22, "wants a login"),
    "nobody there": (Proxy("127.0.0.1", 0, "me", "sesame"), 1, "connection refused"),
    "http nobody there": (Proxy("127.0.0.1", 0, "me", "sesame", http=True), 1, "502"),
    "http wrong password": (Proxy("127.0.0.1", 0, "me", "wrong", http=True), 22, "407"),
}


@pytest.mark.parametrize(("proxy", "target", "part"), REFUSED.values(), ids=REFUSED)
def test_what_a_proxy_refuses_is_told(proxy: Proxy, target: int, part: str, heard: Heard) -> None:
    with _proxy("sesame") as port, pytest.raises(GuestError, match=part):
        settings = SshSettings(Login("127.0.0.1", target, "root"), proxy=replace(proxy, port=port))
        SshCommunicator(settings, heard.ui()).connect(0.1)


@pytest.mark.parametrize(
    ("host", "http"), [("p.example", False), ("http://p.example", True), ("socks5://p.example/", False)]
)
def test_proxy_names(host: str, http: bool) -> None:
    assert Proxy.of(host, 1080, "", "") == Proxy("p.example", 1080, http=http)


@contextlib.contextmanager
def _proxy(password: str) -> Iterator[int]:
    """A SOCKS 5 and HTTP proxy; with a password only for user 'me'."""
    threads: list[threading.Thread] = []
    ending = threading.Event()

    def serve() -> None:
        while not ending.is_set():
            with contextlib.suppress(TimeoutError):
                stream, _ = listening.accept()
                stream.settimeout(10)
                threads.append(threading.Thread(target=_relayed, args=(stream, password, ending)))
                threads[-1].start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(0.05)
        threads.append(threading.Thread(target=serve))
        threads[0].start()
        try:
            yield int(listening.getsockname()[1])
        finally:
            ending.set()
            for thread in threads:
                thread.join()


def _relayed(near: socket.socket, password: str, ending: threading.Event) -> None:
    with near, contextlib.suppress(OSError):
        far = (_http_far if near.recv(1, socket.MSG_PEEK) == b"C" else _socks_far)(near, password)
        if far is None:
            return
        with far:
            while not ending.is_set():
                readable, _, _ = select.select([near, far], [], [], 0.05)
                for side in readable:
                    data = side.recv(65536)
                    if not data:
                        return
                    (far if side is near else near).sendall(data)


def _socks_far(near: socket.socket, password: str) -> socket.socket | None:
    methods = near.recv(near.recv(2)[1])
    wanted = 2 if password else 0
    near.sendall(bytes([5, wanted if wanted in methods else 255]))
    if wanted not in methods:
        return None
    if password:
        near.recv(1)
        user, said = (near.recv(near.recv(1)[0]) for _ in range(2))
        near.sendall(bytes([1, (user, said) != (b"me", password.encode())]))
        if said != password.encode():
            return None
    near.recv(4)
    host, port = near.recv(near.recv(1)[0]), int.from_bytes(near.recv(2), "big")
    try:
        far = socket.create_connection((host, port), 5)
    except OSError:
        near.sendall(bytes([5, 5, 0, 1]) + bytes(6))
        return None
    near.sendall(bytes([5, 0, 0, 3, 4]) + b"here" + bytes(2))
    return far


def _http_far(near: socket.socket, password: str) -> socket.socket | None:
    head = b""
    while b"\r\n\r\n" not in head:
        head += near.recv(1)
    login = base64.b64encode(f"me:{password}".encode())
    host, _, port = head.split()[1].decode().rpartition(":")
    if password and b"Basic " + login not in head:
        near.sendall(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
        return None
    try:
        far = socket.create_connection((host, int(port)), 5)
    except OSError:
        near.sendall(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
        return None
    near.sendall(b"HTTP/1.1 200 OK\r\nVia: 1.1 test\r\n\r\n")
    return far


# -- tunnels


@needs_sshd
def test_tunnels(server: Server, heard: Heard) -> None:
    inside, outside = free_port(), free_port()
    with _answering(b"hello", close=True) as target:
        ways = {
            "local_tunnels": (Tunnel(inside, "127.0.0.1", target),),
            "remote_tunnels": (Tunnel(outside, "localhost", target),),
        }
        with connected(server, heard, **ways) as communicator:
            for port in (inside, outside, inside):
                with socket.create_connection(("127.0.0.1", port), 10) as stream:
                    assert stream.makefile("rb").read() == b"hello"
            communicator.reconnect(20)
            with socket.create_connection(("127.0.0.1", inside), 10) as stream:
                assert stream.recv(5, socket.MSG_WAITALL) == b"hello"
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", inside), 1)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("tunnel")]


@needs_sshd
def test_a_tunnel_whose_port_is_taken(server: Server, heard: Heard) -> None:
    with _answering(b"") as taken:
        settings = SshSettings(server.login, local_tunnels=(Tunnel(taken, "localhost", 1),))
        with pytest.raises(GuestError, match=f"Can't listen on port {taken}"):
            SshCommunicator(settings, heard.ui()).connect(20)


# -- no thread is left behind


@needs_sshd
def test_nothing_is_left_when_it_is_closed(server: Server, heard: Heard) -> None:
    before = set(threading.enumerate())
    with connected(server, heard, silence=5.0) as communicator:
        communicator.run("true")
    until = time.monotonic() + 5
    while set(threading.enumerate()) - before and time.monotonic() < until:
        time.sleep(0.05)
    assert set(threading.enumerate()) - before == set()
    assert communicator._transport is None


@needs_dropbear
def test_dropbear(tmp_path: Path, heard: Heard) -> None:
    with dropbear(tmp_path / "dropbear") as server, connected(server, heard) as communicator:
        assert output_of(communicator, "echo out; echo err >&2; exit 3") == (3, ["out"], ["err"])
        assert isinstance(communicator._transport, paramiko.Transport)
