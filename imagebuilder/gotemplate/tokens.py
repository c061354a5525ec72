"""The tokens of Go's template language: plain text and `{{ actions }}`, comments and trimmed space gone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from imagebuilder.errors import Problem, TemplateError

_TRIMMED = " \t\r\n"
_TOKEN = re.compile(
    r"""(?P<end>(?:[ \t\r\n]+-)?\}\})|(?P<space>[ \t\r\n]+)|(?P<raw>`[^`]*`)|(?P<string>"(?:[^"\\\n]|\\.)*")
    |(?P<char>'(?:[^'\\\n]|\\[^\n])+')
    |(?P<number>[-+]?(?:0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][-+]?\d+)?))
    |(?P<field>\.[^\W\d]\w*)|(?P<variable>\$\w*)|(?P<dot>\.)|(?P<declare>:=)|(?P<assign>=)|(?P<pipe>\|)
    |(?P<open>\()|(?P<close>\))|(?P<comma>,)|(?P<word>[^\W\d]\w*)""",
    re.VERBOSE,
)
_FIELD = re.compile(r"\{\{\s?\..*?\}\}")
_ACTION = re.compile(r"\{\{.{0,80}?\}\}", re.DOTALL)


class ExpressionError(TemplateError):
    """An action is wrong; `offset` is where in the text, `hint` what to write instead."""

    def __init__(self, message: str, offset: int, hint: str | None = None) -> None:
        super().__init__([Problem(message, None, hint)])
        self.problem, self.offset = self.problems[0], offset


@dataclass(frozen=True)
class Token:
    kind: str
    text: str
    offset: int


@dataclass(frozen=True)
class Action:
    tokens: list[Token]
    offset: int


def pieces(text: str, *, fields_later: bool = False) -> Iterator[str | Action]:
    """Text and actions in turn; comments are gone, trim markers have done their work.

    `fields_later`: an action that begins with a field, like `{{ .HTTPIP }}`, is text.
    """
    at, trim = 0, False
    while True:
        opened = text.find("{{", at)
        piece = text[at:] if opened < 0 else text[at:opened]
        piece = piece.lstrip(_TRIMMED) if trim else piece
        if opened < 0:
            yield piece
            return
        marked = text[opened + 2 : opened + 3] == "-" and text[opened + 3 : opened + 4] in tuple(_TRIMMED)
        yield piece.rstrip(_TRIMMED) if marked else piece
        start = opened + 4 if marked else opened + 2
        field = _FIELD.match(text, opened) if fields_later else None
        if field:
            at = field.end()
            yield field.group()
        elif text.startswith("/*", start):
            at = _after_comment(text, start, opened)
        else:
            action, at = _action(text, start, opened)
            yield action
        trim = field is None and text[at - 3] == "-" and text[at - 4] in _TRIMMED


def _after_comment(text: str, start: int, opened: int) -> int:
    closed = text.find("*/", start)
    end = re.compile(r"\*/(?:[ \t\r\n]+-)?\}\}").match(text, closed) if closed >= 0 else None
    if end is None:
        raise ExpressionError("a comment is not closed", opened, "end it with '*/}}'")
    return end.end()


def _action(text: str, at: int, opened: int) -> tuple[Action, int]:
    tokens: list[Token] = []
    while True:
        found = _TOKEN.match(text, at)
        if found is None:
            raise _unreadable(text, at, opened)
        kind = found.lastgroup or ""
        if kind == "end":
            return Action(tokens, opened), found.end()
        token = Token(kind, found.group(), at)
        if tokens and _stuck(tokens[-1], token):
            raise ExpressionError(f"'{token.text[:40]}' follows without a space", at, "put a space between words")
        tokens.append(token)
        at = found.end()


def _stuck(before: Token, token: Token) -> bool:
    words = {"raw", "string", "char", "number", "word"}
    if token.kind == "field":
        return before.kind in {"raw", "string", "char", "number", "word", "dot"}
    return token.kind in words | {"variable"} and before.kind in words | {"field", "variable", "dot", "close"}


def _unreadable(text: str, at: int, opened: int) -> ExpressionError:
    char = text[at : at + 1]
    if not char:
        return ExpressionError("an action is not closed", opened, "end it with '}}'")
    if char in "`\"'":
        names = {"`": "backquote", '"': "quote", "'": "quote"}
        return ExpressionError(f"a string is not closed: its {names[char]} has no partner", at)
    return ExpressionError(f"'{char}' means nothing in an action", at, "text for others is written {{`{{ ... }}`}}")


def action_at(text: str, offset: int) -> str:
    """The action around an offset, for a message."""
    start = max(text.rfind("{{", 0, offset + 2), 0)
    found = _ACTION.match(text, start)
    return found.group() if found else text[start : start + 80]
