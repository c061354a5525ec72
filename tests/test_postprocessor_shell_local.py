"""Scripts on this machine after the build."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagebuilder.errors import ImgbuildError
from imagebuilder.plugins import Artifact
from imagebuilder.postprocessors.shell_local import ShellLocal, ShellLocalOptions
from tests.images import context, listening, quiet

ARTIFACT = Artifact("x", "VM", "x", ())


def shell_local(**keys: object) -> ShellLocal:
    return ShellLocal(ShellLocalOptions.model_validate(keys), context())


def test_it_runs_and_hands_the_artifact_on() -> None:
    ui, events = listening()
    done = shell_local(inline=["echo $PACKER_BUILD_NAME", "echo $PACKER_RUN_UUID"]).process(ARTIFACT, ui)
    assert done.artifact is ARTIFACT
    assert done.keep_input is True
    said = [event.text for event in events if event.kind == "message"]
    assert said[-2:] == ["tiny", "11111111-2222"]


def test_a_failure_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(ImgbuildError, match="line 2"):
        shell_local(inline=["true", "false"]).process(ARTIFACT, quiet())
