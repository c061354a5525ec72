"""The clock of a guest that was restored: the command as its shell would run it, with a date that only notes."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import cast

import pytest

from imagebuilder.builders.reach import set_clock
from imagebuilder.plugins import Communicator

DATE = """#!/bin/sh
echo "date $*" >> "$NOTES"
case "$*" in REFUSED) exit 1;; esac
"""
SUDO = '#!/bin/sh\necho "sudo $1" >> "$NOTES"\nshift\nexec "$@"\n'


class Guest:
    """Runs commands by a shell that finds nothing but what lies in `programs`: never this machine's date."""

    def __init__(self, programs: Path) -> None:
        self.programs, self.notes = programs, programs / "notes"
        (programs / "sh").symlink_to(str(shutil.which("sh")))
        self.has("id", "#!/bin/sh\necho 0\n")
        self.has("date", DATE.replace("REFUSED", "nothing"))

    def has(self, program: str, text: str) -> None:
        (self.programs / program).write_text(text)
        (self.programs / program).chmod(0o755)

    def run(self, command: str, *, timeout: float | None = None, **_: object) -> int | None:
        environment = {"PATH": str(self.programs), "NOTES": str(self.notes)}
        done = subprocess.run(["/bin/sh", "-c", command], env=environment, capture_output=True, timeout=timeout)
        assert not done.stdout and not done.stderr
        return done.returncode

    def said(self) -> list[str]:
        """What its programs were told, with NOW for the time and NOW.000 for it with its fraction."""
        return [" ".join(map(_now, line.split())) for line in self.notes.read_text().splitlines()]


def _now(word: str) -> str:
    number = word.removeprefix("@")
    if not number.replace(".", "", 1).isdigit() or abs(float(number) - time.time()) > 300:
        return word
    return f"{'@' * word.startswith('@')}NOW{'.000' if '.' in number else ''}"


@pytest.fixture
def guest(tmp_path: Path) -> Guest:
    return Guest(tmp_path)


def clock_is_set(guest: Guest) -> bool:
    return set_clock(cast(Communicator, guest))


FRACTION, WHOLE, BUSYBOX = "date -u -s @NOW.000", "date -u -s @NOW", "date -u -D %s -s NOW"


@pytest.mark.parametrize(
    ("refused", "said"),
    [("nothing", [FRACTION]), ("*@*.*", [FRACTION, WHOLE]), ("*@*", [FRACTION, WHOLE, BUSYBOX])],
    ids=["coreutils", "no-fractions", "old-busybox"],
)
def test_every_date_is_told_now_in_its_own_words(guest: Guest, refused: str, said: list[str]) -> None:
    guest.has("date", DATE.replace("REFUSED", refused))
    assert clock_is_set(guest)
    assert guest.said() == said


def test_a_user_asks_sudo_which_asks_nothing(guest: Guest) -> None:
    guest.has("id", "#!/bin/sh\necho 1000\n")
    guest.has("sudo", SUDO)
    assert clock_is_set(guest)
    assert guest.said() == ["sudo -n", FRACTION]


@pytest.mark.parametrize(
    ("program", "text"),
    [("date", DATE.replace("REFUSED", "*")), ("id", "#!/bin/sh\necho 1000\n")],
    ids=["no-date-takes-it", "no-sudo"],
)
def test_a_clock_that_can_not_be_set_is_no_error(guest: Guest, program: str, text: str) -> None:
    guest.has(program, text)
    assert not clock_is_set(guest)


def test_a_connection_that_is_lost_meanwhile_did_not_set_it() -> None:
    class Lost:
        def run(self, command: str, **_: object) -> int | None:
            return None

    assert not set_clock(cast(Communicator, Lost()))
