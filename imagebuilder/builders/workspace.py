"""The disks of a build while they are worked on: those of the layers it goes on from, and on top what is new.

Every overlay names what is below it by a name without a directory, so layers can lie anywhere: in the workspace each of
those names is a link to its layer's file (qcow2 format, § header: backing file names are relative to the overlay).
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from imagebuilder import process
from imagebuilder.image import disk
from imagebuilder.layers.record import Layer

SOURCE = "source"  # the image that the first disk stands on, where there is one
NVRAM = "efivars.fd"


class Workspace:
    """`tops`: the disks that the guest writes to, in the machine's order; `sealed`: those below them, if any."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tops: tuple[Path, ...] = ()
        self.sealed: tuple[Path, ...] = ()

    @property
    def nvram(self) -> Path:
        """The guest's UEFI variables."""
        return self.directory / NVRAM

    def clear(self) -> None:
        """Remove whatever is there."""
        for left in self.directory.iterdir():
            left.unlink()

    def restore(self, layers: Sequence[Layer], names: Sequence[str], source: Path | None) -> None:
        """Begin anew with the disks of these layers, which go by these names."""
        self.clear()
        if source is not None:
            (self.directory / SOURCE).symlink_to(source.absolute())
        for layer, name in zip(layers, names, strict=True):
            self.sealed = self._named(name, len(disks(layer.path)))
            for link, path in zip(self.sealed, disks(layer.path), strict=True):
                link.symlink_to(path)
        kept = layers[-1].path / NVRAM
        if kept.is_file():
            shutil.copyfile(kept, self.nvram)
            self.nvram.chmod(0o600)
        self.tops = self.sealed

    def overlays(self) -> tuple[Path, ...]:
        """New disks on the sealed ones, for the guest to write to."""
        made = tuple(path.with_name(f"{path.name}.top") for path in self.sealed)
        for path, below in zip(made, self.sealed, strict=True):
            path.unlink(missing_ok=True)
            disk.overlay(path, below, "qcow2", relative=True)
        return made

    def seal(self, name: str) -> None:
        """Give what the guest has written to its lasting name; it isn't written to any more."""
        self.sealed = self._named(name, len(self.tops))
        for link, top in zip(self.sealed, self.tops, strict=True):
            link.unlink(missing_ok=True)
            _link_or_point(top, link)

    def fill(self, layer: Path) -> None:
        """Put the sealed disks into a layer's directory."""
        for number, path in enumerate(self.sealed):
            _link_or_copy(path.resolve(), layer / f"disk{number}.qcow2")

    def own(self) -> None:
        """Make all of it independent of the store: for a person who is handed the disks."""
        for path in list(self.directory.iterdir()):
            if path.is_symlink() and path.name != SOURCE:
                target = path.resolve()
                path.unlink()
                _link_or_copy(target, path)
        for top in self.tops:
            if top.is_file() and top.stat().st_nlink > 1:  # it is a layer's as well, and will be written to
                aside = top.with_name(f"{top.name}.own")
                copy(top, aside)
                aside.replace(top)

    def fill_nvram(self, layer: Path) -> None:
        """Put the UEFI variables into a layer's directory, while nobody writes them."""
        if self.nvram.is_file():
            shutil.copyfile(self.nvram, layer / NVRAM)

    def _named(self, name: str, count: int) -> tuple[Path, ...]:
        return tuple(self.directory / f"{name}.{number}" for number in range(count))


def _link_or_copy(source: Path, target: Path) -> None:
    """The same file under another name where that can be; on another file system a copy. OSError, CommandError."""
    if not _linked(source, target):
        copy(source, target)


def _link_or_point(source: Path, target: Path) -> None:
    """A second name in the same directory; a symbolic link where files have but one name (FAT, some shared folders)."""
    if not _linked(source, target):
        target.symlink_to(source.name)


def _linked(source: Path, target: Path) -> bool:
    """Whether a file has got another name; False when the file system can't do that. OSError."""
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP):
            return False
        raise
    return True


def disks(layer: Path) -> list[Path]:
    """The disks in a layer's directory, in the machine's order."""
    return sorted(layer.glob("disk*.qcow2"), key=lambda path: int(path.stem.removeprefix("disk")))


def copy(source: Path, target: Path) -> None:
    """A copy that shares blocks where the file system can, and leaves holes holes. CommandError."""
    process.run([process.find("cp", package="coreutils"), "--reflink=auto", "--sparse=auto", "--", source, target])
