"""Downloads against real servers on loopback that misbehave: they drop connections, ignore ranges, lie, stall."""

from __future__ import annotations

import functools
import hashlib
import http.server
import multiprocessing
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.errors import ChecksumError, ImgbuildError, StoreError, TemplateError
from imagebuilder.media import download, verified
from imagebuilder.media.download import check_ranges
from imagebuilder.media.transfer import shown
from imagebuilder.ui import Event, Ui

ISO = bytes(range(256)) * 4096 + b"the end"  # 1 MiB and a bit
DIGEST = hashlib.sha256(ISO).hexdigest()
CHECKSUM = f"sha256:{DIGEST}"


fetch = functools.partial(download.fetch, pause=0.01)


class Mirror(http.server.ThreadingHTTPServer):
    """Serves `files`, and does wrong what its switches say."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, bytes] = {"/a.iso": ISO}
        self.drop_after: list[int] = []  # bytes after which each next answer breaks off
        self.statuses: list[int] = []  # what each next request is answered with
        self.ranges, self.etag, self.last_modified = True, True, False
        self.pause = 0.0  # seconds between pieces
        self.seen: list[tuple[str, str, dict[str, str]]] = []

    def handle_error(self, *_: object) -> None:
        """A client that was killed is no news."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def asked(self, path: str) -> list[dict[str, str]]:
        return [headers for _, asked, headers in self.seen if asked == path]


class Answer(http.server.BaseHTTPRequestHandler):
    server: Mirror
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        mirror = self.server
        mirror.seen.append((self.command, self.path, {name.lower(): value for name, value in self.headers.items()}))
        if mirror.statuses:
            return self.empty(mirror.statuses.pop(0))
        if self.path == "/moved":
            return self.empty(302, Location="/a.iso")
        content = mirror.files.get(self.path.partition("?")[0])
        if content is None:
            return self.empty(404)
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        modified = f"Mon, 01 Jan 2024 00:00:{content[0] % 60:02} GMT"
        headers = {
            **({"ETag": etag} if mirror.etag else {}),
            **({"Last-Modified": modified} if mirror.last_modified else {}),
        }
        if self.headers["If-None-Match"] == etag and mirror.etag:
            return self.empty(304, **headers)
        if self.headers["If-Modified-Since"] == modified and mirror.last_modified:
            return self.empty(304, **headers)
        begin = self.begin(len(content), headers)
        if begin > len(content) or (begin and begin == len(content)):
            return self.empty(416, **{"Content-Range": f"bytes */{len(content)}"})
        self.send_response(206 if begin else 200)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        if mirror.ranges:
            self.send_header("Accept-Ranges", "bytes")
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        if self.command == "GET":
            self.body(content[begin:])
        return None

    def begin(self, length: int, validators: dict[str, str]) -> int:
        found = re.fullmatch(r"bytes=(\d+)-", self.headers["Range"] or "")
        condition = self.headers["If-Range"]
        if not (found and self.server.ranges) or (condition and condition not in validators.values()):
            return 0
        return int(found[1])

    def body(self, content: bytes) -> None:
        stop = self.server.drop_after.pop(0) if self.server.drop_after else len(content)
        for start in range(0, min(stop, len(content)), 65536):
            self.wfile.write(content[start : min(start + 65536, stop)])
            time.sleep(self.server.pause)
        if stop < len(content):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def empty(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    with Mirror() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Heard:
    """A `Ui` and what it said."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ui = Ui("t", self.events.append)

    def text(self) -> str:
        return "\n".join(event.text for event in self.events if not event.kind.startswith("progress"))

    def warnings(self) -> list[str]:
        return [event.text for event in self.events if event.kind == "warning"]


@pytest.fixture
def heard() -> Heard:
    return Heard()


def leftovers() -> list[str]:
    """What lies in the cache and is neither a complete file nor known of one."""
    return sorted(path.name for path in verified.directory().glob("*") if path.suffix in (".part", ".tmp"))


def test_a_download_is_verified_kept_and_not_fetched_again(mirror: Mirror, heard: Heard) -> None:
    path = fetch([f"{mirror.url}/a.iso"], CHECKSUM, heard.ui, extension="iso")
    assert path.read_bytes() == ISO
    assert path.name == f"sha256-{DIGEST}.iso"
    assert f"Trying {mirror.url}/a.iso" in heard.text()
    assert any(event.kind == "progress" and event.data["total"] == len(ISO) for event in heard.events)
    again = fetch([f"{mirror.url}/elsewhere.iso"], DIGEST.upper(), heard.ui, extension="iso")
    assert again == path
    assert len(mirror.seen) == 1
    assert leftovers() == []


@pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha512"])
def test_every_algorithm_is_checked(mirror: Mirror, heard: Heard, algorithm: str) -> None:
    digest = hashlib.new(algorithm, ISO).hexdigest()
    assert fetch([f"{mirror.url}/a.iso"], digest, heard.ui).read_bytes() == ISO
    wrong = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    with pytest.raises(ChecksumError, match=f"its {algorithm} is {digest}, not {wrong}"):
        fetch([f"{mirror.url}/a.iso"], f"{algorithm}:{wrong}", heard.ui)
    assert leftovers() == []


def test_dropped_connections_are_continued(mirror: Mirror, heard: Heard) -> None:
    mirror.drop_after = [300_000, 200_000]
    assert fetch([f"{mirror.url}/a.iso"], CHECKSUM, heard.ui).read_bytes() == ISO
    ranges = [headers.get("range") for headers in mirror.asked("/a.iso")]
    assert ranges == [None, "bytes=300000-", "bytes=500000-"]
    assert mirror.asked("/a.iso")[1]["if-range"].startswith('"')
    assert "the connection was lost; trying again" in heard.text()


def test_a_server_that_ignores_ranges_is_read_from_the_beginning(mirror: Mirror, heard: Heard) -> None:
    mirror.ranges, mirror.drop_after = False, [300_000]
    assert fetch([f"{mirror.url}/a.iso"], CHECKSUM, heard.ui).read_bytes() == ISO


@pytest.mark.parametrize("checksum", [CHECKSUM, "none"], ids=["digest", "none"])
def test_what_an_ended_build_received_is_continued(mirror: Mirror, heard: Heard, checksum: str) -> None:
    mirror.drop_after = [400_000, 0, 0, 0, 0]
    with pytest.raises(ImgbuildError, match=r"can't download .*a\.iso': the connection was lost"):
        fetch([f"{mirror.url}/a.iso"], checksum, heard.ui)
    assert len(leftovers()) == 1
    assert fetch([f"{mirror.url}/a.iso"], checksum, heard.ui).read_bytes() == ISO
    assert mirror.asked("/a.iso")[-1]["range"] == "bytes=400000-"
    assert "Resuming at 390.6 KiB of 1.0 MiB" in heard.text()
    assert leftovers() == []


def test_a_file_that_changed_between_two_tries_is_not_put_together(mirror: Mirror, heard: Heard) -> None:
    mirror.drop_after = [400_000, 0, 0, 0, 0]
    with pytest.raises(ImgbuildError):
        fetch([f"{mirror.url}/a.iso"], "none", heard.ui)
    mirror.files["/a.iso"] = ISO[::-1]
    assert fetch([f"{mirror.url}/a.iso"], "none", heard.ui).read_bytes() == ISO[::-1]


def test_a_part_of_something_else_costs_one_more_try(mirror: Mirror, heard: Heard) -> None:
    mirror.etag = False
    part = verified.directory() / f"sha256-{DIGEST}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"x" * 1000)
    assert fetch([f"{mirror.url}/a.iso"], CHECKSUM, heard.ui).read_bytes() == ISO
    assert "came out wrong" in heard.text()


@pytest.mark.parametrize("length", [len(ISO), len(ISO) + 5], ids=["complete", "too-long"])
def test_a_part_that_is_complete_or_too_long(mirror: Mirror, heard: Heard, length: int) -> None:
    part = verified.directory() / f"sha256-{DIGEST}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes((ISO + b"12345")[:length])
    assert fetch([f"{mirror.url}/a.iso"], CHECKSUM, heard.ui).read_bytes() == ISO
    assert leftovers() == []


def test_transient_answers_are_tried_again_and_others_said(mirror: Mirror, heard: Heard) -> None:
    mirror.statuses = [503, 429]
    assert fetch([f"{mirror.url}/a.iso"], CHECKSUM, heard.ui).read_bytes() == ISO
    before = len(mirror.seen)
    with pytest.raises(ImgbuildError, match=r"can't download 'http.*/b.iso': the server answered 404 Not Found"):
        fetch([f"{mirror.url}/b.iso"], "none", heard.ui)
    assert len(mirror.seen) == before + 1


def test_a_stalled_server_is_given_up(mirror: Mirror, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKER_GETTER_READ_TIMEOUT", "100ms")
    mirror.pause = 1.0
    mirror.files["/a.iso"] = ISO[:100_000]
    mirror.etag = mirror.ranges = False
    with pytest.raises(ImgbuildError, match=r"nothing was received for 0\.1 s"):
        fetch([f"{mirror.url}/a.iso"], "none", heard.ui)
    monkeypatch.setenv("PACKER_GETTER_READ_TIMEOUT", "soon")
    with pytest.raises(TemplateError, match="PACKER_GETTER_READ_TIMEOUT: 'soon' is not a duration"):
        fetch([f"{mirror.url}/a.iso"], "none", heard.ui)


def test_nobody_listens(heard: Heard) -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with pytest.raises(ImgbuildError, match="can't download"):
        fetch([f"http://127.0.0.1:{port}/a.iso"], "none", heard.ui)


def test_redirects_are_followed(mirror: Mirror, heard: Heard) -> None:
    assert fetch([f"{mirror.url}/moved"], CHECKSUM, heard.ui).read_bytes() == ISO


def test_urls_are_tried_in_order(mirror: Mirror, heard: Heard, tmp_path: Path) -> None:
    urls = [str(tmp_path / "missing.iso"), f"{mirror.url}/gone.iso", f"{mirror.url}/a.iso"]
    assert fetch(urls, CHECKSUM, heard.ui).read_bytes() == ISO
    assert "missing.iso' does not exist" in heard.text()
    assert "404 Not Found" in heard.text()
    with pytest.raises(ImgbuildError, match=r"(?s)none of the 2 URLs gave the file.*does not exist.*404"):
        fetch(urls[:2], "none", heard.ui)


def test_a_wrong_mirror_is_left_for_the_next(mirror: Mirror, heard: Heard) -> None:
    mirror.files["/old/a.iso"] = ISO[:-1] + b"!"
    assert fetch([f"{mirror.url}/old/a.iso", f"{mirror.url}/a.iso"], CHECKSUM, heard.ui).read_bytes() == ISO
    assert "is not the file that was asked for" in heard.text()


@pytest.mark.parametrize("form", ["relative", "absolute", "url", "url-localhost"])
def test_a_local_file_is_verified_and_used_where_it_is(
    form: str, heard: Heard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "my iso.iso"
    file.write_bytes(ISO)
    text = {
        "relative": "my iso.iso",
        "absolute": str(file),
        "url": f"file://{tmp_path}/my%20iso.iso",
        "url-localhost": f"file://localhost{tmp_path}/my%20iso.iso",
    }[form]
    assert fetch([text], CHECKSUM, heard.ui) == file
    assert not list(verified.directory().glob("sha256*"))
    file.write_bytes(ISO[:-1] + b"!")
    with pytest.raises(ChecksumError):
        fetch([text], CHECKSUM, heard.ui)


def test_a_local_file_is_read_once(heard: Heard, tmp_path: Path) -> None:
    file = tmp_path / "a.iso"
    file.write_bytes(ISO)
    for _ in range(2):
        fetch([str(file)], CHECKSUM, heard.ui)
    assert len({event.time for event in heard.events if event.kind == "progress-end"}) == 1


@pytest.mark.parametrize(
    "url", ["s3::https://bucket/a.iso", "git::https://host/repo", "ftp://host/a.iso", "nfs://host/a", ""]
)
def test_other_schemes_are_refused(url: str, heard: Heard) -> None:
    with pytest.raises(TemplateError, match=r"is not supported|empty URL"):
        fetch([url], "none", heard.ui)


def test_none_warns_and_asks_again_each_time(mirror: Mirror, heard: Heard) -> None:
    url = f"{mirror.url}/a.iso"
    first = fetch([url], "none", heard.ui)
    assert "is 'none'" in heard.warnings()[0]
    assert fetch([url], "none", heard.ui) == first
    assert "has not changed" in heard.text()
    mirror.files["/a.iso"] = b"second edition"
    assert fetch([url], "none", heard.ui).read_bytes() == b"second edition"


def test_none_by_last_modified_and_without_any_validator(mirror: Mirror, heard: Heard) -> None:
    mirror.etag, mirror.last_modified = False, True
    url = f"{mirror.url}/a.iso"
    fetch([url], "none", heard.ui)
    fetch([url], "none", heard.ui)
    assert "has not changed" in heard.text()
    mirror.last_modified = False
    mirror.files["/a.iso"] = ISO[::-1]  # the same size
    assert fetch([url], "none", heard.ui).read_bytes() == ISO[::-1]


def test_none_works_offline_from_the_cache(mirror: Mirror, heard: Heard) -> None:
    url = f"{mirror.url}/a.iso"
    path = fetch([url], "none", heard.ui)
    mirror.statuses = [500] * 5
    assert fetch([url], "none", heard.ui) == path
    assert "using the copy that was downloaded before" in heard.warnings()[-1]


@pytest.mark.parametrize("checksum", [CHECKSUM, "none"], ids=["digest", "none"])
def test_a_damaged_file_in_the_cache_is_fetched_again(mirror: Mirror, heard: Heard, checksum: str) -> None:
    url = f"{mirror.url}/a.iso"
    path = fetch([url], checksum, heard.ui)
    path.write_bytes(ISO[:-1] + b"!")
    assert fetch([url], checksum, heard.ui).read_bytes() == ISO
    assert "is damaged: fetching it again" in heard.text()


def test_a_touched_file_in_the_cache_is_only_read_again(mirror: Mirror, heard: Heard) -> None:
    path = fetch([f"{mirror.url}/a.iso"], CHECKSUM, heard.ui)
    os.utime(path)
    assert fetch([f"{mirror.url}/a.iso"], CHECKSUM, heard.ui) == path
    assert len(mirror.seen) == 1


def test_a_lost_record_is_made_again(mirror: Mirror, heard: Heard) -> None:
    path = fetch([f"{mirror.url}/a.iso"], CHECKSUM, heard.ui)
    path.with_name(path.name + ".json").write_text("{")
    fetch([f"{mirror.url}/a.iso"], CHECKSUM, heard.ui)
    assert len(mirror.seen) == 1


LISTS = {
    "gnu": f"{DIGEST} *a.iso\n{'0' * 64} *b.iso\n",
    "bsd": f"# a comment\nSHA256 (a.iso) = {DIGEST}\n",
    "single": DIGEST,
}


@pytest.mark.parametrize("text", LISTS.values(), ids=LISTS)
def test_lists_of_checksums_by_url_and_by_path(mirror: Mirror, heard: Heard, text: str, tmp_path: Path) -> None:
    mirror.files["/SUMS"] = text.encode()
    assert fetch([f"{mirror.url}/a.iso"], f"file:{mirror.url}/SUMS", heard.ui).read_bytes() == ISO
    (tmp_path / "SUMS").write_text(text)
    (tmp_path / "a.iso").write_bytes(ISO)
    local = fetch([str(tmp_path / "a.iso")], f"file:{tmp_path}/SUMS", heard.ui)
    assert local == tmp_path / "a.iso"


def test_a_list_is_fetched_once_for_builds_that_run_together(mirror: Mirror, heard: Heard) -> None:
    mirror.files["/SUMS"] = LISTS["gnu"].encode()
    for _ in range(2):
        fetch([f"{mirror.url}/a.iso"], f"file:{mirror.url}/SUMS", heard.ui)
    assert len(mirror.asked("/SUMS")) == 1


def test_a_list_that_fails(mirror: Mirror, heard: Heard) -> None:
    with pytest.raises(ImgbuildError, match="404"):
        fetch([f"{mirror.url}/a.iso"], f"file:{mirror.url}/SUMS", heard.ui)
    with pytest.raises(ImgbuildError, match="can't read the list of checksums 'no/SUMS': No such file"):
        fetch([f"{mirror.url}/a.iso"], "file:no/SUMS", heard.ui)
    mirror.files["/SUMS"] = b"<html>"
    with pytest.raises(ChecksumError, match=r"SUMS' has no checksum for 'a\.iso'"):
        fetch([f"{mirror.url}/a.iso"], f"file:{mirror.url}/SUMS", heard.ui)


def test_target_file_and_directory(mirror: Mirror, heard: Heard, tmp_path: Path) -> None:
    url = f"{mirror.url}/a.iso"
    assert fetch([url], CHECKSUM, heard.ui, target=tmp_path / "deep" / "x.iso").read_bytes() == ISO
    assert fetch([url], CHECKSUM, heard.ui, target=tmp_path) == tmp_path / "a.iso"
    fetch([url], CHECKSUM, heard.ui, target=tmp_path)
    assert len(mirror.seen) == 2
    mirror.files["/a.iso"] = b"next release"
    digest = hashlib.sha256(b"next release").hexdigest()
    assert fetch([url], digest, heard.ui, target=tmp_path).read_bytes() == b"next release"


def test_a_target_that_is_the_users_own_file_is_not_overwritten(mirror: Mirror, heard: Heard, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years of work")
    for checksum in (CHECKSUM, "none"):
        with pytest.raises(StoreError, match=r"thesis\.txt' exists, and it is not the file"):
            fetch([f"{mirror.url}/a.iso"], checksum, heard.ui, target=tmp_path / "thesis.txt")
    assert (tmp_path / "thesis.txt").read_text() == "three years of work"


def test_a_target_without_checksum_never_falls_back_to_another_url(
    mirror: Mirror, heard: Heard, tmp_path: Path
) -> None:
    fetch([f"{mirror.url}/a.iso"], "none", heard.ui, target=tmp_path / "x.iso")
    with pytest.raises(ImgbuildError, match="404"):
        fetch([f"{mirror.url}/b.iso"], "none", heard.ui, target=tmp_path / "x.iso")


def _fetch_in_child(url: str, checksum: str, said: Any) -> None:
    def tell(event: Event) -> None:
        if event.kind in ("say", "message"):
            said.put(event.text)

    fetch([url], checksum, Ui("t", tell))


@pytest.fixture
def spawn() -> Callable[..., Any]:
    context = multiprocessing.get_context("spawn")

    def start(*arguments: Any) -> tuple[Any, Any]:
        said = context.Queue()
        child = context.Process(target=_fetch_in_child, args=(*arguments, said))
        child.start()
        return child, said

    return start


def test_two_builds_download_once(mirror: Mirror, heard: Heard, spawn: Callable[..., Any]) -> None:
    mirror.pause = 0.1
    child, _ = spawn(f"{mirror.url}/a.iso", CHECKSUM)
    wait_for(lambda: list(verified.directory().glob("*.part")))
    assert fetch([f"{mirror.url}/a.iso"], CHECKSUM, heard.ui).read_bytes() == ISO
    child.join(30)
    assert child.exitcode == 0
    assert len(mirror.seen) == 1
    assert "Waiting for another build that fetches 'a.iso'" in heard.text()


@pytest.mark.parametrize("checksum", [CHECKSUM, "none"], ids=["digest", "none"])
def test_kill_9_leaves_only_what_can_be_continued(
    mirror: Mirror, heard: Heard, spawn: Callable[..., Any], checksum: str
) -> None:
    mirror.pause = 0.1
    child, _ = spawn(f"{mirror.url}/a.iso", checksum)
    wait_for(lambda: any(part.stat().st_size > 200_000 for part in verified.directory().glob("*.part")))
    os.kill(child.pid, signal.SIGKILL)
    child.join(30)
    complete = [path for path in verified.directory().iterdir() if path.name.startswith(("sha256", "url"))]
    assert {path.suffix for path in complete} <= {".part", ".json", ".lock"}
    assert not [path for path in complete if path.suffix == ".json" and ".part" not in path.name]
    mirror.pause = 0
    assert fetch([f"{mirror.url}/a.iso"], checksum, heard.ui).read_bytes() == ISO
    assert re.fullmatch(r"bytes=[1-9]\d+-", mirror.asked("/a.iso")[-1]["range"])


def wait_for(condition: Callable[[], object], timeout: float = 30) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_full_disk_is_said_before_the_download(mirror: Mirror, heard: Heard) -> None:
    class Huge(bytes):
        def __len__(self) -> int:
            return 1 << 60

    mirror.files["/a.iso"] = Huge(b"x")
    with pytest.raises(StoreError, match=r"needs 1073741824\.0 GiB, and '.*' has .* free"):
        fetch([f"{mirror.url}/a.iso"], "none", heard.ui)


def test_secrets_in_urls_are_not_shown(mirror: Mirror, heard: Heard) -> None:
    host = mirror.url.removeprefix("http://")
    fetch([f"http://me:hunter2@{host}/a.iso?X-Signature=abc"], CHECKSUM, heard.ui)
    assert "hunter2" not in heard.text()
    assert "abc" not in heard.text().replace(DIGEST, "")
    assert mirror.seen[0][2]["authorization"].startswith("Basic ")
    assert shown("https://u:p@h/a?b#c") == "https://h/a?..."


def test_check_ranges(mirror: Mirror) -> None:
    check_ranges(f"{mirror.url}/a.iso")
    assert mirror.seen[-1][0] == "HEAD"
    with pytest.raises(ImgbuildError, match="404"):
        check_ranges(f"{mirror.url}/b.iso")
    mirror.ranges = False
    with pytest.raises(ImgbuildError, match="serves no byte ranges"):
        check_ranges(f"{mirror.url}/a.iso")
    with pytest.raises(ImgbuildError, match=r"can't reach '/a\.iso'"):
        check_ranges("/a.iso")
