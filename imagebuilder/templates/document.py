"""A template or variable file as plain data, with file:line:column for each of its keys and values.

JSON is strict (RFC 8259), YAML is the core schema of YAML 1.2; duplicate keys are refused in both.
"""

from __future__ import annotations

import bisect
import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from imagebuilder.errors import Position, Problem, TemplateError
from imagebuilder.templates import jsontext, yamltext
from imagebuilder.templates.tree import Fault, Route, Tree

Syntax = Literal["json", "yaml"]

MAX_BYTES = 2**20
_JSON_CHARACTER = re.compile(r"\\u[dD][89abAB]..\\u[dD][c-fC-F]..|\\u....|\\.|.", re.DOTALL)
_WIDTH = 100


@dataclass(frozen=True)
class Document:
    """What a file holds. `digest` is the sha256 of its bytes; `warnings` is what was odd about them."""

    file: str
    text: str
    tree: Tree = field(repr=False)
    digest: str
    warnings: tuple[Problem, ...] = ()

    @property
    def data(self) -> Any:
        return self.tree.data

    def position(self, route: Route, key: bool = False) -> Position:
        """Where a value (or its key) stands; for what does not stand there, where its nearest ancestor does."""
        return self._position(self._offset(route, key))

    def inside(self, route: Route, offset: int) -> Position:
        """Where a character of the string at `route` stands."""
        start, value = self._offset(route), self._at(route)
        if route not in self.tree.values or not isinstance(value, str):
            return self._position(start)
        quote = self.text[start : start + 1]
        body = start + (quote in "\"'")
        if self.text.startswith(value, body):
            return self._position(body + offset)
        first = value.rfind("\n", 0, offset) + 1
        line = value[first:].partition("\n")[0]
        found = self.text.find(line, body) if line else -1
        if quote != '"' and found >= 0:
            return self._position(found + offset - first)
        if quote == '"':
            return self._position(self._unescaped(body, offset))
        return self._position(start)

    def spelling(self, route: Route) -> str | None:
        """How a number was written (1.10, 0x10); None for anything else."""
        return self.tree.spellings.get(route)

    def excerpt(self, offset: int) -> str:
        """The line of an offset with a caret below."""
        position = self._position(offset)
        start = self._lines[position.line - 1]
        first = start + max(0, position.column - _WIDTH)
        shown = self.text[first : first + _WIDTH + 20].partition("\n")[0].rstrip("\r").replace("\t", " ")
        number = f"{position.line:>5} | "
        return f"{number}{shown}\n{' ' * (len(number) - 2)}| {' ' * (offset - first)}^"

    def _unescaped(self, body: int, offset: int) -> int:
        """The offset in the file of the offset in a JSON string with escapes."""
        for _ in range(offset):
            found = _JSON_CHARACTER.match(self.text, body)
            if found is None:
                break
            body = found.end()
        return body

    def _at(self, route: Route) -> Any:
        value = self.data
        for step in route:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def _offset(self, route: Route, key: bool = False) -> int:
        if key and route in self.tree.keys:
            return self.tree.keys[route]
        while route and route not in self.tree.values:
            route = route[:-1]
        return self.tree.values.get(route, 0)

    @cached_property
    def _lines(self) -> list[int]:
        """The offset at which each line begins."""
        return [0, *(found.end() for found in re.finditer("\n", self.text))]

    def _position(self, offset: int) -> Position:
        line = bisect.bisect_right(self._lines, offset)
        return Position(self.file, line, offset - self._lines[line - 1] + 1)


def load(text: str | bytes, file: str, syntax: Syntax | None = None) -> Document:
    """Read a JSON or YAML text. `file` names it in messages ("-": standard input) and, by its extension, its syntax.

    Raises TemplateError with everything that is wrong with its syntax, and with every key that stands twice.
    """
    content = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    name = "<stdin>" if file == "-" else file
    if len(content) > MAX_BYTES:
        raise TemplateError(
            [Problem(f"{len(content) / 2**20:.1f} MiB is too large for a template", Position(name, 1, 1))]
        )
    decoded = content.decode("utf-8-sig", "replace")
    parser = jsontext if (syntax or _syntax(file, decoded)) == "json" else yamltext
    tree = parser.parse(decoded)
    document = Document(name, decoded, tree, hashlib.sha256(content).hexdigest())
    problems = [_problem(document, fault) for fault in tree.faults] + _duplicates(document)
    if problems:
        raise TemplateError(sorted(problems, key=lambda problem: problem.position or Position(name, 0, 0)))
    if "\ufffd" in decoded and b"\xef\xbf\xbd" not in content:
        odd = Problem("some bytes are not UTF-8", document._position(decoded.index("\ufffd")), "save it as UTF-8")
        return Document(name, decoded, tree, document.digest, (odd,))
    return document


def _syntax(file: str, text: str) -> Syntax:
    if file.lower().endswith((".yaml", ".yml")):
        return "yaml"
    if file == "-":
        return "json" if text.lstrip()[:1] == "{" else "yaml"
    return "json"


def _problem(document: Document, fault: Fault) -> Problem:
    excerpt = document.excerpt(fault.offset)
    position = document._position(fault.offset)
    if fault.hint:
        return Problem(fault.message, position, f"{fault.hint}\n{excerpt}")
    return Problem(f"{fault.message}\n{excerpt}", position)


def _duplicates(document: Document) -> list[Problem]:
    return [
        Problem(
            f"the key '{name}' stands twice",
            document._position(offset),
            f"the first one is in line {document._position(first).line}, column {document._position(first).column}",
        )
        for name, offset, first in document.tree.duplicates
    ]
