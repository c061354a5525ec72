"""ISO images: ours read back by other tools, other tools' read by us."""

from __future__ import annotations

import io
import random
import shutil
import subprocess
from pathlib import Path

import pycdlib
import pytest

from imagebuilder.errors import ImgbuildError, StoreError, TemplateError
from imagebuilder.media.iso import iso_label, iso_list, iso_read, write_iso

LONG = "x" * 200
FILES: dict[str, bytes | Path] = {
    "user-data": b"#cloud-config\n",
    "meta-data": b"",
    "README": b"upper",
    "readme": b"lower",
    "a.b.c": b"dots",
    "a/b/c/d/e/f/g/h/i/j/deep.txt": b"deep",
    f"{LONG}1.conf": b"long 1",
    f"{LONG}2.conf": b"long 2",
    "N\u00e4me with spaces \u65e5\u672c.txt": b"unicode",
    "face \U0001f600": b"beyond UCS-2",
    "nothing in it/": b"",
}


def tool(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(name) is None, reason=f"{name} is not installed")


def output(*argv: str | Path) -> str:
    return subprocess.run(argv, check=True, capture_output=True).stdout.decode(errors="replace")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("iso") / "ours.iso"
    write_iso(path, "cidata", FILES)
    return path


@tool("xorriso")
def test_xorriso_reads_every_file_back(image: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    output("xorriso", "-abort_on", "WARNING", "-osirrox", "on", "-indev", image, "-extract", "/", out)
    read = {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert read == {name: content for name, content in FILES.items() if not name.endswith("/")}
    assert (out / "nothing in it").is_dir()
    subprocess.run(["chmod", "-R", "u+w", out], check=True)


@tool("isoinfo")
def test_isoinfo_reads_the_joliet_names(image: Path) -> None:
    names = output("isoinfo", "-J", "-f", "-i", image).splitlines()
    assert {"/user-data", "/meta-data", "/README", "/readme", "/a/b/c/d/e/f/g/h/i/j/deep.txt"} <= set(names)
    long = [name for name in names if name.startswith("/xxx")]
    assert len(long) == 2
    assert all(len(name) <= 65 for name in long)
    assert output("isoinfo", "-J", "-i", image, "-x", "/user-data") == "#cloud-config\n"


@tool("blkid")
@pytest.mark.parametrize("label", ["cidata", "CIDATA", "OEMDRV", "CentOS-Stream-9-BaseOS-x86_64", "a" * 32, "S\u00fcd"])
def test_any_label_reads_back_as_it_was_written(label: str, tmp_path: Path) -> None:
    write_iso(tmp_path / "x.iso", label, {"a": b"b"})
    assert output("blkid", "-p", "-o", "value", "-s", "LABEL", tmp_path / "x.iso").rstrip("\n") == label
    assert iso_label(tmp_path / "x.iso") == label


@pytest.mark.parametrize(
    ("label", "message"), [("a" * 33, "too long for a CD: 33 bytes"), ("a\n", "can't be in a label")]
)
def test_a_label_that_can_not_be(label: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=message):
        write_iso(tmp_path / "x.iso", label, {})


def test_files_come_from_disk_with_their_executable_bit(tmp_path: Path) -> None:
    script = tmp_path / "run.sh"
    script.write_bytes(b"#!/bin/sh\n" * 100_000)
    script.chmod(0o755)
    write_iso(tmp_path / "x.iso", "x", {"bin/run.sh": script})
    iso_read(tmp_path / "x.iso", "bin/run.sh", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == script.read_bytes()
    if shutil.which("isoinfo"):
        assert "-r-xr-xr-x" in output("isoinfo", "-R", "-l", "-i", tmp_path / "x.iso")


def test_our_own_image_is_read(image: Path, tmp_path: Path) -> None:
    assert iso_list(image) == sorted(f"/{name}" for name in FILES if not name.endswith("/"))
    for name in ("a/b/c/d/e/f/g/h/i/j/deep.txt", "/readme", "README", f"{LONG}2.conf", "/./face \U0001f600"):
        iso_read(image, name, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == FILES[name.strip("/.")]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "install.amd").mkdir(parents=True)
    (root / "install.amd/vmlinuz").write_bytes(b"kernel" * 1000)
    (root / "install.amd/initrd.gz").write_bytes(b"initrd" * 1000)
    (root / "install").symlink_to("install.amd")
    (root / "install.amd/linux").symlink_to("../install/vmlinuz")
    (root / "loop").symlink_to("loop")
    return root


@tool("genisoimage")
@pytest.mark.parametrize(
    ("options", "inner"),
    [
        (["-R"], "/install.amd/vmlinuz"),
        (["-R"], "install/vmlinuz"),
        (["-R"], "install.amd/linux"),
        (["-R"], "INSTALL.AMD/VMLINUZ"),
        (["-J"], "install.amd/vmlinuz"),
        (["-J"], "Install.amd/VmLinuz"),
        (["-f"], "install.amd/vmlinuz"),
        (["-f"], "INSTALL.AMD/VMLINUZ.;1"),
        (["-udf"], "install.amd/vmlinuz"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_images_of_other_tools_are_read(options: list[str], inner: str, tree: Path, tmp_path: Path) -> None:
    (tree / "loop").unlink()
    output("genisoimage", "-quiet", *options, "-allow-multidot", "-V", "Debian 12", "-o", tmp_path / "x.iso", tree)
    iso_read(tmp_path / "x.iso", inner, tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"kernel" * 1000
    assert iso_label(tmp_path / "x.iso") == "Debian 12"


def test_a_file_that_only_udf_names(tmp_path: Path) -> None:
    image = pycdlib.PyCdlib()
    image.new(udf="2.60")
    image.add_fp(io.BytesIO(b"readme"), 6, "/README.TXT;1")
    image.add_directory(udf_path="/sources")
    image.add_fp(io.BytesIO(b"windows"), 7, udf_path="/sources/boot.wim")
    image.write(str(tmp_path / "x.iso"))
    image.close()
    iso_read(tmp_path / "x.iso", "SOURCES/boot.wim", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"windows"


@tool("genisoimage")
@pytest.mark.parametrize(
    ("inner", "hint"),
    [
        ("vmlinuz", "did you mean 'install.amd/vmlinuz'"),
        ("install.amd/vmlinux", "did you mean 'install.amd/vmlinuz'"),
        ("install.amd", "install.amd/"),
        ("loop", "did you mean 'loop'?"),
        ("quite/something/else", "at its top are 'install', 'install.amd', 'loop'"),
        ("", "at its top are"),
    ],
)
def test_a_missing_file_is_answered_with_what_there_is(inner: str, hint: str, tree: Path, tmp_path: Path) -> None:
    output("genisoimage", "-quiet", "-R", "-o", tmp_path / "x.iso", tree)
    with pytest.raises(ImgbuildError, match=f"has no file '{inner}'") as caught:
        iso_read(tmp_path / "x.iso", inner, tmp_path / "out")
    assert hint in str(caught.value.hint)
    assert not (tmp_path / "out").exists()


def test_what_is_no_image(tmp_path: Path) -> None:
    (tmp_path / "x.iso").write_bytes(b"<html>" * 20_000)
    with pytest.raises(ImgbuildError, match="is not an ISO 9660 image"):
        iso_label(tmp_path / "x.iso")
    with pytest.raises(ImgbuildError, match="can't be read as an ISO 9660 image"):
        iso_list(tmp_path / "x.iso")
    with pytest.raises(StoreError, match="No such file"):
        iso_list(tmp_path / "y.iso")


def test_damaged_images_give_an_error_and_no_file(image: Path, tmp_path: Path) -> None:
    whole, chance = image.read_bytes(), random.Random(7)
    for number in range(60):
        damaged = bytearray(whole[: chance.randrange(len(whole))] if number % 3 == 0 else whole)
        for _ in range(10):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        (tmp_path / "x.iso").write_bytes(damaged)
        (tmp_path / "out").unlink(missing_ok=True)
        try:
            iso_read(tmp_path / "x.iso", "user-data", tmp_path / "out")
        except ImgbuildError:
            assert not (tmp_path / "out").exists()
