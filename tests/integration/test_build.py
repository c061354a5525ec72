"""Whole builds of the test distribution in real QEMU: ways to a first boot, provisioning, export, failures."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.integration.harness import imgbuild, leftovers, processes_of, run, wait_until, written
from tests.testdistro import TestDistro, kickstart

pytestmark = pytest.mark.qemu


def builder(distro: TestDistro, **keys: Any) -> dict[str, Any]:
    """A qemu builder for the test distribution: its kickstart takes the key of the build."""
    return {
        "type": "qemu", "name": "tiny", "iso_url": str(distro.iso), "iso_checksum": "none", "memory": 512, "cpus": 1,
        "disk_size": "1G", "disk_cache": "unsafe", "output_directory": "output", "vm_name": "disk.qcow2",
        "ssh_username": "root", "ssh_timeout": "3m", "shutdown_command": "poweroff", **keys,
    }  # fmt: skip


def typed(**keys: Any) -> dict[str, Any]:
    return {
        "boot_wait": "0s",
        "boot_command": ['<waitfor "boot:">linux inst.ks=http://{{ .HTTPIP }}:{{ .HTTPPort }}/ks.cfg<enter>'],
        **keys,
    }


def direct(**keys: Any) -> dict[str, Any]:
    return {
        "kernel": "iso:/images/pxeboot/vmlinuz", "initrd": "iso:/images/pxeboot/initrd.img",
        "kernel_args": "console=ttyS0 inst.ks=http://{{ .HTTPIP }}:{{ .HTTPPort }}/ks.cfg", **keys,
    }  # fmt: skip


@pytest.fixture
def ks(tmp_path: Path) -> str:
    """A kickstart template of ours; the build renders its own key into it."""
    path = tmp_path / "ks.cfg.j2"
    path.write_text(kickstart(ssh_public_key="{{ ssh_public_key }}"))
    return str(path)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_from_an_iso_with_a_typed_boot_command(distro: TestDistro, tmp_path: Path, ks: str) -> None:
    shell = {"type": "shell", "inline": ["cat /etc/os-release", "echo provisioned > /etc/provisioned", "sync"]}
    template = {
        "builders": [builder(distro, **typed(http_templates={"ks.cfg": ks}, wait_for_reset=True))],
        "provisioners": [shell],
        "post-processors": [[{"type": "checksum", "checksum_types": ["sha256"], "output": "sums"}], ["manifest"]],
    }
    outcome = run("build", written(tmp_path / "t.json", template), cwd=tmp_path)
    assert outcome.code == 0, outcome.text
    assert "The guest fetched /ks.cfg (200)" in outcome.text
    assert "ID=testdistro" in outcome.text

    manifest = json.loads((tmp_path / "output/manifest.json").read_text())
    disk = tmp_path / "output/disk.qcow2"
    (entry,) = [one for one in manifest["files"] if one["name"] == "disk.qcow2"]
    assert entry["sha256"] == digest(disk)
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["disk.qcow2", "manifest.json"]
    subprocess.run(["sha256sum", "-c", "sums"], cwd=tmp_path, check=True)
    assert json.loads((tmp_path / "packer-manifest.json").read_text())["builds"][0]["name"] == "tiny"
    assert leftovers(tmp_path) == []
    assert processes_of(tmp_path) == []


def test_by_direct_kernel_boot_then_on_the_image(distro: TestDistro, tmp_path: Path) -> None:
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    (tmp_path / "ks.cfg").write_text(kickstart(ssh_public_key=key.with_suffix(".pub").read_text().strip()))
    own = {"ssh_private_key_file": str(key)}
    first = builder(distro, **direct(http_directory=str(tmp_path)), **own)
    template = {"builders": [first], "provisioners": [{"type": "shell", "inline": ["echo one > /etc/one"]}]}
    outcome = run("build", written(tmp_path / "t.json", template), cwd=tmp_path)
    assert outcome.code == 0, outcome.text

    disk = tmp_path / "output/disk.qcow2"
    before = digest(disk)
    again = builder(distro, disk_image=True, iso_url=str(disk), output_directory="second", **own)
    overlay = {**again, "name": "overlay", "use_backing_file": True, "output_directory": "third"}
    check = {
        "builders": [again, overlay],
        "provisioners": [{"type": "shell", "inline": ["grep one /etc/one", "echo two > /etc/two", "hostname"]}],
    }
    outcome = run("build", written(tmp_path / "u.json", check), cwd=tmp_path)
    assert outcome.code == 0, outcome.text
    assert digest(disk) == before
    info = json.loads(
        subprocess.check_output(["qemu-img", "info", "--output=json", str(tmp_path / "third/disk.qcow2")])
    )
    assert Path(info["full-backing-filename"]).resolve() == disk.resolve()
    info = json.loads(
        subprocess.check_output(["qemu-img", "info", "--output=json", str(tmp_path / "second/disk.qcow2")])
    )
    assert "backing-filename" not in info


def test_the_installers_sshd_is_not_the_installed_systems(distro: TestDistro, tmp_path: Path, ks: str) -> None:
    """A Packer template without wait_for_reset: the installer's sshd lets us in, and is recognised."""
    slow = tmp_path / "slow.cfg.j2"
    slow.write_text(Path(ks).read_text() + "\n%pre\nsleep 8\n%end\n")
    template = {
        "builders": [builder(distro, **typed(http_templates={"ks.cfg": str(slow)}))],
        "provisioners": [{"type": "shell", "inline": ["test ! -e /run/anaconda", "cat /etc/os-release"]}],
    }
    outcome = run("build", written(tmp_path / "t.json", template), cwd=tmp_path)
    assert outcome.code == 0, outcome.text


def test_a_failed_script_names_its_line_and_leaves_evidence(distro: TestDistro, tmp_path: Path, ks: str) -> None:
    template = {
        "builders": [builder(distro, **direct(http_templates={"ks.cfg": ks}))],
        "provisioners": [{"type": "shell", "inline": ["echo fine", "ls /no/such/file", "echo never"]}],
    }
    outcome = run("build", written(tmp_path / "t.json", template), cwd=tmp_path)
    assert outcome.code == 1
    assert "ls /no/such/file" in outcome.text
    assert re.search(r"line 2", outcome.text)
    assert "never" not in outcome.texts("message")
    folder = tmp_path / "output.failed"
    assert {"report.txt", "screenshot.png", "serial.log", "access.log", "argv"} <= {
        path.name for path in folder.iterdir()
    }
    assert (folder / "screenshot.png").read_bytes().startswith(b"\x89PNG")
    assert "ks.cfg" in (folder / "access.log").read_text()
    assert not (tmp_path / "output").exists()
    assert leftovers(tmp_path) == []
    assert processes_of(tmp_path) == []


def test_a_wrong_kickstart_ends_the_build_at_once(distro: TestDistro, tmp_path: Path) -> None:
    (tmp_path / "ks.cfg").write_text("rootpw --lock\nno_such_command here\n")
    template = {"builders": [builder(distro, **direct(http_directory=str(tmp_path)))]}
    outcome = run("build", written(tmp_path / "t.json", template), cwd=tmp_path)
    assert outcome.code == 1
    assert "no_such_command" in outcome.text
    assert outcome.seconds < 60


def test_a_dead_qemu_is_noticed_within_seconds(distro: TestDistro, tmp_path: Path, ks: str) -> None:
    template = {"builders": [builder(distro, **direct(http_templates={"ks.cfg": ks}))]}
    with imgbuild("build", written(tmp_path / "t.json", template), cwd=tmp_path) as running:
        running.until("Waiting for the installer")
        (pid,) = qemus(running.process.pid)
        os.kill(pid, signal.SIGKILL)
        outcome = running.finish(timeout=10)
    assert outcome.code == 1
    assert "QEMU" in outcome.text
    assert leftovers(tmp_path) == []


def qemus(parent: int) -> list[int]:
    """QEMU processes that an imgbuild has started."""
    out = subprocess.run(["pgrep", "-P", str(parent), "-f", "qemu-system"], capture_output=True, text=True).stdout
    return [int(word) for word in out.split()]


def test_abort_keeps_the_machine_and_says_how_to_reach_it(distro: TestDistro, tmp_path: Path, ks: str) -> None:
    template = {
        "builders": [builder(distro, **direct(http_templates={"ks.cfg": ks}))],
        "provisioners": [{"type": "shell", "inline": ["false"]}],
    }
    outcome = run("build", "-on-error=abort", written(tmp_path / "t.json", template), cwd=tmp_path)
    assert outcome.code == 1
    found = re.search(r"ssh -p (\d+) -i (\S+) root@127\.0\.0\.1", outcome.text)
    assert found, outcome.text
    pid = int(re.search(r"process (\d+)", outcome.text).group(1))  # type: ignore[union-attr]
    try:
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=60"]
        argv = ["ssh", *options, "-p", found[1], "-i", found[2], "root@127.0.0.1", "cat /etc/os-release"]
        assert "testdistro" in subprocess.check_output(argv, text=True, timeout=90, stderr=subprocess.DEVNULL)
    finally:
        os.kill(pid, signal.SIGKILL)


def test_two_builds_at_once_do_not_meet(distro: TestDistro, tmp_path: Path, ks: str) -> None:
    one = builder(distro, **direct(http_templates={"ks.cfg": ks}))
    two = {**one, "name": "other", "output_directory": "other"}
    template = {"builders": [one, two], "provisioners": [{"type": "shell", "inline": ["hostname"]}]}
    outcome = run("build", written(tmp_path / "t.json", template), cwd=tmp_path)
    assert outcome.code == 0, outcome.text
    assert (tmp_path / "output/disk.qcow2").exists()
    assert (tmp_path / "other/disk.qcow2").exists()


def test_communicator_none_waits_for_the_guest_to_power_off(distro: TestDistro, tmp_path: Path) -> None:
    (tmp_path / "ks.cfg").write_text(kickstart(ssh_public_key="").replace("reboot", "poweroff"))
    keys = {"communicator": "none", "shutdown_timeout": "3m", "wait_for_reset": False}
    template = {"builders": [builder(distro, **direct(http_directory=str(tmp_path), **keys))]}
    outcome = run("build", written(tmp_path / "t.json", template), cwd=tmp_path)
    assert outcome.code == 0, outcome.text
    assert (tmp_path / "output/disk.qcow2").exists()


STEPS = [
    "Starting the machine", "Waiting for the installer", "The installer is done", "Waiting for SSH",
    "Running a long step", "Shutting the machine down", "Exporting",
]  # fmt: skip


EACH = [(step, number) for step in STEPS for number in (signal.SIGINT, signal.SIGKILL)]
SOME = [(step, number) for step in STEPS[1::3] for number in (signal.SIGTERM, signal.SIGHUP)]


@pytest.mark.parametrize(("step", "number"), EACH + SOME, ids=lambda value: getattr(value, "name", value))
def test_signals_leave_nothing_behind(
    distro: TestDistro, tmp_path: Path, ks: str, step: str, number: signal.Signals
) -> None:
    template = {
        "builders": [builder(distro, **direct(http_templates={"ks.cfg": ks}))],
        "provisioners": [{"type": "shell", "inline": ["echo Running a long step", "sleep 3"]}],
    }
    with imgbuild("build", written(tmp_path / "t.json", template), cwd=tmp_path) as running:
        running.until(step)
        os.kill(running.process.pid, number)
        outcome = running.finish(timeout=30)
    assert outcome.code == (-9 if number is signal.SIGKILL else 130)
    assert wait_until(lambda: processes_of(tmp_path) == []), processes_of(tmp_path)
    assert wait_until(lambda: leftovers(tmp_path) == []), leftovers(tmp_path)
    assert not (tmp_path / "output").exists() or (tmp_path / "output/manifest.json").exists()


def test_a_second_ctrl_c_ends_at_once(distro: TestDistro, tmp_path: Path, ks: str) -> None:
    template = {"builders": [builder(distro, **direct(http_templates={"ks.cfg": ks}))]}
    with imgbuild("build", written(tmp_path / "t.json", template), cwd=tmp_path) as running:
        running.until("Waiting for the installer")
        os.kill(running.process.pid, signal.SIGINT)
        os.kill(running.process.pid, signal.SIGINT)
        assert running.finish(timeout=5).code == 130
    assert wait_until(lambda: processes_of(tmp_path) == [])
    assert wait_until(lambda: leftovers(tmp_path) == [])
