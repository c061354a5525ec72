"""Runs the nodes of a template: values in, text out (exec.go of text/template), within bounds of time and space."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from imagebuilder.gotemplate.format import text_of
from imagebuilder.gotemplate.functions import MAX_LENGTH, Signature, truth
from imagebuilder.gotemplate.parse import (
    Branch,
    Command,
    Field,
    Function,
    Leave,
    Literal,
    Node,
    Operand,
    Pipeline,
    Print,
    Text,
    Variable,
)
from imagebuilder.gotemplate.tokens import ExpressionError
from imagebuilder.suggestion import did_you_mean

MAX_STEPS = 200_000
MAX_HANDLED = 64 * 2**20
"""Characters that go through functions while one text is rendered."""
_ABSENT = object()


class _Left(Exception):
    """break or continue, on its way to the range it belongs to."""

    def __init__(self, keyword: str) -> None:
        super().__init__(keyword)
        self.keyword = keyword


def execute(
    nodes: tuple[Node, ...],
    dot: Mapping[str, Any] | None,
    functions: Mapping[str, Signature],
    called: Callable[[int], None],
) -> str:
    """The text that the nodes make of the values in `dot`; `called` hears the offset of each call. Raises
    ExpressionError."""
    run = _Execution(dot, functions, called)
    run.nodes(nodes, dot)
    return "".join(run.written)


class _Execution:
    def __init__(self, root: Any, functions: Mapping[str, Signature], called: Callable[[int], None]) -> None:
        self.functions = functions
        self.called = called
        self.variables: list[tuple[str, Any]] = [("$", root)]
        self.written: list[str] = []
        self.length = 0
        self.handled = 0
        self.steps = 0

    # --- nodes

    def nodes(self, nodes: tuple[Node, ...], dot: Any) -> None:
        mark = len(self.variables)
        try:
            for node in nodes:
                self.node(node, dot)
        finally:
            del self.variables[mark:]

    def node(self, node: Node, dot: Any) -> None:
        self.steps += 1
        if self.steps > MAX_STEPS:
            raise ExpressionError("this takes too many steps", 0)
        if isinstance(node, Text):
            self.write(node.text, 0)
        elif isinstance(node, Print):
            value = self.pipeline(node.pipeline, dot)
            if not node.pipeline.variables:
                self.write("<no value>" if value is None else text_of(value), node.pipeline.offset)
        elif isinstance(node, Branch):
            mark = len(self.variables)
            self.branch(node, dot)
            del self.variables[mark:]
        elif isinstance(node, Leave):
            raise _Left(node.keyword)

    def branch(self, node: Branch, dot: Any) -> None:
        value = self.pipeline(node.pipeline, dot)
        if node.keyword == "range":
            self.range(node, value, dot)
        elif truth(value):
            self.nodes(node.body, value if node.keyword == "with" else dot)
        else:
            self.nodes(node.otherwise, dot)

    def range(self, node: Branch, value: Any, dot: Any) -> None:
        if isinstance(value, Mapping):
            entries = sorted(value.items())
        elif isinstance(value, (list, tuple)):
            entries = list(enumerate(value))
        elif value is None:
            entries = []
        else:
            raise ExpressionError(f"'range' can't go over '{text_of(value)[:60]}'", node.pipeline.offset)
        names = node.pipeline.variables
        for entry in entries:
            mark = len(self.variables)
            self.variables += zip(names, entry if len(names) == 2 else entry[1:], strict=False)
            try:
                self.nodes(node.body, entry[1])
            except _Left as left:
                if left.keyword == "break":
                    break
            finally:
                del self.variables[mark:]
        if not entries:
            self.nodes(node.otherwise, dot)

    def write(self, text: str, offset: int) -> None:
        self.length += len(text)
        if self.length > MAX_LENGTH:
            raise ExpressionError(f"the result is longer than {MAX_LENGTH} characters", offset)
        self.written.append(text)

    # --- values

    def pipeline(self, pipeline: Pipeline, dot: Any) -> Any:
        value: Any = _ABSENT
        for command in pipeline.commands:
            value = self.command(command, dot, value)
        if pipeline.assigns:
            self.assign(pipeline.variables[-1], value)
        elif len(pipeline.variables) == 1:
            self.variables.append((pipeline.variables[0], value))
        return value

    def assign(self, name: str, value: Any) -> None:
        for number in range(len(self.variables) - 1, -1, -1):
            if self.variables[number][0] == name:
                self.variables[number] = name, value
                return

    def command(self, command: Command, dot: Any, piped: Any) -> Any:
        first = command.operands[0]
        if not isinstance(first, Function):
            return self.operand(first, dot)
        if first.name in ("and", "or"):
            return self.decide(first, command.operands[1:], dot, piped)
        arguments = [self.operand(operand, dot) for operand in command.operands[1:]]
        return self.call(first, arguments + ([] if piped is _ABSENT else [piped]))

    def decide(self, function: Function, operands: tuple[Operand, ...], dot: Any, piped: Any) -> Any:
        """`and` and `or` look at no more arguments than they need."""
        value: Any = _ABSENT
        for operand in operands:
            value = self.operand(operand, dot)
            if truth(value) is (function.name == "or"):
                return value
        if piped is not _ABSENT:
            return piped
        return self.call(function, []) if value is _ABSENT else value

    def operand(self, operand: Operand, dot: Any) -> Any:
        if isinstance(operand, Literal):
            return operand.value
        if isinstance(operand, Variable):
            return self.variable(operand)
        if isinstance(operand, Function):
            return self.call(operand, [])
        if isinstance(operand.base, Pipeline):
            return self.fields(self.pipeline(operand.base, dot), operand)
        return self.fields(dot if operand.base is None else self.variable(operand.base), operand)

    def variable(self, variable: Variable) -> Any:
        for name, value in reversed(self.variables):
            if name == variable.name:
                return value
        raise ExpressionError(f"the variable '{variable.name}' is not declared", variable.offset)

    def fields(self, value: Any, field: Field) -> Any:
        for name in field.names:
            if not isinstance(value, Mapping) or name not in value:
                known = [f".{key}" for key in value] if isinstance(value, Mapping) else []
                raise ExpressionError(f"'.{name[:60]}' has no value here", field.offset, _instead(name, known))
            value = value[name]
        return value

    def call(self, function: Function, arguments: list[Any]) -> Any:
        self.steps += 1
        signature = self.functions[function.name]
        try:
            signature.check(arguments)
            value = signature.call(*arguments)
        except ValueError as error:
            raise refusal(function, error) from None
        self.called(function.offset)
        self.handled += sum(len(text) for text in (value, *arguments) if isinstance(text, str))
        if (isinstance(value, str) and len(value) > MAX_LENGTH) or self.handled > MAX_HANDLED:
            raise ExpressionError(f"the result is longer than {MAX_LENGTH} characters", function.offset)
        return value


def refusal(function: Function, error: ValueError) -> ExpressionError:
    """What a function said against its arguments; a second argument of the ValueError is the hint."""
    hint = error.args[1] if len(error.args) > 1 else None
    return ExpressionError(f"'{function.name}': {error.args[0]}", function.offset, hint)


def _instead(name: str, known: list[str]) -> str:
    suggestion = did_you_mean(f".{name}", known)
    if suggestion:
        return suggestion
    if known:
        return f"known here are {', '.join(sorted(known))}"
    return "to pass the braces on as text write {{`{{ ... }}`}}"
