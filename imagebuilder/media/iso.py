"""ISO 9660 images without root or host tools: written for the guest to read, read for the kernel that boots it.

Written images carry Rock Ridge (IEEE P1282) and Joliet names beside plain ISO 9660 (ECMA-119); images are read through
whichever of these, or UDF, has the file.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pycdlib
from pycdlib.pycdlibexception import PyCdlibException

from imagebuilder import process
from imagebuilder.errors import ImgbuildError, StoreError, TemplateError
from imagebuilder.whole import whole

_SECTOR = 2048
_CHUNK = 1 << 20
_LABEL = 32  # bytes in the primary volume descriptor (ECMA-119 §8.4.7)
_JOLIET_LABEL, _JOLIET_NAME = 16, 64  # UCS-2 characters (Joliet specification)
_ISO_NAME = 24  # of the 30 that interchange level 3 allows
_UNREADABLE = (PyCdlibException, struct.error, LookupError, ValueError, MemoryError)  # seen with damaged images
_LINKS = 16  # symbolic links followed before it is a loop


def write_iso(path: Path, label: str, files: Mapping[str, bytes | Path]) -> None:
    """Make an image of `files` (path in it -> content or file; a path ending in '/' is an empty directory).

    The label is written as given, whatever its case. Appears complete or not at all. Raises TemplateError (label too
    long), StoreError.
    """
    volume = _volume_name(label)
    image: Any = pycdlib.PyCdlib()
    with whole(path) as aside:
        try:
            image.new(interchange_level=3, joliet=3, rock_ridge="1.09")
            image.pvd.volume_identifier = volume
            joliet = label[:_JOLIET_LABEL].encode("utf-16_be")
            image.joliet_vd.volume_identifier = joliet.ljust(2 * _JOLIET_LABEL, b"\0")
            _Tree(image).fill(files)
            with aside.open("wb") as out:
                image.write_fp(out)
        finally:
            with contextlib.suppress(PyCdlibException):
                image.close()


def _volume_name(label: str) -> bytes:
    encoded = label.encode()
    if len(encoded) > _LABEL:
        raise TemplateError(f"the label '{label}' is too long for a CD: {len(encoded)} bytes, at most {_LABEL} fit")
    if not label.isprintable():
        raise TemplateError(f"the label {label!r} holds a character that can't be in a label")
    return encoded.ljust(_LABEL)


class _Tree:
    """The directories of an image that is being made, with the names each file has in the three name spaces."""

    def __init__(self, image: Any) -> None:
        self._image = image
        self._places = {"": ("", "")}  # directory -> its ISO and Joliet paths
        self._iso_used: set[str] = set()
        self._joliet_used: set[str] = set()

    def fill(self, files: Mapping[str, bytes | Path]) -> None:
        for name in sorted(files):
            inner = name.strip("/")
            if name.endswith("/"):
                self._directory(inner)
            else:
                self._file(inner, files[name])

    def _directory(self, inner: str) -> tuple[str, str]:
        if inner not in self._places:
            iso, joliet, rock_ridge = self._names(inner, is_directory=True)
            self._image.add_directory(iso, rr_name=rock_ridge, joliet_path=joliet, file_mode=0o040555)
            self._places[inner] = (iso, joliet)
        return self._places[inner]

    def _file(self, inner: str, content: bytes | Path) -> None:
        iso, joliet, rock_ridge = self._names(inner, is_directory=False)
        where = {"iso_path": iso + ".;1" if "." not in PurePosixPath(iso).name else iso + ";1", "joliet_path": joliet}
        if isinstance(content, bytes):
            mode = 0o100444
            self._image.add_fp(io.BytesIO(content), len(content), rr_name=rock_ridge, file_mode=mode, **where)
        else:
            mode = 0o100444 | (content.stat().st_mode & (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH))
            self._image.add_file(os.fspath(content), rr_name=rock_ridge, file_mode=mode, **where)

    def _names(self, inner: str, *, is_directory: bool) -> tuple[str, str, str]:
        """The ISO path, the Joliet path and the Rock Ridge name; the first two are unique in their directory."""
        folder, _, name = inner.rpartition("/")
        iso, joliet = self._directory(folder)
        stem, extension = (name, "") if is_directory else _split(name)
        plain = re.sub("[^A-Z0-9_]", "_", stem.upper())
        suffix = re.sub("[^A-Z0-9_.]", "_", extension.upper())[:4]
        wide = re.sub(r'[*/:;?\\"<>|\U00010000-\U0010ffff]', "_", name)
        return (
            _unique(iso, plain, suffix, _ISO_NAME, self._iso_used),
            _unique(joliet, *_split(wide), _JOLIET_NAME, self._joliet_used),
            name,
        )


def _split(name: str) -> tuple[str, str]:
    """A name before and from its last dot; what stands behind an early or far dot is no extension."""
    stem, dot, extension = name.rpartition(".")
    return (stem, f".{extension}") if dot and stem and len(extension) < 16 else (name, "")


def _unique(folder: str, stem: str, suffix: str, longest: int, used: set[str]) -> str:
    """A path that no file has yet: the name cut to length, numbered when it is taken."""
    number, candidate = 0, f"{folder}/{stem[: longest - len(suffix)]}{suffix}"
    while candidate in used:
        number += 1
        mark = f"_{number}{suffix}"
        candidate = f"{folder}/{stem[: longest - len(mark)]}{mark}"
    used.add(candidate)
    return candidate


def iso_label(iso: Path) -> str:
    """The volume label (what `inst.stage2=hd:LABEL=` and blkid mean), read from the primary volume descriptor."""
    try:
        with iso.open("rb") as file:
            file.seek(16 * _SECTOR)
            descriptor = file.read(_SECTOR)
    except OSError as error:
        raise StoreError(f"can't read '{iso}': {error.strerror}") from error
    if descriptor[:6] != b"\x01CD001":
        raise ImgbuildError(f"'{iso}' is not an ISO 9660 image", hint="is it a disk image? then set disk_image")
    return descriptor[40 : 40 + _LABEL].decode("utf-8", "replace").rstrip(" \0")


def iso_list(iso: Path) -> list[str]:
    """The path of every file in an image, by the names its best name space has."""
    with _opened(iso) as image:
        view = _views(image)[0]
        return sorted(_walk(view, PurePosixPath("/")))


def _walk(view: _View, folder: PurePosixPath) -> Iterator[str]:
    for name, record in view.children(str(folder)).items():
        if record.is_dir():
            yield from _walk(view, folder / name)
        else:
            yield str(folder / name)


def iso_read(iso: Path, inner: str, target: Path) -> None:
    """Copy a file (kernel, initrd) out of an image; case counts only where names differ by nothing else.

    Symbolic links are followed. `target` appears complete or not at all. Raises ImgbuildError that lists what is there
    instead, StoreError.
    """
    with _opened(iso) as image:
        views = _views(image)
        for view in views:
            found = view.find(inner)
            if found:
                _copy(image, {view.key: found}, target)
                return
        raise ImgbuildError(f"'{iso}' has no file '{inner}'", hint=_near(views[0], inner))


def _copy(image: Any, where: Mapping[str, str], target: Path) -> None:
    with process.temporary_path(target.with_name(target.name + ".tmp")) as aside:
        try:
            with image.open_file_from_iso(**where) as source, aside.open("wb") as out:
                while chunk := source.read(_CHUNK):
                    out.write(chunk)
                out.flush()
                os.fsync(out.fileno())
                written = out.tell()
            if written != image.get_record(**where).get_data_length():
                raise PyCdlibException("it ends before the file does")
            aside.replace(target)
        except OSError as error:
            raise StoreError(f"can't write '{target}': {error.strerror}") from error


@contextlib.contextmanager
def _opened(iso: Path) -> Iterator[Any]:
    image = pycdlib.PyCdlib()
    try:
        image.open(os.fspath(iso))
    except OSError as error:
        raise StoreError(f"can't read '{iso}': {error.strerror}") from error
    except _UNREADABLE as error:
        raise ImgbuildError(f"'{iso}' can't be read as an ISO 9660 image: {error}") from error
    try:
        yield image
    except (PyCdlibException, struct.error) as error:
        raise ImgbuildError(f"'{iso}' is damaged: {error}") from error
    finally:
        image.close()


class _View:
    """One of an image's name spaces; `key` is how pycdlib names it."""

    def __init__(self, image: Any, key: str) -> None:
        self._image, self.key = image, key

    def children(self, folder: str) -> dict[str, Any]:
        """Name -> record of everything in a directory; versions (`;1`) and lone dots are taken off."""
        found = {}
        for record in self._image.list_children(**{self.key: folder}):
            if record is not None and not (hasattr(record, "is_dot") and (record.is_dot() or record.is_dotdot())):
                found[self._shown(record)] = record
        return found

    def _shown(self, record: Any) -> str:
        if self.key == "rr_path" and record.rock_ridge is not None:
            return bytes(record.rock_ridge.name()).decode("utf-8", "replace")
        if self.key == "iso_path":
            return re.sub(r"\.?;\d+$", "", bytes(record.file_identifier()).decode("latin-1"))
        encoding = "utf-16_be" if self.key == "joliet_path" else getattr(record.file_ident, "encoding", "latin-1")
        return re.sub(r";\d+$", "", bytes(record.file_identifier()).decode(encoding, "replace"))

    def find(self, inner: str) -> str:
        """The path, as this name space has it, of the file that `inner` names; "" when there is none."""
        pending, place, links = [part for part in inner.split("/") if part not in ("", ".")], PurePosixPath("/"), 0
        while pending:
            name = pending.pop(0)
            if name == "..":
                place = place.parent
                continue
            record, true_name = self._child(place, name)
            if record is None:
                return ""
            if self.key == "rr_path" and record.rock_ridge is not None and record.rock_ridge.is_symlink():
                links += 1
                aim = bytes(record.rock_ridge.symlink_path()).decode("utf-8", "replace")
                place = PurePosixPath("/") if aim.startswith("/") else place
                pending = [part for part in aim.split("/") if part not in ("", ".")] + pending
                if links > _LINKS:
                    return ""
                continue
            if bool(pending) != bool(record.is_dir()):
                return ""
            place /= true_name
        return self._path(place)

    def _child(self, folder: PurePosixPath, name: str) -> tuple[Any, str]:
        """The entry of that name, or the only one that differs from it in case or version."""
        children = self.children(str(folder))
        if name in children:
            return children[name], name
        plain = re.sub(r"\.?;\d+$", "", name).lower()
        alike = [known for known in children if known.lower() == plain]
        return (children[alike[0]], alike[0]) if len(alike) == 1 else (None, name)

    def _path(self, place: PurePosixPath) -> str:
        """A path with what `children` took off."""
        if self.key != "iso_path" or str(place) == "/":
            return "" if str(place) == "/" else str(place)
        record = self.children(str(place.parent))[place.name]
        return str(place.parent / bytes(record.file_identifier()).decode("latin-1"))


def _views(image: Any) -> list[_View]:
    """The name spaces to look in. Rock Ridge has everything; the others show its symbolic links as empty files."""
    if image.has_rock_ridge():
        return [_View(image, "rr_path")]
    has = {"udf_path": image.has_udf(), "joliet_path": image.has_joliet(), "iso_path": True}
    return [_View(image, key) for key, there in has.items() if there]


def _near(view: _View, inner: str) -> str:
    """What is there instead: files whose path is alike, or what the root holds."""
    paths = [path.lstrip("/") for path in _walk(view, PurePosixPath("/"))]
    wanted = inner.strip("/")
    same_name = [path for path in paths if PurePosixPath(path).name.lower() == PurePosixPath(wanted).name.lower()]
    near = list(dict.fromkeys(same_name[:3] + difflib.get_close_matches(wanted, paths, n=3)))
    if near:
        return "did you mean " + " or ".join(f"'{path}'" for path in near) + "?"
    top = sorted({path.partition("/")[0] for path in paths})[:12]
    return "at its top are " + ", ".join(f"'{name}'" for name in top)
