"""Go's time layouts: a date is written as the reference time, Mon Jan 2 15:04:05 MST 2006 (Go package time).

Also strftime with the conversions that Packer's function of that name knows.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta

_MONTHS = [
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
]  # fmt: skip
_DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]

# Longest first where one begins another; "Jan" and "Mon" are no names when a small letter follows ("Janus").
_CHUNK = re.compile(
    r"January|Jan(?![a-z])|Monday|Mon(?![a-z])|MST|002|0[1-6]|15|1|2006|2|(?<=_)2006|__2|_2(?!006)|3|4|5|PM|pm"
    r"|[-Z]07(?::00:00|:00|0000|00)?|[.,](?:0+|9+)(?!\d)"
)

_WRITE: dict[str, Callable[[datetime], str]] = {
    "January": lambda t: _MONTHS[t.month - 1],
    "Jan": lambda t: _MONTHS[t.month - 1][:3],
    "Monday": lambda t: _DAYS[t.weekday()],
    "Mon": lambda t: _DAYS[t.weekday()][:3],
    "MST": lambda t: t.tzname() or "UTC",
    "002": lambda t: f"{t.timetuple().tm_yday:03}",
    "__2": lambda t: f"{t.timetuple().tm_yday:>3}",
    "01": lambda t: f"{t.month:02}",
    "1": lambda t: f"{t.month}",
    "02": lambda t: f"{t.day:02}",
    "_2": lambda t: f"{t.day:>2}",
    "2": lambda t: f"{t.day}",
    "15": lambda t: f"{t.hour:02}",
    "03": lambda t: f"{t.hour % 12 or 12:02}",
    "3": lambda t: f"{t.hour % 12 or 12}",
    "04": lambda t: f"{t.minute:02}",
    "4": lambda t: f"{t.minute}",
    "05": lambda t: f"{t.second:02}",
    "5": lambda t: f"{t.second}",
    "2006": lambda t: f"{t.year:04}",
    "06": lambda t: f"{t.year % 100:02}",
    "PM": lambda t: "PM" if t.hour >= 12 else "AM",
    "pm": lambda t: "pm" if t.hour >= 12 else "am",
}

RFC3339 = "2006-01-02T15:04:05Z07:00"

_CONVERSIONS = {
    "A": "Monday", "a": "Mon", "B": "January", "b": "Jan", "h": "Jan", "c": "_2-Jan-2006 15:04:05", "D": "01/02/06",
    "d": "02", "e": "_2", "F": "2006-01-02", "H": "15", "I": "03", "j": "002", "M": "04", "m": "01", "p": "PM",
    "R": "15:04", "r": "03:04:05 PM", "S": "05", "T": "15:04:05", "v": "_2-Jan-2006", "X": "15:04:05", "x": "01/02/06",
    "Y": "2006", "y": "06", "Z": "MST", "z": "-0700",
}  # fmt: skip

_COUNTS: dict[str, Callable[[datetime], str]] = {
    "C": lambda t: f"{t.year // 100:02}",
    "k": lambda t: f"{t.hour:>2}",
    "l": lambda t: f"{t.hour % 12 or 12:>2}",
    "n": lambda t: "\n",
    "t": lambda t: "\t",
    "U": lambda t: f"{(t.timetuple().tm_yday + 6 - t.isoweekday() % 7) // 7:02}",
    "u": lambda t: f"{t.isoweekday()}",
    "V": lambda t: f"{t.isocalendar().week:02}",
    "W": lambda t: f"{(t.timetuple().tm_yday + 6 - t.weekday()) // 7:02}",
    "w": lambda t: f"{t.isoweekday() % 7}",
    "%": lambda t: "%",
}


def format_time(moment: datetime, layout: str) -> str:
    """The moment (with a time zone) as a Go layout writes it; what is no part of the reference time stays as it is."""
    return _CHUNK.sub(lambda found: _write(moment, found.group()), layout)


def _write(moment: datetime, chunk: str) -> str:
    if chunk in _WRITE:
        return _WRITE[chunk](moment)
    if chunk[0] in ".,":
        return _fraction(moment, chunk)
    return _zone(moment, chunk)


def _fraction(moment: datetime, chunk: str) -> str:
    """.000 is that many digits, .999 without trailing zeros; past the ninth Go writes nothing more."""
    digits = f"{moment.microsecond:06}000"[: len(chunk) - 1]
    if chunk[1] == "9":
        digits = digits.rstrip("0")
        return chunk[0] + digits if digits else ""
    return chunk[0] + digits


def _zone(moment: datetime, chunk: str) -> str:
    offset = moment.utcoffset() or timedelta()
    if chunk[0] == "Z" and not offset:
        return "Z"
    total = int(abs(offset).total_seconds())
    parts = (total // 3600, total // 60 % 60, total % 60)
    separator = ":" if ":" in chunk else ""
    count = (len(chunk.replace(":", "")) - 1) // 2
    return ("-" if offset < timedelta() else "+") + separator.join(f"{part:02}" for part in parts[:count])


def strftime(moment: datetime, pattern: str) -> str:
    """The moment as a strftime(3) pattern writes it in the C locale. Raises ValueError for an unknown conversion."""

    def convert(found: re.Match[str]) -> str:
        letter = found.group(1)
        if letter in _COUNTS:
            return _COUNTS[letter](moment)
        if letter not in _CONVERSIONS:
            raise ValueError(f"'%{letter}' is no conversion of strftime")
        return format_time(moment, _CONVERSIONS[letter])

    return re.sub(r"%(.?)", convert, pattern, flags=re.DOTALL)
