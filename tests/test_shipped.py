"""What ships: every distro renders every answer file and its checker accepts it, every build's template is valid."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imagebuilder import kickstart, paths, template
from imagebuilder.builders.qemuoptions import QemuOptions
from imagebuilder.distro import Answer, Distro, Family, Flavour, distro_names, load_distro
from imagebuilder.template import load_template, plan_builds

BUILDS = sorted(path.name for path in paths.shipped("builds").glob("*.json"))
RELEASED = {
    "centos-stream-9", "centos-stream-10", "rocky-8", "rocky-9", "rocky-10", "alma-8", "alma-9", "alma-10",
    "debian-12", "debian-13", "ubuntu-22.04", "ubuntu-24.04", "opensuse-leap-15.6",
}  # fmt: skip
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKy1WbJ3O2l6P4h9d3mQ imgbuild"
HASH = "$6$saltsalt$qFmFH.bQmmtXzyBY0s9v7Oicd2z4XSIecDzlB5KiA2/jctKu9YterLp8wwnSq.qc.eoxqOmSuNp2xS0ktL3nh/"

PLAIN: dict[str, object] = {
    "http_ip": "10.0.2.2", "http_port": 8000, "http_url": "http://10.0.2.2:8000", "ssh_username": "root",
    "ssh_password": "", "ssh_public_key": KEY, "name": "image.qcow2", "hostname": "image", "disk": "vda", "efi": False,
}  # fmt: skip
VARIANTS: dict[str, dict[str, object]] = {
    "plain": {},
    "empty variables": {"packages": "", "mirror": "", "root_password_hash": ""},
    "efi": {"efi": True, "disk": "sda"},
    "user": {"ssh_username": "builder"},
    "password": {"ssh_username": "builder", "ssh_password": 'it\'s "secret" & <long>'},
    "root hash": {"root_password_hash": HASH},
    "mirror": {"mirror": "https://mirror.example/linux", "packages": "vim, tmux", "timezone": "Europe/Berlin"},
}


def cases() -> Iterator[Any]:
    for name in distro_names():
        for variant in VARIANTS:
            yield pytest.param(name, variant, id=f"{name}-{variant.replace(' ', '-')}")


def rendered(distro: Distro, answer: Answer, variant: str = "plain") -> str:
    return kickstart.render(answer.template, {**PLAIN, **VARIANTS[variant], "distro": distro})


def main_answer(name: str, variant: str = "plain") -> str:
    distro = load_distro(name)
    return rendered(distro, distro.autoinstall, variant)


def test_the_promised_releases_are_there() -> None:
    names = set(distro_names())
    assert names >= RELEASED
    assert len([name for name in names if name.startswith("fedora-")]) >= 2


@pytest.mark.parametrize(("name", "variant"), list(cases()))
def test_every_answer_file_is_accepted(name: str, variant: str) -> None:
    distro = load_distro(name)
    for answer in distro.answers:
        assert kickstart.check(rendered(distro, answer, variant), answer.flavour, answer.version or None) == []


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", [name for name in distro_names() if name.startswith("debian")])
def test_debconf_takes_the_preseed(name: str, variant: str, tmp_path: Path) -> None:
    if shutil.which("debconf-set-selections") is None:
        pytest.skip("debconf-set-selections is not installed (package debconf)")
    (tmp_path / "preseed.cfg").write_text(main_answer(name, variant))
    done = subprocess.run(
        ["debconf-set-selections", "--checkonly", str(tmp_path / "preseed.cfg")], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", distro_names())
def test_the_build_can_log_in_and_nobody_with_a_password(name: str) -> None:
    text = main_answer(name)
    assert KEY.split()[1] in text
    assert "$6$" not in text
    locked = {
        Family.REDHAT: "rootpw --lock", Family.DEBIAN: "root-password-crypted password !",
        Family.SUSE: "<user_password>!</user_password>", Family.UBUNTU: "allow-pw: false",
    }  # fmt: skip
    assert locked[load_distro(name).family] in text


@pytest.mark.parametrize("name", distro_names())
def test_a_given_password_hash_arrives(name: str) -> None:
    assert HASH.split("$")[3] in main_answer(name, "root hash")


@pytest.mark.parametrize("name", distro_names())
def test_what_is_typed_in_a_password_is_hashed(name: str) -> None:
    assert "secret" not in main_answer(name, "password")


@pytest.mark.parametrize("name", distro_names())
def test_every_image_has_what_a_golden_image_needs(name: str) -> None:
    text = main_answer(name)
    for word in ("qemu-guest-agent", "cloud-init"):
        assert word in text or (load_distro(name).family is Family.UBUNTU and word == "cloud-init")
    assert re.search("openssh|install-server: true", text)
    assert "console=ttyS0" in text


@pytest.mark.parametrize("name", distro_names())
def test_packages_and_mirrors_of_the_users_own_are_used(name: str) -> None:
    text = main_answer(name, "mirror")
    assert re.search(r"\bvim\b", text)
    assert re.search(r"\btmux\b", text)
    if load_distro(name).family is not Family.SUSE:  # whose installer takes it from the kernel's command line
        assert "mirror.example" in text


@pytest.mark.parametrize("name", distro_names())
def test_the_installer_is_booted_with_nothing_typed_and_seen_on_the_serial_line(name: str) -> None:
    distro = load_distro(name)
    assert distro.kernel
    assert "console=ttyS0" in distro.kernel_args
    assert "{{ .HTTPIP }}:{{ .HTTPPort }}" in distro.kernel_args
    fetched = [path for answer in distro.answers for path in answer.path]
    base = re.search(r"{{ \.HTTPPort }}(/\S*)", distro.kernel_args)
    assert base is not None
    assert any(path.startswith(base.group(1)) for path in fetched)


@pytest.mark.parametrize("name", distro_names())
def test_downloads_are_verified(name: str) -> None:
    distro = load_distro(name)
    assert distro.iso_checksum != "none"
    assert all(url.startswith("https://") for url in distro.iso_url)
    assert distro.iso_checksum.removeprefix("file:").startswith(("https://", "sha256:", "sha512:"))


@pytest.mark.parametrize("name", [name for name in distro_names() if load_distro(name).family is Family.REDHAT])
def test_a_kickstart_is_checked_for_its_own_version(name: str) -> None:
    distro = load_distro(name)
    prefix = "F" if name.startswith("fedora") else "RHEL"
    assert distro.autoinstall.flavour is Flavour.KICKSTART
    assert distro.autoinstall.version == f"{prefix}{distro.version}"


@pytest.mark.parametrize("name", ["rocky-9", "debian-12", "ubuntu-24.04", "opensuse-leap-15.6"])
def test_golden_answer_files(name: str, golden: Callable[[str, str], None]) -> None:
    golden(f"answers/{name}", main_answer(name))


# -- builds


def builders(name: str, *variables: tuple[str, str]) -> list[Any]:
    plan = plan_builds(load_template(paths.shipped("builds") / name), variables=variables, environ={})
    assert plan.warnings == ()
    return [build.builder_options for build in plan.builds]


@pytest.mark.parametrize("name", BUILDS)
def test_every_build_is_valid_without_a_warning(name: str) -> None:
    for options in builders(name):
        assert not options.ssh_password
        assert options.shutdown_command


@pytest.mark.parametrize(
    ("name", "distro"),
    [(name, distro) for name in BUILDS for distro in distro_names() if distro.startswith(name.removesuffix(".json"))],
    ids=lambda value: str(value),
)
def test_every_release_can_be_asked_for(name: str, distro: str) -> None:
    several = "-" not in name
    variables = [("release", load_distro(distro).version)] if several else []
    (options,) = builders(name, *variables)
    assert isinstance(options, QemuOptions)
    assert options.distro == distro


def test_every_distro_has_a_build() -> None:
    families = {name.removesuffix(".json") for name in BUILDS}
    assert [name for name in distro_names() if not any(name.startswith(family) for family in families)] == []


def test_the_readme_lists_every_build_and_every_variable() -> None:
    page = (paths.shipped("builds") / "README.md").read_text(encoding="utf-8")
    for name in BUILDS:
        assert f"`{name}`" in page
        for variable in template.inspect(load_template(paths.shipped("builds") / name)).variables:
            assert f"| `{variable.name}` |" in page
