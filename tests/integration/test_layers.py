"""Real builds that go on from layers: what is restored, what runs again and why, and that the image is the same."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.integration.harness import Project, Small, hashed, imgbuild, installation, leftovers, processes_of, unsound
from tests.testdistro import TestDistro

pytestmark = pytest.mark.qemu

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
    assert nothing.seconds < 5

    here.builder.update(
        http_port_min=18000, http_port_max=18999, vm_name="other.qcow2", output_directory="elsewhere", headless=True
    )
    for name in SCRIPTS:
        os.utime(here.directory / name, (1, 1))
    here.name = "renamed.json"
    unlike = here.build()
    assert (unlike.ran, unlike.machines) == ([], 0)
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
