"""Files over SFTP (draft-ietf-secsh-filexfer-02), which most SSH servers speak."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator, Sequence

import paramiko

from imagebuilder.ssh.run import open_channel
from imagebuilder.ssh.tree import CHUNK, Entry, Meter, Missing, Reader, Receiver, Writer, relative_to_home

_TIMEOUT = 300.0  # seconds that the guest may take for one answer
_END_TIMEOUT = 2.0  # seconds for the guest's SFTP server to end
_SECRET = 0o077  # permission bits that a secret file lacks


class Sftp:
    """One SFTP channel for each transfer; open ones cost the guest a process."""

    def __init__(self, transport: paramiko.Transport) -> None:
        self._transport = transport

    @contextlib.contextmanager
    def _client(self) -> Iterator[paramiko.SFTPClient]:
        channel = open_channel(self._transport)
        with contextlib.closing(channel):
            channel.settimeout(_TIMEOUT)
            try:
                channel.invoke_subsystem("sftp")
                client = paramiko.SFTPClient(channel)
            except (paramiko.SSHException, EOFError) as error:
                if not self._transport.is_active():
                    raise
                raise Missing("the guest has no SFTP server") from error
            yield client
            channel.shutdown_write()
            channel.status_event.wait(_END_TIMEOUT)  # its process is gone when the next channel is opened

    def put(self, source: Reader, size: int, destination: str, mode: int) -> None:
        with self._client() as client:
            _put(client, source, size, relative_to_home(destination), mode)

    def get(self, source: str, target: Writer) -> None:
        with self._client() as client:
            _get(client, relative_to_home(source), target)

    def put_tree(self, entries: Sequence[Entry], destination: str, meter: Meter) -> None:
        root = relative_to_home(destination)
        with self._client() as client:
            _make_directories(client, root)
            for entry in entries:
                path = f"{root}/{entry.name}"
                if entry.kind == "directory":
                    _make_directory(client, path, entry.mode)
                elif entry.kind == "link":
                    with contextlib.suppress(OSError):
                        client.remove(path)
                    client.symlink(entry.target, path)
                else:
                    with entry.path.open("rb") as file:
                        _put(client, meter.reader(file), entry.size, path, entry.mode)

    def get_tree(self, source: str, receiver: Receiver) -> None:
        with self._client() as client:
            _get_tree(client, relative_to_home(source), "", receiver)


def _put(client: paramiko.SFTPClient, source: Reader, size: int, path: str, mode: int) -> None:
    if (there := _status(client, path)) is not None and stat.S_ISDIR(there.st_mode or 0):
        raise IsADirectoryError(f"'{path}' is a directory there: end the destination with '/' to put the file into it")
    with client.open(path, "wb") as file:
        try:
            file.chmod(mode)  # before there is something in it to be read by others
        except OSError:
            if not mode & _SECRET:
                raise
        file.set_pipelined(True)
        while data := source.read(CHUNK):
            file.write(data)
    arrived = client.stat(path).st_size or 0
    if arrived < size:
        raise OSError(f"only {arrived} of {size} bytes arrived: is the guest's disk full?")
    if arrived > size:
        raise OSError("the file became longer while it was sent")


def _get(client: paramiko.SFTPClient, path: str, target: Writer) -> None:
    size, read = client.stat(path).st_size or 0, 0
    with client.open(path, "rb") as file:
        if size:  # files of /proc say 0
            file.prefetch(size)
        while data := file.read(CHUNK):
            target.write(data)
            read += len(data)
    if read < size:
        raise OSError(f"only {read} of {size} bytes arrived")


def _get_tree(client: paramiko.SFTPClient, path: str, prefix: str, receiver: Receiver) -> None:
    for item in sorted(client.listdir_attr(path), key=lambda item: item.filename):
        inner, name, mode = f"{path}/{item.filename}", prefix + item.filename, item.st_mode or 0
        if stat.S_ISDIR(mode):
            receiver.directory(name, stat.S_IMODE(mode))
            _get_tree(client, inner, f"{name}/", receiver)
        elif stat.S_ISLNK(mode):
            receiver.link(name, client.readlink(inner) or "")
        elif stat.S_ISREG(mode):
            receiver.file(name, stat.S_IMODE(mode), lambda target, inner=inner: _get(client, inner, target))  # type: ignore[misc]


def _status(client: paramiko.SFTPClient, path: str) -> paramiko.SFTPAttributes | None:
    try:
        return client.stat(path)
    except OSError:
        return None


def _make_directories(client: paramiko.SFTPClient, path: str) -> None:
    """mkdir -p; a directory that exists keeps its mode."""
    if _status(client, path) is None:
        parent = path.rstrip("/").rpartition("/")[0]
        if parent:
            _make_directories(client, parent)
        client.mkdir(path)


def _make_directory(client: paramiko.SFTPClient, path: str, mode: int) -> None:
    if _status(client, path) is None:
        client.mkdir(path)
    client.chmod(path, mode)
