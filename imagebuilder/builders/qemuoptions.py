"""The keys of the qemu builder: Packer's (old and new, facts of the QEMU plugin 1.1) and ours; a description each."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from imagebuilder.autoinstall.distro import distro_names
from imagebuilder.console.bootcommand import parse as parse_boot_command
from imagebuilder.media.checksum import parse_checksum
from imagebuilder.options import LATE, Bool, Duration, Int, Lines, Options, Size, Text, TextMap, Texts, bytes_of, kind
from imagebuilder.ssh.config import CommunicatorOptions
from imagebuilder.suggestion import did_you_mean

_CHECKSUM_TYPES = ("md5", "sha1", "sha224", "sha256", "sha384", "sha512")


_RESERVED = ("manifest.json", "working", "efivars.fd")


def _rows(value: Any) -> Any:
    """[["-m", "1G"], ...]; a flat list is one row a switch, which Packer takes wrongly in silence."""
    if not isinstance(value, (list, tuple)):
        raise ValueError(f'must be a list of lists like [["-m", "1024M"]], got {kind(value)}')
    if any(not isinstance(row, (list, tuple)) for row in value):
        raise ValueError('every entry must be a list: write [["-m", "1024M"]], not ["-m", "1024M"]')
    return tuple(tuple(str(word) for word in row) for row in value)


def _steps(value: Any) -> Any:
    if not isinstance(value, (list, tuple)) or any(not isinstance(row, (list, tuple)) or not row for row in value):
        raise ValueError('must be a list of ["command", "description"] pairs')
    return tuple((str(row[0]), str(row[1]) if len(row) > 1 else "") for row in value)


def _paths(value: Any) -> Any:
    """One path or a list of them; commas belong to the path."""
    if not isinstance(value, (str, list, tuple)):
        raise ValueError(f"must be a path or a list of paths, got {kind(value)}")
    return (value,) if isinstance(value, str) and value else tuple(value)


Rows = Annotated[tuple[tuple[str, ...], ...], BeforeValidator(_rows)]
Steps = Annotated[tuple[tuple[str, str], ...], BeforeValidator(_steps)]
Sources = Annotated[tuple[str, ...], BeforeValidator(_paths)]


class QemuImgArguments(Options):
    """More arguments for qemu-img's sub-commands, put before the file names."""

    create: Texts = ()
    convert: Texts = ()
    resize: Texts = ()


class CloudInit(Options):
    """A NoCloud seed for the first boot of an existing image (cloud-init documentation, datasource NoCloud)."""

    user_data: Text = Field("", description="File with user-data of your own; default: a user with the build's key")
    meta_data: Text = Field("", description="File with meta-data of your own")
    network_config: Text = Field("", description="File with a network configuration (version 1 or 2)")
    hostname: Text = Field("", description="Host name while the build runs; default: localhost")


def _cloud_init(value: Any) -> Any:
    if isinstance(value, (bool, str)):
        return CloudInit() if value in (True, "true", "1") else None
    return value


class MachineOptions(CommunicatorOptions):
    """Keys that every builder with a QEMU machine has: machine, disks, display, firmware, shutdown."""

    vm_name: Text = Field("", description="Name of the machine and of its disk file; default packer-BUILDNAME")
    output_directory: Text = Field("", description="Where the image appears when all is done; default output-BUILDNAME")

    disk_size: Size = Field(40960 * 2**20, description="Size of the system disk: '10G', '40960M', '40960' (MiB)")
    disk_additional_size: Texts = Field((), description="Sizes of further disks")
    disk_interface: Literal["ide", "sata", "scsi", "sd", "virtio", "virtio-scsi"] = Field(
        "virtio", description="How the guest sees its disks"
    )
    disk_cache: Literal["writethrough", "writeback", "none", "unsafe", "directsync"] = Field(
        "writeback", description="QEMU's cache mode while the build runs"
    )
    disk_discard: Literal["ignore", "unmap"] = Field("unmap", description="Whether freed blocks leave the image")
    disk_detect_zeroes: Literal["off", "on", "unmap"] = Field("unmap", description="Whether written zeroes take space")
    format: Literal["qcow2", "raw"] = Field("qcow2", description="Format of the finished image")
    disk_compression: Bool = Field(True, description="Compress the finished qcow2 (zstd; QEMU 5.1 and later read it)")
    skip_compaction: Bool = Field(False, description="Leave the disk as the build left it")
    skip_resize_disk: Bool = Field(False, description="With disk_image: keep the size of the image")
    qemu_img_args: QemuImgArguments = Field(QemuImgArguments(), description="More arguments for qemu-img")

    accelerator: Literal["", "none", "kvm", "tcg", "xen", "hax", "hvf", "whpx"] = Field(
        "", description="Default: KVM where it is proved to work, else TCG"
    )
    machine_type: Text = Field("pc", description="QEMU machine type")
    cpus: Int = Field(1, ge=0, description="Number of virtual CPUs")
    sockets: Int = Field(0, ge=0, description="CPU sockets")
    cores: Int = Field(0, ge=0, description="Cores a socket")
    threads: Int = Field(0, ge=0, description="Threads a core")
    cpu_model: Text = Field("", description="QEMU CPU model")
    memory: Int = Field(512, description="Memory in MiB")
    net_device: Text = Field("virtio-net", description="QEMU network device")
    net_bridge: Text = Field("", description="Bridge of the host to attach to instead of user-mode networking")
    qemu_binary: Text = Field("qemu-system-x86_64", description="The QEMU program")
    qemuargs: Annotated[Rows, LATE] = Field((), description="QEMU arguments; a switch given here replaces ours")
    qmp_enable: Bool = Field(False, description="Open a QMP socket for you as well")
    qmp_socket_path: Text = Field("", description="Where that socket is; default OUTPUT/VMNAME.monitor")
    headless: Bool = Field(True, description="No window; imgbuild has the screen through VNC and QMP in any case")
    display: Text = Field("", description="QEMU display when not headless")
    use_default_display: Bool = Field(False, description="Let QEMU choose its display")
    vga: Text = Field("", description="QEMU VGA device")
    run_once: Bool = Field(False, description="Accepted and ignored, as in Packer")

    firmware: Text = Field("", description="Firmware image for -bios, or with use_pflash as pflash")
    use_pflash: Bool = Field(False, description="Give `firmware` as pflash")
    efi_boot: Bool = Field(False, description="Boot by UEFI; firmware is found through QEMU's descriptors")
    efi_secure_boot: Bool = Field(False, description="UEFI with Secure Boot and enrolled keys")
    efi_firmware_code: Text = Field("", description="UEFI code image; default: found")
    efi_firmware_vars: Text = Field("", description="UEFI variables template; default: found")
    efi_drop_efivars: Bool = Field(False, description="Don't ship the UEFI variables with the image")
    vtpm: Bool = Field(False, description="Give the guest a TPM (swtpm)")
    use_tpm1: Bool = Field(False, description="TPM 1.2 instead of 2.0")
    tpm_device_type: Text = Field("tpm-tis", description="QEMU TPM device")

    disable_vnc: Bool = Field(False, description="No VNC server")
    vnc_bind_address: Text = Field("127.0.0.1", description="Where the VNC server listens")
    vnc_port_min: Int | None = Field(None, description="Lowest VNC port; default: QEMU takes a free one")
    vnc_port_max: Int | None = Field(None, description="Highest VNC port")
    vnc_use_password: Bool = Field(False, description="Protect VNC with a random password")
    vnc_password: Text = Field("", description="That password; at most 8 characters count")

    shutdown_command: Annotated[Text, LATE] = Field("", description="Run in the guest to shut it down; default: ACPI")
    shutdown_timeout: Duration = Field(300.0, description="How long a shutdown may take")
    seal: Bool | None = Field(
        None, description="Empty machine-id, host keys, logs before the end; default: when we installed the system"
    )

    cache: Bool = Field(True, description="false: keep no layer of this build's steps, and use none")
    cache_key: Text = Field("", description="Whatever else the first step depends on: another text is another layer")

    renamed: ClassVar[Mapping[str, str]] = CommunicatorOptions.renamed

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if "/" in self.vm_name or "\0" in self.vm_name or self.vm_name.startswith(".") or self.vm_name in _RESERVED:
            yield "vm_name", f"'{self.vm_name}' can't be the name of a disk in the output directory"
        for size in self.disk_additional_size:
            try:
                bytes_of(size)
            except ValueError as error:
                yield "disk_additional_size", str(error)
        for low, high in (("vnc_port_min", "vnc_port_max"), ("host_port_min", "host_port_max")):
            first, last = getattr(self, low), getattr(self, high)
            if first is not None and last is not None and first > last:
                yield low, f"{first} is greater than {high} {last}"
        if self.vnc_port_min is not None and self.vnc_port_min < 5900:
            yield "vnc_port_min", "VNC ports begin at 5900"
        if self.disable_vnc and self.vnc_use_password:
            yield "vnc_use_password", "there is no VNC to protect: disable_vnc is set"
        if self.net_bridge and self.communicator != "none" and not self.ssh_host:
            yield "net_bridge", "needs 'ssh_host': the guest's address on a bridge is not found out"
        if self.use_pflash and not self.firmware:
            yield "use_pflash", "needs 'firmware': the image to give as pflash"
        for key in ("firmware", "efi_firmware_code", "efi_firmware_vars"):
            name = getattr(self, key)
            if name and not Path(name).is_file():
                yield key, f"there is no file '{name}'"
        if self.disk_size == 0:
            yield "disk_size", "must not be 0"

    def doubts(self) -> Iterator[tuple[str, str]]:
        yield from super().doubts()
        if self.memory < 10:
            yield "memory", f"{self.memory} MiB is no machine: 512 is taken, as Packer does"
        if not self.shutdown_command and self.communicator != "none":
            yield "shutdown_command", "not given: the guest is asked by ACPI to power off (Packer would kill it)"
        if self.run_once:
            yield "run_once", "has no effect"

    @property
    def seals(self) -> bool:
        """Whether what makes a machine one of a kind is removed before it is shut down."""
        return bool(self.seal)

    @property
    def stays_overlay(self) -> bool:
        """Whether the result is an overlay on the image that was given."""
        return False

    @property
    def efi(self) -> bool:
        """Whether the machine boots by UEFI."""
        return self.efi_boot or self.efi_secure_boot or bool(self.efi_firmware_code or self.efi_firmware_vars)

    @property
    def memory_mib(self) -> int:
        return self.memory if self.memory >= 10 else 512


class QemuOptions(MachineOptions):
    """The qemu builder: an installer ISO, a kernel and initrd, or an existing disk image."""

    distro: Text = Field("", description="A release of distros/: brings ISO, kernel, initrd, arguments and kickstart")
    iso_url: Text = Field("", description="Path or URL of the ISO, or with disk_image of the disk")
    iso_urls: Texts = Field((), description="Several URLs of the same file, tried in order")
    iso_checksum: Text = Field("", description="'none', a hex digest, 'sha256:...' or 'file:URL_or_path'")
    iso_target_path: Text = Field("", description="Where the download goes; default: the cache")
    iso_target_extension: Text = Field("iso", description="Its extension in the cache")
    iso_skip_cache: Bool = Field(False, description="QEMU reads the ISO over HTTP by itself")
    disk_image: Bool = Field(False, description="iso_url is a bootable disk image")
    use_backing_file: Bool = Field(False, description="With disk_image: the result is an overlay on that image")
    cloud_init: Annotated[CloudInit | None, BeforeValidator(_cloud_init)] = Field(
        None, description="true, or an object: seed the first boot with NoCloud"
    )

    kernel: Text = Field("", description="Kernel for a direct boot: path, URL, or 'iso:/path' in the ISO")
    initrd: Sources = Field((), description="Its initrds, likewise")
    kernel_args: Annotated[Text, LATE] = Field("", description="Its command line; {{ .HTTPIP }} and the like are known")
    wait_for_reset: Bool | None = Field(
        None,
        description="Take SSH for the installed system's only after the installer rebooted; default: with `distro`",
    )

    boot_wait: Duration = Field(10.0, description="Wait before the boot command; negative: don't")
    boot_command: Annotated[Lines, LATE] = Field((), description="What is typed at the boot prompt")
    boot_steps: Annotated[Steps, LATE] = Field((), description="The same as [command, description] pairs")
    boot_key_interval: Duration = Field(0.0, description="Pause after each key event; default: as fast as is safe")
    boot_keygroup_interval: Duration = Field(0.0, description="Has no effect with QEMU, in Packer neither")

    http_directory: Text = Field("", description="Directory served to the guest")
    http_content: TextMap = Field({}, description="Path -> text served to the guest")
    http_templates: TextMap = Field({}, description="Path -> Jinja2 file of kickstarts/ or your own, rendered")
    http_port_min: Int | None = Field(None, description="Lowest port; default: a free one")
    http_port_max: Int | None = Field(None, description="Highest port")
    http_bind_address: Text = Field("127.0.0.1", description="Where the server listens; QEMU's user network reaches it")
    http_interface: Text = Field("", description="Has no effect: the guest is told 10.0.2.2, QEMU's name for us")
    http_network_protocol: Literal["", "tcp", "tcp4", "tcp6"] = Field("", description="Has no effect: TCP is served")

    floppy_files: Texts = Field((), description="Files and globs for a floppy, flat")
    floppy_dirs: Texts = Field((), description="Directories for a floppy; 'a/' means what is in it")
    floppy_content: TextMap = Field({}, description="Path -> text for a floppy")
    floppy_label: Text = Field("packer", description="Its volume label")
    cd_files: Texts = Field((), description="Files, globs and directories for a second CD")
    cd_content: TextMap = Field({}, description="Path -> text for that CD")
    cd_label: Text = Field("packer", description="Its volume label ('cidata' for cloud-init)")
    cdrom_interface: Text = Field("", description="How the guest sees its CD drives; default: the machine's own way")

    renamed: ClassVar[Mapping[str, str]] = MachineOptions.renamed

    @classmethod
    def upgrade(cls, raw: dict[str, Any]) -> Iterator[tuple[str, str]]:
        yield from super().upgrade(raw)
        yield from _upgrade_checksum(raw)

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        yield from self._source_problems()
        yield from self._boot_problems()
        yield from self._http_problems()

    def _source_problems(self) -> Iterator[tuple[str, str]]:
        bare = bool(self.kernel) and not any(source.startswith("iso:") for source in (self.kernel, *self.initrd))
        if self.distro and self.distro not in distro_names():
            near = did_you_mean(self.distro, distro_names())
            yield (
                "distro",
                f"there is no release '{self.distro}'; " + (near or f"there are {', '.join(distro_names())}"),
            )
        if self.iso_url and self.iso_urls:
            yield "iso_urls", "give iso_url or iso_urls, not both"
        if not self.urls and not self.distro and not bare:
            yield "iso_url", "is missing: say what to boot (iso_url, kernel, or distro)"
        if self.urls and not self.iso_checksum and not self.distro and not self.iso_skip_cache:
            yield "iso_checksum", "is missing: give a digest like 'sha256:...', 'file:URL' of a list of them, or 'none'"
        if self.iso_checksum:
            try:
                parse_checksum(self.iso_checksum)
            except ValueError as error:
                yield "iso_checksum", str(error)
        if self.use_backing_file and not (self.disk_image and self.format == "qcow2"):
            yield "use_backing_file", "needs disk_image true and format qcow2"
        if self.skip_resize_disk and not self.disk_image:
            yield "skip_resize_disk", "needs disk_image true"
        for key in ("user_data", "meta_data", "network_config"):
            name = getattr(self.cloud_init, key) if self.cloud_init else ""
            if name and not Path(name).is_file():
                yield "cloud_init", f"{key}: there is no file '{name}'"

    def _boot_problems(self) -> Iterator[tuple[str, str]]:
        if self.boot_command and self.boot_steps:
            yield "boot_steps", "give boot_command or boot_steps, not both"
        if self.kernel_args and not self.kernel and not self.distro:
            yield "kernel_args", "needs a kernel"
        if self.initrd and not self.kernel:
            yield "initrd", "needs a kernel"
        for key, text in self._typed():
            for problem in parse_boot_command(text).problems:
                yield key, str(problem)

    def _http_problems(self) -> Iterator[tuple[str, str]]:
        low, high = self.http_port_min, self.http_port_max
        if low is not None and high is not None and low > high:
            yield "http_port_min", f"{low} is greater than http_port_max {high}"
        if self.http_directory and not Path(self.http_directory).is_dir():
            yield "http_directory", f"there is no directory '{self.http_directory}'"
        if self.http_directory and self.http_content:
            yield "http_content", "give http_directory or http_content, not both"

    def doubts(self) -> Iterator[tuple[str, str]]:
        yield from super().doubts()
        if self.boot_keygroup_interval:
            yield "boot_keygroup_interval", "has no effect with QEMU; boot_key_interval slows typing down"
        for key in ("http_interface", "http_network_protocol"):
            if getattr(self, key):
                yield key, "has no effect: the guest reaches us as 10.0.2.2; http_bind_address says where we listen"
        for url in self.urls:
            if "://" not in url and "::" not in url and not Path(url).exists():
                yield "iso_urls" if self.iso_urls else "iso_url", f"there is no file '{url}' (yet?)"
        if self.iso_checksum == "none" and self.urls:
            yield "iso_checksum", "'none': nobody notices a broken or foreign file; give its digest"
        if self.http_bind_address in ("0.0.0.0", "::"):  # noqa: S104 - it is looked for, not bound
            yield "http_bind_address", "serves your kickstart on every network of this machine; loopback is enough"
        if self.use_backing_file and "disk_compression" in self.model_fields_set and self.disk_compression:
            yield "disk_compression", "an overlay is not compressed: it stays as it is"
        for key, text in self._typed():
            for warning in parse_boot_command(text).warnings:
                yield key, str(warning)

    def _typed(self) -> Iterator[tuple[str, str]]:
        """What will be typed, as it stands before templates in it are rendered."""
        if self.boot_command:
            yield "boot_command", "".join(self.boot_command)
        for command, _ in self.boot_steps:
            yield "boot_steps", command

    @property
    def seals(self) -> bool:
        return bool(self.distro) if self.seal is None else self.seal

    @property
    def stays_overlay(self) -> bool:
        return self.use_backing_file

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the ISO or disk image is to be had."""
        return (self.iso_url,) if self.iso_url else self.iso_urls


def _upgrade_checksum(raw: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """iso_checksum_type, iso_checksum_url and iso_md5 of Packer before 1.6 -> iso_checksum."""
    if "iso_md5" in raw:
        raw.setdefault("iso_checksum", f"md5:{raw.pop('iso_md5')}")
        yield "iso_md5", "iso_checksum"
    sort = str(raw.pop("iso_checksum_type")).lower() if "iso_checksum_type" in raw else None
    url = raw.pop("iso_checksum_url", None)
    if sort is not None:
        digest = str(raw.get("iso_checksum", ""))
        if sort == "none":
            raw["iso_checksum"] = "none"
        elif digest and ":" not in digest and sort in _CHECKSUM_TYPES:
            raw["iso_checksum"] = f"{sort}:{digest}"
        yield "iso_checksum_type", f"iso_checksum: '{raw.get('iso_checksum') or sort + ':DIGEST'}'"
    if url is not None:
        if not raw.get("iso_checksum"):
            raw["iso_checksum"] = f"file:{url}"
        yield "iso_checksum_url", f"iso_checksum: 'file:{url}'"


def system_disk_name(options: MachineOptions, build_name: str) -> str:
    """The machine's name, which is its disk's file name too."""
    return options.vm_name or "packer-" + re.sub(r"[/\s]", "-", build_name)
