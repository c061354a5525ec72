"""Cleans up after a process that could not: run beside it, it waits for the end of its standard input.

Lines `+pid N`, `-pid N`, `+path P`, `-path P` say what would be left behind now. When the pipe closes (the process
ended, by `kill -9` too), every process group still listed is killed and every path still listed is removed, links
not followed. Standard library only, run with `python -I -S`, so that it is ready in a few hundredths of a second.
"""

import contextlib
import os
import shutil
import signal
import sys
import time


def start_time(pid: int) -> str:
    """When a process began, in clock ticks since boot (proc(5), field 22): a later one with its number differs.

    Nothing for one that has ended, reaped or not.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as stat:  # noqa: PTH123 - no imports to spare
            fields = stat.read().rpartition(")")[2].split()
            return "" if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        return ""


def watch() -> tuple[dict[int, str], list[str]]:
    """Follow standard input to its end; what is still listed then."""
    pids: dict[int, str] = {}
    paths: list[str] = []
    for line in sys.stdin:
        order, _, name = line.rstrip("\n").partition(" ")
        if order == "+pid":
            pids[int(name)] = start_time(int(name))
        elif order == "-pid":
            pids.pop(int(name), None)
        elif order == "+path":
            paths.append(name)
        elif order == "-path" and name in paths:
            paths.remove(name)
    return pids, paths


def clean(pids: dict[int, str], paths: list[str]) -> None:
    """Kill the process groups, wait until they are gone (they may still write), then remove the paths."""
    for pid, began in pids.items():
        if start_time(pid) in (began, ""):  # a leader that has ended leaves its group's number to the group
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
    for _ in range(500):
        if not any(began and start_time(pid) == began for pid, began in pids.items()):
            break
        time.sleep(0.01)
    for path in paths:
        remove(path)


def remove(path: str) -> None:
    """Remove a file or a tree; again when something appeared in it meanwhile."""
    for _ in range(20):
        if os.path.isdir(path) and not os.path.islink(path):  # noqa: PTH112, PTH114
            shutil.rmtree(path, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108
        if not os.path.lexists(path):
            break
        time.sleep(0.05)


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    clean(*watch())
