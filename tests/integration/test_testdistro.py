"""The test distribution itself: what other integration tests build on must hold, in plain QEMU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import paramiko
import pytest

from imagebuilder import process
from imagebuilder.media.floppy import write_floppy
from imagebuilder.media.iso import write_iso
from tests import testdistro
from tests.testdistro import TestDistro, kickstart
from tests.testdistro.guest import Guest, running, said, serving

pytestmark = pytest.mark.qemu

_PASSWORD = "a$HOME`id`c"  # nothing of it may be expanded


@pytest.fixture(scope="module")
def key() -> paramiko.PKey:
    return paramiko.ECDSAKey.generate()


@pytest.fixture(scope="module")
def installed(distro: TestDistro, key: paramiko.PKey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A disk that was installed to by direct kernel boot: the installer rebooted, which ended QEMU."""
    directory = tmp_path_factory.mktemp("installed")
    text = kickstart(
        ssh_public_key=f"{key.get_name()} {key.get_base64()}",
        hostname="elsewhere",
        post="echo post; cat /etc/hostname > /root/post",
    )
    with installing(directory, distro, text) as guest:
        guest.ended()
        for line in ("Starting automated install", "Installing boot loader", "Running %post scripts\npost\n"):
            assert line in guest.text()
    return directory / "disk.qcow2"


def drive(disk: Path, *more: str) -> list[str]:
    return ["-drive", ",".join([f"file={disk}", "if=virtio", "discard=unmap", *more])]


def empty_disk(directory: Path) -> list[str]:
    process.run(["qemu-img", "create", "-q", "-f", "qcow2", directory / "disk.qcow2", "4G"])
    return drive(directory / "disk.qcow2")


@contextmanager
def installing(directory: Path, distro: TestDistro, text: str) -> Iterator[Guest]:
    """The installer by direct kernel boot, with this kickstart; ends at a reboot."""
    files = {"/root.tar.gz": (distro.directory / "root.tar.gz").read_bytes()}
    with serving(files) as url:
        files["/ks.cfg"] = text.replace("@URL@", url).encode()
        arguments = f"inst.ks={url}/ks.cfg console=ttyS0 quiet"
        boot = [
            "-kernel",
            distro.kernel,
            "-initrd",
            distro.initrd,
            "-append",
            arguments,
            "-no-reboot",
        ]
        with running(directory, *boot, *empty_disk(directory)) as guest:
            yield guest


@pytest.mark.parametrize("uefi", [False, True], ids=["bios", "uefi"])
def test_the_installed_system_answers_ssh_and_the_power_button(
    installed: Path, key: paramiko.PKey, tmp_path: Path, uefi: bool
) -> None:
    with running(tmp_path, *drive(installed, "snapshot=on"), uefi=uefi) as guest:
        with guest.ssh(key) as client:
            assert said(client, "cat /root/post") == said(client, "hostname") == "elsewhere"
            assert "ID=testdistro" in said(client, "cat /etc/os-release")
            assert said(client, "test ! -e /run/anaconda && stat -f -c %T /") == "ext2/ext3"
            assert said(client, "fstrim -v /").endswith("bytes trimmed")
        guest.wait_for("elsewhere login:")
        assert uefi or "elsewhere login:" in guest.screen()  # UEFI has no text screen
        guest.monitor.execute("system_powerdown")
        guest.ended()


def test_files_travel_and_a_reboot_is_a_new_boot(installed: Path, key: paramiko.PKey, tmp_path: Path) -> None:
    with running(tmp_path, *drive(installed, "snapshot=on")) as guest:
        with guest.ssh(key) as client:
            before = said(client, "cat /proc/sys/kernel/random/boot_id")
            with client.open_sftp() as sftp, sftp.open("/etc/sent", "w") as file:
                file.write("by sftp")
            assert said(client, "scp 2>&1 | head -n 1 || true").startswith("usage: scp")
            said(client, "(sleep 0.3; shutdown -r now) > /dev/null 2>&1 &")
        guest.until(lambda: guest.text().count("Started sshd") == 2, "the second boot")
        with guest.ssh(key) as client:
            assert said(client, "cat /etc/sent") == "by sftp"
            assert said(client, "cat /proc/sys/kernel/random/boot_id") != before
            said(client, "(sleep 0.3; poweroff) > /dev/null 2>&1 &")
        guest.ended()


def test_isolinux_waits_for_a_typed_command(distro: TestDistro, tmp_path: Path) -> None:
    files = {"/ks.cfg": kickstart(ssh_public_key="ssh-ed25519 AAAA", end="poweroff").encode()}
    with (
        serving(files) as url,
        running(tmp_path, "-cdrom", distro.iso, "-boot", "once=d", *empty_disk(tmp_path)) as guest,
    ):
        guest.wait_for("boot:")
        assert "boot:" in guest.screen()
        guest.type(f"linux inst.ks={url}/ks.cfg")
        guest.press("ret")
        guest.wait_for("Starting automated install")
        guest.ended()


def test_the_iso_boots_by_uefi(distro: TestDistro, tmp_path: Path) -> None:
    with running(tmp_path, "-cdrom", distro.iso, uefi=True) as guest:
        guest.wait_for("Install Test Distribution 1")
        guest.press("ret")
        guest.wait_for("No kickstart: waiting for someone to install by hand")


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("lang C\n\nfrobnicate --now\nreboot\n", 3, "Unknown command: frobnicate"),
        ("lang C\n%post\necho hello\n", 3, "Section %post does not end with %end."),
    ],
    ids=["unknown-command", "no-end"],
)
def test_a_wrong_line_stops_the_installer(
    distro: TestDistro, tmp_path: Path, text: str, line: int, message: str
) -> None:
    with installing(tmp_path, distro, text) as guest:
        guest.wait_for(f"The following problem occurred on line {line} of the kickstart file:\n\n{message}\n")


def test_a_failed_script_stops_the_installer(distro: TestDistro, tmp_path: Path) -> None:
    text = "rootpw --lock\n%pre --erroronfail\necho out\nexit 3\n%end\n"
    with installing(tmp_path, distro, text) as guest:
        guest.wait_for("There was an error running the kickstart script at line 2.")
        assert "out\nError code 3" in guest.text()


def test_the_installers_own_sshd_lets_root_in(distro: TestDistro, tmp_path: Path) -> None:
    text = kickstart(rootpw=_PASSWORD) + "%pre\necho waiting\nwhile [ ! -e /tmp/go ]; do sleep 0.2; done\n%end\n"
    with installing(tmp_path, distro, text) as guest:
        with guest.ssh(password=_PASSWORD) as client:
            assert said(client, "test -d /run/anaconda && hostname") == "localhost"
            said(client, "touch /tmp/go")
        assert "Rebooting" in guest.ended()


def test_liveimg_comes_over_http_with_users(distro: TestDistro, tmp_path: Path) -> None:
    more = ["liveimg --url=@URL@/root.tar.gz", "user --name=ann --password=secret --plaintext"]
    post = "ls -d /home/ann /boot/vmlinuz\ntest ! -e /usr/lib/installer && grep -c ^ann: /etc/shadow"
    text = kickstart(rootpw=_PASSWORD, commands=more, post=post, end="poweroff")
    with installing(tmp_path, distro, text) as guest:
        assert "Running %post scripts\n/boot/vmlinuz\n/home/ann\n1\n" in guest.ended()


def test_a_cd_named_oemdrv_is_found_and_scsi_installed_to(distro: TestDistro, tmp_path: Path) -> None:
    write_iso(tmp_path / "ks.iso", "OEMDRV", {"ks.cfg": kickstart(end="poweroff").encode()})
    disk = ["-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=disk", *unplugged(tmp_path)]
    boot = ["-kernel", distro.kernel, "-initrd", distro.initrd, "-append", "console=ttyS0 quiet"]
    with running(tmp_path, *boot, *disk, "-cdrom", tmp_path / "ks.iso") as guest:
        assert "Partitioning /dev/sda" in guest.ended()
        assert "Powering off" in guest.text()


def test_the_generic_kernel_drives_floppy_ahci_and_e1000(tmp_path: Path) -> None:
    distro = testdistro.testdistro("generic")
    text = kickstart(end="poweroff", post="echo $(readlink /sys/block/sda) by ahci; ip route")
    write_floppy(tmp_path / "ks.img", {"ks.cfg": text.encode()})
    disk = ["-device", "ahci,id=ahci", "-device", "ide-hd,bus=ahci.0,drive=disk", *unplugged(tmp_path)]
    floppy = ["-drive", f"file={tmp_path / 'ks.img'},if=floppy,format=raw"]
    arguments = "inst.ks=hd:fd0:/ks.cfg console=ttyS0 quiet"
    boot = ["-kernel", distro.kernel, "-initrd", distro.initrd, "-append", arguments]
    with running(tmp_path, *boot, *disk, *floppy, nic="e1000") as guest:
        assert "/ata" in guest.ended()
        assert "default via 10.0.2.2 dev eth0" in guest.text()


def unplugged(directory: Path) -> list[str]:
    """An empty disk for a device of its own."""
    return [empty_disk(directory)[0], empty_disk(directory)[1].replace("if=virtio", "if=none,id=disk")]
