"""Other files as the artifact."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from imagebuilder.errors import ImgbuildError
from imagebuilder.postprocessors.artifice import Artifice, ArtificeOptions
from tests.images import MIB, built, context, filled, names, needs_qemu_img, quiet


def artifice(*files: str) -> Artifice:
    return Artifice(ArtificeOptions(files=files), context())


@needs_qemu_img
def test_the_files_are_the_artifact_and_nothing_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = built(Path("out"))
    filled(tmp_path / "made.vmdk", format="vmdk")
    (tmp_path / "notes.txt").write_text("text")
    done = artifice("*.vmdk", "notes.txt", "**/*.qcow2").process(given, quiet())
    assert done.artifact.files == (Path("made.vmdk"), Path("notes.txt"), Path("out/disk.qcow2"))
    assert [(disk.format, disk.virtual_size) for disk in done.artifact.disks] == [("vmdk", 8 * MIB), ("qcow2", 8 * MIB)]
    assert done.artifact.state["accelerator"] == "tcg"
    assert done.keep_input is True
    assert names(tmp_path / "out") == ["disk.qcow2", "manifest.json"]


@needs_qemu_img
def test_a_pattern_that_matches_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImgbuildError, match=r"nothing matches '.*\.box'"):
        artifice(f"{tmp_path}/*.box").process(built(tmp_path / "out"), quiet())


def test_it_needs_files() -> None:
    with pytest.raises(ValidationError):
        ArtificeOptions.model_validate({"files": []})
