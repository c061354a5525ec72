"""The functions that Go's template language brings along: eq, and, index, len, printf and so on (funcs.go of
text/template), and how a function is declared and its arguments are checked.
"""

from __future__ import annotations

import html
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from imagebuilder.gotemplate.format import kind, sprint, sprintf, sprintln

MAX_LENGTH = 2**20
"""Characters that one value, or the whole result, may have."""


@dataclass(frozen=True)
class Signature:
    """A function of templates. `parameters` are the types of its arguments (object: any), the last `optional` of them
    may be left out; `rest` is the type of any number of further ones. `call` raises ValueError for what is wrong."""

    call: Callable[..., Any]
    parameters: tuple[type, ...] = ()
    optional: int = 0
    rest: type | None = None

    def check(self, arguments: Sequence[Any]) -> None:
        """Raises ValueError when number or types don't fit."""
        least, most = len(self.parameters) - self.optional, len(self.parameters)
        if len(arguments) < least or (self.rest is None and len(arguments) > most):
            wanted = f"at least {least}" if self.rest else f"{least}" if least == most else f"{least} to {most}"
            raise ValueError(f"takes {wanted} argument{'' if wanted.endswith(' 1') or wanted == '1' else 's'}, "
                             f"got {len(arguments)}")  # fmt: skip
        for number, value in enumerate(arguments):
            wanted_type = self.parameters[number] if number < most else self.rest
            if wanted_type not in (object, None, type(value)):
                names = {str: "a string", int: "a number"}
                raise ValueError(f"argument {number + 1} must be {names.get(wanted_type, wanted_type)}, "
                                 f"got {_named(value)}")  # fmt: skip


def _named(value: Any) -> str:
    return "nil" if value is None else f"the {kind(value)} {sprint([value])[:60]}"


def truth(value: Any) -> bool:
    """Go's truth: false, 0, nil and what is empty are not."""
    return bool(value)


def _comparable(first: Any, second: Any) -> None:
    basic = (str, int, float, bool)
    if not isinstance(first, basic) or type(first) is not type(second):
        raise ValueError(f"can't compare {_named(first)} with {_named(second)}")


def _equal(first: Any, *others: Any) -> bool:
    if not others:
        raise ValueError("takes at least 2 arguments, got 1")
    for other in others:
        if first is None or other is None:
            if first is other:
                return True
            continue
        _comparable(first, other)
        if first == other:
            return True
    return False


def _less(first: Any, second: Any) -> bool:
    _comparable(first, second)
    if isinstance(first, bool):
        raise ValueError("can't put true and false in order")
    return bool(first < second)


def _index(value: Any, *steps: Any) -> Any:
    for step in steps:
        if isinstance(value, Mapping):
            value = value.get(step if isinstance(step, str) else sprint([step]), "")
            continue
        items = value.encode("utf-8", "replace") if isinstance(value, str) else value
        if not isinstance(items, (bytes, list, tuple)):
            raise ValueError(f"{_named(value)} has no entries")
        value = items[_within(step, len(items), "index")]
    return value


def _within(step: Any, length: int, what: str, extra: int = 0) -> int:
    if not isinstance(step, int) or isinstance(step, bool):
        raise ValueError(f"the {what} must be a number, got {_named(step)}")
    if not 0 <= step < length + extra:
        raise ValueError(f"the {what} {step} is out of range: there are {length}")
    return step


def _slice(value: Any, *bounds: Any) -> Any:
    items = value.encode("utf-8", "replace") if isinstance(value, str) else value
    if not isinstance(items, (bytes, list, tuple)) or len(bounds) > (2 if isinstance(value, str) else 3):
        raise ValueError(f"{_named(value)} can't be sliced so")
    numbers = [_within(bound, len(items), "bound", 1) for bound in bounds]
    start, end = (*numbers, 0)[0], (numbers[1] if len(numbers) > 1 else len(items))
    if start > end:
        raise ValueError(f"the first bound {start} is greater than the second, {end}")
    part = items[start:end]
    return part.decode("utf-8", "replace") if isinstance(part, bytes) else part


def _length(value: Any) -> int:
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace"))
    if not isinstance(value, (list, tuple, Mapping)):
        raise ValueError(f"{_named(value)} has no length")
    return len(value)


def _as_text(values: Sequence[Any]) -> str:
    return bounded(sprint(values))


def bounded(text: str) -> str:
    """The text, if it is not too long; else ValueError."""
    if len(text) > MAX_LENGTH:
        raise ValueError(f"the result is longer than {MAX_LENGTH} characters")
    return text


def _html(*values: Any) -> str:
    text = html.escape(_as_text(values), quote=False).replace('"', "&#34;").replace("'", "&#39;")
    return text.replace("\0", "\ufffd")


def _js(*values: Any) -> str:
    named = {"\\": "\\\\", "'": "\\'", '"': '\\"'}

    def escape(char: str) -> str:
        if char in named:
            return named[char]
        if char in "<>&=" or ord(char) < 0x20 or not (char.isprintable() or ord(char) > 0xFFFF):
            return f"\\u{ord(char):04X}"
        return char

    return "".join(map(escape, _as_text(values)))


def _printf(doubt: Callable[[str], None]) -> Callable[..., str]:
    def printf(pattern: str, *values: Any) -> str:
        text, mistakes = sprintf(pattern, values, MAX_LENGTH)
        for mistake in mistakes:
            doubt(f"printf writes '{mistake}': its pattern and its arguments don't fit together")
        return text

    return printf


def builtins(doubt: Callable[[str], None]) -> dict[str, Signature]:
    """The functions by name. `doubt` hears of what Go takes in silence. `and` and `or` are called with values here;
    the evaluator stops at the first that decides."""
    return {
        "and": Signature(lambda *values: next((v for v in values if not truth(v)), values[-1]), (object,), rest=object),
        "or": Signature(lambda *values: next((v for v in values if truth(v)), values[-1]), (object,), rest=object),
        "not": Signature(lambda value: not truth(value), (object,)),
        "eq": Signature(_equal, (object,), rest=object),
        "ne": Signature(lambda a, b: not _equal(a, b), (object, object)),
        "lt": Signature(_less, (object, object)),
        "le": Signature(lambda a, b: _equal(a, b) or _less(a, b), (object, object)),
        "gt": Signature(lambda a, b: not _equal(a, b) and not _less(a, b), (object, object)),
        "ge": Signature(lambda a, b: not _less(a, b), (object, object)),
        "index": Signature(_index, (object,), rest=object),
        "slice": Signature(_slice, (object,), rest=object),
        "len": Signature(_length, (object,)),
        "print": Signature(lambda *values: _as_text(values), rest=object),
        "println": Signature(lambda *values: bounded(sprintln(values)), rest=object),
        "printf": Signature(_printf(doubt), (str,), rest=object),
        "html": Signature(_html, rest=object),
        "js": Signature(_js, rest=object),
        "urlquery": Signature(lambda *values: urllib.parse.quote_plus(_as_text(values)), rest=object),
    }
