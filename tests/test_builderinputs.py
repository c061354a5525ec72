"""Inputs of builders: every key of theirs changes what it can change and nothing else; so does every file they name."""

from __future__ import annotations

import hashlib
import os
import typing
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imagebuilder import inputs as fingerprints
from imagebuilder.bootstrap import apt
from imagebuilder.builders import defaults, inputs
from imagebuilder.builders.bootstrap import BootstrapOptions
from imagebuilder.builders.qemuoptions import MachineOptions, QemuOptions
from imagebuilder.errors import StoreError
from imagebuilder.inputs import Input
from imagebuilder.media.httpserver import HttpServer
from imagebuilder.qemu import accel
from imagebuilder.ssh import keys
from tests.images import context, quiet

TCG = accel.Choice("tcg", "", cpu_model="max")
QEMU: dict[str, Any] = {
    "iso_url": "disc.iso", "iso_checksum": "none", "ssh_username": "root", "cd_files": ["f"], "floppy_files": ["f"],
    "boot_command": ["<enter>"], "http_directory": "www",
}  # fmt: skip
BOOTSTRAP: dict[str, Any] = {"mirrors": ["http://mirror.invalid/debian"]}
GIVEN: dict[type[MachineOptions], dict[str, Any]] = {QemuOptions: QEMU, BootstrapOptions: BOOTSTRAP}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with whatever the options below name, a QEMU that only tells its version, and keyrings."""
    monkeypatch.chdir(tmp_path)
    for name in ("disc.iso", "f", "fw", "code", "vars", "vmlinuz", "initrd.img", "user-data", "drive.img"):
        Path(name).write_text(name)
    for name in ("www/sub", "dir"):
        Path(name).mkdir(parents=True)
    Path("www/sub/file").write_text("served")
    Path("dir/file").write_text("on a floppy")
    Path("ks.j2").write_text("url {{ http_url }} key {{ ssh_public_key }} {{ ssh_password }}\n{% include 'part.j2' %}")
    Path("part.j2").write_text("part")
    Path("named.j2").write_text("{{ hostname }}")
    keys.generate().write(Path("key"))
    qemu("qemu-system-x86_64", "7.2")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for distribution in ("debian", "ubuntu"):
        keyring = tmp_path / f"{distribution}-archive-keyring.gpg"
        keyring.touch()
        monkeypatch.setitem(apt.KEYRINGS, distribution, (keyring, "keyring"))
    return tmp_path


def qemu(name: str, version: str) -> None:
    program = Path("bin", name)
    program.parent.mkdir(exist_ok=True)
    program.write_text(f"#!/bin/sh\necho QEMU emulator version {version}\n")
    program.chmod(0o755)


def base(options: MachineOptions, choice: accel.Choice | None = None, **about: Any) -> list[Input]:
    """`about`: what is known of the build beside its options."""
    chosen = choice or accel.Choice(options.accelerator or "tcg", "", cpu_model="max")
    distro, filled = defaults.with_distro(options) if isinstance(options, QemuOptions) else (None, options)
    return inputs.base(filled, replace(context(), **about), distro, chosen, quiet(), fetch=False)


def qemu_options(**given: Any) -> QemuOptions:
    return QemuOptions.model_validate({**QEMU, **given})


def fingerprint(**given: Any) -> str:
    return fingerprints.fingerprint("", base(qemu_options(**given)))


def parts(options: MachineOptions) -> dict[str, str]:
    """The fingerprint of each part of a build by itself."""
    found = {"base": base(options), "shutdown": inputs.shutdown(options), "export": inputs.export(options)}
    return {part: fingerprints.fingerprint("", of) for part, of in found.items()}


# -- every key

ANOTHER: dict[str, dict[str, Any]] = {
    "disk_size": {"disk_size": "41G"},
    "qemu_img_args": {"qemu_img_args": {"create": ["-o", "x"]}},
    "communicator": {"communicator": "none"},
    "disk_additional_size": {"disk_additional_size": ["1G"]},
    "qemu_binary": {"qemu_binary": "qemu-system-i386"},
    "qemuargs": {"qemuargs": [["-device", "x"]]},
    "firmware": {"firmware": "fw"},
    "use_pflash": {"use_pflash": True, "firmware": "fw"},
    "efi_boot": {"efi_boot": True, "efi_firmware_code": "code"},
    "efi_secure_boot": {"efi_secure_boot": True, "efi_firmware_code": "code"},
    "efi_firmware_code": {"efi_firmware_code": "code"},
    "efi_firmware_vars": {"efi_firmware_vars": "vars", "efi_firmware_code": "code"},
    "ssh_private_key_file": {"ssh_private_key_file": "key"},
    "distro": {"distro": "debian-12"},
    "iso_url": {"iso_url": "f"},
    "iso_urls": {"iso_url": "", "iso_urls": ["f"]},
    "iso_checksum": {"iso_checksum": "sha256:" + "1" * 64},
    "cloud_init": {"cloud_init": True},
    "kernel": {"kernel": "vmlinuz"},
    "initrd": {"initrd": ["initrd.img"]},
    "boot_command": {"boot_command": ["<esc>"]},
    "boot_steps": {"boot_command": [], "boot_steps": [["<esc>", ""]]},
    "http_directory": {"http_directory": "dir"},
    "http_content": {"http_content": {"/a": "b"}},
    "http_templates": {"http_templates": {"/ks": "ks.j2"}},
    "floppy_files": {"floppy_files": ["vars"]},
    "floppy_dirs": {"floppy_dirs": ["dir"]},
    "cd_files": {"cd_files": ["vars"]},
    "distribution": {"distribution": "ubuntu"},
    "mirrors": {"mirrors": ["http://other.invalid/debian"]},
    "image_mirrors": {"image_mirrors": ["http://other.invalid/debian"]},
    "image_firmware": {"image_firmware": "bios"},
    "components": {"components": ["main", "contrib"]},
}
"""Key -> another value of it, with what it needs beside it; other keys have one by their type."""

OF_BOOTSTRAP: dict[str, dict[str, Any]] = {"cloud_init": {"cloud_init": False}, "seal": {"seal": False}}

BESIDE: dict[str, set[str]] = {"use_pflash": {"firmware"}, "efi_boot": {"efi_firmware_code"},
    "efi_secure_boot": {"efi_firmware_code"}, "efi_firmware_vars": {"efi_firmware_code"}}  # fmt: skip
"""What is there before and after, so that the key alone makes the difference."""

ONLY_ONE_VALUE = {"architecture"}

ALSO = {"skip_compaction": {"export"}, "distro": {"shutdown"}}
"""Keys that change more than the part whose table has them: the former is on both sides, the latter seals."""


def another(model: type[MachineOptions], key: str) -> Any:
    """Another value for a key, by the type of its default."""
    field = model.model_fields[key]
    if typing.get_origin(field.annotation) is typing.Literal:
        return next(value for value in reversed(typing.get_args(field.annotation)) if value != field.default)
    if isinstance(field.default, bool):
        return not field.default
    samples: dict[type, Any] = {int: 4321, float: "77s", str: "another", tuple: ["another"], dict: {"a": "b"}}
    wanted = bool if "bool" in str(field.annotation) else int if field.default is None else type(field.default)
    return samples.get(wanted, True)


def expected(key: str) -> set[str]:
    tables = {"shutdown": inputs.SHUTDOWN_OPTIONS, "export": inputs.EXPORT_OPTIONS, "": inputs.HARMLESS}
    part = next((part for part, table in tables.items() if key in table), "base")
    return ({part} if part else set()) | ALSO.get(key, set())


KEYS = [(model, key) for model in GIVEN for key in model.model_fields if key not in ONLY_ONE_VALUE]


@pytest.mark.parametrize(("model", "key"), KEYS, ids=[f"{model.__name__}-{key}" for model, key in KEYS])
def test_a_key_changes_what_it_can_change_and_nothing_else(model: type[MachineOptions], key: str) -> None:
    qemu("qemu-system-i386", "7.2")
    change = {**ANOTHER, **OF_BOOTSTRAP}.get(key) if model is BootstrapOptions else ANOTHER.get(key)
    change = change or {key: another(model, key)}
    given = {**GIVEN[model], **{name: change[name] for name in BESIDE.get(key, ())}}
    one, other = model.model_validate(given), model.model_validate({**given, **change})
    assert getattr(one, key) != getattr(other, key)
    before, after = parts(one), parts(other)
    assert {part for part in before if before[part] != after[part]} == expected(key)


def test_each_key_has_one_place() -> None:
    tables = [inputs.HARMLESS, inputs.SHUTDOWN_OPTIONS, inputs.EXPORT_OPTIONS]
    assert sum(map(len, tables)) == len(frozenset().union(*tables))
    assert frozenset().union(*tables) <= {key for _, key in KEYS}


def test_convert_belongs_to_the_export() -> None:
    before, after = parts(qemu_options()), parts(qemu_options(qemu_img_args={"convert": ["-W"]}))
    assert {part for part in before if before[part] != after[part]} == {"export"}


# -- every file


def new_key() -> None:
    Path("key").unlink()
    keys.generate().write(Path("key"))


FILES: dict[str, tuple[dict[str, Any], Callable[[], object]]] = {
    "iso": ({}, lambda: Path("disc.iso").write_text("another")),
    "kernel": ({"kernel": "vmlinuz"}, lambda: Path("vmlinuz").write_text("another")),
    "initrd": ({"kernel": "iso:/v", "initrd": ["initrd.img"]}, lambda: Path("initrd.img").write_text("another")),
    "bios": ({"firmware": "fw"}, lambda: Path("fw").write_text("another")),
    "pflash": ({"firmware": "fw", "use_pflash": True}, lambda: Path("fw").write_text("another")),
    "uefi": ({"efi_firmware_code": "code"}, lambda: Path("code").write_text("another")),
    "uefi variables": (
        {"efi_firmware_code": "code", "efi_firmware_vars": "vars"}, lambda: Path("vars").write_text("another"),
    ),
    "served": ({}, lambda: Path("www/sub/file").write_text("another")),
    "name of what is served": ({}, lambda: Path("www/sub/file").rename("www/sub/other")),
    "link that is served": ({}, lambda: Path("www/link").symlink_to("sub/file")),
    "rendered": ({"http_templates": {"/ks": "ks.j2"}}, lambda: Path("ks.j2").write_text("another")),
    "included": ({"http_templates": {"/ks": "ks.j2"}}, lambda: Path("part.j2").write_text("another")),
    "cd": ({}, lambda: Path("f").write_text("another")),
    "executable on a cd": ({}, lambda: Path("f").chmod(0o755)),
    "floppy": ({"cd_files": []}, lambda: Path("f").write_text("another")),
    "floppy's directory": ({"floppy_dirs": ["dir"]}, lambda: Path("dir/file").write_text("another")),
    "user-data": ({"cloud_init": {"user_data": "user-data"}}, lambda: Path("user-data").write_text("another")),
    "drive in qemuargs": (
        {"qemuargs": [["-drive", "if=virtio,file=drive.img"]]}, lambda: Path("drive.img").write_text("another"),
    ),
    "cd in qemuargs": ({"qemuargs": [["-cdrom", "drive.img"]]}, lambda: Path("drive.img").write_text("another")),
    "key": ({"ssh_private_key_file": "key"}, new_key),
    "QEMU": ({}, lambda: qemu("qemu-system-x86_64", "8.0")),
}  # fmt: skip


@pytest.mark.parametrize(("given", "change"), FILES.values(), ids=FILES)
def test_a_files_content_counts(given: dict[str, Any], change: Callable[[], object]) -> None:
    before = fingerprint(**given)
    change()
    assert fingerprint(**given) != before


HARMLESS_TO_FILES: dict[str, tuple[dict[str, Any], Callable[[], object]]] = {
    "hidden file that is not served": ({}, lambda: Path("www/.swp").touch()),
    "mode of what is served": ({}, lambda: Path("www/sub/file").chmod(0o600)),
    "mode on a floppy": ({"cd_files": []}, lambda: Path("f").chmod(0o755)),
    "mode of the iso": ({}, lambda: Path("disc.iso").chmod(0o600)),
    "log in qemuargs": ({"qemuargs": [["-serial", "file:log"]]}, lambda: Path("log").touch()),
}


@pytest.mark.parametrize(("given", "change"), HARMLESS_TO_FILES.values(), ids=HARMLESS_TO_FILES)
def test_what_the_guest_can_not_see_of_a_file_changes_nothing(
    given: dict[str, Any], change: Callable[[], object]
) -> None:
    before = fingerprint(**given)
    change()
    assert fingerprint(**given) == before


def test_times_and_the_place_of_everything_change_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {"kernel": "vmlinuz", "firmware": "fw", "http_templates": {"/ks": "ks.j2"}, "ssh_private_key_file": "key"}
    before = fingerprint(**given)
    for path in here.rglob("*"):
        os.utime(path, (1, 1))
    moved = here.with_name(f"{here.name}-moved")
    here.rename(moved)
    monkeypatch.chdir(moved)
    monkeypatch.setenv("PATH", f"{moved / 'bin'}:{os.environ['PATH']}")
    assert fingerprint(**given) == before


# -- what means the same

SAME: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "communicator": ({}, {"communicator": ""}),
    "no CPUs": ({}, {"cpus": 0}),
    "no memory": ({}, {"memory": 5}),
    "accelerator": ({}, {"accelerator": "tcg"}),
    "CPU model": ({}, {"cpu_model": "max"}),
    "size of a disk": ({"disk_additional_size": ["1G"]}, {"disk_additional_size": ["1024"]}),
    "pieces of the boot command": ({"boot_command": ["a", "b"]}, {"boot_command": ["ab"]}),
    "steps' descriptions": (
        {"boot_command": [], "boot_steps": [["a", "b"]]}, {"boot_command": [], "boot_steps": [["a", "c"]]},
    ),
    "digest or file": ({}, {"iso_checksum": "sha256:" + hashlib.sha256(b"disc.iso").hexdigest().upper()}),
    "place of QEMU": ({}, {"qemu_binary": "bin/qemu-system-x86_64"}),
    "default host name": ({"cloud_init": True}, {"cloud_init": {"hostname": "localhost"}}),
    "name of the machine": ({"cloud_init": True}, {"cloud_init": True, "vm_name": "web"}),
}  # fmt: skip


@pytest.mark.parametrize(("given", "change"), SAME.values(), ids=SAME)
def test_what_means_the_same_is_the_same(given: dict[str, Any], change: dict[str, Any]) -> None:
    assert fingerprint(**given) == fingerprint(**{**given, **change})


TELLS = {
    "kickstart": {"http_templates": {"/ks": "named.j2"}},
    "boot command": {"boot_command": ["host={{ .Name }}<enter>"]},
    "kernel arguments": {"kernel_args": "host={{ .Name }}"},
    "qemuargs": {"qemuargs": [["-smbios", "type=1,serial={{ .Name }}"]]},
}


@pytest.mark.parametrize("given", TELLS.values(), ids=TELLS)
def test_a_machines_name_counts_where_the_guest_is_told(given: dict[str, Any]) -> None:
    assert fingerprint(**given, vm_name="web") != fingerprint(**given, vm_name="db")


@pytest.mark.parametrize(
    ("given", "shared"),
    [({}, True), ({"cloud_init": True}, True), ({"http_templates": {"/ks": "named.j2"}}, True),
     ({"kernel_args": "ks=http://x/ks.Name"}, True),
     ({"kernel_args": "host={{ .Name }}"}, False)],
    ids=["nothing told", "cloud-init", "kickstart", "not a template", "kernel arguments"],
)  # fmt: skip
def test_builds_of_a_template_share_their_base(given: dict[str, Any], shared: bool) -> None:
    one, other = (base(qemu_options(**given), build_name=name) for name in ("one", "other"))
    assert (fingerprints.fingerprint("", one) == fingerprints.fingerprint("", other)) is shared


def test_a_port_or_key_of_one_run_is_no_input() -> None:
    labels = {one.label: one for one in base(qemu_options(http_templates={"/ks": "ks.j2"}))}
    assert labels["ks.j2"] == fingerprints.content(
        "http_templates /ks", "ks.j2", "url http://10.0.2.2:<port> key <key> \npart"
    )


def test_a_variable_counts_where_a_kickstart_uses_it() -> None:
    Path("named.j2").write_text("{{ role }}")
    options = qemu_options(http_templates={"/ks": "named.j2"})
    first, other, more = (
        fingerprints.fingerprint("", base(options, variables=variables))
        for variables in ({"role": "web"}, {"role": "db"}, {"role": "web", "unused": "x"})
    )
    assert first == more != other


@pytest.mark.parametrize(
    "choice",
    [accel.Choice("kvm", "", cpu_model="max"), accel.Choice("tcg", "", cpu_model="qemu64")],
    ids=["accelerator", "CPU model"],
)
def test_the_machine_that_will_be_used_counts(choice: accel.Choice) -> None:
    options = qemu_options()
    assert fingerprints.fingerprint("", base(options, choice)) != fingerprints.fingerprint("", base(options, TCG))


def test_the_hosts_cpu_counts_under_kvm_only() -> None:
    kvm = accel.Choice("kvm", "", cpu_model="host")
    found = [{one.label for one in base(qemu_options(), choice)} for choice in (TCG, kvm)]
    assert ["this machine's CPU" in labels for labels in found] == [False, True]


def test_our_own_version_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint()
    monkeypatch.setattr(inputs, "__version__", "0.0.0")
    assert fingerprint() != before


def test_credentials_of_a_mirror_change_nothing() -> None:
    given = [{"mirrors": [f"http://{who}mirror.invalid/debian"]} for who in ("", "ann:secret@")]
    one, other = (fingerprints.fingerprint("", base(BootstrapOptions.model_validate(options))) for options in given)
    assert one == other


def test_a_keyring_that_goes_into_the_image_counts(here: Path) -> None:
    (here / "own.gpg").write_text("one")
    line = f"deb [signed-by={here / 'own.gpg'}] http://mirror.invalid/debian bookworm main"
    options = BootstrapOptions.model_validate({"mirrors": [line]})
    before = fingerprints.fingerprint("", base(options))
    (here / "own.gpg").write_text("two")
    assert fingerprints.fingerprint("", base(options)) != before


def test_a_key_that_can_not_be_read_is_an_error() -> None:
    with pytest.raises(StoreError, match="holds no private key"):
        fingerprint(ssh_private_key_file="f")


# -- media that have to be fetched


@pytest.fixture
def server() -> Iterator[str]:
    Path("media").mkdir()
    Path("media/disc.iso").write_text("first")
    with HttpServer(directory=Path("media")) as served:
        yield f"http://{served.address[0]}:{served.address[1]}"


def fetched(options: QemuOptions, *, fetch: bool) -> str:
    return fingerprints.fingerprint("", inputs.base(options, context(), None, TCG, quiet(), fetch=fetch))


@pytest.mark.parametrize("checksum", ["none", "file"])
def test_a_medium_is_what_is_fetched_not_where_from(server: str, checksum: str) -> None:
    Path("media/SHA512SUMS").write_text(f"{hashlib.sha512(b'first').hexdigest()}  disc.iso\n")
    wanted = f"file:{server}/SHA512SUMS" if checksum == "file" else "none"
    options = qemu_options(iso_url=f"{server}/disc.iso", iso_checksum=wanted)
    with pytest.raises(inputs.Unknown, match=r"disc\.iso"):
        fetched(options, fetch=False)
    assert fetched(options, fetch=True) == fetched(options, fetch=False)
    Path("disc.iso").write_text("first")
    assert fetched(qemu_options(), fetch=False) == fetched(options, fetch=False)


@pytest.mark.parametrize("key", ["iso_url", "kernel"])
def test_a_url_without_a_checksum_is_asked_again_only_when_media_are_fetched(server: str, key: str) -> None:
    options = qemu_options(**{key: f"{server}/disc.iso"})
    before = fetched(options, fetch=True)
    Path("media/disc.iso").write_text("another one")
    assert fetched(options, fetch=False) == before
    assert fetched(options, fetch=True) != before


def test_a_declared_digest_needs_no_medium() -> None:
    declared = {"iso_checksum": "sha256:" + "ab" * 32}
    one = fetched(qemu_options(iso_url="http://one.invalid/a.iso", **declared), fetch=True)
    other = fetched(qemu_options(iso_url="http://other.invalid/b.iso", **declared), fetch=True)
    assert one == other


def test_a_password_in_a_url_is_not_shown() -> None:
    options = qemu_options(iso_url="http://ann:secret@one.invalid/a.iso", iso_checksum="sha256:" + "ab" * 32)
    assert not any("secret" in one.label for one in base(options))
    with pytest.raises(inputs.Unknown) as raised:
        base(qemu_options(kernel="http://ann:secret@one.invalid/vmlinuz"))
    assert "secret" not in str(raised.value)


def test_a_medium_that_qemu_reads_by_itself_stays_unknown(server: str) -> None:
    options = qemu_options(iso_url=f"{server}/disc.iso", iso_skip_cache=True)
    for fetch in (False, True):
        with pytest.raises(inputs.Unknown):
            fetched(options, fetch=fetch)
