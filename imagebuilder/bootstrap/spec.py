"""What a bootstrapped disk holds, described: its packages, the files that make a machine of them, its identifiers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagebuilder import cloudinit
from imagebuilder.bootstrap import apt, bootloader, partition, rootfs
from imagebuilder.bootstrap.partition import Firmware, Layout, Role
from imagebuilder.bootstrap.rootfs import File
from imagebuilder.errors import Problem

KERNELS = {"debian": "linux-image-cloud-amd64", "ubuntu": "linux-image-virtual"}
_TITLES = {"debian": "Debian GNU/Linux", "ubuntu": "Ubuntu"}
_PACKAGES = (
    "systemd-sysv", "dbus", "libpam-systemd", "udev", "iproute2", "netbase", "ca-certificates", "sudo",
    "openssh-server", "initramfs-tools", "zstd", "e2fsprogs", "cloud-guest-utils", "grub2-common",
)  # fmt: skip
_BEFORE_RESOLVED = ("buster", "bullseye", "focal", "jammy")  # systemd-resolved is part of systemd there
_TIMERS = ("apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "e2scrub_reap.service")


@dataclass(frozen=True)
class BootstrapSpec:
    """What the disk shall hold."""

    distribution: str = "debian"  # or "ubuntu"
    suite: str = "bookworm"
    architecture: str = "amd64"
    mirrors: tuple[str, ...] = ()  # URLs or lines `deb [options] URL suite component...`; none: the machine's own
    image_mirrors: tuple[str, ...] = ()  # the same for the image's own apt; none: those it was made from
    components: tuple[str, ...] = ()  # none: what the machine's sources have; "main" for mirrors that are named
    packages: tuple[str, ...] = ()
    variant: str = "minbase"
    kernel: str = ""  # package; none: the distribution's kernel for virtual machines
    kernel_arguments: str = "console=tty0 console=ttyS0,115200"
    hostname: str = "localhost"
    disk_size: int = 10 * 2**30  # bytes
    firmware: Firmware = Firmware.BOTH
    cloud_init: bool = True
    documentation: bool = False  # manual pages, documentation, translations
    root_password_hash: str = ""  # crypt(5); none: no password opens root
    ssh_authorized_keys: tuple[str, ...] = ()  # root's
    locale: str = "C.UTF-8"
    timezone: str = "Etc/UTC"

    def problems(self) -> Iterator[Problem]:
        """What can't be: values that would mean something else where they are written."""
        if self.distribution not in KERNELS:
            yield Problem(f"can't bootstrap '{self.distribution}'", hint="write 'debian' or 'ubuntu'")
        if self.architecture != "amd64":
            yield Problem(f"can't bootstrap for '{self.architecture}'", hint="only 'amd64' can be")
        words = {"suite": self.suite, "hostname": self.hostname, "timezone": self.timezone, "locale": self.locale}
        for name, value in words.items():
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+/@-]*", value):
                yield Problem(f"'{value}' can't be a {name}")
        for package in (*self.packages, self.kernel):
            if package and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*([:/=][A-Za-z0-9.+~:-]+)?", package):
                yield Problem(f"'{package}' can't be a package")
        if re.search(r"[\"'`$\\\n;{}]", self.kernel_arguments):
            yield Problem(
                f"kernel arguments with quotes, '$', ';' or braces can't be written: '{self.kernel_arguments}'"
            )
        if re.search(r"[:\s]", self.root_password_hash):
            yield Problem("the root password's hash is not one", hint="make one: openssl passwd -6")

    def fingerprint(self) -> str:
        """sha256 over everything above: the same description has the same identifiers on its disk."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self), sort_keys=True).encode()).hexdigest()


def image_files(spec: BootstrapSpec, sources: Sequence[apt.Source], disk: Layout) -> dict[str, File]:
    """The files that make a machine of the packages."""
    root = filesystem_uuid(spec)
    fstab = f"UUID={root} / ext4 errors=remount-ro 0 1\n"
    if spec.firmware.uefi:
        guid = disk[Role.ESP].guid
        fstab += f"PARTUUID={guid} /boot/efi vfat umask=0077,noauto,nofail,x-systemd.automount 0 0\n"
    files = _apt_files(spec, sources) | {
        "/etc/fstab": File(fstab),
        "/etc/hostname": File(f"{spec.hostname}\n"),
        "/etc/hosts": File(
            f"127.0.0.1 localhost\n127.0.1.1 {spec.hostname}\n::1 localhost ip6-localhost ip6-loopback\n"
        ),
        "/etc/default/locale": File(f"LANG={spec.locale}\n"),
        "/etc/default/grub.d/50-imgbuild.cfg": File(bootloader.grub_defaults(spec.kernel_arguments)),
        "/etc/initramfs-tools/conf.d/imgbuild": File(rootfs.INITRAMFS_CONFIG),
        "/etc/initramfs-tools/hooks/imgbuild": File(rootfs.INITRAMFS_HOOK, 0o755),
        "/boot/grub/grub.cfg": File(
            bootloader.grub_config(_TITLES[spec.distribution], root, spec.kernel_arguments), 0o600
        ),
        "/boot/grub/early.cfg": File(bootloader.early_config(root)),
    }
    if spec.ssh_authorized_keys:
        files["/root/.ssh/authorized_keys"] = File("\n".join(spec.ssh_authorized_keys) + "\n", 0o600)
    if spec.cloud_init:
        return {**files, "/etc/cloud/cloud.cfg.d/90_imgbuild.cfg": File(cloudinit.IMAGE_CONFIG)}
    return {
        **files,
        "/etc/systemd/network/80-dhcp.network": File(rootfs.DHCP_NETWORK),
        "/etc/systemd/system/ssh-host-keys.service": File(rootfs.HOST_KEYS_UNIT),
        "/etc/systemd/system/grow-root.service": File(rootfs.GROW_UNIT),
        "/usr/local/sbin/grow-root": File(rootfs.GROW_SCRIPT, 0o755),
    }


def filesystem_uuid(spec: BootstrapSpec) -> uuid.UUID:
    """The UUID of the root file system."""
    return partition.identifier(spec.fingerprint(), "root-filesystem")


def included(spec: BootstrapSpec) -> tuple[str, ...]:
    """The packages that are asked for; apt adds what they depend on."""
    modern = () if spec.suite in _BEFORE_RESOLVED else ("systemd-resolved", "usr-is-merged")
    loader = ("grub-pc-bin",) * spec.firmware.bios + ("grub-efi-amd64-bin",) * spec.firmware.uefi
    seeded = ("cloud-init",) * spec.cloud_init
    return (*_PACKAGES, *modern, *loader, *seeded, spec.kernel or KERNELS[spec.distribution], *spec.packages)


def configure_script(spec: BootstrapSpec) -> str:
    """What runs in the image when its packages are there."""
    services = ["systemd-networkd", "systemd-resolved"]
    services += [] if spec.cloud_init else ["ssh-host-keys", "grow-root"]
    platforms = ("i386-pc",) * spec.firmware.bios + ("x86_64-efi",) * spec.firmware.uefi
    return rootfs.configure_script(
        services=tuple(services),
        unwanted=_TIMERS,
        timezone=spec.timezone,
        grub={platform: bootloader.CORE_MODULES[platform] for platform in platforms},
    )


def _apt_files(spec: BootstrapSpec, sources: Sequence[apt.Source]) -> dict[str, File]:
    """The image's own package sources, without anybody's password, and keyrings that no package brings."""
    if spec.image_mirrors:
        sources = apt.named_sources(spec.image_mirrors, spec.distribution, spec.suite, spec.components)
    public = [apt.without_credentials(source) for source in sources]
    files = {f"/etc/apt/sources.list.d/{spec.distribution}.sources": File(apt.render(public))}
    for source in public:
        for keyring in source.options.get("Signed-By", "").split():
            if keyring.startswith("/") and f"{spec.distribution}-archive" not in keyring:
                files[keyring] = File(Path(keyring).read_bytes())
    return files
