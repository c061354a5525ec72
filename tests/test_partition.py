"""Partition tables: the script as text, and what sfdisk makes of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imagebuilder import process
from imagebuilder.bootstrap import partition
from imagebuilder.bootstrap.partition import MIB, Firmware, Role
from imagebuilder.errors import TemplateError

GIB = 2**30


@pytest.mark.parametrize("firmware", list(Firmware), ids=str)
def test_script(firmware: Firmware, golden: Callable[[str, str], None]) -> None:
    golden(f"sfdisk-{firmware}.txt", partition.sfdisk_script(partition.layout(10 * GIB, firmware, "seed")))


@pytest.mark.parametrize("size", [512 * MIB, GIB + 1, 3 * GIB + 513, 10 * GIB], ids=lambda size: f"{size}")
@pytest.mark.parametrize("firmware", list(Firmware), ids=str)
def test_layout_is_aligned_and_ends_with_root(firmware: Firmware, size: int) -> None:
    disk = partition.layout(size, firmware, "seed")
    assert disk.partitions[-1].role is Role.ROOT
    assert all(part.start % MIB == 0 and part.size % MIB == 0 for part in disk.partitions)
    starts_and_ends = [place for part in disk.partitions for place in (part.start, part.start + part.size)]
    assert starts_and_ends == sorted(starts_and_ends)
    assert starts_and_ends[0] >= 34 * 512 and starts_and_ends[-1] <= disk.size - 33 * 512
    assert size - 2 * MIB <= starts_and_ends[-1]


def test_identifiers_follow_the_seed() -> None:
    first, again, other = (partition.layout(GIB, Firmware.BOTH, seed) for seed in ("a", "a", "b"))
    assert first == again
    assert {part.guid for part in first.partitions}.isdisjoint(part.guid for part in other.partitions)
    assert len({first.guid, *(part.guid for part in first.partitions)}) == 4


def test_too_small() -> None:
    with pytest.raises(TemplateError, match="too small"):
        partition.layout(511 * MIB, Firmware.BIOS, "seed")


@pytest.mark.skipif(shutil.which("sfdisk") is None, reason="needs sfdisk")
def test_sfdisk_reads_what_was_written(tmp_path: Path) -> None:
    disk = partition.layout(GIB, Firmware.BOTH, "seed")
    path = tmp_path / "disk.raw"
    partition.write(disk, path)
    assert path.stat().st_size == GIB and path.stat().st_blocks < 2048
    table = json.loads(process.run(["sfdisk", "--json", path]).stdout)["partitiontable"]
    assert table["label"] == "gpt" and table["id"] == str(disk.guid).upper()
    found = [(entry["name"], entry["start"] * 512, entry["size"] * 512) for entry in table["partitions"]]
    assert found == [(part.role.value, part.start, part.size) for part in disk.partitions]
    assert "Remaining" not in process.run(["sfdisk", "--verify", path]).stderr
