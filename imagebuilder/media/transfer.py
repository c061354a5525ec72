"""Receiving one file over HTTP into a `.part` that a later try continues (RFC 9110: ranges §14, If-Range §13.1.5).

Transient failures are tried again with growing pauses, as long as bytes keep coming; what can't get better (404, a
certificate, a name that doesn't exist) is said at once.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import socket
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from imagebuilder.errors import ImgbuildError, StoreError, TemplateError
from imagebuilder.options import seconds
from imagebuilder.ui import Ui, duration, size

ATTEMPTS = 5
FIRST_PAUSE = 1.0  # seconds before the second attempt; each further pause is twice as long
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_PAUSE = 60.0  # seconds


@dataclass(frozen=True)
class Origin:
    """Where bytes came from, and which version of the file they are of."""

    url: str = ""
    etag: str = ""
    last_modified: str = ""

    @property
    def validator(self) -> str:
        """What If-Range takes; a weak ETag is no proof that the bytes are the same."""
        return self.last_modified if self.etag.startswith("W/") else self.etag or self.last_modified

    def is_same_version(self, other: Origin) -> bool:
        if self.etag or other.etag:
            return self.etag == other.etag
        return bool(self.last_modified) and self.last_modified == other.last_modified


class _Transient(Exception):
    """May go better in a moment; `pause` is what the server asked for, in seconds."""

    def __init__(self, message: str, pause: float = 0.0) -> None:
        super().__init__(message)
        self.pause = pause


def shown(url: str) -> str:
    """A URL as it may be shown: no password, no query (where signed URLs hold their keys)."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="", fragment="").geturl() + ("?..." if parts.query else "")


def inactivity_timeout() -> float:
    """Seconds without a byte after which a connection counts as dead: PACKER_GETTER_READ_TIMEOUT, or a minute."""
    text = os.environ.get("PACKER_GETTER_READ_TIMEOUT", "1m")
    try:
        return seconds(text)
    except ValueError as error:
        raise TemplateError(f"environment variable PACKER_GETTER_READ_TIMEOUT: {error}") from error


def client() -> httpx.Client:
    """An HTTP client as downloads want it: redirects, the environment's proxies, no endless waits."""
    timeout = httpx.Timeout(15.0, read=inactivity_timeout())
    headers = {"Accept-Encoding": "identity", "User-Agent": "imgbuild"}
    return httpx.Client(follow_redirects=True, timeout=timeout, headers=headers)


class Transfer:
    """One URL into one `.part`. `same_content`: a digest is checked afterwards, so what another mirror or a server
    without validators sent may be continued. `known`: the version that is there already."""

    def __init__(self, url: str, part: Path, ui: Ui, *, same_content: bool, known: Origin | None, pause: float) -> None:
        self.url, self.part, self.ui = url, part, ui
        self.same_content, self.known, self.pause = same_content, known, pause
        self.resumed = False
        self._note = part.with_name(part.name + ".json")

    def run(self) -> Origin | None:
        """Receive everything; None when the server says that what is known is still current."""
        failures, best, pause = 0, self._have(), self.pause
        with client() as session:
            while True:
                try:
                    return self._attempt(session)
                except _Transient as error:
                    if self._have() > best:
                        failures, best, pause = 0, self._have(), self.pause
                    failures += 1
                    if failures == ATTEMPTS:
                        raise ImgbuildError(f"can't download '{shown(self.url)}': {error}") from error
                    pause = max(pause, min(error.pause, _LONGEST_PAUSE))
                    self.ui.message(f"{error}; trying again in {duration(pause)}")
                time.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)

    def discard(self) -> None:
        """Forget what was received."""
        self.part.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0

    def _attempt(self, session: httpx.Client) -> Origin | None:
        have, headers = self._request()
        try:
            with session.stream("GET", self.url, headers=headers) as response:
                return self._answer(response, have)
        except httpx.TransportError as error:
            if permanent := _permanent(error):
                raise ImgbuildError(f"can't download '{shown(self.url)}': {permanent}") from error
            raise _Transient(_reason(error)) from error
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise ImgbuildError(f"can't download '{shown(self.url)}': {error}") from error

    def _request(self) -> tuple[int, dict[str, str]]:
        """How many bytes of the `.part` can be continued, and the header lines that ask for the rest."""
        have, origin = self._have(), self._origin()
        same = origin.url == self.url
        if have and (self.same_content or (same and origin.validator)):
            condition = {"If-Range": origin.validator} if same and origin.validator else {}
            return have, {"Range": f"bytes={have}-", **condition}
        headers = {}
        if self.known and self.known.etag:
            headers["If-None-Match"] = self.known.etag
        elif self.known and self.known.last_modified:
            headers["If-Modified-Since"] = self.known.last_modified
        return 0, headers

    def _origin(self) -> Origin:
        try:
            return Origin(**json.loads(self._note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return Origin()

    def _answer(self, response: httpx.Response, have: int) -> Origin | None:
        origin = Origin(self.url, response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""))
        if response.status_code == 304 and self.known:
            return None
        if response.status_code == 416 and have:
            return self._past_the_end(response, have)
        if response.status_code not in (200, 206):
            raise self._refused(response)
        if response.status_code == 200:
            if self.known and self.known.is_same_version(origin):
                return None
            have = 0
        elif not (have and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")):
            self.discard()
            raise _Transient(f"the server sent another part of '{shown(self.url)}' than it was asked for")
        self._receive(response, have, origin)
        return origin

    def _past_the_end(self, response: httpx.Response, have: int) -> Origin:
        """The `.part` is complete already (we were killed before it was renamed), or it is of something else."""
        if response.headers.get("Content-Range") == f"bytes */{have}":
            self.resumed = True
            return self._origin()
        self.discard()
        raise _Transient("the file became shorter since its first part was received")

    def _refused(self, response: httpx.Response) -> Exception:
        status = f"the server answered {response.status_code} {response.reason_phrase}".rstrip()
        if response.status_code in _TRANSIENT:
            after = response.headers.get("Retry-After", "")
            return _Transient(status, float(after) if re.fullmatch(r"\d{1,6}", after) else 0.0)
        moved = f" (redirected to '{shown(str(response.url))}')" if response.history else ""
        return ImgbuildError(f"can't download '{shown(self.url)}'{moved}: {status}")

    def _receive(self, response: httpx.Response, have: int, origin: Origin) -> None:
        length = response.headers.get("Content-Length", "")
        total = have + int(length) if length.isdigit() else None
        if not have:
            self.discard()  # first, so that no old bytes stand beside the new note
        self._check_space((total or have) - have)
        if have:
            self.resumed = True
            self.ui.message(f"Resuming at {size(have)}" + (f" of {size(total)}" if total else ""))
        name = urlsplit(self.url).path.rpartition("/")[2]
        try:
            self._note.write_text(json.dumps(dataclasses.asdict(origin)), encoding="utf-8")
            with self.part.open("r+b" if have else "wb") as file, self.ui.progress(f"Downloading {name}", total) as at:
                file.seek(have)
                for chunk in response.iter_raw():  # as it is there: a Content-Encoding is part of a `.gz` from Apache
                    file.write(chunk)
                    have += len(chunk)
                    at(have)
                file.truncate()
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            hint = (
                "free some space, or set IMGBUILD_CACHE_DIR to a larger disk" if error.errno == errno.ENOSPC else None
            )
            raise StoreError(f"can't write '{self.part}': {error.strerror}", hint=hint) from error

    def _check_space(self, missing: int) -> None:
        free = shutil.disk_usage(self.part.parent).free
        if missing > free:
            raise StoreError(
                f"'{shown(self.url)}' needs {size(missing)}, and '{self.part.parent}' has {size(free)} free",
                hint="free some space, or set IMGBUILD_CACHE_DIR to a larger disk",
            )


def _reason(error: httpx.TransportError) -> str:
    if isinstance(error, httpx.ReadTimeout):
        return f"nothing was received for {duration(inactivity_timeout())}"
    if isinstance(error, httpx.ConnectTimeout):
        return "the server can't be reached: it didn't answer in time"
    if isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError)):
        return "the connection was lost"
    return str(error) or type(error).__name__


def _permanent(error: BaseException | None) -> str:
    """Why trying again is of no use; "" when it may be."""
    if isinstance(error, httpx.UnsupportedProtocol):
        return str(error)
    while error is not None:
        if isinstance(error, socket.gaierror) and error.errno == socket.EAI_NONAME:
            return "there is no host of that name"
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {error.verify_message}"
        error = error.__cause__ or error.__context__
    return ""


def check_ranges(url: str) -> None:
    """Whether QEMU can read `url` by itself: it must answer HEAD and serve byte ranges. ImgbuildError when not."""
    try:
        with client() as session:
            response = session.head(url)
    except (httpx.RequestError, httpx.InvalidURL) as error:
        raise ImgbuildError(f"can't reach '{shown(url)}': {_permanent(error) or error}") from error
    if not response.is_success:
        answer = f"{response.status_code} {response.reason_phrase}".rstrip()
        raise ImgbuildError(f"can't read '{shown(url)}': the server answered {answer}")
    if response.headers.get("Accept-Ranges", "").lower() != "bytes":
        raise ImgbuildError(
            f"the server of '{shown(url)}' serves no byte ranges, so QEMU can't read the file over HTTP",
            hint="remove iso_skip_cache, and the file is downloaded",
        )
