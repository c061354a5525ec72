"""A first disk from a distribution's packages: no installer, no ISO, no loop device; root or user namespaces.

mmdebstrap makes the root file system in memory, mke2fs writes it into its place in the disk image, and GRUB goes in
as bytes (bootloader.py). What comes out is a golden image: no machine id, no host keys, no logs, no package lists.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imagebuilder import paths, process
from imagebuilder.bootstrap import apt, bootloader, packagecache, partition, rootfs
from imagebuilder.bootstrap import spec as bootstrapspec
from imagebuilder.bootstrap.partition import Firmware, Layout, Role
from imagebuilder.bootstrap.progress import InstallProgress, advice, first_errors
from imagebuilder.bootstrap.spec import BootstrapSpec
from imagebuilder.errors import ImgbuildError, TemplateError
from imagebuilder.ui import Ui

__all__ = ["HOST_PACKAGES", "BootstrapSpec", "Bootstrapped", "Firmware", "check_host", "make_disk"]

HOST_PACKAGES = ("mmdebstrap", "e2fsprogs", "fdisk", "dosfstools", "mtools", "qemu-utils", "util-linux")
"""Debian's and Ubuntu's packages that `make_disk` needs on the machine; `uidmap` as well for those who aren't root."""

_PROGRAMS = {
    "mmdebstrap": "mmdebstrap", "apt-get": "apt", "mke2fs": "e2fsprogs", "sfdisk": "fdisk", "unshare": "util-linux",
}  # fmt: skip
_UEFI_PROGRAMS = {"mkfs.vfat": "dosfstools", "mcopy": "mtools"}
_TIMEOUT = 3600.0  # seconds for downloading and installing everything
_MEMORY = 2 * 2**30  # bytes that must be free for a root file system in memory


@dataclass(frozen=True)
class Bootstrapped:
    """What a disk was made of; `used` in bytes."""

    packages: tuple[str, ...]  # "name version architecture", sorted
    used: int


def make_disk(spec: BootstrapSpec, target: Path, ui: Ui, *, work: Path) -> Bootstrapped:
    """Write a bootable disk to `target`: qcow2 when its name ends so, else raw (sparse).

    `work`: an existing directory for what is in between; on another file system than `target`, the disk is copied.
    SOURCE_DATE_EPOCH in our environment becomes the latest time of any file. Raises ImgbuildError, TemplateError.
    What is unfinished is removed.
    """
    check_host(spec)
    sources = _sources(spec)
    disk = partition.layout(spec.disk_size, spec.firmware, spec.fingerprint())
    with process.temporary_path(work / f"bootstrap.{os.getpid()}") as private:
        private.mkdir(mode=0o700)
        exchange = private / "exchange"
        _prepare(spec, sources, disk, exchange)
        partition.write(disk, exchange / "disk.raw")
        (exchange / "disk.raw").chmod(
            0o666
        )  # root in a user namespace is somebody else here; `private` keeps others out
        _install_packages(spec, sources, disk, exchange, ui)
        with ui.step(f"Installing GRUB ({_firmware_words(spec.firmware)})"):
            bootloader.install(_images(exchange / "results"), disk, exchange / "disk.raw", private)
        _finish(exchange / "disk.raw", target, private, ui)
        return _bootstrapped(exchange / "results")


def check_host(spec: BootstrapSpec) -> None:
    """Raise what is wrong with `spec` or missing on this machine, before anything is started."""
    if problems := list(spec.problems()):
        raise TemplateError(problems)
    for program, package in {**_PROGRAMS, **(_UEFI_PROGRAMS if spec.firmware.uefi else {})}.items():
        process.find(program, package=package)
    if os.geteuid() != 0:
        _check_user_namespaces()


def _check_user_namespaces() -> None:
    for program in ("newuidmap", "newgidmap"):
        process.find(program, package="uidmap")
    done = process.run(["mmdebstrap", "--unshare-helper", "true"], check=False, timeout=60)
    if done.returncode != 0:
        user = os.environ.get("USER", str(os.getuid()))
        raise ImgbuildError(
            "can't make a user namespace, so packages can't be installed without root: "
            + (done.stderr.strip().splitlines() or ["mmdebstrap says nothing"])[-1],
            hint="run as root, or allow it: "
            f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}; "
            "sysctl kernel.unprivileged_userns_clone=1",
        )


def _sources(spec: BootstrapSpec) -> list[apt.Source]:
    if spec.mirrors:
        sources = apt.named_sources(spec.mirrors, spec.distribution, spec.suite, spec.components)
    else:
        sources = apt.machine_sources(spec.distribution, spec.suite, spec.components)
    apt.check_keyrings(sources)
    return sources


def _prepare(spec: BootstrapSpec, sources: Sequence[apt.Source], disk: Layout, exchange: Path) -> None:
    """Everything the scripts read and the places they write to."""
    exchange.mkdir(mode=0o777)
    exchange.chmod(0o777)
    for name in ("archives", "results"):
        (exchange / name).mkdir()
        (exchange / name).chmod(0o777)
    files: dict[str, str | bytes] = {
        "overlay.tar": rootfs.overlay(bootstrapspec.image_files(spec, sources, disk), _epoch()),
        "configure.sh": bootstrapspec.configure_script(spec),
        "secrets": f"root:{spec.root_password_hash}\n" if spec.root_password_hash else "",
        "seal.sh": rootfs.SEAL,
        "dpkg.cfg": rootfs.dpkg_config(documentation=spec.documentation),
        "mke2fs.conf": rootfs.MKE2FS_CONFIG,
        "apt.conf": apt.acquire_settings() + 'Acquire::Languages "none";\nAPT::Install-Recommends "false";\n',
        "sources.sources": apt.render(sources),
    }
    for name, content in files.items():
        (exchange / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        (exchange / name).chmod(0o644)


def _install_packages(spec: BootstrapSpec, sources: Sequence[apt.Source], disk: Layout, exchange: Path, ui: Ui) -> None:
    """Run mmdebstrap and write the root file system into the disk image."""
    for secret in (spec.root_password_hash, *(word for source in sources for word in apt.credentials(source))):
        ui.mask(secret)
    cache = paths.cache_directory() / "packages" / _cache_name(spec, sources)
    lent = packagecache.lend(cache, exchange / "archives")
    ui.say(f"Installing {spec.distribution} {spec.suite} from packages" + (f" ({lent} are here)" if lent else ""))
    root = disk[Role.ROOT]
    where = "memory" if os.geteuid() != 0 or _available_memory() >= _MEMORY else "disk"
    script = ["sh", "-c", rootfs.MAKE, "imgbuild", where, str(root.start), f"{root.size // 1024}k"]
    argv = [*_namespace(), *script, str(bootstrapspec.filesystem_uuid(spec)), *_mmdebstrap(spec)]
    with ui.progress("Installing packages", total=100, unit="percent") as update:
        follow = InstallProgress(update, ui.message)
        done = process.run(
            argv, check=False, timeout=_TIMEOUT, on_line=follow.line, cwd=exchange, env=_script_environment(spec)
        )  # fmt: skip
    output = "\n".join(follow.lines)
    if done.returncode != 0:
        raise ImgbuildError(f"the packages could not be installed:\n{first_errors(output)}", hint=advice(output))
    packagecache.take_back(exchange / "archives", cache)


def _namespace() -> list[str]:
    """What goes before a command that may mount; nothing of it outlives its first process."""
    if os.geteuid() == 0:
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--"]
    return ["mmdebstrap", "--unshare-helper"]  # which AppArmor of Ubuntu lets make user namespaces, unlike unshare


def _mmdebstrap(spec: BootstrapSpec) -> list[str]:
    merged = ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr"] * ("usr-is-merged" in bootstrapspec.included(spec))
    exchange = f"{rootfs.MOUNT_POINT}/exchange"
    return [
        "mmdebstrap", "--mode=root", "--format=directory", "--verbose", f"--variant={spec.variant}",
        f"--architectures={spec.architecture}", f"--include={','.join(bootstrapspec.included(spec))}",
        f"--aptopt={exchange}/apt.conf", *merged,
        "--skip=download/empty", "--skip=essential/unlink", "--skip=cleanup/apt/cache",
        f"--setup-hook={rootfs.SETUP}", f"--extract-hook={rootfs.EXTRACTED}", f"--customize-hook={rootfs.CUSTOMIZE}",
        spec.suite, f"{rootfs.MOUNT_POINT}/root", f"{exchange}/sources.sources",
    ]  # fmt: skip


def _script_environment(spec: BootstrapSpec) -> dict[str, str]:
    """`INITRD=No` keeps the kernel's package from making an initramfs before everything is configured."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    shrink = "no" if spec.documentation else "yes"
    fixed = {"E2FSPROGS_FAKE_TIME": epoch, "SOURCE_DATE_EPOCH": epoch} if epoch else {}
    sbin = "/usr/local/sbin:/usr/sbin:/sbin"  # not on an ordinary user's PATH, and dpkg insists
    return {"INITRD": "No", "SHRINK": shrink, "EPOCH": epoch, "PATH": f"{os.environ['PATH']}:{sbin}", **fixed}


def _cache_name(spec: BootstrapSpec, sources: Sequence[apt.Source]) -> str:
    """Packages of one name and version may differ between archives: each set of them has its own directory."""
    text = f"{spec.architecture}\n{apt.render(map(apt.without_credentials, sources))}"
    return f"{spec.suite}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _available_memory() -> int:
    """Bytes that can be used without swapping (proc(5), MemAvailable)."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _epoch() -> int:
    return int(os.environ.get("SOURCE_DATE_EPOCH", "0") or 0)


def _images(results: Path) -> bootloader.Images:
    def content(name: str) -> bytes:
        return (results / name).read_bytes() if (results / name).is_file() else b""

    return bootloader.Images(boot=content("boot.img"), core=content("core.img"), efi=content("core.efi"))


def _finish(disk: Path, target: Path, work: Path, ui: Ui) -> None:
    """Put the disk under its name: complete or not at all."""
    if target.suffix == ".qcow2":
        qemu_img = process.find("qemu-img", package="qemu-utils")
        with ui.step("Converting the disk to qcow2"):
            process.run(
                [qemu_img, "convert", "-f", "raw", "-O", "qcow2", "-W", "-m", "8", disk, work / "disk.qcow2"],
                timeout=_TIMEOUT,
            )  # fmt: skip
        disk = work / "disk.qcow2"
    with disk.open("rb+") as file:
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())
    if disk.stat().st_dev == target.absolute().parent.stat().st_dev:
        disk.replace(target)
        return
    with process.temporary_path(target.with_name(f".{target.name}.{os.getpid()}")) as aside:
        aside.touch()
        aside_size = disk.stat().st_size
        os.truncate(aside, aside_size)
        bootloader.copy_sparse(disk, aside, 0)
        aside.replace(target)


def _bootstrapped(results: Path) -> Bootstrapped:
    packages = tuple(sorted((results / "packages").read_text(encoding="utf-8").splitlines()))
    return Bootstrapped(packages, int((results / "used").read_text(encoding="ascii")) * 1024)


def _firmware_words(firmware: Firmware) -> str:
    return {Firmware.BIOS: "BIOS", Firmware.UEFI: "UEFI", Firmware.BOTH: "BIOS and UEFI"}[firmware]
