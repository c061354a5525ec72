"""The output of a build: beside its name, then under it; what -force may delete, and what it never does."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imagebuilder.errors import ChecksumError, ImgbuildError, StoreError
from imagebuilder.image import artifact, manifest
from imagebuilder.image.manifest import load_manifest, verify
from imagebuilder.plugins import Artifact
from tests.images import MIB, built, context, filled, names, needs_qemu_img, quiet

pytestmark = needs_qemu_img


def test_a_published_image_has_a_manifest_that_says_all(tmp_path: Path) -> None:
    made = built(tmp_path / "out", disks=2, extra={"efivars.fd": b"vars"}, nvram="efivars.fd", firmware="uefi")
    found = load_manifest(tmp_path / "out")
    assert [file.name for file in found.disks] == ["disk.qcow2", "disk-1.qcow2"]
    assert [(file.name, file.kind) for file in found.files][2:] == [("efivars.fd", "nvram")]
    for file in found.files:
        content = (tmp_path / "out" / file.name).read_bytes()
        assert (file.size, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    first = found.disks[0]
    assert (first.format, first.virtual_size, first.compression, first.backing) == ("qcow2", 8 * MIB, None, None)
    assert (found.build_name, found.builder_type, found.template_sha256) == ("tiny", "qemu", "ab" * 32)
    assert (found.accelerator, found.architecture, found.firmware) == ("tcg", "x86_64", "uefi")
    assert set(found.versions) == {"imgbuild", "qemu"}
    assert made.files == tuple(tmp_path / "out" / file.name for file in found.files)
    assert [one.virtual_size for one in made.disks] == [8 * MIB, 8 * MIB]
    assert made.state["diskName"] == "disk.qcow2"
    assert names(tmp_path) == ["out"]


def test_the_manifest_is_the_documented_one(tmp_path: Path) -> None:
    """docs/manifest.md names every key there is, and no other."""
    page = (Path(__file__).parent.parent / "docs" / "manifest.md").read_text(encoding="utf-8")
    documented = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    assert documented == {*manifest.Manifest.model_fields, *manifest.ManifestFile.model_fields}


def test_the_work_directory_is_private_and_the_final_one_is_not(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with artifact.Output(tmp_path / "out") as output:
            assert stat.S_IMODE(output.work.stat().st_mode) == 0o700
            assert output.work.parent == tmp_path
            output.publish(context(), [], quiet())
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o755


def test_what_is_not_published_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), artifact.Output(tmp_path / "a" / "out") as output:
        (output.work / "disk").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path / "a") == []


def test_sockets_do_not_travel_with_the_image(tmp_path: Path) -> None:
    import socket

    with artifact.Output(tmp_path / "out") as output, socket.socket(socket.AF_UNIX) as left:
        left.bind(str(output.work / "monitor"))
        output.publish(context(), [], quiet())
    assert names(tmp_path / "out") == ["manifest.json"]


def test_a_name_that_is_taken_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(StoreError, match="exists already") as caught, artifact.Output(tmp_path / "out"):
        pass
    assert "-force" in str(caught.value.hint)


def test_a_name_that_is_taken_meanwhile_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="appeared"), artifact.Output(tmp_path / "out") as output:
        (tmp_path / "out").mkdir()
        output.publish(context(), [], quiet())
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == []


def foreign(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("years")


def broken(path: Path) -> None:
    foreign(path)
    (path / "manifest.json").write_text('{"name": "an npm package"}')


def link(path: Path) -> None:
    built(path.with_name("image"))
    path.symlink_to("image")


@pytest.mark.parametrize("make", [foreign, broken, link, Path.touch], ids=["foreign", "broken", "link", "file"])
def test_force_does_not_delete_what_is_not_ours(tmp_path: Path, make: object) -> None:
    make(tmp_path / "out")  # type: ignore[operator]
    before = sorted(path for path in tmp_path.rglob("*"))
    with pytest.raises(StoreError), artifact.Output(tmp_path / "out", force=True):
        pass
    assert sorted(path for path in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "rename"])
def test_force_replaces_an_image_of_ours(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:  # a kernel or file system without renameat2
        monkeypatch.setattr(artifact, "_renameat2", lambda *_: False)
    built(tmp_path / "out", extra={"old": b""})
    with artifact.Output(tmp_path / "out", force=True) as output:
        (output.work / "new").write_text("")
        assert (tmp_path / "out" / "old").exists()  # until the new one is whole
        output.publish(context(), [], quiet())
        assert names(tmp_path / "out") == ["manifest.json", "new"]
    assert names(tmp_path) == ["out"]


def test_force_takes_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with artifact.Output(tmp_path / "out", force=True) as output:
        output.publish(context(), [], quiet())
    assert names(tmp_path / "out") == ["manifest.json"]


PUBLISH = """
import sys
from pathlib import Path
from imagebuilder.image import artifact
from tests.images import context, quiet
final = Path(sys.argv[1])
while True:
    with artifact.Output(final, force=True) as output:
        for n in range(20):
            (output.work / f"file-{n}").write_bytes(b"x" * 100000)
        output.publish(context(), [], quiet())
    print("published", flush=True)
"""


def test_kill_9_at_any_moment_leaves_one_whole_image(tmp_path: Path) -> None:
    final = tmp_path / "out"
    for round in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", PUBLISH, str(final)], stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent
        )
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"published\n"
            time.sleep(round * 0.013)
            child.send_signal(signal.SIGKILL)
        finally:
            child.kill()
            child.communicate()
        verify(load_manifest(final), final, quiet())
        end = time.monotonic() + 10
        while names(tmp_path) != ["out"] and time.monotonic() < end:
            time.sleep(0.02)
        assert names(tmp_path) == ["out"]


def test_verify_names_every_file_that_is_damaged(tmp_path: Path) -> None:
    built(tmp_path / "out", disks=2, extra={"notes": b"abc"})
    found = load_manifest(tmp_path / "out" / "manifest.json")
    verify(found, tmp_path / "out", quiet())
    (tmp_path / "out" / "notes").write_bytes(b"abd")
    with pytest.raises(ChecksumError, match="'notes' has other content"):
        verify(found, tmp_path / "out", quiet())
    (tmp_path / "out" / "notes").write_bytes(b"ab")
    (tmp_path / "out" / "disk.qcow2").unlink()
    with pytest.raises(ChecksumError, match=r"'disk\.qcow2' is missing; 'notes' has 2 bytes instead of 3"):
        verify(found, tmp_path / "out", quiet())


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a/../../b", "."])
def test_a_manifest_cannot_lead_out_of_its_directory(tmp_path: Path, name: str) -> None:
    built(tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    content = json.loads(path.read_text())
    content["files"][0]["name"] = name
    path.write_text(json.dumps(content))
    with pytest.raises(ImgbuildError, match="no name of a file"):
        load_manifest(path)


def test_a_later_key_is_no_error_and_a_later_version_is(tmp_path: Path) -> None:
    built(tmp_path / "out")
    path = tmp_path / "out" / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "weather": "fine"}))
    assert load_manifest(path).build_name == "tiny"
    path.write_text(json.dumps({**content, "manifest_version": 2}))
    with pytest.raises(ImgbuildError, match="manifest_version"):
        load_manifest(path)


def test_source_date_epoch_is_the_time_of_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    built(tmp_path / "one")
    built(tmp_path / "two")
    assert load_manifest(tmp_path / "one").created.isoformat() == "2023-11-14T22:13:20+00:00"


def test_destroy_removes_what_belongs_to_the_artifact_and_nothing_else(tmp_path: Path) -> None:
    made = built(tmp_path / "out", disks=2)
    (tmp_path / "out" / "mine.txt").write_text("of the user")
    kept = Artifact("other", "x", "x", (made.files[1],))
    artifact.destroy(made, keeping=[kept])
    assert names(tmp_path / "out") == ["disk-1.qcow2", "mine.txt"]


def test_destroy_removes_a_directory_that_is_empty_then(tmp_path: Path) -> None:
    artifact.destroy(built(tmp_path / "out", extra={"a": b""}))
    assert names(tmp_path) == []


def test_an_artifact_without_a_directory_is_its_files(tmp_path: Path) -> None:
    for name in ("box", "other"):
        (tmp_path / name).write_text("")
    artifact.destroy(Artifact("x", "x", "x", (tmp_path / "box", tmp_path / "gone")))
    assert names(tmp_path) == ["other"]


def test_an_overlay_says_what_it_lies_on(tmp_path: Path) -> None:
    from imagebuilder.image import disk
    from imagebuilder.plugins import Disk

    base = filled(tmp_path / "base.qcow2")
    with artifact.Output(tmp_path / "out") as output:
        disk.overlay(output.work / "disk", base, "qcow2")
        output.publish(context(), [Disk(output.work / "disk", "qcow2", 8 * MIB)], quiet())
    assert load_manifest(tmp_path / "out").disks[0].backing == str(base)
