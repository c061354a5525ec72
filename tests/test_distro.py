"""The format of distros/*.yaml: what a file must say, and how its mistakes are told."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from imagebuilder import paths
from imagebuilder.autoinstall import kickstart
from imagebuilder.autoinstall.distro import Answer, Distro, Repository, distro_names, load_distro, read_distro
from imagebuilder.errors import TemplateError

GOOD = """\
name: testos-9
title: Test OS 9
family: redhat
version: "9"
iso_url:
  - https://mirror.test/testos-9.iso
iso_checksum: file:https://mirror.test/CHECKSUM
kernel: images/pxeboot/vmlinuz
initrd: images/pxeboot/initrd.img
kernel_args: inst.ks=http://{{ .HTTPIP }}:{{ .HTTPPort }}/ks.cfg
boot_wait: 5s
autoinstall:
  template: testos.ks.j2
  path: /ks.cfg
  flavour: kickstart
  version: RHEL9
extra:
  - {template: meta.j2, path: [/meta-data, /vendor-data], flavour: meta-data}
memory_mib_min: 3072
disk_size: 12G
firmware: [efi, bios]
end_of_life: 2032-05-31
repositories:
  - {name: Base, metalink: "https://mirrors.test/metalink?repo=base", path: base/os}
packages: [openssh-server]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "testos-9.yaml"
    path.write_text(text)
    return path


def test_a_whole_file(tmp_path: Path) -> None:
    distro = read_distro(write(tmp_path, GOOD))
    assert (distro.name, distro.iso_url, distro.initrd) == (
        "testos-9",
        ("https://mirror.test/testos-9.iso",),
        ("images/pxeboot/initrd.img",),
    )
    assert (distro.memory, distro.disk_size, distro.boot_wait) == (3072, 12 << 30, 5.0)
    assert distro.end_of_life == date(2032, 5, 31)
    assert distro.http_templates == {"/ks.cfg": "testos.ks.j2", "/meta-data": "meta.j2", "/vendor-data": "meta.j2"}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("title:", "titel:", ["2:1: unknown key 'titel'; did you mean 'title'?", "1:1: key 'title' is missing"]),
        ("  flavour:", "  flavor:", ["15:3: unknown key 'flavor'", "12:1: key 'autoinstall.flavour' is missing"]),
        ("family: redhat", "family: gentoo", ["3:1: 'family': input should be 'redhat'"]),
        ('version: "9"', "version: 9.10", ["4:1: 'version': write it in quotes: '9.1'"]),
        ("CHECKSUM", "CHECKSUM\niso_checksum: sha256:00", ["7:1: 'iso_checksum': '00' is too short"]),
        ("path: /ks.cfg", "path: ks.cfg", ["14:3: 'autoinstall.path': 'ks.cfg' must begin with '/'"]),
        ("  version: RHEL9\n", "", ["12:1: 'autoinstall': a kickstart needs a 'version'"]),
        ("initrd:", "# initrd:", ["1:1: 'kernel' and 'initrd' go together"]),
        ("[/meta-data, /vendor-data]", "/ks.cfg", ["1:1: '/ks.cfg' is served twice"]),
        ("boot_wait: 5s", "boot_wait: 5 minutes", ["11:1: 'boot_wait': '5 minutes' is not a duration"]),
        ("disk_size: 12G", "disk_size: big", ["20:1: 'disk_size': 'big' is not a size"]),
        ("metalink:", "metalnk:", ["23:1: unknown key 'metalnk'; did you mean 'metalink'?"]),
        ("metalink:", "url: a, metalink:", ["23:1: 'repositories.0': give one of 'metalink'"]),
        ("name: testos-9", "name: testos-8", ["1:1: 'name' is 'testos-8', and the file is 'testos-9.yaml'"]),
        ("family: redhat", "family: [", ["5:1: expected"]),
    ],
)
def test_mistakes_are_told_with_their_line(old: str, new: str, expected: list[str], tmp_path: Path) -> None:
    assert old in GOOD
    path = write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(TemplateError) as caught:
        read_distro(path)
    told = [str(problem).removeprefix(f"{path}:") for problem in caught.value.problems]
    for part in expected:
        assert any(problem.startswith(part) for problem in told), told


@pytest.mark.parametrize(("text", "message"), [("- a\n", "must be a mapping"), ("", "must be a mapping")])
def test_what_is_no_distro_at_all(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=message):
        read_distro(write(tmp_path, text))


@pytest.mark.parametrize("name", ["nosuchthing", "../../etc/passwd", "", "a/b"])
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(TemplateError, match=f"unknown distro '{name}'"):
        load_distro(name)


@pytest.mark.parametrize("model", [Distro, Answer, Repository])
def test_every_key_is_described_and_documented(model: type[Distro] | type[Answer] | type[Repository]) -> None:
    readme = (paths.shipped("distros") / "README.md").read_text(encoding="utf-8")
    for name, field in model.model_fields.items():
        assert field.description, name
        assert f"| `{name}` |" in readme, f"distros/README.md has no row for '{name}'"


def test_every_filter_is_documented() -> None:
    readme = (paths.shipped("kickstarts") / "README.md").read_text(encoding="utf-8")
    for name in kickstart.FILTERS:
        assert f"| `{name}` |" in readme, f"kickstarts/README.md has no row for '{name}'"


@pytest.mark.parametrize("name", distro_names())
def test_every_distro_that_ships_is_whole(name: str) -> None:
    distro = load_distro(name)
    for template in distro.http_templates.values():
        assert (paths.shipped("kickstarts") / template).is_file()
