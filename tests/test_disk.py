"""Disk images through the real qemu-img: what is made, what is refused, and that nothing is left half done."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imagebuilder.errors import CommandError, ImgbuildError, StoreError
from imagebuilder.image import disk
from imagebuilder.image.header import read_header
from tests.images import MIB, fails_midway, filled, names, needs_qemu_img, same

pytestmark = needs_qemu_img


@pytest.mark.parametrize("format", ["qcow2", "raw"])
def test_a_new_image_has_its_size_and_nothing_in_it(tmp_path: Path, format: str) -> None:
    disk.create(tmp_path / "d", 64 * MIB, format)
    found = disk.info(tmp_path / "d")
    assert (found.format, found.virtual_size, found.backing) == (format, 64 * MIB, None)
    assert found.actual_size < MIB
    assert names(tmp_path) == ["d"]


def test_create_takes_more_options_of_qemu_img(tmp_path: Path) -> None:
    disk.create(tmp_path / "d", MIB, "qcow2", ["-o", "cluster_size=2M"])
    shown = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", str(tmp_path / "d")]))
    assert shown["cluster-size"] == 2 * MIB


def test_a_failed_create_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="qemu-img"):
        disk.create(tmp_path / "d", MIB, "qcow2", ["-o", "cluster_size=17"])
    assert names(tmp_path) == []


@pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
def test_an_overlay_names_its_backing_file_and_its_format(tmp_path: Path, relative: bool) -> None:
    base = filled(tmp_path / "base.qcow2")
    before = base.read_bytes()
    disk.overlay(tmp_path / "over", base, "qcow2", 16 * MIB, relative=relative)
    shown = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", str(tmp_path / "over")]))
    assert shown["backing-filename"] == ("base.qcow2" if relative else str(base))
    assert shown["backing-filename-format"] == "qcow2"
    assert disk.info(tmp_path / "over").virtual_size == 16 * MIB
    assert base.read_bytes() == before


def test_a_raw_image_with_a_guests_bytes_in_front_is_not_opened_as_they_say(tmp_path: Path) -> None:
    """An overlay on a raw image has the format written down, so a guest can't make its disk lead elsewhere."""
    base = tmp_path / "base.raw"
    base.write_bytes(b"QFI\xfb" + bytes(MIB))
    disk.overlay(tmp_path / "over", base, "raw")
    shown = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", str(tmp_path / "over")]))
    assert shown["backing-filename-format"] == "raw"


def evil(tmp_path: Path, *arguments: str) -> Path:
    folder = tmp_path / "downloads"
    folder.mkdir(exist_ok=True)
    subprocess.run(
        ["qemu-img", "create", "-q", "-u", "-f", "qcow2", *arguments, str(folder / "evil"), "1M"], check=True
    )
    return folder / "evil"


@pytest.mark.parametrize(
    "arguments",
    [
        ("-b", "/etc/passwd", "-F", "raw"),
        ("-b", "../secret", "-F", "raw"),
        ("-b", "json:{\"driver\":\"file\",\"filename\":\"/etc/passwd\"}", "-F", "raw"),
        ("-b", "nbd://localhost/x", "-F", "raw"),
    ],
    ids=["absolute", "upward", "json", "network"],
)  # fmt: skip
def test_an_image_that_leads_elsewhere_is_refused(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    with pytest.raises(ImgbuildError, match="outside its directory") as caught:
        disk.info(evil(tmp_path, *arguments))
    assert "flatten" in str(caught.value.hint)


def test_an_image_with_its_data_elsewhere_is_refused(tmp_path: Path) -> None:
    path = evil(tmp_path, "-o", f"data_file={tmp_path}/outside.raw")
    with pytest.raises(ImgbuildError, match=r"outside\.raw"):
        disk.info(path)


def test_a_descriptor_that_names_other_files_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "d.vmdk"
    path.write_text('# Disk DescriptorFile\nversion=1\ncreateType="monolithicFlat"\nRW 1 FLAT "/etc/passwd" 0\n')
    with pytest.raises(ImgbuildError, match="extents"):
        disk.info(path)


def test_a_chain_is_followed_when_asked_and_inside_its_directory(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    base = filled(folder / "base")
    disk.overlay(folder / "near", base, "qcow2")
    assert disk.info(folder / "near").backing == base
    disk.overlay(tmp_path / "far", base, "qcow2")
    assert disk.info(tmp_path / "far").backing == base  # below its directory
    disk.overlay(folder / "away", filled(tmp_path / "other"), "qcow2")
    with pytest.raises(ImgbuildError):
        disk.info(folder / "away")
    assert disk.info(folder / "away", follow=True).backing == tmp_path / "other"


@pytest.mark.parametrize("format", ["qcow2", "raw", "vmdk", "vdi", "vhdx", "vpc", "qed"])
def test_every_format_is_told_by_its_first_bytes(tmp_path: Path, format: str) -> None:
    path = filled(tmp_path / "d", format=format)
    assert read_header(path).format == format
    assert disk.info(path).format == format


@pytest.mark.parametrize("content", [b"QFI\xfb", b"QFI\xfb" + b"\xff" * 200, b"QFI\xfb\0\0\0\3" + b"\xff" * 60])
def test_a_damaged_header_is_said(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d").write_bytes(content)
    with pytest.raises(ImgbuildError, match="damaged"):
        disk.info(tmp_path / "d")


def test_no_image_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="No such file"):
        disk.info(tmp_path / "nothing")


NAMES = ["image", "my image", "a,b=c", "nbd:host", "-q"]


@pytest.mark.parametrize("format", ["qcow2", "raw"])
@pytest.mark.parametrize("name", NAMES)
def test_an_overlay_takes_in_what_lies_between_it_and_the_image_below(tmp_path: Path, format: str, name: str) -> None:
    base = filled(tmp_path / "base", format=format).rename(tmp_path / name)
    (tmp_path / "link").symlink_to(base)
    disk.overlay(tmp_path / "middle", tmp_path / "link", format, relative=True)
    subprocess.run(["qemu-io", "-c", "write -q -P 7 3M 64k", str(tmp_path / "middle")], check=True)
    disk.overlay(tmp_path / "top", tmp_path / "middle", "qcow2", relative=True)
    disk.convert(tmp_path / "top", "qcow2", tmp_path / "whole", format="raw")
    before = base.read_bytes()
    disk.rebase(tmp_path / "top", tmp_path / "link")
    (tmp_path / "middle").unlink()
    (tmp_path / "link").unlink()
    shown = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", str(tmp_path / "top")]))
    assert (shown["backing-filename"], shown["backing-filename-format"]) == (str(base), format)
    assert same(tmp_path / "top", tmp_path / "whole") and not same(tmp_path / "top", base)
    assert base.read_bytes() == before


def test_an_image_can_not_be_put_on_what_is_not_there(tmp_path: Path) -> None:
    disk.overlay(tmp_path / "top", filled(tmp_path / "base"), "qcow2")
    before = (tmp_path / "top").read_bytes()
    with pytest.raises(StoreError, match="No such file"):
        disk.rebase(tmp_path / "top", tmp_path / "nothing")
    assert (tmp_path / "top").read_bytes() == before


def test_an_image_grows_and_never_shrinks(tmp_path: Path) -> None:
    path = filled(tmp_path / "d")
    disk.resize(path, 32 * MIB, "qcow2")
    assert disk.info(path).virtual_size == 32 * MIB
    with pytest.raises(ImgbuildError, match=r"can't be shrunk to 8\.0 MiB"):
        disk.resize(path, 8 * MIB, "qcow2")


@pytest.mark.parametrize(
    ("format", "compression"),
    [("qcow2", "zstd"), ("qcow2", "zlib"), ("qcow2", None), ("raw", None), ("vdi", None)],
    ids=str,
)
def test_a_conversion_holds_the_same_disk(tmp_path: Path, format: str, compression: disk.Compression | None) -> None:
    source = filled(tmp_path / "source.qcow2", size=64 * MIB)
    seen: list[float] = []
    disk.convert(
        source, "qcow2", tmp_path / "target", format=format, compression=compression, progress=seen.append
    )  # fmt: skip
    assert same(source, tmp_path / "target")
    found = disk.info(tmp_path / "target")
    assert found.format == format
    assert seen == sorted(seen) and seen[-1] == 100
    if compression:
        assert found.compression == compression
        assert disk.is_compressed(tmp_path / "target")
        assert found.actual_size < disk.info(source).actual_size * 0.8
    assert names(tmp_path) == ["source.qcow2", "target"]


def test_a_conversion_flattens_an_overlay(tmp_path: Path) -> None:
    disk.overlay(tmp_path / "over", filled(tmp_path / "base"), "qcow2")
    disk.convert(tmp_path / "over", "qcow2", tmp_path / "flat", format="qcow2", compression="zstd")
    assert disk.info(tmp_path / "flat").backing is None
    assert same(tmp_path / "base", tmp_path / "flat")


def test_a_failed_conversion_leaves_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("before")
    (tmp_path / "source").write_bytes(b"no qcow2")
    with pytest.raises(CommandError):
        disk.convert(tmp_path / "source", "qcow2", tmp_path / "target", format="raw")
    assert (tmp_path / "target").read_text() == "before"
    assert names(tmp_path) == ["source", "target"]


def test_too_little_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "qemu-img"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n[ $1 = measure ] && echo '{\"required\": 1152921504606846976}' || exit 9\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    with pytest.raises(StoreError, match=r"free, and the image needs about 134217728\.0 GiB") as caught:
        disk.convert(tmp_path / "s", "qcow2", tmp_path / "t", format="qcow2", compression="zstd")
    assert "more" in str(caught.value.hint)
    assert names(tmp_path) == ["bin"]


def test_a_disk_that_becomes_full_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "source")
    full = 'echo "qemu-img: error: No space left on device" >&2; exit 1'
    script = f'case "$1" in convert) {full};; *) exec "$real" "$@";; esac'
    fails_midway(monkeypatch, tmp_path, "qemu-img", script)
    with pytest.raises(StoreError, match="became full while 'target' was written"):
        disk.convert(tmp_path / "source", "qcow2", tmp_path / "target", format="raw")
    assert names(tmp_path) == ["fake-bin", "source"]


CONVERT = """
import sys
from pathlib import Path
from imagebuilder.image import disk
folder = Path(sys.argv[1])
disk.convert(folder / "source", "qcow2", folder / "target", format="qcow2", extra=["-r", "1M"], progress=print)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["SIGKILL", "SIGINT"])
def test_a_killed_conversion_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    filled(tmp_path / "source", size=64 * MIB)
    child = subprocess.Popen(
        [sys.executable, "-u", "-c", CONVERT, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert child.stdout is not None
        while len(names(tmp_path)) == 1:  # until there is something unfinished
            assert child.stdout.readline()
        child.send_signal(number)
        child.wait(10)
    finally:
        child.kill()
        child.communicate()
    end = time.monotonic() + 10
    while (names(tmp_path) != ["source"] or left(tmp_path)) and time.monotonic() < end:
        time.sleep(0.05)
    assert names(tmp_path) == ["source"]
    assert left(tmp_path) == []


def left(directory: Path) -> list[str]:
    """Processes that name the directory."""
    return [line for line in running() if str(directory) in line]


def running() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
            except OSError:
                continue
    return found
