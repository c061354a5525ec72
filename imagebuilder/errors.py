"""Every error that a person is meant to read.

    ImgbuildError                 something failed; exit code 1
    ├── TemplateError             the user's input is wrong: all problems of a file at once; exit code 2
    ├── CommandError              a program of the host failed: argv, exit code, last output
    ├── GuestError                the guest failed: it died, panicked, could not be reached, a script failed in it
    ├── ChecksumError             bytes are not what they should be
    └── StoreError                a cache, an output or a file of ours can't be read or written

Libraries raise; only `cli` prints and exits. KeyboardInterrupt (Ctrl-C, SIGTERM, SIGHUP) is not an error: exit
code 130.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Position:
    """A place in a file the user wrote; line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong (or, as a warning, doubtful) in the user's input, and what to type instead."""

    message: str
    position: Position | None = None
    hint: str | None = None

    def __str__(self) -> str:
        where = f"{self.position}: " if self.position else ""
        return f"{where}{self.message}" + (f"; {self.hint}" if self.hint else "")


class ImgbuildError(Exception):
    """What happened in one sentence, and in `hint` what to do about it."""

    exit_code = 1
    told = False  # whether the person has read it already

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class TemplateError(ImgbuildError):
    """The input is wrong; `problems` holds everything that is wrong with it."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | str, *, hint: str | None = None) -> None:
        self.problems = (Problem(problems),) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)), hint=hint)


class CommandError(ImgbuildError):
    """A host program ended with an error; `returncode` is negative when a signal ended it."""

    def __init__(self, argv: Sequence[str], returncode: int, output: str, *, hint: str | None = None) -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.output = output
        how = f"was ended by signal {-returncode}" if returncode < 0 else f"failed with exit code {returncode}"
        last = "\n".join(output.strip().splitlines()[-10:])
        super().__init__(f"'{self.argv[0]}' {how}" + (f":\n{last}" if last else ""), hint=hint)

    @property
    def command_line(self) -> str:
        """The command as it can be pasted into a shell."""
        return shlex.join(self.argv)


class GuestError(ImgbuildError):
    """The guest died, panicked, can't be reached, or something in it failed.

    `lost`: only the connection went away, as it does when the guest reboots; trying again may help.
    """

    def __init__(self, message: str, *, hint: str | None = None, lost: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.lost = lost


class ChecksumError(ImgbuildError):
    """A file's content is not what its checksum says."""


class StoreError(ImgbuildError):
    """A cache, an output directory or a file of ours can't be read or written."""
