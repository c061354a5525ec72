"""Packages kept between bootstraps."""

from __future__ import annotations

import os
import time
from pathlib import Path

from imagebuilder.bootstrap import packagecache


def build(cache: Path, archives: Path, *downloads: str) -> int:
    archives.mkdir()
    lent = packagecache.lend(cache, archives)
    for name in downloads:
        (archives / name).write_text(f"content of {name}")
    packagecache.take_back(archives, cache)
    return lent


def test_a_second_build_finds_what_the_first_downloaded(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert build(cache, tmp_path / "1", "a_1%3a2_all.deb", "b_1_amd64.deb") == 0
    assert build(cache, tmp_path / "2", "c_1_all.deb") == 2
    assert (tmp_path / "2/a_1%3a2_all.deb").read_text() == "content of a_1%3a2_all.deb"
    assert cache.stat().st_mode & 0o777 == 0o700
    assert build(cache, tmp_path / "3") == 3


def test_what_is_damaged_is_forgotten(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    build(cache, tmp_path / "1", "a_1_all.deb", "b_1_all.deb")
    next(cache.glob("a_1_all.deb@*")).write_text("rotten")
    assert build(cache, tmp_path / "2") == 1
    assert not list(cache.glob("a_*")) and not (tmp_path / "2/a_1_all.deb").exists()


def test_what_nobody_used_for_long_goes(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    build(cache, tmp_path / "1", "old_1_all.deb", "new_1_all.deb")
    long_ago = time.time() - packagecache.KEPT - 60
    for kept in cache.iterdir():
        os.utime(kept, (long_ago, long_ago))
    archives = tmp_path / "2"
    archives.mkdir()
    (archives / "new_1_all.deb").write_text("content of new_1_all.deb")
    packagecache.take_back(archives, cache)
    assert [kept.name.partition("@")[0] for kept in cache.iterdir()] == ["new_1_all.deb"]
