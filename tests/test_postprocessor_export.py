"""Other hypervisors' formats: the same disk in each of them, and a well-formed OVA."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from imagebuilder.errors import ImgbuildError
from imagebuilder.image import disk, ovf
from imagebuilder.plugins import Artifact, Processed
from imagebuilder.postprocessors.export import FORMATS, Export, ExportOptions
from tests.images import MIB, built, context, fails_midway, names, needs_qemu_img, quiet, same

pytestmark = needs_qemu_img


def export(artifact: Artifact, directory: Path, **keys: Any) -> Processed:
    output = f"{directory}/x{{{{.Disk}}}}.{{{{.Extension}}}}"
    return Export(ExportOptions.model_validate({"output": output, **keys}), context()).process(artifact, quiet())


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "ova"])
def test_every_format_holds_the_same_disk(tmp_path: Path, name: str) -> None:
    made = built(tmp_path / "out")
    done = export(made, tmp_path, format=name)
    (file,) = done.artifact.files
    assert file.suffix == f".{FORMATS[name].extension}"
    found = disk.info(file)
    assert (found.format, found.virtual_size) == (FORMATS[name].driver, 8 * MIB)
    assert same(made.disks[0].path, file)
    assert done.keep_input is True
    assert done.artifact.disks[0].format == FORMATS[name].driver
    assert names(tmp_path) == ["out", file.name]


def test_all_disks_in_several_formats(tmp_path: Path) -> None:
    done = export(built(tmp_path / "out", disks=2), tmp_path, formats=["vmdk", "vhdx"])
    assert [file.name for file in done.artifact.files] == ["x.vmdk", "x-1.vmdk", "x.vhdx", "x-1.vhdx"]
    shown = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", str(tmp_path / "x-1.vmdk")]))
    assert shown["format-specific"]["data"]["create-type"] == "streamOptimized"


def test_a_fixed_vhd_keeps_its_exact_size(tmp_path: Path) -> None:
    export(built(tmp_path / "out"), tmp_path, format="vhd", vhd_subformat="fixed")
    assert (tmp_path / "x.vhd").stat().st_size == 8 * MIB + 512
    assert (tmp_path / "x.vhd").read_bytes()[-512:-504] == b"conectix"


def test_an_ova_is_a_description_its_digests_and_the_disks(tmp_path: Path) -> None:
    made = built(tmp_path / "out", disks=2)
    export(made, tmp_path, format="ova", ova_cpus=2, ova_memory=2048)
    with tarfile.open(tmp_path / "x.ova") as archive:
        assert archive.getnames() == ["x.ovf", "x.mf", "x-disk1.vmdk", "x-disk2.vmdk"]
        archive.extractall(tmp_path / "open", filter="data")
    assert (tmp_path / "x.ova").read_bytes()[257:263] == b"ustar\0"
    for line in (tmp_path / "open" / "x.mf").read_text().splitlines():
        name, digest = re.fullmatch(r"SHA256\((.*)\)= ([0-9a-f]{64})", line).groups()  # type: ignore[union-attr]
        assert hashlib.sha256((tmp_path / "open" / name).read_bytes()).hexdigest() == digest
    for number, image in enumerate(made.disks, 1):
        assert same(image.path, tmp_path / "open" / f"x-disk{number}.vmdk")
    tree = ElementTree.parse(tmp_path / "open" / "x.ovf")
    space = {"o": "http://schemas.dmtf.org/ovf/envelope/1"}
    key = f"{{{space['o']}}}"
    for file in tree.findall("o:References/o:File", space):
        assert int(file.get(f"{key}size") or 0) == (tmp_path / "open" / (file.get(f"{key}href") or "")).stat().st_size
    assert [one.get(f"{key}capacity") for one in tree.findall("o:DiskSection/o:Disk", space)] == [str(8 * MIB)] * 2
    assert names(tmp_path) == ["open", "out", "x.ova"]


@pytest.mark.parametrize("controller", list(ovf.Controller))
def test_the_description(controller: ovf.Controller, golden: Callable[[str, str], None]) -> None:
    images = [ovf.Image("centos-disk1.vmdk", 1234, 10 * 2**30), ovf.Image("centos-disk2.vmdk", 99, 2**30)]
    golden(f"ovf/{controller}.ovf", ovf.descriptor(ovf.Machine("centos <9>", 2, 2048, controller), images))


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImgbuildError, match="to two files"):
        export(built(tmp_path / "out", disks=2), tmp_path, format="raw", output=f"{tmp_path}/x.raw")
    assert names(tmp_path) == ["out"]


def test_the_artifacts_own_file_is_not_overwritten(tmp_path: Path) -> None:
    made = built(tmp_path / "out")
    with pytest.raises(ImgbuildError, match="own file"):
        export(made, tmp_path, format="qcow2", output=str(made.files[0]))
    assert made.files[0].exists()


def test_all_files_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = built(tmp_path / "out")
    script = 'case "$*" in *vhdx*) echo no luck >&2; exit 1;; *) exec "$real" "$@";; esac'
    fails_midway(monkeypatch, tmp_path, "qemu-img", script)
    with pytest.raises(ImgbuildError, match="no luck"):
        export(made, tmp_path, formats=["vmdk", "vhdx"])
    assert names(tmp_path) == ["fake-bin", "out"]


def test_what_is_wrong_is_said_before_the_build() -> None:
    assert [key for key, _ in ExportOptions().problems()] == ["format"]
    (problem,) = ExportOptions(formats=("vmkd",)).problems()
    assert "did you mean 'vmdk'" in problem[1]
