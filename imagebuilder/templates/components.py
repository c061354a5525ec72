"""The options of one component: rendered, brought to today's keys, decoded, and everything wrong with them said."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, get_args

from pydantic import ValidationError

from imagebuilder.errors import Position, Problem
from imagebuilder.gotemplate.tokens import ExpressionError
from imagebuilder.options import Options, kind, late_fields
from imagebuilder.suggestion import did_you_mean
from imagebuilder.templates.document import Document
from imagebuilder.templates.interpolate import Doubt, Engine, Unset, describe
from imagebuilder.templates.tree import Route

T = TypeVar("T", bound=Options)

_PREDICATE = re.compile(r"(must|is|are|has|needs|takes|serves|begins?|ends?|can|can't|cannot|may|should|not)\b")
_AGAIN = "{{build `"


@dataclass(frozen=True)
class Source:
    """Keys and values as they stand in a file. `moved` are keys that stand elsewhere than under `route`."""

    raw: Mapping[str, Any]
    document: Document
    route: Route
    moved: Mapping[str, Route] = field(default_factory=dict)

    def position(self, path: Route = (), *, key: bool = False) -> Position:
        return self.document.position(self._route(path), key)

    def inside(self, path: Route, offset: int) -> Position:
        return self.document.inside(self._route(path), offset)

    def _route(self, path: Route) -> Route:
        if path and path[0] in self.moved:
            return self.moved[str(path[0])] + path[1:]
        return self.route + path


@dataclass(frozen=True)
class Decoded(Generic[T]):
    """`options` is None when there are problems; `readable` is what can be read all the same. `awaits_build`: some
    values have `{{build ...}}` in them, which is known only when the guest runs."""

    options: T | None
    problems: tuple[Problem, ...]
    warnings: tuple[Problem, ...]
    awaits_build: bool = False
    readable: T | None = None


def decode(model: type[T], source: Source, engine: Engine, build: Mapping[str, str] | None = None) -> Decoded[T]:
    """Options of `model` from what stands in the file. Nothing is raised for what a person can write."""
    return _Decoder(model, source, engine, build).decode()


class _Decoder(Generic[T]):
    def __init__(self, model: type[T], source: Source, engine: Engine, build: Mapping[str, str] | None) -> None:
        self.model, self.source, self.engine, self.build = model, source, engine, build
        self.moved = dict(source.moved)
        self.source = Source(source.raw, source.document, source.route, self.moved)
        self.raw = {key: value for key, value in source.raw.items() if value is not None}
        self.keys = {field.alias or name for name, field in model.model_fields.items()}
        self.broken: set[str] = set()
        self.awaits_build = False
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []

    def decode(self) -> Decoded[T]:
        self.rename()
        self.render()
        self.upgrade()
        self.refuse_unknown()
        options = self.validate()
        if options is not None:
            self.across(options)
        whole = None if self.broken or self.problems else options
        return Decoded(whole, tuple(self.problems), tuple(self.warnings), self.awaits_build, options)

    # --- deprecated keys

    def rename(self) -> None:
        for old, new in self.model.renamed.items():
            if old in self.raw:
                self.outdated(old, new, wins=new in self.raw)
                self.raw[new] = self.raw.pop(old)
                self.moved[new] = self.moved.get(old, (*self.source.route, old))

    def upgrade(self) -> None:
        before = set(self.raw)
        for old, instead in self.model.upgrade(self.raw):
            self.outdated(old, instead)
            for key in set(self.raw) - before:
                self.moved[key] = self.moved.get(old, (*self.source.route, old))
            before |= set(self.raw)

    def outdated(self, old: str, instead: str, *, wins: bool = False) -> None:
        words = f"'{instead}'" if re.fullmatch(r"\w+", instead) else instead
        more = f" and overrides '{instead}' beside it" if wins else ""
        where = self.source.position((old,), key=True)
        self.warnings.append(Problem(f"'{old}' is a deprecated key{more}", where, f"write {words}"))

    # --- template engine

    def render(self) -> None:
        late = late_fields(self.model)
        for key, value in list(self.raw.items()):
            wrong = len(self.problems)
            try:
                self.raw[key] = self.rendered(value, (key,), self.check if key in late else self.evaluate)
                known = True
            except Unset:
                known = False
            if len(self.problems) > wrong or not known:
                self.broken.add(key)
                del self.raw[key]

    def rendered(self, value: Any, path: Route, action: Callable[[str], tuple[str, list[Doubt]]]) -> Any:
        if isinstance(value, dict):
            return {key: self.rendered(entry, (*path, key), action) for key, entry in value.items()}
        if isinstance(value, list):
            return [self.rendered(entry, (*path, number), action) for number, entry in enumerate(value)]
        if not isinstance(value, str) or "{{" not in value:
            return value
        try:
            text, doubts = action(value)
        except ExpressionError as error:
            problem = describe(error, value)
            self.problems.append(Problem(problem.message, self.source.inside(path, error.offset), problem.hint))
            return value
        for doubt in doubts:
            self.warnings.append(Problem(doubt.message, self.source.inside(path, doubt.offset), doubt.hint))
        return text

    def check(self, text: str) -> tuple[str, list[Doubt]]:
        doubts = self.engine.check(text)
        return self.engine.settle(text), doubts

    def evaluate(self, text: str) -> tuple[str, list[Doubt]]:
        rendered, doubts = self.engine.evaluate(text, None, self.build)
        self.awaits_build = self.awaits_build or (self.build is None and _AGAIN in rendered)
        return rendered, doubts

    # --- keys and values

    def refuse_unknown(self) -> None:
        for key in [key for key in self.raw if key not in self.keys]:
            del self.raw[key]
            hint = did_you_mean(key, [*self.keys, *self.model.renamed])
            if key.startswith("_"):
                hint = "comments like '_comment' may only stand at the root of a template"
            self.problems.append(Problem(f"unknown key '{key[:60]}'", self.source.position((key,), key=True), hint))

    def validate(self) -> T | None:
        """The options; keys with wrong values are left out, so that what is wrong across keys is found as well."""
        while True:
            context: dict[str, Any] = {"warnings": []}
            try:
                options = self.model.model_validate(self.raw, context=context)
            except ValidationError as error:
                wrong = self.refuse_values(error)
                if not wrong:
                    return None
                continue
            for key, message in context["warnings"]:
                self.warnings.append(self.about(key, message))
            return options

    def refuse_values(self, error: ValidationError) -> set[str]:
        """Say what is wrong with each value and drop its key; the keys dropped."""
        wrong: set[str] = set()
        said: set[Route] = set()
        for entry in error.errors(include_url=False):
            path = tuple(entry["loc"])
            place = self.source.position(path)
            if entry["type"] == "missing" and len(path) == 1 and path[0] not in self.broken:
                self.problems.append(Problem(f"'{path[0]}' is missing", place))
            elif path[:2] not in said and (not path or path[0] not in self.broken):
                said.add(path[:2])
                self.problems.append(self.refusal(path, entry))
            if path and path[0] in self.raw:
                wrong.add(str(path[0]))
        for key in wrong:
            del self.raw[key]
        self.broken |= wrong
        return wrong

    def refusal(self, path: Route, entry: Any) -> Problem:
        if entry["type"] == "extra_forbidden":
            known = _nested_keys(self.model, path)
            where = self.source.position(path, key=True)
            return Problem(f"unknown key '{path[-1]}' in '{path[0]}'", where, did_you_mean(str(path[-1]), known))
        message, hint = _humane(entry)
        name = ".".join(str(step) for step in path if not isinstance(step, int)) or "this"
        return Problem(_sentence(name, message), self.source.position(path), hint)

    # --- across keys

    def across(self, options: T) -> None:
        for key, message in _listed(options.problems):
            if not any(key == name or re.search(rf"\b{re.escape(name)}\b", message) for name in self.broken):
                self.problems.append(self.about(key, message))
        if not self.problems:
            self.warnings += [self.about(key, message) for key, message in _listed(options.doubts)]

    def about(self, key: str, message: str) -> Problem:
        return Problem(_sentence(key, message), self.source.position((key,)))


def _listed(say: Callable[[], Iterator[tuple[str, str]]]) -> list[tuple[str, str]]:
    """All that is said; a path that the system can't even look at is a problem as well."""
    found: list[tuple[str, str]] = []
    try:
        found.extend(say())
    except OSError as error:
        found.append(("", f"'{str(error.filename)[:100]}' can't be looked at: {error.strerror}"))
    return found


def _sentence(key: str, message: str) -> str:
    if not key:
        return message
    return f"'{key}' {message}" if _PREDICATE.match(message) else f"'{key}': {message}"


def _nested_keys(model: type[Options], path: Route) -> list[str]:
    """The keys of the innermost model that a path leads into."""
    keys: list[str] = []
    for step in path[:-1]:
        found = model.model_fields.get(str(step))
        if found is not None:
            for candidate in (found.annotation, *get_args(found.annotation)):
                if isinstance(candidate, type) and issubclass(candidate, Options):
                    model, keys = candidate, list(candidate.model_fields)
    return keys


def _humane(entry: Any) -> tuple[str, str | None]:
    """What pydantic found, in our words; and a hint."""
    sort, value, context = entry["type"], entry["input"], entry.get("ctx") or {}
    if sort in ("value_error", "assertion_error"):
        return str(context.get("error", entry["msg"])), None
    if sort in ("literal_error", "enum"):
        wanted = str(context["expected"])
        return f"must be {wanted}, got {kind(value)}", did_you_mean(str(value), re.findall(r"'([^']+)'", wanted))
    limits = {"greater_than_equal": "at least {ge}", "less_than_equal": "at most {le}",
              "greater_than": "more than {gt}", "less_than": "less than {lt}"}  # fmt: skip
    if sort in limits:
        return f"must be {limits[sort].format(**context)}, got {kind(value)}", None
    if sort in ("model_type", "dict_type", "model_attributes_type", "mapping_type"):
        return f"must be an object, got {kind(value)}", None
    if sort in ("list_type", "tuple_type", "iterable_type"):
        return f"must be a list, got {kind(value)}", None
    message = str(entry["msg"])
    return message[:1].lower() + message[1:], None
