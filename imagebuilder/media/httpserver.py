"""The embedded kickstart server: files, given content and rendered templates for installers, on loopback.

A Flask application served by waitress in a thread of its own. It only reads: no listing, no dotfiles, no way out of its
directory. What was fetched is kept, so that a build can wait for it. HTTP semantics: RFC 9110.
"""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import mimetypes
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import waitress
from flask import Flask, Response, abort, request
from waitress import wasyncore
from werkzeug.exceptions import HTTPException, RequestedRangeNotSatisfiable

from imagebuilder.errors import ImgbuildError, TemplateError

log = logging.getLogger(__name__)
logging.getLogger("waitress").addHandler(logging.NullHandler())  # or its warnings go to standard error

_TEXT = "text/plain; charset=utf-8"
_LIMITS = {
    "threads": 8,
    "connection_limit": 200,
    "channel_timeout": 60,  # seconds an idle connection is kept
    "max_request_header_size": 16 << 10,
    "max_request_body_size": 64 << 10,
}


@dataclass(frozen=True)
class Access:
    """One answered request; `size`: bytes of the body that were really sent."""

    time: float  # Unix seconds
    client: str
    method: str
    path: str  # decoded, without query
    status: int
    size: int

    def __str__(self) -> str:
        """As a line of the Common Log Format."""
        when = datetime.fromtimestamp(self.time).astimezone().strftime("%d/%b/%Y:%H:%M:%S %z")
        asked = f"{self.method} {quote(self.path, safe='/-._~:@!$&()*+,;=')} HTTP/1.1"
        return f'{self.client} - - [{when}] "{asked}" {self.status} {self.size}'


@dataclass(frozen=True)
class _Found:
    """What a path stands for: a stream that can seek, and what is told of it."""

    stream: io.FileIO | io.BytesIO
    size: int
    kind: str
    etag: str = ""


class HttpServer:
    """Serves from the beginning to the end of a `with` block. Bound before it starts, so `address` is never a guess.

    A path is looked for in `templates` (rendered at each request), in `content`, then below `directory`. An error of a
    template answers 500 and stands in `failures`. `on_request` is called from the server's threads.
    """

    def __init__(
        self,
        *,
        directory: Path | None = None,
        content: Mapping[str, str | bytes] | None = None,
        templates: Mapping[str, Callable[[], str]] | None = None,
        bind: str = "127.0.0.1",
        port_min: int | None = None,
        port_max: int | None = None,
        on_request: Callable[[Access], None] | None = None,
        log_path: Path | None = None,
    ) -> None:
        self._directory, self._bind, self._ports = directory, bind, (port_min, port_max)
        self._content = {_absolute(path): text for path, text in (content or {}).items()}
        self._templates = {_absolute(path): render for path, render in (templates or {}).items()}
        self._on_request, self._log_path = on_request, log_path
        self._changed = threading.Condition()
        self._accesses: list[Access] = []
        self._failures: list[Exception] = []
        self._stack = contextlib.ExitStack()
        self._address = ("", 0)
        self._root = Path()
        self._log: io.TextIOBase | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens: address and port."""
        return self._address

    @property
    def accesses(self) -> tuple[Access, ...]:
        """Every request that was answered so far."""
        with self._changed:
            return tuple(self._accesses)

    @property
    def failures(self) -> tuple[Exception, ...]:
        """What went wrong here (not what was asked wrongly): the errors of templates."""
        with self._changed:
            return tuple(self._failures)

    def wait_for(self, path: str, timeout: float) -> bool:
        """Whether `path` was fetched, waiting at most `timeout` seconds; raises the first failure, if there is one."""

        def fetched() -> bool:
            return bool(self._failures) or any(
                access.path == _absolute(path) and access.method == "GET" and 200 <= access.status < 300
                for access in self._accesses
            )

        with self._changed:
            done = self._changed.wait_for(fetched, timeout)
            if self._failures:
                raise self._failures[0]
            return done

    def __enter__(self) -> HttpServer:
        if self._directory is not None and not self._directory.is_dir():
            raise TemplateError(f"http_directory '{self._directory}' is not a directory")
        self._root = (self._directory or Path("/nonexistent")).resolve()
        with contextlib.ExitStack() as stack:
            listener = stack.enter_context(_listen(self._bind, *self._ports))
            self._address = listener.getsockname()[:2]
            if self._log_path:
                self._log = stack.enter_context(self._log_path.open("a", encoding="utf-8"))
            server = waitress.create_server(
                _application(self), sockets=[listener], ident="imgbuild", asyncore_use_poll=True,
                clear_untrusted_proxy_headers=True, **_LIMITS,
            )  # fmt: skip
            stopping = threading.Event()
            arguments = (server, stopping, self._fail)
            thread = threading.Thread(target=_serve, args=arguments, name=f"http-{self._address[1]}")
            thread.start()
            stack.callback(_stop, server, thread, stopping)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _record(self, access: Access) -> None:
        with self._changed:
            self._accesses.append(access)
            if self._log and not self._log.closed:
                self._log.write(f"{access}\n")
                self._log.flush()
            self._changed.notify_all()
        if self._on_request:
            self._on_request(access)

    def _fail(self, error: Exception) -> None:
        log.debug("the HTTP server has a failure", exc_info=error)
        with self._changed:
            self._failures.append(error)
            self._changed.notify_all()

    def _find(self, path: str) -> _Found | None:
        render = self._templates.get(path)
        if render:
            return _in_memory(render(), path)
        if path in self._content:
            return _in_memory(self._content[path], path)
        return self._file(path) if self._directory is not None else None

    def _file(self, path: str) -> _Found | None:
        """A file below the directory. What was opened is looked at, so that no link can be swapped in between."""
        parts = path.split("/")[1:]
        if "\0" in path or any(part == "" or part.startswith(".") for part in parts):
            return None
        try:
            descriptor = os.open(self._root.joinpath(*parts), os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        except PermissionError:
            abort(403)
        except OSError:
            return None
        status, place = os.fstat(descriptor), Path(f"/proc/self/fd/{descriptor}").readlink()
        inside = place.is_relative_to(self._root) and not _hidden(place.relative_to(self._root))
        if not stat.S_ISREG(status.st_mode) or not inside:
            os.close(descriptor)
            return None
        etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
        kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
        return _Found(_Sent(descriptor), status.st_size, kind, etag)


def _absolute(path: str) -> str:
    return "/" + path.lstrip("/")


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _in_memory(content: str | bytes, path: str) -> _Found:
    body = content.encode() if isinstance(content, str) else content
    return _Found(_SentBytes(body), len(body), mimetypes.guess_type(path)[0] or _TEXT)


class _Sent(io.FileIO):
    """A file that tells, when the server closes it, how much of it was sent."""

    report: Callable[[int], None] | None = None

    def close(self) -> None:
        if not self.closed and self.report:
            self.report(self.tell())
        super().close()


class _SentBytes(io.BytesIO):
    """The same for what lies in memory."""

    report: Callable[[int], None] | None = None

    def close(self) -> None:
        if not self.closed and self.report:
            self.report(self.tell())
        super().close()


def _application(server: HttpServer) -> Flask:
    """One view for every path. GET and HEAD only; every answer ends in `server`'s list."""
    app = Flask(__name__, static_folder=None)
    app.url_map.merge_slashes = False  # a redirect would be one more way to name a file

    def serve(path: str) -> Response:
        found = server._find(_asked())
        if found is None:
            abort(404)
        return _answer(found, server._record)

    def refuse(error: Exception) -> Response:
        if not isinstance(error, HTTPException):
            server._fail(error)
        code = error.code or 500 if isinstance(error, HTTPException) else 500
        response = Response(f"{code}\n", code, content_type=_TEXT)
        if code == 405:
            response.headers["Allow"] = "GET, HEAD"
        if isinstance(error, RequestedRangeNotSatisfiable):
            response.headers["Content-Range"] = f"bytes */{error.length}"
        access, size = _access(code), len(response.get_data()) if request.method != "HEAD" else 0
        response.call_on_close(lambda: server._record(access(size)))
        return response

    options: dict[str, Any] = {"methods": ["GET"], "provide_automatic_options": False}
    app.add_url_rule("/", "root", lambda: serve(""), **options)
    app.add_url_rule("/<path:path>", "serve", serve, **options)
    app.register_error_handler(Exception, refuse)
    return app


def _asked() -> str:
    """The path as its bytes are, decoded once: what is still encoded then is part of a name."""
    return os.fsdecode(request.environ["PATH_INFO"].encode("latin-1"))


def _access(status: int) -> Callable[[int], Access]:
    """The entry for this request, as soon as its size is known."""
    client, method, path = request.remote_addr or "-", request.method, _asked()
    return lambda size: Access(time.time(), client, method, path, status, size)


def _answer(found: _Found, record: Callable[[Access], None]) -> Response:
    """The whole of it, or one range; the server reads the stream itself, piece by piece."""
    begin, end, status = 0, found.size, 200
    asked = request.range if request.if_range.etag in (None, found.etag.strip('"')) else None
    if request.if_range.date is not None:
        asked = None
    if asked is not None and asked.units == "bytes" and len(asked.ranges) == 1:
        span = asked.range_for_length(found.size)
        if span is None:
            found.stream.close()
            raise RequestedRangeNotSatisfiable(found.size)
        (begin, end), status = span, 206
    found.stream.seek(begin)
    access = _access(status)
    found.stream.report = lambda position: record(access(max(0, position - begin)))  # type: ignore[union-attr]
    body = request.environ["wsgi.file_wrapper"](found.stream, 1 << 16)
    response = Response(body, status, content_type=found.kind, direct_passthrough=True)
    response.headers["Content-Length"] = str(end - begin)
    response.headers["Accept-Ranges"] = "bytes"
    response.headers["ETag" if found.etag else "Cache-Control"] = found.etag or "no-store"
    if status == 206:
        response.headers["Content-Range"] = f"bytes {begin}-{end - 1}/{found.size}"
    return response


def _listen(bind: str, port_min: int | None, port_max: int | None) -> socket.socket:
    """A listening socket: on a port of the kernel's choice, or on the first free one of a range (both ends count)."""
    low = port_min if port_min is not None else port_max or 0
    high = port_max if port_max is not None else low
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(bind, 0, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise ImgbuildError(f"can't serve HTTP on '{bind}': {error.strerror}") from error
    reason = ""
    for port in range(low, high + 1):
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((place[0], port))
            listener.listen(128)
            return listener
        except OSError as error:
            listener.close()
            reason = error.strerror or str(error)
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                break
    where = f"port {low}" if low == high else f"ports {low} to {high}"
    raise ImgbuildError(
        f"can't serve HTTP on '{bind}', {where}: {reason or 'the range is empty'}",
        hint="leave http_port_min and http_port_max out: then the kernel chooses a port that is free",
    )


def _serve(server: Any, stopping: threading.Event, fail: Callable[[Exception], None]) -> None:
    """The main of the server's thread: what waitress's `run` does, with an end; an error reaches who waits."""
    try:
        while not stopping.is_set():
            wasyncore.loop(timeout=1, map=server._map, use_poll=True, count=1)
    except Exception as error:
        fail(error)


def _stop(server: Any, thread: threading.Thread, stopping: threading.Event) -> None:
    """The loop first, then the connections, then the workers; only then the pipe that workers wake the loop by."""
    stopping.set()
    server.pull_trigger()
    thread.join()
    for channel in list(server.active_channels.values()):
        channel.handle_close()
    server.task_dispatcher.shutdown()
    wasyncore.close_all(server._map)
