"""GRUB as bytes: what is patched, what is kept; the FAT file system that firmware reads."""

from __future__ import annotations

import os
import shutil
import struct
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from imagebuilder import process
from imagebuilder.bootstrap import bootloader, partition
from imagebuilder.bootstrap.bootloader import Images
from imagebuilder.bootstrap.partition import MIB, Firmware, Role
from imagebuilder.errors import ImgbuildError

BOOT = bytes(range(256)) + bytes(254) + b"\x55\xaa"
PRESENT = bytes([0xEE]) * 510 + b"\x55\xaa"
ROOT = uuid.UUID("11111111-2222-3333-4444-555555555555")


def test_first_sector_keeps_the_table_and_points_to_core() -> None:
    sector = bootloader.first_sector(BOOT, PRESENT, 2048)
    assert len(sector) == 512 and sector[510:] == b"\x55\xaa"
    assert sector[:3] == BOOT[:3] and sector[0x5A:0x5C] == BOOT[0x5A:0x5C]
    assert sector[0x03:0x5A] == PRESENT[0x03:0x5A] and sector[0x1B8:0x1FE] == PRESENT[0x1B8:0x1FE]
    assert struct.unpack_from("<Q", sector, 0x5C) == (2048,)
    assert sector[0x64:0x66] == BOOT[0x64:0x66] and sector[0x66:0x68] == b"\x90\x90"
    assert sector[0x68:0x1B8] == BOOT[0x68:0x1B8]


@pytest.mark.parametrize("boot", [b"", BOOT[:-2] + b"\0\0", BOOT + b"\0"], ids=["empty", "no-signature", "long"])
def test_not_a_boot_sector(boot: bytes) -> None:
    with pytest.raises(ImgbuildError, match=r"boot\.img"):
        bootloader.first_sector(boot, PRESENT, 2048)


@pytest.mark.parametrize(("length", "sectors"), [(1024, 2), (1025, 3), (30000, 59)], ids=str)
def test_core_says_where_its_rest_lies(length: int, sectors: int) -> None:
    core = bytearray(os.urandom(length))
    struct.pack_into("<QHH", core, 500, 2, 7, 0x820)
    embedded = bootloader.embedded_core(bytes(core), 2048)
    assert len(embedded) == sectors * 512
    assert struct.unpack_from("<QHH", embedded, 500) == (2049, sectors - 1, 0x820)
    assert embedded[:500] == core[:500] and embedded[512:length] == core[512:]


def test_configurations(golden: Callable[[str, str], None]) -> None:
    parts = (
        bootloader.early_config(ROOT),
        bootloader.grub_config("Debian GNU/Linux", ROOT, "console=ttyS0"),
        bootloader.grub_defaults("console=ttyS0"),
    )
    golden("grub-config.txt", "\n".join(parts))


def test_a_core_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    disk = partition.layout(512 * MIB, Firmware.BIOS, "seed")
    (tmp_path / "disk").write_bytes(PRESENT)
    with pytest.raises(ImgbuildError, match="larger than its partition"):
        bootloader.install(Images(boot=BOOT, core=bytes(MIB + 1)), disk, tmp_path / "disk", tmp_path)


@pytest.mark.skipif(not all(map(shutil.which, ("sfdisk", "mkfs.vfat", "mcopy"))), reason="needs dosfstools and mtools")
def test_both_loaders_are_found_on_the_disk(tmp_path: Path) -> None:
    disk = partition.layout(512 * MIB, Firmware.BOTH, "seed")
    path = tmp_path / "disk.raw"
    partition.write(disk, path)
    core = b"core" * 5000
    bootloader.install(Images(boot=BOOT, core=core, efi=b"MZ application"), disk, path, tmp_path)
    esp, start = disk[Role.ESP], disk[Role.BIOS_BOOT].start
    found = process.run(["mtype", "-i", f"{path}@@{esp.start}", "::/EFI/BOOT/BOOTX64.EFI"]).stdout
    assert found == "MZ application"
    assert path.read_bytes()[start + 512 : start + len(core)] == core[512:]
    assert process.run(["sfdisk", "--verify", path]).returncode == 0
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["disk.raw"]


def test_sparse_copy(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.seek(5 * MIB)
        file.write(b"data" * 1000)
        file.truncate(16 * MIB)
    target.write_bytes(b"")
    os.truncate(target, 20 * MIB)
    bootloader.copy_sparse(source, target, MIB)
    assert target.read_bytes()[6 * MIB : 6 * MIB + 4000] == b"data" * 1000
    assert target.stat().st_size == 20 * MIB and target.stat().st_blocks * 512 < MIB
