"""A script of ours in the guest, as root: the user that the build logs in as need not be."""

from __future__ import annotations

import shlex


def as_root(script: str, *arguments: str) -> str:
    """The shell command that runs it: as it is for root, for others through sudo, which asks nothing. `$1`: the first
    argument."""
    words = ["sh", "-c", script, *(["sh", *arguments] if arguments else [])]
    command = shlex.join(words)
    return f'if [ "$(id -u)" = 0 ]; then {command}; else sudo -n {command}; fi'
