"""A real Debian, from packages to a second golden image on top of it: what bin/quickstart and a first user do."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from tests.integration.harness import leftovers, processes_of, run, written

pytestmark = pytest.mark.e2e

TOP = Path(__file__).parent.parent.parent
SHARED_CACHE = {"IMGBUILD_CACHE_DIR": os.path.expanduser("~/.cache/imgbuild-tests/e2e")}  # noqa: PTH111


@pytest.fixture(scope="module")
def golden_debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image of bin/quickstart."""
    cwd = tmp_path_factory.mktemp("debian")
    outcome = run("build", str(TOP / "builds/quickstart.json"), cwd=cwd, timeout=900, env=SHARED_CACHE)
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
