"""What the commands of `imgbuild` share: their options, the plan that follows from them, and where they speak.

Options are click's; a person may write each with one dash, as Packer's (`cli.normalise`).
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping
from typing import IO, Any, TypeVar

import click

from imagebuilder import ui
from imagebuilder.errors import TemplateError
from imagebuilder.options import bytes_of, seconds
from imagebuilder.plugins import OnError
from imagebuilder.templates import template

F = TypeVar("F", bound=Callable[..., Any])


def options(*decorators: Callable[[F], F]) -> Callable[[F], F]:
    """Several of click's decorators as one."""

    def apply(function: F) -> F:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return apply


TEMPLATE = click.argument("path", metavar="TEMPLATE")
VARIABLES = options(
    click.option("--var", "variables", multiple=True, metavar="NAME=VALUE", help="Set a variable; may be repeated."),
    click.option("--var-file", "var_files", multiple=True, metavar="FILE", help="JSON or YAML file of variables."),
)
SELECTION = options(
    click.option("--only", metavar="A,B", help="Only the builds with these names."),
    click.option("--except", "except_", metavar="A,B", help="Not the builds and post-processors with these names."),
)


def plan_of(path: str, given: Mapping[str, Any]) -> template.Plan:
    """The builds of a template under these options. Raises TemplateError with all that is wrong."""
    return template.plan_builds(
        template.load_template(path),
        variables=[_assignment(word) for word in given["variables"]],
        var_files=given["var_files"],
        only=_names(given["only"]),
        except_=_names(given["except_"]),
        on_error=OnError(given.get("on_error") or OnError.CLEANUP),
        force=bool(given.get("force")),
        debug=bool(given.get("debug")),
        environ=os.environ,
    )


def age(text: str | None, option: str) -> float | None:
    """Seconds; days too, which durations of templates don't know. Raises TemplateError."""
    if text is None:
        return None
    try:
        found = float(text[:-1]) * 86400 if re.fullmatch(r"\d+(\.\d+)?d", text) else seconds(text)
        if found < 0:
            raise ValueError(f"'{text}' is negative")
    except ValueError as error:
        raise TemplateError(f"-{option}: '{text}' is no age: write it like '7d', '12h' or '30m'") from error
    return found


def size(text: str | None, option: str) -> int | None:
    """Bytes. Raises TemplateError."""
    if text is None:
        return None
    try:
        return bytes_of(text)
    except ValueError as error:
        raise TemplateError(f"-{option}: {error}") from error


def console_of(
    context: click.Context, color: bool | None = None, timestamps: bool = False, *, out: IO[str] | None = None
) -> ui.Console:
    """Where a command speaks, in the style that the person chose. `out`: there, and without live progress.

    It is closed with the command, however that ends: live progress hides the terminal's cursor.
    """
    style, stream = context.find_root().obj, out or sys.stdout
    if style == "machine":
        return ui.MachineConsole(stream)
    if style == "json":
        return ui.JsonConsole(stream)
    plain = any(os.environ.get(name) for name in ("NO_COLOR", "PACKER_NO_COLOR"))
    coloured = stream.isatty() and not plain if color is None else color
    console = ui.TextConsole(stream, None if out else sys.stderr, color=coloured, timestamps=timestamps)
    context.call_on_close(console.close)
    return console


def _assignment(word: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not equals or not name:
        raise TemplateError(f"-var '{word}' is not of the form NAME=VALUE")
    return name, value


def _names(words: str | None) -> tuple[str, ...]:
    return tuple(filter(None, (word.strip() for word in (words or "").split(","))))
