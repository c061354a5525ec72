"""A first disk from packages: what is refused early, and (e2e) a real Debian that both firmwares boot."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import paramiko
import pytest

from imagebuilder import cloudinit, process
from imagebuilder.bootstrap.disk import BootstrapSpec, check_host, make_disk
from imagebuilder.errors import ImgbuildError, TemplateError
from imagebuilder.media.iso import write_iso
from imagebuilder.qemu.ports import reserved
from imagebuilder.ui import Event, Ui

OVMF = Path("/usr/share/ovmf/OVMF.fd")
PACKAGES = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "imgbuild-tests"
SPEC = BootstrapSpec(disk_size=3 * 2**30)


def silent() -> Ui:
    return Ui("test", lambda event: None)


def within(seconds: float, what: str, true: Callable[[], object]) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.1)


def test_a_wrong_description_is_refused_whole(tmp_path: Path) -> None:
    spec = replace(SPEC, distribution="centos", hostname="a b")
    with pytest.raises(TemplateError) as caught:
        make_disk(spec, tmp_path / "disk.raw", silent(), work=tmp_path)
    assert len(caught.value.problems) == 2 and list(tmp_path.iterdir()) == []


def test_a_missing_program_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImgbuildError, match="is not installed") as caught:
        check_host(SPEC)
    assert caught.value.hint and "apt-get install mmdebstrap" in caught.value.hint


def test_administrators_programs_are_found_without_sbin_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert Path(process.find("mke2fs", package="e2fsprogs")).is_file()


@pytest.fixture(scope="module")
def shared_packages() -> Iterator[None]:
    """Downloads of these tests are kept from one run to the next."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMGBUILD_CACHE_DIR", str(PACKAGES))
        yield


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory, shared_packages: None) -> Path:
    directory = tmp_path_factory.mktemp("disk")
    events: list[Event] = []
    made = make_disk(SPEC, directory / "disk.qcow2", Ui("test", events.append), work=directory)
    assert [path.name for path in directory.iterdir()] == ["disk.qcow2"]
    assert any(line.startswith("cloud-init ") for line in made.packages) and made.used > 100 * 2**20
    percents = [event.data["done"] for event in events if event.kind == "progress"]
    assert percents == sorted(percents)
    return directory / "disk.qcow2"


@contextlib.contextmanager
def booted(disk: Path, seed: Path, firmware: list[str], serial: Path) -> Iterator[int]:
    """Boot a copy-on-write overlay; the host port of the guest's SSH."""
    overlay = serial.with_suffix(".qcow2")
    process.run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", disk, overlay, "5G"])
    with reserved() as port:
        argv = [
            "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-machine", "q35", "-cpu", "max", "-smp", "2",
            "-m", "1024", "-display", "none", *firmware, "-serial", f"file:{serial}",
            "-drive", f"file={overlay},if=virtio,format=qcow2",
            "-drive", f"file={seed},if=virtio,format=raw,readonly=on",
            "-device", "virtio-rng-pci", "-nic", f"user,model=virtio,hostfwd=tcp:127.0.0.1:{port}-:22",
        ]  # fmt: skip
    with process.start(argv):
        yield port


def connected(port: int, key: paramiko.PKey, user: str) -> paramiko.SSHClient:
    """SSH as soon as it answers; a guest under emulation may take minutes on a busy machine."""
    end = time.monotonic() + 400
    while True:
        client = paramiko.SSHClient()
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        try:
            client.connect("127.0.0.1", port, user, pkey=key, timeout=60, banner_timeout=60, auth_timeout=60,
                           allow_agent=False, look_for_keys=False)  # fmt: skip
            return client
        except (OSError, paramiko.SSHException, EOFError):
            client.close()
            assert time.monotonic() < end, "SSH did not answer"
            time.sleep(0.5)


def said(client: paramiko.SSHClient, command: str) -> str:
    _, stdout, stderr = client.exec_command(command, timeout=200)
    out = stdout.read().decode()
    assert stdout.channel.recv_exit_status() == 0, f"{command}: {out}{stderr.read().decode()}"
    return out.strip()


@pytest.mark.e2e
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("firmware", [[], ["-bios", str(OVMF)]], ids=["bios", "uefi"])
def test_boots_grows_and_lets_in_who_is_seeded(disk: Path, tmp_path: Path, firmware: list[str]) -> None:
    key = paramiko.ECDSAKey.generate()
    seed = cloudinit.seed_files(ssh_keys=[f"{key.get_name()} {key.get_base64()}"], user="ann", hostname="node7")
    write_iso(tmp_path / "seed.iso", cloudinit.LABEL, seed)
    serial = tmp_path / "serial.log"
    with booted(disk, tmp_path / "seed.iso", firmware, serial) as port:
        client = connected(port, key, "ann")
        with contextlib.closing(client):
            within(300, "login on the serial line", lambda: b"login:" in serial.read_bytes())
            assert said(client, "hostname") == "node7"
            assert said(client, "test -d /sys/firmware/efi && echo uefi || echo bios") == (
                "uefi" if firmware else "bios"
            )
            assert int(said(client, "df --output=size -B1 / | tail -1")) > 4.5 * 2**30, "the root file system grew"
            assert said(client, "sudo cloud-init status --wait >&2; systemctl --failed --no-legend") == ""
            assert said(client, "cat /etc/apt/sources.list.d/*.sources | grep -c '^Types:'") != "0"
            said(client, "sudo update-grub && sudo grub-install /dev/vda")
            assert len(said(client, "cat /etc/machine-id")) == 32


@pytest.mark.e2e
@pytest.mark.timeout(1500)
def test_boots_without_cloud_init(tmp_path: Path, shared_packages: None) -> None:
    key = paramiko.ECDSAKey.generate()
    bare = replace(SPEC, cloud_init=False, ssh_authorized_keys=(f"{key.get_name()} {key.get_base64()}",))
    make_disk(bare, tmp_path / "disk.qcow2", silent(), work=tmp_path)
    write_iso(tmp_path / "empty.iso", "EMPTY", {"a": b""})
    serial = tmp_path / "serial.log"
    with booted(tmp_path / "disk.qcow2", tmp_path / "empty.iso", [], serial) as port:
        client = connected(port, key, "root")
        with contextlib.closing(client):
            said(client, "while systemctl is-system-running | grep -q starting; do sleep 1; done")
            assert said(client, "systemctl --failed --no-legend") == ""
            assert int(said(client, "df --output=size -B1 / | tail -1")) > 4.5 * 2**30, "the root file system grew"


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_nothing_of_one_machine_is_in_the_image(disk: Path, tmp_path: Path) -> None:
    raw = tmp_path / "disk.raw"
    process.run(["qemu-img", "convert", "-O", "raw", disk, raw], timeout=300)
    table = process.run(["sfdisk", "--dump", raw]).stdout.splitlines()[-1]
    offset = int(table.split("start=")[1].split(",")[0]) * 512

    def debugfs(request: str) -> str:
        return process.run(["debugfs", "-R", request, f"{raw}?offset={offset}"], check=False, timeout=60).stdout

    def names(directory: str) -> list[str]:
        rows = (line.split("/") for line in debugfs(f"ls -p {directory}").splitlines() if line.startswith("/"))
        return sorted({row[5] for row in rows} - {".", "..", "lost+found"})

    blocks = next(line for line in debugfs("show_super_stats -h").splitlines() if line.startswith("Block count:"))
    assert int(blocks.split()[-1]) * 4096 > SPEC.disk_size - 100 * 2**20, "the file system fills its partition"
    assert "Size: 0" in debugfs("stat /etc/machine-id")
    assert not [name for name in names("/etc/ssh") if name.startswith("ssh_host_")]
    assert names("/var/lib/apt/lists") in ([], ["auxfiles"])
    assert names("/etc/apt/sources.list.d") == ["debian.sources"]
    assert {"configure.sh", "secrets"}.isdisjoint(names("/"))
    assert names("/dev") == names("/run") == names("/tmp") == []
    assert not [name for name in names("/etc/apt/apt.conf.d") + names("/etc/dpkg/dpkg.cfg.d") if "mmdebstrap" in name]
    assert not [name for name in names("/var/cache/apt/archives") if name.endswith(".deb")]


MAKE = """\
import sys
from pathlib import Path
from imagebuilder.bootstrap.disk import BootstrapSpec, make_disk
from imagebuilder.ui import Ui
make_disk(BootstrapSpec(disk_size=3 * 2**30), Path(sys.argv[1]), Ui("", lambda event: print(event.text, flush=True)),
          work=Path(sys.argv[2]))
"""


@pytest.mark.e2e
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "moment", ["Fetching package lists", "Downloading and installing packages"], ids=["lists", "unpack"]
)
def test_kill_leaves_nothing(tmp_path: Path, shared_packages: None, moment: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    log = tmp_path / "log"
    argv = [sys.executable, "-c", MAKE, str(tmp_path / "disk.raw"), str(work)]
    with log.open("wb") as out, subprocess.Popen(argv, stdout=out, stderr=out) as child:
        within(200, moment, lambda: moment.encode() in log.read_bytes())
        time.sleep(1)
        assert working_in(work)
        child.send_signal(signal.SIGKILL)
    within(10, "processes gone", lambda: not working_in(work))
    within(10, "files gone", lambda: not list(work.iterdir()))
    assert not (tmp_path / "disk.raw").exists()


def working_in(directory: Path) -> list[str]:
    """Processes whose working directory lies there."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        with contextlib.suppress(OSError):
            if str(link.readlink()).startswith(str(directory)):
                found.append(link.parent.name)
    return found
