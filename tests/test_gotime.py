from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from imagebuilder.gotemplate.layouts import RFC3339, format_time, strftime

MOMENT = datetime(2026, 11, 1, 9, 5, 7, 180_000, tzinfo=UTC)
AFTERNOON = datetime(2009, 2, 28, 15, 4, 5, 123_456, tzinfo=timezone(-timedelta(hours=3, minutes=30), "NST"))


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (RFC3339, "2026-11-01T09:05:07Z"),
        ("Monday, 02-Jan-06 15:04:05 MST", "Sunday, 01-Nov-26 09:05:07 UTC"),
        ("Mon Jan _2 15:04:05.000000 2006", "Sun Nov  1 09:05:07.180000 2026"),
        ("January 2 002 __2", "November 1 305 305"),
        ("20060102150405", "20261101090507"),
        ("1504", "0905"),
        ("010203040506", "110109050726"),
        ("1 2 3 4 5 6", "11 1 9 5 7 6"),
        ("3:04PM 03pm", "9:05AM 09am"),
        ("_2006 x_2", "_2026 x 1"),
        (".000 .999999999 ,00 .0001 .99a", ".180 .18 ,18 .0011 .18a"),
        ("Z07:00 Z0700 Z07 -0700 -07:00 -07 -07:00:00 -070000", "Z Z Z +0000 +00:00 +00 +00:00:00 +000000"),
        ("Janus Month Jan Mon", "Janus Month Nov Sun"),
        ("no date at all", "no date at all"),
    ],
)
def test_layout(layout: str, text: str) -> None:
    assert format_time(MOMENT, layout) == text


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        ("3 03 PM pm", "3 03 PM pm"),
        ("MST Z07:00 -0700 Z070000 -07:00:00 -07", "NST -03:30 -0330 -033000 -03:30:00 -03"),
        (".999999999 .000000000", ".123456 .123456000"),
        ("002 __2", "059  59"),
    ],
)
def test_layout_in_another_zone(layout: str, text: str) -> None:
    assert format_time(AFTERNOON, layout) == text


@pytest.mark.parametrize("letter", list("AaBbCDdeFHhIjkLlMmnpRrSTtUuVWwXxYyZz%"))
def test_strftime_is_the_c_library_s(letter: str) -> None:
    if letter == "L":
        with pytest.raises(ValueError, match="'%L' is no conversion"):
            strftime(MOMENT, "%L")
    else:
        for moment in (MOMENT, datetime(2027, 1, 3, 0, 0, 0, tzinfo=UTC), datetime(2028, 12, 31, 12, 0, tzinfo=UTC)):
            assert strftime(moment, f"%{letter}") == moment.strftime(f"%{letter}")


def test_strftime_of_packer_only() -> None:
    assert strftime(MOMENT, "%v|%c") == " 1-Nov-2026| 1-Nov-2026 09:05:07"
    with pytest.raises(ValueError, match="'%' is no conversion"):
        strftime(MOMENT, "50%")
