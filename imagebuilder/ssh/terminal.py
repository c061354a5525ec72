"""A shell in the guest for a person at a terminal, or for what is piped in, over the SSH session that there is anyway.

RFC 4254 §6.2, §6.5 and §6.7 (pseudo-terminal, shell, window size); the escape character is that of ssh(1).
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO

import paramiko
from paramiko.agent import AgentRequestHandler

from imagebuilder.errors import GuestError
from imagebuilder.ssh.dial import reason_of
from imagebuilder.ssh.run import Transport, open_channel
from imagebuilder.ui import Ui

LEFT = 255  # the exit status after `~.`, as of ssh(1)
_CHUNK = 32768  # bytes that are read at once
_TICK = 0.5  # seconds between two looks at the guest
_SHORT_TICK = 0.02  # seconds between two looks at what select can't wait for: a full window, the end of a channel
_DRAIN = 3.0  # seconds that something left in the background may keep the output open
_FAREWELL = 2.0  # seconds for the connection to follow a shell that a signal ended: then the guest goes down
_ATTEMPTS, _PAUSE = 3, 0.1  # attempts to start a shell, and seconds between them
_USUAL_SIZE = os.terminal_size((80, 24))


@dataclass(frozen=True)
class Streams:
    """Where the shell's input comes from and its output goes. They need file descriptors: `stdin` is waited for."""

    stdin: IO[bytes]
    stdout: IO[bytes]
    stderr: IO[bytes]


class Escapes:
    """Finds `~.` at the start of a line, which ends the session, in what a person types; `~~` is a tilde."""

    def __init__(self) -> None:
        self._line_starts, self._tilde = True, False

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """What of it is for the guest, and whether the person wants to leave. It may end within a character."""
        passed = bytearray()
        for byte in typed:
            if self._tilde:
                self._tilde = False
                if byte == ord("."):
                    return bytes(passed), True
                passed += b"~" if byte == ord("~") else bytes((ord("~"), byte))
            elif self._line_starts and byte == ord("~"):
                self._tilde = True
                continue
            else:
                passed.append(byte)
            self._line_starts = byte in b"\r\n"
        return bytes(passed), False


def converse(
    session: Callable[[], paramiko.Transport],
    streams: Streams,
    ui: Ui,
    *,
    alive: Callable[[], bool] = lambda: True,
    forward_agent: bool = False,
) -> int:
    """Run the user's login shell; its exit status (128 + N when signal N ended it), or LEFT.

    When stdin is a terminal, the shell gets one too; else it reads stdin to its end. `session` gives a session that
    lives. `alive` is asked about twice a second: what it raises ends the shell, False means that the guest fell silent.
    GuestError when the connection goes away.
    """
    fd = streams.stdin.fileno()
    terminal = fd if os.isatty(fd) else None
    with contextlib.ExitStack() as stack:
        resized = stack.enter_context(_resizes()) if terminal is not None else None
        channel = stack.enter_context(contextlib.closing(_opened(session, terminal, forward_agent)))
        if terminal is not None:
            ui.say("Opening a shell in the guest; to leave it at once type ~. at the start of a line")
            stack.enter_context(_raw(terminal))  # last in, so that the terminal is restored before anything can hang
        return _Copy(channel, streams, alive, resized).run()


def _opened(session: Callable[[], paramiko.Transport], terminal: int | None, forward_agent: bool) -> paramiko.Channel:
    """The channel of a running shell. Tried again for the reasons of `run.start`, and when the session proves dead."""
    for attempt in range(_ATTEMPTS):
        transport = session()
        try:
            return _started(open_channel(transport), terminal, forward_agent)
        except (EOFError, OSError, paramiko.SSHException) as error:
            if attempt == _ATTEMPTS - 1:
                reason = reason_of(error)
                raise GuestError(f"The guest's SSH server opens no shell: {reason}", lost=True) from error
            time.sleep(_PAUSE)
    raise AssertionError


def _started(channel: paramiko.Channel, terminal: int | None, forward_agent: bool) -> paramiko.Channel:
    try:
        if forward_agent:
            AgentRequestHandler(channel)  # the session keeps it alive
        if terminal is not None:
            size = _size(terminal)
            channel.get_pty(os.environ.get("TERM") or "xterm", size.columns, size.lines)
        channel.invoke_shell()
        channel.setblocking(False)
    except BaseException:
        channel.close()
        raise
    return channel


class _Copy:
    """Carries bytes between the streams and the shell's channel until one side ends.

    `resized` becomes readable when the terminal's size changes; None when stdin is no terminal.
    """

    def __init__(
        self, channel: paramiko.Channel, streams: Streams, alive: Callable[[], bool], resized: int | None
    ) -> None:
        self._channel, self._streams, self._alive, self._resized = channel, streams, alive, resized
        self._stdin = streams.stdin.fileno()
        self._escapes = Escapes()
        self._unsent = b""
        self._reading, self._left = True, False
        self._checked = self._moved = time.monotonic()

    def run(self) -> int:
        """Copy to the end; the shell's exit status, or LEFT."""
        while True:
            readable = self._wait()
            over = self._over()  # before the last look at the output, which may have come just now
            if not self._show() and over:
                return self._status()
            self._resize(readable)
            self._take(readable)
            self._send()
            if self._left:
                self._end_line(b"~.")
                return LEFT
            self._look_after()

    def _wait(self) -> list[int | paramiko.Channel]:
        """Until there is something to do, but not for long; what is readable."""
        channel = self._channel
        ended = channel.eof_received or channel.closed  # then it is always readable
        watched: list[int | paramiko.Channel] = [] if ended else [channel]
        if self._reading and not self._unsent:
            watched.append(self._stdin)
        if self._resized is not None:
            watched.append(self._resized)
        nothing_to_wait_for = channel.recv_ready() or channel.recv_stderr_ready() or channel.closed
        tick = 0 if nothing_to_wait_for else _SHORT_TICK if ended or self._unsent else _TICK
        return select.select(watched, [], [], tick)[0]

    def _over(self) -> bool:
        """Whether nothing more can come of the shell."""
        channel = self._channel
        if channel.closed:
            return True
        if not channel.status_event.is_set():
            self._moved = time.monotonic()
            return False
        return bool(channel.eof_received) or time.monotonic() - self._moved > _DRAIN

    def _show(self) -> bool:
        """Write what has come of both streams; whether anything had."""
        channel, came = self._channel, False
        for ready, receive, stream in (
            (channel.recv_ready, channel.recv, self._streams.stdout),
            (channel.recv_stderr_ready, channel.recv_stderr, self._streams.stderr),
        ):
            if not ready():
                continue
            came, data = True, b""
            with self._remote():
                data = receive(_CHUNK)
            _write(stream, data)
        if came:
            self._moved = time.monotonic()
        return came

    def _take(self, readable: list[int | paramiko.Channel]) -> None:
        """Read what the person typed, or the next piece of what is piped in."""
        if self._stdin not in readable:
            return
        try:
            data = os.read(self._stdin, _CHUNK)
        except BlockingIOError:  # somebody else who shares our stdin was faster
            return
        except OSError:
            if self._resized is None:
                raise
            data = b""  # EIO: the terminal hung up
        self._reading = bool(data)
        if self._resized is not None:
            data, left = self._escapes.feed(data)
            self._left = left or not self._reading
        self._unsent = data

    def _send(self) -> None:
        """Send what the guest takes now; after the last piece, the end."""
        with self._remote(), contextlib.suppress(TimeoutError):  # its window is full
            while self._unsent and (sent := self._channel.send(self._unsent)):
                self._unsent = self._unsent[sent:]
            if not self._unsent and not self._reading:
                self._channel.shutdown_write()
        if self._channel.closed:
            self._unsent, self._reading = b"", False

    def _resize(self, readable: list[int | paramiko.Channel]) -> None:
        if self._resized is None or self._resized not in readable:
            return
        os.read(self._resized, _CHUNK)
        size = _size(self._stdin)
        with self._remote():
            self._channel.resize_pty(size.columns, size.lines)

    @contextlib.contextmanager
    def _remote(self) -> Iterator[None]:
        """What fails in here is the channel's end; what it still holds can be read."""
        try:
            yield
        except (EOFError, OSError, paramiko.SSHException):
            with contextlib.suppress(EOFError, OSError, paramiko.SSHException):
                self._channel.close()

    def _look_after(self) -> None:
        """Ask now and then whether the guest lives."""
        if time.monotonic() - self._checked < _TICK:
            return
        self._checked = time.monotonic()
        if not self._alive():
            self._end_line()
            self._channel.get_transport().close()
            raise GuestError("The guest fell silent", hint="look at its screen: does it still run?", lost=True)

    def _status(self) -> int:
        """How the shell ended. GuestError when the connection went away with it."""
        channel, transport = self._channel, self._channel.get_transport()
        if channel.exit_status >= 0:
            return channel.exit_status
        until = time.monotonic() + _FAREWELL
        while transport.is_active() and time.monotonic() < until:
            time.sleep(0.05)
        if transport.is_active():
            name = transport.signals.get(channel.get_id(), "TERM") if isinstance(transport, Transport) else "TERM"
            return 128 + getattr(signal, f"SIG{name}", signal.SIGTERM)
        self._end_line()
        time.sleep(0.2)  # a QEMU that died takes the connection with it, and has its own sentence for that
        self._alive()
        raise GuestError("The connection to the guest is gone: it was shut down or rebooted, or it crashed", lost=True)

    def _end_line(self, last: bytes = b"") -> None:
        """Nothing of what follows stands behind the guest's prompt."""
        if self._resized is not None:
            with contextlib.suppress(OSError):  # the terminal hung up: nobody reads it
                _write(self._streams.stdout, last + b"\r\n")


def _write(stream: IO[bytes], data: bytes) -> None:
    """All of it, now: a stream without a buffer (`python -u`) takes less when a signal comes."""
    while data:
        data = data[stream.write(data) or 0 :]
    stream.flush()


def _size(terminal: int) -> os.terminal_size:
    """Its size; the usual one when it has none, as on a serial line."""
    try:
        size = os.get_terminal_size(terminal)
    except OSError:  # it hung up
        return _USUAL_SIZE
    return size if size.columns and size.lines else _USUAL_SIZE


@contextlib.contextmanager
def _raw(terminal: int) -> Iterator[None]:
    """Every key is the guest's. What was typed ahead is kept."""
    before = termios.tcgetattr(terminal)
    try:
        tty.setraw(terminal, termios.TCSADRAIN)
        yield
    finally:
        with contextlib.suppress(termios.error):  # it hung up: there is nothing to restore
            termios.tcsetattr(terminal, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _resizes() -> Iterator[int]:
    """A file descriptor that becomes readable with SIGWINCH; Python hands signals to the main thread only."""
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def note(*_: object) -> None:
        with contextlib.suppress(BlockingIOError):  # it is readable already
            os.write(write, b"\0")

    heard = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGWINCH, note) if heard else None
    try:
        yield read
    finally:
        if heard:
            signal.signal(signal.SIGWINCH, before or signal.SIG_DFL)
        os.close(read)
        os.close(write)
