"""Packages kept from one bootstrap to the next, so that the second one downloads nothing.

A build works on copies in a directory of its own and hands in what is new when it succeeded: no lock is held while
apt runs, and two builds at once don't meet. apt believes a file of the right size, so content is checked here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from pathlib import Path

KEPT = 30 * 24 * 3600  # seconds since its last use


def lend(cache: Path, archives: Path) -> int:
    """Put every whole package of `cache` into `archives`; how many. What is damaged is removed."""
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    lent = 0
    for kept in cache.glob("*.deb@*"):
        name, _, digest = kept.name.partition("@")
        if _digest(kept) == digest:
            shutil.copyfile(kept, archives / name)  # not a link: apt in the image's namespace may change its owner
            lent += 1
        else:
            kept.unlink(missing_ok=True)
    return lent


def take_back(archives: Path, cache: Path) -> None:
    """Keep what was downloaded into `archives`; forget what no build has used for a month."""
    known = {kept.name.partition("@")[0]: kept for kept in cache.glob("*.deb@*")}
    for package in archives.glob("*.deb"):
        if package.name in known:
            known[package.name].touch()
            continue
        aside = cache / f".{package.name}.{os.getpid()}"
        shutil.copyfile(package, aside)  # not a link: who made it may not be who we are
        aside.replace(cache / f"{package.name}@{_digest(aside)}")
    for kept in cache.glob("*.deb@*"):
        if time.time() - kept.stat().st_mtime > KEPT:
            kept.unlink(missing_ok=True)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
