"""Files as plain streams through `cat` and `tar`: needs nothing of the guest but a shell, and one channel for a whole
directory, which makes it the fastest way for many small files."""

from __future__ import annotations

import contextlib
import shlex
import tarfile
from collections.abc import Callable, Iterator, Sequence

import paramiko

from imagebuilder.ssh.run import Lines, start
from imagebuilder.ssh.tree import CHUNK, Entry, Meter, Missing, Reader, Receiver, Writer, quoted

_TIMEOUT = 300.0  # seconds that the guest may take to read or write a piece
_NOT_FOUND = 127  # POSIX sh: there is no such command
_IS_DIRECTORY = 21  # what our own command ends with


class Stream:
    """Uploads through `cat >` and `tar -x`, downloads through `cat` and `tar -c`."""

    def __init__(self, transport: paramiko.Transport) -> None:
        self._transport = transport

    def put(self, source: Reader, size: int, destination: str, mode: int) -> None:
        path = quoted(destination)
        script = (
            f"if test -d {path}; then exit {_IS_DIRECTORY}; fi; umask 077; cat > {path} && chmod {mode:o} {path} && "
            f'test "$(wc -c < {path})" -eq {size}'
        )
        with self._started(script, destination) as channel:
            while data := source.read(CHUNK):
                channel.sendall(data)

    def get(self, source: str, target: Writer) -> None:
        with self._started(f"cat < {quoted(source)}", source) as channel:
            while data := channel.recv(CHUNK):
                target.write(data)

    def put_tree(self, entries: Sequence[Entry], destination: str, meter: Meter) -> None:
        path = quoted(destination)
        with self._started(f"mkdir -p {path} && tar -C {path} -x -p -o -f -", destination) as channel:
            writer = _Pipe(channel)
            with tarfile.open(fileobj=writer, mode="w|", format=tarfile.GNU_FORMAT) as archive:  # type: ignore[call-overload]
                for entry in entries:
                    _add(archive, entry, meter)

    def get_tree(self, source: str, receiver: Receiver) -> None:
        with self._started(f"tar -C {quoted(source)} -c -f - .", source) as channel:
            reader = _Pipe(channel)
            try:
                with tarfile.open(fileobj=reader, mode="r|") as archive:  # type: ignore[call-overload]
                    for member in archive:
                        _take(archive, member, receiver)
            except tarfile.ReadError:
                if reader.count:  # else there was no tar; its exit status tells
                    raise

    @contextlib.contextmanager
    def _started(self, script: str, path: str) -> Iterator[paramiko.Channel]:
        """The channel of a running script; at the end OSError, or Missing, unless it succeeded."""
        channel, said = start(self._transport, f"sh -c {shlex.quote(script)}"), list[str]()
        errors = Lines(said.append)
        with contextlib.closing(channel):
            channel.settimeout(_TIMEOUT)
            try:
                with contextlib.suppress(ConnectionError, BrokenPipeError):
                    yield channel
            except OSError as error:
                if str(error) != "Socket is closed":  # the script ended early: its exit status tells why
                    raise
            channel.shutdown_write()
            while channel.recv(CHUNK):
                pass
            while data := channel.recv_stderr(CHUNK):
                errors.feed(data)
            errors.flush()
            status = channel.recv_exit_status()
        if status == _NOT_FOUND:
            raise Missing(said[0] if said else "a command is missing in the guest")
        if status == _IS_DIRECTORY:
            raise IsADirectoryError(
                f"'{path}' is a directory there: end the destination with '/' to put the file in it"
            )
        if status < 0:
            raise EOFError("the connection was lost")
        if status != 0:
            raise OSError(said[0] if said else f"not all of it arrived (exit status {status}): is the disk full?")


class _Pipe:
    """A channel as tarfile wants a file."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel
        self.count = 0

    def write(self, data: bytes) -> int:
        self._channel.sendall(data)
        return len(data)

    def read(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count and (piece := self._channel.recv(count - len(data))):
            data += piece
        self.count += len(data)
        return bytes(data)


def _add(archive: tarfile.TarFile, entry: Entry, meter: Meter) -> None:
    info = tarfile.TarInfo(entry.name)
    info.mode, info.mtime = entry.mode, entry.modified
    if entry.kind == "directory":
        info.type = tarfile.DIRTYPE
    elif entry.kind == "link":
        info.type, info.linkname = tarfile.SYMTYPE, entry.target
    else:
        info.size = entry.size
        with entry.path.open("rb") as file:
            archive.addfile(info, meter.reader(file))  # type: ignore[arg-type]
        return
    archive.addfile(info)


def _take(archive: tarfile.TarFile, member: tarfile.TarInfo, receiver: Receiver) -> None:
    name = member.name.removeprefix("./")
    if member.isdir():
        if name not in ("", "."):
            receiver.directory(name, member.mode)
    elif member.issym():
        receiver.link(name, member.linkname)
    elif member.isreg():
        receiver.file(name, member.mode, _content(archive, member))
    elif member.islnk():
        receiver.copy(member.linkname.removeprefix("./"), name)


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[Writer], None]:
    def copy(target: Writer) -> None:
        file = archive.extractfile(member)
        while file is not None and (data := file.read(CHUNK)):
            target.write(data)

    return copy
