"""The Debian packages that the test distribution is made of: named, downloaded and unpacked without root.

apt decides where they come from and which versions they have; nothing is installed on the host.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from imagebuilder import process
from imagebuilder.errors import ImgbuildError

# What runs, in the guest or here to make boot loaders; and what is only taken files from (or needs nothing but libc).
PROGRAMS = ("busybox-static", "dropbear-bin", "e2fsprogs", "grub-common")
FILES = (
    "extlinux", "grub-efi-amd64-bin", "isolinux", "mtools", "openssh-client", "openssh-sftp-server",
    "syslinux-common", "util-linux",
)  # fmt: skip
# The first that apt knows: Debian's name, Ubuntu's name.
KERNELS = {
    "cloud": ("linux-image-cloud-amd64", "linux-image-virtual"),
    "generic": ("linux-image-amd64", "linux-image-generic"),
}
LISTS = Path("/var/lib/apt/lists")
_ONLY_DEPENDS = [f"--no-{kind}" for kind in ("recommends", "suggests", "conflicts", "breaks", "replaces", "enhances")]


def state() -> str:
    """Changes whenever apt may offer other versions; much quicker to have than the versions themselves (2 s)."""
    return "\n".join(f"{path.name} {path.stat().st_mtime_ns}" for path in sorted(LISTS.glob("*_*")))


def unpack(flavour: str, root: Path) -> None:
    """Download everything that a distribution with this kernel needs, and unpack it into `root`."""
    packages = root / "packages"
    packages.mkdir(parents=True)
    process.run(["apt-get", "-q", "download", *_needed(flavour)], cwd=packages, timeout=300)
    for package in sorted(packages.iterdir()):
        process.run(["dpkg-deb", "-x", package, root], timeout=120)


def _needed(flavour: str) -> list[str]:
    """Every package to download: the programs with the libraries they need, and the kernel with its modules."""
    known = process.run(["apt-cache", "policy", *KERNELS[flavour]], timeout=60).stdout
    kernels = [name for name in KERNELS[flavour] if f"{name}:\n" in known]
    if not kernels:
        raise ImgbuildError(f"apt knows none of {', '.join(KERNELS[flavour])}", hint="run: apt-get update")
    libraries = _closure(PROGRAMS, re.compile("lib|zlib"))
    image = _closure(kernels[:1], re.compile(r"linux-(image|modules)-\d"))
    return sorted({*PROGRAMS, *FILES, *libraries, *image})


def _closure(names: Sequence[str], follow: re.Pattern[str]) -> set[str]:
    """The packages whose names match `follow` that these need, directly or through each other."""
    text = process.run(["apt-cache", "depends", "--recurse", *_ONLY_DEPENDS, *names], timeout=60).stdout
    depends: dict[str, list[str]] = {}
    package: list[str] = []
    for line in text.splitlines():
        if not line.startswith(" "):
            package = depends.setdefault(line, [])
        elif match := re.match(r" [ |](?:Pre)?Depends: ([^<\s:]+)", line):
            package.append(match[1])
    found, pending = set[str](), list(names)
    while pending:
        fresh = {name for name in depends.get(pending.pop(), ()) if follow.match(name)} - found
        found |= fresh
        pending += fresh
    return found
