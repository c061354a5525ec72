"""The embedded server over real sockets: what it serves, what it tells, and everything it must not give away."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagebuilder.errors import ImgbuildError, TemplateError
from imagebuilder.media.httpserver import Access, HttpServer

SECRET = "not for installers"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "www"
    (root / "sub/.git").mkdir(parents=True)
    (root / "ks.cfg").write_text("from the directory")
    (root / "sub/file name.txt").write_text("nested")
    (root / "empty").touch()
    (root / "%2e%2e").write_text("an odd name")
    for hidden in (".env", "sub/.git/config", "../secret"):
        (root / hidden).write_text(SECRET)
    (root / "link-inside").symlink_to("sub/file name.txt")
    (root / "link-out").symlink_to("../secret")
    (root / "link-hidden").symlink_to(".env")
    (root / "dir-out").symlink_to("..")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    return root


@pytest.fixture
def server(root: Path) -> Iterator[HttpServer]:
    with HttpServer(
        directory=root,
        content={"given": "caf\u00e9", "/deep/given.json": b"{}", ".hidden": "said so"},
        templates={"user-data": lambda: "rendered"},
    ) as running:
        yield running


def ask(server: HttpServer, method: str, path: str, **headers: str) -> tuple[int, bytes, dict[str, str]]:
    with contextlib.closing(http.client.HTTPConnection(*server.address, timeout=10)) as connection:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        body = response.read()
        return response.status, body, {name.lower(): value for name, value in response.getheaders()}


@contextlib.contextmanager
def asking_soon(server: HttpServer, path: str) -> Iterator[None]:
    timer = threading.Timer(0.1, ask, (server, "GET", path))
    timer.start()
    yield
    timer.join(10)


def raw(server: HttpServer, request: bytes) -> bytes:
    """The answer, as far as it came: who sends too much is cut off."""
    answer = b""
    with (
        contextlib.suppress(OSError),
        socket.create_connection(server.address, timeout=10) as connection,
    ):
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(65536):
            answer += piece
    return answer


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/ks.cfg", b"from the directory"),
        ("/ks.cfg?mac=52:54:00", b"from the directory"),
        ("/sub/file%20name.txt", b"nested"),
        ("/link-inside", b"nested"),
        ("/empty", b""),
        ("/%252e%252e", b"an odd name"),
        ("/given", "caf\u00e9".encode()),
        ("/deep/given.json", b"{}"),
        ("/.hidden", b"said so"),
        ("/user-data", b"rendered"),
    ],
)
def test_what_is_served(server: HttpServer, path: str, body: bytes) -> None:
    assert ask(server, "GET", path)[:2] == (200, body)
    status, nothing, headers = ask(server, "HEAD", path)
    assert (status, nothing, headers["content-length"]) == (200, b"", str(len(body)))


@pytest.mark.parametrize(
    "path",
    [
        "/", "/sub", "/sub/", "/ks.cfg/", "/nothing", "/.env", "/sub/.git/config", "/./ks.cfg", "/sub/../ks.cfg",
        "/link-out", "/link-hidden", "/dir-out/secret", "/loop", "/pipe", "/../secret", "/sub/../../secret",
        "/%2e%2e/secret", "/sub/%2e%2e/%2e%2e/secret", "/sub%2f..%2f..%2fsecret", "/..%2fsecret", "/%2e%2e%2fsecret",
        "/%252e%252e/secret", "/..\\secret", "/%5c..%5csecret", "/ks.cfg%00", "/ks.cfg%00.txt", "/%00",
        "/%2fetc/passwd", "//etc/passwd", "/%2f%2fetc%2fpasswd", "/etc/passwd", "/proc/self/environ", "/\u00ff",
        "/%ff%fe", "/%c0%ae%c0%ae/secret", "/" + "a" * 5000, "/" + "a/" * 2000,
    ],
)  # fmt: skip
def test_what_is_not(server: HttpServer, path: str) -> None:
    answer = raw(server, b"GET " + path.encode() + b" HTTP/1.0\r\n\r\n")
    assert re.match(rb"HTTP/1\.[01] (404|400) ", answer), answer
    assert SECRET.encode() not in answer
    assert b"root:" not in answer
    assert not server.failures


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "FOO"])
def test_other_methods_are_refused(server: HttpServer, method: str) -> None:
    for path in ("/ks.cfg", "/nothing", "/"):
        assert b" 405 " in raw(server, f"{method} {path} HTTP/1.0\r\n\r\n".encode()).splitlines()[0]


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"", b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9.9\r\n\r\n",
        b"GET /ks.cfg HTTP/1.1\r\nHost: a\r\n" + b"X: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /ks.cfg HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n",
        b"GET /ks.cfg HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"GET /ks.cfg HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
        b"GET " + b"/a" * 100_000 + b" HTTP/1.1\r\n\r\n",
        b"GET http://169.254.169.254/latest/meta-data HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["nothing", "blank", "no-path", "tls", "version", "headers", "body", "negative", "chunks", "line", "proxy"],
)  # fmt: skip
def test_garbage_is_survived(server: HttpServer, request_bytes: bytes) -> None:
    answer = raw(server, request_bytes)
    assert answer == b"" or re.match(rb"HTTP/1\.[01] (4\d\d|501) ", answer), answer[:100]
    assert ask(server, "GET", "/ks.cfg")[0] == 200


@pytest.mark.parametrize(
    ("range_header", "status", "body", "content_range"),
    [
        ("bytes=5-7", 206, b"the", "bytes 5-7/18"),
        ("bytes=9-", 206, b"directory", "bytes 9-17/18"),
        ("bytes=-3", 206, b"ory", "bytes 15-17/18"),
        ("bytes=0-999", 206, b"from the directory", "bytes 0-17/18"),
        ("bytes=18-", 416, b"416\n", "bytes */18"),
        ("bytes=0-1,3-4", 200, b"from the directory", None),
        ("bytes=7-5", 200, b"from the directory", None),
        ("lines=1-2", 200, b"from the directory", None),
        ("nonsense", 200, b"from the directory", None),
    ],
)
def test_ranges(server: HttpServer, range_header: str, status: int, body: bytes, content_range: str | None) -> None:
    answer = ask(server, "GET", "/ks.cfg", Range=range_header)
    assert answer[:2] == (status, body)
    assert answer[2].get("content-range") == content_range
    assert answer[2]["content-length"] == str(len(body))


def test_if_range(server: HttpServer, root: Path) -> None:
    etag = ask(server, "GET", "/ks.cfg")[2]["etag"]
    assert ask(server, "GET", "/ks.cfg", Range="bytes=0-3", If_Range=etag)[:2] == (206, b"from")
    (root / "ks.cfg").write_text("changed meanwhile")
    assert ask(server, "GET", "/ks.cfg", Range="bytes=0-3", If_Range=etag)[:2] == (200, b"changed meanwhile")


def test_a_big_file_needs_little_memory(server: HttpServer, root: Path) -> None:
    with (root / "image.img").open("wb") as file:
        file.truncate(256 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with socket.create_connection(server.address, timeout=30) as connection:
        connection.sendall(b"GET /image.img HTTP/1.0\r\n\r\n")
        received, buffer = 0, bytearray(1 << 20)
        while count := connection.recv_into(buffer):
            received += count
    assert received > 256 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10  # KiB
    assert server.wait_for("/image.img", 5)
    assert server.accesses[-1].size == 256 << 20


def test_a_fetch_that_was_broken_off_shows_what_was_sent(server: HttpServer, root: Path) -> None:
    with (root / "image.img").open("wb") as file:
        file.truncate(1 << 30)
    with socket.create_connection(server.address, timeout=30) as connection:
        connection.sendall(b"GET /image.img HTTP/1.0\r\n\r\n")
        connection.recv(1 << 16)
    until(lambda: len(server.accesses) == 1)
    assert server.accesses[0].size < 1 << 30


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_every_request_is_told(root: Path, tmp_path: Path) -> None:
    told: list[Access] = []
    log = tmp_path / "access.log"
    with HttpServer(directory=root, on_request=told.append, log_path=log) as server:
        requests = [("GET", "/ks.cfg"), ("GET", "/nothing%22%0aforged"), ("HEAD", "/ks.cfg"), ("POST", "/ks.cfg")]
        for number, (method, path) in enumerate(requests, 1):
            ask(server, method, path)
            until(lambda number=number: len(told) == number)
        assert tuple(told) == server.accesses
    rows = [(access.method, access.path, access.status, access.size) for access in told]
    assert rows == [
        ("GET", "/ks.cfg", 200, 18),
        ("GET", '/nothing"\nforged', 404, 4),
        ("HEAD", "/ks.cfg", 200, 0),
        ("POST", "/ks.cfg", 405, 4),
    ]
    assert {access.client for access in told} == {"127.0.0.1"}
    lines = log.read_text().splitlines()
    assert len(lines) == 4
    form = r'127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "GET /ks\.cfg HTTP/1\.1" 200 18'
    assert re.fullmatch(form, lines[0])
    assert '"GET /nothing%22%0Aforged HTTP/1.1" 404 4' in lines[1]


def test_waiting_for_a_fetch(server: HttpServer) -> None:
    assert not server.wait_for("ks.cfg", 0.05)
    ask(server, "HEAD", "/ks.cfg")
    assert not server.wait_for("/ks.cfg", 0.05)
    with asking_soon(server, "/ks.cfg"):
        assert server.wait_for("ks.cfg", 10)


def test_a_template_that_fails_answers_500_and_ends_the_wait() -> None:
    def broken() -> str:
        raise TemplateError("ks.cfg.j2:3: 'hostnam' is undefined")

    with HttpServer(templates={"ks.cfg": broken}) as server:
        with asking_soon(server, "/ks.cfg"), pytest.raises(TemplateError, match="hostnam"):
            server.wait_for("/ks.cfg", 10)
        assert ask(server, "GET", "/ks.cfg")[:2] == (500, b"500\n")
        assert len(server.failures) == 2


def test_a_template_is_rendered_at_each_request() -> None:
    with HttpServer(templates={"/n": lambda: f"port {server.address[1]}"}) as server:
        assert ask(server, "GET", "/n")[1] == f"port {server.address[1]}".encode()


def test_ports() -> None:
    with HttpServer(content={"a": "b"}) as first:
        port = first.address[1]
        with pytest.raises(ImgbuildError, match=rf"on '127\.0\.0\.1', port {port}: Address already in use"):
            HttpServer(port_min=port, port_max=port).__enter__()
        with HttpServer(content={"a": "c"}, port_min=port, port_max=port + 20) as second:
            assert port < second.address[1] <= port + 20
            assert ask(second, "GET", "/a")[1] == b"c"
    with HttpServer(content={"a": "d"}, port_min=port, port_max=port) as again:
        assert ask(again, "GET", "/a")[1] == b"d"


def test_addresses() -> None:
    with pytest.raises(ImgbuildError, match=r"can't serve HTTP on '192\.0\.2\.1'"):
        HttpServer(bind="192.0.2.1").__enter__()
    with pytest.raises(ImgbuildError, match=r"can't serve HTTP on 'no\.such\.host\.invalid'"):
        HttpServer(bind="no.such.host.invalid").__enter__()
    with HttpServer(bind="127.0.0.2", content={"a": "b"}) as server:
        assert server.address[0] == "127.0.0.2"


def test_a_missing_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=r"http_directory '.*nope' is not a directory"):
        HttpServer(directory=tmp_path / "nope").__enter__()


def test_a_file_without_permission(server: HttpServer, root: Path) -> None:
    (root / "private").write_text("x")
    (root / "private").chmod(0)
    assert ask(server, "GET", "/private")[0] == (200 if os.geteuid() == 0 else 403)


def test_the_end_closes_everything(root: Path) -> None:
    threads = threading.active_count()
    with contextlib.ExitStack() as stack:
        with HttpServer(directory=root) as server:
            idle = stack.enter_context(socket.create_connection(server.address, timeout=10))
            idle.sendall(b"GET /ks.cfg HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while not answer.endswith(b"from the directory"):
                answer += idle.recv(65536)
            began = time.monotonic()
        assert time.monotonic() - began < 2
        assert idle.recv(1) == b""
    assert threading.active_count() == threads
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(server.address, timeout=1)


def test_many_clients_at_once(server: HttpServer) -> None:
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(ask(server, "GET", "/user-data")[0])) for _ in range(60)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert results == [200] * 60
    until(lambda: len(server.accesses) == 60)
