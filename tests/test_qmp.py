from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from imagebuilder.errors import GuestError
from imagebuilder.qemu.qmp import Event, Monitor, QmpError

Answer = Callable[[dict[str, Any]], list[dict[str, Any]] | None]


class Peer:
    """The other end of the line: a QMP server that answers as told, as QEMU 7.2 words it."""

    def __init__(self, sock: socket.socket, answer: Answer) -> None:
        self.sock, self._answer = sock, answer
        self.seen: list[dict[str, Any]] = []
        self.thread = threading.Thread(target=self._serve, name="peer")

    def send(self, message: dict[str, Any]) -> None:
        self.sock.sendall(json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, **data: Any) -> None:
        self.send({"event": name, "data": data, "timestamp": {"seconds": 5, "microseconds": 250000}})

    def hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def _messages(self) -> Iterator[dict[str, Any]]:
        """What the client says: JSON objects without line ends, as qemu.qmp sends them."""
        pending = ""
        while chunk := self.sock.recv(65536):
            pending += chunk.decode()
            with contextlib.suppress(ValueError):
                while pending := pending.lstrip():
                    message, end = json.JSONDecoder().raw_decode(pending)
                    pending = pending[end:]
                    yield message

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            self.send({"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}}, "capabilities": ["oob"]}})
            for message in self._messages():
                self.seen.append(message)
                rows = self._answer(message)
                if rows is None:
                    return self.hang_up()
                for row in rows:
                    self.send(row if "event" in row else {**row, "id": message["id"]} if "id" in message else row)
        return None


@contextlib.contextmanager
def talking(answer: Answer = lambda message: [{"return": {}}]) -> Iterator[tuple[Monitor, Peer]]:
    ours, theirs = socket.socketpair()
    peer = Peer(theirs, answer)
    peer.thread.start()
    try:
        with Monitor(ours, lambda: "QEMU ended with exit code 1") as monitor:
            yield monitor, peer
    finally:
        peer.hang_up()
        peer.thread.join()
        theirs.close()


def test_commands_and_their_answers() -> None:
    with talking(lambda message: [{"return": {"status": "running"}}]) as (monitor, peer):
        assert monitor.execute("query-status") == {"status": "running"}
        monitor.execute("stop", {"x": 1})
    assert [message["execute"] for message in peer.seen] == ["qmp_capabilities", "query-status", "stop"]
    assert peer.seen[2]["arguments"] == {"x": 1}


def test_human_monitor() -> None:
    with talking(lambda message: [{"return": "a\r\nb\r\n"}]) as (monitor, peer):
        assert monitor.hmp("info usernet") == "a\nb\n"
    assert peer.seen[1]["arguments"] == {"command-line": "info usernet"}


def test_refusal_carries_the_reason() -> None:
    def refuse(message: dict[str, Any]) -> list[dict[str, Any]]:
        if message["execute"] == "qmp_capabilities":
            return [{"return": {}}]
        return [{"error": {"class": "DeviceNotFound", "desc": "Device 'x' not found"}}]

    with talking(refuse) as (monitor, _), pytest.raises(QmpError, match=r"'eject'.*Device 'x' not found") as caught:
        monitor.execute("eject")
    assert caught.value.error_class == "DeviceNotFound"


def test_silence_is_an_error() -> None:
    with (
        talking(lambda message: [{"return": {}}] if message["execute"] == "qmp_capabilities" else []) as (monitor, _),
        pytest.raises(GuestError, match=r"did not answer 'stop' within 0\.2 s"),
    ):
        monitor.execute("stop", timeout=0.2)


def test_death_in_a_command_is_noticed_at_once() -> None:
    began = time.monotonic()
    with (
        talking(lambda message: [{"return": {}}] if message["execute"] == "qmp_capabilities" else None) as (monitor, _),
        pytest.raises(GuestError, match="QEMU ended with exit code 1"),
    ):
        monitor.execute("query-block")
    assert time.monotonic() - began < 1


def test_death_while_waiting_for_an_event_is_noticed_at_once() -> None:
    with talking() as (monitor, peer):
        timer = threading.Timer(0.1, peer.hang_up)
        timer.start()
        began = time.monotonic()
        with pytest.raises(GuestError, match="QEMU ended"):
            monitor.wait_event({"SHUTDOWN"}, 30)
        assert time.monotonic() - began < 1
        timer.join()
        assert monitor.ended
        with pytest.raises(GuestError, match="QEMU ended"):
            monitor.execute("query-status")


def test_death_before_the_greeting() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with pytest.raises(GuestError, match="could not start"), Monitor(ours, lambda: "could not start"):
        raise AssertionError
    assert ours.fileno() == -1
    assert not [thread for thread in threading.enumerate() if thread.name == "qmp"]


def test_each_event_is_returned_once_and_early_ones_count() -> None:
    with talking() as (monitor, peer):
        peer.event("RESET", guest=True)
        peer.event("STOP")
        peer.event("RESET", guest=False)
        monitor.execute("query-status")  # its answer comes after the events
        assert [event.name for event in monitor.history] == ["RESET", "STOP", "RESET"]
        assert monitor.wait_event({"RESET"}, 5) == Event("RESET", {"guest": True}, 5.25)
        assert monitor.wait_event({"RESET"}, 5) == Event("RESET", {"guest": False}, 5.25)
        assert monitor.wait_event({"RESET"}, 0.05) is None
        assert monitor.wait_event({"RESET", "STOP"}, 5) == Event("STOP", {}, 5.25)


def test_last_events_before_death_are_not_lost() -> None:
    with talking() as (monitor, peer):
        for _ in range(50):
            peer.event("RESET")
        peer.event("SHUTDOWN", guest=True, reason="guest-shutdown")
        peer.hang_up()
        event = monitor.wait_event({"SHUTDOWN"}, 5)
        assert event is not None and event.data["reason"] == "guest-shutdown"
        assert len(monitor.history) == 51


def test_callbacks_see_every_event() -> None:
    seen: list[str] = []
    arrived = threading.Event()
    with talking() as (monitor, peer):
        monitor.on_event(lambda event: seen.append(event.name))
        monitor.on_event(lambda event: arrived.set() if event.name == "STOP" else None)
        peer.event("RESET")
        peer.event("STOP")
        assert arrived.wait(5)
    assert seen == ["RESET", "STOP"]


def test_a_failing_callback_reaches_the_owner() -> None:
    def fail(event: Event) -> None:
        raise ZeroDivisionError

    with talking() as (monitor, peer):
        monitor.on_event(fail)
        peer.event("RESET")
        with pytest.raises(ZeroDivisionError):
            monitor.wait_event({"STOP"}, 5)


def test_closing_leaves_no_thread_and_can_be_repeated() -> None:
    with talking() as (monitor, peer):
        monitor.close()
        monitor.close()
        assert not [thread for thread in threading.enumerate() if thread.name == "qmp"]
        assert not monitor.ended
        with pytest.raises(GuestError, match="closed"):
            monitor.execute("query-status")
        assert peer.thread.join(5) is None


def test_many_threads_may_ask() -> None:
    with talking(lambda message: [{"return": message.get("arguments", {}).get("n")}]) as (monitor, _):
        found: list[int] = []

        def ask(number: int) -> None:
            found.extend(monitor.execute("echo", {"n": number}) for _ in range(20))

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == sorted(list(range(8)) * 20)


def test_typed_text_stays_out_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    with talking() as (monitor, _):
        monitor.execute("set_password", {"protocol": "vnc", "password": "geheim12"})
    assert "execute: set_password" in caplog.text and "geheim12" not in caplog.text
