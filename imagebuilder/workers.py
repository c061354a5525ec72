"""Several builds at once: each in a forked process of its own, so that each has its own main thread and signals.

Workers send their events and at last their result through a pipe; the parent shows them as they come.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from imagebuilder import build, interrupt
from imagebuilder.build import BuildResult
from imagebuilder.caching import Caching
from imagebuilder.errors import ImgbuildError
from imagebuilder.plugins import OnError
from imagebuilder.templates.buildplan import BuildPlan
from imagebuilder.ui import Event, Ui

_PR_SET_PDEATHSIG = 1  # prctl(2)


def run_all(
    plans: Sequence[BuildPlan], emit: Callable[[Event], None], *, at_once: int = 0, caching: Caching | None = None
) -> list[BuildResult]:
    """Run the builds, at most `at_once` together (0: all); the results in the order of `plans`.

    One build, or builds that ask the person something, run here one after another.
    """
    asks = any(plan.context.debug or plan.context.on_error is OnError.ASK for plan in plans)
    if len(plans) == 1 or at_once == 1 or asks:
        return _one_by_one(plans, emit, caching)
    return _forked(plans, emit, at_once or len(plans), caching)


def _one_by_one(
    plans: Sequence[BuildPlan], emit: Callable[[Event], None], caching: Caching | None
) -> list[BuildResult]:
    results: list[BuildResult] = []
    for plan in plans:
        if results and results[-1].interrupted:
            results.append(BuildResult(plan.context.build_name, interrupted=True))
        else:
            results.append(build.run(plan, Ui(plan.context.build_name, emit), caching))
    return results


def _forked(
    plans: Sequence[BuildPlan], emit: Callable[[Event], None], at_once: int, caching: Caching | None
) -> list[BuildResult]:
    """A signal is only noted, so that no message is torn; then every worker is told to unwind."""
    context = multiprocessing.get_context("fork")
    waiting = list(enumerate(plans))
    running: dict[Connection, tuple[int, Any]] = {}
    results: dict[int, BuildResult] = {}
    signals: list[None] = []
    told = False
    with interrupt.noted(lambda: signals.append(None)):
        while running or (waiting and not signals):
            while waiting and len(running) < at_once and not signals:
                number, plan = waiting.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(
                    target=_work, args=(plan, caching, theirs, os.getpid()), name=plan.context.build_name
                )
                process.start()
                theirs.close()
                running[ours] = (number, process)
            if signals and not told:
                told = True
                for _, process in running.values():
                    os.kill(process.pid, signal.SIGTERM)
            for pipe in wait(list(running), timeout=0.2):
                assert isinstance(pipe, Connection)
                result = _receive(pipe, plans[running[pipe][0]], emit)
                if result is not None:
                    number, process = running.pop(pipe)
                    results[number] = result
                    process.join()
                    pipe.close()
    return [results.get(n, BuildResult(p.context.build_name, interrupted=True)) for n, p in enumerate(plans)]


def _receive(pipe: Connection, plan: BuildPlan, emit: Callable[[Event], None]) -> BuildResult | None:
    """One message of a worker; its result when that was the last."""
    try:
        message = pipe.recv()
    except EOFError:
        return BuildResult(plan.context.build_name, error=ImgbuildError("The build's process died without a word"))
    if isinstance(message, Event):
        emit(message)
        return None
    assert isinstance(message, BuildResult)
    return message


def _work(plan: BuildPlan, caching: Caching | None, pipe: Connection, parent: int) -> None:
    """A worker's life; when the parent dies, the worker is told by SIGTERM and unwinds."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to us too; the parent passes on what counts
    with interrupt.unwinding():
        pipe.send(_transportable(build.run(plan, Ui(plan.context.build_name, pipe.send), caching)))
    pipe.close()


def _transportable(result: BuildResult) -> BuildResult:
    """Errors of any class cross the pipe as what a person reads of them."""
    if result.error is None:
        return result
    error = ImgbuildError(result.error.message, hint=result.error.hint)
    return BuildResult(result.name, result.artifacts, error, result.interrupted, result.seconds)
