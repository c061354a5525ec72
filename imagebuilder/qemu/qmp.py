"""QEMU's monitor (QEMU Machine Protocol, docs/interop/qmp-spec) as plain calls, and the events it sends.

`qemu.qmp` speaks asyncio; it stays in here, in one thread with one loop, which `close` ends. The only module that
imports asyncio.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from qemu.qmp import EventListener, ExecuteError, Message, QMPClient, QMPError, Runstate

from imagebuilder.errors import GuestError

log = logging.getLogger(__name__)

_GREETING = 60.0  # seconds; QEMU greets when the machine is made, which takes long only on a machine that swaps


@dataclass(frozen=True)
class Event:
    """Something QEMU told (RESET, SHUTDOWN, STOP ...); `time` is QEMU's, in Unix seconds."""

    name: str
    data: Mapping[str, Any] = field(default_factory=dict)
    time: float = 0.0


class QmpError(GuestError):
    """QEMU refused a command; `error_class` is QMP's ('GenericError', 'CommandNotFound' ...)."""

    def __init__(self, message: str, error_class: str) -> None:
        super().__init__(message)
        self.error_class = error_class


class Monitor:
    """A QMP session over a connected socket, which it closes at the end.

    `why_ended` words the error of a QEMU that is gone: it may know the exit code and QEMU's last lines. Every method
    but the event callbacks may be called from any thread.
    """

    def __init__(self, sock: socket.socket, why_ended: Callable[[], str] = lambda: "QEMU ended") -> None:
        sock.setblocking(False)
        self._sock = sock
        self._why_ended = why_ended
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: QMPClient | None = None
        self._thread = threading.Thread(target=self._main, name="qmp", daemon=True)
        self._changed = threading.Condition()
        self._running = self._ended = self._closing = False
        self._failure: Exception | None = None
        self._events: list[Event] = []
        self._taken: set[int] = set()
        self._callbacks: list[Callable[[Event], None]] = []

    def __enter__(self) -> Monitor:
        self._thread.start()
        with self._changed:
            answered = self._changed.wait_for(lambda: self._running or self._ended, _GREETING)
            running = self._running
        if not running:
            gone = self._gone()
            self.close()
            raise gone if answered else GuestError(f"QEMU's monitor said nothing for {_GREETING:g} s")
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the session; QEMU runs on."""
        with self._changed:
            self._closing = True
            loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop ended meanwhile
                loop.call_soon_threadsafe(self._stop.set)
        if self._thread.ident is not None:
            self._thread.join()
        self._sock.close()

    def join(self, timeout: float) -> None:
        """Wait at most `timeout` seconds until QEMU has hung up and its last event was handed out."""
        self._thread.join(timeout)

    @property
    def ended(self) -> bool:
        """Whether QEMU closed the session: it died or quit."""
        return self._ended and not self._closing

    @property
    def history(self) -> tuple[Event, ...]:
        """All events so far, in their order."""
        with self._changed:
            return tuple(self._events)

    def on_event(self, callback: Callable[[Event], None]) -> None:
        """Call this for every event from now on, in the monitor's thread: it must be quick and not use the monitor."""
        with self._changed:
            self._callbacks.append(callback)

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, timeout: float = 10) -> Any:
        """Run a QMP command and return what it returns.

        Raises QmpError when QEMU refuses it, GuestError when QEMU is gone or silent for `timeout` seconds.
        """
        log.debug("execute: %s", command)  # without arguments: what is typed may be a password
        return self._answer(lambda client: client.execute(command, arguments), command, timeout)

    def send_fd(self, name: str, descriptor: int) -> None:
        """Give QEMU a descriptor of ours under a name (getfd); it stays open here. Raises as `execute`."""

        async def hand_over(client: QMPClient) -> object:
            client.send_fd_scm(descriptor)
            return await client.execute("getfd", {"fdname": name})

        self._answer(hand_over, "getfd", 10)

    def _answer(self, ask: Callable[[QMPClient], Coroutine[Any, Any, object]], command: str, timeout: float) -> Any:
        with self._changed:  # while this is held the session can't end, so the loop will run the coroutine
            if not self._running or self._client is None or self._loop is None:
                raise self._gone()
            answer = asyncio.run_coroutine_threadsafe(ask(self._client), self._loop)
        try:
            return answer.result(timeout)
        except concurrent.futures.TimeoutError:
            answer.cancel()
            raise GuestError(f"QEMU did not answer '{command}' within {timeout:g} s") from None
        except ExecuteError as error:
            raise QmpError(f"QEMU refused '{command}': {error}", error.error_class) from error
        except (QMPError, OSError, EOFError, concurrent.futures.CancelledError) as error:
            raise self._gone() from error
        except KeyboardInterrupt:
            answer.cancel()
            raise

    def hmp(self, line: str) -> str:
        """Run a command of the human monitor; what it printed."""
        return str(self.execute("human-monitor-command", {"command-line": line})).replace("\r\n", "\n")

    def wait_event(self, names: Collection[str], timeout: float) -> Event | None:
        """The oldest event of these names that was not returned before, or None after `timeout` seconds.

        Raises GuestError when QEMU is gone and there is none.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for number in self._untaken(names):
                    self._taken.add(number)
                    return self._events[number]
                if self._ended:
                    raise self._gone()
                if not self._changed.wait(max(0.0, deadline - time.monotonic())) and time.monotonic() >= deadline:
                    return None

    def _untaken(self, names: Collection[str]) -> Iterator[int]:
        return (
            number for number, event in enumerate(self._events) if event.name in names and number not in self._taken
        )

    def _gone(self) -> Exception:
        if self._failure is not None:
            return self._failure
        if self._closing:
            return GuestError("the session with QEMU's monitor is closed")
        return GuestError(self._why_ended())

    # ---- what runs in the thread

    def _main(self) -> None:
        try:
            asyncio.run(self._session())
        except (QMPError, OSError, EOFError) as error:
            log.debug("session ended: %r", error)
        except Exception as error:  # a thread's main: the owner gets it at its next call
            log.exception("the monitor's thread failed")
            self._failure = error
        finally:
            with self._changed:
                self._running, self._ended, self._loop = False, True, None
                self._changed.notify_all()

    async def _session(self) -> None:
        self._stop = asyncio.Event()
        with self._changed:
            if self._closing:
                return
            self._loop = asyncio.get_running_loop()
        client, listener = QMPClient("imgbuild"), EventListener()
        client.logger.setLevel(logging.CRITICAL)  # it logs whole messages, and at its errors, which are ours to tell
        client.register_listener(listener)
        stop = asyncio.create_task(self._stop.wait())
        tasks = {stop, asyncio.create_task(self._follow(client, listener))}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done - {stop}:
                task.result()
        finally:
            with self._changed:
                self._running = False
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            with contextlib.suppress(QMPError, OSError, EOFError):
                if client.runstate is not Runstate.IDLE:
                    await client.disconnect()
            for message in listener.clear():
                self._record(message)

    async def _follow(self, client: QMPClient, listener: EventListener) -> None:
        """Connect, then hand out events until QEMU hangs up."""
        await client.connect(self._sock)
        with self._changed:
            self._client, self._running = client, True
            self._changed.notify_all()
        pump = asyncio.create_task(self._pump(listener))
        try:
            while client.runstate is Runstate.RUNNING:
                await client.runstate_changed()
        finally:
            pump.cancel()
            await asyncio.wait((pump,))

    async def _pump(self, listener: EventListener) -> None:
        while True:
            self._record(await listener.get())

    def _record(self, message: Message) -> None:
        stamp: Any = message.get("timestamp", {})
        data: Any = message.get("data", {})
        event = Event(str(message["event"]), data, stamp.get("seconds", 0) + stamp.get("microseconds", 0) / 1e6)
        log.debug("event: %s %s", event.name, dict(event.data))
        with self._changed:
            self._events.append(event)
            callbacks = tuple(self._callbacks)
            self._changed.notify_all()
        try:
            for callback in callbacks:
                callback(event)
        except Exception as error:  # the owner gets it at its next call
            self._failure = error
            self._stop.set()
