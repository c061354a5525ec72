"""The first bytes of an SSH connection: knocking until a server greets.

QEMU's user network accepts a connection before the guest does, and then says nothing until the guest's network is up:
so several knocks stand at a time, and the first that is greeted (RFC 4253 §4.2) wins. A server that is slow to greet
loses nothing, and one that has just come up is found within a second or three.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable, Iterator

_REFUSED_PAUSE = 0.5  # seconds until the next knock after a refusal
_SPACING, _SPACING_MAX = 0.75, 3.0  # seconds, for each knock that stands unanswered
_PATIENCE = 20.0  # seconds that one knock may stand
_TICK = 0.25  # seconds between two looks at the machine

SILENCE = "nothing answers (no SSH greeting)"
CLOSED = "the connection was closed before an SSH greeting"


class Refusal(Exception):
    """An attempt to get in failed; `login`: the server did not accept who we are; `cut`: it had too little time."""

    def __init__(
        self, reason: str, *, hint: str | None = None, login: bool = False, host_key: bytes = b"", cut: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason, self.hint, self.login, self.host_key, self.cut = reason, hint, login, host_key, cut


def knock(host: str, port: int, until: float, check: Callable[[], None]) -> socket.socket:
    """A connection on which a server has begun to speak, before the monotonic time `until`; Refusal names the last
    thing that happened. `check` is called all the while and may raise."""
    standing: dict[socket.socket, float] = {}
    reason, next_knock, began = SILENCE, 0.0, time.monotonic()
    try:
        while (now := time.monotonic()) < until:
            check()
            if now >= next_knock:
                try:
                    standing[_start(host, port)] = now
                except OSError as error:
                    reason = reason_of(error)
                next_knock = now + min(1.0 + _SPACING * len(standing), _SPACING_MAX)
            readable, _, _ = select.select(list(standing), [], [], min(_TICK, max(until - now, 0)))
            for stream in readable:
                del standing[stream]
                try:
                    return _greeted(stream)
                except OSError as error:
                    reason, next_knock = reason_of(error), min(next_knock, time.monotonic() + _REFUSED_PAUSE)
            for stream in [stream for stream, knocked in standing.items() if now - knocked > _PATIENCE]:
                reason = SILENCE
                del standing[stream]
                stream.close()
    finally:
        for stream in standing:
            stream.close()
    raise Refusal(reason, cut=reason is SILENCE and until - began < _PATIENCE)


def _start(host: str, port: int) -> socket.socket:
    """Begin to connect, without waiting for it."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    stream = socket.socket(family, kind, protocol)
    stream.setblocking(False)
    failed = stream.connect_ex(address)
    if failed not in (0, errno.EINPROGRESS):
        stream.close()
        raise OSError(failed, os.strerror(failed))
    return stream


def _greeted(stream: socket.socket) -> socket.socket:
    """Make the connection ready for use; closed, and an OSError, unless the server has said something."""
    try:
        if not stream.recv(255, socket.MSG_PEEK):
            raise ConnectionAbortedError(errno.ECONNABORTED, CLOSED)
        stream.setblocking(True)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:
        stream.close()
        raise
    return stream


def reason_of(error: BaseException) -> str:
    """What an error of the network means, in words that follow a colon."""
    return "; ".join(dict.fromkeys(_reasons(error)))


def _reasons(error: BaseException) -> Iterator[str]:
    if isinstance(error, socket.gaierror):
        yield f"the name can't be resolved ({error.strerror})"
    elif isinstance(error, TimeoutError):
        yield "no answer in time"
    elif isinstance(error, ConnectionResetError):
        yield CLOSED
    elif isinstance(error, EOFError):
        yield "the server closed the connection"
    elif isinstance(error, OSError) and error.strerror:
        yield error.strerror[:1].lower() + error.strerror[1:]
    else:
        yield str(error) or type(error).__name__
