"""The wheel carries code and data, and works where it is installed."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

TOP = Path(__file__).parent.parent

pytestmark = pytest.mark.packaging


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("wheel")
    source = target / "source"
    subprocess.run(["git", "clone", "-q", str(TOP), str(source)], check=True)
    argv = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", str(target), str(source)]
    subprocess.run(argv, check=True, env={**os.environ, "PYTHONWARNINGS": "ignore"})
    (made,) = target.glob("*.whl")
    return made


def test_every_tracked_module_and_data_file_is_in_it(wheel: Path) -> None:
    tracked = subprocess.check_output(
        ["git", "ls-files", "imagebuilder", "provisionserver"], cwd=TOP, text=True
    ).split()
    data = subprocess.check_output(["git", "ls-files", "distros", "kickstarts", "builds"], cwd=TOP, text=True).split()
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name for name in tracked if name.endswith(".py")} <= names
    assert {f"imagebuilder/data/{name}" for name in data} <= names


def test_it_works_when_installed(wheel: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)]
    subprocess.run(argv, check=True)
    (tmp_path / "t.json").write_text('{"builders": [{"type": "qemu", "distro": "debian-12", "ssh_username": "root"}]}')
    script = "import imagebuilder, sys; print(imagebuilder.__file__); from imagebuilder.cli import main; main()"
    argv = [sys.executable, "-c", script, "plan", "t.json"]
    done = subprocess.run(
        argv, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "site") in done.stdout
    assert "boot the installer" in done.stdout
