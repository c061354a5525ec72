"""The values of a template's variables: defaults < var-files < environment < -var, then each other's references."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from imagebuilder.errors import Position, Problem, TemplateError
from imagebuilder.gotemplate.tokens import ExpressionError
from imagebuilder.options import kind
from imagebuilder.suggestion import did_you_mean
from imagebuilder.templates import document
from imagebuilder.templates.document import Document
from imagebuilder.templates.interpolate import Engine, describe
from imagebuilder.templates.tree import Route

PREFIXES = ("PKR_VAR_", "IMGBUILD_VAR_")
"""An environment variable of that name gives a value; the second wins."""


@dataclass(frozen=True)
class Given:
    """A value before it is rendered, and where it stands. `text` None: required, but not given."""

    text: str | None
    position: Position | None = None
    source: Document | None = None
    route: Route = ()

    def at(self, offset: int) -> Position | None:
        return self.source.inside(self.route, offset) if self.source else self.position


@dataclass
class Variables:
    """What a build may use. `values` are complete when there are no problems."""

    values: dict[str, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)


def read(source: Document, route: Route, raw: Any, variables: Variables, *, nullable: bool) -> dict[str, Given]:
    """Names and texts of an object. Numbers and booleans are taken as they are written; in JSON that is said."""
    if not isinstance(raw, dict):
        variables.problems.append(Problem(f"must be an object with string values, got {kind(raw)}",
                                          source.position(route)))  # fmt: skip
        return {}
    found: dict[str, Given] = {}
    for name, value in raw.items():
        place, where = (*route, name), source.position((*route, name))
        text = value if isinstance(value, str) else source.spelling(place)
        if isinstance(value, bool):
            text = "true" if value else "false"
        if text is None and not (value is None and nullable):
            message = f"the value of variable '{name}' must be a string, got {kind(value)}"
            variables.problems.append(Problem(message, where))
            continue
        if not isinstance(value, str) and text is not None and source.text.lstrip()[:1] == "{":
            message = f"the value of variable '{name}' is no string (Packer refuses it): taken as '{text}'"
            variables.warnings.append(Problem(message, where, f'write "{text}"'))
        found[name] = Given(text, where, source, place)
    return found


def resolve(
    declared: Mapping[str, Given],
    engine: Engine,
    *,
    var_files: Iterable[str | Path],
    environ: Mapping[str, str],
    given: Sequence[tuple[str, str]],
) -> Variables:
    """Put every source of values together and render them. `engine` renders; it has no variables of its own."""
    result = Variables()
    values = dict(declared)
    for file in var_files:
        values |= _known(_var_file(file, result), declared, f"var-file '{file}'", result)
    for prefix in PREFIXES:
        found = {name[len(prefix) :]: Given(text) for name, text in environ.items() if name.startswith(prefix)}
        values |= _known(found, declared, f"the environment ({prefix}...)", result)
    values |= _known({name: Given(text) for name, text in given}, declared, "-var", result)
    for name, value in values.items():
        if value.text is None:
            hint = f"give it with -var '{name}=...', in a -var-file, or in the environment as {PREFIXES[0]}{name}"
            result.problems.append(Problem(f"the variable '{name}' has no value", value.position, hint))
    _Rendering(values, replace(engine, environ=environ), result).run()
    return result


def _var_file(file: str | Path, result: Variables) -> dict[str, Given]:
    try:
        source = document.load(Path(file).read_bytes(), str(file))
    except OSError as error:
        result.problems.append(Problem(f"var-file '{file}' can't be read: {error.strerror}"))
        return {}
    except TemplateError as error:
        result.problems += error.problems
        return {}
    result.warnings += source.warnings
    return read(source, (), {} if source.data is None else source.data, result, nullable=False)


def _known(found: dict[str, Given], declared: Mapping[str, Given], where: str, result: Variables) -> dict[str, Given]:
    """All of them (Packer takes undeclared ones too, and so do templates that use them); undeclared ones are said."""
    for name, value in found.items():
        if name not in declared:
            hint = did_you_mean(name, declared)
            message = f"the template declares no variable '{name}', which {where} gives"
            result.warnings.append(Problem(message, value.position, hint))
    return found


class _Waits(Exception):
    """A variable's text needs another one's value first."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _Rendering:
    """Renders variables that refer to each other, without recursion: what is needed first is put on top of a stack."""

    def __init__(self, given: Mapping[str, Given], engine: Engine, result: Variables) -> None:
        self.given, self.result = given, result
        self.engine = replace(engine, variables=result.values, missing=self.missing)
        self.failed = {name for name, value in given.items() if value.text is None}

    def run(self) -> None:
        for name in self.given:
            stack = [name]
            while stack:
                if stack[-1] in self.result.values or stack[-1] in self.failed:
                    stack.pop()
                    continue
                needed = self.render(stack[-1])
                if needed in stack:
                    self.circle(stack[stack.index(needed) :])
                elif needed:
                    stack.append(needed)

    def missing(self, name: str) -> str:
        if name not in self.given:
            raise ValueError(f"the variable '{name[:60]}' is not declared", did_you_mean(name, self.given))
        if name in self.failed:
            return ""
        raise _Waits(name)

    def render(self, name: str) -> str:
        """Render one; the name of the one that is needed first, or "" when it is done."""
        value = self.given[name]
        try:
            text, doubts = self.engine.evaluate(value.text or "")
        except _Waits as waits:
            return waits.name
        except ExpressionError as error:
            problem = describe(error, value.text or "")
            where = value.at(error.offset)
            self.result.problems.append(Problem(f"variable '{name}': {problem.message}", where, problem.hint))
            self.failed.add(name)
            return ""
        self.result.values[name] = text
        for doubt in doubts:
            message = f"variable '{name}': {doubt.message}"
            self.result.warnings.append(Problem(message, value.at(doubt.offset), doubt.hint))
        return ""

    def circle(self, names: Sequence[str]) -> None:
        where = self.given[names[0]].position
        way = " -> ".join([*names, names[0]][:12])
        self.result.problems.append(Problem(f"variables refer to each other in a circle: {way}", where))
        self.failed.update(names)
