"""A shell in the guest against real servers, with real pipes and with a person at a real terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import termios
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagebuilder import interrupt
from imagebuilder.errors import GuestError
from imagebuilder.ssh.communicator import SshCommunicator
from imagebuilder.ssh.settings import SshSettings
from imagebuilder.ssh.terminal import LEFT, Escapes
from imagebuilder.ui import Event, Ui
from tests.sshd import Server, dropbear, needs_dropbear, needs_sshd, sshd

# Whoever runs the tests keeps their start files and their shell's history to themselves.
PLAIN_SHELL = "ForceCommand env PS1='ready> ' ENV= sh"
READY = "ready> "


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with sshd(tmp_path_factory.mktemp("sshd"), extra=PLAIN_SHELL) as running:
        yield running


@contextlib.contextmanager
def connected(server: Server, said: list[Event] | None = None) -> Iterator[SshCommunicator]:
    ui = Ui("test", (said if said is not None else []).append)
    with SshCommunicator(SshSettings(server.login), ui, readiness=None) as communicator:
        communicator.connect(30)
        yield communicator


@pytest.fixture
def guest(server: Server) -> Iterator[SshCommunicator]:
    with connected(server) as communicator:
        yield communicator


def piped(guest: SshCommunicator, tmp_path: Path, given: bytes) -> tuple[int, bytes, bytes]:
    """What the shell makes of the input: exit status, output, errors."""
    stdin, stdout, stderr = (tmp_path / name for name in ("stdin", "stdout", "stderr"))
    stdin.write_bytes(given)
    with stdin.open("rb") as source, stdout.open("wb") as output, stderr.open("wb") as errors:
        status = guest.shell(source, output, errors)
    return status, stdout.read_bytes(), stderr.read_bytes()


Act = str | Callable[[], object]


class Person:
    """Someone at a terminal, who waits for what they read before they type or do the next thing."""

    def __init__(self, rows: int = 41, columns: int = 97) -> None:
        self._keys, self.terminal = pty.openpty()
        self.resize(rows, columns)
        self.read = ""
        self._failed: list[BaseException] = []

    def __enter__(self) -> Person:
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        os.close(self.terminal)

    def resize(self, rows: int, columns: int) -> None:
        termios.tcsetwinsize(self._keys, (rows, columns))

    def hang_up(self) -> None:
        if self._keys >= 0:
            os.close(self._keys)
        self._keys = -1

    def modes(self) -> list[object]:
        return termios.tcgetattr(self.terminal)

    def shell(self, guest: SshCommunicator, *acts: tuple[str, Act]) -> int:
        """The session, on this thread as signals want it; the person acts on another."""
        thread = threading.Thread(target=self._act, args=(acts,))
        stdin, stdout = (os.fdopen(os.dup(self.terminal), mode, buffering=0) for mode in ("rb", "wb"))
        with stdin, stdout:
            thread.start()
            try:
                return guest.shell(stdin, stdout, stdout)
            finally:
                thread.join()
                if self._failed:
                    raise self._failed[0]

    def _act(self, acts: tuple[tuple[str, Act], ...]) -> None:
        try:
            for awaited, act in acts:
                self._await(awaited)
                if callable(act):
                    act()
                else:
                    os.write(self._keys, act.encode())
        except BaseException as error:
            self._failed.append(error)
            self.hang_up()

    def _await(self, text: str) -> None:
        """Read on until there is the text, which may be a pattern."""
        fresh, until = b"", time.monotonic() + 20
        os.set_blocking(self._keys, False)
        while not re.search(text, fresh.decode(errors="replace")):
            assert time.monotonic() < until, f"no {text!r} in {fresh!r}"
            with contextlib.suppress(BlockingIOError):
                fresh += os.read(self._keys, 65536)
            time.sleep(0.01)
        self.read += fresh.decode(errors="replace")


@pytest.fixture
def person() -> Iterator[Person]:
    with Person() as someone:
        yield someone


# -- the escape


TYPED = {
    "nothing special": ("ls\r", "ls\r", False),
    "at the beginning": ("~.", "", True),
    "after a line": ("ls\r~.rest", "ls\r", True),
    "after a newline": ("ls\n~.", "ls\n", True),
    "within a line": ("cd ~.\r", "cd ~.\r", False),
    "a tilde and more": ("~/bin\r", "~/bin\r", False),
    "a tilde alone": ("~\r~.", "~\r", True),
    "two tildes": ("~~.\r", "~.\r", False),
    "after two tildes": ("~~\r~.", "~\r", True),
    "not ASCII": ("grüße €\r~ü\r", "grüße €\r~ü\r", False),
}


@pytest.mark.parametrize("at_once", [True, False], ids=["pasted", "typed"])
@pytest.mark.parametrize(("typed", "passed", "left"), TYPED.values(), ids=TYPED)
def test_escapes(typed: str, passed: str, left: bool, at_once: bool) -> None:
    escapes, sent, ended = Escapes(), b"", False
    for piece in [typed.encode()] if at_once else [bytes([byte]) for byte in typed.encode()]:
        if not ended:
            more, ended = escapes.feed(piece)
            sent += more
    assert (sent.decode(), ended) == (passed, left)


# -- piped in


SCRIPTS = {
    "streams apart": (b"echo out; echo err >&2; exit 3\n", (3, b"out\n", b"err\n")),
    "ends with its input": (b"echo a\nfalse", (1, b"a\n", b"")),
    "nothing": (b"", (0, b"", b"")),
    "no terminal": (b"tty\n", (1, b"not a tty\n", b"")),
    "a tilde is a tilde": (b"echo a\n~.\nexit 4\n", (4, b"a\n", b"")),
    "signal": (b"kill -KILL $$\n", (137, b"", b"")),
    "output closed early": (b"exec >&- 2>&-; sleep 1; exit 6\n", (6, b"", b"")),
}


@needs_sshd
@pytest.mark.parametrize(("script", "expected"), SCRIPTS.values(), ids=SCRIPTS)
def test_what_is_piped_in_runs(
    script: bytes, expected: tuple[int, bytes, bytes], guest: SshCommunicator, tmp_path: Path
) -> None:
    status, output, errors = piped(guest, tmp_path, script)
    if b"~." in script:  # each sh has words of its own for that
        errors = b""
    assert (status, output, errors) == expected


@needs_sshd
def test_more_than_the_windows_hold_goes_both_ways(tmp_path: Path) -> None:
    """A window is 2 MiB; here each side first says more than that before it listens."""
    content = os.urandom(6 * 2**20)
    command = "ForceCommand head -c 8000000 /dev/zero; cat"
    with sshd(tmp_path / "sshd", extra=command) as server, connected(server) as guest:
        status, output, errors = piped(guest, tmp_path, content)
    assert (status, errors) == (0, b"")
    assert output == bytes(8_000_000) + content


@needs_sshd
def test_a_shell_that_ends_does_not_wait_for_its_input(guest: SshCommunicator, tmp_path: Path) -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stdin, os.fdopen(write, "wb") as keys, (tmp_path / "out").open("wb") as output:
        keys.write(b"exit 5\n")
        keys.flush()
        assert guest.shell(stdin, output, output) == 5


@needs_sshd
def test_what_is_left_in_the_background_does_not_hold_the_shell(guest: SshCommunicator, tmp_path: Path) -> None:
    began = time.monotonic()
    assert piped(guest, tmp_path, b"sleep 15 & echo here; exit 5\n") == (5, b"here\n", b"")
    assert time.monotonic() - began < 12


@needs_sshd
@pytest.mark.parametrize("before", ["", "exec >&- 2>&-;"], ids=["silent", "output closed"])
def test_waiting_costs_nothing(before: str, guest: SshCommunicator, tmp_path: Path) -> None:
    began = time.thread_time()
    assert piped(guest, tmp_path, f"{before} sleep 2\n".encode())[0] == 0
    assert time.thread_time() - began < 0.4


@needs_sshd
def test_nobody_reads_the_output(guest: SshCommunicator, tmp_path: Path) -> None:
    (tmp_path / "stdin").write_bytes(b"while echo y; do :; done\n")
    read, write = os.pipe()
    os.close(read)
    stdin, stdout = (tmp_path / "stdin").open("rb"), os.fdopen(write, "wb", buffering=0)
    with stdin, stdout, pytest.raises(BrokenPipeError):
        guest.shell(stdin, stdout, stdout)


@needs_sshd
def test_nothing_is_said_where_there_is_no_terminal(server: Server, tmp_path: Path) -> None:
    said: list[Event] = []
    with connected(server, said) as guest:
        piped(guest, tmp_path, b"true\n")
    assert said == []


# -- at a terminal


@needs_sshd
def test_the_terminal_is_there(server: Server, person: Person, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "vt220")
    said: list[Event] = []
    with connected(server, said) as guest:
        status = person.shell(
            guest,
            (READY, "stty size; echo $TERM\r"),
            (r"41 97\r\nvt220\r\n", "echo grüße-€ | tr - +\r"),
            (r"grüße\+€\r\n", "exit 7\r"),
        )
    assert status == 7
    assert [event.text for event in said] == [
        "Opening a shell in the guest; to leave it at once type ~. at the start of a line"
    ]


@needs_sshd
def test_a_terminal_without_a_size_gets_the_usual_one(guest: SshCommunicator) -> None:
    with Person(0, 0) as person:
        assert person.shell(guest, (READY, "stty size\r"), (r"24 80\r\n", "exit\r")) == 0


@needs_sshd
def test_a_new_size_arrives(guest: SshCommunicator, person: Person) -> None:
    def resize() -> None:
        person.resize(50, 120)
        os.kill(os.getpid(), signal.SIGWINCH)

    before = signal.getsignal(signal.SIGWINCH)
    wait = "until stty size | grep '50 120'; do sleep 0.1; done\r"
    assert person.shell(guest, (READY, resize), ("", wait), (r"\n50 120\r\n", "exit 3\r")) == 3
    assert signal.getsignal(signal.SIGWINCH) == before


@needs_sshd
def test_keys_are_the_guests(guest: SshCommunicator, person: Person) -> None:
    """Ctrl-C ends a command of the guest and not us; the terminal is as before when the shell has ended."""
    before, during = person.modes(), list[list[object]]()
    status = person.shell(
        guest,
        (READY, lambda: during.append(person.modes())),
        ("", "echo begun; sleep 60; echo $?\r"),
        (r"\nbegun\r\n", "\x03"),
        (READY, "exit 9\r"),
    )
    assert status == 9
    assert isinstance(during[0][3], int) and not during[0][3] & (termios.ECHO | termios.ICANON | termios.ISIG)
    assert person.modes() == before


@needs_sshd
def test_the_escape_leaves_a_shell_that_hangs(guest: SshCommunicator, person: Person) -> None:
    before = person.modes()
    hanging = r"echo $$ is it; trap '' INT; sleep 60" + "\r"
    assert person.shell(guest, (READY, hanging), (r"\n\d+ is it", "\r~.")) == LEFT
    assert person.modes() == before
    _await_end(person)


@needs_sshd
def test_a_terminal_that_hangs_up_ends_the_shell(guest: SshCommunicator, person: Person) -> None:
    acts: tuple[tuple[str, Act], ...] = ((READY, "echo $$ is it\r"), (r"\n\d+ is it", person.hang_up))
    assert person.shell(guest, *acts) == LEFT
    _await_end(person)


# -- what ends it otherwise


@needs_sshd
def test_what_the_check_raises_ends_the_shell(guest: SshCommunicator, person: Person) -> None:
    died = threading.Event()

    def check() -> None:
        if died.is_set():
            raise GuestError("QEMU died")

    guest.attend(check)
    before = person.modes()
    with pytest.raises(GuestError, match="QEMU died"):
        person.shell(guest, (READY, "echo $$ is it\r"), (r"\n\d+ is it", died.set))
    assert person.modes() == before
    _await_end(person)


@needs_sshd
def test_a_signal_ends_the_shell(guest: SshCommunicator, person: Person) -> None:
    before = person.modes()
    end_us: Act = lambda: os.kill(os.getpid(), signal.SIGTERM)  # noqa: E731
    with pytest.raises(KeyboardInterrupt), interrupt.unwinding():
        person.shell(guest, (READY, "echo $$ is it\r"), (r"\n\d+ is it", end_us))
    assert person.modes() == before
    _await_end(person)


CUT = "kill -KILL $PPID"  # that is the server's end of the connection


@needs_sshd
def test_a_lost_connection_at_a_terminal(guest: SshCommunicator, person: Person) -> None:
    before = person.modes()
    with pytest.raises(GuestError, match="connection to the guest is gone") as caught:
        person.shell(guest, (READY, f"{CUT}\r"))
    assert caught.value.lost
    assert person.modes() == before


@needs_sshd
def test_a_lost_connection_of_a_pipe_and_the_next_shell(guest: SshCommunicator, tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="connection to the guest is gone"):
        piped(guest, tmp_path, f"{CUT}; sleep 5\n".encode())
    assert piped(guest, tmp_path, b"exit 8\n")[0] == 8


@needs_sshd
def test_why_the_connection_was_lost_is_told(guest: SshCommunicator, tmp_path: Path) -> None:
    def check() -> None:
        if guest._transport is not None and not guest._transport.is_active():
            raise GuestError("QEMU died")

    guest.attend(check)
    with pytest.raises(GuestError, match="QEMU died"):
        piped(guest, tmp_path, f"{CUT}; sleep 5\n".encode())


REFUSING = {"no sessions": "MaxSessions 0", "no terminals": "PermitTTY no"}


@needs_sshd
@pytest.mark.parametrize("option", REFUSING.values(), ids=REFUSING)
def test_a_server_that_refuses_is_told(option: str, tmp_path: Path, person: Person) -> None:
    before = person.modes()
    refused = pytest.raises(GuestError, match="SSH server opens no shell: ")
    with sshd(tmp_path, extra=option) as server, connected(server) as guest, refused:
        person.shell(guest)
    assert person.modes() == before


@needs_dropbear
def test_dropbear(tmp_path: Path, person: Person) -> None:
    with dropbear(tmp_path / "dropbear") as server, connected(server) as guest:
        assert piped(guest, tmp_path, b"echo out; echo err >&2; exit 3\n") == (3, b"out\n", b"err\n")
        assert person.shell(guest, ("[#$] ", "stty size\r"), (r"41 97\r\n", "exit 4\r")) == 4


def _await_end(person: Person) -> None:
    """Until the guest's shell, whose process id the person has read, is gone."""
    found = re.search(r"\n(\d+) is it", person.read)
    assert found is not None
    until = time.monotonic() + 10
    while Path(f"/proc/{found[1]}").exists():
        assert time.monotonic() < until, "the shell still runs"
        time.sleep(0.05)
