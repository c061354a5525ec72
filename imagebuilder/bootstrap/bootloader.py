"""GRUB 2 on a disk that is only a file: no loop device, no mount, no root.

What `grub-install` would do through a block device is done here to bytes: BIOS starts boot.img in the first sector,
which reads core.img out of the BIOS boot partition (GRUB manual, "BIOS installation"; offsets of
include/grub/i386/pc/boot.h and grub-core/boot/i386/pc/diskboot.S); UEFI starts EFI/BOOT/BOOTX64.EFI of the EFI system
partition (UEFI 2.10, section 3.5.1.1). Both images come from the image's own packages, built by `grub-mkimage` in it.
"""

from __future__ import annotations

import os
import struct
import uuid
from dataclasses import dataclass
from pathlib import Path

from imagebuilder import process
from imagebuilder.bootstrap.partition import SECTOR, Layout, Partition, Role
from imagebuilder.errors import ImgbuildError

_PARAMETERS = slice(0x03, 0x5A)  # the BIOS parameter block of a disk that has one
_KERNEL_SECTOR = 0x5C  # 64 bits: where core.img begins
_DRIVE_CHECK = 0x66  # a jump over the check for a BIOS that passes a wrong boot drive
_TABLE = slice(0x1B8, 0x1FE)  # disk signature and the partition table that protects the GPT
_BLOCK_LIST = SECTOR - 12  # in core.img's first sector: start (64 bits), sectors (16 bits), segment (16 bits)

CORE_MODULES = {
    "i386-pc": "biosdisk part_gpt ext2 search_fs_uuid normal configfile linux echo test serial terminal",
    "x86_64-efi": "part_gpt fat ext2 search_fs_uuid normal configfile linux echo test serial terminal",
}
"""What is built into core.img, so that the disk starts without reading one module; the others lie in /boot/grub."""


@dataclass(frozen=True)
class Images:
    """What GRUB's tools made; those the disk's firmware doesn't need are empty."""

    boot: bytes = b""  # boot.img
    core: bytes = b""  # core.img of i386-pc
    efi: bytes = b""  # an x86-64 UEFI application


def first_sector(boot: bytes, present: bytes, core_sector: int) -> bytes:
    """boot.img made to fit a disk: `present` is what the partitioner wrote into the first sector."""
    if len(boot) != SECTOR or len(present) != SECTOR or boot[-2:] != b"\x55\xaa":
        raise ImgbuildError("GRUB's boot.img is not a boot sector", hint="is the package grub-pc-bin whole?")
    sector = bytearray(boot)
    sector[_PARAMETERS] = present[_PARAMETERS]
    sector[_TABLE] = present[_TABLE]
    struct.pack_into("<Q", sector, _KERNEL_SECTOR, core_sector)
    sector[_DRIVE_CHECK : _DRIVE_CHECK + 2] = b"\x90\x90"  # a hard disk: check (GRUB's setup does the same)
    return bytes(sector)


def embedded_core(core: bytes, core_sector: int) -> bytes:
    """core.img told where the rest of it lies: in one piece, right behind its first sector."""
    sectors = -(-len(core) // SECTOR)
    padded = bytearray(core.ljust(sectors * SECTOR, b"\0"))
    _, _, segment = struct.unpack_from("<QHH", padded, _BLOCK_LIST)
    struct.pack_into("<QHH", padded, _BLOCK_LIST, core_sector + 1, sectors - 1, segment)
    return bytes(padded)


def early_config(root: uuid.UUID) -> str:
    """What core.img does first: find the root file system, go on with its grub.cfg."""
    return f"search.fs_uuid {root} root\nset prefix=($root)/boot/grub\n"


def grub_config(title: str, root: uuid.UUID, kernel_arguments: str) -> str:
    """The first grub.cfg; `@VERSION@` stands for the kernel's. The image's own update-grub replaces it later."""
    return f"""\
# Written when the image was made; update-grub in the image writes its own over it.
serial --unit=0 --speed=115200
terminal_input console serial
terminal_output console serial
set timeout=0
menuentry '{title}' {{
    search --no-floppy --fs-uuid --set=root {root}
    linux /boot/vmlinuz-@VERSION@ root=UUID={root} ro {kernel_arguments}
    initrd /boot/initrd.img-@VERSION@
}}
"""


def grub_defaults(kernel_arguments: str) -> str:
    """/etc/default/grub.d: what update-grub in the image needs to know to write a grub.cfg like ours."""
    return (
        f'GRUB_TIMEOUT=0\nGRUB_CMDLINE_LINUX_DEFAULT=""\nGRUB_CMDLINE_LINUX="{kernel_arguments}"\n'
        'GRUB_TERMINAL="console serial"\nGRUB_SERIAL_COMMAND="serial --unit=0 --speed=115200"\n'
        "GRUB_DISABLE_OS_PROBER=true\n"
    )


def install(images: Images, disk: Layout, path: Path, work: Path) -> None:
    """Put the boot loader into the disk image at `path`, which has its partition table already."""
    roles = {partition.role for partition in disk.partitions}
    if Role.BIOS_BOOT in roles:
        _install_bios(images, disk[Role.BIOS_BOOT], path)
    if Role.ESP in roles:
        _install_uefi(images.efi, disk[Role.ESP], path, work)


def _install_bios(images: Images, place: Partition, path: Path) -> None:
    if len(images.core) > place.size:
        raise ImgbuildError(f"GRUB's core.img ({len(images.core)} bytes) is larger than its partition")
    with path.open("r+b") as disk:
        present = disk.read(SECTOR)
        disk.seek(0)
        disk.write(first_sector(images.boot, present, place.start // SECTOR))
        disk.seek(place.start)
        disk.write(embedded_core(images.core, place.start // SECTOR))


def _install_uefi(application: bytes, place: Partition, path: Path, work: Path) -> None:
    with process.temporary_path(work / "esp.img") as esp, process.temporary_path(work / "BOOTX64.EFI") as loader:
        loader.write_bytes(application)
        with esp.open("wb") as file:
            file.truncate(place.size)
        serial = f"{place.guid.int & 0xFFFFFFFF:08X}"
        mkfs = process.find("mkfs.vfat", package="dosfstools")
        process.run(
            [mkfs, "-F", "32", "-s", "1", "-n", "ESP", "-i", serial, "--invariant", esp], timeout=60
        )  # fmt: skip
        process.run([process.find("mmd", package="mtools"), "-i", esp, "::/EFI", "::/EFI/BOOT"], timeout=60)
        process.run([process.find("mcopy", package="mtools"), "-m", "-i", esp, loader, "::/EFI/BOOT/"], timeout=60)
        copy_sparse(esp, path, place.start)


def copy_sparse(source: Path, target: Path, offset: int) -> None:
    """Write the data of a sparse file into another at `offset` bytes, leaving out what is empty."""
    with source.open("rb") as reader, target.open("r+b") as writer:
        end = os.fstat(reader.fileno()).st_size
        position = 0
        while position < end:
            try:
                position = os.lseek(reader.fileno(), position, os.SEEK_DATA)
            except OSError:  # ENXIO: no data behind this
                return
            stop = os.lseek(reader.fileno(), position, os.SEEK_HOLE)
            reader.seek(position)
            writer.seek(offset + position)
            while position < stop:
                chunk = reader.read(min(stop - position, 2**20))
                writer.write(chunk)
                position += len(chunk)
