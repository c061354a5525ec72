"""The Debian installer's own kernel and initrd, with our arguments, fetch our preseed and run what it says.

It is the netboot flavour of the package debian-installer-12-netboot-amd64. The installation itself needs parts from a
mirror that fits that kernel to the day, so the test ends when the preseed is loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from imagebuilder.autoinstall import kickstart
from imagebuilder.autoinstall.distro import load_distro
from imagebuilder.media.httpserver import HttpServer
from imagebuilder.qemu.arguments import MachineConfig
from imagebuilder.qemu.machine import Machine
from imagebuilder.templates.interpolate import Engine
from imagebuilder.ui import Event, Ui

pytestmark = pytest.mark.qemu

INSTALLER = Path("/usr/lib/debian-installer/images/12/amd64/text/debian-installer/amd64")
GUEST_VIEW = "10.0.2.2"  # this machine, as QEMU's user network shows it

# What the shell makes of it shows that quotes and backslashes came through the template, HTTP and debconf.
EARLY = r"""wget -O /dev/null "URL/early/$(printf 'one\ntwo' | tr '\n' -)/$(debconf-get passwd/username)" """


@pytest.mark.skipif(not INSTALLER.is_dir(), reason="the package debian-installer-12-netboot-amd64 is not installed")
def test_the_installer_takes_our_preseed(tmp_path: Path) -> None:
    distro, variables = load_distro("debian-12"), dict[str, object]()
    answer = distro.autoinstall.template
    paths = ("/preseed.cfg", "/early/one-two/operator")
    served: dict[str, Callable[[], str]] = {
        paths[0]: lambda: kickstart.render(answer, variables),
        paths[1]: lambda: "",
    }
    with HttpServer(templates=served) as server:
        port = server.address[1]
        url = f"http://{GUEST_VIEW}:{port}"
        variables |= {
            "distro": distro, "name": "golden.qcow2", "hostname": "golden", "disk": "vda", "efi": False,
            "http_ip": GUEST_VIEW, "http_port": port, "http_url": url, "ssh_username": "operator", "ssh_password": "",
            "ssh_public_key": "ssh-ed25519 AAAA somebody", "early_command": EARLY.replace("URL", url).strip(),
        }  # fmt: skip
        config = MachineConfig(
            "debian-installer", memory_mib=distro.memory, kernel=INSTALLER / "linux",
            initrd=(INSTALLER / "initrd.gz",),
            kernel_args=Engine({}).render(distro.kernel_args, dot={"HTTPIP": GUEST_VIEW, "HTTPPort": port}),
        )  # fmt: skip
        with Machine(config, tmp_path / "machine", Ui("debian", _unseen)) as machine:
            for path in paths:
                machine.wait(lambda path=path: server.wait_for(path, 1), 240, f"the installer to fetch {path}")  # type: ignore[misc]
        asked = [(access.status, access.path) for access in server.accesses if access.method == "GET"]
    assert asked == [(200, path) for path in paths]


def _unseen(event: Event) -> None:
    """Nobody looks."""
