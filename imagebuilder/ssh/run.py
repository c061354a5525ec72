"""Commands over an SSH session (RFC 4254 §6): output line by line as it comes, and how the command ended."""

from __future__ import annotations

import codecs
import contextlib
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, ClassVar

import paramiko
from paramiko.agent import AgentRequestHandler

from imagebuilder.errors import GuestError
from imagebuilder.ui import duration

OPEN_TIMEOUT = 30.0  # seconds to open a channel in a session that lives
_TICK = 0.5  # seconds between two looks at a silent command
_DRAIN = 3.0  # seconds that something left in the background may keep the output open
_FAREWELL = 2.0  # seconds for the connection to follow a command that a signal ended: then the guest goes down
_STARTS, _START_PAUSE = 3, 0.1  # attempts to start a command, and seconds between them
_LONGEST = 65536  # characters; a longer line is handed out in pieces

Sink = Callable[[str], None]


class TimedOut(GuestError):
    """A command ran longer than it may."""


def _note_signal(channel: paramiko.Channel, message: paramiko.Message) -> None:
    """Keep the name in "exit-signal" (RFC 4254 §6.10), which paramiko throws away, and let paramiko go on."""
    copy = paramiko.Message(message.get_remainder())
    if copy.get_text() == "exit-signal":
        copy.get_boolean()
        channel.get_transport().signals[channel.get_id()] = copy.get_text()  # type: ignore[attr-defined]
    paramiko.Channel._handle_request(channel, message)  # type: ignore[attr-defined]


class Transport(paramiko.Transport):
    """A session that remembers which signal ended the command of a channel."""

    _channel_handler_table: ClassVar[dict[int, Any]] = {
        **paramiko.Transport._channel_handler_table,  # type: ignore[attr-defined]
        paramiko.common.MSG_CHANNEL_REQUEST: _note_signal,
    }

    def __init__(self, stream: socket.socket | paramiko.Channel) -> None:
        super().__init__(stream)
        self.signals: dict[int, str] = {}


class Lines:
    """Cuts bytes into lines. A carriage return starts the line over, as it does on a terminal."""

    def __init__(self, sink: Sink | None) -> None:
        self._sink = sink
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._pending = ""

    def feed(self, data: bytes) -> None:
        *lines, self._pending = (self._pending + self._decoder.decode(data)).split("\n")
        for line in lines:
            self._hand_out(line)
        if len(self._pending) > _LONGEST:
            self.flush()

    def flush(self) -> None:
        """Hand out what has no end yet."""
        line, self._pending = self._pending + self._decoder.decode(b"", final=True), ""
        if line:
            self._hand_out(line)

    def _hand_out(self, line: str) -> None:
        if self._sink is not None:
            self._sink(line.rstrip("\r").rpartition("\r")[2])


def execute(
    transport: paramiko.Transport,
    command: str,
    *,
    on_line: Sink | None = None,
    on_error_line: Sink | None = None,
    timeout: float | None = None,
    pty: bool = False,
    forward_agent: bool = False,
    alive: Callable[[], bool] = lambda: True,
) -> int | None:
    """Run the command; its exit status (128 + N when signal N ended it), or None when the connection was lost.

    TimedOut after `timeout` seconds; paramiko's errors when it could not be started. `alive` is asked now and then:
    False means that the guest fell silent.
    """
    output, errors = Lines(on_line), Lines(on_error_line)
    channel = start(transport, command, pty=pty, forward_agent=forward_agent)
    with contextlib.closing(channel):
        try:
            channel.shutdown_write()
            _follow(channel, output, errors, timeout, alive)
        except (OSError, EOFError, paramiko.SSHException):
            if transport.is_active():
                raise
        finally:
            output.flush()
            errors.flush()
        return _status(channel, transport)


def start(
    transport: paramiko.Transport, command: str, *, pty: bool = False, forward_agent: bool = False
) -> paramiko.Channel:
    """A channel on which the command runs. paramiko's errors when the server does not run it.

    A channel that is closed before the server said that it runs the command is tried again: dropbear 2022.83 closes a
    fresh one when the command of an earlier one ends at that moment.
    """
    for attempt in range(_STARTS):
        try:
            channel = open_channel(transport)
            try:
                if forward_agent:
                    AgentRequestHandler(channel)  # the session keeps it alive
                if pty:
                    channel.get_pty("xterm", 80, 40)
                channel.exec_command(command)
            except BaseException:
                channel.close()
                raise
            return channel
        except paramiko.SSHException:
            if not transport.is_active() or attempt == _STARTS - 1:
                raise
            time.sleep(_START_PAUSE)
    raise AssertionError


def open_channel(transport: paramiko.Transport) -> paramiko.Channel:
    """A new channel for a command or subsystem."""
    return transport.open_session(timeout=OPEN_TIMEOUT)


def _follow(
    channel: paramiko.Channel, output: Lines, errors: Lines, timeout: float | None, alive: Callable[[], bool]
) -> None:
    """Read until the command is over: its status is there and its output at the end, or the channel is closed."""
    began = heard = time.monotonic()
    while True:
        _wait(channel)
        read, now = _read(channel, output, errors), time.monotonic()
        heard = now if read else heard
        at_end = channel.eof_received or now - heard > _DRAIN
        if not read and (channel.closed or (channel.exit_status_ready() and at_end)):
            return
        if not alive():
            channel.get_transport().close()
        if timeout is not None and now - began > timeout:
            raise GuestError(
                f"The command still runs after {duration(timeout)}", hint="give it more time, or less to do"
            )


def _wait(channel: paramiko.Channel) -> None:
    """Until there is something to read or a status, but not for long."""
    if channel.recv_ready() or channel.recv_stderr_ready():
        return
    if channel.eof_received:
        channel.status_event.wait(_TICK)
    else:
        select.select([channel], [], [], _TICK)


def _read(channel: paramiko.Channel, output: Lines, errors: Lines) -> bool:
    """Read what is there of both streams; whether there was anything."""
    read = False
    if channel.recv_ready() and (data := channel.recv(65536)):
        output.feed(data)
        read = True
    if channel.recv_stderr_ready() and (data := channel.recv_stderr(65536)):
        errors.feed(data)
        read = True
    return read


def _status(channel: paramiko.Channel, transport: paramiko.Transport) -> int | None:
    """How a command that is over has ended."""
    if channel.exit_status >= 0:
        return channel.exit_status
    until = time.monotonic() + _FAREWELL
    while transport.is_active() and time.monotonic() < until:
        time.sleep(0.05)
    if not transport.is_active():
        return None
    name = transport.signals.get(channel.get_id(), "TERM") if isinstance(transport, Transport) else "TERM"
    return 128 + getattr(signal, f"SIG{name}", signal.SIGTERM)
