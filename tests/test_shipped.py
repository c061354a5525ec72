"""What ships: every distro renders every answer file and its checker accepts it, every build's template is valid."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pykickstart.constants import KS_REBOOT, SELINUX_ENFORCING
from pykickstart.parser import KickstartParser
from pykickstart.version import makeVersion

from imagebuilder import paths
from imagebuilder.autoinstall import kickstart
from imagebuilder.autoinstall.distro import Answer, Distro, Family, Flavour, distro_names, load_distro
from imagebuilder.builders.qemuoptions import QemuOptions
from imagebuilder.templates import template
from imagebuilder.templates.template import load_template, plan_builds

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
    "root password": {"ssh_password": 'it\'s "secret" & <long>'},
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
    # a database of its own: the machine's is locked while packages are installed, and debconf says nothing then
    databases = [f"Name: {name}\nDriver: File\nFilename: {tmp_path / name}\n" for name in ("config", "templates")]
    (tmp_path / "debconf.conf").write_text("\n".join(["Config: config\nTemplates: templates\n", *databases]))
    done = subprocess.run(
        ["debconf-set-selections", "--checkonly", str(tmp_path / "preseed.cfg")], capture_output=True, text=True,
        env={**os.environ, "DEBCONF_SYSTEMRC": str(tmp_path / "debconf.conf")},
    )  # fmt: skip
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


# -- disks: (file system, size, mount point) in order; a size of "rest" takes what is left


def kickstart_disk(text: str, version: str) -> list[tuple[str, str, str]]:
    parser = KickstartParser(makeVersion(version))
    parser.readKickstartFromString(text)
    commands = parser.handler
    assert commands.reqpart.reqpart  # which adds what the firmware needs, BIOS or EFI, before the others
    assert commands.selinux.selinux == SELINUX_ENFORCING
    assert commands.reboot.action == KS_REBOOT
    parts = commands.partition.partitions
    return [(part.fstype, "rest" if part.grow else str(part.size), part.mountpoint) for part in parts]


def preseed_disk(text: str) -> list[tuple[str, str, str]]:
    recipe = re.search(r"expert_recipe string (.*\\\n)+.*", text)
    assert recipe is not None
    found = re.findall(r"\d+ \d+ (-?\d+) (\w+) ([^.]*) \.", recipe[0])
    assert "$lvmok" not in recipe[0]
    mounts = [(kind, size, re.search(r"mountpoint{ (\S+) }", rest)) for size, kind, rest in found]
    return [(kind, "rest" if size == "-1" else size, mount[1] if mount else "") for kind, size, mount in mounts]


def autoinstall_disk(text: str) -> list[tuple[str, str, str]]:
    storage = yaml.safe_load(text)["autoinstall"]["storage"]
    assert storage["swap"] == {"size": 0}
    items = {item["id"]: item for item in storage["config"]}
    formats = {item["volume"]: item for item in items.values() if item["type"] == "format"}
    mounts = {items[item["device"]]["volume"]: item["path"] for item in items.values() if item["type"] == "mount"}
    parts = sorted((item for item in items.values() if item["type"] == "partition"), key=lambda item: item["number"])
    assert sum(bool(item.get("grub_device")) for item in items.values()) == 1
    return [
        (formats.get(part["id"], {}).get("fstype", ""), "rest" if part["size"] == -1 else part["size"],
         mounts.get(part["id"], "")) for part in parts
    ]  # fmt: skip


def autoyast_disk(text: str) -> list[tuple[str, str, str]]:
    parts = ElementTree.fromstring(text).iterfind(".//{*}partition")
    values = [[part.findtext("{*}" + key) or "" for key in ("filesystem", "size", "mount")] for part in parts]
    return [(kind, "rest" if size == "max" else size, mount) for kind, size, mount in values]


def disk_layout(name: str, variant: str) -> list[tuple[str, str, str]]:
    text, distro = main_answer(name, variant), load_distro(name)
    match distro.autoinstall.flavour:
        case Flavour.KICKSTART:
            return kickstart_disk(text, distro.autoinstall.version)
        case Flavour.PRESEED:
            return preseed_disk(text)
        case Flavour.AUTOINSTALL:
            return autoinstall_disk(text)
        case _:
            return autoyast_disk(text)


@pytest.mark.parametrize("variant", ["plain", "efi"])
@pytest.mark.parametrize("name", distro_names())
def test_the_root_partition_is_the_last_and_takes_all_there_is(name: str, variant: str) -> None:
    layout = disk_layout(name, variant)
    assert layout[-1][0] in ("ext4", "xfs")
    assert layout[-1][1:] == ("rest", "/")
    assert not [kind for kind, _, _ in layout if "swap" in kind]
    if load_distro(name).family is not Family.REDHAT:  # where reqpart does it
        assert len(layout) == (2 if variant == "efi" or load_distro(name).family is not Family.DEBIAN else 1)
        assert any(kind in ("vfat", "fat32", "free") for kind, _, _ in layout[:-1]) == (variant == "efi")


@pytest.mark.parametrize("name", distro_names())
def test_the_first_disk_is_the_one_that_is_written(name: str) -> None:
    for variant, mine, other in (("plain", "vda", "sda"), ("efi", "sda", "vda")):
        text = main_answer(name, variant)
        assert re.search(rf"\b{mine}\b", text)
        assert not re.search(rf"\b{other}\b", text)


def test_debians_early_command_is_the_users() -> None:
    text = kickstart.render("debian.preseed.j2", {**PLAIN, "distro": load_distro("debian-12"), "early_command": "true"})
    assert "d-i preseed/early_command string true\n" in text
    assert "early_command" not in main_answer("debian-12")


def package_mirrors() -> set[str]:
    """Hosts that this machine takes packages from."""
    files = [Path("/etc/apt/sources.list"), *Path("/etc/apt/sources.list.d").glob("*")]
    text = "\n".join(file.read_text(errors="replace") for file in files if file.is_file())
    return {host.rpartition("@")[2] for host in re.findall(r"^(?!\s*#).*?\w+://([^/\s]+)", text, re.MULTILINE)}


def test_no_package_mirror_of_this_machine_is_named() -> None:
    kinds = ("distros", "kickstarts", "builds")
    files = [path for kind in kinds for path in paths.shipped(kind).rglob("*") if path.is_file()]
    assert len(files) > len(BUILDS) + len(RELEASED)
    texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in files}
    assert [(host, path) for host in package_mirrors() for path, text in texts.items() if host in text] == []


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
    sources = [repository.metalink or repository.mirrorlist or repository.url for repository in distro.repositories]
    assert all(source.startswith("https://") for source in sources)
    assert bool(sources) == (distro.family is Family.REDHAT)


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
