"""Host programs: they are reaped, they die with us, and what they said is in the error."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from imagebuilder import process
from imagebuilder.errors import CommandError, ImgbuildError


def gone(pid: int, within: float = 5.0) -> bool:
    """Whether a process has ended (a zombie has)."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_run_keeps_both_streams_apart() -> None:
    done = process.run(["sh", "-c", "echo out; echo err >&2"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "out\n", "err\n")


def test_a_failure_carries_code_argv_and_output() -> None:
    with pytest.raises(CommandError) as caught:
        process.run(["sh", "-c", "echo broken >&2; exit 7"])
    assert caught.value.returncode == 7
    assert "broken" in caught.value.message
    assert caught.value.command_line == "sh -c 'echo broken >&2; exit 7'"


def test_a_missing_program_names_its_package() -> None:
    with pytest.raises(ImgbuildError) as caught:
        process.find("no-such-program-here", package="some-package")
    assert "apt-get install some-package" in str(caught.value.hint)


def test_lines_come_as_they_are_printed_and_carriage_returns_end_them() -> None:
    lines: list[str] = []
    process.run(["printf", "a\\r50%%\\rb\\nlast"], on_line=lines.append)
    assert lines == ["a", "50%", "b", "last"]


def test_input_reaches_the_program() -> None:
    assert process.run(["cat"], input=b"hello").stdout == "hello"
    lines: list[str] = []
    process.run(["cat"], input=b"hello\n", on_line=lines.append)
    assert lines == ["hello"]


@pytest.mark.parametrize("follow", [False, True], ids=["whole", "lines"])
def test_a_timeout_ends_the_program_and_its_children(follow: bool, tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    command = f"sleep 60 & echo $! > {pidfile}; wait"
    with pytest.raises(TimeoutError):
        process.run(["sh", "-c", command], timeout=1.5, on_line=(lambda _: None) if follow else None)
    assert gone(int(pidfile.read_text()))


def test_the_environment_is_small_and_says_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET_OF_OURS", "x")
    seen = process.run(["env"], env={"ADDED": "1"}).stdout
    assert "A_SECRET_OF_OURS" not in seen
    assert "ADDED=1" in seen
    assert "LC_ALL=C.UTF-8" in seen


def test_stop_ends_what_ignores_term() -> None:
    child = process.start(["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"])
    time.sleep(0.2)
    assert child.stop(grace=0.3) == -signal.SIGKILL


def test_a_temporary_path_is_removed_and_a_renamed_one_is_not(tmp_path: Path) -> None:
    with process.temporary_path(tmp_path / "a") as path:
        path.write_text("x")
    assert not path.exists()
    with process.temporary_path(tmp_path / "b") as path:
        path.mkdir()
        path.rename(tmp_path / "kept")
    assert (tmp_path / "kept").is_dir()


OWNER = """
    import sys, time
    from pathlib import Path
    from imagebuilder import process
    half = Path(sys.argv[1])
    with process.temporary_path(half) as path:
        path.mkdir()
        (path / "disk").write_text("half")
        survive = len(sys.argv) > 3
        child = process.start(["sh", "-c", f"sleep 300 & echo $! > {sys.argv[2]}; wait"], may_survive=survive)
        while not Path(sys.argv[2]).exists() or not Path(sys.argv[2]).read_text():
            time.sleep(0.02)
        sys.stdout.write(f"{child.pid}\\n")
        sys.stdout.flush()
        time.sleep(300)
"""


@pytest.mark.parametrize("extra", [[], ["may_survive"]], ids=["guarded", "may_survive"])
def test_kill_9_leaves_no_child_no_grandchild_and_no_path(tmp_path: Path, extra: list[str]) -> None:
    half = tmp_path / "half"
    pidfile = tmp_path / "pid"
    argv = [sys.executable, "-c", textwrap.dedent(OWNER), str(half), str(pidfile), *extra]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pids = [int(owner.stdout.readline()), int(pidfile.read_text())]
        assert (half / "disk").exists()
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
        assert all(gone(pid) for pid in pids)
    end = time.monotonic() + 5
    while half.exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not half.exists()


def test_a_temporary_directory_is_private_and_gone_afterwards() -> None:
    with process.temporary_directory() as path:
        assert path.stat().st_mode & 0o777 == 0o700
        (path / "file").write_text("x")
    assert not path.exists()
