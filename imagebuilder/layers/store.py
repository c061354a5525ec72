"""The store of layers: immutable, verified, private, shared by builds that run at the same time.

    layers/FINGERPRINT/   a layer: layer.json and the files that it names
    layers/.making-*/     one being written; it gets its name when it is complete and on the disk
    layers/.gone-*/       what is being deleted
    layers/lock           its bytes tell which steps are being made just now

Each directory in use is locked (`locks`); whatever a dead process left behind isn't, and is swept away.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from imagebuilder import digests, paths, process, whole
from imagebuilder.errors import StoreError
from imagebuilder.layers import locks
from imagebuilder.layers.record import NAME, FileRecord, Layer, Record, read
from imagebuilder.ui import Ui

__all__ = ["Held", "Layer", "Making", "Record", "Store"]

_MAKING, _GONE = ".making-", ".gone-"
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")
_HINT = "make room there, or name another place by IMGBUILD_CACHE_DIR"


class Store:
    """All layers of a user. Reading never fails and never creates anything; what writes raises StoreError."""

    def __init__(self, directory: Path | None = None) -> None:
        self.directory = (directory or paths.cache_directory() / "layers").absolute()

    def layers(self) -> list[Layer]:
        """Every layer that is whole by itself."""
        return [layer for path in self._places() if (layer := read(path)) is not None]

    def find(self, fingerprint: str) -> Layer | None:
        """A layer that can be used as far as a quick look tells: it and all that it stands on are there."""
        chain = self._chain_of(fingerprint)
        return chain[-1] if chain else None

    def chain(self, layer: Layer) -> list[Layer]:
        """What a layer stands on, root first, itself last; nothing when one is missing or was made anew since."""
        found = [layer]
        while (record := found[0].record).parent:
            parent = read(self.directory / record.parent)
            if parent is None or parent.record.id != record.parent_id or parent in found:
                return []
            found.insert(0, parent)
        return found

    def hold(self, fingerprint: str, ui: Ui) -> Held | None:
        """Take a layer and all that it stands on into use, every byte verified; None when there is no sound one.

        What is broken is removed together with what stands on it, and the person is told.
        """
        self._open()
        if not _FINGERPRINT.fullmatch(fingerprint):
            raise ValueError(f"'{fingerprint}' is no fingerprint")
        with contextlib.ExitStack() as unless_sound:
            held = unless_sound.enter_context(Held())
            chain = self._chain_of(fingerprint)
            if not all(held.add(layer) for layer in chain):
                return None  # somebody is removing it
            broken = _first_broken(chain, ui)
            if chain and broken is None:
                self._touch(chain)
                unless_sound.pop_all()
                return held
        if broken is not None:
            self._remove_broken(broken, ui)
        else:
            self._remove_unreadable(fingerprint, ui)
        return None

    @contextlib.contextmanager
    def making(self, record: Record) -> Iterator[Making]:
        """A layer to be written; gone at the end of the block unless it was kept."""
        with self._private(_MAKING) as path:
            try:
                yield Making(self, record, path)
            except (ConnectionError, TimeoutError):
                raise  # somebody else's
            except OSError as error:
                raise self._failure(error) from error

    @contextlib.contextmanager
    def claim(self, fingerprint: str) -> Iterator[bool]:
        """Whether nobody else makes this step just now; until the block ends nobody else will. Doesn't wait."""
        self._open()
        with contextlib.ExitStack() as stack:
            with self._writing():
                ours = stack.enter_context(locks.byte(self.directory / "lock", int(fingerprint[:15], 16)))
            yield ours

    def remove(self, layer: Layer) -> bool:
        """False when somebody uses it, or it isn't there any more. What stands on it becomes useless."""

        return self._discard(layer.path, lambda: _same(layer, read(layer.path)))

    def remove_with_descendants(self, layer: Layer) -> list[Layer]:
        """Remove what stands on a layer, then itself; what could be removed (who uses one uses those below too)."""
        return [one for one in (*self._descendants(layer.record.fingerprint), layer) if self.remove(one)]

    def sweep(self) -> None:
        """Remove what can't be used and nobody uses: left by a dead process, broken, or without what it stands on."""
        self._open()
        if not os.access(self.directory, os.W_OK):
            raise self._failure(OSError(errno.EROFS, "it can only be read"))
        for path in self.directory.iterdir():
            if path.name.startswith((_MAKING, _GONE)):
                self._discard(path, lambda: True)
        for path in self._places():
            self._discard_useless(path)

    def _install(self, record: Record, path: Path, *, replace: bool) -> Layer | None:
        """Give a complete directory its layer's name (`Making.keep`); None when a usable layer has that name."""
        parent = self.find(record.parent) if record.parent else None
        if record.parent and (parent is None or parent.record.id != record.parent_id):
            return None  # made anew or removed meanwhile: nobody could use ours
        target = self.directory / record.fingerprint
        old = self.find(record.fingerprint)
        cleared = self.remove(old) if old and replace else self._discard_useless(target)
        if not cleared and os.path.lexists(target):
            return None
        try:
            path.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return None  # another build was quicker
            raise
        whole.sync(self.directory)
        return read(target)

    def _open(self) -> None:
        """Make the directory, or see that it is ours and nobody else's: who writes here decides what images hold."""
        with self._writing():
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = self.directory.stat()
            if status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) & 0o077:
                self.directory.chmod(0o700)
        if status.st_uid != os.geteuid():
            raise StoreError(f"the layers' directory '{self.directory}' belongs to another user", hint=_HINT)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failure(error) from error

    def _failure(self, error: OSError) -> StoreError:
        return StoreError(f"can't write layers to '{self.directory}': {error.strerror or error}", hint=_HINT)

    @contextlib.contextmanager
    def _private(self, prefix: str) -> Iterator[Path]:
        self._open()
        path = self.directory / f"{prefix}{secrets.token_hex(8)}"
        with contextlib.ExitStack() as until_removed, process.temporary_path(path):
            with self._writing():
                until_removed.callback(os.close, _make_locked(path))
            yield path

    def _places(self) -> list[Path]:
        """Where layers lie, or what is left of them."""
        try:
            return sorted(path for path in self.directory.iterdir() if _FINGERPRINT.fullmatch(path.name))
        except OSError:
            return []

    def _chain_of(self, fingerprint: str) -> list[Layer]:
        layer = read(self.directory / fingerprint) if fingerprint else None
        return self.chain(layer) if layer is not None else []

    def _touch(self, chain: Sequence[Layer]) -> None:
        with self._writing():
            for layer in chain:
                os.utime(layer.path / NAME)

    def _remove_broken(self, layer: Layer, ui: Ui) -> None:
        _warn(layer.path, f" ({layer.record.title})" if layer.record.title else "", ui)
        self._discard(layer.path, lambda: _same(layer, read(layer.path)))
        self._remove_useless_above(layer.path)

    def _remove_unreadable(self, fingerprint: str, ui: Ui) -> None:
        """Remove what has the name of a layer, or of one that it stands on, but isn't one."""
        path, seen = self.directory / fingerprint, set[Path]()
        while (layer := read(path)) is not None and layer.record.parent and path not in seen:
            seen.add(path)
            path = self.directory / layer.record.parent
        # Only once it is locked is it certain: another build may have put it there while we looked.
        if layer is None and os.path.lexists(path) and self._discard(path, lambda: read(path) is None):
            _warn(path, "", ui)
            self._remove_useless_above(path)

    def _remove_useless_above(self, path: Path) -> None:
        for descendant in self._descendants(path.name):
            self._discard_useless(descendant.path)

    def _descendants(self, fingerprint: str) -> list[Layer]:
        """What stands on a layer, leaves first."""
        layers, found = self.layers(), [fingerprint]
        ordered: dict[str, Layer] = {}
        while found:
            parent = found.pop(0)
            below = [one for one in layers if one.record.parent == parent and one.record.fingerprint not in ordered]
            ordered.update({one.record.fingerprint: one for one in below})
            found += [one.record.fingerprint for one in below]
        return [one for name, one in reversed(ordered.items()) if name != fingerprint]

    def _discard_useless(self, path: Path) -> bool:
        """Remove what has a layer's name but can't be used."""
        return self.find(path.name) is None and self._discard(path, lambda: self.find(path.name) is None)

    def _discard(self, path: Path, still: Callable[[], bool]) -> bool:
        """Remove something of the store if nobody uses it and it is `still` what was meant once it is locked."""
        if path.is_symlink() or path.is_file():  # nothing of ours ever is
            with self._writing():
                path.unlink(missing_ok=True)
            return True
        descriptor = locks.exclusive(path)
        if descriptor is None:
            return False
        try:
            return still() and self._rename_away(path)
        finally:
            os.close(descriptor)

    def _rename_away(self, path: Path) -> bool:
        """Delete something under a name that nobody looks for; False when a dead process's janitor was quicker."""
        with self._writing(), process.temporary_path(self.directory / f"{_GONE}{secrets.token_hex(8)}") as gone:
            try:
                path.rename(gone)
            except FileNotFoundError:
                return False
            return True


class Making:
    """A layer that is being written, file by file, into `path`."""

    def __init__(self, store: Store, record: Record, path: Path) -> None:
        self.path = path
        self._store, self._record = store, record

    def keep(self, *, replace: bool = False) -> Layer | None:
        """Seal it; nobody removes it before the block ends. None when there is a usable layer of its fingerprint.

        That one has another id, so nothing may be kept that stands on ours. With `replace` it is removed first,
        unless somebody uses it. Raises StoreError.
        """
        if not replace and self._store.find(self._record.fingerprint) is not None:
            return None
        with self._store._writing():
            record = dataclasses.replace(self._record, files=_sealed(self.path))
            about = self.path / NAME
            about.write_bytes(record.to_json())
            about.chmod(0o600)
            whole.sync(about)
            whole.sync(self.path)
            return self._store._install(record, self.path, replace=replace)


class Held:
    """Layers in use: nobody removes them until `close`."""

    def __init__(self) -> None:
        self.layers: list[Layer] = []  # root first
        self._locks = contextlib.ExitStack()

    def add(self, layer: Layer) -> bool:
        """Hold one more, taken as sound (it was just made); False when it is gone."""
        descriptor = locks.shared(layer.path)
        if descriptor is None:
            return False
        self._locks.callback(os.close, descriptor)
        if not _same(layer, read(layer.path)):
            return False
        self.layers.append(layer)
        return True

    def close(self) -> None:
        """Let go of them all; a second time does nothing."""
        self._locks.close()

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _same(layer: Layer, now: Layer | None) -> bool:
    return now is not None and now.record.id == layer.record.id


def _warn(path: Path, title: str, ui: Ui) -> None:
    ui.warning(f"The cached layer {path.name[:12]}{title} is broken: removing it and what stands on it")


def _make_locked(path: Path) -> int:
    """Make a private directory and lock it; once more if a sweep took it for a dead process's in between."""
    for _ in range(10):
        path.mkdir(mode=0o700, exist_ok=True)
        descriptor = locks.shared(path, wait=True)
        if descriptor is not None:
            return descriptor
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))


def _sealed(directory: Path) -> dict[str, FileRecord]:
    """Make the files private, bring them to the disk and read what they hold, all at once."""
    files = sorted(directory.iterdir())
    for file in files:
        if not stat.S_ISREG(file.lstat().st_mode) or file.name == NAME:
            raise StoreError(f"a layer holds nothing but files, not '{file.name}'")
        file.chmod(0o600)
    with ThreadPoolExecutor(len(files) or 1, thread_name_prefix="fsync") as pool:
        on_disk = pool.map(whole.sync, files)
        found = digests.digests(files, ("sha256",), Ui("", lambda event: None))
        list(on_disk)  # raises what failed
    return {file.name: FileRecord(file.stat().st_size, found[file]["sha256"]) for file in files}


def _first_broken(layers: Sequence[Layer], ui: Ui) -> Layer | None:
    """The first of some layers whose files don't hold what was sealed; all their files are read at once."""
    expected = {path: file for layer in layers for path, file in layer.files()}
    biggest_first = sorted(expected, key=lambda path: expected[path].size, reverse=True)
    try:
        found = digests.digests(biggest_first, ("sha256",), ui)
    except StoreError:  # one can't be read: find out whose
        return layers[0] if len(layers) == 1 else next(filter(None, (_first_broken([one], ui) for one in layers)), None)
    return next((one for one in layers if any(found[p]["sha256"] != file.sha256 for p, file in one.files())), None)
