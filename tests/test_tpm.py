from __future__ import annotations

import os
from pathlib import Path

import pytest

from imagebuilder.errors import ImgbuildError
from imagebuilder.qemu import tpm


def fake_swtpm(directory: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script = directory / "swtpm"
    script.write_text(f"#!/bin/sh\n{body}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")


def test_missing_program_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImgbuildError) as caught, tpm.running(tpm.TpmConfig(), tmp_path):
        raise AssertionError
    assert caught.value.hint == "install it: apt-get install swtpm"


def test_program_that_ends_at_once_is_told_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = 'for word; do case "$word" in file=*) echo "no state for you" > "${word#file=}";; esac; done; exit 3'
    fake_swtpm(tmp_path, told, monkeypatch)
    with (
        pytest.raises(ImgbuildError, match=r"(?s)exit code 3.*no state for you"),
        tpm.running(tpm.TpmConfig(), tmp_path),
    ):
        raise AssertionError


@pytest.mark.qemu
@pytest.mark.parametrize("version", ["2.0", "1.2"])
def test_real_tpm_answers_and_ends(version: str, tmp_path: Path) -> None:
    with tpm.running(tpm.TpmConfig(version), tmp_path) as found:
        assert found.child.poll() is None
        assert (tmp_path / "tpm").stat().st_mode & 0o77 == 0
    assert found.child.poll() is not None
