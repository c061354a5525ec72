"""Floppy images, read back by mtools and checked by fsck.fat."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from imagebuilder.errors import TemplateError
from imagebuilder.media.floppy import write_floppy

FILES: dict[str, bytes | Path] = {
    "ks.cfg": b"text\n",
    "README": b"upper",
    "Autounattend.xml": b"<x/>" * 500,
    "a long name with spaces.conf": b"long",
    "a long name with spaces.config": b"longer",
    "sub/deeper/user-data": b"#cloud-config\n",
    "sub/.hidden": b"dot",
    "sub/empty file": b"",
    "N\u00e4me \u65e5\u672c.txt": b"unicode",
    "void/": b"",
    **{f"many/file-number-{number}.txt": str(number).encode() for number in range(40)},
}

needs_mtools = pytest.mark.skipif(shutil.which("mcopy") is None, reason="mtools is not installed")


def names(files: dict[str, bytes | Path]) -> list[str]:
    return sorted(name for name in files if not name.endswith("/"))


@needs_mtools
def test_mtools_reads_every_file_back(tmp_path: Path) -> None:
    image, out = tmp_path / "floppy.img", tmp_path / "out"
    write_floppy(image, FILES, "packer")
    assert image.stat().st_size == 1_474_560
    out.mkdir()
    environment = {"MTOOLS_SKIP_CHECK": "0", "LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"}
    subprocess.run(["mcopy", "-s", "-n", "-i", image, "::*", out], check=True, env=environment)
    read = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert read == {name: FILES[name] for name in names(FILES)}
    assert (out / "void").is_dir()
    listing = subprocess.run(["mdir", "-i", image, "::"], check=True, env=environment, capture_output=True, text=True)
    assert "Volume in drive : is PACKER" in listing.stdout


@pytest.mark.skipif(shutil.which("fsck.fat") is None, reason="dosfstools is not installed")
def test_fsck_finds_nothing(tmp_path: Path) -> None:
    image = tmp_path / "floppy.img"
    write_floppy(image, FILES)
    checked = subprocess.run(["fsck.fat", "-n", "-v", image], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    assert "FATs differ" not in checked.stdout
    assert "54 files, 62/2847 clusters" in checked.stdout


@pytest.mark.skipif(shutil.which("blkid") is None, reason="blkid is not installed")
@pytest.mark.parametrize("label", ["cidata", "OEMDRV", "MY LABEL-1"])
def test_blkid_reads_the_label(label: str, tmp_path: Path) -> None:
    write_floppy(tmp_path / "floppy.img", {"a": b"b"}, label)
    argv = ["blkid", "-p", "-o", "value", "-s", "LABEL", "-s", "TYPE", tmp_path / "floppy.img"]
    assert subprocess.run(argv, check=True, capture_output=True, text=True).stdout == f"{label.upper()}\nvfat\n"


@needs_mtools
def test_a_file_that_just_fits_and_one_that_does_not(tmp_path: Path) -> None:
    big = tmp_path / "big.bin"
    big.write_bytes(bytes(range(256)) * (2847 * 2))
    write_floppy(tmp_path / "full.img", {"BIG.BIN": big})
    subprocess.run(["mcopy", "-i", tmp_path / "full.img", "::BIG.BIN", tmp_path / "back"], check=True)
    assert (tmp_path / "back").read_bytes() == big.read_bytes()
    with pytest.raises(TemplateError, match=r"need 1\.4 MiB, and 1\.4 MiB fit on it"):
        write_floppy(tmp_path / "over.img", {"BIG.BIN": big, "x": b"1"})
    assert not (tmp_path / "over.img").exists()
    assert not list(tmp_path.glob("*.tmp"))


def test_the_same_files_give_the_same_image(tmp_path: Path) -> None:
    write_floppy(tmp_path / "1.img", FILES)
    write_floppy(tmp_path / "2.img", dict(reversed(FILES.items())))
    assert (tmp_path / "1.img").read_bytes() == (tmp_path / "2.img").read_bytes()


@pytest.mark.parametrize(
    ("files", "label", "message"),
    [
        ({"a": b""}, "x" * 12, "the label 'xxxxxxxxxxxx' can't be a floppy's"),
        ({"a": b""}, "s\u00fcd", "the label 's\u00fcd' can't be"),
        ({"a:b": b""}, "p", "'a:b' is not a name that FAT allows"),
        ({"dir./x": b""}, "p", r"'dir\.' is not a name that FAT allows"),
        ({"a" * 256: b""}, "p", "is not a name that FAT allows"),
        ({"a": b"", "A": b""}, "p", "'A' and 'a' can't both be on a floppy"),
        ({"a": b"", "a/b": b""}, "p", "'a' would be both a file and a directory"),
        ({f"a longer name {n}": b"" for n in range(80)}, "p", "80 files are too many for the top"),
    ],
)
def test_what_can_not_be_on_a_floppy(files: dict[str, bytes | Path], label: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=message):
        write_floppy(tmp_path / "x.img", files, label)
