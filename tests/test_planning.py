"""What `plan` says of layers: which steps they spare, and why the others must run."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from imagebuilder import planning
from imagebuilder.caching import Caching, layers_of
from imagebuilder.errors import ImgbuildError, TemplateError
from imagebuilder.templates.buildplan import BuildPlan
from imagebuilder.templates.template import load_template, plan_builds
from imagebuilder.ui import JsonConsole, TextConsole
from tests.images import quiet


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk.img").write_bytes(bytes(512))
    for name in ("base.sh", "web.sh"):
        (tmp_path / name).write_text(f"echo {name}\n")
    return tmp_path


def plan(**keys: Any) -> BuildPlan:
    builder = {"type": "qemu", "disk_image": True, "iso_url": "disk.img", "iso_checksum": "none", "ssh_username": "r"}
    scripts = [{"type": "shell", "script": name} for name in ("base.sh", "web.sh")]
    template = {"builders": [builder], "provisioners": [*scripts, *keys.pop("more", [])], **keys}
    return plan_builds(load_template("-", json.dumps(template)), environ={}).builds[0]


def fill(layer: Path) -> None:
    (layer / "disk0.qcow2").write_bytes(b"disk")


def build(given: BuildPlan) -> None:
    """Keep a layer of every step, as a build would."""
    with layers_of(given, Caching(), quiet()) as layers:
        layers.resume()
        for step in layers.steps[layers.at + 1 :]:
            if layers.keeps(step):
                layers.keep(step, fill)


def told(given: BuildPlan, caching: Caching | None = None) -> list[str]:
    """The lines of the section "Steps"."""
    out = io.StringIO()
    planning.show_plan(given, caching or Caching(), TextConsole(out, color=False))
    lines = out.getvalue().splitlines()
    return [line.removeprefix("    qemu: ") for line in lines[lines.index("==> qemu: Steps") + 1 :]]


def test_before_the_first_build_all_runs() -> None:
    assert told(plan()) == [
        "0. base: runs: not built before",
        "1. shell: base.sh: runs: not built before",
        "2. shell: web.sh: runs: not built before",
        "3. shutdown: runs: not built before",
        "4. export: runs: not built before",
    ]


def test_a_changed_script_is_named(here: Path) -> None:
    build(plan())
    assert told(plan()) == [
        "0. base: restored", "1. shell: base.sh: restored", "2. shell: web.sh: restored", "3. shutdown: restored",
        "4. export: restored",
    ]  # fmt: skip
    (here / "web.sh").write_text("echo mended\n")
    assert told(plan()) == [
        "0. base: restored",
        "1. shell: base.sh: restored",
        "2. shell: web.sh: runs: web.sh changed",
        "3. shutdown: runs: an earlier step runs again",
        "4. export: runs: an earlier step runs again",
    ]


def test_from_and_no_cache_are_obeyed() -> None:
    build(plan())
    assert [line.endswith("asked for by -from") for line in told(plan(), Caching(first="web.sh"))] == [
        False, False, True, True, True,
    ]  # fmt: skip
    assert all(line.endswith("runs: layers are off") for line in told(plan(), Caching(on=False)))
    with pytest.raises(ImgbuildError, match="there is no step 'nothing'"):
        told(plan(), Caching(first="nothing"))


def test_until_is_obeyed() -> None:
    assert [line.endswith("not reached (-until)") for line in told(plan(), Caching(until="1"))] == [
        False, False, True, True, True,
    ]  # fmt: skip
    with pytest.raises(TemplateError, match="-from=2 comes after -until=1"):
        told(plan(), Caching(first="2", until="1"))


def test_age_is_obeyed() -> None:
    build(plan())
    assert all("(-cache-max-age)" in line for line in told(plan(), Caching(max_age=0.0)))
    assert all(line.endswith("restored") for line in told(plan(), Caching(max_age=3600.0)))


def test_programs_read_the_same() -> None:
    secret = {"type": "shell", "inline": "echo {{user `token`}}"}
    given = plan(more=[secret], variables={"token": "hunter2"}, **{"sensitive-variables": ["token"]})
    build(plan())
    out = io.StringIO()
    planning.show_plan(given, Caching(), JsonConsole(out))
    (row,) = [json.loads(line) for line in out.getvalue().splitlines() if '"plan"' in line]
    assert "hunter2" not in out.getvalue()
    layers = row["data"]["layers"] if "data" in row else row["layers"]
    assert [(one["step"], one["name"], one["restored"]) for one in layers] == [
        (0, "base", True), (1, "shell", True), (2, "shell", True), (3, "shell", False), (4, "shutdown", False),
        (5, "export", False),
    ]  # fmt: skip
    assert layers[3]["title"] == "shell: echo <sensitive>" and layers[3]["why"] == "not built before"
    assert all(len(one["fingerprint"]) == 64 for one in layers)
