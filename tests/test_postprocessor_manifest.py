"""Packer's manifest file: its form to the byte, what is added to it, and builds that write it at once."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.errors import StoreError
from imagebuilder.plugins import Artifact
from imagebuilder.postprocessors.manifest import Manifest, ManifestOptions
from tests.images import MIB, built, context, names, needs_qemu_img, quiet


def artifact(directory: Path) -> Artifact:
    directory.mkdir(exist_ok=True)
    (directory / "packer-qemu").write_text("12345")
    return Artifact("transcend.qemu", "VM", "x", (directory / "packer-qemu",), directory=directory)


def manifest(path: Path, run: str = "11111111-2222", force: bool = False, **keys: Any) -> Manifest:
    from dataclasses import replace

    return Manifest(
        ManifestOptions.model_validate({"output": str(path), **keys}), replace(context(force=force), run_uuid=run)
    )


def test_the_form_is_packers(tmp_path: Path, golden: Callable[[str, str], None]) -> None:
    step = manifest(tmp_path / "m.json", strip_path=True, strip_time=True, custom_data={"owner": "me"})
    step.process(artifact(tmp_path / "out"), quiet())
    golden("packer-manifest.json", (tmp_path / "m.json").read_text())


def test_time_and_path_are_written_unless_stripped(tmp_path: Path) -> None:
    manifest(tmp_path / "m.json").process(artifact(tmp_path / "out"), quiet())
    (build,) = json.loads((tmp_path / "m.json").read_text())["builds"]
    assert list(build) == [
        "name", "builder_type", "build_time", "files", "artifact_id", "packer_run_uuid", "custom_data",
    ]  # fmt: skip
    assert build["files"][0]["name"] == str(tmp_path / "out" / "packer-qemu")
    assert build["files"][0]["sha256"] == hashlib.sha256(b"12345").hexdigest()
    assert build["custom_data"] is None


@needs_qemu_img
def test_disks_say_more_of_themselves(tmp_path: Path) -> None:
    manifest(tmp_path / "m.json").process(built(tmp_path / "out"), quiet())
    (file,) = json.loads((tmp_path / "m.json").read_text())["builds"][0]["files"]
    assert (file["format"], file["virtual_size"]) == ("qcow2", 8 * MIB)
    assert file["sha256"] == hashlib.sha256((tmp_path / "out" / "disk.qcow2").read_bytes()).hexdigest()


def test_builds_are_added_to_the_file(tmp_path: Path) -> None:
    made = artifact(tmp_path / "out")
    manifest(tmp_path / "m.json", run="a").process(made, quiet())
    done = manifest(tmp_path / "m.json", run="b").process(made, quiet())
    content = json.loads((tmp_path / "m.json").read_text())
    assert [build["packer_run_uuid"] for build in content["builds"]] == ["a", "b"]
    assert content["last_run_uuid"] == "b"
    assert (done.artifact, done.keep_input) == (made, True)


def test_force_begins_anew_but_not_within_a_run(tmp_path: Path) -> None:
    made = artifact(tmp_path / "out")
    for run in ("a", "b", "b"):
        manifest(tmp_path / "m.json", run=run, force=True).process(made, quiet())
    content = json.loads((tmp_path / "m.json").read_text())
    assert [build["packer_run_uuid"] for build in content["builds"]] == ["b", "b"]


@pytest.mark.parametrize("text", ["", "[]", '{"builds": 1}', "{"], ids=["empty", "list", "number", "cut"])
def test_a_file_of_another_form_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(StoreError, match="nothing can be added"):
        manifest(tmp_path / "m.json").process(artifact(tmp_path / "out"), quiet())
    assert (tmp_path / "m.json").read_text() == text


ADD = """
import sys
from pathlib import Path
from tests.images import quiet
from tests.test_postprocessor_manifest import artifact, manifest
folder = Path(sys.argv[1])
made = artifact(folder / sys.argv[2])
for n in range(10):
    manifest(folder / "m.json", run=f"{sys.argv[2]}-{n}").process(made, quiet())
"""


def test_builds_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    top = Path(__file__).parent.parent
    children = [
        subprocess.Popen([sys.executable, "-c", ADD, str(tmp_path), str(number)], cwd=top) for number in range(3)
    ]
    assert [child.wait(60) for child in children] == [0, 0, 0]
    content = json.loads((tmp_path / "m.json").read_text())
    assert len({build["packer_run_uuid"] for build in content["builds"]}) == 30
    assert names(tmp_path) == ["0", "1", "2", "m.json"]


def test_it_waits_for_who_holds_the_lock(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    timer = threading.Timer(0.3, os.close, (descriptor,))
    timer.start()
    manifest(tmp_path / "m.json").process(artifact(tmp_path / "out"), quiet())
    timer.join()
    assert (tmp_path / "m.json").exists()
