"""What a build says: events, and the ways to show them.

A build only makes events (`Ui`); a `Console` shows them as Packer's `==> name: text` lines with live progress on a
terminal, as Packer's `-machine-readable` lines, or as JSON lines. Secrets are masked before an event leaves the build.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import IO, Any, Literal

from rich.console import Console as RichConsole
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from imagebuilder.errors import ImgbuildError

Kind = Literal["say", "message", "error", "warning", "progress", "progress-end", "artifact", "finished", "plan"]

_COLOURS = ("green", "cyan", "magenta", "yellow", "blue")


@dataclass(frozen=True)
class Event:
    """One thing that happened in a build (build "" is the run as a whole); `data` is JSON-able."""

    kind: Kind
    build: str
    text: str
    data: dict[str, Any] = field(default_factory=dict)
    time: float = field(default_factory=time.time)  # Unix seconds


class Ui:
    """The voice of one build."""

    def __init__(self, build: str, emit: Callable[[Event], None]) -> None:
        self.build = build
        self._emit = emit
        self._secrets: set[str] = set()
        self._lock = threading.Lock()  # a worker's events leave through one pipe

    def mask(self, *secrets: str) -> None:
        """Never show these texts again; what is shorter than three characters can't be masked sensibly."""
        for line in {part for secret in secrets for part in (secret, *secret.splitlines())}:
            if len(line) >= 3:
                self._secrets.add(line)

    def masked(self, text: str) -> str:
        """The text with every secret in it replaced."""
        for secret in sorted(self._secrets, key=len, reverse=True):
            text = text.replace(secret, "<sensitive>")
        return text

    def _send(self, kind: Kind, text: str, **data: Any) -> None:
        event = Event(kind, self.build, self.masked(text), data)
        with self._lock:
            self._emit(event)

    def say(self, text: str) -> None:
        """A step: `==> name: text`."""
        self._send("say", text)

    def message(self, text: str) -> None:
        """Output of a step: `    name: text`."""
        self._send("message", text)

    def error(self, text: str) -> None:
        """Something failed, or a guest's program wrote to its standard error."""
        self._send("error", text)

    def failure(self, error: ImgbuildError) -> None:
        """What ended something, and what to do about it; said once."""
        error.told = True
        self.error(error.message)
        if error.hint:
            self.error(f"hint: {error.hint}")

    def warning(self, text: str) -> None:
        """Something the person should look at; nothing failed."""
        self._send("warning", text)

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Say what begins; when it took over a second, say how long it took."""
        self.say(text)
        began = time.monotonic()
        yield
        elapsed = time.monotonic() - began
        if elapsed >= 1:
            self.message(f"took {duration(elapsed)}")

    @contextlib.contextmanager
    def progress(self, text: str, total: float | None = None, unit: str = "bytes") -> Iterator[Callable[[float], None]]:
        """Something long: call what is yielded with how far it is now (in `unit`: bytes, percent, seconds).

        Shown as a live bar on a terminal; in logs only what `step` and `say` tell is seen.
        """
        shown = 0.0

        def update(done: float) -> None:
            nonlocal shown
            if time.monotonic() - shown >= 0.1:
                shown = time.monotonic()
                self._send("progress", text, done=done, total=total, unit=unit)

        update(0)
        try:
            yield update
        finally:
            self._send("progress-end", text)

    def ask(self, question: str) -> str:
        """The first letter of the person's answer, in lower case; "" when there is nobody at a terminal to answer."""
        self.say(question)
        if sys.stdin is None or not sys.stdin.isatty():
            return ""
        return sys.stdin.readline().strip().lower()[:1]

    def event(self, kind: Kind, text: str, **data: Any) -> None:
        """Anything else a program wants to know of (artifacts, the end of a build)."""
        self._send(kind, text, **data)


def duration(seconds: float) -> str:
    """Seconds as people say them: '0.4 s', '34 s', '2 min 5 s', '1 h 2 min'."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def size(count: float) -> str:
    """Bytes as people say them (binary units)."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


class TextConsole:
    """Packer's lines on `out`; live progress on `live` when that is a terminal."""

    def __init__(self, out: IO[str], live: IO[str] | None = None, *, color: bool = True, timestamps: bool = False):
        self._out, self._color, self._timestamps = out, color, timestamps
        self._lock = threading.Lock()
        self._builds: list[str] = []
        self._tasks: dict[tuple[str, str], TaskID] = {}
        self._progress: Progress | None = None
        if live is not None and live.isatty():
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.fields[amount]}"),
            )
            self._progress = Progress(
                *columns, TimeElapsedColumn(), console=RichConsole(file=live, no_color=not color), transient=True
            )
            self._progress.start()

    def show(self, event: Event) -> None:
        with self._lock:
            if event.kind == "progress":
                self._bar(event)
            elif event.kind == "progress-end":
                self._end_bar(event)
            elif event.kind in ("say", "message", "error", "warning"):
                self._lines(event)

    def _lines(self, event: Event) -> None:
        name = event.build
        for line in event.text.splitlines() or [""]:
            warned = "Warning: " if event.kind == "warning" else ""
            arrow = "    " if event.kind == "message" else "==> "
            prefix = f"{arrow}{name}: " if name else "==> " if event.kind == "say" else ""
            text = prefix + warned + line
            if self._timestamps:
                text = f"{datetime.fromtimestamp(event.time).astimezone().isoformat(timespec='seconds')}: {text}"
            self._print(text, self._style(event))

    def _style(self, event: Event) -> str:
        if event.kind in ("error", "warning"):
            return "bold red" if event.kind == "error" else "yellow"
        if event.build and event.build not in self._builds:
            self._builds.append(event.build)
        colour = _COLOURS[self._builds.index(event.build) % len(_COLOURS)] if event.build else ""
        return f"bold {colour}".strip() if event.kind == "say" else colour

    def _print(self, text: str, style: str) -> None:
        codes = {"bold": "1", "green": "32", "cyan": "36", "magenta": "35", "yellow": "33", "blue": "34", "red": "31"}
        text = "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in text)
        if self._color and style:
            text = f"\x1b[{';'.join(codes[word] for word in style.split())}m{text}\x1b[0m"
        if self._progress is not None and self._out.isatty():
            self._progress.console.out(text, highlight=False)
        else:
            self._out.write(text + "\n")
            self._out.flush()

    def _bar(self, event: Event) -> None:
        if self._progress is None:
            return
        key, done, total = (event.build, event.text), event.data["done"], event.data["total"]
        amount = _amount(done, total, event.data["unit"])
        if key not in self._tasks:
            name = f"{event.build}: " if event.build else ""
            self._tasks[key] = self._progress.add_task(escape(name + event.text), total=total, amount=amount)
        self._progress.update(self._tasks[key], completed=done, amount=amount)

    def _end_bar(self, event: Event) -> None:
        task = self._tasks.pop((event.build, event.text), None)
        if task is not None and self._progress is not None:
            self._progress.remove_task(task)

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _amount(done: float, total: float | None, unit: str) -> str:
    if unit == "percent":
        return f"{done:.0f} %"
    if unit == "seconds":
        return f"of at most {duration(total)}" if total else ""
    return f"{size(done)} of {size(total)}" if total else size(done)


class MachineConsole:
    """Packer's `-machine-readable`: time,build,type,data... one a line."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._lock = threading.Lock()

    def line(self, build: str, kind: str, *data: object, at: float | None = None) -> None:
        cells = [_cell(str(word)) for word in data]
        with self._lock:
            self._out.write(",".join([str(int(at or time.time())), build, kind, *cells]) + "\n")
            self._out.flush()

    def show(self, event: Event) -> None:
        if event.kind in ("say", "message", "error", "warning"):
            kind = "error" if event.kind == "warning" else event.kind
            self.line("", "ui", kind, TextLine.of(event), at=event.time)
        elif event.kind == "artifact":
            self._artifact(event)

    def _artifact(self, event: Event) -> None:
        index, files = event.data["index"], event.data["files"]
        self.line(event.build, "artifact-count", event.data["count"]) if index == 0 else None
        rows: list[tuple[object, ...]] = [
            ("builder-id", event.data["builder_id"]), ("id", event.data["id"]), ("string", event.text),
            ("files-count", len(files)), *(("file", number, name) for number, name in enumerate(files)), ("end",),
        ]  # fmt: skip
        for row in rows:
            self.line(event.build, "artifact", index, *row, at=event.time)

    def close(self) -> None:
        self._out.flush()


class TextLine:
    """The text of an event as Packer writes it in its machine-readable `ui` lines."""

    @staticmethod
    def of(event: Event) -> str:
        if not event.build:
            return event.text
        return f"{'    ' if event.kind == 'message' else '==> '}{event.build}: {event.text}"


def _cell(text: str) -> str:
    return text.replace(",", "%!(PACKER_COMMA)").replace("\r", "\\r").replace("\n", "\\n")


class JsonConsole:
    """One JSON object a line: time, build, kind, text, and what belongs to the kind."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._lock = threading.Lock()

    def show(self, event: Event) -> None:
        row = {"time": round(event.time, 3), "build": event.build, "kind": event.kind, "text": event.text, **event.data}
        with self._lock:
            self._out.write(json.dumps(row, ensure_ascii=False) + "\n")
            self._out.flush()

    def close(self) -> None:
        self._out.flush()


Console = TextConsole | MachineConsole | JsonConsole


def stderr_line(text: str) -> None:
    """A line for the person, outside any build."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
