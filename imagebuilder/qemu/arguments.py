"""`MachineConfig`: a machine as imgbuild means it; `arguments`: the same as QEMU is told it (qemu(1), invocation).

Pure and stable: the same machine gives the same argv, in the same order, with the same ids, so that a machine's
memory can be restored into one that is started later (layers), and logs can be compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from imagebuilder.qemu import qemuargs
from imagebuilder.qemu.firmware import Firmware
from imagebuilder.qemu.qemuargs import Argument, default, own
from imagebuilder.qemu.tpm import TpmConfig

VNC_FIRST, VNC_LAST = 5900, 15899  # ports that QEMU tries one after the other when no range was given


@dataclass(frozen=True)
class Drive:
    """A disk: a path or URL. Options as `-drive` of QEMU names them."""

    path: str
    format: str = "qcow2"  # qcow2, raw
    interface: str = "virtio"  # virtio, virtio-scsi, ide, sata, scsi, sd
    cache: str = "writeback"
    discard: str = "unmap"
    detect_zeroes: str = "unmap"


@dataclass(frozen=True)
class VncConfig:
    """Where the VNC server listens: the first free port of the range, both ends included."""

    bind: str = "127.0.0.1"
    port_min: int | None = None
    port_max: int | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True)
class MachineConfig:
    """A machine. Names are those of the template's keys; `memory_mib` in MiB."""

    name: str
    binary: str = "qemu-system-x86_64"
    machine_type: str = "pc"
    accelerator: str = "tcg"  # "none": QEMU's own choice
    cpu_model: str | None = None
    cpus: int = 1
    sockets: int = 0
    cores: int = 0
    threads: int = 0
    memory_mib: int = 512
    drives: tuple[Drive, ...] = ()
    cdroms: tuple[str, ...] = ()
    cdrom_interface: str = ""
    floppy: Path | None = None
    boot: str | None = None  # value of -boot; None, and with UEFI: the first disk, then the CD-ROMs
    kernel: Path | None = None
    initrd: tuple[Path, ...] = ()  # several are joined
    kernel_args: str = ""
    net_device: str = "virtio-net"
    net_bridge: str | None = None
    guest_port: int | None = None  # forwarded from a port of 127.0.0.1
    host_port_min: int | None = None
    host_port_max: int | None = None
    vnc: VncConfig | None = field(default_factory=VncConfig)
    display: str | None = None  # None: no window
    vga: str = ""
    bios: Path | None = None
    firmware: Firmware | None = None
    nvram: Path | None = None  # the guest's UEFI variables; None: a file in the machine's private directory
    tpm: TpmConfig | None = None
    no_reboot: bool = False
    qmp_socket_path: Path | None = None  # a second monitor, for the person
    qemuargs: tuple[tuple[str, ...], ...] = ()
    incoming: Path | None = None  # what `memory.save` wrote: the machine goes on from there


@dataclass(frozen=True)
class Runtime:
    """What only the start of a machine knows; the defaults are for showing an argv without starting anything."""

    qmp_fd: int = 3
    tpm_fd: int = 4
    memory_fd: int = 5
    serial_log: Path = Path("serial.log")
    nvram: Path = Path("efivars.fd")
    initrd: Path = Path("initrd.img")  # where several initrds were joined


def arguments(config: MachineConfig, runtime: Runtime | None = None) -> list[str]:
    """QEMU's argv for a machine, its program first."""
    return [config.binary, *qemuargs.merge(_all(config, runtime or Runtime()), config.qemuargs)]


def dropped(config: MachineConfig) -> list[str]:
    """What the user's qemuargs take away, or what can't be had on this machine type: each worth a warning."""
    return list(_dropped(config))


def _dropped(config: MachineConfig) -> Iterator[str]:
    rows = config.qemuargs
    drives, devices = qemuargs.values(rows, "-drive"), qemuargs.values(rows, "-device")
    if drives:
        named = {path: Path(path).name for path in (*(drive.path for drive in config.drives), *config.cdroms)}
        lost = [path for path, name in named.items() if not any(name in value for value in drives)]
        if lost:
            yield f"your -drive in qemuargs removes {_listed(lost)} from the machine: name them in -drive rows as well"
    elif devices and config.drives and config.drives[0].interface in _SCSI:
        lost = [f"drive{n}" for n in range(len(config.drives)) if not any(f"drive=drive{n}" in row for row in devices)]
        if lost:
            yield f"your -device in qemuargs removes the SCSI controller and the disk devices of {_listed(lost)}"
    netdevs = qemuargs.values(rows, "-netdev")
    if netdevs and config.guest_port and not any("hostfwd=" in value for value in netdevs):
        yield f"your -netdev in qemuargs removes the forward to the guest's port {config.guest_port}"
    if any(row and row[0] in ("-daemonize", "--daemonize") for row in rows):
        yield "-daemonize in qemuargs is ignored: imgbuild owns the QEMU process"
    if config.floppy and not _is_pc(config):
        yield f"machine type '{_type(config)}' has no floppy drive: the floppy is left out"


_SCSI = ("virtio-scsi", "scsi")
_CD_BUS = "cd-scsi"  # where machines without IDE have their CD-ROMs


def _listed(paths: list[str]) -> str:
    return " and ".join(f"'{path}'" for path in paths)


def _all(config: MachineConfig, runtime: Runtime) -> Iterator[Argument]:
    yield from _machine(config)
    yield from _firmware(config, runtime)
    yield from _kernel(config, runtime)
    yield from _storage(config)
    yield from _network(config)
    yield from _screen(config)
    yield from _ours(config, runtime)
    if config.tpm:
        yield own("-chardev", f"socket,id=imgbuild-tpm,fd={runtime.tpm_fd}")
        yield own("-tpmdev", "emulator,id=tpm0,chardev=imgbuild-tpm")
        yield own("-device", f"{config.tpm.device},tpmdev=tpm0")
    if config.incoming:
        yield own("-incoming", f"fd:{runtime.memory_fd}")
    yield own("-S")  # the guest runs when password and forwards are set


def quote(value: object) -> str:
    """A value inside a comma-separated argument: QEMU takes ',,' as a comma."""
    return str(value).replace(",", ",,")


# ---- what machine types have


def _type(config: MachineConfig) -> str:
    return qemuargs.machine_type(config.qemuargs, config.machine_type)


def _is_pc(config: MachineConfig) -> bool:
    return re.match(r"(pc|q35)(-|$)", _type(config)) is not None


def _has_vmgenid(config: MachineConfig) -> bool:
    version = re.search(r"-(\d+)\.(\d+)$", _type(config))  # fw_cfg can't be written to before 2.6
    return _is_pc(config) and (version is None or (int(version[1]), int(version[2])) >= (2, 6))


def _virtio(config: MachineConfig, device: str) -> str:
    return f"virtio-{device}-{'ccw' if _type(config).startswith('s390') else 'pci'}"


# ---- the parts of a machine


def _machine(config: MachineConfig) -> Iterator[Argument]:
    yield default("-name", quote(config.name))
    accelerator = "" if config.accelerator == "none" else f",accel={config.accelerator}"
    smm = ",smm=on" if config.firmware and config.firmware.smm else ""
    yield default("-machine", f"type={config.machine_type}{accelerator}{smm}")
    if config.cpu_model:
        yield default("-cpu", config.cpu_model)
    topology = {"sockets": config.sockets, "cores": config.cores, "threads": config.threads}
    yield default("-smp", ",".join([str(config.cpus), *(f"{key}={n}" for key, n in topology.items() if n)]))
    yield default("-m", f"{config.memory_mib}M")


def _firmware(config: MachineConfig, runtime: Runtime) -> Iterator[Argument]:
    if config.bios:
        yield default("-bios", str(config.bios))
    firmware = config.firmware
    if firmware and not any("if=pflash" in value for value in qemuargs.values(config.qemuargs, "-drive")):
        code = f"file={quote(firmware.code)},if=pflash,unit=0,format={firmware.code_format},readonly=on"
        yield Argument("-drive", code)
        if firmware.vars:
            nvram = quote(config.nvram or runtime.nvram)
            yield Argument("-drive", f"file={nvram},if=pflash,unit=1,format={firmware.vars_format}")
        if firmware.smm:
            yield Argument("-global", "driver=cfi.pflash01,property=secure,value=on")
    if config.boot and not firmware:
        yield default("-boot", config.boot)


def _kernel(config: MachineConfig, runtime: Runtime) -> Iterator[Argument]:
    if config.kernel:
        yield default("-kernel", str(config.kernel))
        if config.initrd:
            yield default("-initrd", str(config.initrd[0] if len(config.initrd) == 1 else runtime.initrd))
        if config.kernel_args:
            yield default("-append", config.kernel_args)


def _storage(config: MachineConfig) -> Iterator[Argument]:
    cd_interface = config.cdrom_interface or ("ide" if _is_pc(config) else _CD_BUS)
    interfaces = {*(drive.interface for drive in config.drives), *([cd_interface] if config.cdroms else [])}
    yield from _controllers(config, interfaces)
    by_index = config.boot is None or config.firmware is not None
    ports = dict.fromkeys([*interfaces], 0)  # the next free one of each bus
    for number, drive in enumerate(config.drives):
        zeroes = "" if drive.detect_zeroes == "off" else f",detect-zeroes={drive.detect_zeroes}"
        options = f"cache={drive.cache},discard={drive.discard},format={drive.format}{zeroes}"
        index = ",bootindex=1" if by_index and number == 0 else ""
        yield from _medium(config, drive.interface, f"drive{number}", drive.path, options, "disk", ports, index)
    for number, path in enumerate(config.cdroms):
        index = f",bootindex={number + 2}" if by_index else ""
        yield from _medium(config, cd_interface, f"cdrom{number}", path, "media=cdrom,format=raw", "cd", ports, index)
    if config.floppy and _is_pc(config):
        floppy = f"file={quote(config.floppy)},if=floppy,index=0,format=raw,id=floppy0"
        yield Argument("-drive", floppy, frozenset({"-fda"}))


def _controllers(config: MachineConfig, interfaces: set[str]) -> Iterator[Argument]:
    """Buses that machines don't come with; rows bring their own SCSI, so that a `-device` row drops ours."""
    if "virtio-scsi" in interfaces:
        yield default("-device", f"{_virtio(config, 'scsi')},id=scsi0")
    if "scsi" in interfaces and _is_pc(config):
        yield default("-device", "lsi53c895a,id=lsi0")
    if _CD_BUS in interfaces:
        yield Argument("-device", f"{_virtio(config, 'scsi')},id=cdscsi0", frozenset({"-drive"}))
    if "sata" in interfaces:
        yield Argument("-device", "ahci,id=ahci0", frozenset({"-drive"}))


def _medium(
    config: MachineConfig,
    interface: str,
    name: str,
    path: str,
    options: str,
    kind: str,
    ports: dict[str, int],
    index: str,
) -> Iterator[Argument]:
    """A drive and the device that shows it to the guest; the device goes when a `-drive` row drops the drive."""
    device = _device(config, interface, "hd" if kind == "disk" else "cd", ports[interface])
    ports[interface] += 1
    if not device:
        yield default("-drive", f"file={quote(path)},if={interface},id={name},{options}")
        return
    theirs = any(f"id={name}" in value.split(",") for value in qemuargs.values(config.qemuargs, "-drive"))
    also = {"-device", *(() if theirs else ("-drive",))} if interface in _SCSI else {"-drive"}
    yield default("-drive", f"file={quote(path)},if=none,id={name},{options}")
    number = name.removeprefix("drive").removeprefix("cdrom")
    yield Argument("-device", f"{device},drive={name},id={kind}{number}{index}", frozenset(also))


def _device(config: MachineConfig, interface: str, kind: str, port: int) -> str:
    """The device on the `port`th place of a bus; '' when only the machine itself can make one (`-drive if=`)."""
    if interface == "virtio":
        return _virtio(config, "blk")
    if interface == "sata":
        return f"ide-{kind},bus=ahci0.{port}"
    if interface == "virtio-scsi":
        return f"scsi-{kind},bus=scsi0.0"
    if interface == _CD_BUS:
        return "scsi-cd,bus=cdscsi0.0"
    if interface == "scsi" and _is_pc(config):
        return f"scsi-{kind},bus=lsi0.0"
    if interface == "ide" and _is_pc(config):
        q35 = "q35" in _type(config)  # there the six IDE buses are SATA ports
        return f"ide-{kind},bus=ide.{port}" if q35 else f"ide-{kind},bus=ide.{port // 2},unit={port % 2}"
    return ""


def _network(config: MachineConfig) -> Iterator[Argument]:
    if config.net_bridge:
        yield default("-netdev", f"bridge,id=user.0,br={quote(config.net_bridge)}")
    else:
        forward = f",hostfwd=tcp:127.0.0.1:0-:{config.guest_port}" if config.guest_port and not _ranged(config) else ""
        yield default("-netdev", f"user,id=user.0{forward}")
    theirs = any(config.net_device in value for value in qemuargs.values(config.qemuargs, "-device"))
    yield Argument("-device", f"{config.net_device},netdev=user.0", frozenset({"-device"} if theirs else ()))


def _ranged(config: MachineConfig) -> bool:
    return config.host_port_min is not None or config.host_port_max is not None


def _screen(config: MachineConfig) -> Iterator[Argument]:
    if config.display is not None or config.vnc is None:
        yield default("-display", config.display or "none", "-nographic")
    if config.vga:
        yield default("-vga", config.vga)
    if config.vnc:
        first, last = config.vnc.port_min or VNC_FIRST, config.vnc.port_max or VNC_LAST
        bind = f"[{config.vnc.bind}]" if ":" in config.vnc.bind else config.vnc.bind
        password = ",password=on" if config.vnc.password else ""
        yield default("-vnc", f"{bind}:{first - 5900},to={max(first, last) - 5900}{password}")
    if config.no_reboot:
        yield default("-no-reboot")


def _ours(config: MachineConfig, runtime: Runtime) -> Iterator[Argument]:
    yield own("-chardev", f"file,id=imgbuild-serial,path={quote(runtime.serial_log)},append=on")
    yield own("-serial", "chardev:imgbuild-serial")
    yield own("-chardev", f"socket,id=imgbuild-qmp,fd={runtime.qmp_fd},server=on,wait=off")
    yield own("-mon", "chardev=imgbuild-qmp,mode=control")
    if config.qmp_socket_path:
        yield own("-qmp", f"unix:{quote(config.qmp_socket_path)},server=on,wait=off")
    yield own("-action", "panic=pause")  # so that the screen of a panic can still be looked at
    devices = {_virtio(config, "rng"): "rng0"} if not _type(config).startswith(("microvm", "isapc", "none")) else {}
    if _is_pc(config):
        devices["pvpanic"] = "pvpanic0"
    if _has_vmgenid(config):
        devices["vmgenid,guid=auto"] = "vmgenid0"
    theirs = "\n".join(qemuargs.values(config.qemuargs, "-device"))
    for device, name in devices.items():
        kind = device.partition(",")[0].removesuffix("-pci").removesuffix("-ccw")
        if kind not in theirs:
            yield own("-device", f"{device},id={name}")
