"""What a person says about layers, and the layers of a build that follow from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from imagebuilder import paths
from imagebuilder.caching import Caching, layers_of
from imagebuilder.errors import ImgbuildError
from imagebuilder.layers.buildlayers import BuildLayers
from imagebuilder.templates.template import load_template, plan_builds
from tests.images import quiet


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk.img").write_bytes(bytes(512))


def layers(caching: Caching, **options: Any) -> BuildLayers:
    builder = {"type": "qemu", "disk_image": True, "iso_url": "disk.img", "iso_checksum": "none", "ssh_username": "r"}
    template = {"builders": [builder], "provisioners": [{"type": "shell", "inline": "true"}]}
    plan = plan_builds(load_template("-", json.dumps(template)), environ={}, **options).builds[0]
    return layers_of(plan, caching, quiet())


def test_layers_are_on_and_go_to_the_end() -> None:
    found = layers(Caching())
    assert all(found.keeps(step) for step in (found.steps[0], found.steps[-1])) and not found.partial


@pytest.mark.parametrize(
    ("caching", "options"), [(Caching(on=False), {}), (Caching(), {"debug": True})], ids=["off", "debug"]
)
def test_where_they_are_off_nothing_is_kept_and_no_directory_made(caching: Caching, options: dict[str, Any]) -> None:
    with layers(caching, **options) as found:
        assert found.resume() is None
        assert not any(found.keeps(step) for step in found.steps)
    assert not (paths.cache_directory() / "layers").exists()


@pytest.mark.parametrize("word", ["1", "shell", "true"])
@pytest.mark.parametrize("on", [True, False])
def test_a_build_ends_with_the_step_that_was_named(word: str, on: bool) -> None:
    found = layers(Caching(on=on, until=word))
    assert found.last == 1 and found.partial


@pytest.mark.parametrize(
    "caching", [Caching(until="nothing"), Caching(first="nothing"), Caching(on=False, until="nothing")]
)
def test_a_step_that_is_not_there_is_an_error(caching: Caching) -> None:
    with pytest.raises(ImgbuildError, match="there is no step 'nothing'"):
        layers(caching)
