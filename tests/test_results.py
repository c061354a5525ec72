"""How a run ends: Packer's words for artifacts and failures, and the exit code."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pytest

from imagebuilder import results
from imagebuilder.build import BuildResult
from imagebuilder.errors import GuestError
from imagebuilder.plugins import Artifact
from imagebuilder.ui import TextConsole

MADE = BuildResult("web", (Artifact("qemu", "VM", "VM files in directory: output-web", (Path("nowhere"),)),))
NOTHING = BuildResult("web", seconds=3)
FAILED = BuildResult("db", error=GuestError("it broke"))
INTERRUPTED = BuildResult("web", interrupted=True)
NO_ARTIFACTS = "==> Builds finished but no artifacts were created."


def shown(found: Sequence[BuildResult], *, partial: bool = False) -> tuple[int, list[str]]:
    out = io.StringIO()
    code = results.show(found, TextConsole(out, color=False), partial=partial)
    return code, [line for line in out.getvalue().splitlines() if line]


@pytest.mark.parametrize(
    ("found", "partial", "code", "told"),
    [
        ([NOTHING], True, 0, False),
        ([NOTHING], False, 0, True),
        ([NOTHING, FAILED], True, 1, True),
        ([FAILED], False, 1, True),
        ([INTERRUPTED], False, 130, True),
        ([MADE], False, 0, False),
        ([MADE, FAILED], False, 1, False),
    ],
    ids=["until", "nothing", "until-failed", "failed", "interrupted", "made", "one-of-two"],
)
def test_no_image_is_only_told_where_one_was_to_be_made(
    found: Sequence[BuildResult], partial: bool, code: int, told: bool
) -> None:
    ended, lines = shown(found, partial=partial)
    assert ended == code and (NO_ARTIFACTS in lines) == told


def test_a_build_that_ends_early_says_how_long_it_took_and_no_more() -> None:
    assert shown([NOTHING], partial=True)[1] == ["Build 'web' finished after 3.0 s."]


def test_failures_and_artifacts_are_listed() -> None:
    assert shown([MADE, FAILED])[1] == [
        "Build 'web' finished after 0.0 s.",
        "Build 'db' errored after 0.0 s: it broke",
        "==> Some builds didn't complete successfully and had errors:",
        "--> db: it broke",
        "==> Builds finished. The artifacts of successful builds are:",
        "--> web: VM files in directory: output-web (0 B)",
    ]
