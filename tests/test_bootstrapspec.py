"""What a bootstrapped disk holds, as text."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from imagebuilder import process
from imagebuilder.bootstrap import partition, rootfs
from imagebuilder.bootstrap import spec as bootstrapspec
from imagebuilder.bootstrap.apt import Source
from imagebuilder.bootstrap.partition import Firmware
from imagebuilder.bootstrap.rootfs import File
from imagebuilder.bootstrap.spec import BootstrapSpec

KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
SOURCES = [Source(("http://user:pw@mirror.test/debian",), ("bookworm",), ("main",), {"Signed-By": KEYRING})]
PLAIN = BootstrapSpec()
BARE = BootstrapSpec(
    cloud_init=False, firmware=Firmware.BIOS, ssh_authorized_keys=("ssh-ed25519 AAAA",), hostname="node7"
)


def files_of(spec: BootstrapSpec) -> dict[str, File]:
    disk = partition.layout(spec.disk_size, spec.firmware, spec.fingerprint())
    return bootstrapspec.image_files(spec, SOURCES, disk)


@pytest.mark.parametrize(("name", "spec"), [("cloud-init", PLAIN), ("bare", BARE)], ids=["cloud-init", "bare"])
def test_files(name: str, spec: BootstrapSpec, golden: Callable[[str, str], None]) -> None:
    parts = [
        f"===== {path} {file.mode:04o}\n{file.content if isinstance(file.content, str) else '(binary)'}"
        for path, file in sorted(files_of(spec).items())
    ]
    golden(f"bootstrap-files-{name}.txt", "\n".join(parts))


@pytest.mark.parametrize(("name", "spec"), [("cloud-init", PLAIN), ("bare", BARE)], ids=["cloud-init", "bare"])
def test_configure_script(name: str, spec: BootstrapSpec, golden: Callable[[str, str], None]) -> None:
    golden(f"bootstrap-configure-{name}.sh", bootstrapspec.configure_script(spec))


@pytest.mark.parametrize(
    "script",
    [rootfs.MAKE, rootfs.SETUP, rootfs.EXTRACTED, rootfs.CUSTOMIZE, rootfs.SEAL, rootfs.INITRAMFS_HOOK,
     rootfs.GROW_SCRIPT, bootstrapspec.configure_script(PLAIN)],
    ids=["make", "setup", "extracted", "customize", "seal", "hook", "grow", "configure"],
)  # fmt: skip
def test_scripts_are_shell(script: str) -> None:
    process.run(["sh", "-n"], input=script.encode(), timeout=10)


def test_no_credentials_in_the_image() -> None:
    content = files_of(PLAIN)["/etc/apt/sources.list.d/debian.sources"].content
    assert isinstance(content, str) and "mirror.test" in content and "pw" not in content


def test_own_mirrors_for_the_image() -> None:
    spec = replace(PLAIN, image_mirrors=("deb [trusted=yes] http://inside.test/debian bookworm main",))
    content = files_of(spec)["/etc/apt/sources.list.d/debian.sources"].content
    assert isinstance(content, str) and "inside.test" in content and "mirror.test" not in content


def test_a_keyring_that_no_package_brings_travels(tmp_path: Path) -> None:
    key = tmp_path / "own.gpg"
    key.write_bytes(b"\x99key")
    spec = replace(PLAIN, image_mirrors=(f"deb [signed-by={key}] http://inside.test/debian bookworm main",))
    assert files_of(spec)[str(key)] == File(b"\x99key")


def test_packages_follow_what_is_asked() -> None:
    assert {"cloud-init", "grub-pc-bin", "grub-efi-amd64-bin", "linux-image-cloud-amd64"} <= set(
        bootstrapspec.included(PLAIN)
    )
    assert {"cloud-init", "grub-efi-amd64-bin"}.isdisjoint(bootstrapspec.included(BARE))
    jammy = BootstrapSpec(distribution="ubuntu", suite="jammy", packages=("hello",))
    assert {"systemd-resolved", "usr-is-merged"}.isdisjoint(bootstrapspec.included(jammy))
    assert {"linux-image-virtual", "hello"} <= set(bootstrapspec.included(jammy))


def test_fingerprint_follows_the_description() -> None:
    assert PLAIN.fingerprint() == BootstrapSpec().fingerprint() != BARE.fingerprint()
    assert bootstrapspec.filesystem_uuid(PLAIN) != bootstrapspec.filesystem_uuid(BARE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"distribution": "centos"}, "can't bootstrap 'centos'"),
        ({"architecture": "riscv64"}, "'riscv64'"),
        ({"hostname": "a b"}, "can't be a hostname"),
        ({"suite": "-o"}, "can't be a suite"),
        ({"packages": ("hello", "--purge")}, "'--purge' can't be a package"),
        ({"kernel_arguments": 'a"b'}, "kernel arguments"),
        ({"root_password_hash": "x:y"}, "hash"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_problems(change: dict[str, str], message: str) -> None:
    (problem,) = replace(PLAIN, **change).problems()  # type: ignore[arg-type]
    assert message in problem.message


def test_good_values_are_no_problem() -> None:
    spec = replace(PLAIN, packages=("g++", "hello=2.10-3", "vim/bookworm"), timezone="America/Port-au-Prince")
    assert list(spec.problems()) == []


def test_overlay_is_the_same_every_time() -> None:
    files = {"/etc/b": File("b"), "/etc/a": File(b"\xff", 0o600)}
    archive = rootfs.overlay(files, 7)
    assert archive == rootfs.overlay(dict(reversed(files.items())), 7)
    with tarfile.open(fileobj=io.BytesIO(archive)) as members:
        assert [(m.name, m.mode, m.uid, m.mtime) for m in members] == [("etc/a", 0o600, 0, 7), ("etc/b", 0o644, 0, 7)]
