"""How Go's fmt package writes values: Print, Println and Printf with its verbs (Go package fmt).

Values are what a template knows: str, int, float, bool, None, lists and dicts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

MAX_WIDTH = 10_000
_DIRECTIVE = re.compile(r"%([-+# 0]*)(?:\[(\d+)\])?(\d+|\*)?(?:\.(\d+|\*)?)?(?:\[(\d+)\])?(.)?", re.DOTALL)
_PRECISION = re.compile(r"\.(\d+|\*)?(?:\[\d+\])?.?\Z", re.DOTALL)
_ESCAPES = {7: "\\a", 8: "\\b", 9: "\\t", 10: "\\n", 11: "\\v", 12: "\\f", 13: "\\r", 34: '\\"', 92: "\\\\"}


def text_of(value: Any) -> str:
    """A value as %v writes it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "<nil>"
    if isinstance(value, float):
        return _shortest(value)
    if isinstance(value, dict):
        entries = sorted((str(key), text_of(entry)) for key, entry in value.items())
        return "map[" + " ".join(f"{key}:{entry}" for key, entry in entries) + "]"
    if isinstance(value, (list, tuple)):
        return "[" + " ".join(map(text_of, value)) + "]"
    return str(value)


def kind(value: Any) -> str:
    """Go's name of a value's type."""
    names = {str: "string", bool: "bool", int: "int", float: "float64", type(None): "nil"}
    if isinstance(value, dict):
        return "map[string]interface {}"
    return names.get(type(value), "[]interface {}")


def sprint(values: Sequence[Any]) -> str:
    """fmt.Sprint: a space between two values when neither is a string."""
    result = ""
    for number, value in enumerate(values):
        if number and not isinstance(value, str) and not isinstance(values[number - 1], str):
            result += " "
        result += text_of(value)
    return result


def sprintln(values: Sequence[Any]) -> str:
    return " ".join(map(text_of, values)) + "\n"


def quote(text: str) -> str:
    """strconv.Quote."""

    def escape(char: str) -> str:
        code = ord(char)
        if code in _ESCAPES:
            return _ESCAPES[code]
        if char.isprintable():
            return char
        return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return '"' + "".join(map(escape, text)) + '"'


def sprintf(pattern: str, values: Sequence[Any], limit: int) -> tuple[str, list[str]]:
    """fmt.Sprintf, and what does not fit together in pattern and values (Go writes `%!d(string=x)` for it).

    Raises ValueError when the result would be longer than `limit`.
    """
    return _Printf(values, limit).write(pattern)


class _Printf:
    def __init__(self, values: Sequence[Any], limit: int) -> None:
        self.values, self.limit = values, limit
        self.next, self.reordered = 0, False
        self.mistakes: list[str] = []

    def write(self, pattern: str) -> tuple[str, list[str]]:
        parts: list[str] = []
        length, end = 0, 0
        for found in _DIRECTIVE.finditer(pattern):
            for part in (pattern[end : found.start()], self.directive(found)):
                parts.append(part)
                length += len(part)
                if length > self.limit:
                    raise ValueError(f"the result is longer than {self.limit} characters")
            end = found.end()
        parts.append(pattern[end:])
        if not self.reordered and self.next < len(self.values):
            rest = ", ".join(f"{kind(value)}={text_of(value)}" for value in self.values[self.next :])
            parts.append(self.mistake(f"%!(EXTRA {rest})"))
        return "".join(parts), self.mistakes

    def mistake(self, text: str) -> str:
        self.mistakes.append(text[:60])
        return text

    def take(self) -> Any:
        self.next += 1
        return self.values[self.next - 1]

    def number(self, text: str | None) -> int:
        """A width or precision; `*` takes it from the values."""
        value = self.take() if text == "*" and self.next < len(self.values) else text
        value = int(value) if isinstance(value, (int, str)) and str(value).lstrip("-").isdigit() else 0
        if abs(value) > MAX_WIDTH:
            raise ValueError(f"a width of {str(value)[:12]} is too large")
        return value

    def directive(self, found: re.Match[str]) -> str:
        flags, first, width, precision, second, verb = found.groups()
        if verb is None:
            return self.mistake("%!(NOVERB)")
        if verb == "%":
            return "%"
        index = first or second
        if index:
            self.reordered = True
            if not 1 <= int(index[:6]) <= len(self.values):
                return self.mistake(f"%!{verb}(BADINDEX)")
            self.next = int(index[:6]) - 1
        columns = self.number(width) if width else 0
        if columns < 0:
            flags, columns = flags + "-", -columns
        dotted = "." in found.group()[1 + len(flags) :] if verb != "." else False
        places = self.number(precision) if dotted else None
        if self.next >= len(self.values):
            return self.mistake(f"%!{verb}(MISSING)")
        return self.pad(self.one(verb, flags, places, self.take()), verb, flags, columns)

    def pad(self, text: str, verb: str, flags: str, columns: int) -> str:
        if "-" in flags:
            return text.ljust(columns)
        if "0" not in flags:
            return text.rjust(columns)
        sign = text[:1] if text[:1] in ("+", "-") and verb in "dbofFeEgGvxX" else ""
        return sign + text[len(sign) :].rjust(columns - len(sign), "0")

    def one(self, verb: str, flags: str, places: int | None, value: Any) -> str:
        """A value under a verb, before padding."""
        result = None
        if verb == "v":
            result = _signed(value, flags.replace("+", "")) if _is_number(value) else _go_value(value, flags)
        elif verb == "T":
            result = "<nil>" if value is None else kind(value)
        elif isinstance(value, str):
            result = _text(verb, flags, places, value)
        elif isinstance(value, bool):
            result = text_of(value) if verb == "t" else None
        elif isinstance(value, int):
            result = _integer(verb, flags, places, value)
        elif isinstance(value, float):
            result = _float(verb, flags, places, value)
        elif isinstance(value, (list, tuple)):
            return "[" + " ".join(self.one(verb, flags, places, entry) for entry in value) + "]"
        if result is not None:
            return result
        return self.mistake(f"%!{verb}({kind(value)}={text_of(value)})" if value is not None else f"%!{verb}(<nil>)")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _signed(value: int | float, flags: str) -> str:
    text = text_of(value)
    if text.startswith("-"):
        return text
    return ("+" if "+" in flags else " " if " " in flags else "") + text


def _go_value(value: Any, flags: str) -> str:
    return quote(value) if "#" in flags and isinstance(value, str) else text_of(value)


def _text(verb: str, flags: str, places: int | None, value: str) -> str | None:
    cut = value if places is None else value[:places]
    if verb == "s":
        return cut
    if verb == "q":
        return f"`{cut}`" if "#" in flags and "`" not in cut else quote(cut)
    if verb in "xX":
        content = cut.encode("utf-8", "surrogatepass")
        digits = content.hex(" ") if " " in flags else content.hex()
        return digits.upper() if verb == "X" else digits
    return None


def _integer(verb: str, flags: str, places: int | None, value: int) -> str | None:
    if verb in "dboxXO":
        prefix = {"b": "0b", "o": "0", "x": "0x", "X": "0X"}.get(verb, "") if "#" in flags else ""
        prefix = "0o" if verb == "O" else prefix
        digits = format(abs(value), "o" if verb == "O" else verb).rjust(places or 0, "0")
        sign = "-" if value < 0 else "+" if "+" in flags else " " if " " in flags else ""
        return "" if places == 0 and value == 0 else sign + prefix + digits
    if verb in "cqU":
        if not 0 <= value <= 0x10FFFF or 0xD800 <= value < 0xE000:
            value = 0xFFFD
        return {"c": chr(value), "q": f"'{chr(value)}'", "U": f"U+{value:04X}"}[verb]
    return None


def _float(verb: str, flags: str, places: int | None, value: float) -> str | None:
    if verb not in "feEFgG":
        return None
    sign = "+" if "+" in flags else " " if " " in flags else ""
    if verb in "gG" and places is None:
        text = _signed(value, flags)
        return text.upper() if verb == "G" else text
    return format(value, f"{sign}.{6 if places is None else places}{verb}")


def _shortest(value: float) -> str:
    """The fewest digits that mean the same number; an exponent below 1e-4 and from 1e+06 on (%v and %g)."""
    mantissa, _, exponent = _scientific(value).partition("e")
    if -4 <= int(exponent) < 6:
        places = len(mantissa.lstrip("-").replace(".", "")) - 1 - int(exponent)
        return f"{value:.{max(0, places)}f}"
    return f"{mantissa}e{exponent}"


def _scientific(value: float) -> str:
    for digits in range(17):
        text = f"{value:.{digits}e}"
        if float(text) == value:
            return text
    return f"{value:.17e}"
