"""The steps of a planned build: the builder's own and one for each provisioner, and what a person calls them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.layers.chain import Step
from imagebuilder.steps import steps, unkept
from imagebuilder.templates.buildplan import BuildPlan
from imagebuilder.templates.template import load_template, plan_builds
from tests.images import quiet


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk.img").write_bytes(bytes(512))
    (tmp_path / "base.sh").write_text("echo base\n")
    return tmp_path


QEMU = {"type": "qemu", "disk_image": True, "iso_url": "disk.img", "iso_checksum": "none", "ssh_username": "root"}
SHELL = {"type": "shell", "script": "base.sh"}


def plan(*provisioners: dict[str, Any], builder: dict[str, Any] | None = None, **template: Any) -> BuildPlan:
    text = json.dumps({"builders": [QEMU | (builder or {})], "provisioners": provisioners, **template})
    return plan_builds(load_template("-", text), environ={}).builds[0]


def found(*provisioners: dict[str, Any], **keys: Any) -> tuple[Step, ...]:
    return steps(plan(*provisioners, **keys), quiet(), fetch=False)


def fingerprints(found: Sequence[Step]) -> list[str]:
    return [step.fingerprint for step in found]


def test_a_build_has_its_builders_steps_around_the_provisioners() -> None:
    given = found(SHELL, {"type": "sleep", "duration": "1s"})
    assert [str(step) for step in given] == ["base", "1 (shell: base.sh)", "2 (sleep)", "shutdown", "export"]
    assert all(fingerprints(given)) and len(set(fingerprints(given))) == 5


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"builder": {"memory": 1024}}, 0),
        ({"builder": {"cache_key": "2024-05"}}, 0),
        ({"builder": {"shutdown_command": "poweroff"}}, 2),
        ({"builder": {"format": "raw"}}, 3),
        ({"builder": {"vm_name": "other", "output_directory": "elsewhere", "headless": False}}, 4),
        ({"post-processors": ["manifest"]}, 4),
        ({"description": "another"}, 4),
    ],
    ids=["machine", "cache-key", "shutdown", "format", "names", "post-processors", "description"],
)
def test_a_change_counts_from_the_step_that_it_can_change(change: dict[str, Any], first: int) -> None:
    same = [
        one == two for one, two in zip(fingerprints(found(SHELL)), fingerprints(found(SHELL, **change)), strict=True)
    ]
    assert same == [number < first for number in range(4)]


@pytest.mark.parametrize(
    ("keys", "why"),
    [({"cache": False}, "cache is false"), ({"cache": "false"}, "cache is false"), ({"cache_key": "1"}, "")],
    ids=["false", "text", "key"],
)
def test_what_a_template_says_of_a_step(keys: dict[str, Any], why: str) -> None:
    plain, given = found(SHELL, SHELL), found(SHELL, {**SHELL, **keys})
    assert given[2].why_not == why and given[1] == plain[1]
    assert given[2].fingerprint != plain[2].fingerprint


def test_a_build_that_is_not_cached_has_no_layer_at_all() -> None:
    given = found(SHELL, builder={"cache": False})
    assert not any(fingerprints(given)) and given[0].why_not == "cache is false"


def test_a_step_that_runs_here_is_kept_by_its_cache_key_and_options() -> None:
    local = {"type": "shell-local", "command": "make"}
    assert not found(local)[1].fingerprint
    keyed = [found({**local, "cache_key": "1"}), found({**local, "cache_key": "1", "command": "make it"})]
    assert all(fingerprints(keyed[0])) and keyed[0][1].fingerprint != keyed[1][1].fingerprint


def test_a_medium_that_was_never_fetched_leaves_nothing_known() -> None:
    given = found(SHELL, builder={"iso_url": "http://127.0.0.1:9/disk.img"})
    assert given[0].why_not == "what http://127.0.0.1:9/disk.img holds is only known when it is fetched"
    assert given[1].why_not == "comes after base, which is not known"


LONG = "apt-get install " + "x" * 80


@pytest.mark.parametrize(
    ("step", "title"),
    [
        (SHELL, "shell: base.sh"),
        ({"type": "shell", "scripts": ["base.sh", "base.sh"]}, "shell: base.sh ..."),
        ({"type": "shell", "inline": ["one", "two"]}, "shell: one ..."),
        ({"type": "shell", "inline": "\n  one\ntwo\n"}, "shell: one"),
        ({"type": "shell", "inline": LONG}, f"shell: {LONG[:50]} ..."),
        ({"type": "file", "source": "base.sh", "destination": "/tmp/"}, "file: base.sh"),
        ({"type": "file", "content": "x", "destination": "/tmp/x"}, "file: /tmp/x"),
        ({"type": "shell-local", "command": "make"}, "shell-local: make"),
        ({"type": "breakpoint"}, "breakpoint"),
    ],
    ids=["script", "scripts", "inline", "text", "long", "file", "content", "local", "nothing"],
)
def test_a_title_is_what_a_person_knows_a_step_by(step: dict[str, Any], title: str) -> None:
    assert found(step)[1].title == title == unkept(plan(step))[1].title


SECRETS = {"short": "hunter2", "longer": "hunter2-and-more", "key": "  -----BEGIN\n  MIIEow\n"}


@pytest.mark.parametrize(
    ("inline", "title"),
    [
        ("echo {{user `short`}}", "shell: echo <sensitive>"),
        ("echo {{user `longer`}}", "shell: echo <sensitive>"),
        ("{{user `key`}}", "shell: <sensitive>"),
        (["echo '{{user `key`}}' > key", "true"], "shell: echo '<sensitive>' > key ..."),
        (f"{'x' * 45} {{{{user `longer`}}}}", f"shell: {'x' * 45} <sen ..."),
    ],
    ids=["one", "one-that-begins-with-another", "indented", "lines", "cut"],
)  # fmt: skip
def test_a_title_holds_no_secret(inline: Any, title: str) -> None:
    keys = {"variables": SECRETS, "sensitive-variables": list(SECRETS)}
    assert found({"type": "shell", "inline": inline}, **keys)[1].title == title


def test_without_layers_nothing_is_looked_at(here: Path) -> None:
    given = plan(SHELL)
    (here / "base.sh").unlink()
    (here / "disk.img").unlink()
    assert [(step.number, step.name, step.why_not, step.fingerprint) for step in unkept(given)] == [
        (0, "base", "layers are off", ""), (1, "shell", "layers are off", ""),
        (2, "shutdown", "layers are off", ""), (3, "export", "layers are off", ""),
    ]  # fmt: skip


def test_builds_of_a_template_share_what_does_not_name_them() -> None:
    named = {"type": "shell", "inline": "echo $PACKER_BUILD_NAME"}
    text = {"builders": [{**QEMU, "name": name} for name in ("web", "db")], "provisioners": [SHELL, named]}
    builds = plan_builds(load_template("-", json.dumps(text)), environ={}).builds
    web, db = (fingerprints(steps(one, quiet(), fetch=False)) for one in builds)
    assert [one == two for one, two in zip(web, db, strict=True)] == [True, True, False, False, False]
