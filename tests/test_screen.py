"""What a guest shows, and waiting for it: with a monitor that has no screen, and with real guests."""

from __future__ import annotations

import threading
import time
import zlib
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.console import glyphs, screen
from imagebuilder.console.screen import Where
from imagebuilder.errors import GuestError, StoreError
from imagebuilder.qemu.qmp import QmpError
from tests import prompts


class NoScreen:
    """A machine without a graphics device."""

    def execute(self, command: str, arguments: Any = None, timeout: float = 10) -> Any:
        raise QmpError("QEMU refused 'screendump': there is no console", "GenericError")

    def hmp(self, line: str) -> str:
        raise AssertionError


class OnePicture(NoScreen):
    """A machine that shows a grey screen of 16 by 16 pixels."""

    def execute(self, command: str, arguments: Any = None, timeout: float = 10) -> Any:
        assert command == "screendump"
        Path(arguments["filename"]).write_bytes(b"P6\n16 16\n255\n" + b"\x80" * 768)


def wait(text: str, log: Path, timeout: float = 5, check: Any = lambda: None) -> Where:
    return screen.wait_for_text(text, monitor=NoScreen(), serial_log=log, timeout=timeout, check=check)


@pytest.mark.parametrize(
    ("text", "lines", "found"),
    [
        ("boot: ", ["x", "boot:   "], True),
        ("boot: ", ["boot:"], True),
        ("kernel panic", ["the last words: kern", "el panic, they were"], True),
        ("Install  the system", ["Install", "the system"], True),
        ("Press Enter", ["PressEnter"], True),
        ("# ", ["a#b"], False),
        ("a b", ["ab"], False),
        ("login:", ["Login:"], False),
        ("x", [], False),
    ],
    ids=[
        "padded",
        "not padded",
        "broken at the edge",
        "on two lines",
        "spaces lost",
        "prompt",
        "short",
        "case",
        "nothing",
    ],
)
def test_stands_in(text: str, lines: list[str], found: bool) -> None:
    assert screen.stands_in(text, lines) is found


def test_what_stands_there_already_is_found(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    log.write_text("Debian\r\n\x1b[1mlogin: \x1b[0m")
    assert wait("login: ", log) is Where.SERIAL


def test_what_scrolled_away_is_not_found(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    log.write_text("login:\n" + "more\n" * 30)
    with pytest.raises(GuestError, match=r"did not show 'login:' within 0\.2 s"):
        wait("login:", log, 0.2)


def test_what_comes_is_found_however_much_it_is(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    log.touch()

    def write() -> None:
        time.sleep(0.3)
        log.write_text("READY to go\n" + "more\n" * 500)

    writer = threading.Thread(target=write)
    writer.start()
    assert wait("READY", log) is Where.SERIAL
    writer.join()


def test_the_error_quotes_what_was_shown(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    log.write_text("first\r\n\x1b[31mno kernel\x1b[0m\r\n")
    with pytest.raises(
        GuestError, match=r"'boot:' within 0\.1 s(.|\n)*serial line said:\n    first\n    no kernel"
    ) as caught:
        wait("boot:", log, 0.1)
    assert caught.value.hint and "waitfor" in caught.value.hint
    log.write_text("")
    with pytest.raises(GuestError, match="screen is empty"):
        wait("boot:", log, 0.1)


def test_waiting_ends_when_the_check_says_so(tmp_path: Path) -> None:
    def dead() -> None:
        raise GuestError("QEMU ended with exit code 1")

    with pytest.raises(GuestError, match="exit code 1"):
        wait("x", tmp_path / "none.log", 60, dead)


def test_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    assert screen.last_lines(log, 5) == []
    log.write_bytes(b"one\r\n\r\n\x1b[32mtwo\x1b[0m  \r\n10%\r20%\r\nthree")
    assert screen.last_lines(log, 3) == ["two", "20%", "three"]


def test_a_machine_without_a_screen(tmp_path: Path) -> None:
    assert screen.text(NoScreen()) == []
    with pytest.raises(GuestError):
        screen.screenshot(NoScreen(), tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_a_screenshot_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    screen.screenshot(OnePicture(), tmp_path / "x.png")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(StoreError, match="Can't write the screenshot"):
        screen.screenshot(OnePicture(), tmp_path / "missing" / "x.png")


# ---- real guests


@pytest.mark.qemu
def test_text_screen_of_isolinux(tmp_path: Path) -> None:
    iso = prompts.make_iso(tmp_path)
    with prompts.booted(tmp_path, "-cdrom", iso) as guest:
        assert guest.wait_for("Hello from the test") is Where.SCREEN
        assert guest.wait_for("boot: ") is Where.SCREEN
        lines = screen.text(guest.monitor)
        assert len(lines) == 25 and {len(line) for line in lines} == {80}
        assert any(line.startswith("ISOLINUX ") for line in lines)
        screen.screenshot(guest.monitor, tmp_path / "screen.png")
        content = (tmp_path / "screen.png").read_bytes()
        start = content.index(b"IDAT") + 4
        pixels = zlib.decompress(content[start : content.index(b"IEND") - 8])
        assert len(pixels) == 400 * (720 * 3 + 1) and any(pixels)
        with pytest.raises(GuestError, match=r"(?s)did not show 'login:'.*Hello from the test"):
            guest.wait_for("login:", 0.5)


@pytest.mark.qemu
def test_text_on_the_serial_line(tmp_path: Path) -> None:
    iso = prompts.make_iso(tmp_path, "SERIAL 0 115200\n" + prompts.PLAIN)
    with prompts.booted(tmp_path, "-vga", "none", "-cdrom", iso) as guest:
        guest.wait_for("boot:")
        guest.type("typed-text")
        assert guest.wait_for("typed-text") is Where.SERIAL
        assert "typed-text" in screen.last_lines(guest.serial, 1)[0]


@pytest.mark.qemu
@pytest.mark.skipif(len(glyphs.fonts()) < 100, reason="the host has no VGA BIOS to take a font from")
def test_graphics_screen_of_a_menu(tmp_path: Path) -> None:
    iso = prompts.make_iso(tmp_path, prompts.MENU)
    with prompts.booted(tmp_path, "-cdrom", iso) as guest:
        assert guest.wait_for("Install Test Linux") is Where.SCREEN
        guest.type("<tab> inst.ks=http://10.0.2.2:8000/ks.cfg")
        assert guest.wait_for("inst.ks=http://10.0.2.2:8000/ks.cfg") is Where.SCREEN
