from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.errors import ImgbuildError
from imagebuilder.qemu import firmware


def describe(directory: Path, name: str, *features: str, architecture: str = "x86_64", **changed: Any) -> Path:
    """A descriptor with flash images of its own, as distributions ship them."""
    directory.mkdir(parents=True, exist_ok=True)
    images = {kind: directory / f"{name}.{kind}.fd" for kind in ("code", "vars")}
    for image in images.values():
        image.write_bytes(b"fd")
    document: dict[str, Any] = {
        "interface-types": ["uefi"],
        "mapping": {
            "device": "flash",
            "executable": {"filename": str(images["code"]), "format": "raw"},
            "nvram-template": {"filename": str(images["vars"]), "format": "qcow2"},
        },
        "targets": [{"architecture": architecture, "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": list(features),
    }
    path = directory / f"{name}.json"
    path.write_text(json.dumps({**document, **changed}))
    return path


def found(*directories: Path, machine_type: str = "q35", secure_boot: bool = False) -> str:
    """The name of the descriptor that is chosen."""
    chosen = firmware.find("x86_64", machine_type, secure_boot=secure_boot, directories=directories)
    return chosen.code.name.partition(".")[0]


def test_first_name_wins_among_those_that_fit(tmp_path: Path) -> None:
    describe(tmp_path, "40-secure", "secure-boot", "enrolled-keys", "requires-smm")
    describe(tmp_path, "50-arm", architecture="aarch64")
    describe(tmp_path, "60-plain")
    describe(tmp_path, "70-other")
    assert found(tmp_path) == "60-plain"
    assert found(tmp_path, machine_type="pc") == "60-plain"
    assert found(tmp_path, machine_type="pc-q35-7.2") == "60-plain"
    assert found(tmp_path, secure_boot=True) == "40-secure"


def test_what_a_descriptor_says_is_taken_over(tmp_path: Path) -> None:
    describe(tmp_path, "1", "secure-boot", "enrolled-keys", "requires-smm")
    chosen = firmware.find("x86_64", "q35", secure_boot=True, directories=[tmp_path])
    assert chosen == firmware.Firmware(
        tmp_path / "1.code.fd", tmp_path / "1.vars.fd", "raw", "qcow2", smm=True, secure_boot=True
    )


def test_secure_boot_without_keys_boots_anything(tmp_path: Path) -> None:
    describe(tmp_path, "1", "secure-boot", "requires-smm")
    assert found(tmp_path) == "1"
    with pytest.raises(ImgbuildError, match="Secure Boot"):
        found(tmp_path, secure_boot=True)


def test_the_persons_directory_hides_and_replaces(tmp_path: Path) -> None:
    system, user = tmp_path / "system", tmp_path / "user"
    describe(system, "50")
    describe(system, "60")
    describe(user, "60")
    (user / "50.json").touch()
    assert firmware.descriptors([system, user]) == [user / "60.json"]
    (user / "60.json").unlink()
    (user / "60.json").symlink_to("/dev/null")
    assert firmware.descriptors([system, user]) == []


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"mapping": 5, "targets": [], "interface-types": []}',
        '{"mapping": {}, "targets": 1, "interface-types": []}',
    ],
)
def test_descriptors_that_make_no_sense_are_passed_over(content: str, tmp_path: Path) -> None:
    (tmp_path / "1.json").write_text(content)
    describe(tmp_path, "2")
    assert found(tmp_path) == "2"


@pytest.mark.parametrize(
    "changed",
    [
        {"interface-types": ["bios"]},
        {"mapping": {"device": "memory", "filename": "/x"}},
        {"targets": [{"architecture": "x86_64", "machines": ["microvm"]}]},
    ],
    ids=["bios", "memory", "machine"],
)
def test_what_does_not_fit_is_passed_over(changed: dict[str, Any], tmp_path: Path) -> None:
    describe(tmp_path, "1", **changed)
    with pytest.raises(ImgbuildError, match="no UEFI firmware"):
        found(tmp_path)


def test_descriptor_of_a_missing_image_is_passed_over(tmp_path: Path) -> None:
    describe(tmp_path, "1")
    (tmp_path / "1.vars.fd").unlink()
    with pytest.raises(ImgbuildError) as caught:
        found(tmp_path)
    assert caught.value.hint is not None and "apt-get install ovmf" in caught.value.hint


def test_secure_boot_on_the_old_machine_type_has_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ImgbuildError) as caught:
        found(tmp_path, machine_type="pc", secure_boot=True)
    assert caught.value.hint == "Secure Boot needs 'machine_type': 'q35'"


def test_given_images_may_be_raw_or_qcow2(tmp_path: Path) -> None:
    code, variables = tmp_path / "code.fd", tmp_path / "vars.qcow2"
    code.write_bytes(b"raw bytes")
    variables.write_bytes(b"QFI\xfb rest")
    chosen = firmware.given(code, variables)
    assert (chosen.code_format, chosen.vars_format) == ("raw", "qcow2")
    with pytest.raises(ImgbuildError, match=r"nothing\.fd' does not exist"):
        firmware.given(code, tmp_path / "nothing.fd")
