"""What a restored guest is told: the command as its shell would run it, with a date that only notes."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import cast

import pytest

from imagebuilder.builders.wake import program, wake
from imagebuilder.plugins import Communicator
from imagebuilder.ui import Event, Ui

DATE = """#!/bin/sh
echo "date $*" >> "$NOTES"
case "$*" in REFUSED) exit 1;; esac
"""
SUDO = '#!/bin/sh\necho "sudo $1" >> "$NOTES"\nshift\nexec "$@"\n'


class Guest:
    """Runs commands by a shell that finds nothing but what lies in `programs`: never this machine's date."""

    def __init__(self, programs: Path) -> None:
        self.programs, self.notes = programs, programs / "notes"
        for tool in ("sh", "rm", "chmod"):
            (programs / tool).symlink_to(str(shutil.which(tool)))
        self.has("id", "#!/bin/sh\necho 0\n")
        self.has("date", DATE.replace("REFUSED", "nothing"))

    def has(self, program: str, text: str) -> None:
        (self.programs / program).unlink(missing_ok=True)
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


def warned(guest: object) -> list[str]:
    """The first words of what the person is told."""
    events: list[Event] = []
    wake(cast(Communicator, guest), Ui("test", events.append))
    return [" ".join(event.text.split()[:3]) for event in events]


NO_CLOCK, NO_SEED = "The guest's clock", "The guest could"


FRACTION, WHOLE, BUSYBOX = "date -u -s @NOW.000", "date -u -s @NOW", "date -u -D %s -s NOW"


@pytest.mark.parametrize(
    ("refused", "said"),
    [("nothing", [FRACTION]), ("*@*.*", [FRACTION, WHOLE]), ("*@*", [FRACTION, WHOLE, BUSYBOX])],
    ids=["coreutils", "no-fractions", "old-busybox"],
)
def test_every_date_is_told_now_in_its_own_words(guest: Guest, refused: str, said: list[str]) -> None:
    guest.has("date", DATE.replace("REFUSED", refused))
    assert warned(guest) == []
    assert guest.said() == said


def test_a_user_asks_sudo_which_asks_nothing(guest: Guest) -> None:
    guest.has("id", "#!/bin/sh\necho 1000\n")
    guest.has("sudo", SUDO)
    assert warned(guest) == []
    assert guest.said() == ["sudo -n", FRACTION]


def test_what_fails_is_told_and_no_error(guest: Guest) -> None:
    guest.has("date", DATE.replace("REFUSED", "*"))
    assert warned(guest) == [NO_CLOCK]
    guest.has("chmod", "#!/bin/sh\nexit 1\n")
    assert warned(guest) == [NO_CLOCK, NO_SEED]
    guest.has("date", DATE)
    assert warned(guest) == [NO_SEED]
    guest.has("perl", "#!/bin/sh\nexit 0\n")
    assert warned(guest) == []


def test_a_user_without_sudo_can_do_neither(guest: Guest) -> None:
    guest.has("id", "#!/bin/sh\necho 1000\n")
    assert warned(guest) == [NO_CLOCK, NO_SEED]


def test_a_connection_that_is_lost_meanwhile_did_nothing() -> None:
    class Lost:
        def run(self, command: str, **_: object) -> int | None:
            return None

    assert warned(Lost()) == [NO_CLOCK, NO_SEED]


@pytest.mark.skipif(os.geteuid() != 0 or platform.machine() != "x86_64", reason="needs root on x86-64")
def test_the_program_reseeds_the_kernel_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "reseed"
    path.write_bytes(program())
    path.chmod(0o700)
    for device, status in (("/dev/urandom", 0), ("/dev/null", 1)):
        with open(device, "rb") as stdin:  # noqa: PTH123
            assert subprocess.run([path], stdin=stdin).returncode == status
