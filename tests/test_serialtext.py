"""The serial line as text."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagebuilder.console.serialtext import SerialLog, clean

CASES = {
    "colours": (b"\x1b[0;32mOK\x1b[0m started\r\n", "OK started\n"),
    "doubled return": (b"a\r\r\nb\r\n", "a\nb\n"),
    "menu drawn at places": (b"\x1b[2J\x1b[01;01HGRUB\x1b[04;02HInstall\x1b[05;02HRescue", "\n\nGRUB\nInstall\nRescue"),
    "written over": (b"10%\r20%\r30%\r\n", "30%\n"),
    "backspace": (b"lix\b \bnux\b\b", "lin"),
    "title": (b"\x1b]0;root@host\x07# ", "# "),
    "charset and keypad": (b"\x1b(Bx\x1b=\x1b>y\x1b7", "xy"),
    "unfinished": (b"login: \x1b[0", "login: "),
    "controls": (b"a\x00b\x07c\td", "abc\td"),
    "not UTF-8": (b"caf\xe9", "caf\N{REPLACEMENT CHARACTER}"),
    "UEFI shell": (b"\x1b[2J\x1b[06;:0HShell> ", "\n\nShell> "),
}


@pytest.mark.parametrize(("content", "text"), CASES.values(), ids=CASES)
def test_clean(content: bytes, text: str) -> None:
    assert clean(content) == text


def test_a_log_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "serial.log"
    log = SerialLog(path)
    assert not log.read() and log.text() == ""
    path.write_bytes(b"one\ntwo")
    assert log.read() and log.text() == "one\ntwo"
    assert not log.read()
    with path.open("ab") as file:
        file.write(b"\x1b[1mthree")
    assert log.read() and log.text() == "one\ntwothree"
    log.forget(1)
    assert log.text() == "twothree"
    path.write_bytes(b"anew")
    assert log.read() and log.text() == "anew"


def test_a_sequence_may_come_in_parts(tmp_path: Path) -> None:
    path = tmp_path / "serial.log"
    log = SerialLog(path)
    path.write_bytes(b"a\x1b[3")
    log.read()
    assert log.text() == "a"
    with path.open("ab") as file:
        file.write(b"1mb")
    log.read()
    assert log.text() == "ab"


def test_only_the_end_of_a_long_log_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "serial.log"
    path.write_bytes(b"x" * 300_000 + b"\nend")
    log = SerialLog(path)
    log.read()
    assert len(log.text()) == 65536 and log.text().endswith("\nend")
