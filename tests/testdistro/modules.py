"""The kernel modules of the test distribution: a few by name and everything they depend on."""

from __future__ import annotations

import lzma
import shutil
from pathlib import Path

from imagebuilder import process
from imagebuilder.errors import ImgbuildError

# Every device that a test gives a guest. A kernel may lack those of the second line (the cloud flavour does).
WANTED = (
    "virtio_pci", "virtio_blk", "virtio_net", "virtio_scsi", "virtio-rng", "virtio_console", "virtio_balloon",
    "ata_piix", "sd_mod", "sr_mod", "ext4", "crc32c_generic", "crc32c-intel", "isofs", "vfat", "nls_cp437",
    "nls_ascii", "nls_iso8859-1", "nls_utf8", "button", "evdev",
)  # fmt: skip
OPTIONAL = ("ahci", "e1000", "e1000e", "floppy")


def copy(unpacked: Path, root: Path, busybox: Path) -> None:
    """Put the wanted modules of the kernel in `unpacked` into `root`/lib/modules, with modprobe's tables."""
    base = next(path for top in ("lib", "usr/lib") for path in (unpacked / top).glob("modules/*") if path.is_dir())
    files = {_name(path): path for path in base.rglob("*.ko*")}
    target = root / "usr/lib/modules" / base.name
    for name in _closure(files, _builtin(base)):
        path = target / files[name].relative_to(base)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(path.name.removesuffix(".xz")).write_bytes(_content(files[name]))
    for table in ("modules.builtin", "modules.order"):
        shutil.copy(base / table, target)
    process.run([busybox, "depmod", "-b", root / "usr", base.name], timeout=60)


def _closure(files: dict[str, Path], builtin: set[str]) -> list[str]:
    found: list[str] = []
    pending = [_plain(name) for name in (*WANTED, *OPTIONAL)]
    optional = {_plain(name) for name in OPTIONAL}
    while pending:
        name = pending.pop()
        if name in found or name in builtin or (name in optional and name not in files):
            continue
        if name not in files:
            raise ImgbuildError(f"the kernel has no module '{name}'")
        found.append(name)
        pending += [_plain(other) for other in _depends(_content(files[name]))]
    return found


def _depends(module: bytes) -> list[str]:
    """The names in the module's .modinfo section, which holds NUL-terminated key=value strings."""
    start = module.find(b"\0depends=") + len(b"\0depends=")
    names = module[start : module.index(b"\0", start)].decode()
    return names.split(",") if names else []


def _content(path: Path) -> bytes:
    """Busybox loads no compressed modules, which newer Debian kernels have."""
    return lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()


def _builtin(base: Path) -> set[str]:
    return {_name(Path(line)) for line in (base / "modules.builtin").read_text().splitlines()}


def _name(path: Path) -> str:
    return _plain(path.name.partition(".ko")[0])


def _plain(name: str) -> str:
    """Modules are named with either, without a difference."""
    return name.replace("-", "_")
