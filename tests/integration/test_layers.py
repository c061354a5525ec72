"""Real builds that go on from layers: what is restored, what runs again and why, and that the image is the same."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.harness import (
    Project,
    Small,
    hashed,
    imgbuild,
    installation,
    leftovers,
    mounted,
    processes_of,
    unlike,
    unsound,
)
from tests.testdistro import TestDistro, kickstart

pytestmark = pytest.mark.qemu

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts images")

SCRIPTS = ["1.sh", "2.sh", "3.sh"]


def project(directory: Path, builder: dict[str, object]) -> Project:
    """Three scripts; what they do is seen in the image."""
    directory.mkdir(parents=True)
    made = Project(
        directory, {"builders": [builder], "provisioners": [{"type": "shell", "script": name} for name in SCRIPTS]}
    )
    made.write("1.sh", "echo one > /etc/one", "cat /proc/sys/kernel/random/boot_id > /run/boot", *BACKGROUND)
    made.write("2.sh", "cat /etc/one", "echo two > /etc/two")
    made.write("3.sh", "cat /etc/two", "echo three > /etc/three")
    return made


BACKGROUND = ["sleep 100000 < /dev/null > /dev/null 2>&1 &", "echo $! > /run/background", "echo shared > /run/kept"]


@pytest.fixture(scope="module")
def made(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that was built once, layers from nothing; for copies."""
    first = project(
        tmp_path_factory.mktemp("made") / "project", small.builder(http_content={"/hello": "hello from here"})
    )
    outcome = first.build()
    assert outcome.ran == SCRIPTS
    assert outcome.machines == 1
    assert sorted(layer.record.step for layer in first.store().layers()) == [0, 1, 2, 3, 4, 5]
    assert unsound(first.store()) == []
    return first


@pytest.fixture
def again(made: Project, tmp_path: Path) -> Project:
    """A copy of the built project, with its layers."""
    return made.copy(tmp_path / "project")


def test_an_installation_is_restored_until_something_changes(distro: TestDistro, small: Small, tmp_path: Path) -> None:
    here = project(tmp_path / "project", installation(distro, small.key))
    first = here.build()
    assert (first.ran, first.machines) == (SCRIPTS, 2)
    before = hashed(here.image)

    nothing = here.build()
    assert (nothing.ran, nothing.machines, hashed(here.image)) == ([], 0, before)

    here.builder.update(
        http_port_min=18000, http_port_max=18999, vm_name="other.qcow2", output_directory="elsewhere", headless=True
    )
    for name in SCRIPTS:
        os.utime(here.directory / name, (1, 1))
    here.name = "renamed.json"
    other = here.build()
    assert (other.ran, other.machines) == ([], 0)
    assert hashed(here.directory / "elsewhere/other.qcow2") == before

    here.name = "t.json"
    here.write("3.sh", "cat /etc/two", "echo 3 > /etc/three")
    assert [(one["restored"], one["why"]) for one in here.plan()[:4]] == [
        (True, ""), (True, ""), (True, ""), (False, "3.sh changed"),
    ]  # fmt: skip
    last = here.build()
    assert "Going on from step 2" in last.text
    assert (last.ran, last.machines) == (["3.sh"], 1)
    assert hashed(here.directory / "elsewhere/other.qcow2") != before
    assert leftovers(tmp_path) == processes_of(tmp_path) == unsound(here.store()) == []


def test_a_mended_script_and_what_follows_run_again(again: Project) -> None:
    good = (again.directory / "2.sh").read_text()
    again.write("2.sh", "echo half > /etc/half", "false")
    failed = again.build(good=False)
    assert failed.ran == ["2.sh"]
    assert "The state before it is kept" in failed.text

    (again.directory / "2.sh").write_text(good + "test ! -e /etc/half\n")
    mended = again.build()
    assert "Going on from step 1" in mended.text
    assert mended.ran == ["2.sh", "3.sh"]
    assert unsound(again.store()) == []


def test_a_restored_guest_goes_on_as_if_nothing_had_been(again: Project) -> None:
    again.write(
        "3.sh", "cmp /proc/sys/kernel/random/boot_id /run/boot", "cat /run/kept",
        "grep sleep /proc/$(cat /run/background)/cmdline", "wget -q -O - http://$PACKER_HTTP_ADDR/hello; echo",
        "echo clock $(date +%s)",
    )  # fmt: skip
    time.sleep(max(0.0, 10 - (time.time() - again.layer(2).record.created)))  # a clock that stood still would be seen
    with imgbuild("build", "-until=3", again.written(), cwd=again.directory, env=again.env) as running:
        running.until("clock ")
        now, told = time.time(), int(running.events[-1]["text"].removeprefix("clock "))
        outcome = running.finish()
    assert outcome.code == 0, outcome.text
    assert outcome.ran == ["3.sh"]
    assert abs(now - told) < 3
    assert {"shared", "hello from here"} <= set(outcome.texts("message"))


def test_restores_of_one_layer_draw_different_random_numbers(again: Project) -> None:
    """The test distribution's kernel has no vmgenid driver, and nothing but busybox."""
    again.write("3.sh", "echo drew $(head -c 16 /dev/urandom | xxd -p)")
    drawn = [
        text
        for _ in range(2)
        for text in again.build("-from=3", "-until=3").texts("message")
        if text.startswith("drew ")
    ]
    assert len(set(drawn)) == 2, drawn


def test_what_was_changed_while_the_build_ran_is_not_kept(again: Project) -> None:
    old = (again.directory / "2.sh").read_text()
    again.write("1.sh", "echo begun", "sleep 4", "echo one > /etc/one")
    with imgbuild("build", "-force", again.written(), cwd=again.directory, env=again.env) as running:
        running.until("begun")
        again.write("2.sh", "echo other > /etc/two")
        running.until("Running script '3.sh'")
        (again.directory / "2.sh").write_text(old)
        outcome = running.finish()
    assert outcome.code == 0 and "Step 2 (shell: 2.sh) is not kept, nor what follows" in outcome.text
    assert again.build().ran == ["2.sh", "3.sh"]


@needs_root
def test_the_image_is_the_same_without_layers(made: Project, tmp_path: Path) -> None:
    here = made.copy(tmp_path / "project")
    cache = here.directory / "cache/layers"
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*")}
    off = here.build("-no-cache")
    assert (off.ran, off.machines) == (SCRIPTS, 1)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*")} == before
    assert unlike(here.image, made.image) == set()  # its boot writes nothing of its own, not even a log
    again = made.copy(tmp_path / "again")
    assert again.build("-from=3").ran == ["3.sh"]
    assert unlike(again.image, here.image) == set()


def test_from_and_until_and_age(again: Project) -> None:
    end = again.build("-from=2", "-until=2")
    assert end.ran == ["2.sh"]
    assert end.texts("artifact") == []
    assert unsound(again.store()) == []
    assert again.build("-until=1").ran == []
    assert again.build("-cache-max-age=1h", "-until=3").ran == ["3.sh"]  # it stood on the step 2 before
    assert again.plan("-cache-max-age=1s")[0]["why"].startswith("its layer stems from")
    base = again.layer(0).record.id
    aged = again.build("-cache-max-age=1s", "-until=0")
    assert (aged.ran, aged.machines) == ([], 1)
    assert again.layer(0).record.id != base
    assert unsound(again.store()) == []


def test_a_build_goes_on_from_where_until_ended_one(small: Small, tmp_path: Path) -> None:
    here = project(tmp_path / "project", small.builder())
    part = here.build("-until=1")
    assert part.ran == ["1.sh"]
    assert not (here.directory / "output").exists()
    assert [layer.record.step for layer in here.store().layers() if layer.has_memory] in ([0, 1], [1, 0])
    assert here.build().ran == ["2.sh", "3.sh"]
    assert here.image.exists()


def test_what_people_say_of_a_step(again: Project) -> None:
    provisioners = again.template["provisioners"]
    provisioners[1]["cache"] = False
    why = [one["why"] for one in again.plan()]
    assert why[:2] == ["", ""]
    assert why[2] == "cache is false"
    assert why[3] == "comes after 2 (shell: 2.sh), which is never kept"
    assert again.build("-until=3").ran == ["2.sh", "3.sh"]
    assert again.build("-until=3").ran == ["2.sh", "3.sh"]

    del provisioners[1]["cache"]
    provisioners[2]["cache_key"] = "monday"
    assert again.build("-until=3").ran == ["3.sh"]
    assert again.build("-until=3").ran == []
    provisioners[2]["cache_key"] = "tuesday"
    assert again.plan()[3]["why"] == "cache_key changed"

    again.builder["cache_key"] = "another base"
    assert not again.plan()[0]["restored"]
    again.builder["cache"] = False
    assert again.plan()[0]["why"] == "cache is false"


@needs_root
def test_builds_of_one_template_share_their_first_steps(small: Small, tmp_path: Path) -> None:
    here = project(tmp_path / "project", small.builder())
    here.template["builders"].append({**here.builder, "name": "other", "output_directory": "other"})
    here.template["provisioners"][2]["only"] = ["tiny"]
    here.template["provisioners"].append({"type": "shell", "inline": ["echo other > /etc/three"], "only": ["other"]})
    outcome = here.build()
    assert sorted(outcome.ran) == SCRIPTS
    assert "Another build makes step" in outcome.text
    assert outcome.machines == 2
    assert unsound(here.store()) == []
    assert unlike(here.image, here.directory / "other/disk.qcow2") == {"/etc/three"}


def flip(path: Path) -> None:
    """One byte in its middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


BREAK: dict[str, Callable[[Path], object]] = {
    "memory-flipped": lambda layer: flip(layer / "memory.zst"),
    "disk-flipped": lambda layer: flip(layer / "disk0.qcow2"),
    "memory-cut-off": lambda layer: os.truncate(layer / "memory.zst", 1000),
    "disk-gone": lambda layer: (layer / "disk0.qcow2").unlink(),
    "record-rubbish": lambda layer: (layer / "layer.json").write_text("{}"),
}


@pytest.mark.parametrize("harm", BREAK)
def test_a_broken_layer_is_made_again(again: Project, harm: str) -> None:
    again.write("3.sh", "cat /etc/one /etc/two")
    middle = again.layer(1)
    BREAK[harm](middle.path)
    outcome = again.build("-until=3")
    assert "Going on from step base" in outcome.text
    assert outcome.ran == SCRIPTS
    assert again.layer(1).record.id != middle.record.id
    assert {"one", "two"} <= set(outcome.texts("message"))
    assert unsound(again.store()) == []


@needs_root
def test_a_broken_image_is_made_again(again: Project, made: Project) -> None:
    flip(again.layer(5).path / "image0")
    flip(again.layer(4).path / "disk0.qcow2")
    outcome = again.build()
    assert (outcome.ran, outcome.machines) == ([], 1)  # from the last step's memory
    assert len([text for text in outcome.texts("warning") if "is broken" in text]) == 2
    assert unlike(again.image, made.image) == set()
    assert unsound(again.store()) == []


NVME = [["-blockdev", "null-co,node-name=empty"], ["-device", "nvme,drive=empty,serial=1"]]


def test_a_device_that_can_not_be_saved_leaves_the_disk(small: Small, tmp_path: Path) -> None:
    here = project(tmp_path / "project", small.builder(qemuargs=NVME))
    first = here.build("-until=3")
    assert (first.ran, first.machines) == (SCRIPTS, 1)
    assert [layer.has_memory for layer in here.store().layers()] == [False] * 4
    here.write("3.sh", "cat /etc/one /etc/two", "test ! -e /run/kept")  # it was booted
    second = here.build()
    assert "Going on from step 2" in second.text
    assert (second.ran, second.machines) == (["3.sh"], 1)
    assert {"one", "two"} <= set(second.texts("message"))
    assert unsound(here.store()) == []


@needs_root
def test_drives_of_the_persons_own_keep_layers_away(small: Small, tmp_path: Path) -> None:
    """A -drive row as many of Packer's templates have it: QEMU writes to our disk, under a name that isn't ours."""
    row = ["-drive", "file={{ .OutputDir }}/{{ .Name }},if=virtio,format=qcow2"]
    here = project(tmp_path / "project", small.builder(qemuargs=[row]))
    outcome = here.build()
    assert outcome.ran == SCRIPTS
    assert len([text for text in outcome.texts("warning") if "can't be kept as a layer" in text]) == 1
    assert [layer.record.name for layer in here.store().layers()] == ["export"]
    with mounted(here.image) as top:
        assert [(top / f"etc/{name}").read_text() for name in ("one", "two", "three")] == ["one\n", "two\n", "three\n"]


def test_an_unreachable_guest_leaves_its_image(distro: TestDistro, small: Small, tmp_path: Path) -> None:
    text = kickstart(hostname="alone", end="poweroff")
    builder = installation(distro, small.key, communicator="none", wait_for_reset=False, http_content={"/ks.cfg": text})
    del builder["ssh_private_key_file"]
    here = Project(tmp_path / "project", {"builders": [builder]})
    here.directory.mkdir()
    assert here.build().machines == 1
    before = hashed(here.image)
    assert [layer.record.name for layer in here.store().layers()] == ["export"]
    assert (here.build().machines, hashed(here.image)) == (0, before)


def test_uefi_variables_and_all_disks_travel(small: Small, tmp_path: Path) -> None:
    builder = small.builder(efi_boot=True, memory=384, disk_additional_size=["64M"], use_backing_file=True)
    here = project(tmp_path / "project", builder)
    here.write("1.sh", "echo one > /etc/one", "echo on the second disk > /dev/vdb", "sync")
    here.write("2.sh", "head -c 18 /dev/vdb; echo", "echo again, two > /dev/vdb", "echo two > /etc/two")
    first = here.build("-until=2")
    assert first.ran == ["1.sh", "2.sh"]
    for step in (0, 1, 2):
        assert {"disk0.qcow2", "disk1.qcow2", "efivars.fd"} <= here.layer(step).record.files.keys()
    variables = hashed(here.layer(2).path / "efivars.fd")

    here.write("3.sh", "cat /etc/one /etc/two", "head -c 10 /dev/vdb; echo", "test -d /sys/firmware/efi")
    second = here.build()
    assert (second.ran, second.machines) == (["3.sh"], 1)
    assert {"one", "two", "again, two"} <= set(second.texts("message"))
    assert here.layer(2).record.files["efivars.fd"].sha256 == variables
    output = here.image.parent
    assert sorted(path.name for path in output.iterdir()) == [
        "disk.qcow2", "disk.qcow2-1", "efivars.fd", "manifest.json",
    ]  # fmt: skip
    assert hashed(output / "efivars.fd") == hashed(here.layer(5).path / "efivars.fd")
    (backing,) = backing_files(here.image)
    assert backing == small.image.resolve()
    assert backing_files(output / "disk.qcow2-1") == []
    raw = tmp_path / "second.raw"
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(output / "disk.qcow2-1"), str(raw)], check=True)
    assert raw.read_bytes().startswith(b"again, two\n")
    before = {path.name: hashed(path) for path in output.iterdir() if path.name != "manifest.json"}
    assert here.build().machines == 0
    assert before == {path.name: hashed(path) for path in output.iterdir() if path.name != "manifest.json"}
    assert unsound(here.store()) == []


def backing_files(image: Path) -> list[Path]:
    """The images that one stands on, the nearest first."""
    chain = json.loads(subprocess.check_output(["qemu-img", "info", "--output=json", "--backing-chain", str(image)]))
    return [Path(one["filename"]).resolve() for one in chain[1:]]
