from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imagebuilder.errors import GuestError, ImgbuildError, StoreError
from imagebuilder.qemu import memory
from imagebuilder.qemu.arguments import Drive, MachineConfig, VncConfig
from imagebuilder.qemu.machine import Kept, Machine
from imagebuilder.qemu.qmp import QmpError
from imagebuilder.qemu.tpm import TpmConfig
from imagebuilder.ui import Event, Ui
from tests.machines import (
    HALT,
    PANIC,
    PC_CASES,
    POWER_OFF,
    POWER_OFF_ON_BUTTON,
    RESET,
    TICKS,
    TRIPLE_FAULT,
    WRITE,
    boot_disk,
    full_disk,
    say,
)

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(120)]


def quiet() -> Ui:
    return Ui("test", lambda event: None)


@contextlib.contextmanager
def booted(tmp_path: Path, code: bytes, **changed: object) -> Iterator[Machine]:
    """A machine whose boot sector is this code."""
    drives = () if "drives" in changed else (boot_disk(tmp_path / "disk.raw", code),)
    config = MachineConfig("tiny", memory_mib=32, drives=drives, boot="c", vga="none")
    with Machine(replace(config, **changed), tmp_path / "run", quiet()) as machine:  # type: ignore[arg-type]
        yield machine


def said(machine: Machine, text: str) -> None:
    """Wait until the guest wrote this to its serial line."""
    machine.wait(lambda: text in machine.serial_log.read_text(errors="replace"), 20, f"'{text}' on the serial line")


def alive(pid: int) -> bool:
    """Whether the process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone(pid: int, within: float = 5) -> bool:
    deadline = time.monotonic() + within
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


def listening(pid: int) -> set[str]:
    """Addresses on which a process listens, as the kernel has them (proc(5), net/tcp): hexadecimal."""
    inodes = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir() if entry.is_symlink()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in inodes}


def linux_header() -> bytes:
    """What QEMU wants of a kernel before it starts (Linux: Documentation/arch/x86/boot.rst, protocol 2.12)."""
    header = bytearray(20000)
    header[0x202:0x208] = b"HdrS\x0c\x02"
    header[0x22C:0x230] = (2**31 - 1).to_bytes(4, "little")  # where an initrd may end
    return bytes(header)


@pytest.mark.parametrize("case", PC_CASES)
def test_qemu_takes_every_argv(case: str, tmp_path: Path) -> None:
    for name in ("disk.qcow2", "disk-1.qcow2", "disk-2.qcow2", "di,sk.qcow2"):
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / name, "1M"], check=True)
    for name in ("disk.raw", "a.iso", "b.iso", "floppy.img", "initrd.gz", "more.cpio"):
        (tmp_path / name).write_bytes(bytes(1474560))
    (tmp_path / "OVMF_CODE.fd").write_bytes(Path("/usr/share/OVMF/OVMF_CODE_4M.fd").read_bytes())
    (tmp_path / "OVMF_VARS.fd").write_bytes(Path("/usr/share/OVMF/OVMF_VARS_4M.fd").read_bytes())
    (tmp_path / "vmlinuz").write_bytes(linux_header())
    with Machine(PC_CASES[case](tmp_path), tmp_path / "run", quiet(), paused=True) as machine:
        machine.check()
        assert machine.monitor.execute("query-status")["status"] in ("prelaunch", "paused")
        assert listening(machine.pid) <= {"0100007F", "00000000000000000000000001000000"}
    assert gone(machine.pid)


def test_a_guest_boots_and_is_ended(tmp_path: Path) -> None:
    with booted(tmp_path, say("HELLO") + HALT, guest_port=22) as machine:
        said(machine, "HELLO")
        assert machine.host_port is not None and machine.vnc_address is not None
        assert machine.vnc_address.startswith("127.0.0.1:59")
        with socket.create_connection(("127.0.0.1", machine.host_port), 5):
            pass
        with socket.create_connection(("127.0.0.1", int(machine.vnc_address.rpartition(":")[2])), 5) as vnc:
            assert vnc.recv(12) == b"RFB 003.008\n"
        assert listening(machine.pid) == {"0100007F"}
        machine.check()
        assert not any(word.startswith("password") for word in machine.argv)
        pid = machine.pid
    assert gone(pid)
    assert not machine.qmp_socket.exists()
    assert not [thread for thread in threading.enumerate() if thread.name == "qmp"]
    assert machine.serial_log.stat().st_mode & 0o77 == 0


@pytest.mark.parametrize("interface", ["virtio", "virtio-scsi", "ide", "sata", "scsi"])
@pytest.mark.parametrize("machine_type", ["pc", "q35"])
def test_every_disk_interface_boots(interface: str, machine_type: str, tmp_path: Path) -> None:
    disk = replace(boot_disk(tmp_path / "disk.raw", say("HELLO") + HALT), interface=interface)
    with booted(tmp_path, b"", drives=(disk,), machine_type=machine_type) as machine:
        said(machine, "HELLO")


def test_power_off_by_the_guest(tmp_path: Path) -> None:
    with booted(tmp_path, say("BYE") + POWER_OFF) as machine:
        assert machine.wait_shutdown(20) == "guest-shutdown"
        with pytest.raises(GuestError, match=r"the guest ended by itself \(guest-shutdown\)"):
            machine.check()


def test_power_button(tmp_path: Path) -> None:
    with booted(tmp_path, POWER_OFF_ON_BUTTON) as machine:
        time.sleep(1)
        machine.powerdown()
        assert machine.wait_shutdown(20) == "guest-shutdown"


def test_shutdown_that_does_not_come(tmp_path: Path) -> None:
    with booted(tmp_path, HALT) as machine, pytest.raises(GuestError, match=r"did not shut down within 0\.3 s"):
        machine.wait_shutdown(0.3)


@pytest.mark.parametrize("code", [RESET, TRIPLE_FAULT], ids=["reset", "triple-fault"])
def test_resets_are_counted(code: bytes, tmp_path: Path) -> None:
    with booted(tmp_path, code) as machine:
        assert machine.wait(lambda: machine.resets >= 2, 20, "two resets")


def test_reset_ends_a_machine_that_must_not_reboot(tmp_path: Path) -> None:
    with booted(tmp_path, RESET, no_reboot=True) as machine:
        assert machine.wait_shutdown(20) == "guest-reset"


def test_panic_is_noticed_and_the_guest_can_be_looked_at(tmp_path: Path) -> None:
    with booted(tmp_path, PANIC) as machine:
        with pytest.raises(GuestError, match="the guest's kernel panicked"):
            machine.wait(lambda: False, 20, "nothing")
        assert machine.panicked is not None
        assert machine.monitor.execute("query-status")["status"] == "guest-panicked"


def test_full_disk_of_the_host_is_noticed(tmp_path: Path) -> None:
    disk = boot_disk(tmp_path / "disk.raw", say("W") + WRITE + HALT)
    rules = tmp_path / "rules"
    rules.write_text('[inject-error]\nevent = "write_aio"\nerrno = "28"\n')
    full = Drive(f"blkdebug:{rules}:{disk.path}", "raw", detect_zeroes="off")
    config = MachineConfig("tiny", memory_mib=32, drives=(full,), boot="c", vga="none")
    with (
        Machine(config, tmp_path / "run", quiet()) as machine,
        pytest.raises(GuestError, match="the host's disk is full"),
    ):
        machine.wait(lambda: False, 20, "nothing")


def test_killed_qemu_is_noticed_within_a_second(tmp_path: Path) -> None:
    with booted(tmp_path, HALT) as machine:
        os.kill(machine.pid, signal.SIGKILL)
        began = time.monotonic()
        with pytest.raises(GuestError, match="QEMU was ended by signal 9"):
            machine.wait(lambda: False, 20, "nothing")
        assert time.monotonic() - began < 1
        with pytest.raises(GuestError, match="QEMU was ended by signal 9"):
            machine.monitor.execute("query-status")
        with pytest.raises(GuestError, match="QEMU was ended by signal 9"):
            machine.wait_shutdown(5)


def test_qemu_ended_from_outside_is_no_shutdown(tmp_path: Path) -> None:
    with booted(tmp_path, HALT) as machine:
        os.kill(machine.pid, signal.SIGTERM)
        with pytest.raises(GuestError, match="host-signal"):
            machine.wait_shutdown(10)


def test_wrong_arguments_fail_with_qemus_words(tmp_path: Path) -> None:
    began = time.monotonic()
    with (
        pytest.raises(GuestError, match=r"(?s)QEMU could not start.*frobnicator") as caught,
        booted(tmp_path, HALT, qemuargs=(("-device", "frobnicator"),)),
    ):
        raise AssertionError
    assert "not a valid device model name" in caught.value.message
    assert time.monotonic() - began < 3
    assert not (tmp_path / "run/qmp.sock").exists()


def test_missing_display_has_a_hint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(GuestError, match="could not start") as caught, booted(tmp_path, HALT, display="gtk"):
        raise AssertionError
    assert caught.value.hint is None or "headless" in caught.value.hint


def test_missing_program(tmp_path: Path) -> None:
    with (
        pytest.raises(ImgbuildError, match="qemu-system-nothing"),
        booted(tmp_path, HALT, binary="qemu-system-nothing"),
    ):
        raise AssertionError


@contextlib.contextmanager
def first_taken_second_free() -> Iterator[int]:
    """A port that is taken while the next one is free; below those that the kernel hands out."""
    for port in range(20000 + os.getpid() % 5000 * 2, 31000, 2):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)) as taken:
            with socket.create_server(("127.0.0.1", port + 1)):
                pass
            yield taken.getsockname()[1]
            return
    raise AssertionError("no two ports in a row are free")


def test_ranges_are_honoured_to_both_ends(tmp_path: Path) -> None:
    with first_taken_second_free() as port:
        with booted(tmp_path, HALT, guest_port=22, host_port_min=port, host_port_max=port + 1, vnc=None) as machine:
            assert machine.host_port == port + 1
        with booted(tmp_path, HALT, vnc=VncConfig(port_min=port, port_max=port + 1)) as machine:
            assert machine.vnc_address == f"127.0.0.1:{port + 1}"


def test_exhausted_ranges_say_so(tmp_path: Path) -> None:
    with first_taken_second_free() as port:
        with (
            pytest.raises(ImgbuildError, match=f"no port from {port} to {port} "),
            booted(tmp_path, HALT, guest_port=22, host_port_min=port, host_port_max=port),
        ):
            raise AssertionError
        with pytest.raises(GuestError, match="could not start") as caught:
            booted(tmp_path, HALT, vnc=VncConfig(port_min=port, port_max=port)).__enter__()
    assert "vnc_port_min" in (caught.value.hint or "")


def test_vnc_password_is_set_and_masked(tmp_path: Path) -> None:
    events: list[Event] = []
    ui = Ui("test", events.append)
    config = MachineConfig("tiny", memory_mib=32, vnc=VncConfig(password="geheim12"))
    with Machine(config, tmp_path / "run", ui) as machine:
        assert machine.monitor.execute("query-vnc")["auth"] == "vnc"
        assert "geheim12" not in Path(f"/proc/{machine.pid}/cmdline").read_text()
    assert "geheim12" not in ui.masked("password geheim12")


def test_forward_of_the_persons_own_netdev_is_found(tmp_path: Path) -> None:
    rows = (("-netdev", "user,id=user.0,hostfwd=tcp:127.0.0.1:0-:22"),)
    with booted(tmp_path, HALT, guest_port=22, qemuargs=rows) as machine:
        assert machine.host_port


def test_uefi_variables_begin_as_the_template_and_stay_apart(tmp_path: Path) -> None:
    from imagebuilder.qemu import firmware

    found = firmware.find("x86_64", "q35")
    with booted(tmp_path, HALT, firmware=found, machine_type="q35") as machine:
        machine.check()
    assert found.vars is not None and machine.nvram == tmp_path / "run/efivars.fd"
    assert machine.nvram.stat().st_size == found.vars.stat().st_size


@pytest.mark.parametrize(("version", "device"), [("2.0", "tpm-crb"), ("1.2", "tpm-tis")])
def test_tpm_lives_as_long_as_its_machine(version: str, device: str, tmp_path: Path) -> None:
    with booted(tmp_path, HALT, tpm=TpmConfig(version, device)) as machine:
        assert device in machine.monitor.hmp("info tpm")
        assert machine._tpm is not None
        pid = machine._tpm.child.pid
        assert alive(pid)
    assert gone(pid)


def test_state_is_saved_and_restored_beside_a_machine_that_goes_on(tmp_path: Path) -> None:
    """What a live layer does: seal the disk, write the memory out, wake both up in a second machine."""
    with booted(tmp_path, TICKS, guest_port=22) as machine:
        said(machine, "...")
        machine.monitor.execute("stop")
        sealed = {"device": "drive0", "snapshot-file": f"{tmp_path}/next.qcow2", "format": "qcow2"}
        machine.monitor.execute("blockdev-snapshot-sync", sealed)
        memory.save(machine.monitor, tmp_path / "memory.zst")
        machine.check()  # a machine that we stopped is in order
        machine.monitor.execute("cont")
        told = machine.serial_log.stat().st_size
        machine.wait(lambda: machine.serial_log.stat().st_size > told, 20, "the machine to go on")

        overlay = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", tmp_path / "disk.raw", "-F", "raw", tmp_path / "o"]
        subprocess.run(overlay, check=True)
        config = replace(machine.config, drives=(Drive(str(tmp_path / "o")),), incoming=tmp_path / "memory.zst")
        with Machine(config, tmp_path / "again", quiet()) as restored:
            said(restored, "...")
            assert restored.host_port not in (None, machine.host_port)
            assert not restored.serial_log.read_text().strip(".")  # it did not boot, it went on


def test_broken_state_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "memory.zst").write_bytes(b"nothing")
    with pytest.raises(StoreError), booted(tmp_path, HALT, incoming=tmp_path / "memory.zst"):
        raise AssertionError


def test_a_memory_that_can_not_be_written_leaves_the_machine_as_it_was(tmp_path: Path) -> None:
    with booted(tmp_path, TICKS) as machine:
        said(machine, "...")
        machine.monitor.execute("stop")
        with pytest.raises(StoreError, match="is there room"), full_disk():
            memory.save(machine.monitor, tmp_path / "memory.zst")
        machine.monitor.execute("cont")
        told = machine.serial_log.stat().st_size
        machine.wait(lambda: machine.serial_log.stat().st_size > told, 20, "the machine to go on")


def test_without_zstd_no_memory_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with booted(tmp_path, TICKS) as machine:
        machine.monitor.execute("stop")
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(StoreError, match="'zstd' is not installed"):
            memory.save(machine.monitor, tmp_path / "memory.zst")
        machine.monitor.execute("cont")


def test_a_device_that_can_not_be_saved_is_told(tmp_path: Path) -> None:
    rows = (("-blockdev", "null-co,node-name=empty"), ("-device", "nvme,drive=empty,serial=1"))
    with booted(tmp_path, TICKS, qemuargs=rows) as machine:
        said(machine, "...")
        machine.monitor.execute("stop")
        with pytest.raises(QmpError):
            memory.save(machine.monitor, tmp_path / "memory.zst")
        machine.monitor.execute("cont")


def test_deep_directories(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    with Machine(MachineConfig("tiny", memory_mib=32, tpm=TpmConfig()), deep, quiet()) as machine:
        machine.check()


_OWNER = """
import sys, time
from pathlib import Path
from imagebuilder.qemu.machine import Machine, MachineConfig
from imagebuilder.qemu.qmp import QmpError
from imagebuilder.qemu.tpm import TpmConfig
from imagebuilder.ui import Ui

config = MachineConfig("tiny", memory_mib=32, guest_port=22, tpm=TpmConfig())
with Machine(config, Path(sys.argv[1]), Ui("test", lambda event: None)) as machine:
    print(machine.pid, machine._tpm.child.pid, flush=True)
    if sys.argv[2] == "release":
        print(machine.release(), flush=True)
    else:
        time.sleep(60)
"""


def owner(directory: Path, what: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", _OWNER, directory, what]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_the_end_of_the_owner_leaves_nothing(number: signal.Signals, tmp_path: Path) -> None:
    with owner(tmp_path / "run", "stay") as child:
        assert child.stdout is not None
        qemu, swtpm = map(int, child.stdout.readline().split())
        assert alive(qemu) and alive(swtpm)
        child.send_signal(number)
    assert gone(qemu) and gone(swtpm)


def test_release_leaves_a_machine_that_can_be_used(tmp_path: Path) -> None:
    with owner(tmp_path / "run", "release") as child:
        assert child.stdout is not None
        qemu, swtpm = map(int, child.stdout.readline().split())
        described = child.stdout.read()
    try:
        time.sleep(0.5)
        assert alive(qemu) and alive(swtpm)
        assert f"process {qemu}" in described and "VNC at 127.0.0.1:" in described
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as monitor:
            monitor.settimeout(5)
            os.chdir(tmp_path / "run")
            monitor.connect("qmp.sock")
            assert b'"QMP"' in monitor.recv(4096)
    finally:
        os.chdir("/")
        os.kill(qemu, signal.SIGTERM)
    assert gone(qemu) and gone(swtpm)


def test_kept_machine_is_described() -> None:
    text = str(Kept(7, 2222, "127.0.0.1:5900", Path("/x/qmp.sock"), Path("/x")))
    assert "kill 7" in text and "ssh -p 2222" in text and "/x/qmp.sock" in text
