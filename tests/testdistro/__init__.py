"""The test distribution: a small Linux with an installer that reads kickstarts, made from Debian packages.

It stands in for Anaconda where its ISO can't be had; README.md says what it understands. Tests get it from the fixture
`distro`; others import this package and call `testdistro.testdistro()`.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from imagebuilder import process

from . import packages
from .build import build

_SOURCES = Path(__file__).parent
_UNUSED = 86400.0  # seconds after which an outdated one is removed


@dataclass(frozen=True)
class TestDistro:
    """Where its media lie. `directory` is the tree that a web or TFTP server offers, with root.tar.gz for liveimg."""

    __test__: ClassVar[bool] = False  # pytest: no test, whatever its name says

    iso: Path
    kernel: Path
    initrd: Path
    directory: Path


def testdistro(flavour: Literal["cloud", "generic"] = "cloud") -> TestDistro:
    """The distribution, made if need be (10 s) and kept for the next session.

    The cloud kernel starts 3 s sooner under TCG than the generic one, which also drives AHCI, e1000 and floppies.
    """
    base = _cache_directory()
    base.mkdir(parents=True, exist_ok=True)
    directory = base / f"{flavour}-{_digest()}"
    with (base / f"{flavour}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.is_dir():
            with process.temporary_path(directory.with_suffix(".tmp")) as work:
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir()
                build(flavour, work)
                work.rename(directory)
            _forget_unused(base)
    os.utime(directory)
    images = directory / "tree/images/pxeboot"
    return TestDistro(directory / "testdistro.iso", images / "vmlinuz", images / "initrd.img", directory / "tree")


def kickstart(
    *,
    ssh_public_key: str | None = None,
    rootpw: str | None = None,
    hostname: str = "testdistro",
    post: str = "",
    commands: Sequence[str] = (),
    end: str = "reboot",
) -> str:
    """A kickstart as one writes them for Anaconda; `commands` are more lines. Without `rootpw` no password is good."""
    lines = [
        "text", "lang en_US.UTF-8", "keyboard us", "timezone UTC --utc",
        f"network --bootproto=dhcp --hostname={hostname}",
        f"rootpw --plaintext {rootpw}" if rootpw else "rootpw --lock",
        *([f'sshkey --username=root "{ssh_public_key}"'] if ssh_public_key else []),
        "zerombr", "clearpart --all --initlabel", "autopart --type=plain", "bootloader --timeout=1", *commands, end,
        "%packages", "@core", "%end",
        *(["%post", post.strip("\n"), "%end"] if post else []),
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _cache_directory() -> Path:
    """Not paths.cache_directory: that is a test's own, and this is for every session."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "imgbuild-tests"


def _digest() -> str:
    """Of everything that the result depends on."""
    digest = hashlib.sha256(packages.state().encode())
    makers = [_SOURCES / name for name in ("archive.py", "build.py", "modules.py", "packages.py")]
    for path in (*makers, *sorted((_SOURCES / "files").rglob("*"))):
        if path.is_file():
            digest.update(f"{path.relative_to(_SOURCES)} {path.stat().st_mode} ".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _forget_unused(base: Path) -> None:
    for path in base.iterdir():
        if path.is_dir() and path.stat().st_mtime < time.time() - _UNUSED:
            shutil.rmtree(path, ignore_errors=True)
