"""The shell commands in the answer files that ship, run for real in a root of their own: what they leave behind."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml

from imagebuilder.autoinstall.distro import Family, distro_names, load_distro
from tests.test_shipped import KEY, main_answer

FAKES = "systemctl update-grub apt-get dnf zypper restorecon"
CHROOTS = {"in-target": 'exec "$@"\n', "curtin": 'while [ "$1" != -- ]; do shift; done; shift; exec "$@"\n'}
ALLOWED = subprocess.run(["unshare", "--map-root-user", "--mount", "true"], capture_output=True).returncode == 0

# /etc, /root and /home are fresh and vanish with the process; what is in them at the end is copied out.
ROOT = """
mount -t tmpfs none /etc; mount -t tmpfs none /root; mount -t tmpfs none /home
mkdir -p /etc/sudoers.d /etc/network/interfaces.d /etc/cloud/cloud.cfg.d /etc/udev/rules.d /etc/default
echo 'datasource_list: [ None ]' > /etc/cloud/cloud.cfg.d/99-installer.cfg
printf 'root:x:0:0::/root:/bin/sh\\nbuilder:x:0:0::/home/builder:/bin/sh\\n' > /etc/passwd
printf 'root:x:0:\\n' > /etc/group
printf '127.0.0.1\\tlocalhost\\n127.0.1.1\\tdebian\\n' > /etc/hosts
"""


def commands(name: str, variant: str) -> str:
    """The shell script of a distro's answer file, as its installer would run it."""
    text = main_answer(name, variant)
    match load_distro(name).family:
        case Family.REDHAT:
            found = re.search(r"^%post.*?\n(.*?)^%end", text, re.DOTALL | re.MULTILINE)
        case Family.DEBIAN:
            found = re.search(r"^d-i preseed/late_command string (.*)$", text, re.MULTILINE)
        case Family.SUSE:
            root = ElementTree.fromstring(text)
            return root.findtext(".//{*}chroot-scripts/{*}script/{*}source") or ""
        case _:
            late = yaml.safe_load(text)["autoinstall"]["late-commands"]
            return "\n".join(shlex.join(command) for command in late)
    assert found is not None
    return found[1]


def left(name: str, variant: str, directory: Path) -> Path:
    """Run the script where only /etc, /root and /home can be written; the copy of what it left there."""
    tools = directory / "bin"
    tools.mkdir()
    for tool in [*FAKES.split(), "useradd", "usermod"]:
        (tools / tool).write_text(f'#!/bin/sh\necho "{tool} $*" >> /etc/ran\n')
    for tool, script in CHROOTS.items():
        (tools / tool).write_text(f"#!/bin/sh\n{script}")
    for path in tools.iterdir():
        path.chmod(0o755)
    (directory / "script").write_text(f"set -e\n{commands(name, variant)}\n")
    outer = f"{ROOT}\nsh {directory}/script\ncp -a /etc /root /home {directory}\n"
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", "sh", "-ec", outer], capture_output=True, text=True,
        env={"PATH": f"{tools}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return directory


needs_namespaces = pytest.mark.skipif(not ALLOWED, reason="unshare is not allowed here")


@needs_namespaces
@pytest.mark.parametrize("name", distro_names())
def test_root_gets_the_builds_key(name: str, tmp_path: Path) -> None:
    root = left(name, "plain", tmp_path)
    keys = root / "root/.ssh/authorized_keys"
    assert keys.read_text() == KEY + "\n"
    assert (keys.stat().st_mode & 0o777, keys.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert list((root / "etc/sudoers.d").iterdir()) == []
    assert not (root / "etc/ssh").exists()
    assert "systemctl enable fstrim.timer\n" in (root / "etc/ran").read_text()


@needs_namespaces
@pytest.mark.parametrize("name", distro_names())
def test_another_user_gets_the_key_and_sudo(name: str, tmp_path: Path) -> None:
    root = left(name, "password", tmp_path)
    assert (root / "home/builder/.ssh/authorized_keys").read_text() == KEY + "\n"
    assert not (root / "root/.ssh").exists()
    sudoers = root / "etc/sudoers.d/90-imgbuild"
    assert sudoers.read_text() == "builder ALL=(ALL:ALL) NOPASSWD: ALL\n"
    assert sudoers.stat().st_mode & 0o777 == 0o440
    assert (root / "etc/ssh/sshd_config.d/10-imgbuild.conf").read_text() == "PasswordAuthentication yes\n"


@needs_namespaces
@pytest.mark.parametrize("name", distro_names())
def test_root_may_use_a_password_that_was_given(name: str, tmp_path: Path) -> None:
    root = left(name, "root password", tmp_path)
    lines = (root / "etc/ssh/sshd_config.d/10-imgbuild.conf").read_text()
    assert lines == "PasswordAuthentication yes\nPermitRootLogin yes\n"


@needs_namespaces
@pytest.mark.parametrize("name", ["debian-12", "debian-13", "ubuntu-22.04", "ubuntu-24.04"])
def test_debian_and_ubuntu_boot_on_both_consoles_and_make_host_keys(name: str, tmp_path: Path) -> None:
    root = left(name, "plain", tmp_path)
    variables = f". {root}/etc/default/grub.d/90-imgbuild.cfg; echo $GRUB_TIMEOUT $GRUB_TERMINAL $GRUB_CMDLINE_LINUX"
    told = subprocess.run(["sh", "-c", variables], capture_output=True, text=True).stdout
    card = " net.ifnames=0" if name.startswith("debian") else ""
    assert told == f"1 console console=tty0 console=ttyS0,115200{card}\n"
    unit = (root / "etc/systemd/system/ssh.service.d/10-imgbuild.conf").read_text()
    assert unit.splitlines()[:3] == ["[Service]", "ExecStartPre=", "ExecStartPre=/usr/bin/ssh-keygen -A"]
    ran = (root / "etc/ran").read_text().splitlines()
    assert ran.index("update-grub ") < ran.index("apt-get clean")


@needs_namespaces
@pytest.mark.parametrize("name", ["debian-12", "debian-13"])
def test_debian_has_its_name_and_a_network_that_fits_every_machine(name: str, tmp_path: Path) -> None:
    etc = left(name, "plain", tmp_path) / "etc"
    assert (etc / "hostname").read_text() == "image\n"
    assert (etc / "hosts").read_text() == "127.0.0.1\tlocalhost\n127.0.1.1 image\n"
    assert "iface lo inet loopback" in (etc / "network/interfaces").read_text().splitlines()
    assert "iface eth0 inet dhcp" in (etc / "network/interfaces.d/50-cloud-init").read_text().splitlines()


@needs_namespaces
@pytest.mark.parametrize("name", ["ubuntu-22.04", "ubuntu-24.04"])
def test_ubuntu_lets_cloud_init_look_for_a_seed_again(name: str, tmp_path: Path) -> None:
    assert list((left(name, "plain", tmp_path) / "etc/cloud/cloud.cfg.d").iterdir()) == []
