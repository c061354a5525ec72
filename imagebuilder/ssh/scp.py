"""Files over the protocol of rcp, which `scp` in the guest speaks (OpenSSH's scp.c; there is no standard).

A sender writes `Cmode size name` and the bytes, `Dmode 0 name` ... `E` for a directory; the receiver answers each with
a zero byte, or with 1 or 2 and a message. Links are followed, and a name can't hold a line break.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence

import paramiko

from imagebuilder.ssh.run import Lines, start
from imagebuilder.ssh.tree import CHUNK, Entry, Meter, Missing, Reader, Receiver, Writer, followed, quoted

_TIMEOUT = 300.0  # seconds that the guest may take for one answer
_NOT_FOUND = 127  # POSIX sh: there is no such command
_IS_DIRECTORY = 21  # what our own command ends with


class Scp:
    """One channel for each transfer."""

    def __init__(self, transport: paramiko.Transport) -> None:
        self._transport = transport

    def put(self, source: Reader, size: int, destination: str, mode: int) -> None:
        path = quoted(destination)
        with self._started(f"if test -d {path}; then exit {_IS_DIRECTORY}; fi; exec scp -p -t {path}") as channel:
            channel.acknowledged()
            channel.send_file(source, size, mode, "file")

    def get(self, source: str, target: Writer) -> None:
        with self._started(f"exec scp -f {quoted(source)}") as channel:
            channel.acknowledge()
            kind, _, size, _ = channel.header()
            if kind != "C":
                raise OSError("that is no file")
            channel.receive_file(size, target)

    def put_tree(self, entries: Sequence[Entry], destination: str, meter: Meter) -> None:
        path = quoted(destination)
        with self._started(f"mkdir -p {path} && exec scp -r -p -t {path}") as channel:
            channel.acknowledged()
            inside: list[str] = []
            for entry in followed(entries):
                *parents, name = entry.name.split("/")
                while inside != parents[: len(inside)]:
                    inside.pop()
                    channel.order("E")
                if entry.kind == "directory":
                    channel.order(f"D{entry.mode & 0o7777:04o} 0 {_spoken(name)}")
                    inside.append(name)
                else:
                    with entry.path.open("rb") as file:
                        size = entry.path.stat().st_size
                        channel.send_file(meter.reader(file), size, entry.path.stat().st_mode & 0o7777, name)
            for _ in inside:
                channel.order("E")

    def get_tree(self, source: str, receiver: Receiver) -> None:
        with self._started(f"exec scp -r -p -f {quoted(source)}") as channel:
            channel.acknowledge()
            inside: list[str] | None = None
            while (header := channel.header(may_end=True))[0]:
                kind, mode, size, name = header
                if kind == "D" and inside is None:
                    inside = []  # the directory itself
                elif kind == "D" and inside is not None:
                    inside.append(name)
                    receiver.directory("/".join(inside), mode)
                elif kind == "C" and inside is not None:
                    path = "/".join([*inside, name])
                    receiver.file(path, mode, lambda target, size=size: channel.receive_file(size, target))  # type: ignore[misc]
                    continue
                elif kind == "E" and inside:
                    inside.pop()
                elif kind != "E":
                    raise OSError("that is no directory")
                channel.acknowledge()

    @contextlib.contextmanager
    def _started(self, script: str) -> Iterator[_Conversation]:
        channel = start(self._transport, f"sh -c {shlex.quote(script)}")
        with contextlib.closing(channel):
            channel.settimeout(_TIMEOUT)
            conversation = _Conversation(channel)
            yield conversation
            channel.shutdown_write()
            while channel.recv(CHUNK):
                pass
            conversation.check(channel.recv_exit_status())


def _spoken(name: str) -> str:
    if "\n" in name:
        raise OSError(f"scp can't carry a name with a line break: {name!r}")
    return name


class _Conversation:
    """What sender and receiver say to each other on one channel."""

    def __init__(self, channel: paramiko.Channel) -> None:
        self._channel = channel

    def order(self, line: str) -> None:
        self._channel.sendall(line.encode() + b"\n")
        self.acknowledged()

    def send_file(self, source: Reader, size: int, mode: int, name: str) -> None:
        """Exactly `size` bytes are sent: a file that changes meanwhile is an error."""
        self.order(f"C{mode & 0o7777:04o} {size} {_spoken(name)}")
        left = size
        while left and (data := source.read(min(CHUNK, left))):
            self._channel.sendall(data)
            left -= len(data)
        if left:
            raise OSError("the file became shorter while it was sent")
        self._channel.sendall(b"\0")
        self.acknowledged()

    def receive_file(self, size: int, target: Writer) -> None:
        """After its header."""
        self.acknowledge()
        left = size
        while left:
            data = self._channel.recv(min(CHUNK, left))
            if not data:
                raise EOFError("the connection was lost")
            target.write(data)
            left -= len(data)
        self.acknowledged()
        self.acknowledge()

    def header(self, *, may_end: bool = False) -> tuple[str, int, int, str]:
        """(C, D or E; mode; size; name); the letter is empty at the end of a conversation that may end."""
        while True:
            letter = self._byte(may_end=may_end)
            if letter in ("", "E"):
                if letter:
                    self._line()
                return letter, 0, 0, ""
            if letter in ("\1", "\2"):
                raise OSError(_message(self._line()))
            line = self._line()
            if letter == "T":  # times: not of interest
                self.acknowledge()
                continue
            mode, _, rest = line.partition(" ")
            size, _, name = rest.partition(" ")
            if letter not in "CD" or not (mode.isdigit() and size.isdigit()):
                raise OSError(f"scp in the guest says something strange: '{letter}{line}'")
            if name in ("", ".", "..") or "/" in name:
                raise OSError(f"scp in the guest sends a name that leads elsewhere: '{name}'")
            return letter, int(mode, 8), int(size), name

    def acknowledge(self) -> None:
        self._channel.sendall(b"\0")

    def acknowledged(self) -> None:
        answer = self._byte()
        if answer != "\0":
            raise OSError(_message(self._line()) if answer in ("\1", "\2") else f"scp in the guest answers {answer!r}")

    def check(self, status: int) -> None:
        """Raise unless the guest's scp ended well."""
        if status == _NOT_FOUND:
            raise Missing("the guest has no scp")
        if status == _IS_DIRECTORY:
            raise IsADirectoryError("it is a directory there: end the destination with '/' to put the file into it")
        if status < 0:
            raise EOFError("the connection was lost")
        if status:
            raise OSError(self._said() or f"scp in the guest ended with exit status {status}")

    def _said(self) -> str:
        lines: list[str] = []
        errors = Lines(lines.append)
        while data := self._channel.recv_stderr(CHUNK):
            errors.feed(data)
        errors.flush()
        return _message(lines[-1]) if lines else ""

    def _byte(self, *, may_end: bool = False) -> str:
        data = self._channel.recv(1)
        if not data and not may_end:
            self.check(self._channel.recv_exit_status())
            raise EOFError("scp in the guest ended early")
        return data.decode("latin-1")

    def _line(self) -> str:
        line = bytearray()
        while (data := self._channel.recv(1)) and data != b"\n":
            line += data
        return line.decode(errors="surrogateescape")


def _message(line: str) -> str:
    return line.removeprefix("scp: ").strip()
