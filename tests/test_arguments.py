from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imagebuilder.qemu.arguments import Drive, MachineConfig, Runtime, VncConfig, arguments, dropped
from tests.machines import CASES, installer


def one_a_line(argv: list[str]) -> str:
    """Each switch on a line with its value."""

    def lines() -> Iterator[str]:
        line = ""
        for word in argv:
            if word.startswith("-") and line:
                yield line
                line = word
            else:
                line = f"{line} {word}".strip()
        yield line

    return "\n".join(lines()) + "\n"


@pytest.mark.parametrize("case", CASES)
def test_argv(case: str, golden: Callable[[str, str], None]) -> None:
    golden(f"machine/{case}.txt", one_a_line(arguments(CASES[case](Path()))))


@pytest.mark.parametrize("case", CASES)
def test_argv_is_the_same_every_time(case: str) -> None:
    assert arguments(CASES[case](Path())) == arguments(CASES[case](Path()))


@pytest.mark.parametrize("case", CASES)
def test_what_is_ours_survives(case: str) -> None:
    argv = arguments(CASES[case](Path()))
    assert "chardev=imgbuild-qmp,mode=control" in argv
    assert "chardev:imgbuild-serial" in argv
    assert argv[-1] == "-S"


@pytest.mark.parametrize("case", CASES)
def test_ids_are_unique(case: str) -> None:
    ids = [part for word in arguments(CASES[case](Path())) for part in word.split(",") if part.startswith("id=")]
    assert len(ids) == len(set(ids))


def test_password_is_not_in_argv() -> None:
    config = installer(Path(), vnc=VncConfig(password="geheim12"))
    assert "geheim12" not in " ".join(arguments(config)) + repr(config)


def test_only_loopback_is_listened_on() -> None:
    argv = arguments(installer(Path(), guest_port=22))
    assert "user,id=user.0,hostfwd=tcp:127.0.0.1:0-:22" in argv
    assert "127.0.0.1:0,to=9999" in argv


def test_runtime_values_stand_where_they_belong() -> None:
    runtime = Runtime(qmp_fd=11, serial_log=Path("/run/a,b/serial.log"))
    argv = arguments(installer(Path()), runtime)
    assert "socket,id=imgbuild-qmp,fd=11,server=on,wait=off" in argv
    assert "file,id=imgbuild-serial,path=/run/a,,b/serial.log,append=on" in argv


def changed(**changes: object) -> MachineConfig:
    return installer(Path(), **changes)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        pytest.param(changed(), [], id="nothing"),
        pytest.param(changed(qemuargs=(("-m", "1G"), ("-device", "e1000"))), [], id="harmless"),
        pytest.param(changed(qemuargs=(("-drive", "file=x"),)), ["'disk.qcow2' and 'a.iso'"], id="drive"),
        pytest.param(
            changed(qemuargs=(("-drive", "file=out/disk.qcow2,if=virtio"),)), ["removes 'a.iso' from"], id="iso-only"
        ),
        pytest.param(
            changed(qemuargs=(("-drive", "file=disk.qcow2"), ("-drive", "file=a.iso"))), [], id="both-named-again"
        ),
        pytest.param(
            changed(drives=(Drive("d", interface="virtio-scsi"),), qemuargs=(("-device", "e1000,netdev=user.0"),)),
            ["SCSI controller and the disk devices of 'drive0'"],
            id="device-and-scsi",
        ),
        pytest.param(
            changed(drives=(Drive("d", interface="virtio-scsi"),), qemuargs=(("-device", "scsi-hd,drive=drive0"),)),
            [],
            id="device-names-drive0",
        ),
        pytest.param(
            changed(guest_port=22, qemuargs=(("-netdev", "user,id=user.0"),)),
            ["forward to the guest's port 22"],
            id="net",
        ),
        pytest.param(
            changed(guest_port=22, qemuargs=(("-netdev", "user,id=user.0,hostfwd=tcp::1-:22"),)), [], id="net-forwards"
        ),
        pytest.param(changed(qemuargs=(("-daemonize",),)), ["-daemonize in qemuargs is ignored"], id="daemonize"),
        pytest.param(changed(machine_type="virt", floppy=Path("f")), ["'virt' has no floppy"], id="floppy"),
    ],
)
def test_what_is_lost_is_said(config: MachineConfig, said: list[str]) -> None:
    warnings = dropped(config)
    assert len(warnings) == len(said)
    assert all(part in warning for part, warning in zip(said, warnings, strict=True))


def test_daemonize_is_left_out() -> None:
    assert "-daemonize" not in arguments(changed(qemuargs=(("-daemonize",),)))
