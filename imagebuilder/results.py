"""How a run ends: artifacts, failures, sizes and times, as Packer words them; and the exit code that tells which."""

from __future__ import annotations

from collections.abc import Sequence

from imagebuilder import interrupt
from imagebuilder.build import BuildResult
from imagebuilder.errors import ImgbuildError
from imagebuilder.plugins import Artifact
from imagebuilder.ui import Console, Event, MachineConsole, TextConsole, duration, size


def show(results: Sequence[BuildResult], console: Console, *, partial: bool = False) -> int:
    """Show the end of a run; the exit code: 0 all built, 1 something failed, 130 interrupted. `partial`: no image was
    to be made."""
    for result in results:
        _say(console, _outcome(result))
    failed = [result for result in results if result.error is not None]
    if failed:
        _say(console, "==> Some builds didn't complete successfully and had errors:")
        for result in failed:
            _failure(result, console)
    made = [(result, artifact) for result in results for artifact in result.artifacts]
    if made:
        _say(console, "==> Builds finished. The artifacts of successful builds are:")
    elif failed or not partial:
        _say(console, "==> Builds finished but no artifacts were created.")
    for result in results:
        for index, artifact in enumerate(result.artifacts):
            _artifact(result, index, artifact, console)
    if isinstance(console, MachineConsole) and failed:
        console.line("", "error-count", len(failed))
    if any(result.interrupted for result in results):
        return interrupt.EXIT_CODE
    return 1 if failed else 0


def _say(console: Console, text: str) -> None:
    """A line of the summary, without a build's name before it."""
    console.show(Event("message", "", f"\n{text}" if isinstance(console, TextConsole) else text))


def _outcome(result: BuildResult) -> str:
    took = duration(result.seconds)
    if result.interrupted:
        return f"Build '{result.name}' was interrupted after {took}."
    if result.error is not None:
        return f"Build '{result.name}' errored after {took}: {_cause(result.error)}"
    return f"Build '{result.name}' finished after {took}."


def _cause(error: ImgbuildError) -> str:
    """An error in one line: its sentence, and where that only announces output, the last line of it."""
    first, *rest = error.message.splitlines()
    return f"{first} {rest[-1].strip()}" if first.endswith(":") and rest else first.rstrip(":")


def _failure(result: BuildResult, console: Console) -> None:
    assert result.error is not None
    if isinstance(console, MachineConsole):
        console.line(result.name, "error", result.error.message)
    else:
        console.show(Event("error", "", f"--> {result.name}: {_cause(result.error)}"))


def _artifact(result: BuildResult, index: int, artifact: Artifact, console: Console) -> None:
    files = [str(path) for path in artifact.files]
    total = sum(path.stat().st_blocks * 512 for path in artifact.files if path.is_file())
    if isinstance(console, TextConsole):
        _say(console, f"--> {result.name}: {artifact.description} ({size(total)})")
        return
    details = {"builder_id": artifact.builder_id, "id": artifact.id, "index": index, "count": len(result.artifacts)}
    console.show(Event("artifact", result.name, artifact.description, {**details, "files": files, "bytes": total}))
