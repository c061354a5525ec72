"""A real Debian, from packages to a second golden image on top of it: what bin/quickstart and a first user do."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import pytest

from tests.integration.harness import Project, leftovers, processes_of, run, unlike, unsound, written

pytestmark = pytest.mark.e2e

TOP = Path(__file__).parent.parent.parent
SHARED_CACHE = {"IMGBUILD_CACHE_DIR": os.path.expanduser("~/.cache/imgbuild-tests/e2e")}  # noqa: PTH111


@pytest.fixture(scope="module")
def golden_debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image of bin/quickstart."""
    cwd = tmp_path_factory.mktemp("debian")
    # Without layers: else the next session would find it made.
    arguments = ("build", "-no-cache", str(TOP / "builds/quickstart.json"))
    outcome = run(*arguments, cwd=cwd, timeout=900, env=SHARED_CACHE)
    assert outcome.code == 0, outcome.text
    assert leftovers(cwd) == []
    return cwd / "output-quickstart"


def test_it_boots_and_lets_a_seeded_key_in(golden_debian: Path, tmp_path: Path) -> None:
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in golden_debian.iterdir()}
    outcome = run("boot", "--check", str(golden_debian), cwd=tmp_path, timeout=400)
    assert outcome.code == 0, outcome.text
    assert "Debian GNU/Linux 12" in outcome.text
    assert before == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in golden_debian.iterdir()}


def test_a_second_build_on_top_of_it(golden_debian: Path, tmp_path: Path) -> None:
    image = next(golden_debian.glob("*.qcow2"))
    template = {
        "builders": [
            {
                "type": "qemu", "disk_image": True, "iso_url": str(image), "iso_checksum": "none", "cloud_init": True,
                "ssh_username": "admin", "cpus": 2, "memory": 1024, "disk_size": "6G", "output_directory": "second",
                "shutdown_command": "sudo systemctl poweroff",
            }
        ],
        "provisioners": [
            {
                "type": "shell", "execute_command": "{{.Vars}} sudo -E sh -eux '{{.Path}}'",
                "environment_vars": ["DEBIAN_FRONTEND=noninteractive"],
                "inline": [
                    "test ! -e /etc/ssh/ssh_host_rsa_key",
                    "apt-get update -q", "apt-get install -y -q --no-install-recommends nginx-light",
                    "test $(df --output=size -m / | tail -1) -gt 5000", "cat /etc/machine-id",
                ],
            },
            {"type": "reboot"},
            {"type": "shell", "inline": ["systemctl is-active nginx", "cat /etc/machine-id"]},
        ],
        "post-processors": [[{"type": "compress", "output": "second.tar.zst"}], ["checksum"]],
    }  # fmt: skip
    outcome = run("build", written(tmp_path / "t.json", template), cwd=tmp_path, timeout=900)
    assert outcome.code == 0, outcome.text
    assert "active" in outcome.texts("message")
    manifest = json.loads((tmp_path / "second/manifest.json").read_text())
    assert manifest["files"][0]["virtual_size"] == 6 * 2**30
    assert (tmp_path / "second.tar.zst").stat().st_size > 10**8
    assert leftovers(tmp_path) == []
    assert processes_of(tmp_path) == []


SUDO = {"type": "shell", "execute_command": "{{.Vars}} sudo -E sh -eux '{{.Path}}'"}
ACCOUNT = ["adduser --disabled-password --gecos '' app", "mkdir -p /srv/app", "chown app /srv/app"]
BOOT_WRITES = re.compile(
    r"/etc/(machine-id|ssh/ssh_host_\w+_key(\.pub)?)"  # made at the first boot, different at each
    r"|/var/lib/cloud/(data|instances?|sem)(/.*)?"  # cloud-init's times and names of boots; it ends beside us
    r"|/var/lib/systemd/random-seed"
    r"|/var/log/(cloud-init(-output)?\.log|wtmp|journal/.*)"  # times, process numbers
)
"""What a boot of Debian writes by itself, different at each."""

FILES = ["echo secret > /srv/app/config", "chmod 640 /srv/app/config", "ln -s config /srv/app/link"]


@pytest.fixture(scope="module")
def on_debian(golden_debian: Path, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Built once, layers from nothing."""
    builder = {
        "type": "qemu", "disk_image": True, "iso_url": str(next(golden_debian.glob("*.qcow2"))), "cpus": 2,
        "iso_checksum": "none", "cloud_init": True, "ssh_username": "admin", "memory": 1024, "disk_size": "6G",
        "output_directory": "output", "vm_name": "disk.qcow2", "shutdown_command": "sudo systemctl poweroff",
    }  # fmt: skip
    provisioners = [{**SUDO, "inline": ACCOUNT}, {**SUDO, "inline": FILES}]
    made = Project(tmp_path_factory.mktemp("on-debian"), {"builders": [builder], "provisioners": provisioners})
    made.build()
    return made


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts images")
def test_the_image_is_the_same_without_layers(on_debian: Project, tmp_path: Path) -> None:
    restored, without = (on_debian.copy(tmp_path / name) for name in ("restored", "without"))
    last = restored.build("-from=2")
    assert "Going on from step 1" in last.text
    assert len([text for text in last.texts("say") if text.startswith("Running ")]) == 1
    assert unsound(restored.store()) == []
    without.build("-no-cache")
    for other in (restored, without):
        assert [name for name in sorted(unlike(on_debian.image, other.image)) if not BOOT_WRITES.fullmatch(name)] == []


def test_two_restores_of_one_layer_draw_different_random_numbers(on_debian: Project) -> None:
    step = {"type": "shell", "inline": ["echo drew $(head -c 16 /dev/urandom | od -An -tx1)"]}
    template = {**on_debian.template, "provisioners": [*on_debian.template["provisioners"][:1], step]}
    here = Project(on_debian.directory, template, "random.json")
    outcomes = [here.build("-from=2", "-until=2") for _ in range(2)]
    first, second = ([text for text in one.texts("message") if text.startswith("drew ")] for one in outcomes)
    assert first and second and first != second
