"""YAML 1.2 (core schema) with the offset of every key and value, as plain data.

Built from PyYAML's events, so that nothing of a text can make an object, nesting is bounded and aliases count as what
they stand for. Only true and false are booleans ("yes", "no" and "on" are words), 0755 and 12:30 are words too.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import yaml
from yaml.reader import ReaderError

from imagebuilder.templates.tree import MAX_NODES, Fault, Route, Tree, Unreadable

_NULL = {"", "~", "null", "Null", "NULL"}
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INT = re.compile(r"[-+]?(0|[1-9]\d{0,299})")
_OTHER_INT = re.compile(r"0o[0-7]{1,100}|0x[0-9a-fA-F]{1,100}")
_FLOAT = re.compile(
    r"[-+]?(?:0|[1-9]\d{0,299})?\.\d{1,300}(?:[eE][-+]?\d{1,2})?|[-+]?[1-9]\d{0,299}\.?[eE][-+]?\d{1,2}"
)
_TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")}
_QUOTE = "quote a value that begins with '{{'"


def parse(text: str) -> Tree:
    """Read one YAML document. What is wrong stands in the tree's faults; nothing is raised."""
    builder = _Builder(yaml.parse(text, Loader=yaml.SafeLoader))
    try:
        builder.document()
    except Unreadable as error:
        builder.tree.faults.append(error.fault)
    except yaml.MarkedYAMLError as error:
        builder.tree.faults.append(_marked(error))
    except ReaderError as error:
        code = error.character if isinstance(error.character, int) else ord(error.character[:1] or b"?")
        builder.tree.faults.append(Fault(f"the character U+{code:04X} may not stand in YAML", error.position))
    return builder.tree


def _marked(error: yaml.MarkedYAMLError) -> Fault:
    mark = error.problem_mark or error.context_mark
    message = error.problem or error.context or "this is no YAML"
    hint = None
    if "\\t" in message:
        hint = "YAML is indented with spaces"
    elif "`" in message or "flow mapping" in str(error.context) or "flow mapping" in message:
        hint = _QUOTE
    return Fault(f"YAML: {message}", mark.index if mark else 0, hint)


class _Builder:
    def __init__(self, events: Iterator[Any]) -> None:
        self.events = events
        self.tree = Tree()
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.copied = 0

    def document(self) -> None:
        """The one document of the stream becomes the tree's data."""
        event: Any = next(self.events)
        while isinstance(event, (yaml.StreamStartEvent, yaml.DocumentStartEvent)):
            event = next(self.events)
        if isinstance(event, yaml.StreamEndEvent):
            return
        self.tree.data = self.node(event, ())
        event = next(self.events)
        while not isinstance(event, yaml.StreamEndEvent):
            if isinstance(event, yaml.DocumentStartEvent):
                start: Any = event.start_mark
                raise Unreadable("a second document begins", start.index, "a template is one document")
            event = next(self.events)

    def node(self, event: Any, route: Route) -> Any:
        offset = event.start_mark.index
        self.tree.place(route, offset)
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event)
        if event.tag is not None and event.tag not in _TAGS and event.tag != "!":
            self.tree.faults.append(Fault(f"the tag '{event.tag}' means nothing here", offset, "remove it"))
        before = len(self.tree.values) + self.copied
        value: Any
        if isinstance(event, yaml.ScalarEvent):
            value = self.scalar(event, route)
        elif isinstance(event, yaml.SequenceStartEvent):
            value = self.sequence(route)
        else:
            value = self.mapping(route)
        if event.anchor:
            self.anchors[event.anchor] = value, len(self.tree.values) + self.copied - before + 1
        return value

    def alias(self, event: Any) -> Any:
        """A copy of what the alias stands for; its values have the alias's position."""
        if event.anchor not in self.anchors:
            raise Unreadable(f"'*{event.anchor}' stands for nothing yet", event.start_mark.index)
        value, size = self.anchors[event.anchor]
        self.copied += size
        if self.copied > MAX_NODES:
            raise Unreadable("the aliases stand for too much", event.start_mark.index)
        return copy.deepcopy(value)

    def sequence(self, route: Route) -> list[Any]:
        result: list[Any] = []
        for event in self.events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            result.append(self.node(event, (*route, len(result))))
        return result

    def mapping(self, route: Route) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: list[Any] = []
        for event in self.events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            start = event.start_mark.index
            if not isinstance(event, yaml.ScalarEvent):
                raise Unreadable("a key must be a string", start, _QUOTE)
            if event.value == "<<" and event.implicit[0]:
                merged.append((self.node(next(self.events), (*route, "<<", len(merged))), start))
                continue
            inner = self.tree.key(route, event.value, start, result)
            result[event.value] = self.node(next(self.events), inner)
        for value, start in merged:
            self.merge(value, start, result)
        return result

    def merge(self, value: Any, start: int, into: dict[str, Any]) -> None:
        """`<<: *a` or `<<: [*a, *b]`: keys that are not there yet (YAML merge key, yaml.org/type/merge)."""
        for source in value if isinstance(value, list) else [value]:
            if not isinstance(source, dict):
                self.tree.faults.append(Fault("'<<' takes a mapping or a list of them", start))
                return
            for name, entry in source.items():
                into.setdefault(name, entry)

    def scalar(self, event: Any, route: Route) -> Any:
        text: str = event.value
        tag = (event.tag or "").rpartition(":")[2]
        if tag == "str" or event.tag == "!" or (not event.implicit[0] and not tag):
            return text
        value = resolve(text)
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            self.tree.spellings[route] = text
        names = {int: "int", float: "float", bool: "bool", type(None): "null", str: "str"}
        if tag and names[type(value)] != tag:
            self.tree.faults.append(Fault(f"'{text[:60]}' is not a {tag}", event.start_mark.index))
        return value


def resolve(text: str) -> str | int | float | bool | None:
    """What a plain scalar means in the core schema; numbers that would surprise are words."""
    if text in _NULL:
        return None
    if text in _BOOL:
        return _BOOL[text]
    if _INT.fullmatch(text):
        return int(text)
    if _OTHER_INT.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text):
        return float(text)
    return text
