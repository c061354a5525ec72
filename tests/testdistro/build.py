"""Makes the test distribution out of unpacked packages and the files beside this module."""

from __future__ import annotations

import shutil
from pathlib import Path

from imagebuilder import process

from . import archive, modules, packages

FILES = Path(__file__).parent / "files"
LABEL = "TESTDISTRO"
_ESP_SECTORS = 4096  # 2 MiB: the installer's partition for it
_GUEST_PROGRAMS = ("blkid", "dropbear", "dropbearkey", "extlinux", "mke2fs", "scp", "sftp-server")
_RENAMED = {"mke2fs": "mkfs.ext4"}  # busybox's shell has a mke2fs of its own, which it prefers
_GRUB_MODULES = (
    "boot", "configfile", "echo", "ext2", "iso9660", "linux", "normal", "part_gpt", "part_msdos", "search",
    "search_fs_file", "search_label", "serial", "terminal",
)  # fmt: skip
_ISOLINUX = ("isolinux.bin", "ldlinux.c32", "libcom32.c32", "libutil.c32", "menu.c32")


def build(flavour: str, directory: Path) -> None:
    """Fill `directory`: testdistro.iso, and `tree` as a web server or a TFTP server would offer it."""
    unpacked, root = directory / "unpacked", directory / "root"
    packages.unpack(flavour, unpacked)
    _system(unpacked, root)
    tree = directory / "tree"
    (tree / "images/pxeboot").mkdir(parents=True)
    archive.tar(root, tree / "root.tar.gz")
    _installer(unpacked, root)
    archive.cpio(root, tree / "images/pxeboot/initrd.img")
    shutil.copy(root / "boot/vmlinuz", tree / "images/pxeboot/vmlinuz")
    shutil.copy(FILES / "media/treeinfo", tree / ".treeinfo")
    _iso(unpacked, tree, directory / "testdistro.iso")
    shutil.rmtree(unpacked)
    shutil.rmtree(root)


def _system(unpacked: Path, root: Path) -> None:
    """What is installed: busybox, dropbear, the kernel and its modules, everything below /usr."""
    for name in ("usr/bin", "usr/lib", "usr/lib64", "usr/lib/openssh", "boot", "root", "etc/dropbear", "dev"):
        (root / name).mkdir(parents=True)
    for link, target in (("bin", "usr/bin"), ("sbin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")):
        (root / link).symlink_to(target)
    (root / "usr/sbin").symlink_to("bin")
    (root / "root").chmod(0o700)
    busybox = _found(unpacked, "busybox")
    shutil.copy(busybox, root / "usr/bin/busybox")
    for applet in process.run([busybox, "--list"], timeout=10).stdout.split():
        if applet != "busybox":
            (root / "usr/bin" / applet).symlink_to("busybox")
    for name in _GUEST_PROGRAMS:
        _copy_program(unpacked, name, root)
    for name in ("usr/lib/sftp-server", "usr/lib/openssh/sftp-server"):  # dropbear's path, and OpenSSH's
        (root / name).symlink_to("/usr/bin/sftp-server")
    shutil.copy(_found(unpacked, "boot/vmlinuz-*"), root / "boot/vmlinuz")
    modules.copy(unpacked, root, busybox)
    shutil.copytree(FILES / "system", root, dirs_exist_ok=True)


def _copy_program(unpacked: Path, name: str, root: Path) -> None:
    """Copy a program with the libraries that it is linked to, as the loader finds them among the packages."""
    program = _found(unpacked, name)
    shutil.copy(program, root / "usr/bin" / _RENAMED.get(name, name))
    listed = process.run([*_loader(unpacked), "--list", program], timeout=10).stdout
    for line in listed.splitlines():
        name, _, path = line.strip().partition(" => ")
        if path:
            shutil.copy(path.rpartition(" (")[0], root / "usr/lib" / Path(name).name)
    loader = _loader(unpacked)[0]
    shutil.copy(loader, root / "usr/lib64/ld-linux-x86-64.so.2")


def _installer(unpacked: Path, root: Path) -> None:
    """Add to the system what turns it into its own installer."""
    target = root / "usr/lib/installer"
    shutil.copytree(FILES / "installer", target)
    (target / "init").rename(root / "init")
    shutil.copy(_found(unpacked, "mbr/mbr.bin"), target)
    _esp(unpacked, FILES / "boot/efi-disk.cfg", target / "esp.img")


def _esp(unpacked: Path, config: Path, target: Path) -> None:
    """An EFI system partition with GRUB where firmware looks on removable media (UEFI 2.10, section 3.5.1.1)."""
    program = target.with_name("bootx64.efi")
    process.run(
        [
            *_loader(unpacked), _found(unpacked, "grub-mkimage"), "-O", "x86_64-efi", "-p", "/boot/grub",
            "-d", unpacked / "usr/lib/grub/x86_64-efi", "-c", config, "-o", program, *_GRUB_MODULES,
        ],
        timeout=60,
    )  # fmt: skip
    mtools = _found(unpacked, "usr/bin/mtools")
    process.run([mtools, "-c", "mformat", "-C", "-i", target, "-T", str(_ESP_SECTORS), "-h", "16", "-s", "32", "::"])
    process.run([mtools, "-c", "mmd", "-i", target, "::/EFI", "::/EFI/BOOT"])
    process.run([mtools, "-c", "mcopy", "-i", target, program, "::/EFI/BOOT/BOOTX64.EFI"])
    program.unlink()


def _iso(unpacked: Path, tree: Path, target: Path) -> None:
    """Complete the tree with the boot loaders of the ISO and write the ISO, which has no root.tar.gz."""
    isolinux, efi = tree / "isolinux", tree / "EFI/BOOT"
    isolinux.mkdir()
    efi.mkdir(parents=True)
    for name in _ISOLINUX:
        shutil.copy(_found(unpacked, f"modules/bios/{name}" if name.endswith("c32") else name), isolinux / name)
    for name in ("isolinux.cfg", "boot.msg"):
        shutil.copy(FILES / "media" / name, isolinux / name)
    for name in ("vmlinuz", "initrd.img"):
        (isolinux / name).hardlink_to(tree / "images/pxeboot" / name)
    shutil.copy(FILES / "media/grub.cfg", efi / "grub.cfg")
    _esp(unpacked, FILES / "boot/efi-media.cfg", tree / "images/efiboot.img")
    system = (tree / "root.tar.gz").rename(tree.with_name("root.tar.gz"))
    archive.iso(tree, target, label=LABEL)
    system.rename(tree / "root.tar.gz")


def _loader(unpacked: Path) -> list[Path | str]:
    """The command that runs a program of the packages with the libraries of the packages."""
    folders = [unpacked / name for name in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")]
    return [_found(unpacked, "ld-linux-x86-64.so.2"), "--library-path", ":".join(map(str, folders))]


def _found(unpacked: Path, pattern: str) -> Path:
    """The file of this name, or of the end of this path; not a link to it, which may point out of the packages."""
    return next(path for path in sorted(unpacked.rglob(pattern)) if path.is_file() and not path.is_symlink())
