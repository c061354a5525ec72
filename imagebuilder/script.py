"""Scripts made of a template's lines, for guests and for this machine: which of the lines failed, and what they see.

A script for a POSIX shell keeps count of the line that it is at. The marks stand in front of the lines, so that line
numbers in a shell's own messages stay right, and only where a command begins; they change neither `$?` nor the exit
status. Where that can't be promised there are none.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import BeforeValidator

from imagebuilder import process
from imagebuilder.options import Int, kind
from imagebuilder.plugins import BuildContext

SHEBANG = "/bin/sh -e"

_SHELLS = frozenset({"sh", "ash", "bash", "dash", "ksh", "mksh"})
_OTHERS = re.compile(r"\b(python[\d.]*|perl|ruby|node|php|lua|pwsh|powershell|expect|fish|t?csh|zsh|cat|tee)\b")
_JUDGES = ("sh", "bash")  # both must take a text for complete: what is a word to one may open a block for the other
_PLAIN = re.compile(r"[\w./:=@%+,~ -]*")
_RESERVED = frozenset({
    "if", "then", "else", "elif", "fi", "do", "done", "case", "esac", "while", "until", "for", "in", "select",
    "function", "time", "coproc", "!", "{", "}", "[[",
})  # fmt: skip
_CLOBBERED = re.compile(r"PIPESTATUS|pipestatus|\$_\b|\$\{_\}|BASH_COMMAND|\bDEBUG\b|__imgbuild")
_STATUS = re.compile(r"\$\{?\?|\b(exit|return)\s*($|[;&|)}\n])")
_TRACED = re.compile(r"(^|[\s'\"])-[A-Za-z]*x[A-Za-z]*(?=$|[\s'\"])|xtrace")

_FAILED = "__imgbuild_failed "
_TRAP = f"trap 'case __imgbuild$? in __imgbuild0) ;; *) echo \"{_FAILED}$__imgbuild_line\" >&2;; esac' EXIT; "
_COUNT = "__imgbuild_at() { __imgbuild_s=$?; __imgbuild_line=$1; return $__imgbuild_s; }; "
_MARKS = re.compile(
    rf"(__imgbuild_line=\d+; ({re.escape(_COUNT)})?{re.escape(_TRAP)})?__imgbuild_(at \d+ && :|line=\d+); "
)


def _codes(value: Any) -> Any:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"must be a list of exit codes, got {kind(value)}")
    return tuple(value)


ExitCodes = Annotated[tuple[Int, ...], BeforeValidator(_codes)]


@dataclass(frozen=True)
class InlineScript:
    """A script and the lines that it was made of. `starts` are the numbers (from 1) of lines with a mark, ascending."""

    text: str
    lines: tuple[str, ...]
    starts: tuple[int, ...] = ()

    def place(self, number: int | None) -> str:
        """Where it failed, as the beginning of a sentence, and what stands there."""
        if number is None or number not in self.starts:
            return "The inline script" if len(self.lines) > 1 else f"Inline line 1 ('{_shortened(self.lines[0])}')"
        after = [start for start in self.starts if start > number]
        last = (after[0] if after else len(self.lines) + 1) - 1
        lines = f"Inline line {number}" if last == number else f"Inline lines {number} to {last}"
        return f"{lines} ('{_shortened(self.lines[number - 1])}')"


def _shortened(line: str) -> str:
    first = line.strip().split("\n")[0]
    return first if len(first) <= 100 else first[:97] + "..."


def inline(lines: Sequence[str], shebang: str | None = None, command: str = "") -> InlineScript:
    """The script of these lines. `shebang` None: the first line may have one, else `/bin/sh -e`. `command` is how it
    will be started, as far as that is known."""
    body = list(lines)
    head = f"#!{shebang or SHEBANG}"
    if shebang is None and body and body[0].startswith("#!"):
        head, _, rest = body[0].partition("\n")
        body[0] = rest
    starts = _starts(head, body, command)
    if starts:
        mark = (
            "__imgbuild_line={}; "
            if _TRACED.search(f"{head} {command} {' '.join(body)}")
            else "__imgbuild_at {} && :; "
        )
        for number in starts:
            body[number - 1] = mark.format(number) + body[number - 1]
        body[0] = f"__imgbuild_line={starts[0]}; " + ("" if "line" in mark else _COUNT) + _TRAP + body[0]
    return InlineScript("\n".join([head, *body]) + "\n", tuple(lines), starts)


def _starts(head: str, body: Sequence[str], command: str) -> tuple[int, ...]:
    """Lines that may have a mark: none unless a POSIX shell runs this, and the marks can't be noticed."""
    words = head.removeprefix("#!").split()
    if words and PurePosixPath(words[0]).name in ("env", "busybox"):
        words = words[1:]
    text = "\n".join(body)
    if not words or PurePosixPath(words[0]).name not in _SHELLS or _OTHERS.search(_untemplated(command)):
        return ()
    if _CLOBBERED.search(text) or (_TRACED.search(f"{head} {command} {text}") and _STATUS.search(text)):
        return ()
    return _complete(tuple(body))


def _untemplated(command: str) -> str:
    return re.sub(r"\{\{.*?\}\}", "", command)


@functools.lru_cache(maxsize=32)
def _complete(body: tuple[str, ...]) -> tuple[int, ...]:
    """Numbers of the lines in front of which no command is unfinished."""
    doubtful = [number for number, line in enumerate(body, 1) if not _is_plain(line)]
    answers = _judge(body, doubtful)
    if not all(answers.values()):  # something is open: then a plain line may be part of it, or end it
        answers = _judge(body, range(1, len(body) + 1))
    complete = [not line.endswith("\\") and answers.get(number, True) for number, line in enumerate(body, 1)]
    return (1, *(number for number in range(2, len(body) + 1) if complete[number - 2]))


def _is_plain(line: str) -> bool:
    """A single simple command without quotes or operators: it ends where it ends."""
    return _PLAIN.fullmatch(line) is not None and not _RESERVED.intersection(line.split())


def _judge(body: Sequence[str], numbers: Sequence[int]) -> dict[int, bool]:
    """Whether the text up to each of these lines is complete: it parses, and with a closing parenthesis after it, which
    an open here-document would swallow, it does not. It is parsed, never run; it may hold secrets, so it goes by files.
    """
    if not numbers:
        return {}
    script = (
        'cd "$1" && shift && for text in *.whole; do for shell; do '
        '"$shell" -n "./$text" 2>/dev/null && ! "$shell" -n "./${text%whole}broken" 2>/dev/null || continue 2; '
        'done; echo "$text"; done'
    )
    with process.temporary_directory() as directory:
        for number in numbers:
            text = "\n".join(body[:number])
            for name, end in (("whole", "\n"), ("broken", "\n)\n")):
                (directory / f"{number}.{name}").write_text(text + end, encoding="utf-8", errors="surrogateescape")
        said = process.run(["sh", "-c", script, "sh", directory, *_JUDGES], timeout=60).stdout.split()
    return {number: f"{number}.whole" in said for number in numbers}


class Watch:
    """Takes the marks out of a script's output; remembers which line failed, and what was said last.

    A second one, for standard error, is given the first as `main` and remembers there.
    """

    def __init__(self, show: Callable[[str], None], main: Watch | None = None) -> None:
        self._show, self._main = show, main or self
        self.failed: int | None = None
        self.last: list[str] = []

    def __call__(self, line: str) -> None:
        line = _MARKS.sub("", line)  # bash quotes a line with a syntax error
        before, found, number = line.rpartition(_FAILED)
        if found and number.isdigit():
            self._main.failed, line = int(number), before
        if "__imgbuild" in line or (found and (not line or line.startswith("+"))):
            return
        self._main.last = [*self._main.last[-4:], line]
        self._show(line)

    def tail(self) -> str:
        """What was said last, to follow a sentence."""
        return ":\n" + "\n".join(self.last) if self.last else ""


def variables(
    context: BuildContext, http_address: str, listed: Sequence[str] = (), mapped: Mapping[str, str] | None = None
) -> dict[str, str]:
    """What a script finds in its environment, sorted by name: ours, then `environment_vars`, then `env`."""
    found = {"PACKER_BUILD_NAME": context.build_name, "PACKER_BUILDER_TYPE": context.builder_type}
    if http_address:
        ip, _, port = http_address.rpartition(":")
        found |= {"PACKER_HTTP_ADDR": http_address, "PACKER_HTTP_IP": ip, "PACKER_HTTP_PORT": port}
    for entry in listed:
        name, _, value = entry.partition("=")
        found[name] = value
    return dict(sorted({**found, **(mapped or {})}.items()))


def assignments(environment: Mapping[str, str], form: str) -> str:
    """The variables one after the other, each as the two `%s` of the form: name and quoted value."""
    before, between, after = form.split("%s", 2)
    pairs = [(name, value.replace("'", "'\"'\"'")) for name, value in environment.items()]
    return "".join(f"{before}{name}{between}{value}{after}" for name, value in pairs)


def environment_problems(listed: Sequence[str], form: str) -> Iterator[tuple[str, str]]:
    """What is wrong with environment_vars and env_var_format."""
    for entry in listed:
        if not entry.partition("=")[0].strip() or "=" not in entry:
            yield "environment_vars", f"'{entry.partition('=')[0]}' is not of the form 'NAME=value'"
    if form and form.count("%s") != 2:
        yield "env_var_format", "needs two %s: one for the name, one for the value"


def missing(path: str) -> str | None:
    """What is wrong with a script file of this machine."""
    if not path or not Path(path).is_file():
        return f"there is no file '{path}'"
    return None if os.access(path, os.R_OK) else f"'{path}' can't be read"
