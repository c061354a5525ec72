"""A boot command's text as tokens: Packer's grammar (plugin SDK, `bootcommand/boot_command.pigeon`), and `<waitfor>`.

Pure, total and linear in the text: whatever the text is, the outcome is a `BootCommand` that says what is
wrong with it. What Packer types as it stands although it looks like a key or a wait is typed here too, and said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from imagebuilder.options import seconds
from imagebuilder.suggestion import did_you_mean

SPECIAL_KEYS = (
    "bs", "del", "enter", "esc", "return", "tab", "up", "down", "left", "right", "spacebar", "insert", "home", "end",
    "pageUp", "pageDown", "menu", "f1", "f2", "f3", "f4", "f5", "f6", "f7", "f8", "f9", "f10", "f11", "f12",
    "leftAlt", "leftCtrl", "leftShift", "leftSuper", "leftCommand", "leftOption",
    "rightAlt", "rightCtrl", "rightShift", "rightSuper", "rightCommand", "rightOption",
)  # fmt: skip

WAITFOR_TIMEOUT = 300.0  # seconds
LONGEST_WAIT = 86400.0  # seconds
LONGEST_TEXT = 32768  # characters; a boot command has a few hundred

_DURATION = r"(?:-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?(?:ns|us|µs|ms|s|m|h))++"
_SPECIAL = "|".join(sorted(map(re.escape, SPECIAL_KEYS), key=len, reverse=True))
_TOKEN = re.compile(
    rf"""  <wait (?P<wait> {_DURATION} | 0 | [1-9][0-9]*+ )? >
    | <waitfor \s++ (?P<quote>["']) (?P<waited> (?: \\. | (?!(?P=quote))[^\\] ){{0,500}} ) (?P=quote)
          (?: \s++ (?P<limit> [^\s<>]{{1,40}} ) )? \s*+ >
    | <(?P<held> .) (?P<toggle> [oO][nN] | [oO][fF][fF] ) >
    | <(?P<special> (?i:{_SPECIAL}) ) (?P<action> (?i:on|off) )? >
    | (?P<character> .)
    """,
    re.VERBOSE | re.DOTALL,
)
_LOOKS_LIKE_A_TOKEN = re.compile(r"<\s{0,3}[A-Za-z][\w.+-]{0,30}(?:\s{1,3}[\w.+-]{1,20})?\s{0,3}>")
_LOOKS_LIKE_WAITFOR = re.compile(r"<waitfor(?![A-Za-z0-9])", re.IGNORECASE)
_OTHER_NAMES = {
    "escape": "esc", "backspace": "bs", "delete": "del", "space": "spacebar", "pgup": "pageUp", "pgdn": "pageDown",
    "ins": "insert", "ctrl": "leftCtrl", "control": "leftCtrl", "alt": "leftAlt", "shift": "leftShift",
    "win": "leftSuper", "super": "leftSuper", "ret": "return", "sleep": "wait", "cr": "enter", "newline": "enter",
}  # fmt: skip


class Action(StrEnum):
    """What happens to a key."""

    PRESS = "press"  # down and up
    ON = "on"  # down
    OFF = "off"  # up


@dataclass(frozen=True)
class Key:
    """A key: `name` is one character as it is to appear, or a name of SPECIAL_KEYS in lower case."""

    name: str
    action: Action
    offset: int


@dataclass(frozen=True)
class Wait:
    seconds: float
    offset: int


@dataclass(frozen=True)
class WaitFor:
    """Until the text stands on the screen or came over the serial line."""

    text: str
    timeout: float  # seconds
    offset: int


Token = Key | Wait | WaitFor


@dataclass(frozen=True)
class Remark:
    """Something wrong or doubtful at one place of the text; `offset` counts characters from 0."""

    message: str
    offset: int
    hint: str | None = None

    def __str__(self) -> str:
        return f"{self.message} (character {self.offset + 1})" + (f"; {self.hint}" if self.hint else "")


@dataclass(frozen=True)
class BootCommand:
    """What is to be typed. With `problems` it can't be; `warnings` is what is probably not meant."""

    text: str
    tokens: tuple[Token, ...]
    problems: tuple[Remark, ...] = ()
    warnings: tuple[Remark, ...] = ()


def parse(text: str) -> BootCommand:
    """Read a boot command. Never raises: what is wrong stands in `problems`."""
    if len(text) > LONGEST_TEXT:
        return BootCommand(text, (), (Remark(f"{len(text)} characters are too many to type", LONGEST_TEXT),))
    parser = _Parser(text)
    tokens = tuple(parser.tokens())
    warnings = [*parser.warnings, *_unreleased(tokens), *_untypable(tokens)]
    return BootCommand(text, tokens, tuple(parser.problems), tuple(sorted(warnings, key=lambda remark: remark.offset)))


def typable(character: str) -> bool:
    """Whether there is a key for it on a US keyboard."""
    return " " <= character <= "~" or character in "\n\t"


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self.problems: list[Remark] = []
        self.warnings: list[Remark] = []

    def tokens(self) -> Iterator[Token]:
        position = 0
        while position < len(self._text):
            found = _TOKEN.match(self._text, position)
            assert found is not None  # the last alternative takes any character
            yield from self._token(found)
            position = found.end()

    def _token(self, found: re.Match[str]) -> Iterator[Token]:
        offset, group = found.start(), found.groupdict()
        if group["character"] is not None:
            if group["character"] == "<":
                self._look_closer(offset)
            yield Key(group["character"], Action.PRESS, offset)
        elif group["held"] is not None:
            yield Key(group["held"], Action(group["toggle"].lower()), offset)
        elif group["special"] is not None:
            yield Key(group["special"].lower(), Action((group["action"] or "press").lower()), offset)
        elif group["waited"] is not None:
            yield from self._waitfor(group["waited"], group["limit"], offset)
        else:
            yield from self._wait(group["wait"], offset)

    def _wait(self, length: str | None, offset: int) -> Iterator[Token]:
        wait = self._seconds(length if length is None or not length.isdigit() else f"{length}s", offset, 1.0)
        if wait is not None and wait < 0:
            self.problems.append(Remark(f"can't wait a negative time: '<wait{length}>'", offset))
        elif wait is not None:
            yield Wait(wait, offset)

    def _waitfor(self, quoted: str, limit: str | None, offset: int) -> Iterator[Token]:
        text = re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL)
        timeout = self._seconds(limit, offset, WAITFOR_TIMEOUT)
        if not text.strip():
            self.problems.append(Remark("'<waitfor>' waits for no text", offset))
        elif timeout is not None and timeout <= 0:
            self.problems.append(Remark(f"'{limit}' is no time to wait for '{text}'", offset))
        elif timeout is not None:
            yield WaitFor(text, timeout, offset)

    def _seconds(self, duration: str | None, offset: int, default: float) -> float | None:
        if duration is None:
            return default
        try:
            value = seconds(duration)
        except ValueError as error:
            self.problems.append(Remark(str(error), offset))
            return None
        if value > LONGEST_WAIT:
            self.problems.append(Remark(f"can't wait longer than a day: '{duration[:40]}'", offset))
            return None
        return value

    def _look_closer(self, offset: int) -> None:
        """A '<' that begins no token: say so when it looks as if it should."""
        if _LOOKS_LIKE_WAITFOR.match(self._text, offset):
            hint = "write it like '<waitfor \"login:\">' or '<waitfor \"login:\" 90s>'"
            self.problems.append(Remark("'<waitfor' is not followed by a text in quotes and a '>'", offset, hint))
        elif found := _LOOKS_LIKE_A_TOKEN.match(self._text, offset):
            self.warnings.append(_unknown(found.group(), offset))


def _unknown(token: str, offset: int) -> Remark:
    name = re.sub(r"\s", "", token[1:-1])
    if re.fullmatch(r"(?i:wait)[-\d.]*(?:ns|us|ms|s|m|h)?", name):
        length = re.sub(r"^0+(?=\d)", "", name[4:].lstrip("-"))
        unit = "s" if re.fullmatch(r"[\d.]+", length) else ""
        return Remark(f"'{token}' is no wait: it is typed as it stands", offset, f"write '<wait{length}{unit}>'")
    suffix = re.search(r"(?i:on|off)$", name)
    base = name[: suffix.start()] if suffix and suffix.start() else name
    near = _OTHER_NAMES.get(base.lower())
    if near is not None:
        hint: str | None = f"did you mean '<{near}{suffix.group().capitalize() if base != name and suffix else ''}>'?"
    else:
        hint = did_you_mean(name, [*SPECIAL_KEYS, "wait"]) or did_you_mean(base, SPECIAL_KEYS)
    return Remark(f"'{token}' is no key: it is typed as it stands", offset, hint)


def _unreleased(tokens: tuple[Token, ...]) -> Iterator[Remark]:
    """Keys held and never let go, and keys let go that were not held."""
    held: dict[str, int] = {}
    for token in tokens:
        if isinstance(token, Key) and token.action is Action.ON:
            held.setdefault(token.name, token.offset)
        elif isinstance(token, Key) and token.action is Action.OFF and held.pop(token.name, None) is None:
            yield Remark(f"the key '{token.name}' is released but was not held", token.offset)
    for name, offset in held.items():
        yield Remark(f"the key '{name}' is never released: it is at the end", offset, f"write '<{name}Off>'")


def _untypable(tokens: tuple[Token, ...]) -> Iterator[Remark]:
    seen: set[str] = set()
    for token in tokens:
        if isinstance(token, Key) and len(token.name) == 1 and not typable(token.name) and token.name not in seen:
            seen.add(token.name)
            shown = (
                f"'{token.name}' (U+{ord(token.name):04X})" if token.name.isprintable() else f"U+{ord(token.name):04X}"
            )
            yield Remark(f"{shown} is on no US keyboard: it is left out", token.offset)
