"""Fetching what a template names by path or URL: verified, kept in a content-addressed cache, fetched once.

downloads/sha256-DIGEST.iso        a complete, verified file, named by its declared digest
downloads/url-DIGEST.iso           one without a checksum, named by its URL and asked for again at every use
downloads/NAME.json                what is known of it (`verified.Record`); its mtime is the time of the last use
downloads/NAME.part, .part.json    what was received so far, continued by the next try
downloads/NAME.lock                held (flock) while somebody fetches or verifies
downloads/known/                   digests of the user's own files
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from imagebuilder.errors import ChecksumError, ImgbuildError, Problem, StoreError, TemplateError
from imagebuilder.media import verified
from imagebuilder.media.checksum import Checksum, choose, parse_checksum
from imagebuilder.media.transfer import FIRST_PAUSE, Origin, Transfer, shown
from imagebuilder.media.transfer import check_ranges as check_ranges
from imagebuilder.media.verified import Record
from imagebuilder.ui import Ui, duration, size

_LIST_AGE = 60.0  # seconds a list of checksums is taken for current: parallel builds ask for it once
_LIST_SIZE = 16 << 20  # bytes; Debian's longest has 1 MiB
_IDLE = 1800.0  # seconds without progress of whoever holds a lock


@dataclass(frozen=True)
class Source:
    """One place a file may come from: a URL, or a path on this machine."""

    text: str
    url: str = ""
    path: Path | None = None

    @property
    def address(self) -> str:
        """The path of the file at its source, by which lists of checksums name it."""
        return str(self.path) if self.path else unquote(urlsplit(self.url).path)

    @property
    def name(self) -> str:
        return self.address.rpartition("/")[2] or self.text


@dataclass(frozen=True)
class Slot:
    """Where one file lies, and everything that is kept about it."""

    path: Path
    record: Path

    @property
    def part(self) -> Path:
        return self.path.with_name(self.path.name + ".part")

    @property
    def lock(self) -> Path:
        return self.record.with_suffix(".lock")


def fetch(
    urls: Sequence[str],
    checksum: str,
    ui: Ui,
    *,
    target: Path | None = None,
    extension: str | None = None,
    pause: float = FIRST_PAUSE,
) -> Path:
    """The path of a file that has that checksum, from the first URL or path that gives it.

    A file of this machine is used where it is. `target`: the file, or the existing directory, to download to instead of
    the cache; `extension`: of the file in the cache; `pause`: seconds before a failed transfer's second attempt.
    Raises TemplateError (a URL of no known kind), ChecksumError, StoreError (disk full), ImgbuildError (can't be had).
    """
    sources = _sources(urls)
    wanted = _wanted(checksum, sources, ui, pause)
    failures: list[ImgbuildError] = []
    for source in sources:
        try:
            if source.path:
                return _in_place(source.path, wanted, ui)
            return _download(source, wanted, _slot(source, wanted, target, extension), ui, pause)
        except StoreError:
            raise
        except ImgbuildError as error:
            failures.append(error)
            if len(sources) > 1:
                ui.error(error.message)
    if len(failures) == 1:
        raise failures[0]
    reasons = "\n".join(f"  {failure.message}" for failure in failures)
    raise ImgbuildError(f"none of the {len(sources)} URLs gave the file:\n{reasons}")


def source_of(text: str) -> Source:
    """What a URL or path means; ValueError for a kind that can't be fetched."""
    getter = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)::", text)
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if not text.strip():
        raise ValueError("an empty URL")
    if getter or (scheme and scheme[1].lower() not in ("http", "https", "file")):
        kind = getter[1] + "::" if getter else text.partition("://")[0] + "://"
        raise ValueError(
            f"'{shown(text)}': {kind} is not supported; download it yourself and give its path, or give an https URL"
        )
    if scheme is None:
        return Source(text, path=Path(text))
    if scheme[1].lower() != "file":
        return Source(text, url=text)
    parts = urlsplit(text)
    host = "" if parts.netloc == "localhost" else parts.netloc  # file://images/a.iso is meant as a relative path
    return Source(text, path=Path(unquote(host + parts.path)))


def _sources(urls: Sequence[str]) -> list[Source]:
    sources, problems = [], []
    for url in urls:
        try:
            sources.append(source_of(url))
        except ValueError as error:
            problems.append(Problem(str(error)))
    if problems or not sources:
        raise TemplateError(problems or "there is no URL to fetch")
    return sources


def _wanted(text: str, sources: Sequence[Source], ui: Ui, pause: float) -> Checksum:
    """What the file must be; a list of checksums is fetched here."""
    try:
        wanted = parse_checksum(text)
    except ValueError as error:
        raise TemplateError(f"checksum {error}") from error
    if wanted.source:
        return _listed(wanted.source, sources, ui, pause)
    if not wanted.digest:
        ui.warning(f"The checksum of '{sources[0].name}' is 'none': a broken or foreign file would not be noticed")
    return wanted


def _listed(place: str, sources: Sequence[Source], ui: Ui, pause: float) -> Checksum:
    try:
        source = source_of(place)
    except ValueError as error:
        raise TemplateError(f"checksum 'file:': {error}") from error
    if source.path:
        path = source.path
    else:
        name = hashlib.sha256(source.url.encode()).hexdigest()
        folder = verified.directory() / "lists"
        slot = Slot(folder / f"{name}.txt", folder / f"{name}.json")
        path = _download(source, Checksum(), slot, ui, pause, age=_LIST_AGE)
    try:
        if path.stat().st_size > _LIST_SIZE:
            raise ChecksumError(f"'{shown(place)}' is no list of checksums: it has {size(path.stat().st_size)}")
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ImgbuildError(f"can't read the list of checksums '{place}': {error.strerror}") from error
    return choose(text, shown(place), [source.address for source in sources])


def _in_place(path: Path, wanted: Checksum, ui: Ui) -> Path:
    """A file of this machine, verified where it is."""
    if not path.is_file():
        what = "is not a file" if path.exists() else "does not exist"
        absolute = "" if path.is_absolute() else f" (relative to '{Path.cwd()}')"
        raise ImgbuildError(f"'{path}' {what}{absolute}")
    if wanted.digest:
        _compare(verified.remembered(path, wanted.algorithm, ui), wanted, str(path))
    ui.message(f"Using '{path}'" + (f", which has the right {wanted.algorithm}" if wanted.digest else ""))
    return path.absolute()


def _compare(actual: str, wanted: Checksum, name: str) -> None:
    if actual != wanted.digest:
        raise ChecksumError(
            f"'{name}' is not the file that was asked for: its {wanted.algorithm} is {actual}, not {wanted.digest}",
            hint="either the file at its source changed, or the checksum is of another file",
        )


def _slot(source: Source, wanted: Checksum, target: Path | None, extension: str | None) -> Slot:
    folder = verified.directory()
    if target is not None:
        path = (target / source.name if target.is_dir() else target).absolute()
        key = hashlib.sha256(os.fsencode(path)).hexdigest()
        return Slot(path, folder / f"target-{key}.json")
    url = hashlib.sha256(source.url.encode()).hexdigest()
    stem = f"{wanted.algorithm}-{wanted.digest}" if wanted.digest else f"url-{url}"
    name = f"{stem}.{extension.lstrip('.')}" if extension and extension.strip(".") else stem
    return Slot(folder / name, folder / f"{name}.json")


def _download(source: Source, wanted: Checksum, slot: Slot, ui: Ui, pause: float, *, age: float = 0.0) -> Path:
    """Bring a slot up to date; `age`: seconds for which a file without a checksum is taken for current."""
    with _locked(slot, source.name, ui):
        held = _held(slot, source, wanted, ui)
        if held and (wanted.digest or time.time() - held.fetched < age):
            ui.message(f"Using '{source.name}' from the cache: {slot.path}")
        else:
            try:
                held = _receive(source, wanted, slot, held, ui, pause)
            except ImgbuildError as error:
                if held is None or isinstance(error, StoreError):
                    raise
                ui.warning(f"{error.message}; using the copy that was downloaded before")
        verified.write(slot.record, held)
    return slot.path


@contextlib.contextmanager
def _locked(slot: Slot, name: str, ui: Ui) -> Iterator[None]:
    """One at a time; the kernel frees the lock of a process that ends. StoreError when its holder hangs."""
    try:
        for folder in (slot.lock.parent, slot.path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        lock = slot.lock.open("wb")
    except OSError as error:
        raise StoreError(f"can't write to '{slot.lock.parent}': {error.strerror}") from error
    with lock:
        if not _try_lock(lock.fileno()):
            with ui.step(f"Waiting for another build that fetches '{name}'"):
                _wait_for_lock(lock.fileno(), slot, name, ui)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for_lock(descriptor: int, slot: Slot, name: str, ui: Ui) -> None:
    """The holder's progress is seen by the size of its `.part`."""
    seen, since = -1, time.monotonic()
    with ui.progress(f"Downloading {name} (by another build)") as update:
        while not _try_lock(descriptor):
            received = slot.part.stat().st_size if slot.part.exists() else 0
            if received != seen:
                seen, since = received, time.monotonic()
                update(received)
            if time.monotonic() - since > _IDLE:
                raise StoreError(
                    f"another build holds '{slot.lock}' and has made no progress for {duration(_IDLE)}",
                    hint=f"see who it is: fuser '{slot.lock}'",
                )
            time.sleep(0.1)


def _held(slot: Slot, source: Source, wanted: Checksum, ui: Ui) -> Record | None:
    """The complete file that is there already, read again unless it is as it was when it was last verified."""
    record = verified.read(slot.record)
    if not slot.path.is_file() or (record and not wanted.digest and record.url != source.url):
        return None
    expected = wanted if wanted.digest else _recorded(record)
    if record and record.describes(slot.path) and record.checksum == str(expected):
        return record
    if expected.digest and verified.digest(slot.path, expected.algorithm, ui, slot.path.name) == expected.digest:
        ours = Origin(record.url, record.etag, record.last_modified) if record else Origin()
        return _record(slot.path, str(expected), ours, record.fetched if record else 0.0)
    if record is None and slot.record.name.startswith("target-"):
        raise StoreError(
            f"'{slot.path}' exists, and it is not the file that was asked for",
            hint="remove it, or give another iso_target_path",
        )
    if record is None or record.checksum == str(expected):
        ui.warning(f"'{slot.path}' is damaged: fetching it again")
    return None


def _recorded(record: Record | None) -> Checksum:
    return parse_checksum(record.checksum) if record else Checksum()


def _record(file: Path, sum_of_it: str, origin: Origin, fetched: float) -> Record:
    status = file.stat()
    return Record(
        sum_of_it, status.st_size, status.st_mtime_ns, str(file), origin.url, origin.etag, origin.last_modified, fetched
    )


def _receive(source: Source, wanted: Checksum, slot: Slot, held: Record | None, ui: Ui, pause: float) -> Record:
    """Download and verify; what was put together from several tries and came out wrong is fetched once from nothing."""
    known = Origin(held.url, held.etag, held.last_modified) if held and held.url == source.url else None
    ui.message(f"Trying {shown(source.url)}")
    while True:
        began = time.monotonic()
        transfer = Transfer(source.url, slot.part, ui, same_content=bool(wanted.digest), known=known, pause=pause)
        origin = transfer.run()
        if origin is None and held:
            ui.message(f"'{source.name}' has not changed: using {slot.path}")
            return replace(held, fetched=time.time())
        assert origin is not None
        ui.message(f"Received {size(slot.part.stat().st_size)} in {duration(time.monotonic() - began)}")
        algorithm = wanted.algorithm or "sha256"
        actual = verified.digest(slot.part, algorithm, ui, source.name)
        try:
            if wanted.digest:
                _compare(actual, wanted, shown(source.url))
        except ChecksumError:
            transfer.discard()
            if not transfer.resumed:
                raise
            ui.warning(f"'{source.name}' was continued and came out wrong: fetching it from the beginning")
        else:
            return _publish(slot, transfer, f"{algorithm}:{actual}", origin, ui)


def _publish(slot: Slot, transfer: Transfer, sum_of_it: str, origin: Origin, ui: Ui) -> Record:
    """Put the complete file under its name; its record first: a kill between the two leaves one nobody believes."""
    record = replace(_record(slot.part, sum_of_it, origin, time.time()), path=str(slot.path))
    verified.write(slot.record, record)
    slot.part.replace(slot.path)
    descriptor = os.open(slot.path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    transfer.discard()
    ui.message(f"{shown(transfer.url)} => {slot.path}")
    return record
