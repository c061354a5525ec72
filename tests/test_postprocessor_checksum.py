"""Checksum files, checked by the real `sha256sum -c` and its brothers where they lie."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from imagebuilder.errors import StoreError
from imagebuilder.media.checksum import ALGORITHMS, entries
from imagebuilder.plugins import Artifact, Disk
from imagebuilder.postprocessors.checksum import Checksum, ChecksumOptions
from tests.images import context, listening, names, quiet


def artifact(directory: Path, *files: str) -> Artifact:
    directory.mkdir(exist_ok=True)
    for name in files:
        (directory / name).write_text(f"content of {name}")
    return Artifact("x", "VM", "x", tuple(directory / name for name in files), directory=directory)


def checksum(**keys: object) -> Checksum:
    return Checksum(ChecksumOptions.model_validate(keys), context())


@pytest.mark.parametrize("kind", ALGORITHMS)
def test_the_real_tool_accepts_it_where_it_lies(tmp_path: Path, kind: str) -> None:
    made = artifact(tmp_path / "out", "disk.qcow2", "efivars.fd", "with space")
    checksum(checksum_types=kind, output=str(tmp_path / "sums")).process(made, quiet())
    done = subprocess.run([f"{kind}sum", "-c", "--strict", "sums"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["out/disk.qcow2: OK", "out/efivars.fd: OK", "out/with space: OK"]


def test_beside_the_files_it_holds_bare_names(tmp_path: Path) -> None:
    made = artifact(tmp_path / "out", "disk")
    checksum(checksum_types="sha256", output=str(tmp_path / "out" / "SHA256SUMS")).process(made, quiet())
    (line,) = (tmp_path / "out" / "SHA256SUMS").read_text().splitlines()
    assert line.endswith("  disk")


def test_packers_default_name_and_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = checksum().process(artifact(Path("out"), "disk"), quiet())
    assert done.artifact.files == (Path("out/disk"), Path("packer_tiny_qemu_md5.checksum"))
    assert done.keep_input is True
    assert list(ChecksumOptions().doubts())


def test_a_second_run_leaves_no_stale_line(tmp_path: Path) -> None:
    made = artifact(tmp_path / "out", "disk")
    step = checksum(checksum_types="sha256", output=str(tmp_path / "sums"))
    step.process(made, quiet())
    (tmp_path / "out" / "disk").write_text("other content")
    step.process(made, quiet())
    assert len((tmp_path / "sums").read_text().splitlines()) == 1
    subprocess.run(["sha256sum", "-c", "--quiet", "sums"], cwd=tmp_path, check=True)


def test_several_kinds_go_into_files_of_their_own_or_into_one(tmp_path: Path) -> None:
    made = artifact(tmp_path / "out", "disk")
    checksum(checksum_types="sha256,sha512", output=f"{tmp_path}/{{{{.ChecksumType}}}}").process(made, quiet())
    assert names(tmp_path) == ["out", "sha256", "sha512"]
    checksum(checksum_types=["sha256", "sha512"], output=f"{tmp_path}/all").process(made, quiet())
    assert [entry.algorithm for entry in entries((tmp_path / "all").read_text())] == ["sha256", "sha512"]


def test_a_name_with_a_backslash_or_a_line_break_is_escaped_as_coreutils_do(tmp_path: Path) -> None:
    made = artifact(tmp_path / "out", "back\\slash", "line\nbreak")
    checksum(checksum_types="sha256", output=str(tmp_path / "sums")).process(made, quiet())
    subprocess.run(["sha256sum", "-c", "--strict", "--quiet", "sums"], cwd=tmp_path, check=True)


def test_a_file_that_is_gone_is_said_and_nothing_written(tmp_path: Path) -> None:
    made = artifact(tmp_path / "out", "disk", "gone")
    (tmp_path / "out" / "gone").unlink()
    with pytest.raises(StoreError, match="gone"):
        checksum(output=str(tmp_path / "sums")).process(made, quiet())
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["disk"]


def test_it_says_what_it_wrote(tmp_path: Path) -> None:
    ui, events = listening()
    checksum(output=str(tmp_path / "sums")).process(artifact(tmp_path / "out", "disk"), ui)
    assert [event.text for event in events if event.kind == "message"] == [f"Wrote {tmp_path / 'sums'}"]


def test_an_unknown_kind_is_a_problem() -> None:
    (problem,) = ChecksumOptions(checksum_types=("sha265",)).problems()
    assert problem == ("checksum_types", "'sha265' is no kind of checksum; did you mean 'sha256'?")


def test_the_image_is_never_overwritten(tmp_path: Path) -> None:
    made = artifact(tmp_path, "disk.qcow2")
    image = replace(made, disks=(Disk(tmp_path / "disk.qcow2", "qcow2", 9),))
    with pytest.raises(StoreError, match="own file"):
        checksum(checksum_types="sha256", output=str(tmp_path / "disk.qcow2")).process(image, quiet())
    assert (tmp_path / "disk.qcow2").read_text() == "content of disk.qcow2"
