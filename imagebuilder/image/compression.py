"""Compressed streams, made with all cores: gzip, bgzf, xz, bzip2 in threads of our own, zstd and lz4 by their programs.

What comes out is what the usual tools read: one gzip member (RFC 1952) whose deflate blocks know the 32 KiB before
them, as pigz makes it; BGZF members (SAM specification §4.1); concatenated .xz and .bz2 streams, as pixz and pbzip2.
"""

from __future__ import annotations

import bz2
import contextlib
import lzma
import os
import struct
import tempfile
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from enum import StrEnum
from typing import IO, Protocol

from imagebuilder import process
from imagebuilder.errors import CommandError

_WINDOW = 1 << 15  # bytes that deflate looks back
_BGZF_BLOCK = 0xFF00  # bytes of input, so that even incompressible ones fit a member of 64 KiB
_BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
_GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # no name, no time: the same input gives the same bytes
_PIECE = 1 << 18  # bytes that a thread compresses between two looks at whether it is still wanted
_PATIENCE = 600.0  # seconds for a program to finish what it has been given


class Method(StrEnum):
    """How bytes are compressed; named by the usual extension."""

    GZIP = "gz"
    BGZF = "bgzf"
    XZ = "xz"
    BZIP2 = "bz2"
    ZSTD = "zst"
    LZ4 = "lz4"


class Writer(Protocol):
    """Where bytes go."""

    def write(self, data: bytes, /) -> int: ...


_PROGRAMS = {
    Method.ZSTD: (("zstd", "-q", "-c", "-T0"), 19, "zstd"),
    Method.LZ4: (("lz4", "-q", "-c"), 12, "lz4"),
}  # program, highest level, package


@contextlib.contextmanager
def compressing(out: IO[bytes], method: Method, level: int) -> Iterator[Writer]:
    """What is written to the yielded Writer goes to `out` compressed; all of it, when the block ends well.

    Levels are 1 to 9 (zstd to 19, lz4 to 12; higher ones count as the highest); gzip has 0 as well, which only wraps.
    Raises ImgbuildError when a program is missing, CommandError when it fails.
    """
    if method in _PROGRAMS:
        arguments, highest, package = _PROGRAMS[method]
        program = process.find(arguments[0], package=package)
        with _through([program, *arguments[1:], f"-{min(max(level, 1), highest)}"], out) as writer:
            yield writer
        return
    low = 0 if method in (Method.GZIP, Method.BGZF, Method.XZ) else 1
    with _Chunks(out, _ENCODERS[method](min(max(level, low), 9))) as chunks:
        yield chunks
        chunks.finish()


def check(method: Method) -> None:
    """Raise ImgbuildError when the program for a method is not installed."""
    if method in _PROGRAMS:
        process.find(_PROGRAMS[method][0][0], package=_PROGRAMS[method][2])


Part = Callable[[threading.Event], bytes]
"""What a thread runs for one chunk; when the event is set, nobody wants it any more."""


class _Encoder(Protocol):
    """How a stream is cut and encoded; `part` is called for chunk after chunk, what it returns runs in threads."""

    chunk: int  # bytes
    header: bytes

    def part(self, data: bytes) -> Part: ...

    def trailer(self) -> bytes: ...


class _Chunks:
    """Encodes chunks side by side and writes them in their order."""

    def __init__(self, out: IO[bytes], encoder: _Encoder) -> None:
        self._out, self._encoder = out, encoder
        self._buffer = bytearray()
        self._begun = False
        workers = os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="compress")
        self._ahead = workers + 1
        self._stopped = threading.Event()
        self._waiting: deque[Future[bytes]] = deque()

    def __enter__(self) -> _Chunks:
        self._out.write(self._encoder.header)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._pool.shutdown(cancel_futures=True)

    def write(self, data: bytes, /) -> int:
        self._buffer += data
        while len(self._buffer) >= self._encoder.chunk:
            self._submit(bytes(self._buffer[: self._encoder.chunk]))
            del self._buffer[: self._encoder.chunk]
        return len(data)

    def finish(self) -> None:
        if self._buffer or not self._begun:
            self._submit(bytes(self._buffer))
        while self._waiting:
            self._out.write(self._waiting.popleft().result())
        self._out.write(self._encoder.trailer())

    def _submit(self, data: bytes) -> None:
        self._begun = True
        self._waiting.append(self._pool.submit(self._encoder.part(data), self._stopped))
        while len(self._waiting) > self._ahead:
            self._out.write(self._waiting.popleft().result())


class _Gzip:
    chunk = 1 << 20
    header = _GZIP_HEADER

    def __init__(self, level: int) -> None:
        self._level, self._before, self._crc, self._size = level, b"", 0, 0

    def part(self, data: bytes) -> Part:
        before, self._before = self._before, data[-_WINDOW:]
        self._crc, self._size = zlib.crc32(data, self._crc), self._size + len(data)
        return lambda _: self._deflate(data, before)

    def _deflate(self, data: bytes, before: bytes) -> bytes:
        encoder = zlib.compressobj(self._level, zlib.DEFLATED, -15, zdict=before)
        return encoder.compress(data) + encoder.flush(zlib.Z_SYNC_FLUSH)

    def trailer(self) -> bytes:
        return b"\x03\0" + struct.pack("<II", self._crc, self._size & 0xFFFFFFFF)  # an empty last block


class _Bgzf:
    chunk = 16 * _BGZF_BLOCK
    header = b""

    def __init__(self, level: int) -> None:
        self._level = level

    def part(self, data: bytes) -> Part:
        return lambda _: b"".join(
            self._member(data[start : start + _BGZF_BLOCK]) for start in range(0, len(data), _BGZF_BLOCK)
        )

    def _member(self, data: bytes) -> bytes:
        encoder = zlib.compressobj(self._level, zlib.DEFLATED, -15)
        body = encoder.compress(data) + encoder.flush()
        head = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0" + struct.pack("<H", len(body) + 25)
        return head + body + struct.pack("<II", zlib.crc32(data), len(data))

    def trailer(self) -> bytes:
        return _BGZF_END


class _Coder(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Streams:
    """Formats whose decoders read one stream after another."""

    header = b""

    def __init__(self, chunk: int, coder: Callable[[], _Coder]) -> None:
        self.chunk, self._coder = chunk, coder

    def part(self, data: bytes) -> Part:
        return lambda stopped: self._encode(data, stopped)

    def _encode(self, data: bytes, stopped: threading.Event) -> bytes:
        """In small pieces: a whole chunk takes seconds, and an interrupt waits for the threads."""
        coder, found = self._coder(), list[bytes]()
        for start in range(0, len(data), _PIECE):
            if stopped.is_set():
                return b""
            found.append(coder.compress(data[start : start + _PIECE]))
        return b"".join([*found, coder.flush()])

    def trailer(self) -> bytes:
        return b""


_ENCODERS: dict[Method, Callable[[int], _Encoder]] = {
    Method.GZIP: _Gzip,
    Method.BGZF: _Bgzf,
    Method.XZ: lambda level: _Streams(24 << 20, lambda: lzma.LZMACompressor(preset=level)),
    Method.BZIP2: lambda level: _Streams(level * 100_000, lambda: bz2.BZ2Compressor(level)),
}


@contextlib.contextmanager
def _through(argv: list[str], out: IO[bytes]) -> Iterator[Writer]:
    out.flush()
    theirs, ours = os.pipe()
    with (
        _closing(os.fdopen(ours, "wb")) as writer,
        tempfile.TemporaryFile() as said,
        os.fdopen(theirs, "rb") as reader,
        process.start(argv, stdin=reader, stdout=out, stderr=said) as child,
    ):
        reader.close()
        with contextlib.suppress(BrokenPipeError):  # it died; its exit code and last words tell why
            yield writer
            writer.close()
        code = child.wait(_PATIENCE)
        if code != 0:
            said.seek(0)
            raise CommandError(argv, code, said.read().decode(errors="replace"))


@contextlib.contextmanager
def _closing(pipe: IO[bytes]) -> Iterator[IO[bytes]]:
    """Close it at the end, whether anybody still reads from it or not."""
    try:
        yield pipe
    finally:
        with contextlib.suppress(BrokenPipeError):
            pipe.close()
