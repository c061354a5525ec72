"""What is shown: Packer's lines, machine-readable lines, JSON lines; secrets never."""

from __future__ import annotations

import io
import json

import pytest

from imagebuilder.ui import Event, JsonConsole, MachineConsole, TextConsole, Ui, duration, size


def test_lines_are_packers() -> None:
    out = io.StringIO()
    console = TextConsole(out, color=False)
    ui = Ui("centos", console.show)
    ui.say("Creating disk")
    ui.message("two\nlines")
    ui.error("broken")
    ui.warning("doubtful")
    assert out.getvalue().splitlines() == [
        "==> centos: Creating disk",
        "    centos: two",
        "    centos: lines",
        "==> centos: broken",
        "==> centos: Warning: doubtful",
    ]


def test_a_guest_can_not_move_the_cursor() -> None:
    out = io.StringIO()
    Ui("b", TextConsole(out, color=False).show).message("a\x1b[2Jb")
    assert "\x1b" not in out.getvalue()


def test_builds_have_colours_of_their_own() -> None:
    out = io.StringIO()
    console = TextConsole(out, color=True)
    Ui("one", console.show).say("x")
    Ui("two", console.show).say("x")
    first, second = out.getvalue().splitlines()
    assert first.startswith("\x1b[1;32m")
    assert second.startswith("\x1b[1;36m")


def test_timestamps() -> None:
    out = io.StringIO()
    TextConsole(out, color=False, timestamps=True).show(Event("say", "b", "x", time=0.0))
    assert out.getvalue().startswith(("1970-01-01T", "1969-12-31T"))


@pytest.mark.parametrize("kind", ["say", "message", "error", "warning"])
def test_secrets_are_masked_before_they_leave(kind: str) -> None:
    seen: list[Event] = []
    ui = Ui("b", seen.append)
    ui.mask("hunter2")
    getattr(ui, kind)("password is hunter2.")
    assert [event.text for event in seen] == ["password is <sensitive>."]


def test_machine_readable_escapes() -> None:
    out = io.StringIO()
    MachineConsole(out).show(Event("say", "b", "a, b\nc", time=12.9))
    assert out.getvalue() == "12,,ui,say,==> b: a%!(PACKER_COMMA) b\\nc\n"


def test_machine_readable_artifacts() -> None:
    out = io.StringIO()
    data = {"builder_id": "transcend.qemu", "id": "VM", "index": 0, "count": 1, "files": ["o/disk"]}
    MachineConsole(out).show(Event("artifact", "b", "VM files in directory: o", data, time=1))
    rows = [line.split(",", 1)[1] for line in out.getvalue().splitlines()]
    assert rows == [
        "b,artifact-count,1",
        "b,artifact,0,builder-id,transcend.qemu",
        "b,artifact,0,id,VM",
        "b,artifact,0,string,VM files in directory: o",
        "b,artifact,0,files-count,1",
        "b,artifact,0,file,0,o/disk",
        "b,artifact,0,end",
    ]


def test_json_lines() -> None:
    out = io.StringIO()
    JsonConsole(out).show(Event("progress", "b", "Downloading", {"done": 1, "total": 2, "unit": "bytes"}, time=5))
    assert json.loads(out.getvalue()) == {
        "time": 5, "build": "b", "kind": "progress", "text": "Downloading", "done": 1, "total": 2, "unit": "bytes",
    }  # fmt: skip


def test_progress_ends_even_when_the_work_fails() -> None:
    seen: list[Event] = []
    with pytest.raises(RuntimeError), Ui("b", seen.append).progress("Work", 10) as update:
        update(5)
        raise RuntimeError
    assert seen[-1].kind == "progress-end"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.42, "0.4 s"), (34, "34 s"), (125, "2 min 5 s"), (3720, "1 h 2 min")], ids=str
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"), [(12, "12 B"), (2048, "2.0 KiB"), (5 * 2**30, "5.0 GiB"), (5 * 2**40, "5120.0 GiB")], ids=str
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text
