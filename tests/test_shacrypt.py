"""SHA-512 crypt against the specification's own examples and openssl."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from imagebuilder import paths
from imagebuilder.autoinstall.shacrypt import sha512_crypt, stable_salt


def test_the_example_of_the_specification() -> None:
    expected = "svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1"
    assert sha512_crypt("Hello world!", "saltstring") == f"$6$saltstring${expected}"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize("password", ["a", "p\u00e4ss w\u00f6rd", "$6$x", "x" * 63, "x" * 64, "x" * 65, "long " * 50])
@pytest.mark.parametrize("salt", ["a", "./Az09", "sixteen.letters."])
def test_openssl_agrees(password: str, salt: str) -> None:
    argv = ["openssl", "passwd", "-6", "-salt", salt, "-stdin"]
    answer = subprocess.run(argv, input=password + "\n", capture_output=True, text=True, check=True).stdout.strip()
    assert sha512_crypt(password, salt) == answer


def test_the_salt_is_the_same_at_the_next_build_and_another_for_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = sha512_crypt("secret")
    assert sha512_crypt("secret") == first
    assert stable_salt("other") != stable_salt("secret")
    key = paths.cache_directory() / "salt.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert [path.name for path in key.parent.iterdir()] == ["salt.key"]
    monkeypatch.setenv("IMGBUILD_CACHE_DIR", str(tmp_path))
    assert sha512_crypt("secret") != first


@pytest.mark.parametrize("salt", ["", "x" * 17, "a$b", "\u00e4"])
def test_salts_that_are_none(salt: str) -> None:
    with pytest.raises(ValueError, match="is not a salt"):
        sha512_crypt("x", salt)


def test_a_nul_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        sha512_crypt("a\0b", "x")
