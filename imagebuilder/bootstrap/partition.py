"""Partition tables of the disks we make: a GUID Partition Table (UEFI 2.10, section 5) that BIOS can boot as well.

The root file system is always the last partition, so that it can be grown when the disk is. Everything starts at a
multiple of 1 MiB; identifiers come from the caller's seed, so the same description gives the same bytes.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from imagebuilder import process
from imagebuilder.errors import TemplateError

SECTOR = 512  # bytes
MIB = 2**20
ESP_SIZE = 64 * MIB  # bytes; FAT32 needs 65525 clusters, which is 33 MiB of the smallest ones
SMALLEST = 512 * MIB  # bytes; less holds no distribution
_SEED = uuid.UUID("5b0d6a2e-8d0b-5c39-9a3f-0f6f1ad2f1c7")


class Firmware(StrEnum):
    """What a disk can be booted by."""

    BIOS = "bios"
    UEFI = "uefi"
    BOTH = "both"

    @property
    def bios(self) -> bool:
        return self is not Firmware.UEFI

    @property
    def uefi(self) -> bool:
        return self is not Firmware.BIOS


class Role(StrEnum):
    """What a partition is for; the name in the table is the role's."""

    BIOS_BOOT = "bios-boot"
    ESP = "esp"
    ROOT = "root"


# UAPI Discoverable Partitions Specification; GRUB manual, "BIOS installation"
_TYPES = {
    Role.BIOS_BOOT: "21686148-6449-6E6F-744E-656564454649",
    Role.ESP: "C12A7328-F81F-11D2-BA4B-00A0C93EC93B",
    Role.ROOT: "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709",  # root on x86-64
}


@dataclass(frozen=True)
class Partition:
    """One entry of the table; `start` and `size` in bytes."""

    role: Role
    start: int
    size: int
    guid: uuid.UUID


@dataclass(frozen=True)
class Layout:
    """A whole disk; `size` in bytes."""

    guid: uuid.UUID
    size: int
    partitions: tuple[Partition, ...]

    def __getitem__(self, role: Role) -> Partition:
        return next(partition for partition in self.partitions if partition.role is role)


def layout(size: int, firmware: Firmware, seed: str) -> Layout:
    """Place what `firmware` needs and a root partition that takes the rest of `size` bytes.

    Raises TemplateError when that is too small.
    """
    if size < SMALLEST:
        raise TemplateError(f"a disk of {size} bytes is too small: {SMALLEST // MIB} MiB are needed at least")
    wanted = [(Role.BIOS_BOOT, MIB)] * firmware.bios + [(Role.ESP, ESP_SIZE)] * firmware.uefi
    start, partitions = MIB, []
    for role, length in wanted:
        partitions.append(Partition(role, start, length, identifier(seed, role)))
        start += length
    end = (size - MIB) // MIB * MIB  # the copy of the table takes the last 33 sectors
    partitions.append(Partition(Role.ROOT, start, end - start, identifier(seed, Role.ROOT)))
    return Layout(identifier(seed, "disk"), size // SECTOR * SECTOR, tuple(partitions))


def identifier(seed: str, purpose: str) -> uuid.UUID:
    """The same UUID for the same seed and purpose, everywhere (RFC 9562, version 5)."""
    return uuid.uuid5(_SEED, f"{seed}/{purpose}")


def sfdisk_script(disk: Layout) -> str:
    """The table as sfdisk(8) reads it."""
    lines = ["label: gpt", f"label-id: {str(disk.guid).upper()}", "unit: sectors", f"sector-size: {SECTOR}", ""]
    lines += [
        f"start={partition.start // SECTOR}, size={partition.size // SECTOR}, type={_TYPES[partition.role]}, "
        f'uuid={str(partition.guid).upper()}, name="{partition.role}"'
        for partition in disk.partitions
    ]
    return "\n".join(lines) + "\n"


def write(disk: Layout, path: Path) -> None:
    """Make `path` a sparse file of the disk's size and write the table into it; what was in it stays where it is."""
    with path.open("ab") as file:
        file.truncate(disk.size)
    sfdisk = process.find("sfdisk", package="fdisk")
    keep = ["--wipe", "never", "--wipe-partitions", "never"]
    argv = [sfdisk, "--quiet", "--no-reread", "--no-tell-kernel", *keep, str(path)]
    process.run(argv, input=sfdisk_script(disk).encode(), timeout=60)
