#!/usr/bin/env python3
"""The same disk_image template under Packer 1.6.6 and under imgbuild, in turn, on this machine: times, memory, size.

    .venv/bin/python benchmarks/vs_packer.py [--rounds 2] [--base IMAGE --key PRIVATE_KEY]

Without --base a Debian is made first (imgbuild's bootstrap builder, once, kept in benchmarks/work). The guest's own
time is the life of the QEMU process; what is left of the wall time is the tool's. Ratios below 1 are in our favour.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from peers import IMGBUILD, WORK, builder, make_base

# A disk as provisioning leaves it (facts: 2.3 GB of qcow2): packages installed, large files written and deleted again.
SCRIPTS = [
    ["apt-get update -q", "DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends nginx-light"],
    ["yes 'what a build unpacks' | head -c 1800000000 > /var/tmp/used", "sync", "rm /var/tmp/used", "sync"],
    ["systemctl enable nginx", "apt-get clean"],
]


@dataclass
class Figures:
    wall: float  # seconds
    guest: float  # seconds that QEMU lived
    export: float  # seconds from QEMU's end to the tool's
    memory: float  # MiB, peak of the tool's processes without QEMU
    image: float  # MiB on disk

    @property
    def own(self) -> float:
        return self.wall - self.guest


def template(base: Path, key: Path, output: Path) -> dict[str, object]:
    """What both tools are given."""
    return {
        "builders": [builder(base, key, output)],
        "provisioners": [{"type": "shell", "inline": lines} for lines in SCRIPTS],
    }


def shims(folder: Path) -> Path:
    """A qemu-system-x86_64 first on PATH that notes its pid and becomes the real one."""
    folder.mkdir(parents=True, exist_ok=True)
    real = shutil.which("qemu-system-x86_64")
    shim = folder / "qemu-system-x86_64"
    shim.write_text(f'#!/bin/sh\ncase "$*" in *netdev*) echo $$ >> {folder}/pids;; esac\nexec {real} "$@"\n')
    shim.chmod(0o755)
    (folder / "pids").write_text("")
    return folder


def tree(root: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found, left = [], [root]
    while left:
        found.append(left.pop())
        left += children.get(found[-1], [])
    return found


class Watch(threading.Thread):
    """Follows a tool: when its QEMU lives, how much memory the rest takes."""

    def __init__(self, pid: int, pids: Path) -> None:
        super().__init__(name="watch")
        self.pid, self.pids = pid, pids
        self.begun = self.ended = 0.0
        self.peak = 0.0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.05):
            guests = {int(line) for line in self.pids.read_text().split()}
            alive = {pid for pid in guests if running(pid)}
            if alive and not self.begun:
                self.begun = time.monotonic()
            if alive:
                self.ended = time.monotonic()
            self.peak = max(self.peak, sum(resident(pid) for pid in tree(self.pid) if pid not in guests))


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def resident(pid: int) -> float:
    """MiB of memory that is a process's own (PSS is slow; shared text counts once a process here)."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


def measure(argv: list[str], folder: Path, output: Path) -> Figures:
    """Run one tool once."""
    shutil.rmtree(output, ignore_errors=True)
    environment = {**os.environ, "PATH": f"{shims(folder)}:{os.environ['PATH']}", "CHECKPOINT_DISABLE": "1"}
    began = time.monotonic()
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder)
        watch = Watch(process.pid, folder / "pids")
        watch.start()
        code = process.wait(3600)
        wall = time.monotonic() - began
        watch.done.set()
        watch.join()
    if code != 0:
        sys.exit(f"{argv[0]} failed ({code}):\n" + (folder / "log").read_text(errors="replace")[-3000:])
    disk = output / "disk"
    size = disk.stat().st_blocks * 512 / 2**20
    return Figures(wall, watch.ended - watch.begun, began + wall - watch.ended, watch.peak, size)


def show(packer: list[Figures], ours: list[Figures]) -> None:
    rows = [
        ("wall time, s", "wall"), ("guest's time, s", "guest"), ("time that is not the guest's, s", "own"),
        ("export (QEMU's end to the tool's), s", "export"), ("peak memory without QEMU, MiB", "memory"),
        ("image, MiB", "image"),
    ]  # fmt: skip
    print(f"{'':38} {'Packer':>9} {'imgbuild':>9} {'ratio':>6}")
    for label, name in rows:
        theirs, mine = (statistics.median(getattr(one, name) for one in runs) for runs in (packer, ours))
        print(f"{label:38} {theirs:9.1f} {mine:9.1f} {mine / theirs:6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--key", type=Path)
    arguments = parser.parse_args()
    base, key = (arguments.base, arguments.key) if arguments.base else make_base()
    results: dict[str, list[Figures]] = {"packer": [], "imgbuild": []}
    for number in range(arguments.rounds):
        for tool, words in (("packer", ["packer", "build"]), ("imgbuild", [str(IMGBUILD), "build", "-no-cache"])):
            folder = WORK / tool
            output = folder / "output"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "template.json").write_text(json.dumps(template(base.resolve(), key.resolve(), output)))
            figures = measure([*words, str(folder / "template.json")], folder, output)
            results[tool].append(figures)
            print(f"round {number + 1}, {tool}: {figures}", flush=True)
    show(results["packer"], results["imgbuild"])


if __name__ == "__main__":
    main()
