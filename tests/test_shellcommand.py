"""`imgbuild shell`: which layer is opened, what is said when there is none, and that nothing of it stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imagebuilder import shellcommand
from imagebuilder.errors import ImgbuildError, TemplateError
from imagebuilder.inputs import option
from imagebuilder.layers.chain import BASE, EXPORT, SHUTDOWN, Step, chain
from imagebuilder.layers.record import Layer, Record
from imagebuilder.layers.store import Store
from imagebuilder.templates import template
from tests import testdistro
from tests.integration import harness


def planned(**changed: Any) -> tuple[Step, ...]:
    """A build of two scripts; `changed` is of the second one."""
    second = replace(Step("shell", "shell: b.sh", (option("inline", "b"),)), **changed)
    first = Step("shell", "shell: a.sh", (option("inline", "a"),))
    return chain([_own(BASE), first, second, _own(SHUTDOWN), _own(EXPORT)], "qemu qemu")


def _own(name: str) -> Step:
    return Step(name, name, ())


def kept(store: Store, found: tuple[Step, ...], *numbers: int, memory: bool = True) -> None:
    """Layers of some steps, each on the one before; that of the export stands alone."""
    below: Layer | None = None
    for step in (found[number] for number in numbers):
        parent = below if step.name != EXPORT else None
        record = Record(
            fingerprint=step.fingerprint, step=step.number, parent=parent.record.fingerprint if parent else "",
            parent_id=parent.record.id if parent else "",
        )  # fmt: skip
        with store.making(record) as making:
            (making.path / "disk0.qcow2").write_bytes(b"disk")
            if memory:
                (making.path / "memory.zst").write_bytes(b"memory")
            below = making.keep()


@pytest.mark.parametrize(
    ("layers", "at", "opened"),
    [
        ((0, 1, 2, 3, 4), "", 2), ((0, 1), "", 1), ((0,), "", 0), ((4,), "0", None), ((0, 1, 2), "1", 1),
        ((0, 1, 2), "a.sh", 1), ((0, 1, 2, 3), "shutdown", 3), ((0, 1), "2", None), ((), "", None), ((4,), "", None),
    ],
)  # fmt: skip
def test_the_deepest_layer_of_a_running_guest_is_opened_unless_one_is_named(
    layers: tuple[int, ...], at: str, opened: int | None
) -> None:
    found, store = planned(), Store()
    kept(store, found, *layers)
    if opened is not None:
        assert shellcommand.choose(found, at, store, "t.json") == found[opened]
    else:
        with pytest.raises(ImgbuildError, match="there is no layer of step"):
            shellcommand.choose(found, at, store, "t.json")


def test_a_layer_without_memory_is_opened_too() -> None:
    kept(Store(), planned(), 0, 1, memory=False)
    assert shellcommand.choose(planned(), "", Store(), "t.json").number == 1


def test_a_step_that_was_changed_since_has_no_layer() -> None:
    kept(Store(), planned(), 0, 1, 2)
    now = planned(inputs=(option("inline", "other"),))
    assert shellcommand.choose(now, "", Store(), "t.json").number == 1
    with pytest.raises(ImgbuildError, match=r"no layer of step 2 \(shell: b.sh\) as the template is now") as caught:
        shellcommand.choose(now, "2", Store(), "my t.json")
    assert caught.value.hint == "run `imgbuild build -until=2 'my t.json'`"


@pytest.mark.parametrize(
    ("at", "changed", "said"),
    [
        ("export", {}, "is an image, no machine"),
        ("2", {"cache": False}, r"no layer is kept of step 2 \(shell: b.sh\): cache is false"),
        ("2", {"inputs": None}, "give it a cache_key"),
        ("nothing", {}, "there is no step 'nothing'"),
        ("shell", {}, "'shell' is more than one step"),
    ],
)
def test_why_a_step_can_not_be_opened(at: str, changed: dict[str, Any], said: str) -> None:
    found = planned(**changed)
    kept(Store(), found, 0, 1)
    with pytest.raises(ImgbuildError, match=said):
        shellcommand.choose(found, at, Store(), "t.json")


def written(directory: Path, *builders: dict[str, Any]) -> str:
    """A template of builds on an image, which need no look at this machine's accelerators."""
    (directory / "image").write_bytes(b"image")
    usual = {
        "type": "qemu", "disk_image": True, "iso_url": str(directory / "image"), "iso_checksum": "none",
        "ssh_username": "root", "accelerator": "tcg",
    }  # fmt: skip
    path = directory / "t.json"
    path.write_text(json.dumps({"builders": [{**usual, **builder} for builder in builders]}))
    return str(path)


def test_one_of_several_builds_must_be_chosen(tmp_path: Path) -> None:
    path = template.load_template(written(tmp_path, {"name": "one"}, {"name": "two"}))
    with pytest.raises(TemplateError, match=r"choose it with -only \(there are one, two\)"):
        shellcommand.only_build(template.plan_builds(path, environ={}).builds)
    (plan,) = template.plan_builds(path, only=["two"], environ={}).builds
    assert shellcommand.only_build([plan]) is plan


def test_a_guest_that_nobody_can_reach_opens_no_shell(tmp_path: Path) -> None:
    done = imgbuild("shell", written(tmp_path, {"communicator": "none"}), cwd=tmp_path)
    assert done.returncode == 1 and "communicator 'none'" in done.stderr


IMGBUILD = [sys.executable, "-c", "from imagebuilder.cli import main; main()"]


def imgbuild(*words: str, cwd: Path, stdin: str = "", cache: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **({"IMGBUILD_CACHE_DIR": str(cache)} if cache else {})}
    return subprocess.run(
        [*IMGBUILD, *words], capture_output=True, text=True, input=stdin, timeout=300, cwd=cwd, env=environment
    )


def test_without_a_layer_the_way_to_one_is_said_and_nothing_is_made(tmp_path: Path) -> None:
    program = tmp_path / "bin/qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho QEMU emulator version 7.2.0\n")
    program.chmod(0o755)
    words = ["shell", written(tmp_path, {"name": "one", "qemu_binary": str(program)})]
    before = sorted(tmp_path.rglob("*"))
    done = imgbuild(*words, cwd=tmp_path, stdin="id\n")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-2:] == [
        "Error: there is no layer of step base as the template is now",
        f"hint: run `imgbuild build -until=base {tmp_path / 't.json'}`",
    ]
    assert sorted(tmp_path.rglob("*")) == before and not Store().directory.exists()


@pytest.mark.qemu
def test_a_shell_in_a_real_guest_leaves_nothing_behind(tmp_path: Path) -> None:
    """An installed test distribution, with a step that is kept as it runs."""
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    step = {"type": "shell", "inline": ["echo $$ > /run/made; echo made > /root/made"]}
    content = {"builders": [harness.installation(testdistro.testdistro(), key)], "provisioners": [step]}
    project = harness.Project(tmp_path, content)
    project.build("-until=1")
    store, path = project.store(), project.written()
    before = state(store)
    cache = tmp_path / "cache"

    script = "cat /root/made; test -s /run/made && echo runs; date +%s; echo changed > /root/made; sync; exit 7\n"
    done = imgbuild("shell", path, cwd=tmp_path, stdin=script, cache=cache)
    assert done.returncode == 7, done.stderr
    made, runs, clock = done.stdout.splitlines()
    assert (made, runs) == ("made", "runs")  # what lay in memory alone is there: it wasn't booted
    assert abs(int(clock) - time.time()) < 60
    assert "Going on from step 1" in done.stderr and "vnc://" in done.stderr and "thrown away" in done.stderr

    again = imgbuild("shell", "-at=base", path, cwd=tmp_path, stdin="ls /root/made; echo there\n", cache=cache)
    assert (again.returncode, again.stdout) == (0, "there\n")
    assert imgbuild("shell", path, cwd=tmp_path, stdin="cat /root/made\n", cache=cache).stdout == "made\n"

    assert state(store) == before and harness.unsound(store) == []
    assert not (tmp_path / "output").exists() and not (tmp_path / "output.failed").exists()
    assert harness.leftovers(tmp_path) == harness.processes_of(tmp_path) == []


def state(store: Store) -> dict[str, str]:
    """Every file of the layers, with what it holds."""
    paths = sorted(path for path in store.directory.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path): harness.hashed(path) for path in paths}
