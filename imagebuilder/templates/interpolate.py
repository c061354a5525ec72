"""Packer's template engine: `{{user `x`}}`, `{{isotime}}` and its other functions on top of Go's template language.

What Packer swallows in silence (an undeclared variable, a printf that does not fit) is rendered as Packer does and
said as a doubt; a field like `.Foo` that has no value is an error.
"""

from __future__ import annotations

import re
import secrets
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import imagebuilder
from imagebuilder.errors import Problem, TemplateError
from imagebuilder.gotemplate import execute as goexecute
from imagebuilder.gotemplate import parse as gotemplate
from imagebuilder.gotemplate.functions import MAX_LENGTH, Signature, builtins
from imagebuilder.gotemplate.layouts import RFC3339, format_time, strftime
from imagebuilder.gotemplate.tokens import ExpressionError, action_at
from imagebuilder.suggestion import did_you_mean

PACKER_VERSION = "1.15.0"
"""The Packer whose templates are understood; `min_packer_version` is held against it."""

STARTED = datetime.now(UTC)
"""What isotime, timestamp and strftime write: one moment for all builds of a run."""

BUILD_DATA = (
    "ID", "Host", "Port", "User", "Password", "ConnType", "PackerRunUUID", "PackerHTTPIP", "PackerHTTPPort",
    "PackerHTTPAddr", "SSHPublicKey", "SSHPrivateKey", "SSHPrivateKeyFile", "SSHAgentAuth", "WinRMPassword",
)  # fmt: skip
"""What the function `build` knows once the guest runs."""

_MAX_DEPTH = 5
_USER = re.compile(r"\{\{[ \t]*user[ \t]+(?:`([^`]*)`|\"([^\"\\]*)\")[ \t]*\}\}")
_SECRETS = ("consul_key", "vault", "aws_secretsmanager", "aws_secretsmanager_raw")


@dataclass(frozen=True)
class Doubt:
    """What Packer would take in silence, and where in the text it stands."""

    message: str
    offset: int
    hint: str | None = None


class Unset(Exception):
    """A variable is needed whose value is a problem that was said already."""


@dataclass(frozen=True)
class Engine:
    """Renders the texts of one build; it is a plugins.Renderer. `environ` is for texts that may use `env` (those of
    variables); `template_directory` is None when the template came from standard input."""

    variables: Mapping[str, str]
    build_name: str | None = None
    builder_type: str | None = None
    template_directory: Path | None = None
    environ: Mapping[str, str] | None = None
    started: datetime = STARTED
    missing: Callable[[str], str] | None = field(default=None, repr=False)
    """Asked for a variable that `variables` lacks, while variables are resolved: then actions that begin with a field,
    like `{{ .HTTPIP }}`, are left alone, to be rendered where the variable is used."""
    unset: frozenset[str] = frozenset()
    """Variables whose value is a problem that was said already."""

    def render(self, text: str, dot: Mapping[str, Any] | None = None, build: Mapping[str, str] | None = None) -> str:
        """The text with its actions done. Raises TemplateError that quotes the action that is wrong."""
        try:
            return self.evaluate(text, dot, build)[0]
        except ExpressionError as error:
            raise TemplateError([describe(error, text)]) from None

    def evaluate(
        self, text: str, dot: Mapping[str, Any] | None = None, build: Mapping[str, str] | None = None
    ) -> tuple[str, list[Doubt]]:
        """The rendered text and what is doubtful about it. Raises ExpressionError, which knows the offset.

        Without `build` (the guest does not run yet) the function of that name puts itself back, to be rendered again;
        with an empty one it is refused. Raises Unset for a variable in `unset`.
        """
        doubts: list[Doubt] = []
        return self._run(text, dot, build, doubts, 0), doubts

    def _run(
        self,
        text: str,
        dot: Mapping[str, Any] | None,
        build: Mapping[str, str] | None,
        doubts: list[Doubt],
        depth: int,
    ) -> str:
        if "{{" not in text:
            return text
        if depth > _MAX_DEPTH:
            raise ExpressionError("variables hold each other again and again", 0)
        functions = _Functions(self, build, doubts, lambda inner: self._run(inner, dot, build, [], depth + 1))
        table = functions.table()
        nodes = gotemplate.parse(text, table, fields_later=self.missing is not None)
        return goexecute.execute(nodes, dot, table, functions.called)

    def check(self, text: str) -> list[Doubt]:
        """What is doubtful about a text that is rendered later. Raises ExpressionError when it can't be rendered."""
        doubts: list[Doubt] = []
        self._check(text, doubts, 0)
        return doubts

    def _check(self, text: str, doubts: list[Doubt], depth: int) -> str:
        if depth > _MAX_DEPTH:
            raise ExpressionError("variables hold each other again and again", 0)
        functions = _Functions(self, None, doubts, lambda inner: self._check(inner, [], depth + 1))
        table = functions.table()
        for function, arguments in gotemplate.calls(gotemplate.parse(text, table)):
            if arguments is not None and function.name in ("user", "env", "build", "sed", *_SECRETS):
                try:
                    table[function.name].check(arguments)
                    table[function.name].call(*arguments)
                except ValueError as error:
                    raise goexecute.refusal(function, error) from None
                functions.called(function.offset)
        return text

    def settle(self, text: str) -> str:
        """The text with every plain `{{user `name`}}` replaced, and all else left for later: what is typed or run then
        can be looked at now."""
        return _USER.sub(lambda found: self.variables.get(found[1] or found[2] or "", found[0]), text)


def describe(error: ExpressionError, text: str) -> Problem:
    """What is wrong with an action, quoting it."""
    return Problem(f"in '{action_at(text, error.offset)}': {error.problem.message}", None, error.problem.hint)


class _Functions:
    """Packer's functions for one text of one build."""

    def __init__(
        self, engine: Engine, build: Mapping[str, str] | None, doubts: list[Doubt], inner: Callable[[str], str]
    ) -> None:
        self.engine, self.build_data, self.doubts, self.inner = engine, build, doubts, inner
        self.fresh: list[Doubt] = []

    def table(self) -> dict[str, Signature]:
        """Every function that a template may call."""
        return builtins(self.doubt) | {
            "user": Signature(self.user, (str,)),
            "env": Signature(self.env, (str,)),
            "build": Signature(self.build, (str,)),
            "build_name": Signature(lambda: self.known("build_name", self.engine.build_name)),
            "build_type": Signature(lambda: self.known("build_type", self.engine.builder_type)),
            "template_dir": Signature(lambda: str(self.engine.template_directory or Path.cwd())),
            "pwd": Signature(lambda: str(Path.cwd())),
            "isotime": Signature(lambda layout=RFC3339: format_time(self.engine.started, layout), (str,), optional=1),
            "timestamp": Signature(lambda: str(int(self.engine.started.timestamp()))),
            "strftime": Signature(lambda pattern: strftime(self.engine.started, pattern), (str,)),
            "uuid": Signature(time_ordered_uuid),
            "packer_version": Signature(lambda: PACKER_VERSION),
            "imgbuild_version": Signature(lambda: imagebuilder.__version__),
            "split": Signature(_split, (str, str, int)),
            "replace": Signature(_replace, (str, str, int, str)),
            "replace_all": Signature(lambda old, new, text: _replace(old, new, -1, text), (str, str, str)),
            "lower": Signature(str.lower, (str,)),
            "upper": Signature(str.upper, (str,)),
            "clean_resource_name": Signature(_clean_resource_name, (str,)),
            "sed": Signature(_sed, rest=object),
            **{name: Signature(_no_secrets, rest=object) for name in _SECRETS},
        }

    def doubt(self, message: str, hint: str | None = None) -> None:
        self.fresh.append(Doubt(message, 0, hint))

    def called(self, offset: int) -> None:
        """A function was called at that offset: fresh doubts belong there."""
        self.doubts += [replace(doubt, offset=offset) for doubt in self.fresh]
        self.fresh.clear()

    def user(self, name: str) -> str:
        if name in self.engine.variables:
            value = self.engine.variables[name]
            return value if self.engine.missing is not None else self.rendered(name, value)
        if self.engine.missing is not None:
            return self.engine.missing(name)
        if name in self.engine.unset:
            raise Unset
        hint = did_you_mean(name, self.engine.variables) or f'add it to \'variables\': "{name}": ""'
        self.doubt(f"'{name[:60]}' is not among the variables: nothing is put in its place", hint)
        return ""

    def rendered(self, name: str, value: str) -> str:
        """A variable may hold actions, like `{{ .HTTPIP }}`, which are done where it is used."""
        try:
            return self.inner(value)
        except ExpressionError as error:
            action = action_at(value, error.offset)
            message = f"'{name[:60]}' holds '{action}': {error.problem.message}"
            raise ValueError(message, error.problem.hint) from None

    def env(self, name: str) -> str:
        if self.engine.environ is None:
            instead = f'"{name[:60].lower()}": "{{{{env `{name[:60]}`}}}}"'
            raise ValueError("the environment can only be read in 'variables'", f"declare {instead} there")
        return self.engine.environ.get(name, "")

    def build(self, name: str) -> str:
        if self.build_data == {}:
            raise ValueError("has no value before there is a guest", "use it in a provisioner or post-processor")
        if self.build_data is None:
            if name not in BUILD_DATA:
                hint = did_you_mean(name, BUILD_DATA) or f"known are {', '.join(BUILD_DATA)}"
                raise ValueError(f"'{name[:60]}' is nothing that a build knows", hint)
            return "{{build `" + name + "`}}"
        if name not in self.build_data:
            known = f"known are {', '.join(sorted(self.build_data))}"
            raise ValueError(f"'{name[:60]}' is not known here", did_you_mean(name, self.build_data) or known)
        return self.build_data[name]

    @staticmethod
    def known(name: str, value: str | None) -> str:
        if value is None:
            raise ValueError("has no value here", "use it in a builder, provisioner or post-processor")
        return value


def _split(text: str, separator: str, number: int) -> str:
    parts = text.split(separator) if separator else list(text)
    if not 0 <= number < len(parts):
        raise ValueError(f"there is no part {number}: '{text[:60]}' has {len(parts)} between '{separator[:60]}'")
    return parts[number]


def _replace(old: str, new: str, count: int, text: str) -> str:
    found = text.count(old) if count < 0 else min(text.count(old), count)
    if len(text) + found * (len(new) - len(old)) > MAX_LENGTH:
        raise ValueError(f"the result is longer than {MAX_LENGTH} characters")
    return text.replace(old, new, count)


def _clean_resource_name(text: str) -> str:
    """What is allowed in names of all clouds: letters, digits and dashes."""
    return re.sub(r"[^A-Za-z0-9-]", "-", text)


def _sed(*_: object) -> str:
    raise ValueError("is not supported, in Packer neither", "use 'replace' or 'replace_all'")


def _no_secrets(*_: object) -> str:
    hint = (
        "put it into the environment, declare \"x\": \"{{env `X`}}\" in 'variables', and 'x' in 'sensitive-variables'"
    )
    raise ValueError("this store of secrets is not supported", hint)


def time_ordered_uuid() -> str:
    """A new UUID that begins with the time: 32 bits of Unix seconds, the rest random."""
    return str(uuid.UUID(bytes=int(time.time()).to_bytes(5, "big")[1:] + secrets.token_bytes(12)))
