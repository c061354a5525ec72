"""Host programs: the only module that starts any.

Argument lists and never a shell; a process group of its own; a small environment; always reaped. A child dies with us,
whatever ends us: `setpriv --pdeathsig` (prctl(2), PR_SET_PDEATHSIG) for the child itself, and for its whole group and
for half-written paths the `janitor`, a process of its own that outlives a `kill -9`.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from imagebuilder.errors import CommandError, ImgbuildError

log = logging.getLogger(__name__)

_INHERITED = (
    "PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "DISPLAY", "WAYLAND_DISPLAY",
    "XAUTHORITY", "SSH_AUTH_SOCK", "http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
)  # fmt: skip

_SYSTEM = "/usr/local/sbin:/usr/sbin:/sbin"  # not on an ordinary user's PATH; mke2fs and sfdisk live there


@dataclass(frozen=True)
class Completed:
    """A program that ended; `stdout` also holds standard error when lines were followed."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


def find(program: str, *, package: str) -> str:
    """The path of a host program; an error that names the Debian package to install when there is none."""
    path = shutil.which(program) or shutil.which(program, path=_SYSTEM)
    if path is None:
        raise ImgbuildError(f"'{program}' is not installed", hint=f"install it: apt-get install {package}")
    return path


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a child sees of our environment, plus `extra`."""
    kept = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    return {**kept, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8", **(extra or {})}


class _Janitor:
    """Our end of the janitor's pipe; started at the first entry, told of everything that must not outlive us."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._popen: subprocess.Popen[str] | None = None
        self._owner = 0

    def tell(self, order: str, name: object) -> None:
        with self._lock:
            if self._owner != os.getpid():  # a forked worker has a janitor of its own
                self._start()
            assert self._popen is not None and self._popen.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self._popen.stdin.write(f"{order} {name}\n")
                self._popen.stdin.flush()

    def _start(self) -> None:
        script = Path(__file__).with_name("janitor.py")
        self._popen = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script)],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            text=True, start_new_session=True, cwd="/",
        )  # fmt: skip
        self._owner = os.getpid()
        atexit.register(self._close)

    def _close(self) -> None:
        if self._owner == os.getpid() and self._popen is not None and self._popen.stdin is not None:
            self._popen.stdin.close()
            self._popen.wait()


_janitor = _Janitor()


@contextlib.contextmanager
def temporary_path(path: Path) -> Iterator[Path]:
    """A file or directory that must not be left behind: gone when the block ends, and when we are killed in it.

    The block may rename it away: then nothing is removed; `keep` leaves it. Creating it is the caller's part.
    """
    absolute = path.absolute()
    if "\n" in str(absolute):
        raise ImgbuildError(f"a path can't hold a line break: {str(absolute)!r}")
    _janitor.tell("+path", absolute)
    try:
        yield absolute
    finally:
        if absolute not in _kept:
            if absolute.is_dir() and not absolute.is_symlink():
                shutil.rmtree(absolute, ignore_errors=True)
            else:
                absolute.unlink(missing_ok=True)
            _janitor.tell("-path", absolute)


@contextlib.contextmanager
def temporary_directory() -> Iterator[Path]:
    """A directory of our own (0700), gone like any `temporary_path`; the janitor knows of it before it exists."""
    with temporary_path(Path(tempfile.gettempdir()) / f"imgbuild-{secrets.token_hex(8)}") as path:
        path.mkdir(mode=0o700)
        yield path


_kept: set[Path] = set()


def keep(path: Path) -> None:
    """Leave a `temporary_path` where it is after all, at the end of its block and when we are killed."""
    _kept.add(path.absolute())
    _janitor.tell("-path", path.absolute())


class Process:
    """A child that runs beside us: a context manager that stops and reaps it."""

    def __init__(self, argv: tuple[str, ...], popen: subprocess.Popen[bytes]) -> None:
        self.argv = argv
        self._popen = popen

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def stdin(self) -> IO[bytes] | None:
        return self._popen.stdin

    @property
    def stdout(self) -> IO[bytes] | None:
        return self._popen.stdout

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        return self._popen.poll()

    def wait(self, timeout: float) -> int:
        """Wait at most `timeout` seconds; TimeoutError when it runs on."""
        try:
            return self._popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"'{self.argv[0]}' still runs after {timeout:g} s") from None

    def stop(self, grace: float = 3.0) -> int:
        """TERM, wait `grace` seconds, KILL the whole group; reaped in any case. The exit code."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self._popen.poll() is not None:
                break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(grace)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)  # what it left behind in its group
        code = self._popen.wait()
        self.forget()
        return code

    def forget(self) -> None:
        """Not ours any more: it may outlive us."""
        _janitor.tell("-pid", self.pid)

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for pipe in (self._popen.stdin, self._popen.stdout, self._popen.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def start(
    argv: Sequence[str | os.PathLike[str]],
    *,
    stdin: int | IO[bytes] = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.DEVNULL,
    stderr: int | IO[bytes] = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    may_survive: bool = False,
) -> Process:
    """Start a program. `may_survive`: it can be handed over with `forget` (no death signal, only the janitor).

    Raises ImgbuildError when it can't be started.
    """
    words = tuple(os.fspath(word) for word in argv)
    log.debug("start: %s", shlex.join(words))
    guard = () if may_survive or shutil.which("setpriv") is None else ("setpriv", "--pdeathsig", "KILL", "--")
    if shutil.which(words[0]) is None:
        raise ImgbuildError(f"can't start '{words[0]}': there is no such program")
    popen = subprocess.Popen(
        [*guard, *words], stdin=stdin, stdout=stdout, stderr=stderr, pass_fds=tuple(pass_fds),
        env=environment(env), cwd=cwd, start_new_session=True,
    )  # fmt: skip
    _janitor.tell("+pid", popen.pid)
    return Process(words, popen)


def run(
    argv: Sequence[str | os.PathLike[str]],
    *,
    input: bytes | None = None,
    timeout: float | None = None,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    on_line: Callable[[str], None] | None = None,
) -> Completed:
    """Run a program to its end. Standard error is kept apart, or with `on_line` merged and followed line by line.

    A carriage return ends a line too (progress of qemu-img and mmdebstrap). Raises CommandError when `check` and the
    exit code isn't 0, TimeoutError after `timeout` seconds; the program is ended then, and on an interrupt.
    """
    stderr = subprocess.STDOUT if on_line else subprocess.PIPE
    stdin = subprocess.PIPE if input is not None else subprocess.DEVNULL
    with start(argv, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, env=env, cwd=cwd) as child:
        popen = child._popen
        if on_line is None:
            try:
                out, err = popen.communicate(input, timeout)
            except subprocess.TimeoutExpired:
                raise TimeoutError(f"'{child.argv[0]}' still runs after {timeout:g} s") from None
        else:
            out, err = _follow(popen, input, timeout, on_line), b""
        code = popen.wait()
    done = Completed(child.argv, code, out.decode(errors="replace"), (err or b"").decode(errors="replace"))
    if check and code != 0:
        raise CommandError(child.argv, code, done.stderr or done.stdout)
    return done


def _follow(
    popen: subprocess.Popen[bytes], data: bytes | None, timeout: float | None, on_line: Callable[[str], None]
) -> bytes:
    """Read to the end, handing out lines; the timer kills the group, which ends the reading."""
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(popen.pid, signal.SIGKILL)

    assert popen.stdout is not None
    timer = threading.Timer(timeout, expire) if timeout is not None else None
    if timer:
        timer.start()
    try:
        if data is not None and popen.stdin is not None:
            popen.stdin.write(data)
            popen.stdin.close()
        everything, pending = bytearray(), b""
        while chunk := os.read(popen.stdout.fileno(), 65536):
            everything += chunk
            *lines, pending = (pending + chunk).replace(b"\r", b"\n").split(b"\n")
            for line in filter(None, lines):
                on_line(line.decode(errors="replace"))
        if pending:
            on_line(pending.decode(errors="replace"))
    finally:
        if timer:
            timer.cancel()
    if expired.is_set():
        raise TimeoutError(f"'{popen.args}' still runs after {timeout:g} s")  # type: ignore[str-bytes-safe]
    return bytes(everything)
