"""What `imgbuild boot` takes for the image, and the line it hands to the person."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from imagebuilder import trial
from imagebuilder.errors import ImgbuildError

MANIFEST = """{{"build_name": "b", "builder_type": "qemu", "created": "2026-11-21T00:00:00Z", "firmware": "{firmware}",
 "files": [{{"name": "d", "size": 1, "sha256": "{sum}", "kind": "{kind}", "format": "qcow2"}}]}}"""


def image(directory: Path, firmware: str = "bios", kind: str = "disk") -> Path:
    (directory / "d").write_bytes(b"x")
    (directory / "manifest.json").write_text(MANIFEST.format(firmware=firmware, sum="0" * 64, kind=kind))
    return directory


@pytest.mark.parametrize(("firmware", "efi"), [("bios", False), ("uefi", True)])
def test_the_manifest_says_disk_and_firmware(tmp_path: Path, firmware: str, efi: bool) -> None:
    assert trial.disk_of(image(tmp_path, firmware)) == (tmp_path / "d", efi)


def test_a_file_is_a_disk(tmp_path: Path) -> None:
    assert trial.disk_of(image(tmp_path) / "d") == (tmp_path / "d", False)


def test_what_is_no_image_is_said(tmp_path: Path) -> None:
    with pytest.raises(ImgbuildError, match="no image"):
        trial.disk_of(tmp_path)
    with pytest.raises(ImgbuildError, match="no disk"):
        trial.disk_of(image(tmp_path, kind="other"))


def test_the_line_for_the_person_quotes_commas() -> None:
    words = shlex.split(trial.command_line(Path("/a,b/disk"), "raw"))
    assert "file=/a,,b/disk,format=raw,if=virtio" in words
    assert "-snapshot" in words


def test_the_line_for_uefi_names_the_firmware() -> None:
    if not shutil.which("qemu-system-x86_64") or not Path("/usr/share/qemu/firmware").is_dir():
        pytest.skip("needs QEMU's firmware descriptors (package ovmf)")
    assert "if=pflash" in trial.command_line(Path("/disk"), "qcow2", efi=True)
