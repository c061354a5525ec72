"""What a component's options are made of: pydantic models whose fields are the keys a template may hold.

Values come as Packer takes them (mapstructure's weak decoding: "4" is a number where one is wanted, 5 a string); what
Packer takes silently in a way nobody means, like a bare number for a duration, is taken as meant and said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationInfo

from imagebuilder.inputs import Input

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_SHOWN = 80
_LONGEST = 290 * 365 * 86400.0  # what Go's int64 of nanoseconds holds
_TRUE, _FALSE = {"1", "t", "T", "TRUE", "true", "True"}, {"0", "f", "F", "FALSE", "false", "False"}
_SIZE = {"": 2**20, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


class Late:
    """Marks a field whose templates are rendered when it is used (boot_command, execute_command, output ...)."""


LATE = Late()


class Options(BaseModel):
    """Options of one component. A subclass's fields are its keys; their descriptions are its documentation."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)

    renamed: ClassVar[Mapping[str, str]] = {}
    """Old key -> new key: understood, with a warning that names the new one."""

    @classmethod
    def upgrade(cls, raw: dict[str, Any]) -> Iterator[tuple[str, str]]:
        """Bring deprecated keys of `raw` to today's form in place; yields (old key, what to write instead)."""
        yield from ()

    def problems(self) -> Iterator[tuple[str, str]]:
        """Everything wrong across fields or with files they name, as (key, message); all of it, not the first."""
        yield from ()

    def doubts(self) -> Iterator[tuple[str, str]]:
        """What is allowed but probably not meant, as (key, message)."""
        yield from ()

    def inputs(self) -> Sequence[Input] | None:
        """All that can change what this provisioner does to the guest, and nothing else: what its layer is found by.

        None: that can't be seen from here, so nothing is kept of the step unless the template gives a cache_key.
        Raises StoreError for a file that can't be read.
        """
        return None


def seconds(text: str) -> float:
    """A Go duration ("1h30m", "500ms", "-1s", "0") in seconds; ValueError tells what is wrong."""
    body = text.strip().lstrip("+-")
    if body == "0":
        return 0.0
    total, position = 0.0, 0
    while position < len(body):
        part = _DURATION.match(body, position)
        if part is None or part.group(0)[0] in "+-":
            break
        total += float(part.group(1)) * _UNITS[part.group(3)]
        position = part.end()
    if not body or position < len(body):
        bare = re.fullmatch(r"[\d.]+", body)
        instead = f"write '{body}s'" if bare else "write it like '90s', '5m' or '1h30m'"
        raise ValueError(f"'{text}' is not a duration: {instead}")
    if total > _LONGEST:
        raise ValueError(f"'{text[:40]}' is too long a duration")
    return -total if text.strip().startswith("-") else total


def bytes_of(text: str | int) -> int:
    """A disk size in Packer's spelling ("40960", "10G", "512m"; no unit means MiB) in bytes."""
    found = re.fullmatch(r"(\d{1,15})([bkmgt]?)", str(text)[:40].strip(), re.IGNORECASE)
    if found is None:
        raise ValueError(f"'{text}' is not a size: write it like '10G' or '40960M' (one letter of b, k, m, g, t)")
    return int(found.group(1)) * _SIZE[found.group(2).lower()]


def warn(info: ValidationInfo, message: str) -> None:
    """Say something about the field that is being validated."""
    if info.context is not None:
        info.context.setdefault("warnings", []).append((info.field_name, message))


def _duration(value: Any, info: ValidationInfo) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError(f"must be a duration like '5m', got {kind(value)}")
    if isinstance(value, str):
        return seconds(value)
    if abs(value) > _LONGEST:
        raise ValueError(f"the number {value:.12g} is too long a duration")
    if value:
        warn(info, f"{value:g} has no unit (Packer takes it as nanoseconds): taken as seconds, write '{value:g}s'")
    return float(value)


def _boolean(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return bool(value)
    if isinstance(value, str) and (value in _TRUE or value in _FALSE or value == ""):
        return value in _TRUE
    raise ValueError(f"must be true or false, got {kind(value)}")


def _integer(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value.strip()):
        return int(value)
    if value == "" and isinstance(value, str):
        return 0
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or abs(value) >= 2**63:
        raise ValueError(f"must be a whole number, got {kind(value)}")
    return value


def _text(value: Any) -> Any:
    if isinstance(value, bool):
        return "1" if value else "0"
    if isinstance(value, (int, float)):
        return _plain(value)
    if not isinstance(value, str):
        raise ValueError(f"must be a string, got {kind(value)}")
    return value


def _plain(value: int | float) -> str:
    """All digits of a number and no exponent, as Packer writes one where a string is wanted."""
    if isinstance(value, int) or "e" not in repr(value):
        return str(int(value) if isinstance(value, float) and value.is_integer() else value)
    return f"{value:.17f}".rstrip("0").rstrip(".")


def _texts(value: Any) -> Any:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",")) if value else ()
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"must be a list of strings, got {kind(value)}")
    return tuple(_text(entry) for entry in value)


def _lines(value: Any) -> Any:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"must be a list of strings, got {kind(value)}")
    return tuple(_text(entry) for entry in value)


def _map(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"must be an object with string values, got {kind(value)}")
    return {str(key): _text(entry) for key, entry in value.items()}


def kind(value: Any) -> str:
    """How a wrong value is named in a message."""
    if isinstance(value, str):
        return f"'{value}'" if len(value) <= _SHOWN else f"'{value[:_SHOWN]}...'"
    names = {dict: "an object", list: "a list", tuple: "a list", type(None): "null"}
    return names.get(type(value)) or (str(value).lower() if isinstance(value, bool) else f"the number {value:.12g}")


Duration = Annotated[float, BeforeValidator(_duration)]
"""Seconds; written as a Go duration."""
Bool = Annotated[bool, BeforeValidator(_boolean)]
Int = Annotated[int, BeforeValidator(_integer)]
Text = Annotated[str, BeforeValidator(_text)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_texts)]
"""A list of strings; one string is split at its commas."""
Lines = Annotated[tuple[str, ...], BeforeValidator(_lines)]
"""A list of strings; one string is a list of one (it may hold commas)."""
TextMap = Annotated[dict[str, str], BeforeValidator(_map)]
Size = Annotated[int, BeforeValidator(bytes_of)]
"""Bytes; written '10G', '40960M', '40960' (MiB)."""


def late_fields(model: type[Options]) -> frozenset[str]:
    """Names of the fields whose templates are rendered at the time of their use."""
    return frozenset(name for name, field in model.model_fields.items() if LATE in field.metadata)
