"""Tunnels through an SSH session (RFC 4254 §7): a port here that leads into the guest, a port there that leads out.

Both ends listen on loopback only. The threads end with the session that they belong to.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
from collections.abc import Iterator

import paramiko

from imagebuilder.errors import GuestError
from imagebuilder.ssh.config import Tunnel

log = logging.getLogger(__name__)

_TICK = 0.5  # seconds between two looks at whether the session still stands
_TIMEOUT = 10.0  # seconds to connect at the far end
_CHUNK = 65536
_LOOPBACK = "127.0.0.1"

Stream = socket.socket | paramiko.Channel


@contextlib.contextmanager
def local(transport: paramiko.Transport, tunnel: Tunnel) -> Iterator[None]:
    """A port of this machine that leads to host:port as the guest sees it."""
    try:
        server = socket.create_server((_LOOPBACK, tunnel.port))
    except OSError as error:
        raise GuestError(f"Can't listen on port {tunnel.port} for ssh_local_tunnels: {error.strerror}") from error
    ending = threading.Event()
    thread = threading.Thread(target=_accept, args=(server, transport, tunnel, ending), name=f"tunnel-{tunnel.port}")
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join()
        server.close()


def _accept(server: socket.socket, transport: paramiko.Transport, tunnel: Tunnel, ending: threading.Event) -> None:
    threads: list[threading.Thread] = []
    while not ending.is_set():
        readable, _, _ = select.select([server], [], [], _TICK)
        if readable:
            near, address = server.accept()
            with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
                target = (tunnel.host, tunnel.target_port)
                far = transport.open_channel("direct-tcpip", target, address, timeout=_TIMEOUT)
                threads.append(_join(near, far, ending, f"tunnel-{tunnel.port}"))
                continue
            log.debug("tunnel %s: the guest can't reach %s:%s", tunnel.port, tunnel.host, tunnel.target_port)
            near.close()
    for thread in threads:
        thread.join()


@contextlib.contextmanager
def remote(transport: paramiko.Transport, tunnel: Tunnel) -> Iterator[None]:
    """A port of the guest that leads to host:port as this machine sees it."""
    ending = threading.Event()
    threads: list[threading.Thread] = []

    def arrived(channel: paramiko.Channel, _origin: tuple[str, int], _server: tuple[str, int]) -> None:
        # Called in the session's own thread, which must not wait: the connection is made in the tunnel's thread.
        thread = threading.Thread(
            target=_leave, args=(channel, tunnel, ending), name=f"tunnel-{tunnel.port}", daemon=True
        )
        threads.append(thread)
        thread.start()

    try:
        transport.request_port_forward(_LOOPBACK, tunnel.port, arrived)
    except (paramiko.SSHException, OSError, EOFError) as error:
        raise GuestError(f"The guest's SSH server does not open port {tunnel.port} for ssh_remote_tunnels") from error
    try:
        yield
    finally:
        ending.set()
        for thread in threads:
            thread.join(_TIMEOUT)


def _leave(channel: paramiko.Channel, tunnel: Tunnel, ending: threading.Event) -> None:
    try:
        near = socket.create_connection((tunnel.host, tunnel.target_port), _TIMEOUT)
    except OSError as error:
        log.debug("tunnel %s: %s", tunnel.port, error)
        channel.close()
        return
    _pump(near, channel, ending)


def _join(near: socket.socket, far: paramiko.Channel, ending: threading.Event, name: str) -> threading.Thread:
    thread = threading.Thread(target=_pump, args=(near, far, ending), name=name, daemon=True)
    thread.start()
    return thread


def _pump(near: socket.socket, far: paramiko.Channel, ending: threading.Event) -> None:
    """Carry bytes both ways until both sides are done; a side's end is passed on (shutdown), not both at once."""
    with near, contextlib.closing(far), contextlib.suppress(OSError, EOFError):
        open_sides: set[Stream] = {near, far}
        while open_sides and not ending.is_set():
            readable, _, _ = select.select(list(open_sides), [], [], _TICK)
            for side in readable:
                other: Stream = far if side is near else near
                data = side.recv(_CHUNK)
                if data:
                    other.sendall(data)
                else:
                    open_sides.discard(side)
                    other.shutdown(socket.SHUT_WR)
