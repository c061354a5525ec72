"""Machines for the tests of arguments and machine: one for each way that QEMU is told something, and tiny guests."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from imagebuilder.qemu.arguments import Drive, MachineConfig, VncConfig
from imagebuilder.qemu.firmware import Firmware
from imagebuilder.qemu.tpm import TpmConfig


def installer(base: Path, **changed: object) -> MachineConfig:
    """A disk and an installer's ISO, as most templates have them."""
    config = MachineConfig(
        "packer-qemu", drives=(Drive(str(base / "disk.qcow2")),), cdroms=(str(base / "a.iso"),), boot="once=d"
    )
    return replace(config, **changed)  # type: ignore[arg-type]


def three(base: Path, interface: str) -> tuple[Drive, ...]:
    names = ("disk.qcow2", "disk-1.qcow2", "disk-2.qcow2")
    return tuple(Drive(str(base / name), interface=interface, cache="unsafe") for name in names)


def uefi(base: Path, **changed: object) -> Firmware:
    firmware = Firmware(base / "OVMF_CODE.fd", base / "OVMF_VARS.fd")
    return replace(firmware, **changed)  # type: ignore[arg-type]


Case = Callable[[Path], MachineConfig]

PC_CASES: dict[str, Case] = {
    "defaults": installer,
    "ssh": lambda base: installer(base, guest_port=22),
    "host-port-range": lambda base: installer(base, guest_port=22, host_port_min=2222, host_port_max=4444),
    "disk-image": lambda base: installer(base, cdroms=(), boot="c"),
    "raw-4-cpus": lambda base: installer(
        base, cpus=4, memory_mib=1024, drives=(Drive(str(base / "disk.raw"), "raw", discard="ignore"),)
    ),
    "plain-drive": lambda base: installer(
        base, drives=(Drive(str(base / "disk.qcow2"), discard="ignore", detect_zeroes="off"),)
    ),
    "topology": lambda base: installer(base, cpus=8, sockets=2, cores=2, threads=2, cpu_model="max"),
    "virtio-three-disks": lambda base: installer(base, drives=three(base, "virtio")),
    "virtio-scsi-three-disks": lambda base: installer(base, drives=three(base, "virtio-scsi")),
    "ide-three-disks": lambda base: installer(base, drives=three(base, "ide")),
    "sata-three-disks": lambda base: installer(base, drives=three(base, "sata"), cdrom_interface="sata"),
    "scsi-three-disks": lambda base: installer(base, drives=three(base, "scsi")),
    "cdrom-virtio-scsi": lambda base: installer(base, cdrom_interface="virtio-scsi"),
    "cdrom-virtio": lambda base: installer(base, cdrom_interface="virtio"),
    "two-cdroms-and-floppy": lambda base: installer(
        base, cdroms=(str(base / "a.iso"), str(base / "b.iso")), floppy=base / "floppy.img"
    ),
    "q35-floppy": lambda base: installer(base, machine_type="q35", floppy=base / "floppy.img"),
    "q35-ide": lambda base: installer(base, machine_type="q35", drives=three(base, "ide")),
    "old-machine-type": lambda base: installer(base, machine_type="pc-i440fx-2.5"),
    "accelerator-none": lambda base: installer(base, accelerator="none", machine_type="q35"),
    "net-e1000": lambda base: installer(base, net_device="e1000"),
    "no-screen": lambda base: installer(base, vnc=None, vga="none"),
    "vnc-range-and-password": lambda base: installer(base, vnc=VncConfig("127.0.0.1", 6017, 6019, "geheim12")),
    "vnc-ipv6": lambda base: installer(base, vnc=VncConfig("::1")),
    "no-reboot": lambda base: installer(base, no_reboot=True),
    "qmp-socket": lambda base: installer(base, qmp_socket_path=base / "x.monitor"),
    "uefi": lambda base: installer(base, firmware=uefi(base)),
    "uefi-virtio-scsi-cdrom": lambda base: installer(base, firmware=uefi(base), cdrom_interface="virtio-scsi"),
    "secure-boot": lambda base: installer(base, machine_type="q35", firmware=uefi(base, smm=True)),
    "tpm": lambda base: installer(base, tpm=TpmConfig()),
    "tpm-1.2-crb": lambda base: installer(base, machine_type="q35", tpm=TpmConfig("1.2", "tpm-tis")),
    "kernel": lambda base: installer(
        base, boot=None, kernel=base / "vmlinuz", initrd=(base / "initrd.gz",), kernel_args="console=ttyS0 a=b,c"
    ),
    "kernel-two-initrds": lambda base: installer(
        base, boot=None, kernel=base / "vmlinuz", initrd=(base / "initrd.gz", base / "more.cpio")
    ),
    "commas": lambda base: installer(base, drives=(Drive(str(base / "di,sk.qcow2")),)),
    "qemuargs-other-switches": lambda base: installer(
        base, qemuargs=(("-m", "256", "M"), ("-smp", "2"), ("-nodefaults", ""), ("-rtc", "base=localtime"))
    ),
    "qemuargs-drive": lambda base: installer(
        base, qemuargs=(("-drive", f"file={base / 'disk.qcow2'},if=virtio,format=qcow2"),)
    ),
    "qemuargs-device-keeps-the-nic": lambda base: installer(base, qemuargs=(("-device", "virtio-balloon-pci"),)),
    "qemuargs-device-is-a-nic": lambda base: installer(
        base, qemuargs=(("-device", "virtio-net,netdev=user.0,mac=52:54:00:11:22:33"),)
    ),
    "qemuargs-device-brings-scsi": lambda base: installer(
        base,
        drives=(Drive(str(base / "disk.qcow2"), interface="virtio-scsi"),),
        qemuargs=(("-device", "virtio-scsi-pci,id=scsi0"), ("-device", "scsi-hd,bus=scsi0.0,drive=drive0")),
    ),
    "qemuargs-drive-for-our-scsi": lambda base: installer(
        base,
        drives=(Drive(str(base / "disk.qcow2"), interface="virtio-scsi"),),
        qemuargs=(("-drive", f"if=none,id=drive0,file={base / 'disk.qcow2'},format=qcow2"),),
    ),
    "qemuargs-serial-stays-first": lambda base: installer(base, qemuargs=(("-serial", f"file:{base / 'theirs'}"),)),
    "qemuargs-their-rng-and-panic": lambda base: installer(
        base, qemuargs=(("-device", "virtio-rng-pci"), ("-device", "pvpanic"), ("-device", "vmgenid"))
    ),
    "qemuargs-uefi-of-their-own": lambda base: installer(
        base,
        firmware=uefi(base),
        qemuargs=(
            ("-drive", f"if=pflash,format=raw,readonly=on,file={base / 'OVMF_CODE.fd'}"),
            ("-drive", f"if=virtio,format=qcow2,file={base / 'disk.qcow2'}"),
        ),
    ),
    "qemuargs-machine": lambda base: installer(base, qemuargs=(("-machine", "type=q35,accel=tcg"), ("-cpu", "max"))),
    "qemuargs-nographic": lambda base: installer(base, vnc=None, qemuargs=(("-nographic",),)),
}

OTHER_CASES: dict[str, Case] = {
    "display": lambda base: installer(base, display="gtk"),
    "bridge": lambda base: installer(base, net_bridge="br0", guest_port=22),
    "sd": lambda base: installer(base, drives=(Drive("d", interface="sd"),)),
    "bios": lambda base: installer(base, bios=base / "OVMF.fd"),
    "incoming": lambda base: installer(base, incoming=Path("memory.zst")),
    "iso-over-http": lambda base: installer(base, cdroms=("http://127.0.0.1:8000/a.iso",)),
    "aarch64-virt": lambda base: installer(
        base, binary="qemu-system-aarch64", machine_type="virt", cpu_model="max", boot=None, firmware=uefi(base),
        floppy=base / "floppy.img", net_device="virtio-net-device", guest_port=22,
    ),
    "pseries": lambda base: installer(base, binary="qemu-system-ppc64", machine_type="pseries", vga="none"),
    "s390x": lambda base: installer(base, binary="qemu-system-s390x", machine_type="s390-ccw-virtio"),
    "microvm": lambda base: installer(base, machine_type="microvm", cdroms=(), drives=()),
}  # fmt: skip

CASES = {**PC_CASES, **OTHER_CASES}


# ---- tiny guests: a boot sector each, for SeaBIOS on machine type 'pc'

HALT = bytes.fromhex("f4ebfd")
RESET = bytes.fromhex("b0fee664") + HALT  # the keyboard controller's reset line
TRIPLE_FAULT = bytes.fromhex("0f011e007e cc") + HALT  # an interrupt without a table
POWER_OFF = bytes.fromhex("ba0406 b80020 ef") + HALT  # ACPI: PM1 control of the PIIX4, at 0x604
POWER_OFF_ON_BUTTON = bytes.fromhex("ba0206 b80001 ef ba0006 ed f6c401 74f7") + POWER_OFF  # PM1 enable and status
PANIC = bytes.fromhex("ba0505 b001 ee") + HALT  # pvpanic
WRITE = bytes.fromhex("b80103 bb007e b90200 ba8000 cd13")  # INT 13h: one sector to the disk


def say(text: str) -> bytes:
    """Code that writes to the serial line."""
    return b"\xba\xf8\x03" + b"".join(b"\xb0" + bytes([letter]) + b"\xee" for letter in text.encode())


TICK = say(".") + bytes.fromhex("fb f4")  # and wait for the timer
TICKS = TICK + b"\xeb" + bytes([256 - len(TICK) - 2])  # for ever


def boot_disk(path: Path, code: bytes) -> Drive:
    """A raw disk whose boot sector is this code."""
    path.write_bytes(code.ljust(510, b"\0") + b"\x55\xaa" + bytes(2**20 - 512))
    return Drive(str(path), "raw")


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """No file of a child of ours can grow beyond 4 KiB (setrlimit(2), RLIMIT_FSIZE)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
