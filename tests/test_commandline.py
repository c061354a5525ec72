"""What the commands share: ages and sizes as people write them, and a terminal that is left as it was."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from imagebuilder import commandline
from imagebuilder.errors import TemplateError


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, None), ("7d", 604800.0), ("1.5d", 129600.0), ("1h30m", 5400.0), ("0", 0.0)]
)
def test_ages(text: str | None, seconds: float | None) -> None:
    assert commandline.age(text, "max-age") == seconds


@pytest.mark.parametrize(("text", "count"), [(None, None), ("10G", 10 << 30), ("512", 512 << 20), ("0", 0)])
def test_sizes(text: str | None, count: int | None) -> None:
    assert commandline.size(text, "max-size") == count


@pytest.mark.parametrize("text", ["", "d", "7 d", "-1d", "-5m", "week"])
def test_what_is_no_age_names_its_option(text: str) -> None:
    with pytest.raises(TemplateError, match=r"^-max-age: "):
        commandline.age(text, "max-age")


@pytest.mark.parametrize(("content", "code"), [('{"builders": [{"type": "qemu"}]}', 0), ('{"builders": 1}', 2)])
def test_a_terminal_gets_its_cursor_back(tmp_path: Path, content: str, code: int) -> None:
    (tmp_path / "t.json").write_text(content)
    shown = on_a_terminal("inspect", str(tmp_path / "t.json"), code=code)
    assert shown.count(b"\x1b[?25l") == shown.count(b"\x1b[?25h"), shown


def on_a_terminal(*words: str, code: int) -> bytes:
    """What the console script writes to a terminal of its own."""
    ours, theirs = pty.openpty()
    argv = [sys.executable, "-c", "from imagebuilder.cli import main; main()", *words]
    environment = {**os.environ, "TERM": "xterm"}
    with subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as child:
        os.close(theirs)
        shown = b""
        while data := _read(ours):
            shown += data
        assert child.wait(30) == code, shown
    os.close(ours)
    return shown


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # EIO: nobody has the other end any more
        return b""
