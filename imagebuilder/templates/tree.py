"""What a parser makes of a text: plain data, and for each value the offset where it stands in the text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

Route = tuple[str | int, ...]
"""The way from the root to a value: keys and list indices."""

MAX_DEPTH = 64
"""Deeper nesting is refused; templates nest four or five deep."""
MAX_NODES = 200_000
"""More values than that are refused; aliases count as what they stand for."""


@dataclass(frozen=True)
class Fault:
    """Something wrong at an offset of the text, and what to write instead."""

    message: str
    offset: int
    hint: str | None = None


class Unreadable(Exception):
    """The text makes no sense from here on."""

    def __init__(self, message: str, offset: int, hint: str | None = None) -> None:
        super().__init__(message)
        self.fault = Fault(message, offset, hint)


@dataclass
class Tree:
    """`values` and `keys` are offsets; `spellings` are numbers as they were written; `faults` is what is wrong."""

    data: Any = None
    values: dict[Route, int] = field(default_factory=dict)
    keys: dict[Route, int] = field(default_factory=dict)
    spellings: dict[Route, str] = field(default_factory=dict)
    duplicates: list[tuple[str, int, int]] = field(default_factory=list)
    """(key, offset, offset of the first one)"""
    faults: list[Fault] = field(default_factory=list)

    def place(self, route: Route, offset: int) -> None:
        """Note where a value stands. Raises Unreadable when there are too many, or too deep."""
        if len(route) > MAX_DEPTH:
            raise Unreadable(f"nested more than {MAX_DEPTH} deep", offset)
        self.values[route] = offset
        if len(self.values) > MAX_NODES:
            raise Unreadable(f"more than {MAX_NODES} values", offset)

    def key(self, route: Route, name: str, offset: int, known: dict[str, Any]) -> Route:
        """Note where a key stands, and whether it stood before; the route of its value."""
        inner = (*route, name)
        if name in known:
            self.duplicates.append((name, offset, self.keys[inner]))
        else:
            self.keys[inner] = offset
        return inner
