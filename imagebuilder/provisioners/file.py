"""Moves files and directories into the guest, or out of it.

As in Packer a directory written with a slash at its end means what is in it, without one the directory itself; a
destination with a slash at its end is a directory to put things into.
"""

from __future__ import annotations

import glob
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from imagebuilder import inputs
from imagebuilder.errors import GuestError, StoreError
from imagebuilder.inputs import Input
from imagebuilder.options import Bool, Options, Text, Texts
from imagebuilder.plugins import BuildContext, Communicator, Guest
from imagebuilder.ssh.tree import Entry, entries, quoted
from imagebuilder.ui import Ui

_MAGIC = ("*", "?", "[")
_READ = frozenset({"source", "sources", "content"})  # what is in them is an input, not what they are called here
_HARMLESS = frozenset({"generated", "direction"})  # when we look for it; and only an upload has inputs
_LOOK_TIMEOUT = 60.0  # seconds for the guest to say what a path is


class FileOptions(Options):
    """Keys of the file provisioner."""

    source: Text = Field("", description="A file, directory or glob; a directory with '/' at its end: what is in it")
    sources: Texts = Field((), description="Several of them")
    content: Text | None = Field(None, description="Text to upload as a file")
    destination: Text = Field("", description="Where to; with '/' at its end a directory to put things into")
    direction: Literal["upload", "download"] = Field("upload", description="Into the guest, or out of it")
    generated: Bool = Field(
        False, description="The source is made later, by another provisioner: don't look for it now"
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if not self.destination:
            yield "destination", "is missing: say where to"
        given = [key for key in ("source", "sources", "content") if getattr(self, key) not in ("", (), None)]
        if not given and self.content is None:
            yield "source", "is missing: give source, sources or content"
        if self.content is not None and (self.source or self.sources):
            yield "content", "can't stand beside source or sources"
        if self.content is not None and self.direction == "download":
            yield "content", "can only be uploaded"
        if self.content is not None and self.destination.endswith("/"):
            yield "destination", "must name the file that the content goes into, not a directory"
        if self.direction == "upload":
            yield from self._upload_problems()

    def _upload_problems(self) -> Iterator[tuple[str, str]]:
        for path in self.all_sources:
            if not self.generated and not _found(path):
                key = "source" if path == self.source else "sources"
                what = "nothing matches" if _is_pattern(path) else "there is no file or directory"
                yield key, f"{what} '{path}' (if it is made during the build, set generated true)"
        files = [path for path in self.all_sources if any(Path(name).is_file() for name in _found(path))]
        if not self.destination.endswith("/") and sum(len(_found(path)) for path in files) > 1:
            yield "destination", f"several files can't all become '{self.destination}': end it with '/'"

    def inputs(self) -> Sequence[Input] | None:
        missing = [source for source in self.all_sources if not _found(source)]
        if self.direction == "download" or (self.generated and missing):
            return None  # a file here must appear at every build; what isn't made yet can't be read
        if missing:
            raise StoreError(f"can't read '{missing[0]}': there is nothing")
        found = [path for source in self.all_sources for path in _found(source)]
        text = [inputs.content("content", "content", self.content)] if self.content is not None else []
        try:
            sources = [self._source_input(path) for path in found]
        except (OSError, GuestError) as error:
            raise StoreError(f"can't read what is to be uploaded: {error}") from error
        return [*inputs.options(self, _READ, _HARMLESS), *text, *sources]

    def _source_input(self, path: str) -> Input:
        """A file or directory as it arrives in the guest; its own name only where it ends up there."""
        local = Path(path)
        if local.is_dir():
            name = "" if path.endswith("/") else local.resolve().name
            return inputs.combined(f"directory {name!r}", path, map(_entry_input, entries(local)))
        name = local.name if self.destination.endswith("/") else ""
        return inputs.file(f"file {name!r} {_mode(local):o}", local)

    @property
    def all_sources(self) -> tuple[str, ...]:
        return (*((self.source,) if self.source else ()), *self.sources)


def _is_pattern(path: str) -> bool:
    return any(sign in path for sign in _MAGIC)


def _found(path: str) -> list[str]:
    """What a path of this machine stands for: itself, or what matches it; a slash at its end stays."""
    expanded = os.path.expanduser(path)  # noqa: PTH111 - a Path has no slash at its end
    if os.path.lexists(expanded):
        return [expanded]
    return sorted(glob.glob(expanded)) if _is_pattern(path) else []  # noqa: PTH207


def _mode(local: Path) -> int:
    """The permissions that a file gets in the guest."""
    return local.stat().st_mode & 0o777 | 0o600


def _entry_input(entry: Entry) -> Input:
    role = f"{entry.kind} {entry.name!r} {entry.mode:o} {entry.target!r}"
    return inputs.file(role, entry.path) if entry.kind == "file" else inputs.content(role, entry.name, "")


class File:
    """The file provisioner."""

    Options = FileOptions

    def __init__(self, options: FileOptions, _context: BuildContext) -> None:
        self._options = options

    def provision(self, guest: Guest, ui: Ui) -> None:
        if guest.communicator is None:
            raise GuestError("A file provisioner needs a communicator, and this build has none")
        o, communicator = self._options, guest.communicator
        if o.content is not None:
            ui.say(f"Uploading content to {o.destination}")
            communicator.upload(o.content.encode(errors="surrogateescape"), o.destination)
        for source in o.all_sources:
            if o.direction == "upload":
                self._upload_all(source, communicator, ui)
            else:
                self._download_all(source, communicator, ui)

    def _upload_all(self, source: str, communicator: Communicator, ui: Ui) -> None:
        found = _found(source)
        if not found:
            raise GuestError(f"There is nothing to upload at '{source}'", hint="an earlier provisioner had to make it")
        for path in found:
            self._upload(path, communicator, ui)

    def _upload(self, path: str, communicator: Communicator, ui: Ui) -> None:
        destination, local = self._options.destination, Path(path)
        if local.is_dir():
            ui.say(f"Uploading directory {path} to {destination}")
            communicator.upload_directory(local, destination, contents_only=path.endswith("/"))
            return
        if destination.endswith("/"):
            destination += local.name
        ui.say(f"Uploading {path} to {destination}")
        communicator.upload(local, destination, _mode(local))

    def _download_all(self, source: str, communicator: Communicator, ui: Ui) -> None:
        for path, is_directory in _look(source, communicator):
            self._download(path, is_directory, communicator, ui)

    def _download(self, path: str, is_directory: bool, communicator: Communicator, ui: Ui) -> None:
        written = os.path.expanduser(self._options.destination)  # noqa: PTH111 - a Path has no slash at its end
        local = Path(written)
        ui.say(f"Downloading {path} to {written}")
        if is_directory:
            communicator.download_directory(path, local, contents_only=path.endswith("/"))
            return
        inside = written.endswith("/") or local.is_dir()
        communicator.download(path, local / path.rpartition("/")[2] if inside else local)


def _look(source: str, communicator: Communicator) -> list[tuple[str, bool]]:
    """(path, whether it is a directory) for each thing of the guest that the source stands for."""
    pattern = "".join(char if char in "*?[]" else shlex.quote(char) for char in source) if _is_pattern(source) else ""
    words = pattern or quoted(source)
    if source.startswith("~/") and pattern:
        words = "~/" + words[len("'~'") + 1 :]
    loop = f'for f in {words}; do if test -d "$f"; then echo "d $f"; elif test -e "$f"; then echo "f $f"; fi; done'
    lines: list[str] = []
    status = communicator.run(f"sh -c {shlex.quote(loop)}", on_line=lines.append, timeout=_LOOK_TIMEOUT)
    found = [(line[2:], line[0] == "d") for line in lines if line[:2] in ("d ", "f ")]
    if status is None:
        raise GuestError("The connection was lost while the guest was asked for its files", lost=True)
    if not found:
        raise GuestError(f"There is nothing at '{source}' in the guest")
    return found
