#!/usr/bin/env python3
"""How long the loop "edit, build, look" takes: one template with four provisioners under Packer 1.6.6 and imgbuild.

    .venv/bin/python benchmarks/rebuild.py [--rounds 2] [--base IMAGE --key PRIVATE_KEY] [--skip-packer]

Goals (medians): nothing changed: at least 30 times faster than Packer and under 2 s; last provisioner changed, and a
failing provisioner mended: at least 8 times faster; first build with layers: at most 1.15 of the time without them.
Packer has no cache, so each of its builds is a whole one; of the mended build it is spared the failing attempt.
Every image is searched for what its provisioners wrote, so that a stale layer can't look fast. What the template leaves
open is each tool's default: imgbuild compresses its image, Packer doesn't.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from peers import IMGBUILD, WORK, builder, make_base

PROJECT = WORK / "rebuild"  # the template and its files; both tools run here
CACHE = PROJECT / "cache"
EMPTY = PROJECT / "cache-of-none"  # for the builds without layers
OUTPUT = PROJECT / "output"
LOG = PROJECT / "log"
TIMEOUT = 3600  # seconds, for one build
PACKAGES = "nginx-light curl rsync less"
MISTAKE = "no-such-command-of-rebuild"  # what the failing script calls

FIRST, NO_CACHE, UNCHANGED, CHANGED, MENDED = "first", "first, -no-cache", "unchanged", "last changed", "mended"


@dataclass(frozen=True)
class Edition:
    """The template as it stands between two edits."""

    script: str = "first"  # what the third provisioner's script writes
    last: str = "first"  # what the fourth provisioner writes
    broken: bool = False

    @property
    def marks(self) -> tuple[str, ...]:
        """Texts that only exist in the image once the guest has run the provisioners."""
        return (_digest(f"script {self.script}"), _digest(f"last {self.last}"))


def write(edition: Edition, base: Path, key: Path) -> None:
    """Lay the edition's template, script and directory out as a user would."""
    site = PROJECT / "site"
    for number in range(20):
        page = site / f"pages/{number}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(f"<h1>Page {number}</h1>\n" * 200)
    lines = ["#!/bin/sh", "set -eu", *_mark("script", edition.script), "mv /srv/site/pages /var/www/html/"]
    lines += [MISTAKE] if edition.broken else ["systemctl enable nginx"]
    (PROJECT / "configure.sh").write_text("\n".join(lines) + "\n")
    (PROJECT / "template.json").write_text(json.dumps(_template(edition, base, key), indent=2))


def _template(edition: Edition, base: Path, key: Path) -> dict[str, object]:
    install = f"DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends {PACKAGES}"
    return {
        "builders": [builder(base, key, OUTPUT)],
        "provisioners": [
            {"type": "shell", "inline": ["apt-get update -q", install]},
            {"type": "file", "source": "site", "destination": "/srv"},
            {"type": "shell", "script": "configure.sh"},
            {"type": "shell", "inline": _mark("last", edition.last)},
        ],
    }


def _mark(name: str, text: str) -> list[str]:
    """Shell lines whose result is a digest: unlike the line itself, it can't be in the image by an upload alone."""
    return [f"printf '%s' '{name} {text}' | sha256sum > /etc/mark-{name}"]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def build(argv: list[str], edition: Edition, environment: Mapping[str, str] | None = None) -> float:
    """Build once and look at the result; wall seconds of the build alone."""
    shutil.rmtree(OUTPUT, ignore_errors=True)
    seconds, code = _run(argv, environment or {})
    told = LOG.read_text(errors="replace")
    if edition.broken:
        if code == 0 or MISTAKE not in told:
            sys.exit(f"{argv} should have failed at its third provisioner ({code}):\n{told[-3000:]}")
        return seconds
    if code != 0:
        sys.exit(f"{argv} failed ({code}):\n{told[-3000:]}")
    _check(OUTPUT / "disk", edition)
    return seconds


def _run(argv: list[str], environment: Mapping[str, str]) -> tuple[float, int]:
    """Wall seconds and exit code. A tool that we must leave is asked to end, so that it takes its QEMU with it."""
    began = time.monotonic()
    with LOG.open("wb") as log, subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, cwd=PROJECT,
        env={**os.environ, "CHECKPOINT_DISABLE": "1", "PACKER_CACHE_DIR": str(PROJECT / "packer_cache"), **environment},
    ) as process:  # fmt: skip
        try:
            code = process.wait(TIMEOUT)
        finally:
            seconds = time.monotonic() - began
            if process.poll() is None:
                process.terminate()
    return seconds, code


def _check(image: Path, edition: Edition) -> None:
    """Search an image, which may be compressed, for the marks; the copy goes before it is written to the real disk."""
    plain = PROJECT / "plain"
    try:
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(image), str(plain)], check=True)
        with plain.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            missing = [mark for mark in edition.marks if content.find(mark.encode()) < 0]
    finally:
        plain.unlink(missing_ok=True)
    if missing:
        sys.exit(f"{image} is not what {edition} makes: {len(missing)} of its marks are missing")


def imgbuild_round(number: int, base: Path, key: Path) -> dict[str, float]:
    """One build of each kind. The two first builds take turns in coming first: the second one finds warm disks."""
    kinds = [FIRST, NO_CACHE]
    times: dict[str, float] = {}
    for kind in kinds if number % 2 == 0 else kinds[::-1]:
        cache = CACHE if kind == FIRST else EMPTY
        shutil.rmtree(cache, ignore_errors=True)
        times[kind] = _imgbuild(Edition(), base, key, cache, *(["-no-cache"] if kind == NO_CACHE else []))
    times[UNCHANGED] = _imgbuild(Edition(), base, key, CACHE)
    times[CHANGED] = _imgbuild(Edition(last="changed"), base, key, CACHE)
    _imgbuild(Edition(script="mended", broken=True), base, key, CACHE)
    times[MENDED] = _imgbuild(Edition(script="mended"), base, key, CACHE)
    return times


def _imgbuild(edition: Edition, base: Path, key: Path, cache: Path, *options: str) -> float:
    write(edition, base, key)
    return build([str(IMGBUILD), "build", *options, "template.json"], edition, {"IMGBUILD_CACHE_DIR": str(cache)})


def packer_round(base: Path, key: Path) -> dict[str, float]:
    """A whole build for each kind of edit."""
    times: dict[str, float] = {}
    for kind, edition in (
        (UNCHANGED, Edition()),
        (CHANGED, Edition(last="changed")),
        (MENDED, Edition(script="mended")),
    ):
        write(edition, base, key)
        times[kind] = build(["packer", "build", "template.json"], edition)
    return times


def usage(folder: Path) -> tuple[float, float]:
    """MiB on disk and apparent MiB of a folder's files; a file with several names counts once."""
    files = {(stat.st_dev, stat.st_ino): stat for stat in (path.lstat() for path in folder.rglob("*"))}
    on_disk = sum(stat.st_blocks * 512 for stat in files.values())
    return on_disk / 2**20, sum(stat.st_size for stat in files.values()) / 2**20


def show_layers() -> None:
    """What the last round's layers take; of `imgbuild cache ls`, what it says of each."""
    on_disk, apparent = usage(CACHE / "layers")
    print(f"\nLayers of a round: {on_disk:.0f} MiB on disk, {apparent:.0f} MiB apparent")
    environment = {**os.environ, "IMGBUILD_CACHE_DIR": str(CACHE)}
    argv = [str(IMGBUILD), "cache", "ls"]
    listed = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    print(listed.stdout if listed.returncode == 0 else "(this imgbuild can't list them: no `imgbuild cache ls`)")


Times = Mapping[str, list[float]]


def show_times(packer: Times, ours: Times) -> None:
    print(f"\n{'median wall time, s':20} {'Packer':>8} {'imgbuild':>9} {'ratio':>6}")
    for kind in (FIRST, NO_CACHE, UNCHANGED, CHANGED, MENDED):
        theirs, mine = (_median(times, kind) for times in (packer, ours))
        ratio = theirs / mine if theirs and mine else None
        print(f"{kind:20} {_number(theirs, 8)} {_number(mine, 9)} {_number(ratio, 6)}")


def show_goals(packer: Times, ours: Times) -> None:
    unchanged = _median(ours, UNCHANGED)
    first, plain = _median(ours, FIRST), _median(ours, NO_CACHE)
    print()
    for kind, least in ((UNCHANGED, 30), (CHANGED, 8), (MENDED, 8)):
        theirs, mine = (_median(times, kind) for times in (packer, ours))
        if theirs and mine:
            _goal(f"{kind}: {theirs / mine:.1f} times faster than Packer (goal: {least})", theirs / mine >= least)
    if unchanged:
        _goal(f"{UNCHANGED}: {unchanged:.2f} s (goal: under 2)", unchanged < 2)
    if first and plain:
        _goal(f"first build: {first / plain:.2f} of the time without layers (goal: 1.15)", first / plain <= 1.15)


def _goal(text: str, met: bool) -> None:
    print(f"{'met   ' if met else 'MISSED'} {text}")


def _median(times: Times, kind: str) -> float | None:
    return statistics.median(times[kind]) if times.get(kind) else None


def _number(value: float | None, width: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.1f}"


def main() -> None:
    arguments = _arguments()
    base, key = (arguments.base, arguments.key) if arguments.base else make_base()
    base, key = base.resolve(), key.resolve()
    shutil.rmtree(PROJECT, ignore_errors=True)
    packer: defaultdict[str, list[float]] = defaultdict(list)
    ours: defaultdict[str, list[float]] = defaultdict(list)
    for number in range(arguments.rounds):
        if not arguments.skip_packer:
            _note(number, "Packer", packer, packer_round(base, key))
        _note(number, "imgbuild", ours, imgbuild_round(number, base, key))
    show_times(packer, ours)
    show_goals(packer, ours)
    show_layers()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--base", type=Path, help="disk image to start from; default: one made once")
    parser.add_argument("--key", type=Path, help="private key of its root")
    parser.add_argument("--skip-packer", action="store_true", help="only imgbuild")
    arguments = parser.parse_args()
    if (arguments.base is None) != (arguments.key is None):
        parser.error("--base and --key go together")
    if arguments.rounds < 1:
        parser.error("--rounds must be at least 1")
    return arguments


def _note(number: int, tool: str, all_times: defaultdict[str, list[float]], times: dict[str, float]) -> None:
    for kind, seconds in times.items():
        all_times[kind].append(seconds)
    told = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in times.items())
    print(f"round {number + 1}, {tool}: {told}", flush=True)


if __name__ == "__main__":
    main()
