"""A template as it stands in its file: root keys, variables, builders, provisioners, post-processors.

The shape is Packer's JSON template; the same in YAML. Components are not looked into here.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from imagebuilder.errors import Problem, TemplateError
from imagebuilder.options import kind
from imagebuilder.suggestion import did_you_mean
from imagebuilder.templates import document
from imagebuilder.templates.document import Document
from imagebuilder.templates.interpolate import PACKER_VERSION
from imagebuilder.templates.tree import Route
from imagebuilder.templates.variables import Given, Variables, read

_ROOT_KEYS = (
    "min_packer_version", "description", "variables", "sensitive-variables", "builders", "provisioners",
    "error-cleanup-provisioner", "post-processors", "push",
)  # fmt: skip
_VERSION = re.compile(r"v?(\d{1,9})(?:\.(\d{1,9}))?(?:\.(\d{1,9}))?(?:[-+].*)?")


@dataclass(frozen=True)
class Entry:
    """A builder, provisioner or post-processor as it was written; `raw` is without `type`, and without `name` where
    that is not the component's own key."""

    type: str
    name: str | None
    raw: Mapping[str, Any]
    route: Route


@dataclass(frozen=True)
class Template:
    """What a template file holds. `problems` are those of its shape: a plan of it raises them with all others."""

    document: Document
    path: Path | None  # None: standard input
    description: str
    variables: Mapping[str, Given]
    sensitive: tuple[str, ...]
    builders: tuple[Entry, ...]
    provisioners: tuple[Entry, ...]
    error_cleanup: Entry | None
    post_processors: tuple[tuple[Entry, ...], ...]
    problems: tuple[Problem, ...] = field(default=())
    warnings: tuple[Problem, ...] = field(default=())

    def check(self) -> None:
        """Raises TemplateError with everything that is wrong with the shape (`validate -syntax-only`)."""
        if self.problems:
            raise TemplateError(self.problems)


def load_template(path: str | Path, stdin: str | bytes | None = None) -> Template:
    """Read a template; "-" is standard input (or the text given for it). Raises TemplateError for its syntax."""
    name = str(path)
    if name == "-":
        text = sys.stdin.buffer.read(document.MAX_BYTES + 1) if stdin is None else stdin
        return _Shape(document.load(text, "-"), None).template()
    if name.endswith(".hcl"):
        raise TemplateError(f"'{name}': HCL templates are not understood", hint="use JSON or YAML")
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise TemplateError(f"there is no template '{name}'", hint="is the path right from this directory?") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise TemplateError(f"template '{name}' can't be read: {reason}") from error
    return _Shape(document.load(content, name), Path(path)).template()


class _Shape:
    def __init__(self, source: Document, path: Path | None) -> None:
        self.source, self.path = source, path
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = list(source.warnings)
        self.root: dict[str, Any] = source.data if isinstance(source.data, dict) else {}
        if not isinstance(source.data, dict):
            got = kind(source.data) if source.text.strip() else "nothing"
            self.problem(f"a template is an object with 'builders' in it, got {got[:60]}", ())

    def problem(self, message: str, route: Route, hint: str | None = None, *, key: bool = False) -> None:
        self.problems.append(Problem(message, self.source.position(route, key), hint))

    def template(self) -> Template:
        self.root_keys()
        self.version()
        variables = self.variables()
        return Template(
            self.source,
            self.path,
            self.text("description"),
            variables,
            self.sensitive(variables),
            tuple(self.entries("builders", "builder")),
            tuple(self.entries("provisioners", "provisioner")),
            self.error_cleanup(),
            tuple(self.chains()),
            tuple(self.problems),
            tuple(self.warnings),
        )

    def root_keys(self) -> None:
        for key in self.root:
            if key in _ROOT_KEYS or key.startswith("_"):
                continue
            hint = did_you_mean(key, _ROOT_KEYS) or "a comment's key begins with '_'"
            self.problem(f"unknown root key '{key[:60]}'", (key,), hint, key=True)
        if "push" in self.root:
            where = self.source.position(("push",), True)
            self.warnings.append(Problem("'push' has no effect: the service it was for is gone", where, "remove it"))

    def text(self, key: str) -> str:
        value = self.root.get(key)
        if value is not None and not isinstance(value, str):
            self.problem(f"'{key}' must be a string, got {kind(value)}", (key,))
        return value if isinstance(value, str) else ""

    def version(self) -> None:
        wanted = self.source.spelling(("min_packer_version",)) or self.text("min_packer_version")
        found = _VERSION.fullmatch(wanted)
        if wanted and found is None:
            self.problem(f"'{wanted[:60]}' is no version", ("min_packer_version",), "write it like '1.6.0'")
        elif found and [int(part or 0) for part in found.groups()] > [int(part) for part in PACKER_VERSION.split(".")]:
            message = f"the template wants Packer {wanted}; imgbuild understands the templates of {PACKER_VERSION}"
            self.problem(message, ("min_packer_version",))

    def variables(self) -> dict[str, Given]:
        if self.root.get("variables") is None:
            return {}
        found = Variables()
        declared = read(self.source, ("variables",), self.root["variables"], found, nullable=True)
        self.problems += found.problems
        self.warnings += found.warnings
        return declared

    def sensitive(self, declared: Mapping[str, Given]) -> tuple[str, ...]:
        names = self.items("sensitive-variables")
        for number, name in enumerate(names):
            route = ("sensitive-variables", number)
            if not isinstance(name, str):
                self.problem(f"must be the name of a variable, got {kind(name)}", route)
            elif name not in declared:
                message = f"there is no variable '{name[:60]}' to keep secret"
                self.warnings.append(Problem(message, self.source.position(route), did_you_mean(name, declared)))
        return tuple(name for name in names if isinstance(name, str))

    def items(self, key: str) -> list[Any]:
        value = self.root.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            self.problem(f"'{key}' must be a list, got {kind(value)}", (key,))
            return []
        return value

    def entries(self, key: str, what: str) -> list[Entry]:
        found = [self.entry(raw, (key, n), f"{what} {n + 1}") for n, raw in enumerate(self.items(key))]
        return [entry for entry in found if entry is not None]

    def error_cleanup(self) -> Entry | None:
        key = "error-cleanup-provisioner"
        return self.entry(self.root[key], (key,), f"'{key}'") if self.root.get(key) is not None else None

    def entry(self, raw: Any, route: Route, what: str) -> Entry | None:
        if not isinstance(raw, dict):
            self.problem(f"{what} must be an object with a 'type', got {kind(raw)}", route)
            return None
        named = route[0] in ("builders", "post-processors")
        kept = {key: value for key, value in raw.items() if key != "type" and not (named and key == "name")}
        sort, name = raw.get("type"), raw.get("name")
        if name is not None and not isinstance(name, (str, int, float)):
            self.problem(f"'name' must be a string, got {kind(name)}", (*route, "name"))
            name = None
        if not isinstance(sort, str) or not sort:
            near = next((key for key in kept if did_you_mean(key, ["type"])), None)
            hint = f"is '{near}' meant to be 'type'?" if near else None
            got = f", got {kind(sort)}" if sort is not None else ""
            self.problem(f"{what} has no 'type'" if not got else f"'type' must be a string{got}", route, hint)
            return None
        return Entry(sort, str(name) if named and name not in (None, "") else None, kept, route)

    def chains(self) -> list[tuple[Entry, ...]]:
        """Each root entry is a chain of its own: "type", {...}, or a list of them."""
        return [
            tuple(self.chain(raw, ("post-processors", number), f"post-processor {number + 1}"))
            for number, raw in enumerate(self.items("post-processors"))
        ]

    def chain(self, raw: Any, route: Route, what: str) -> list[Entry]:
        if not isinstance(raw, list):
            found = [self.post_processor(raw, route, what)]
        else:
            found = []
            for number, step in enumerate(raw):
                if isinstance(step, list):
                    self.problem(f"{what}.{number + 1}: a list can't stand in a list", (*route, number))
                else:
                    found.append(self.post_processor(step, (*route, number), f"{what}.{number + 1}"))
        return [entry for entry in found if entry is not None]

    def post_processor(self, raw: Any, route: Route, what: str) -> Entry | None:
        return Entry(raw, None, {}, route) if isinstance(raw, str) and raw else self.entry(raw, route, what)
