"""Which files a template's patterns put where on a CD or floppy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imagebuilder.errors import TemplateError
from imagebuilder.media.collect import cd_files, floppy_files


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a/one.txt", "a/sub/two.txt", "b/three.cfg", "b/four.cfg", "five[1].txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "a/empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["a"], ["a/empty/", "a/one.txt", "a/sub/two.txt"]),
        (["a/"], ["empty/", "one.txt", "sub/two.txt"]),
        (["a/*"], ["empty/", "one.txt", "sub/two.txt"]),
        (["b/*.cfg"], ["four.cfg", "three.cfg"]),
        (["b/t????.cfg", "b/*.cfg"], ["four.cfg", "three.cfg"]),
        (["**/two.txt"], ["two.txt"]),
        (["five[1].txt"], ["five[1].txt"]),
        (["a/../b"], ["b/four.cfg", "b/three.cfg"]),
    ],
)
def test_cd_files(patterns: list[str], names: list[str]) -> None:
    assert sorted(cd_files(patterns, {})) == names


def test_floppy_files_are_flat_and_floppy_dirs_whole() -> None:
    files = floppy_files(["a", "b/*.cfg"], ["a", "b/"], {"/ks.cfg": "text"})
    assert sorted(files) == ["a/empty/", "a/one.txt", "a/sub/two.txt", "four.cfg", "ks.cfg", "one.txt", "three.cfg"]
    assert files["ks.cfg"] == b"text"


def test_content_wins_over_a_file() -> None:
    assert cd_files(["b/"], {"three.cfg": "mine"})["three.cfg"] == b"mine"


def test_links_are_followed_but_not_in_circles(here: Path) -> None:
    (here / "b/link").symlink_to("../a/one.txt")
    assert cd_files(["b"], {})["b/link"] == Path("b/link")
    (here / "b/up").symlink_to("..")
    with pytest.raises(TemplateError, match=r"'b/up/b' is a link to a directory that holds it|'b/up/b/up'"):
        cd_files(["b"], {})


def test_everything_that_is_wrong_is_said_at_once(here: Path) -> None:
    os.mkfifo(here / "pipe")
    (here / "dangling").symlink_to("nowhere")
    (here / "c").mkdir()
    (here / "c/one.txt").write_text("another")
    with pytest.raises(TemplateError) as caught:
        cd_files(["nope", "*.zip", "pipe", "dangling", "a/one.txt", "c/one.txt"], {"../x": "", "sub": "", "sub/y": ""})
    assert [problem.message for problem in caught.value.problems] == [
        "cd_files: 'nope' does not exist",
        "cd_files: '*.zip' matches nothing",
        "cd_files: 'pipe' is neither a file nor a directory",
        "cd_files: can't read 'dangling': No such file or directory",
        "cd_files: both 'a/one.txt' and 'c/one.txt' would be 'one.txt'",
        "cd_content: '../x' is not a path of a file",
        "'sub' would be both a file and a directory",
    ]
