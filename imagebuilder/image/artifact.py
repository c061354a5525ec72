"""Where a finished image appears: built beside its final name, and renamed to it when all of it is on the disk.

A directory that exists is never touched, unless -force is given and it holds an image of ours (or nothing). Then the
two change places in one step (renameat2(2), RENAME_EXCHANGE), and the old one is removed afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from imagebuilder import __version__, process
from imagebuilder.digests import digests
from imagebuilder.errors import ImgbuildError, StoreError
from imagebuilder.image import disk, manifest
from imagebuilder.image.manifest import Manifest, ManifestFile, load_manifest
from imagebuilder.plugins import Artifact, BuildContext, Disk
from imagebuilder.ui import Ui
from imagebuilder.whole import sync

__all__ = ["BUILDER_ID", "Machine", "Manifest", "Output", "artifact", "check", "destroy", "load_manifest"]

BUILDER_ID = "transcend.qemu"  # Packer's, which other people's post-processors know

_AT_FDCWD = -100
_NOREPLACE, _EXCHANGE = 1, 2
_UNSUPPORTED = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


@dataclass(frozen=True)
class Machine:
    """What the manifest tells of the machine that an image was built in."""

    accelerator: str = ""
    architecture: str = ""
    firmware: Literal["bios", "uefi"] = "bios"
    nvram: str = ""  # name of the file with the UEFI variables


def check(final: Path, force: bool = False) -> None:
    """Raise StoreError when an image can't be put under this name."""
    if not os.path.lexists(final):
        return
    if not force:
        raise StoreError(
            f"the output directory '{final}' exists already",
            hint="choose another output_directory, or replace the image in it with -force",
        )
    if final.is_symlink() or not final.is_dir():
        what = "a symbolic link" if final.is_symlink() else "not a directory"
        raise StoreError(f"'{final}' is {what}: -force replaces only images that imgbuild made", hint="move it away")
    if any(final.iterdir()):
        _check_ours(final)


def _check_ours(final: Path) -> None:
    try:
        load_manifest(final)
    except ImgbuildError as error:
        raise StoreError(
            f"'{final}' holds files and no manifest.json of imgbuild: -force doesn't delete what others made",
            hint="look at what is in it; remove it yourself, or choose another output_directory",
        ) from error


class Output:
    """The output of one build: `work` is where it is made, private to us; `final` where it appears.

    A context manager: what isn't published at its end is removed, and so it is when we are killed.
    """

    def __init__(self, final: Path, force: bool = False) -> None:
        self.final, self.force = final, force
        absolute = final.absolute()
        self.work = absolute.with_name(f".{absolute.name}.imgbuild-{secrets.token_hex(4)}")
        self._owned = contextlib.ExitStack()

    def __enter__(self) -> Output:
        check(self.final, self.force)
        try:
            self.work.parent.mkdir(parents=True, exist_ok=True)
            self._owned.enter_context(process.temporary_path(self.work))
            self.work.mkdir(mode=0o700)
        except OSError as error:
            self._owned.close()
            raise StoreError(f"can't make a directory beside '{self.final}': {error.strerror}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._owned.close()

    def publish(self, context: BuildContext, disks: Sequence[Disk], ui: Ui, machine: Machine = Machine()) -> Artifact:
        """Give what is in `work` its final name, with a manifest; `disks` in the machine's order. StoreError."""
        found = self._manifest(context, disks, machine, ui)
        target = self.work / manifest.NAME
        target.write_text(found.text(), encoding="utf-8")
        for path in (*(self.work / file.name for file in found.files), target, self.work):
            sync(path)
        self.work.chmod(0o777 & ~_umask())
        self._rename()
        sync(self.work.parent)
        return artifact(self.final, found)

    def _manifest(self, context: BuildContext, disks: Sequence[Disk], machine: Machine, ui: Ui) -> Manifest:
        by_path = {one.path.absolute(): one for one in disks}
        paths = [*by_path, *(path for path in _shipped(self.work) if path not in by_path)]
        sums = digests(paths, ["sha256"], ui)
        files = [_described(path, self.work, sums[path]["sha256"], by_path.get(path), machine) for path in paths]
        return Manifest(
            build_name=context.build_name, builder_type=context.builder_type, created=manifest.utc(_now()),
            architecture=machine.architecture, firmware=machine.firmware, accelerator=machine.accelerator,
            template_sha256=context.template_digest, files=tuple(files),
            versions={"imgbuild": __version__, "qemu": disk.version()},
        )  # fmt: skip

    def _rename(self) -> None:
        try:
            if self.force and os.path.lexists(self.final):
                check(self.final, self.force)
                _exchange(self.work, self.final)
            else:
                _rename_new(self.work, self.final)
        except FileExistsError as error:
            raise StoreError(f"'{self.final}' appeared while the image was built", hint="build again") from error
        except OSError as error:
            raise StoreError(f"can't put the image under '{self.final}': {error.strerror}") from error


def artifact(directory: Path, found: Manifest) -> Artifact:
    """The artifact that a published image is. Its files are all but the manifest."""
    disks = [Disk(directory / file.name, file.format or "raw", file.virtual_size or 0) for file in found.disks]
    first = found.disks[0] if found.disks else None
    state = {
        "accelerator": found.accelerator, "architecture": found.architecture, "domainType": found.accelerator,
        "diskName": first.name if first else "", "diskType": (first.format if first else None) or "",
        "diskSize": str((first.virtual_size if first else None) or ""), "template_sha256": found.template_sha256,
    }  # fmt: skip
    return Artifact(
        BUILDER_ID, "VM", f"VM files in directory: {directory}", tuple(directory / file.name for file in found.files),
        tuple(disks), directory, state,
    )  # fmt: skip


def destroy(artifact: Artifact, keeping: Collection[Artifact] = ()) -> None:
    """Remove an artifact's files, except what another artifact that is kept has as well. StoreError when it can't be.

    Of its directory, only what is the artifact's: a file that somebody else put there stays, and so does the directory.
    """
    kept = {file.absolute() for other in keeping for file in other.files}
    try:
        if artifact.directory is not None:
            (artifact.directory / manifest.NAME).unlink(missing_ok=True)  # from here on it is no finished image
        for file in artifact.files:
            if file.absolute() not in kept:
                file.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"can't remove '{error.filename}': {error.strerror}") from error
    if artifact.directory is not None:
        _remove_empty(artifact.directory)


def _remove_empty(directory: Path) -> None:
    below = sorted((path for path in directory.rglob("*") if path.is_dir()), reverse=True)
    for path in (*below, directory):
        with contextlib.suppress(OSError):
            path.rmdir()


def _shipped(work: Path) -> list[Path]:
    """Every regular file; a socket that a program left is removed."""
    files = []
    for path in sorted(work.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode):
            files.append(path)
        elif not stat.S_ISDIR(mode):
            path.unlink()
    return files


def _described(path: Path, work: Path, sha256: str, image: Disk | None, machine: Machine) -> ManifestFile:
    name, size = path.relative_to(work).as_posix(), path.stat().st_size
    if image is None:
        return ManifestFile(name=name, size=size, sha256=sha256, kind="nvram" if name == machine.nvram else "other")
    found = disk.info(path, follow=True)
    return ManifestFile(
        name=name, size=size, sha256=sha256, kind="disk", format=image.format, virtual_size=found.virtual_size,
        actual_size=found.actual_size, compression=_compression(path, found),
        backing=str(found.backing) if found.backing else None,
    )  # fmt: skip


def _compression(path: Path, found: disk.DiskInfo) -> str | None:
    """How the image's clusters are compressed; qcow2 names a method whether it is used or not."""
    return found.compression if found.compression and disk.is_compressed(path) else None


def _now() -> float:
    """Unix seconds; SOURCE_DATE_EPOCH (reproducible-builds.org) where that is set."""
    return float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())


def _umask() -> int:
    """The umask, read without setting it (proc(5))."""
    found = re.search(r"^Umask:\s*([0-7]+)", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    return int(found.group(1), 8) if found else 0o022


def _rename_new(source: Path, target: Path) -> None:
    """Rename to a name that nothing has. FileExistsError."""
    if _renameat2(source, target, _NOREPLACE):
        return
    if os.path.lexists(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def _exchange(source: Path, target: Path) -> None:
    """`source` takes the place of `target`, which is then under the name of `source`."""
    if _renameat2(source, target, _EXCHANGE):
        return
    aside = source.with_name(source.name + ".old")  # not known to the janitor: never lost, whatever happens here
    target.rename(aside)
    try:
        source.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    aside.rename(source)


def _renameat2(source: Path, target: Path, flags: int) -> bool:
    """Whether the kernel, the file system and the C library know how."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(target))
