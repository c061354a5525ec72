"""Strict JSON (RFC 8259) with the offset of every key and value.

Python's own parser gives no positions, and stops at the first mistake; this one knows the mistakes people make (a
trailing comma, a comment, a missing comma, single quotes) and reads on, so that all of them are reported at once.
"""

from __future__ import annotations

import re
from typing import Any

from imagebuilder.templates.tree import Fault, Route, Tree, Unreadable

_SPACE = re.compile(r"[ \t\r\n]*+")
_STRING = re.compile(r'"([^"\\\x00-\x1f]*+(?:\\.[^"\\\x00-\x1f]*+)*+)"')
_HEX = "[0-9a-fA-F]"
_ESCAPE = re.compile(rf"\\u([dD][89abAB]{_HEX}{{2}})\\u([dD][c-fC-F]{_HEX}{{2}})|\\u({_HEX}{{4}})|\\(.)", re.DOTALL)
_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?P<fraction>\.\d+)?(?P<exponent>[eE][+-]?\d+)?(?![\w.+-])")
_WORD = re.compile(r"[A-Za-z_$][\w$-]*|[+-]?\.?\d[\w.+-]*")
_COMMENT = re.compile(r"//[^\n]*|#[^\n]*|/\*.*?(?:\*/|\Z)", re.DOTALL)
_QUOTED = re.compile(r"'([^'\n]*)'|[“”„]([^“”\n]*)[“”]")
_SIMPLE = {'"': '"', "\\": "\\", "/": "/", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}
_WORDS = {"true": True, "false": False, "null": None}
_MEANT = {"True": True, "TRUE": True, "False": False, "FALSE": False, "None": None, "Null": None, "NULL": None}
_MAX_DIGITS = 300
_MAX_FAULTS = 50


def parse(text: str) -> Tree:
    """Read one JSON value. What is wrong stands in the tree's faults; nothing is raised."""
    parser = _Parser(text)
    try:
        parser.tree.data = parser.value(())
        parser.end()
    except Unreadable as error:
        parser.tree.faults.append(error.fault)
    return parser.tree


class _Parser:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.tree = Tree()

    def fault(self, message: str, hint: str | None = None, offset: int | None = None) -> None:
        """Note a mistake whose meaning is plain, and read on."""
        self.tree.faults.append(Fault(message, self.at if offset is None else offset, hint))
        if len(self.tree.faults) >= _MAX_FAULTS:
            raise Unreadable("too many mistakes to go on", self.at)

    def peek(self) -> str:
        """The next character that is not space; "" at the end."""
        while True:
            found = _SPACE.match(self.text, self.at)
            self.at = found.end() if found else self.at
            if not self.text.startswith(("//", "/*", "#"), self.at):
                return self.text[self.at : self.at + 1]
            comment = _COMMENT.match(self.text, self.at)
            assert comment is not None
            self.fault("JSON has no comments", "use a root key like '_comment', or YAML")
            self.at = comment.end()

    def end(self) -> None:
        if self.peek():
            raise Unreadable("something stands after the end of the template", self.at, "a template is one { ... }")

    def value(self, route: Route) -> Any:
        first = self.peek()
        self.tree.place(route, self.at)
        if first == "{":
            return self.object(route)
        if first == "[":
            return self.array(route)
        if first == '"':
            return self.string()
        if first == "'" or (first in "“”„" and first):
            return self.quoted()
        return self.scalar(route)

    def object(self, route: Route) -> dict[str, Any]:
        opened, result = self.at, dict[str, Any]()
        self.at += 1
        while not self.closes("}", opened, first=not result):
            start, name = self.at, self.name()
            inner = self.tree.key(route, name, start, result)
            if self.peek() in (":", "="):
                if self.text[self.at] == "=":
                    self.fault("'=' after a key", "write ':'")
                self.at += 1
            else:
                raise Unreadable(f"expected ':' after '{name[:60]}', got {self.seen()}", self.at)
            result[name] = self.value(inner)
        return result

    def array(self, route: Route) -> list[Any]:
        opened, result = self.at, list[Any]()
        self.at += 1
        while not self.closes("]", opened, first=not result):
            result.append(self.value((*route, len(result))))
        return result

    def closes(self, bracket: str, opened: int, *, first: bool) -> bool:
        """Whether the object or list ends here; if not, the comma before the next entry is taken."""
        char = self.peek()
        if not first and char == ",":
            comma = self.at
            self.at += 1
            if self.peek() == bracket:
                self.fault("a comma after the last entry", "remove it", comma)
        elif not first and char and char != bracket:
            if char in "}]:":
                raise Unreadable(f"expected ',' or '{bracket}', got '{char}'", self.at)
            before = len(self.text[: self.at].rstrip())
            self.fault("a comma is missing here", "put ',' between the entries", before)
        if not self.peek():
            line = self.text.count("\n", 0, opened) + 1
            raise Unreadable(f"the '{self.text[opened]}' of line {line} is never closed", self.at, f"add '{bracket}'")
        if self.text[self.at] != bracket:
            return False
        self.at += 1
        return True

    def name(self) -> str:
        char = self.peek()
        if char == '"':
            return self.string()
        if char and char in "'“”„":
            return self.quoted()
        word = _WORD.match(self.text, self.at)
        if word is None:
            raise Unreadable(f"expected a key in double quotes, got {self.seen()}", self.at)
        self.fault(f"the key {word.group()[:60]} has no quotes", f'write "{word.group()[:60]}"')
        self.at = word.end()
        return word.group()

    def string(self) -> str:
        found = _STRING.match(self.text, self.at)
        if found is None:
            raise self.broken_string()
        body, start = found.group(1), found.start(1)
        self.at = found.end()
        if "\\" not in body:
            return body
        return _ESCAPE.sub(lambda escape: self.unescape(escape, start), body)

    def unescape(self, escape: re.Match[str], start: int) -> str:
        high, low, code, simple = escape.groups()
        if high:
            return chr(0x10000 + (int(high, 16) - 0xD800) * 0x400 + int(low, 16) - 0xDC00)
        if code:
            return "\ufffd" if code[0] in "dD" and code[1] in "89abcdefABCDEF" else chr(int(code, 16))
        if simple not in _SIMPLE:
            hint = f"write '\\\\{simple}' for a backslash"
            self.fault(f"'\\{simple}' is no escape in JSON", hint, start + escape.start())
        return _SIMPLE.get(simple, simple)

    def broken_string(self) -> Unreadable:
        """Why the string that begins here can't be read."""
        rest = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*+').match(self.text, self.at)
        stop = rest.end() if rest else self.at + 1
        char = self.text[stop : stop + 1]
        if char in ("\n", "\r", ""):
            return Unreadable("a string is not closed on its line", self.at, "add '\"', or write a line break as \\n")
        if char == "\\":
            return Unreadable("a string ends in a backslash", stop, "write '\\\\' for a backslash")
        written = {"\t": "\\t"}.get(char, f"\\u{ord(char):04x}")
        return Unreadable("a control character stands in a string", stop, f"write it as {written}")

    def quoted(self) -> str:
        found = _QUOTED.match(self.text, self.at)
        if found is None:
            raise Unreadable(f"expected a value, got {self.seen()}", self.at, 'strings stand in "double quotes"')
        self.fault("a string in quotes that JSON does not know", 'use "double quotes"')
        self.at = found.end()
        return found.group(1) or found.group(2) or ""

    def scalar(self, route: Route) -> Any:
        number = _NUMBER.match(self.text, self.at)
        if number:
            return self.number(number, route)
        word = _WORD.match(self.text, self.at)
        if word is None:
            raise Unreadable(f"expected a value, got {self.seen()}", self.at)
        start, text = self.at, word.group()
        self.at = word.end()
        if text in _WORDS:
            return _WORDS[text]
        hint = f"write {text.lower()}" if text in _MEANT else f'write "{text[:60]}"'
        self.fault(f"{text[:60]} is no JSON value", "write null" if text == "None" else hint, start)
        return _MEANT.get(text, text)

    def number(self, found: re.Match[str], route: Route) -> int | float:
        text, start = found.group(), self.at
        self.at = found.end()
        self.tree.spellings[route] = text
        if len(text) <= _MAX_DIGITS:
            if not found["fraction"] and not found["exponent"]:
                return int(text)
            value = float(text)
            if abs(value) != float("inf"):
                return value
        self.fault("the number is too large", None, start)
        return 0

    def seen(self) -> str:
        """What stands at this place, for a message."""
        return f"'{self.text[self.at]}'" if self.at < len(self.text) else "the end of the file"
