"""How far an installation of packages is, read from what mmdebstrap, apt and dpkg print."""

from __future__ import annotations

import re
from collections.abc import Callable

_STAGES = (
    ("I: running apt-get update", 0, "Fetching package lists"),
    ("I: downloading packages", 4, "Downloading the base system"),
    ("I: extracting archives", 10, "Extracting the base system"),
    ("I: installing essential", 17, "Installing the base system"),
    ("I: installing remaining", 30, "Downloading and installing packages"),
    ("imgbuild: configuring", 80, "Configuring"),
    ("imgbuild: sealing", 94, "Removing what belongs to one machine only"),
    ("imgbuild: writing", 95, "Writing the root file system"),
)
_FETCH = re.compile(r"Need to get ([\d.,]+ [kMG]?B)(?:/\S+ \S+)? of archives")
_COUNT = re.compile(r"\d+ upgraded, (\d+) newly installed")


class InstallProgress:
    """Follows the output line by line; keeps all of it for a failure's report."""

    def __init__(self, update: Callable[[float], None], message: Callable[[str], None]) -> None:
        self._update, self._message = update, message
        self._from, self._to = 0.0, 4.0  # percent: where this stage begins and ends
        self._steps, self._done, self._told = 0, 0, False
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        """One line of output."""
        self.lines.append(text)
        for index, (mark, percent, name) in enumerate(_STAGES):
            if text.startswith(mark):
                self._begin(percent, _STAGES[index + 1][1] if index + 1 < len(_STAGES) else 100, name)
                return
        if found := _COUNT.match(text):
            self._steps, self._done = 2 * int(found[1]), 0
        elif (found := _FETCH.match(text)) and self._steps and not self._told:
            self._told = True  # apt says it again when it installs
            self._message(f"{self._steps // 2} packages, {found[1]} to download")
        elif text.startswith(("Unpacking ", "Setting up ")) and self._steps:
            self._done += 1
            self._update(self._from + (self._to - self._from) * min(self._done / self._steps, 1))

    def _begin(self, percent: float, to: float, name: str) -> None:
        self._from, self._to = percent, to
        self._done, self._told = 0, False
        self._message(name)
        self._update(percent)


_ADVICE = (
    (
        r"NO_PUBKEY|is not signed|EXPKEYSIG",
        "the keyring lacks the key of that archive: install a newer keyring package",
    ),
    (r"Unable to locate package (\S+)", "this suite has no package '{0}': correct 'packages'"),
    (r"Temporary failure resolving|Could not resolve", "the mirror's name is not found: is there a network?"),
    (
        r"Could not connect to|Connection (?:refused|timed out)",
        "the mirror doesn't answer: name another with 'mirrors'",
    ),
    (r"does not have a Release file|404 +Not Found", "the mirror lacks this suite: correct 'suite' or 'mirrors'"),
    (r"No space left on device", "free some space, or some memory: packages are installed in memory"),
    (r"not valid yet|Release file .* expired", "the clock of this machine is wrong, or the mirror is out of date"),
)


def advice(output: str) -> str | None:
    """What to do about a failed installation; None when its output doesn't tell."""
    for pattern, hint in _ADVICE:
        if found := re.search(pattern, output):
            return hint.format(*found.groups())
    return None


def first_errors(output: str) -> str:
    """The lines that say why; the last ones when none does."""
    lines = [line for line in output.splitlines() if re.match(r"E: |dpkg: error|.*: (?:error|failed)", line)]
    return "\n".join(lines[:5] or output.strip().splitlines()[-10:])
