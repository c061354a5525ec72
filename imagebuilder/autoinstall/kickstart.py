"""Autoinstall files (kickstart, preseed, autoinstall, AutoYaST) rendered from Jinja2 templates.

Templates are data, perhaps somebody else's: they run in Jinja2's immutable sandbox, with bounds on time and size. An
unknown variable is an error with its place. kickstarts/README.md tells authors what they may use.
"""

from __future__ import annotations

import functools
import json
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from jinja2 import ChainableUndefined, FileSystemLoader, StrictUndefined, Template, nodes
from jinja2.exceptions import SecurityError, TemplateNotFound, TemplateSyntaxError, UndefinedError
from jinja2.exceptions import TemplateError as JinjaError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from imagebuilder import paths
from imagebuilder.autoinstall.shacrypt import sha512_crypt
from imagebuilder.errors import ImgbuildError, Position, Problem, TemplateError
from imagebuilder.suggestion import did_you_mean

LONGEST = 8 << 20  # bytes a template may render to
TIME_LIMIT = 10.0  # seconds a template may take
_VALUE = 1 << 20  # characters, elements or bits an expression may make
_PROBLEMS = 20  # unknown variables reported at once

_deadline: ContextVar[float] = ContextVar("deadline", default=float("inf"))


class _TooMuch(Exception):
    """A template broke a bound."""


def render(template: str | Path, variables: Mapping[str, object], *, search: Sequence[Path] = ()) -> str:
    """A template's text with these variables.

    It is looked for relative to the current directory, then in `search`, then among the shipped ones; what it includes,
    beside it, in `snippets/` beside it, and among the shipped. Raises TemplateError with file, line and column.
    """
    path = find(template, search)
    known, problems = dict(variables), list[Problem]()
    while True:
        text, problem, missing = _attempt(path, known)
        if problem is not None and (missing or not problems):  # what else goes wrong later is perhaps no fault
            problems.append(problem)
        if text is not None and not problems:
            return text
        if not missing or len(problems) >= _PROBLEMS:
            raise TemplateError(problems)
        known[missing] = ChainableUndefined()  # go on, to see what else is wrong


def check(text: str, flavour: str, version: str | None = None) -> list[str]:
    """What is wrong with a rendered file (see `autoinstallcheck.check`)."""
    from imagebuilder.autoinstall import (
        check as autoinstallcheck,
    )  # pykickstart takes its time, and a build needs only to render

    return autoinstallcheck.check(text, flavour, version)


def find(template: str | Path, search: Sequence[Path] = ()) -> Path:
    """The file a template's name means. TemplateError when there is none."""
    shipped = paths.shipped("kickstarts")
    for folder in (Path(), *search, shipped):
        if (folder / template).is_file():
            return (folder / template).absolute()
    names = [path.relative_to(shipped).as_posix() for path in shipped.rglob("*.j2")] if shipped.is_dir() else []
    hint = did_you_mean(str(template), names) or f"shipped ones lie in '{shipped}'"
    raise TemplateError([Problem(f"there is no kickstart template '{template}'", hint=hint)])


def _attempt(path: Path, variables: Mapping[str, object]) -> tuple[str | None, Problem | None, str]:
    """The text, or what is wrong; with an unknown variable also its name."""
    token = _deadline.set(time.monotonic() + TIME_LIMIT)
    try:
        return _bounded(_environment(path.parent).get_template(path.name), variables), None, ""
    except TemplateSyntaxError as error:
        return None, Problem(error.message or "syntax error", _position(error.filename or str(path), error.lineno)), ""
    except TemplateNotFound as error:
        found = Problem(f"there is no template '{error.name}' to include", _place(error, path))
        return None, found, ""
    except UndefinedError as error:
        return None, *_undefined(error, path, variables)
    except (JinjaError, _TooMuch, OverflowError, ArithmeticError, TypeError, ValueError, LookupError) as error:
        reason = f"not allowed: {error}" if isinstance(error, SecurityError) else str(error) or type(error).__name__
        return None, Problem(reason, _place(error, path)), ""
    except (AttributeError, RecursionError, MemoryError) as error:
        return None, Problem(f"{type(error).__name__}: {error}", _place(error, path)), ""
    except (OSError, ImgbuildError) as error:
        return None, Problem(str(error), _position(str(path), 1)), ""
    finally:
        _deadline.reset(token)


def _bounded(template: Template, variables: Mapping[str, object]) -> str:
    pieces, length = [], 0
    for piece in template.generate(variables):
        pieces.append(piece)
        length += len(piece)
        if length > LONGEST:
            raise _TooMuch(f"it renders to more than {LONGEST >> 20} MiB")
        _tick()
    return "".join(pieces)


def _tick() -> None:
    """Called at every turn of a loop and every call of a macro."""
    if time.monotonic() > _deadline.get():
        raise _TooMuch(f"it takes longer than {TIME_LIMIT:g} s: is there a loop in a loop?")


def _undefined(error: UndefinedError, path: Path, variables: Mapping[str, object]) -> tuple[Problem, str]:
    message = error.message or "something is undefined"
    name = re.fullmatch(r"'(\w+)' is undefined", message)
    place = _place(error, path)
    if name is None:
        return Problem(message, place), ""
    known = [variable for variable, value in variables.items() if not isinstance(value, ChainableUndefined)]
    hint = did_you_mean(name[1], known) or f"known are {', '.join(sorted(known)) or 'none'}"
    return Problem(f"variable '{name[1]}' is not set", _column(place, name[1]), hint), name[1]


def _place(error: BaseException, path: Path) -> Position:
    """Where in a template it happened: Jinja2 writes its lines into the traceback."""
    place, trace = _position(str(path), 1), error.__traceback__
    while trace is not None:
        if "__jinja_exception__" in trace.tb_frame.f_globals:
            place = _position(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    return place


def _position(file: str, line: int) -> Position:
    shown = Path(file)
    if shown.is_relative_to(Path.cwd()):
        shown = shown.relative_to(Path.cwd())
    return Position(str(shown), line, 1)


def _column(place: Position, word: str) -> Position:
    try:
        line = Path(place.file).read_text(encoding="utf-8").splitlines()[place.line - 1]
    except (OSError, ValueError, IndexError):
        return place
    found = re.search(rf"\b{re.escape(word)}\b", line)
    return Position(place.file, place.line, found.start() + 1 if found else 1)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with a tick in every loop and macro and bounds on what operators and methods of text can make."""

    intercepted_binops = frozenset({"*", "**", "%", "+"})

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        loops: Iterator[Any] = tree.find_all((nodes.For, nodes.Macro))
        for node in list(loops):
            call = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
            statement = nodes.ExprStmt(call).set_lineno(node.lineno)
            node.body.insert(0, statement.set_environment(self))
        return tree

    @staticmethod
    def tick() -> str:
        _tick()
        return ""

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if _size(operator, left, right) > _VALUE:
            raise _TooMuch(f"'{operator}' would make something too large")
        return super().call_binop(context, operator, left, right)

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        numbers = [value for value in (*args, *kwargs.values()) if isinstance(value, int)]
        if isinstance(getattr(function, "__self__", None), (str, bytes, int)) and max(numbers, default=0) > _VALUE:
            raise _TooMuch(f"'{function.__name__}' would make something too large")
        return super().call(context, function, *args, **kwargs)


def _size(operator: str, left: Any, right: Any) -> float:
    """About how many characters, elements or bits an operator makes."""
    if operator == "%" and isinstance(left, str):
        return max((float(digits) for digits in re.findall(r"\d+", left)), default=0)
    if operator == "**":
        return float(right) * max(left.bit_length(), 1) if isinstance(left, int) and isinstance(right, int) else 0
    if operator == "+":
        return len(left) + len(right) if isinstance(left, (str, list)) and isinstance(right, (str, list)) else 0
    for one, other in ((left, right), (right, left)):
        if isinstance(one, (str, bytes, list, tuple)) and isinstance(other, int):
            return float(len(one) * other)
    return 0


@functools.lru_cache(maxsize=64)
def _environment(folder: Path) -> _Environment:
    """The environment of the templates in a directory; they are compiled once and again when they change."""
    shipped = paths.shipped("kickstarts")
    environment = _Environment(
        loader=FileSystemLoader([folder, folder / "snippets", shipped, shipped / "snippets"]),
        undefined=StrictUndefined, autoescape=False, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters.update(FILTERS)
    for name in ("center", "indent"):
        environment.filters[name] = _narrow(environment.filters[name])
    del environment.globals["lipsum"]
    return environment


def _narrow(original: Callable[..., str]) -> Callable[..., str]:
    """A filter whose width is bounded."""

    def bounded(text: str, width: int | str = 4, *args: Any, **kwargs: Any) -> str:
        if isinstance(width, int) and width > 1000:
            raise _TooMuch(f"a width of {width} is too large")
        return original(text, width, *args, **kwargs)

    return bounded


def shell(value: object) -> str:
    """One word of a shell or kickstart command, quoted where needed."""
    return shlex.quote(str(value))


def yaml(value: object) -> str:
    """A YAML 1.1 and 1.2 value in flow style (JSON, with everything escaped that a YAML reader refuses raw)."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def xml(value: object) -> str:
    """Text or an attribute's value of an XML document; ValueError for characters that XML 1.0 can't hold."""
    text = str(value)
    wrong = re.search("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text)
    if wrong:
        raise ValueError(f"character {wrong.group()!r} can't be in an XML document")
    return escape(text, {'"': "&quot;", "'": "&apos;"})


def oneline(value: object) -> str:
    """Text for where a line break would begin another command (preseed, kickstart); ValueError when it has one."""
    text = str(value)
    if len(text.splitlines()) > 1 or text != text.rstrip("\r\n"):
        raise ValueError(f"{text!r} holds a line break")
    return text


FILTERS: Mapping[str, Callable[..., str]] = {
    "shell": shell,
    "yaml": yaml,
    "xml": xml,
    "oneline": oneline,
    "sha512_crypt": lambda value, salt=None: sha512_crypt(str(value), salt),
}
"""Filters of templates, beside Jinja2's own."""
