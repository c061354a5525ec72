"""Files written into tar and zip archives as streams: nothing is copied first, and how far it is can be seen."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from imagebuilder.errors import ImgbuildError
from imagebuilder.image.compression import Writer
from imagebuilder.plugins import Artifact

Content = bytes | Path
Progress = Callable[[float], None]
"""Called with how many bytes of the input are done."""

_CHUNK = 1 << 20


def members(artifact: Artifact) -> dict[str, Path]:
    """The names that an artifact's files have in an archive: below its directory, or bare. Raises ImgbuildError."""
    found: dict[str, Path] = {}
    for file in artifact.files:
        inside = artifact.directory is not None and file.is_relative_to(artifact.directory)
        name = file.relative_to(artifact.directory).as_posix() if inside and artifact.directory else file.name
        if name in found:
            raise ImgbuildError(f"two files of the artifact are called '{name}': '{found[name]}' and '{file}'")
        found[name] = file
    return found


def total(files: Mapping[str, Content]) -> int:
    """How many bytes there are to read."""
    return sum(len(content) if isinstance(content, bytes) else content.stat().st_size for content in files.values())


def copy(file: Path, out: Writer, progress: Progress) -> None:
    """The bytes of one file."""
    with file.open("rb", buffering=0) as source:
        reader = _Counting(source, progress)
        while chunk := reader.read(_CHUNK):
            out.write(chunk)


def tar(out: Writer, files: Mapping[str, Content], progress: Progress, *, ustar: bool = False) -> None:
    """A tar of `files` (name -> content or file) in their order; owners are nobody's, modes 0644.

    `ustar`: the plain format that OVA asks for, else GNU's, which knows sizes above 8 GiB.
    """
    format = tarfile.USTAR_FORMAT if ustar else tarfile.GNU_FORMAT
    counted = _Sum(progress)
    with tarfile.open(fileobj=_File(out), mode="w|", format=format, bufsize=_CHUNK) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            with _opened(content) as source:
                entry.size, entry.mtime = _size_and_time(content)
                archive.addfile(entry, _Counting(source, counted.next()))


def zip(out: IO[bytes], files: Mapping[str, Content], progress: Progress, level: int) -> None:
    """A zip of `files`, deflated at `level` (0: stored) on one core."""
    method = zipfile.ZIP_DEFLATED if level else zipfile.ZIP_STORED
    counted = _Sum(progress)
    with zipfile.ZipFile(out, "w", method, compresslevel=level) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)
            entry.compress_type, entry.external_attr = method, 0o100644 << 16
            with _opened(content) as source, archive.open(entry, "w", force_zip64=True) as target:
                reader = _Counting(source, counted.next())
                while chunk := reader.read(_CHUNK):
                    target.write(chunk)


def only(files: Sequence[Path], what: str) -> Path:
    """The one file that a format without names can hold. Raises ImgbuildError."""
    if len(files) != 1:
        listed = ", ".join(file.name for file in files) or "none"
        raise ImgbuildError(
            f"{what} holds exactly one file, and the artifact has {len(files)}: {listed}",
            hint="choose tar or zip (for example an output that ends in '.tar.gz')",
        )
    return files[0]


class _Counting(io.RawIOBase):
    """A file that tells how much of it was read."""

    def __init__(self, source: IO[bytes] | io.RawIOBase, progress: Progress) -> None:
        self._source, self._progress, self._done = source, progress, 0

    def read(self, size: int = -1, /) -> bytes:
        chunk = self._source.read(size) or b""
        self._done += len(chunk)
        self._progress(self._done)
        return chunk


class _Sum:
    """Adds up the progress of one file after another."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._before, self._current = progress, 0.0, 0.0

    def next(self) -> Progress:
        self._before, self._current = self._before + self._current, 0.0
        return self._update

    def _update(self, done: float) -> None:
        self._current = done
        self._progress(self._before + done)


class _File:
    """A Writer as tarfile wants its stream."""

    def __init__(self, out: Writer) -> None:
        self._out = out

    def write(self, data: bytes) -> int:
        self._out.write(data)
        return len(data)


def _opened(content: Content) -> IO[bytes]:
    return io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")


def _size_and_time(content: Content) -> tuple[int, int]:
    if isinstance(content, bytes):
        return len(content), 0
    status = content.stat()
    return status.st_size, int(status.st_mtime)
