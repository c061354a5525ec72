"""Uploads and downloads of a guest: the method that it has, progress, and a look at whether everything arrived.

Without a choice in the template files go by SFTP, else scp, else plain streams; directories as a tar stream first.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import secrets
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TypeVar

import paramiko

from imagebuilder import process
from imagebuilder.errors import GuestError, StoreError
from imagebuilder.ssh.dial import reason_of
from imagebuilder.ssh.scp import Scp
from imagebuilder.ssh.sftp import Sftp
from imagebuilder.ssh.stream import Stream
from imagebuilder.ssh.tree import Meter, Missing, Receiver, Transfer, entries, quoted
from imagebuilder.ui import Ui, size

T = TypeVar("T")

_LARGE = 2**20  # bytes; from here on progress is shown, and a digest costs little beside the transfer
_Method = Callable[[paramiko.Transport], Transfer]
_FILES: Sequence[_Method] = (Sftp, Scp, Stream)
_DIRECTORIES: Sequence[_Method] = (Stream, Sftp, Scp)
_CHOSEN: dict[str, Sequence[_Method]] = {"sftp": (Sftp,), "scp": (Scp,)}


class Files:
    """Moves files over the session that `transport` gives; `output` runs a command and gives what it prints."""

    def __init__(
        self, transport: Callable[[], paramiko.Transport], output: Callable[[str], str], method: str, ui: Ui
    ) -> None:
        self._transport, self._output, self._ui = transport, output, ui
        self._for_files = _CHOSEN.get(method, _FILES)
        self._for_directories = _CHOSEN.get(method, _DIRECTORIES)
        self._missing: dict[_Method, str] = {}

    def reset(self) -> None:
        """Another system answers now: it may have what the last one lacked."""
        self._missing.clear()

    def upload(self, content: bytes | Path, destination: str, mode: int) -> None:
        total = len(content) if isinstance(content, bytes) else _readable(content).stat().st_size
        with self._progress(f"Uploading {destination}", total) as update:

            def put(transfer: Transfer) -> str:
                digest = hashlib.sha256()
                with _opened(content) as file:
                    transfer.put(Meter(update).reader(file, digest.update), total, destination, mode)
                return digest.hexdigest()

            digest = self._through(self._for_files, f"upload to '{destination}'", put)
        if total >= _LARGE:
            self._compare(destination, total, digest)

    def upload_directory(self, source: Path, destination: str, *, contents_only: bool) -> None:
        target = destination if contents_only else _below(destination, source.resolve().name)
        listed = entries(source)
        with self._progress(f"Uploading {source}", sum(entry.size for entry in listed)) as update:
            self._through(
                self._for_directories, f"upload '{source}' to '{target}'",
                lambda transfer: transfer.put_tree(listed, target.rstrip("/") or "/", Meter(update)),
            )  # fmt: skip

    def download(self, source: str, destination: Path) -> None:
        with self._progress(f"Downloading {source}", None) as update, _new_file(destination) as part:

            def get(transfer: Transfer) -> None:
                with part.open("wb") as file:
                    transfer.get(source, Meter(update).writer(file))
                    file.flush()
                    os.fsync(file.fileno())

            self._through(self._for_files, f"download '{source}'", get)

    def download_directory(self, source: str, destination: Path, *, contents_only: bool) -> None:
        target = destination if contents_only else destination / source.rstrip("/").rpartition("/")[2]
        with self._progress(f"Downloading {source}", None) as update, _beside(target) as part:

            def get(transfer: Transfer) -> None:
                shutil.rmtree(part, ignore_errors=True)
                part.mkdir()
                receiver = Receiver(part, Meter(update))
                transfer.get_tree(source.rstrip("/") or "/", receiver)
                receiver.finish()

            self._through(self._for_directories, f"download '{source}'", get)
            _merge(part, target)

    @contextlib.contextmanager
    def _progress(self, text: str, total: int | None) -> Iterator[Callable[[float], None]]:
        if total is not None and total < _LARGE:
            yield lambda done: None
            return
        with self._ui.progress(text, total) as update:
            yield update

    def _through(self, methods: Sequence[_Method], what: str, act: Callable[[Transfer], T]) -> T:
        """Act by the first method that the guest has."""
        for method in methods:
            if method in self._missing:
                continue
            transport = self._transport()
            try:
                return act(method(transport))
            except Missing as missing:
                self._missing[method] = str(missing)
            except (OSError, EOFError, paramiko.SSHException) as error:
                lost = not transport.is_active()
                reason = "the connection was lost" if lost else reason_of(error)
                hint = None if lost else _advice(reason)
                raise GuestError(f"Can't {what}: {reason}", hint=hint, lost=lost) from error
        lacking = "; ".join(dict.fromkeys(self._missing[method] for method in methods))
        raise GuestError(f"Can't {what}: {lacking}", hint="leave ssh_file_transfer_method out, or install it there")

    def _compare(self, destination: str, total: int, digest: str) -> None:
        """Compare what is in the guest with what was sent, by length and sha256 where the guest has the program."""
        path = quoted(destination)
        words = self._output(f"sh -c {shlex.quote(f'wc -c < {path}; sha256sum < {path} 2>/dev/null')}").split()
        if not words or not words[0].isdigit():
            return  # no POSIX shell there; the transfer itself was acknowledged
        if int(words[0]) != total:
            there = f"{size(int(words[0]))} of {size(total)}"
            raise GuestError(f"'{destination}' arrived incomplete: {there}; is the guest's disk full?")
        if len(words) > 1 and len(words[1]) == len(digest) and words[1] != digest:
            raise GuestError(f"'{destination}' arrived damaged: its sha256 is {words[1]}, not {digest}")


def _opened(content: bytes | Path) -> IO[bytes]:
    return io.BytesIO(content) if isinstance(content, bytes) else content.open("rb")


def _readable(path: Path) -> Path:
    """Complain of a file of this machine before the guest is blamed."""
    if not path.is_file() or not os.access(path, os.R_OK):
        raise StoreError(f"Can't read '{path}', which was to be uploaded")
    return path


def _below(directory: str, name: str) -> str:
    return f"{directory.rstrip('/')}/{name}" if directory else name


def _advice(reason: str) -> str | None:
    lower = reason.lower()
    if "no such file" in lower or "not a directory" in lower:
        return "its directory must exist in the guest: make it with a shell provisioner first"
    if "permission denied" in lower:
        return "the user we log in as may not do that: use /tmp and move it with sudo in a shell provisioner"
    return None


@contextlib.contextmanager
def _new_file(destination: Path) -> Iterator[Path]:
    """A path beside the file; what is written there becomes the file at the end."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    with _beside(destination) as part:
        yield part
        part.replace(destination)


@contextlib.contextmanager
def _beside(destination: Path) -> Iterator[Path]:
    destination.parent.mkdir(parents=True, exist_ok=True)
    with process.temporary_path(destination.with_name(f".{destination.name}.{secrets.token_hex(4)}.part")) as part:
        yield part


def _merge(part: Path, target: Path) -> None:
    """Put everything that is in one directory into another, file by file; what has the same name is replaced."""
    if not target.exists():
        part.rename(target)
        return
    for path in sorted(part.iterdir()):
        there = target / path.name
        if path.is_dir() and not path.is_symlink() and there.is_dir():
            _merge(path, there)
        else:
            path.replace(there)
