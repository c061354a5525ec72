"""Go's text/template language: text with `{{ actions }}` -> a tree of nodes (Go package text/template).

Everything of it but defined templates (define, template, block), methods, channels and complex numbers.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from imagebuilder.gotemplate.tokens import Action, ExpressionError, Token, pieces
from imagebuilder.suggestion import did_you_mean

MAX_DEPTH = 50
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.))", re.DOTALL)
_SIMPLE = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_KEYWORDS = {"if", "else", "end", "range", "with", "break", "continue", "define", "template", "block"}


@dataclass(frozen=True)
class Literal:
    value: Any
    offset: int


@dataclass(frozen=True)
class Field:
    """`.A.B`, `$x.A` or `(pipeline).A`; without names it is `.`, `$x` or the pipeline itself."""

    base: Variable | Pipeline | None
    names: tuple[str, ...]
    offset: int


@dataclass(frozen=True)
class Variable:
    name: str
    offset: int


@dataclass(frozen=True)
class Function:
    name: str
    offset: int


Operand = Literal | Field | Variable | Function


@dataclass(frozen=True)
class Command:
    operands: tuple[Operand, ...]
    offset: int


@dataclass(frozen=True)
class Pipeline:
    """Commands, each given the result of the one before; `variables` take the last one's."""

    commands: tuple[Command, ...]
    offset: int
    variables: tuple[str, ...] = ()
    assigns: bool = False


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Print:
    pipeline: Pipeline


@dataclass(frozen=True)
class Branch:
    """if, with or range."""

    keyword: str
    pipeline: Pipeline
    body: tuple[Node, ...]
    otherwise: tuple[Node, ...]


@dataclass(frozen=True)
class Leave:
    """break or continue."""

    keyword: str


Node = Text | Print | Branch | Leave


def parse(text: str, functions: Collection[str], *, fields_later: bool = False) -> tuple[Node, ...]:
    """The nodes of a text; `functions` are the names that may be called. With `fields_later`, actions that begin with
    a field are text. Raises ExpressionError."""
    if "{{" not in text:
        return (Text(text),) if text else ()
    return _Parser(list(pieces(text, fields_later=fields_later)), functions).template()


def calls(nodes: tuple[Node, ...]) -> Iterator[tuple[Function, tuple[Any, ...] | None]]:
    """Every call of a function in a template, with its arguments when they are all literals."""
    for node in nodes:
        if isinstance(node, Print):
            yield from _calls(node.pipeline)
        elif isinstance(node, Branch):
            yield from _calls(node.pipeline)
            yield from calls(node.body)
            yield from calls(node.otherwise)


def _calls(pipeline: Pipeline) -> Iterator[tuple[Function, tuple[Any, ...] | None]]:
    piped: tuple[Any, ...] | None = ()
    for command in pipeline.commands:
        first, *rest = command.operands
        literal = piped is not None and all(isinstance(operand, Literal) for operand in rest)
        arguments = tuple(operand.value for operand in rest if isinstance(operand, Literal))
        if isinstance(first, Function):
            yield first, (*arguments, *(piped or ())) if literal else None
        for operand in rest:
            if isinstance(operand, Function):
                yield operand, ()
        for operand in command.operands:
            if isinstance(operand, Field) and isinstance(operand.base, Pipeline):
                yield from _calls(operand.base)
        piped = (first.value,) if isinstance(first, Literal) and not rest else None


class _Parser:
    def __init__(self, pieces: list[str | Action], functions: Collection[str]) -> None:
        self.pieces = iter(pieces)
        self.functions = functions
        self.tokens: list[Token] = []
        self.at = 0
        self.opened = 0
        self.depth = 0
        self.loops = 0
        self.scopes: list[set[str]] = [{"$"}]

    # --- nodes

    def template(self) -> tuple[Node, ...]:
        nodes, keyword = self.nodes()
        if keyword:
            raise ExpressionError(f"'{keyword}' without an 'if', 'with' or 'range' before it", self.opened)
        return nodes

    def nodes(self) -> tuple[tuple[Node, ...], str]:
        """Nodes up to `else`, `end` or the end of the text, and which of them it was."""
        result: list[Node] = []
        self.scopes.append(set())
        word = ""
        for piece in self.pieces:
            if isinstance(piece, str):
                result += [Text(piece)] if piece else []
                continue
            self.tokens, self.at, self.opened = piece.tokens, 0, piece.offset
            word = self.keyword()
            if word in ("else", "end"):
                break
            result.append(self.node(word))
            word = ""
        self.scopes.pop()
        return tuple(result), word

    def node(self, word: str) -> Node:
        if word in ("define", "template", "block"):
            raise ExpressionError(f"'{word}' is not supported", self.opened)
        if word in ("break", "continue"):
            if not self.loops:
                raise ExpressionError(f"'{word}' outside of a 'range'", self.opened)
            self.finish()
            return Leave(word)
        if word:
            return self.branch(word)
        pipeline = self.pipeline()
        self.finish()
        return Print(pipeline)

    def branch(self, word: str) -> Branch:
        self.enter(self.opened)
        opened = self.opened
        self.scopes.append(set())
        pipeline = self.pipeline(ranges=word == "range")
        self.finish()
        self.loops += word == "range"
        body, closed = self.nodes()
        self.loops -= word == "range"
        otherwise: tuple[Node, ...] = ()
        if closed == "else":
            again = self.keyword()
            if again in ("if", "with"):
                otherwise, closed = (self.branch(again),), "end"
            else:
                self.finish()
                otherwise, closed = self.nodes()
        if closed != "end":
            raise ExpressionError(f"'{word}' is never ended" if not closed else "'else' stands twice", opened)
        self.finish()
        self.scopes.pop()
        self.depth -= 1
        return Branch(word, pipeline, body, otherwise)

    # --- pipelines

    def pipeline(self, *, ranges: bool = False) -> Pipeline:
        start = self.peek().offset
        names, assigns = self.declaration(ranges)
        commands = [self.command()]
        while self.peek().kind == "pipe":
            self.at += 1
            commands.append(self.command())
        for number, command in enumerate(commands):
            self.check_command(command, piped=number > 0)
        if not assigns:
            self.scopes[-1].update(names)
        return Pipeline(tuple(commands), start, names, assigns)

    def declaration(self, ranges: bool) -> tuple[tuple[str, ...], bool]:
        """`$x :=`, `$x =` or, in a range, `$i, $x :=`."""
        before = self.at
        names: list[str] = []
        while self.peek().kind == "variable":
            names.append(self.next().text)
            sign = self.next()
            if sign.kind in ("declare", "assign"):
                for name in names if sign.kind == "assign" else ():
                    self.known(name, sign.offset)
                return tuple(names), sign.kind == "assign"
            if sign.kind != "comma" or not ranges or len(names) == 2:
                break
        self.at = before
        return (), False

    def command(self) -> Command:
        start = self.peek().offset
        operands: list[Operand] = []
        while self.peek().kind not in ("pipe", "close", "end"):
            operands.append(self.operand())
        if not operands:
            raise ExpressionError("a value is missing", start)
        return Command(tuple(operands), start)

    def check_command(self, command: Command, *, piped: bool) -> None:
        first = command.operands[0]
        if isinstance(first, Function):
            return
        if piped:
            raise ExpressionError("only a function can stand after '|'", first.offset)
        if len(command.operands) > 1:
            raise ExpressionError("only a function takes arguments", first.offset)
        if isinstance(first, Literal) and first.value is None:
            raise ExpressionError("'nil' can only be an argument", first.offset)

    def operand(self) -> Operand:
        token = self.next()
        if token.kind in ("raw", "string", "char", "number"):
            return Literal(_value(token), token.offset)
        if token.kind == "word":
            return self.word(token)
        if token.kind == "variable":
            self.known(token.text, token.offset)
            return self.fields(Variable(token.text, token.offset), (), token.offset)
        if token.kind in ("field", "dot"):
            return self.fields(None, (token.text[1:],) if token.kind == "field" else (), token.offset)
        if token.kind == "open":
            self.enter(token.offset)
            pipeline = self.pipeline()
            if self.next().kind != "close":
                raise ExpressionError("a parenthesis is not closed", token.offset, "add ')'")
            self.depth -= 1
            return self.fields(pipeline, (), token.offset)
        raise ExpressionError(f"'{token.text}' is not expected here", token.offset)

    def word(self, token: Token) -> Operand:
        if token.text in ("true", "false", "nil"):
            return Literal({"true": True, "false": False, "nil": None}[token.text], token.offset)
        if token.text in _KEYWORDS:
            raise ExpressionError(f"'{token.text}' can only stand first in an action", token.offset)
        if token.text not in self.functions:
            hint = did_you_mean(token.text, self.functions) or "text for others is written {{`{{ ... }}`}}"
            raise ExpressionError(f"there is no function '{token.text[:60]}'", token.offset, hint)
        return Function(token.text, token.offset)

    def fields(self, base: Variable | Pipeline | None, names: tuple[str, ...], offset: int) -> Operand:
        while self.at < len(self.tokens) and self.tokens[self.at].kind == "field":
            names += (self.tokens[self.at].text[1:],)
            self.at += 1
        if isinstance(base, Variable) and not names:
            return base
        return Field(base, names, offset)

    # --- tokens

    def keyword(self) -> str:
        token = self.peek()
        if token.kind == "word" and token.text in _KEYWORDS:
            self.at += 1
            return token.text
        return ""

    def peek(self) -> Token:
        while self.at < len(self.tokens) and self.tokens[self.at].kind == "space":
            self.at += 1
        if self.at < len(self.tokens):
            return self.tokens[self.at]
        return Token("end", "}}", self.opened)

    def next(self) -> Token:
        token = self.peek()
        self.at += 1
        return token

    def finish(self) -> None:
        token = self.peek()
        if token.kind != "end":
            raise ExpressionError(f"'{token.text}' is not expected here", token.offset)

    def enter(self, offset: int) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise ExpressionError(f"nested more than {MAX_DEPTH} deep", offset)

    def known(self, name: str, offset: int) -> None:
        if not any(name in scope for scope in self.scopes):
            raise ExpressionError(f"the variable '{name}' is not declared", offset, f"write {{{{ {name} := ... }}}}")


def _value(token: Token) -> str | int | float:
    if token.kind == "raw":
        return token.text[1:-1].replace("\r", "")
    if token.kind == "number":
        return _number(token)
    body = _ESCAPE.sub(lambda found: _unescape(found, token), token.text[1:-1])
    if token.kind == "string":
        return body
    if len(body) != 1:
        raise ExpressionError(f"{token.text[:40]} is no string", token.offset, f"write `{token.text[1:-1][:40]}`")
    return ord(body)


def _unescape(found: re.Match[str], token: Token) -> str:
    hexadecimal, short, long, octal, simple = found.groups()
    if simple is not None:
        if simple in "\\'\"":
            return str(simple)
        if simple not in _SIMPLE:
            raise ExpressionError(f"'\\{simple}' is no escape", token.offset + 1 + found.start(), "write '\\\\'")
        return _SIMPLE[simple]
    code = int(octal, 8) if octal else int(hexadecimal or short or long, 16)
    return chr(code) if code <= 0x10FFFF and not 0xD800 <= code < 0xE000 else "\ufffd"


def _number(token: Token) -> int | float:
    text = token.text.replace("_", "")
    try:
        if re.fullmatch(r"[-+]?0\d+", text):
            number: int | float = int(text, 8)
        elif re.search(r"[.eE]", text) and not text.lstrip("+-").lower().startswith("0x"):
            number = float(text)
        else:
            number = int(text[:100], 0)
    except ValueError:
        raise ExpressionError(f"'{token.text[:40]}' is no number", token.offset) from None
    if (abs(number) >= 2**63 and isinstance(number, int)) or number in (float("inf"), float("-inf")):
        raise ExpressionError(f"'{token.text[:40]}' is too large", token.offset)
    return number
