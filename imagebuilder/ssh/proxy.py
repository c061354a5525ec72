"""Ways through a proxy to an SSH server: SOCKS 5 (RFC 1928, passwords RFC 1929) and HTTP CONNECT (RFC 9110 §9.3.6)."""

from __future__ import annotations

import base64
import socket
from dataclasses import dataclass, field

_NO_LOGIN, _PASSWORD = 0x00, 0x02
_ADDRESS_BYTES = {0x01: 4, 0x04: 16}
_DOMAIN = 0x03
_REPLIES = {
    1: "it failed", 2: "its rules forbid that", 3: "the network is unreachable", 4: "the host is unreachable",
    5: "connection refused", 6: "the time to live ran out", 7: "it can't connect", 8: "it doesn't know such addresses",
}  # fmt: skip


@dataclass(frozen=True)
class Proxy:
    """A proxy server; `http`: it speaks HTTP, else SOCKS 5."""

    host: str
    port: int
    username: str = ""
    password: str = field(default="", repr=False)
    http: bool = False

    @classmethod
    def of(cls, host: str, port: int, username: str, password: str) -> Proxy:
        """The host may be written 'http://host' or 'socks5://host'."""
        scheme, _, bare = host.rpartition("://")
        return cls(bare.rstrip("/"), port, username, password, http=scheme == "http")


def connect(proxy: Proxy, host: str, port: int, timeout: float) -> socket.socket:
    """A connection to host:port through the proxy; OSError says what went wrong and where."""
    stream = socket.create_connection((proxy.host, proxy.port), timeout)
    try:
        (_http if proxy.http else _socks)(stream, proxy, host, port)
    except BaseException:
        stream.close()
        raise
    stream.settimeout(None)
    return stream


def _socks(stream: socket.socket, proxy: Proxy, host: str, port: int) -> None:
    methods = bytes([_NO_LOGIN, _PASSWORD] if proxy.username else [_NO_LOGIN])
    stream.sendall(bytes([5, len(methods)]) + methods)
    version, method = _read(stream, 2)
    if version != 5:
        raise ConnectionError("the proxy does not speak SOCKS 5")
    if method == _PASSWORD and proxy.username:
        _socks_login(stream, proxy)
    elif method != _NO_LOGIN:
        raise ConnectionError("the proxy wants a login: give ssh_proxy_username and ssh_proxy_password")
    name = host.encode("idna")
    stream.sendall(bytes([5, 1, 0, _DOMAIN, len(name)]) + name + port.to_bytes(2, "big"))
    _, reply, _, kind = _read(stream, 4)
    if reply:
        raise ConnectionError(f"the proxy can't reach {host}:{port}: {_REPLIES.get(reply, f'code {reply}')}")
    _read(stream, (_read(stream, 1)[0] if kind == _DOMAIN else _ADDRESS_BYTES.get(kind, 0)) + 2)


def _socks_login(stream: socket.socket, proxy: Proxy) -> None:
    user, password = proxy.username.encode(), proxy.password.encode()
    stream.sendall(bytes([1, len(user)]) + user + bytes([len(password)]) + password)
    if _read(stream, 2)[1]:
        raise ConnectionError(f"the proxy refuses user '{proxy.username}' or the password")


def _http(stream: socket.socket, proxy: Proxy, host: str, port: int) -> None:
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    if proxy.username:
        token = base64.b64encode(f"{proxy.username}:{proxy.password}".encode()).decode()
        lines.append(f"Proxy-Authorization: Basic {token}")
    stream.sendall("\r\n".join([*lines, "", ""]).encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):  # byte by byte: what follows is the SSH server's
        head += _read(stream, 1)
        if len(head) > 65536:
            raise ConnectionError("the proxy's answer has no end")
    status = head.split(b"\r\n", 1)[0].decode(errors="replace")
    if status.split(" ")[1:2] != ["200"]:
        raise ConnectionError(f"the proxy can't reach {target}: '{status}'")


def _read(stream: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = stream.recv(count - len(data))
        if not more:
            raise ConnectionError("the proxy closed the connection")
        data += more
    return data
