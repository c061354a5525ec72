"""The command line: Packer's spelling of options, exit codes, help."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from imagebuilder.cli import main_group, normalise


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (["build", "-only=a,b", "t.json"], ["build", "--only=a,b", "t.json"]),
        (["build", "-var", "x=1", "t.json"], ["build", "--var", "x=1", "t.json"]),
        (["build", "-color=false", "-force", "t"], ["build", "--no-color", "--force", "t"]),
        (["build", "-force=true", "t"], ["build", "--force", "t"]),
        (["build", "--on-error=ask", "t"], ["build", "--on-error=ask", "t"]),
        (["validate", "-"], ["validate", "-"]),
        (["build", "--", "-only=x"], ["build", "--", "-only=x"]),
        (["-h"], ["-h"]),
    ],
    ids=lambda words: " ".join(words),
)
def test_one_dash_is_as_good_as_two(given: list[str], meant: list[str]) -> None:
    assert normalise(given) == meant


def imgbuild(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", "from imagebuilder.cli import main; main()", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, input=stdin, timeout=60)


def test_every_command_has_help_with_an_example() -> None:
    for name in main_group.commands:
        done = imgbuild(name, "--help")
        assert done.returncode == 0
        assert "Example: imgbuild" in done.stdout, name


@pytest.mark.parametrize("arguments", [["build"], ["buidl", "x"], ["build", "--nope", "x"]], ids=" ".join)
def test_wrong_usage_ends_with_2(arguments: list[str]) -> None:
    done = imgbuild(*arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_missing_template_is_said() -> None:
    done = imgbuild("build", "no-such.json")
    assert done.returncode == 2
    assert "no-such.json" in done.stderr


def test_a_wrong_template_tells_every_place(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text('{\n "builders": [\n  {"type": "qemuu"},\n  {"typ": "qemu"}\n ]\n}\n')
    done = imgbuild("validate", str(path))
    assert done.returncode == 2
    assert f"{path}:3:12: " in done.stderr
    assert "did you mean 'qemu'" in done.stderr
    assert f"{path}:4:" in done.stderr


def test_standard_input_and_json_errors() -> None:
    done = imgbuild("--json", "validate", "-", stdin='{"builders": [{"type": "qemuu"}]}')
    assert done.returncode == 2
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows
    assert all(row["kind"] == "error" and row["line"] == 1 for row in rows)


VALID = """{"builders": [
  {"type": "qemu", "disk_image": true, "iso_url": "x.qcow2", "iso_checksum": "none", "ssh_username": "r"}
]}"""


def test_validate_accepts_and_says_so() -> None:
    done = imgbuild("validate", "-", stdin=VALID)
    assert done.returncode == 0, done.stderr
    assert "valid" in done.stdout


def test_machine_readable_inspect() -> None:
    template = (
        '{"variables": {"a": "1", "b": null}, "builders": [{"type": "qemu"}], "provisioners": [{"type": "shell"}]}'
    )
    done = imgbuild("inspect", "-machine-readable", "-", stdin=template)
    rows = [line.split(",")[2:] for line in done.stdout.splitlines()]
    assert ["template-variable", "a", "1", "0"] in rows
    assert ["template-variable", "b", "", "1"] in rows
    assert ["template-builder", "qemu", "qemu"] in rows
    assert ["template-provisioner", "shell"] in rows


def test_plan_starts_nothing_and_shows_the_arguments(tmp_path: Path) -> None:
    done = imgbuild("plan", "-", stdin=VALID)
    assert done.returncode == 0, done.stderr
    assert "qemu-system-x86_64" in done.stdout
    assert "Waiting for SSH" not in done.stdout
