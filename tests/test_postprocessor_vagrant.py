"""Boxes for vagrant-libvirt: what is in them, and that they are made without copying the disk first."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.errors import ImgbuildError
from imagebuilder.image import disk
from imagebuilder.plugins import Artifact
from imagebuilder.postprocessors.artifice import Artifice, ArtificeOptions
from imagebuilder.postprocessors.vagrant import Vagrant, VagrantOptions, metadata, vagrantfile
from tests.images import built, context, fails_midway, names, needs_qemu_img, quiet, same

pytestmark = needs_qemu_img


def box(artifact: Artifact, directory: Path, **keys: Any) -> Path:
    options = VagrantOptions.model_validate({"output": str(directory / "x.box"), **keys})
    done = Vagrant(options, context()).process(artifact, quiet())
    (file,) = done.artifact.files
    assert done.keep_input is None
    return file


def unpacked(file: Path) -> Path:
    target = file.with_suffix(".dir")
    target.mkdir()
    subprocess.run(["tar", "-xzf", file, "-C", target], check=True)
    return target


def test_metadata_and_vagrantfile(golden: Callable[[str, str], None]) -> None:
    golden("vagrant/metadata.json", metadata("amd64", 2))
    golden("vagrant/Vagrantfile", vagrantfile("kvm", "Vagrant.configure('2') { |c| c.vm.hostname = 'x' }\n"))


def test_a_box_has_all_disks(tmp_path: Path) -> None:
    made = built(tmp_path / "out", disks=2)
    found = unpacked(box(made, tmp_path))
    assert names(found) == ["Vagrantfile", "box_0.img", "box_1.img", "metadata.json"]
    assert json.loads((found / "metadata.json").read_text()) == {
        "architecture": "amd64",
        "disks": [{"format": "qcow2", "path": "box_0.img"}, {"format": "qcow2", "path": "box_1.img"}],
        "provider": "libvirt",
    }
    assert (found / "box_1.img").read_bytes() == made.disks[1].path.read_bytes()
    assert 'libvirt.driver = "qemu"' in (found / "Vagrantfile").read_text()
    assert names(tmp_path) == ["out", "x.box", "x.dir"]


def test_raw_disks_and_overlays_become_whole_qcow2(tmp_path: Path) -> None:
    made = built(tmp_path / "out", format="raw")
    found = unpacked(box(made, tmp_path))
    assert disk.info(found / "box_0.img").format == "qcow2"
    assert same(made.disks[0].path, found / "box_0.img")


def test_it_works_after_artifice(tmp_path: Path) -> None:
    made = built(tmp_path / "out", accelerator="kvm")
    chosen = Artifice(ArtificeOptions(files=(str(made.files[0]),)), context()).process(made, quiet()).artifact
    assert 'libvirt.driver = "kvm"' in (unpacked(box(chosen, tmp_path)) / "Vagrantfile").read_text()


def test_an_artifact_without_a_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImgbuildError, match="no disk image"):
        box(Artifact("x", "x", "some text", ()), tmp_path)


def test_files_of_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "info.json").write_text("{}")
    (tmp_path / "Own").write_text("# mine\n")
    made = built(tmp_path / "out")
    file = box(made, tmp_path, include=[str(tmp_path / "info.json")], vagrantfile_template=str(tmp_path / "Own"))
    found = unpacked(file)
    assert (found / "info.json").read_text() == "{}"
    assert (found / "Vagrantfile").read_text().endswith("end\n\n# mine\n")
    with pytest.raises(ImgbuildError, match=r"has a 'metadata\.json' already"):
        (tmp_path / "metadata.json").write_text("")
        box(made, tmp_path, include=[str(tmp_path / "metadata.json")])


def test_names_of_boxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = built(Path("out"))
    assert box(made, tmp_path, output=None) == Path("packer_tiny_libvirt.box")
    assert box(made, tmp_path, output=None, architecture="arm64") == Path("packer_tiny_libvirt_arm64.box")
    keys = {"override": {"libvirt": {"output": "{{.BuildName}}-{{.Architecture}}.box", "compression_level": 0}}}
    assert box(made, tmp_path, **keys) == Path("tiny-amd64.box")
    assert Path("tiny-amd64.box").stat().st_size > made.disks[0].path.stat().st_size


def test_what_is_wrong_is_said_before_the_build(tmp_path: Path) -> None:
    options = VagrantOptions.model_validate({
        "include": ["nothing"], "vagrantfile_template": "none", "provider_override": "virtualbox",
        "override": {"libvirt": {"include": ["neither"]}},
    })  # fmt: skip
    assert [key for key, _ in options.problems()] == [
        "include",
        "vagrantfile_template",
        "provider_override",
        "override",
    ]
    assert not list(VagrantOptions(vagrantfile_template="later", vagrantfile_template_generated=True).problems())


def test_a_failure_leaves_no_box_and_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = built(tmp_path / "out", format="raw")
    script = 'case "$1" in convert) echo no luck >&2; exit 1;; *) exec "$real" "$@";; esac'
    fails_midway(monkeypatch, tmp_path, "qemu-img", script)
    with pytest.raises(ImgbuildError, match="no luck"):
        box(made, tmp_path)
    assert names(tmp_path) == ["fake-bin", "out"]
    assert names(tmp_path / "out") == ["disk.raw", "manifest.json"]
