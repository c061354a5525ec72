"""What the comparisons with Packer share: where they work, the base image that both tools start from, and its builder.

The peer is Packer 1.6.6, the version that Debian 12 packages.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent
WORK = HERE / "work"
IMGBUILD = HERE.parent / ".venv/bin/imgbuild"

# The two tools put the network card into different slots, so it has different names: any card gets an address.
ANY_CARD = [
    "touch /etc/cloud/cloud-init.disabled",
    "rm -f /etc/netplan/* /etc/systemd/network/*cloud-init*",
    "printf '[Match]\\nType=ether\\n[Network]\\nDHCP=yes\\n' > /etc/systemd/network/10-any.network",
]


def builder(base: Path, key: Path, output: Path) -> dict[str, object]:
    """A qemu builder that both tools accept: the base image, provisioned as root, written out as qcow2."""
    return {
        "type": "qemu", "disk_image": True, "iso_url": str(base), "iso_checksum": "none",
        "output_directory": str(output), "vm_name": "disk", "disk_size": "10G", "format": "qcow2",
        "accelerator": "tcg", "headless": True, "cpus": 2, "memory": 1024, "disk_cache": "unsafe",
        "boot_wait": "-1s", "ssh_username": "root", "ssh_private_key_file": str(key), "ssh_timeout": "10m",
        "shutdown_command": "poweroff",
    }  # fmt: skip


def make_base() -> tuple[Path, Path]:
    """A Debian with a key of ours for root, made once: the image and the private key."""
    base, key = WORK / "base" / "disk", WORK / "key"
    if not base.exists():
        WORK.mkdir(parents=True, exist_ok=True)
        if not key.exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        (WORK / "base.json").write_text(json.dumps(_base_plan(key.with_suffix(".pub").read_text().strip())))
        subprocess.run([str(IMGBUILD), "build", "--force", str(WORK / "base.json")], check=True)
    return base, key


def _base_plan(public_key: str) -> dict[str, object]:
    return {
        "builders": [
            {
                "type": "bootstrap", "suite": "bookworm", "vm_name": "disk", "output_directory": str(WORK / "base"),
                "disk_size": "10G", "disk_compression": False, "memory": 1024, "cpus": 2, "seal": False,
            }
        ],
        "provisioners": [
            {"type": "shell", "inline": [f"echo '{public_key}' >> .ssh/authorized_keys", *ANY_CARD]}
        ],
    }  # fmt: skip
