"""The root file system of a bootstrapped image: the files we add to it, and the scripts that make it.

The scripts run in mount and PID namespaces of their own, with the root of the image on a tmpfs that exists nowhere
else: when their first process dies, by `kill -9` too, every child and every mount is gone with it. The working
directory is the only way in and out (from inside a user namespace, root is nobody to a user's home), and only plain
files go there: a directory made in a user namespace could not be removed from outside.
"""

from __future__ import annotations

import io
import shlex
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass

MOUNT_POINT = "/mnt"  # exists on every machine (FHS 3.0); ours is seen by our own processes only

MAKE = """\
set -eu
if [ "$1" = memory ]; then mount -t tmpfs -o mode=755,size=90% imgbuild /mnt
else mkdir -p root; mount --no-canonicalize --bind root /mnt; fi
mkdir /mnt/exchange /mnt/tmp /mnt/root
mount --no-canonicalize --bind . /mnt/exchange
export TMPDIR=/mnt/tmp
offset=$2 size=$3 uuid=$4; shift 4
"$@"
echo "imgbuild: sealing" >&2
root=/mnt/root
sh -eu seal.sh "$root"
echo "imgbuild: writing" >&2
du -sk "$root" | cut -f1 > results/used
MKE2FS_CONFIG=mke2fs.conf mke2fs -q -F -t ext4 -L root -U "$uuid" -E "offset=$offset,hash_seed=$uuid" -m 1 \\
    -d "$root" disk.raw "$size"
"""
"""Arguments: 'memory' or 'disk', offset (bytes) and size ('4096k') of the file system, its UUID, then
mmdebstrap's command line."""

SETUP = """\
set -eu
mkdir -p "$1/var/cache/apt/archives" "$1/etc/initramfs-tools" "$1/etc/ssh"
find /mnt/exchange/archives -name '*.deb' -exec cp -t "$1/var/cache/apt/archives" {} +
# One initramfs, made at the end, instead of one at every turn: 5 s each.
echo update_initramfs=no > "$1/etc/initramfs-tools/update-initramfs.conf"
# No host keys: the package makes them where there are none, the sealed image has none.
touch "$1/etc/ssh/ssh_host_rsa_key" "$1/etc/ssh/ssh_host_ecdsa_key" "$1/etc/ssh/ssh_host_ed25519_key"
"""

EXTRACTED = """\
set -eu
mkdir -p "$1/etc/dpkg/dpkg.cfg.d"
cp /mnt/exchange/dpkg.cfg "$1/etc/dpkg/dpkg.cfg.d/imgbuild"
"""

CUSTOMIZE = """\
set -eu
echo "imgbuild: configuring" >&2
for package in "$1"/var/cache/apt/archives/*.deb; do
    [ -e "/mnt/exchange/archives/${package##*/}" ] || cp "$package" /mnt/exchange/archives/
done
rm -rf "$1"/var/cache/apt/archives/*
rm -f "$1/etc/dpkg/dpkg.cfg.d/imgbuild" "$1/etc/apt/sources.list" "$1"/etc/apt/sources.list.d/*
conf="$1/etc/initramfs-tools/update-initramfs.conf"
if [ -e "$conf.dpkg-dist" ]; then mv "$conf.dpkg-dist" "$conf"; else echo update_initramfs=yes > "$conf"; fi
tar -C "$1" --no-same-owner -xf /mnt/exchange/overlay.tar
cp /mnt/exchange/configure.sh "$1/configure.sh"
cp /mnt/exchange/secrets "$1/secrets"
chroot "$1" sh -eu /configure.sh
rm "$1/configure.sh" "$1/secrets"
for image in boot.img core.img core.efi; do
    found=$(find "$1/boot/grub" -name "$image")
    [ -z "$found" ] || cat "$found" > "/mnt/exchange/results/$image"
done
chroot "$1" dpkg-query -W -f '${Package} ${Version} ${Architecture}\\n' > /mnt/exchange/results/packages
"""

SEAL = """\
root=$1
rm -f "$root"/etc/apt/apt.conf.d/99mmdebstrap "$root"/etc/dpkg/dpkg.cfg.d/99mmdebstrap
rm -f "$root"/etc/ssh/ssh_host_* "$root"/var/lib/systemd/random-seed "$root"/var/lib/dbus/machine-id
rm -f "$root"/etc/*- "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old "$root"/boot/*.old
rm -f "$root"/vmlinuz.old "$root"/initrd.img.old "$root"/boot/vmlinuz.old "$root"/boot/initrd.img.old
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/dev/* "$root"/run/* "$root"/tmp/*
rm -f "$root"/var/cache/ldconfig/aux-cache
find "$root/var/log" -type f -delete
if [ "$SHRINK" = yes ]; then
    rm -rf "$root"/usr/share/man/* "$root"/usr/share/info/*
    find "$root/usr/share/locale" -mindepth 1 ! -type d ! -name locale.alias -delete
    find "$root/usr/share/doc" -mindepth 1 ! -type d ! -name copyright -delete
fi
: > "$root/etc/machine-id"
ln -sfn ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"
[ -z "$EPOCH" ] || find "$root" -newermt "@$EPOCH" -exec touch -h -d "@$EPOCH" {} +
"""

# Features that every GRUB from 2.06 on can read, whatever the e2fsprogs of this machine would choose.
MKE2FS_CONFIG = """\
[defaults]
    base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
    default_mntopts = acl,user_xattr
    enable_periodic_fsck = 0
    blocksize = 4096
    inode_size = 256
    inode_ratio = 16384
[fs_types]
    ext4 = {
        features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
    }
"""

INITRAMFS_CONFIG = """\
# Level 19, the default, takes ten times as long to make and saves a tenth.
COMPRESS=zstd
COMPRESSLEVEL=9
"""

INITRAMFS_HOOK = """\
#!/bin/sh
# The root file system is ext4 on a disk of this machine, whatever controller it hangs on: what starts from networks
# and other file systems is left out, which halves what the boot loader reads. Remove this file when that changes.
[ "${1:-}" != prereqs ] || exit 0
cd "$DESTDIR/usr/lib/modules/$version/kernel" 2>/dev/null || cd "$DESTDIR/lib/modules/$version/kernel"
rm -rf drivers/net drivers/infiniband drivers/hid net
cd fs && rm -rf nfs nfs_common lockd fscache netfs xfs btrfs ceph udf f2fs jfs ocfs2
"""

HOST_KEYS_UNIT = """\
[Unit]
Description=Make the SSH host keys of this machine
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
Before=ssh.service ssh.socket

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -q -N "" -t ecdsa -f /etc/ssh/ssh_host_ecdsa_key
ExecStart=/usr/bin/ssh-keygen -q -N "" -t ed25519 -f /etc/ssh/ssh_host_ed25519_key

[Install]
WantedBy=multi-user.target
"""

GROW_UNIT = """\
[Unit]
Description=Grow the root file system to the size of its disk

[Service]
Type=oneshot
Environment=TMPDIR=/run
ExecStart=/usr/local/sbin/grow-root

[Install]
WantedBy=multi-user.target
"""

GROW_SCRIPT = """\
#!/bin/sh
# The root partition is the last one: give it what the disk has got since, if anything.
set -eu
part=$(findmnt -no SOURCE /)
name=${part#/dev/}
disk=$(basename "$(readlink -f "/sys/class/block/$name/..")")
growpart "/dev/$disk" "$(cat "/sys/class/block/$name/partition")" || [ $? -eq 1 ] # 1: nothing to grow
resize2fs "$part"
"""

DHCP_NETWORK = """\
[Match]
Type=ether

[Network]
DHCP=yes
"""


_UNREAD = """\
path-exclude=/usr/share/man/*
path-exclude=/usr/share/info/*
path-exclude=/usr/share/locale/*
path-include=/usr/share/locale/locale.alias
path-exclude=/usr/share/doc/*
path-include=/usr/share/doc/*/copyright
"""


@dataclass(frozen=True)
class File:
    """A file of the image, owned by root."""

    content: str | bytes
    mode: int = 0o644


def dpkg_config(*, documentation: bool) -> str:
    """dpkg.cfg(5) while the image is made: our files stay; without documentation, half as many files."""
    return "force-confold\n" + ("" if documentation else _UNREAD)


def configure_script(
    *, services: tuple[str, ...], unwanted: tuple[str, ...], timezone: str, grub: Mapping[str, str]
) -> str:
    """What runs as root inside the image once every package is there; `grub`: platform -> modules of its core."""
    lines = [
        f"systemctl enable --quiet {shlex.join(services)}" if services else ":",
        *(f"systemctl disable --quiet {shlex.quote(unit)} 2>/dev/null || :" for unit in unwanted),
        f"ln -sfn {shlex.quote('/usr/share/zoneinfo/' + timezone)} /etc/localtime",
        f"echo {shlex.quote(timezone)} > /etc/timezone",
        "[ ! -d /root/.ssh ] || chmod 700 /root/.ssh",
        "if [ -s /secrets ]; then chpasswd -e < /secrets; fi",
        "[ -e /etc/default/grub ] || cp /usr/share/grub/default/grub /etc/default/grub",
        "update-initramfs -c -k all >&2",
        "version=$(ls /boot/vmlinuz-* | sort -V | tail -n 1 | sed 's|^/boot/vmlinuz-||')",
        'sed -i "s/@VERSION@/$version/" /boot/grub/grub.cfg',
    ]
    for platform, modules in grub.items():
        core = "core.efi" if platform.endswith("-efi") else "core.img"
        lines += [
            f"mkdir -p /boot/grub/{platform}",
            f"cp /usr/lib/grub/{platform}/*.mod /usr/lib/grub/{platform}/*.lst /boot/grub/{platform}/",
            f"cp /usr/lib/grub/{platform}/boot.img /boot/grub/{platform}/" if core == "core.img" else ":",
            f"grub-mkimage -O {platform} -p /boot/grub -c /boot/grub/early.cfg "
            f"-o /boot/grub/{platform}/{core} {modules}",
        ]
    return "\n".join([*lines, "rm -f /boot/grub/early.cfg"]) + "\n"


def overlay(files: Mapping[str, File], epoch: int) -> bytes:
    """A tar archive of files (absolute path -> file), `epoch` their time in Unix seconds."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path, file in sorted(files.items()):
            content = file.content if isinstance(file.content, bytes) else file.content.encode()
            member = tarfile.TarInfo(path.lstrip("/"))
            member.size, member.mode, member.mtime = len(content), file.mode, epoch
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
