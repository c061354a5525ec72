"""Whether the system that lets us in is the installed one, or an installer that runs an SSH server of its own."""

from __future__ import annotations

import shlex

_SIGNS = {
    "Anaconda": "[ -e /run/anaconda ] || [ -e /run/install ] || [ -e /tmp/anaconda.log ]",
    "the Debian installer": "[ -e /var/lib/cdebconf/questions.dat ] && [ -e /sbin/debian-installer ]",
    "Ubuntu's installer": "[ -e /run/subiquity ]",
    "YaST": "[ -e /etc/install.inf ]",
    "Agama": "[ -e /run/agama ] && grep -q root=live: /proc/cmdline",
}
_MARK = "imgbuild-installer: "


def question() -> str:
    """A cheap command whose output `answer` understands; on a system without a POSIX shell it just fails."""
    tests = "; ".join(f'if {test}; then echo "{_MARK}{name}"; fi' for name, test in _SIGNS.items())
    return f"sh -c {shlex.quote('exec 2>/dev/null; ' + tests)}"


def answer(output: str) -> str | None:
    """The installer's name, or None: this is an installed system."""
    for line in output.splitlines():
        if line.startswith(_MARK):
            return line.removeprefix(_MARK).strip()
    return None
