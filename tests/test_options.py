from __future__ import annotations

from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter, ValidationError

from imagebuilder.options import (
    LATE,
    Bool,
    Duration,
    Int,
    Lines,
    Options,
    Size,
    Text,
    TextMap,
    Texts,
    bytes_of,
    kind,
    late_fields,
    seconds,
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "value"),
    [("5m", 300), ("1h30m", 5400), ("500ms", 0.5), ("1.5s", 1.5), ("-1s", -1), ("0", 0), ("+2s", 2), (".5s", 0.5),
     ("1us", 1e-6), ("1µs", 1e-6), ("1ns", 1e-9), ("1h1m1s1ms", 3661.001)],
)  # fmt: skip
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "'5' is not a duration: write '5s'"),
        ("1.5", "write '1.5s'"),
        ("", "write it like '90s', '5m' or '1h30m'"),
        ("5 m", "write it like"),
        ("m", "write it like"),
        ("5mm", "write it like"),
        ("5m-1s", "write it like"),
        ("1d", "write it like"),
        ("9" * 400 + "h", "too long a duration"),
    ],
)
def test_no_durations(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        seconds(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [("40960", 40960 * 2**20), (40960, 40960 * 2**20), ("10G", 10 * 2**30), ("512m", 2**29), ("1T", 2**40),
     ("64K", 2**16),
     ("100b", 100)],
)  # fmt: skip
def test_sizes(text: str | int, value: int) -> None:
    assert bytes_of(text) == value


@pytest.mark.parametrize("text", ["10GB", "10 G", "-1", "", "G", "1.5G", "9" * 5000], ids=lambda text: text[:10])
def test_no_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size: write it like '10G'"):
        bytes_of(text)


@pytest.mark.parametrize(
    ("model", "given", "value"),
    [
        (Bool, "true", True), (Bool, "T", True), (Bool, "0", False), (Bool, 1, True), (Bool, False, False),
        (Bool, "", False),
        (Int, "4", 4), (Int, 4.0, 4), (Int, "-3", -3), (Int, True, 1), (Int, "", 0),
        (Text, 5, "5"), (Text, 1.5, "1.5"), (Text, True, "1"), (Text, False, "0"),
        (Text, 1e21, "1000000000000000000000"),
        (Text, 1234567.25, "1234567.25"), (Text, 2.0, "2"), (Text, 1e-7, "0.0000001"),
        (Texts, "a, b", ("a", "b")), (Texts, "", ()), (Texts, ["a,b", 3], ("a,b", "3")),
        (Lines, "a,b", ("a,b",)), (Lines, ["a", 1], ("a", "1")),
        (TextMap, {"a": 1, "b": True}, {"a": "1", "b": "1"}),
        (Duration, "5m", 300.0), (Duration, 5, 5.0), (Duration, 0, 0.0),
        (Size, "1G", 2**30),
    ],
    ids=str,
)  # fmt: skip
def test_weak_decoding(model: Any, given: object, value: object) -> None:
    assert TypeAdapter[object](model).validate_python(given) == value


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (Bool, "yes", "must be true or false, got 'yes'"),
        (Bool, [], "must be true or false, got a list"),
        (Int, "4x", "must be a whole number, got '4x'"),
        (Int, 1.5, "must be a whole number, got the number 1.5"),
        (Int, 10**100, "must be a whole number, got the number 1e"),
        (Int, "9" * 5000, "must be a whole number, got '999"),
        (Text, {}, "must be a string, got an object"),
        (Text, None, "must be a string, got null"),
        (Texts, 3, "must be a list of strings, got the number 3"),
        (Texts, [["a"]], "must be a string, got a list"),
        (Lines, {}, "must be a list of strings, got an object"),
        (TextMap, [], "must be an object with string values, got a list"),
        (Duration, True, "must be a duration like '5m', got true"),
        (Duration, [], "must be a duration like '5m', got a list"),
        (Duration, 1e300, "too long a duration"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_does_not_fit(model: Any, given: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter[object](model).validate_python(given)


def test_a_number_for_a_duration_is_said() -> None:
    class Timed(Options):
        timeout: Duration = 0.0

    context: dict[str, Any] = {}
    assert Timed.model_validate({"timeout": 300}, context=context).timeout == 300
    assert context["warnings"] == [
        ("timeout", "300 has no unit (Packer takes it as nanoseconds): taken as seconds, write '300s'")
    ]


def test_late_fields() -> None:
    class Typed(Options):
        now: Text = ""
        command: Annotated[Lines, LATE] = ()

    assert late_fields(Typed) == {"command"}


def test_long_values_are_cut_in_messages() -> None:
    assert len(kind("x" * 10_000)) < 100
