"""Whether the other end of an SSH session still lives: it has to answer a request now and then (RFC 4254 §4)."""

from __future__ import annotations

import threading
import time

import paramiko


class Pulse:
    """Asks from a thread of its own, which ends with `close` or with the session. Times are in seconds."""

    def __init__(self, transport: paramiko.Transport, silence: float, interval: float) -> None:
        self._transport, self._silence = transport, silence
        self._interval = min(interval, silence / 2) if interval > 0 else silence / 2
        self._answered = time.monotonic()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="ssh-pulse", daemon=True)
        self._thread.start()

    def alive(self) -> bool:
        """False when no answer has come for `silence`."""
        return time.monotonic() - self._answered <= self._silence

    def close(self) -> None:
        """Ends the session too: a request may hang in it."""
        self._ending.set()
        self._transport.close()
        self._thread.join()

    def _ask(self) -> None:
        while not self._ending.wait(self._interval) and self._transport.is_active():
            try:
                self._transport.global_request("keepalive@openssh.com", wait=True)
            except (paramiko.SSHException, OSError, EOFError):
                return
            if self._transport.is_active():
                self._answered = time.monotonic()
