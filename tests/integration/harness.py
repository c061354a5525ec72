"""Runs the real `imgbuild` as a user does, follows its events, and looks afterwards for what it left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ARGV = [sys.executable, "-c", "from imagebuilder.cli import main; main()"]


@dataclass
class Outcome:
    """What a finished run said."""

    code: int
    events: list[dict[str, Any]]
    stderr: str
    seconds: float

    @property
    def text(self) -> str:
        return "\n".join(event["text"] for event in self.events) + self.stderr

    def texts(self, kind: str) -> list[str]:
        return [event["text"] for event in self.events if event["kind"] == kind]


@dataclass
class Running:
    """An `imgbuild --json` that runs in its own session; events are read as they come."""

    process: subprocess.Popen[str]
    began: float = field(default_factory=time.monotonic)
    events: list[dict[str, Any]] = field(default_factory=list)

    def lines(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.append(json.loads(line))
            yield self.events[-1]

    def until(self, text: str) -> None:
        """Read events until one holds the text."""
        for event in self.lines():
            if text in event["text"]:
                return
        raise AssertionError(f"'{text}' never came; it said:\n{Outcome(-1, self.events, self.stderr(), 0).text}")

    def stderr(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def finish(self, timeout: float = 300) -> Outcome:
        try:
            out, err = self.process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            out, err = self.process.communicate()
            raise AssertionError(f"imgbuild still ran after {timeout} s:\n{out[-3000:]}\n{err[-3000:]}") from None
        self.events += [json.loads(line) for line in out.splitlines()]
        return Outcome(self.process.returncode, self.events, err, time.monotonic() - self.began)


@contextmanager
def imgbuild(*arguments: str, cwd: Path, env: dict[str, str] | None = None) -> Iterator[Running]:
    """Start `imgbuild --json ARGUMENTS`; it is dead at the end of the block, whatever happened."""
    environment = {**os.environ, "TMPDIR": str(cwd / "tmp"), **(env or {})}
    (cwd / "tmp").mkdir(exist_ok=True)
    process = subprocess.Popen(
        [*ARGV, "--json", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd,
        env=environment, start_new_session=True, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield Running(process)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def run(*arguments: str, cwd: Path, timeout: float = 300, env: dict[str, str] | None = None) -> Outcome:
    """Run it to its end."""
    with imgbuild(*arguments, cwd=cwd, env=env) as running:
        return running.finish(timeout)


def written(path: Path, template: dict[str, Any]) -> str:
    path.write_text(json.dumps(template, indent=2), encoding="utf-8")
    return str(path)


def wait_until(condition: Callable[[], bool], within: float = 10.0) -> bool:
    end = time.monotonic() + within
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def processes_of(directory: Path) -> list[str]:
    """Command lines of living processes that name the directory or work in it."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            here = str((entry / "cwd").readlink())
        except OSError:
            continue
        if (
            state != "Z"
            and command
            and "pytest" not in command
            and (str(directory) in command or here.startswith(str(directory)))
        ):
            found.append(command)
    return found


def leftovers(directory: Path) -> list[str]:
    """Files under the directory that a build makes on its way: work directories, temporary files, half images."""
    names = [str(path.relative_to(directory)) for path in directory.rglob("*")]
    return [name for name in names if "imgbuild-" in name or ".tmp" in name or name.split("/")[-1].startswith(".")]
