"""From a builder's options to a machine's description, and how that machine first comes up."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imagebuilder.builders.qemuoptions import MachineOptions, system_disk_name
from imagebuilder.plugins import BuildContext
from imagebuilder.qemu import accel, firmware, qemuargs
from imagebuilder.qemu.arguments import Drive, MachineConfig, VncConfig, arguments, dropped
from imagebuilder.qemu.tpm import TpmConfig
from imagebuilder.ui import Ui

GUEST_VIEW = "10.0.2.2"  # this machine as QEMU's user network shows it to the guest


@dataclass(frozen=True)
class FirstBoot:
    """How a machine first comes up; `installing`: that boot ends with a reset or power-off, the next is from disk."""

    drives: tuple[Drive, ...]
    cdroms: tuple[str, ...] = ()
    floppy: Path | None = None
    kernel: Path | None = None
    initrd: tuple[Path, ...] = ()
    kernel_args: str = ""
    boot: str | None = None
    installing: bool = False
    foreign: bool = False  # what boots, now or first of all, is an ISO or a kernel that we know nothing of
    typed: tuple[tuple[str, str], ...] = ()  # (boot command, description)
    boot_wait: float = 0.0  # seconds
    key_interval: float = 0.0  # seconds; 0: as fast as is safe


def drive(options: MachineOptions, path: Path | str, format: str = "qcow2") -> Drive:
    """A disk the way the options want disks."""
    return Drive(
        str(path), format, options.disk_interface, options.disk_cache, options.disk_discard, options.disk_detect_zeroes
    )


def machine_config(
    options: MachineOptions, context: BuildContext, boot: FirstBoot, accelerator: accel.Choice, dot: Mapping[str, Any]
) -> MachineConfig:
    """The machine of the first boot. `dot`: what late templates in qemuargs may use."""
    o = options
    rows = tuple(tuple(context.renderer.render(word, dot=dot) for word in row) for row in o.qemuargs)
    if accelerator.name == "tcg":
        rows = qemuargs.without_kvm(rows)
    return MachineConfig(
        name=system_disk_name(o, context.build_name), binary=o.qemu_binary, machine_type=o.machine_type,
        accelerator=accelerator.name, cpu_model=o.cpu_model or _cpu_model(accelerator, boot), cpus=o.cpus or 1,
        sockets=o.sockets, cores=o.cores, threads=o.threads, memory_mib=o.memory_mib,
        drives=boot.drives, cdroms=boot.cdroms, cdrom_interface=getattr(o, "cdrom_interface", ""), floppy=boot.floppy,
        boot=boot.boot, kernel=boot.kernel, initrd=boot.initrd, kernel_args=boot.kernel_args,
        net_device=o.net_device, net_bridge=o.net_bridge or None,
        guest_port=None if o.communicator == "none" or o.skip_nat_mapping else o.ssh_port,
        host_port_min=o.host_port_min, host_port_max=o.host_port_max,
        vnc=_vnc(o), display=_display(o), vga=o.vga,
        bios=Path(o.firmware) if o.firmware and not o.use_pflash else None, firmware=_firmware(o),
        tpm=TpmConfig("1.2" if o.use_tpm1 else "2.0", o.tpm_device_type) if o.vtpm else None,
        no_reboot=boot.installing, qmp_socket_path=Path(o.qmp_socket_path) if o.qmp_socket_path else None,
        qemuargs=rows,
    )  # fmt: skip


def from_disk(config: MachineConfig) -> MachineConfig:
    """The same machine after an installation: no kernel of ours, the installer's media gone, boot from disk."""
    return replace(config, kernel=None, initrd=(), kernel_args="", cdroms=(), floppy=None, boot="c", no_reboot=False)


def choose_accelerator(options: MachineOptions, ui: Ui) -> accel.Choice:
    """Which accelerator works here; one line when it is not the one a person would expect."""
    choice = accel.choose(options.accelerator or None, options.qemu_binary)
    if choice.warning:
        ui.warning(choice.warning)
    return choice


def warn_of_lost_parts(config: MachineConfig, ui: Ui) -> None:
    """Say what the user's qemuargs take away."""
    for warning in dropped(config):
        ui.warning(warning)


def mask_passwords(config: MachineConfig, ui: Ui) -> None:
    """A VNC password must not be seen in any log."""
    if config.vnc is not None and config.vnc.password:
        ui.mask(config.vnc.password)


def placeholders(options: MachineOptions, context: BuildContext) -> dict[str, Any]:
    """What late templates find when nothing runs: what only a run can know stands in <angle brackets>."""
    return {
        "HTTPIP": GUEST_VIEW, "HTTPPort": "<port>", "HTTPDir": "", "HTTPContent": "", "OutputDir": "<output>",
        "Name": system_disk_name(options, context.build_name), "SSHHostPort": "<port>", "SSHPublicKey": "<key>",
    }  # fmt: skip


def argv(options: MachineOptions, context: BuildContext, boot: FirstBoot) -> tuple[str, ...]:
    """QEMU's arguments as far as they are known before a run; the accelerator is proved at the first build."""
    name = options.accelerator or "<kvm if it works here, else tcg>"
    config = machine_config(options, context, boot, accel.Choice(name, ""), placeholders(options, context))
    return tuple(arguments(config))


def _cpu_model(accelerator: accel.Choice, boot: FirstBoot) -> str | None:
    """KVM: the fullest that works. TCG: the same where an unknown system is installed (EL 9 and 10 need newer CPUs than
    QEMU's default), else QEMU's default, under which an emulated Debian boots a tenth sooner (docs/benchmarks.md)."""
    return accelerator.cpu_model if accelerator.name != "tcg" or boot.foreign else None


def _display(options: MachineOptions) -> str | None:
    if options.headless:
        return None
    return options.display or (None if options.use_default_display else "gtk")


def _vnc(options: MachineOptions) -> VncConfig | None:
    if options.disable_vnc:
        return None
    password = options.vnc_password or (secrets.token_urlsafe(6) if options.vnc_use_password else None)
    return VncConfig(options.vnc_bind_address, options.vnc_port_min, options.vnc_port_max, password)


def _firmware(options: MachineOptions) -> firmware.Firmware | None:
    o = options
    if o.firmware and o.use_pflash:
        return firmware.given(Path(o.firmware))
    if o.efi_firmware_code:
        return firmware.given(Path(o.efi_firmware_code), Path(o.efi_firmware_vars) if o.efi_firmware_vars else None)
    if not o.efi:
        return None
    architecture = Path(shutil.which(o.qemu_binary) or o.qemu_binary).name.removeprefix("qemu-system-")
    found = firmware.find(architecture, o.machine_type, secure_boot=o.efi_secure_boot)
    return replace(found, vars=Path(o.efi_firmware_vars)) if o.efi_firmware_vars else found
