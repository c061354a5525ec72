from __future__ import annotations

import pytest

from imagebuilder.qemu import qemuargs
from imagebuilder.qemu.qemuargs import Argument, default, own

OURS = [
    default("-name", "x"),
    default("-drive", "file=disk"),
    Argument("-device", "disk", frozenset({"-drive"})),
    default("-m", "512M"),
    default("-device", "nic"),
    own("-serial", "log"),
]


@pytest.mark.parametrize(
    ("rows", "argv"),
    [
        pytest.param([], "-name x -drive file=disk -device disk -m 512M -device nic -serial log", id="none"),
        pytest.param(
            [["-m", "1G"]], "-name x -drive file=disk -device disk -m 1G -device nic -serial log", id="in-its-place"
        ),
        pytest.param(
            [["-m", "1", "G"]], "-name x -drive file=disk -device disk -m 1G -device nic -serial log", id="joined"
        ),
        pytest.param(
            [["-drive", "a"], ["-cpu", "max"], ["-drive", "b"]],
            "-name x -drive a -drive b -m 512M -device nic -cpu max -serial log",
            id="a-drive-drops-all-drives-and-their-devices",
        ),
        pytest.param(
            [["-device", "e1000"]],
            "-name x -drive file=disk -device disk -m 512M -device e1000 -serial log",
            id="a-device-leaves-the-disk",
        ),
        pytest.param(
            [["-serial", "stdio"]],
            "-name x -drive file=disk -device disk -m 512M -device nic -serial stdio -serial log",
            id="ours-stays-behind-theirs",
        ),
        pytest.param(
            [["-nographic"], ["--no-acpi", ""]],
            "-name x -drive file=disk -device disk -m 512M -device nic -nographic --no-acpi -serial log",
            id="bare-switches",
        ),
        pytest.param(
            [["--drive", "a"], ["-memory", "1"]],
            "-name x -drive file=disk -device disk -m 512M -device nic --drive a -memory 1 -serial log",
            id="switches-are-compared-as-text",
        ),
        pytest.param(
            [[], ["-daemonize"]], "-name x -drive file=disk -device disk -m 512M -device nic -serial log", id="left-out"
        ),
    ],
)
def test_merge(rows: list[list[str]], argv: str) -> None:
    assert " ".join(qemuargs.merge(OURS, rows)) == argv


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([], "pc"),
        ([["-machine", "q35,accel=kvm"]], "q35"),
        ([["-machine", "accel=kvm,type=q35"]], "q35"),
        ([["-M", "virt"]], "virt"),
        ([["-machine", "accel=tcg"]], "pc"),
        ([["-m", "1G"]], "pc"),
    ],
)
def test_machine_type(rows: list[list[str]], found: str) -> None:
    assert qemuargs.machine_type(rows, "pc") == found


@pytest.mark.parametrize(
    ("rows", "found"),
    [
        ([], []),
        ([["-machine", "q35,accel=kvm:tcg"]], ["kvm", "tcg"]),
        ([["-accel", "kvm,thread=multi"], ["-enable-kvm"]], ["kvm", "kvm"]),
        ([["-accel", "tcg"]], ["tcg"]),
    ],
)
def test_accelerators(rows: list[list[str]], found: list[str]) -> None:
    assert qemuargs.accelerators(rows) == found


@pytest.mark.parametrize(
    ("row", "instead"),
    [
        (["-machine", "q35,accel=kvm,kernel_irqchip=on"], [("-machine", "q35,accel=tcg")]),
        (["-machine", "accel=kvm:tcg"], [("-machine", "accel=tcg")]),
        (["-accel", "kvm"], [("-accel", "tcg")]),
        (["-enable-kvm"], []),
        (["-cpu", "host,+vmx"], [("-cpu", "max,+vmx")]),
        (["-cpu", "hostile"], [("-cpu", "hostile")]),
        (["-m", "1G"], [("-m", "1G")]),
        (["-nographic"], [("-nographic",)]),
    ],
)
def test_without_kvm(row: list[str], instead: list[tuple[str, ...]]) -> None:
    assert list(qemuargs.without_kvm([row])) == instead
