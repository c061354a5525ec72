"""A running machine's state: what is sealed stays as it is while the guest goes on, and memory wakes up again."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imagebuilder.errors import GuestError, StoreError
from imagebuilder.image import disk
from imagebuilder.qemu import snapshot
from imagebuilder.qemu.arguments import Drive, MachineConfig
from imagebuilder.qemu.machine import Machine
from imagebuilder.qemu.qmp import QmpError
from imagebuilder.ui import Ui
from tests.machines import HALT, TICKS, WRITE, boot_disk, full_disk, say

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(120)]

COUNT = bytes.fromhex("be007e ff04")  # one more in what it writes next
WRITES = COUNT + WRITE + say(".")
WRITES_FOR_EVER = WRITES + b"\xeb" + bytes([256 - len(WRITES) - 2])
UNSAVABLE = (("-blockdev", "null-co,node-name=empty"), ("-device", "nvme,drive=empty,serial=1"))


@contextlib.contextmanager
def booted(tmp_path: Path, code: bytes, *more: Drive, **changed: object) -> Iterator[Machine]:
    """A machine whose first disk has this boot sector."""
    drives = (boot_disk(tmp_path / "disk.raw", code), *more)
    config = MachineConfig("tiny", memory_mib=32, drives=drives, boot="c", vga="none")
    ui = Ui("test", lambda event: None)
    with Machine(replace(config, **changed), tmp_path / "run", ui) as machine:  # type: ignore[arg-type]
        goes_on(machine)
        yield machine


def goes_on(machine: Machine) -> None:
    """Wait until the guest has said more."""
    told = machine.serial_log.stat().st_size
    machine.wait(lambda: machine.serial_log.stat().st_size > told + 2, 20, "the guest to go on")


def overlay(path: Path, below: Path, format: str = "raw") -> Path:
    disk.overlay(path, below, format, relative=True)
    return path


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def status(machine: Machine) -> str:
    return str(machine.monitor.execute("query-status")["status"])


def test_the_guest_stands_still_for_the_block_and_goes_on(tmp_path: Path) -> None:
    with booted(tmp_path, TICKS) as machine:
        with snapshot.standing_still(machine.monitor):
            assert status(machine) == "paused"
        assert status(machine) == "running"
        with pytest.raises(StoreError), snapshot.standing_still(machine.monitor):
            raise StoreError("no room")
        goes_on(machine)


def test_a_qemu_that_dies_meanwhile_hides_nothing(tmp_path: Path) -> None:
    with booted(tmp_path, TICKS) as machine:
        with pytest.raises(StoreError, match="no room"), snapshot.standing_still(machine.monitor):
            os.kill(machine.pid, signal.SIGKILL)
            machine.monitor.join(10)
            raise StoreError("no room")
        with pytest.raises(GuestError), snapshot.standing_still(machine.monitor):
            raise AssertionError


def test_a_sealed_disk_does_not_change_while_the_guest_writes_on(tmp_path: Path) -> None:
    sealed, other = tmp_path / "disk.raw", boot_disk(tmp_path / "other.raw", HALT)
    with booted(tmp_path, WRITES_FOR_EVER, other) as machine:
        tops = [overlay(tmp_path / "top.0", sealed), overlay(tmp_path / "top.1", tmp_path / "other.raw")]
        first = digest(sealed)
        goes_on(machine)
        assert digest(sealed) != first, "the guest does write"
        snapshot.seal(machine.monitor, tops)
        before = digest(sealed)
        goes_on(machine)
        assert digest(sealed) == before
        assert disk.info(tops[0], follow=True).actual_size > disk.info(tops[1], follow=True).actual_size


def test_all_disks_are_sealed_or_none(tmp_path: Path) -> None:
    sealed = tmp_path / "disk.raw"
    with booted(tmp_path, WRITES_FOR_EVER, boot_disk(tmp_path / "other.raw", HALT)) as machine:
        with pytest.raises(QmpError):
            snapshot.seal(machine.monitor, [overlay(tmp_path / "top.0", sealed), tmp_path / "nothing"])
        before = digest(sealed)
        goes_on(machine)
        assert digest(sealed) != before, "it still writes to the disk itself"


def test_a_disk_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    rows = (("-drive", f"if=virtio,format=raw,file={tmp_path}/disk.raw"),)
    with booted(tmp_path, TICKS, qemuargs=rows) as machine:
        with pytest.raises(QmpError, match="drive0"):
            snapshot.seal(machine.monitor, [overlay(tmp_path / "top.0", tmp_path / "disk.raw")])
        goes_on(machine)


def test_a_machine_wakes_up_from_what_was_kept_beside_the_one_that_went_on(tmp_path: Path) -> None:
    with booted(tmp_path, WRITES_FOR_EVER) as machine:
        top = overlay(tmp_path / "top", tmp_path / "disk.raw")
        assert snapshot.memory_can_be_kept(machine.monitor)
        with snapshot.standing_still(machine.monitor):
            snapshot.seal(machine.monitor, [top])
            assert snapshot.save_memory(machine.monitor, tmp_path / "memory.zst")
        assert (tmp_path / "memory.zst").stat().st_mode & 0o777 == 0o600
        goes_on(machine)
        sealed = digest(tmp_path / "disk.raw")
        again = replace(
            machine.config, incoming=tmp_path / "memory.zst",
            drives=(Drive(str(overlay(tmp_path / "second", tmp_path / "disk.raw"))),),
        )  # fmt: skip
        with Machine(again, tmp_path / "again", Ui("test", lambda event: None)) as restored:
            goes_on(restored)
            assert not restored.serial_log.read_text().strip("."), "it did not boot, it went on"
            goes_on(machine)
    assert digest(tmp_path / "disk.raw") == sealed
    assert digest(tmp_path / "top") != digest(tmp_path / "second")


def test_several_seals_make_a_chain(tmp_path: Path) -> None:
    with booted(tmp_path, WRITES_FOR_EVER) as machine:
        below, format = tmp_path / "disk.raw", "raw"
        for level in range(3):
            top = overlay(tmp_path / f"top.{level}", below, format)
            snapshot.seal(machine.monitor, [top])
            goes_on(machine)
            below, format = top, "qcow2"
    assert disk.info(tmp_path / "top.2", follow=True).backing == tmp_path / "top.1"
    contents = {path.name: digest(path) for path in tmp_path.glob("top.*")}
    assert len(set(contents.values())) == 3


def test_a_memory_that_can_not_be_kept_is_no_error(tmp_path: Path) -> None:
    with booted(tmp_path, TICKS, qemuargs=UNSAVABLE) as machine:
        with snapshot.standing_still(machine.monitor):
            assert not snapshot.save_memory(machine.monitor, tmp_path / "memory.zst")
        assert not (tmp_path / "memory.zst").exists()
        goes_on(machine)


def test_what_stands_against_it_is_known_before(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    rows = (("-blockdev", f"driver=vvfat,node-name=fat,dir={tmp_path}/shared,rw=on"),)
    with booted(tmp_path, TICKS, qemuargs=rows) as machine:
        assert not snapshot.memory_can_be_kept(machine.monitor)


def test_a_full_disk_leaves_nothing_and_the_guest_goes_on(tmp_path: Path) -> None:
    with booted(tmp_path, TICKS) as machine:
        with pytest.raises(StoreError, match="is there room"), full_disk(), snapshot.standing_still(machine.monitor):
            snapshot.save_memory(machine.monitor, tmp_path / "memory.zst")
        assert not (tmp_path / "memory.zst").exists()
        goes_on(machine)
