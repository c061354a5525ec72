"""What a failed build leaves for the person: first what happened, then what the guest showed, then what to try.

A folder beside the output directory holds screenshot.png, screen.txt, serial.log, qemu.log, access.log, argv and
report.txt; the next build of that name replaces it.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.console import screen, symptoms
from imagebuilder.errors import CommandError, ImgbuildError
from imagebuilder.media.httpserver import HttpServer
from imagebuilder.qemu.machine import Machine
from imagebuilder.ui import Ui

_REPORT = "report.txt"
_LINES = 12


@dataclass
class Evidence:
    """What is known when a build fails; filled in as it goes on."""

    folder: Path
    access_log: Path
    machine: Machine | None = None
    http: HttpServer | None = None
    ssh: bool = True  # the guest is to be reached by SSH
    connected: bool = False  # SSH answered and let us in


def folder_of(output: Path) -> Path:
    """Where the evidence of a failed build of that output lies."""
    return output.with_name(f"{output.name}.failed")


def clear(folder: Path) -> None:
    """Remove the evidence of an earlier failure; a folder that isn't ours stays."""
    if (folder / _REPORT).is_file():
        shutil.rmtree(folder)


def report(error: ImgbuildError, evidence: Evidence, ui: Ui) -> None:
    """Gather, write down and show; nothing that goes wrong here hides the error itself."""
    ui.failure(error)
    shown = _screen_lines(evidence.machine)
    serial = screen.last_lines(evidence.machine.serial_log, _LINES) if evidence.machine else []
    story = list(_story(error, evidence, shown, serial))
    with contextlib.suppress(OSError):
        _write(error, evidence, shown, [ui.masked(line) for line in (error.message, *story)])
        story.append(f"More is in {evidence.folder}: {', '.join(sorted(p.name for p in evidence.folder.iterdir()))}")
    for line in story:
        ui.message(line)


def _story(error: ImgbuildError, evidence: Evidence, shown: Sequence[str], serial: Sequence[str]) -> Iterator[str]:
    lost = evidence.machine is not None and not (evidence.connected and evidence.machine.running)
    if lost:
        yield from _block("The screen showed last:", shown)
        yield from _block("The serial line showed last:", serial)
    if evidence.http is not None:
        yield _fetched(evidence.http)
    if evidence.machine is not None and evidence.ssh:
        yield "SSH answered and let us in." if evidence.connected else "SSH did not let us in."
    symptom = symptoms.find([*serial, *shown]) if lost else None
    if symptom is not None:
        yield f"That means: {symptom.sentence}"
        yield f"Try: {symptom.advice}"
    elif error.hint is None and not evidence.connected and evidence.http is not None and not evidence.http.accesses:
        yield "Try: see whether the boot command reached its prompt (boot_wait, <waitfor>), or boot the kernel directly"


def _block(title: str, lines: Sequence[str]) -> Iterator[str]:
    if any(line.strip() for line in lines):
        yield title
        yield from (f"    {line}" for line in lines)


def _fetched(http: HttpServer) -> str:
    if not http.accesses:
        return "Nothing was fetched from the HTTP server: the guest never asked for its kickstart."
    paths = dict.fromkeys(f"{access.path} ({access.status})" for access in http.accesses)
    return f"The guest fetched: {', '.join(list(paths)[:6])}"


def _screen_lines(machine: Machine | None) -> list[str]:
    if machine is None:
        return []
    try:
        lines = [line.rstrip() for line in screen.text(machine.monitor)]
    except ImgbuildError:
        return []  # QEMU is gone, and its screen with it
    return [line for line in lines if line][-_LINES:]


def _write(error: ImgbuildError, evidence: Evidence, shown: Sequence[str], story: Sequence[str]) -> None:
    folder = evidence.folder
    clear(folder)
    folder.mkdir(mode=0o700)
    (folder / _REPORT).write_text("\n".join(story) + "\n", encoding="utf-8")  # first: it tells the folder is ours
    if evidence.machine is not None:
        _write_machine(evidence.machine, folder)
        (folder / "screen.txt").write_text("\n".join(shown) + "\n", encoding="utf-8")
    if evidence.access_log.is_file():
        shutil.copyfile(evidence.access_log, folder / "access.log")
    if isinstance(error, CommandError):
        (folder / "command.log").write_text(f"$ {error.command_line}\n{error.output}", encoding="utf-8")


def _write_machine(machine: Machine, folder: Path) -> None:
    with contextlib.suppress(ImgbuildError):
        screen.screenshot(machine.monitor, folder / "screenshot.png")
    (folder / "argv").write_text(shlex.join(machine.argv) + "\n", encoding="utf-8")
    for log in (machine.serial_log, machine.serial_log.with_name("qemu.log")):
        if log.is_file():
            shutil.copyfile(log, folder / log.name)
