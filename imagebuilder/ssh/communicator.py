"""The SSH communicator: one session with the guest, kept as long as it lives and made anew when it is gone.

A handshake costs an emulated guest one to three seconds, so everything goes through the same session.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import paramiko

from imagebuilder.errors import GuestError
from imagebuilder.ssh import installers
from imagebuilder.ssh import proxy as sshproxy
from imagebuilder.ssh import tunnel as sshtunnel
from imagebuilder.ssh.config import CommunicatorOptions
from imagebuilder.ssh.dial import Refusal, knock, reason_of
from imagebuilder.ssh.files import Files
from imagebuilder.ssh.keys import KeyPair
from imagebuilder.ssh.login import Login, authenticate, negotiate
from imagebuilder.ssh.pulse import Pulse
from imagebuilder.ssh.run import Sink, TimedOut, execute
from imagebuilder.ssh.settings import SshSettings
from imagebuilder.ssh.terminal import Streams, converse
from imagebuilder.ui import Ui, duration

_PAUSE = 0.5  # seconds between two attempts
_LOGIN_PAUSE = 7.0  # seconds, at most, between two refused logins: ten take about as long as in Packer
_WAY_TIMEOUT = 15.0  # seconds for a proxy or bastion to answer
_QUESTION_TIMEOUT = 60.0  # seconds for the guest to say what it is

Readiness = Callable[[Callable[[str], str]], str | None]
"""Given a way to run a command and get its output: None when the guest is ready, else what it is instead."""


def installed_system(output: Callable[[str], str]) -> str | None:
    """The default readiness: anything but an installer."""
    return installers.answer(output(installers.question()))


def _nothing() -> None:
    """Nothing to look after while we wait."""


class SshCommunicator:
    """A way into a guest: a context manager, which closes the session. Nothing is begun before `connect`."""

    def __init__(self, settings: SshSettings, ui: Ui, readiness: Readiness | None = installed_system) -> None:
        self.settings, self._ui, self._readiness = settings, ui, readiness
        self._check: Callable[[], None] = _nothing
        self._transport: paramiko.Transport | None = None
        self._bastion: paramiko.Transport | None = None
        self._pulse: Pulse | None = None
        self._tunnels = contextlib.ExitStack()
        self._host_key: bytes | None = None
        self._named: set[str] = set()  # what was said once
        self._files = Files(self._session, self.output, settings.transfer_method, ui)

    @classmethod
    def of(cls, options: CommunicatorOptions, host_port: int | None, key: KeyPair | None, ui: Ui) -> SshCommunicator:
        """From a template's options; see `SshSettings.of`."""
        for secret in (options.ssh_bastion_password, options.ssh_proxy_password, options.ssh_password):
            if secret and secret not in (options.ssh_username, options.ssh_bastion_username):
                ui.mask(secret)
        if key is not None:
            ui.mask(key.private)
        return cls(SshSettings.of(options, host_port, key), ui)

    @property
    def host(self) -> str:
        return self.settings.login.host

    @property
    def port(self) -> int:
        return self.settings.login.port

    def __enter__(self) -> SshCommunicator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._close_bastion()

    # -- getting in

    def connect(self, timeout: float, *, check: Callable[[], None] = _nothing) -> None:
        """Wait until the guest is ready and lets us in; GuestError tells what the last attempt met.

        `check` is called again and again while we wait, now and whenever the session is made anew; it raises when
        there is nothing to wait for any more.
        """
        first, self._check = self._host_key is None, check
        self._wait(timeout)
        pause = self.settings.pause_before_connecting
        if first and pause > 0:
            self._ui.say(f"Waiting {duration(pause)} before connecting again (pause_before_connecting)")
            self.close()
            _sleep(pause, check)
            self._wait(timeout)

    def reconnect(self, timeout: float) -> None:
        """Drop the session and wait until the guest answers again."""
        self.close()
        self._wait(timeout)

    def close(self) -> None:
        """End the session; the next command makes a new one."""
        self._tunnels.close()
        if self._pulse is not None:
            self._pulse.close()
        if self._transport is not None:
            self._transport.close()
        self._pulse = self._transport = None

    def _close_bastion(self) -> None:
        if self._bastion is not None:
            self._bastion.close()
        self._bastion = None

    def _wait(self, timeout: float) -> None:
        until, refused, host_key, last = time.monotonic() + timeout, 0, b"", None
        while True:
            self._check()
            try:
                return self._attempt(until)
            except Refusal as refusal:
                self.close()
                if refusal.login:
                    refused = refused + 1 if refusal.host_key == host_key else 1  # else another system answers now
                    host_key = refusal.host_key
                    self._say_once(f"SSH answers, but {refusal.reason}; trying again")
                last = last if refusal.cut and last else refusal
                if time.monotonic() >= until:
                    raise GuestError(self._too_late(timeout, last), hint=last.hint or _hint(last)) from refusal
                if refusal.login and refused == self.settings.attempts:
                    hint = f"{refusal.hint}; if the installer's own SSH server was meant, raise ssh_handshake_attempts"
                    raise GuestError(
                        f"SSH did not let us in, {refused} times: {refusal.reason}", hint=hint
                    ) from refusal
                pause = min(float(refused), _LOGIN_PAUSE) if refusal.login else _PAUSE
                _sleep(min(pause, max(until - time.monotonic(), 0)), self._check)

    def _too_late(self, timeout: float, last: Refusal) -> str:
        where = f"{self.host}:{self.port}"
        return f"Timed out after {duration(timeout)} waiting for SSH at {where}; last attempt: {last.reason}"

    def _attempt(self, until: float) -> None:
        """Get in once; Refusal when that fails."""
        settings = self.settings
        transport = self._negotiated(until)
        self._transport = transport
        authenticate(transport, settings.login)
        if settings.keep_alive > 0:
            transport.set_keepalive(max(1, round(settings.keep_alive)))
        self._pulse = Pulse(transport, settings.silence, settings.keep_alive) if settings.silence > 0 else None
        self._files.reset()
        self._ask_readiness()
        self._remember(transport.get_remote_server_key())
        for tunnel in settings.local_tunnels:
            self._tunnels.enter_context(sshtunnel.local(transport, tunnel))
        for tunnel in settings.remote_tunnels:
            self._tunnels.enter_context(sshtunnel.remote(transport, tunnel))

    def _negotiated(self, until: float) -> paramiko.Transport:
        login, settings = self.settings.login, self.settings
        try:
            if settings.proxy is not None:
                stream = sshproxy.connect(settings.proxy, login.host, login.port, _WAY_TIMEOUT)
            elif settings.bastion is not None:
                bastion, target = self._through(settings.bastion, until), (login.host, login.port)
                channel = bastion.open_channel("direct-tcpip", target, ("127.0.0.1", 0), timeout=_WAY_TIMEOUT)
                return negotiate(channel, settings.offer, until)
            else:
                stream = knock(login.host, login.port, until, self._check)
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise Refusal(reason_of(error)) from error
        return negotiate(stream, settings.offer, until)

    def _through(self, bastion: Login, until: float) -> paramiko.Transport:
        """The session with the bastion, made anew only when it is gone."""
        if self._bastion is None or not self._bastion.is_active():
            try:
                stream = knock(bastion.host, bastion.port, until, self._check)
                self._bastion = negotiate(stream, self.settings.offer, until)
                authenticate(self._bastion, bastion)
            except Refusal as refusal:
                self._close_bastion()
                reason = f"at the bastion {bastion.host}: {refusal.reason}"
                raise Refusal(reason, hint=refusal.hint, login=refusal.login, host_key=b"bastion") from refusal
        return self._bastion

    def _ask_readiness(self) -> None:
        if self._readiness is None:
            return
        try:
            instead = self._readiness(self._first_output)
        except (TimedOut, OSError, EOFError, paramiko.SSHException) as error:
            raise Refusal(f"the guest let us in and fell silent ({reason_of(error)})") from error
        if instead is not None:
            self._say_once(f"That is {instead}, not the installed system: waiting for that")
            raise Refusal(f"{instead} answers, not the installed system", hint="raise ssh_timeout if it is just slow")

    def _remember(self, key: paramiko.PKey) -> None:
        if self._host_key is not None and self._host_key != key.asbytes():
            self._ui.warning("The guest has another SSH host key than before: is it still the same system?")
        self._host_key = key.asbytes()

    def _say_once(self, text: str) -> None:
        if text not in self._named:
            self._named.add(text)
            self._ui.message(text)

    # -- commands

    def run(
        self,
        command: str,
        *,
        on_line: Sink | None = None,
        on_error_line: Sink | None = None,
        timeout: float | None = None,
    ) -> int | None:
        """See `plugins.Communicator`. The command's standard input is empty; it gets a terminal with ssh_pty."""
        for last in (False, True):
            transport = self._session()
            try:
                status = execute(
                    transport, command, on_line=on_line, on_error_line=on_error_line, timeout=timeout,
                    pty=self.settings.pty, forward_agent=self.settings.forward_agent, alive=self._alive,
                )  # fmt: skip
                if status is None:
                    _sleep(0.2, self._check)  # a QEMU that died takes the connection with it
                    self._check()
                return status
            except (EOFError, paramiko.SSHException) as error:
                if last:
                    reason = reason_of(error)
                    raise GuestError(f"The guest's SSH server runs no commands: {reason}", lost=True) from error
                self.close()  # the session was dead already, or takes no more channels: a new one may
        raise AssertionError

    def output(self, command: str) -> str:
        """What a short command prints."""
        lines: list[str] = []
        self.run(command, on_line=lines.append, timeout=_QUESTION_TIMEOUT * 5)
        return "\n".join(lines)

    def shell(
        self, stdin: IO[bytes] | None = None, stdout: IO[bytes] | None = None, stderr: IO[bytes] | None = None
    ) -> int:
        """The user's login shell on these streams (by default ours); its exit status. See `terminal.converse`."""
        streams = Streams(stdin or sys.stdin.buffer, stdout or sys.stdout.buffer, stderr or sys.stderr.buffer)
        return converse(self._session, streams, self._ui, alive=self._alive, forward_agent=self.settings.forward_agent)

    def _first_output(self, command: str) -> str:
        assert self._transport is not None
        lines: list[str] = []
        if execute(self._transport, command, on_line=lines.append, timeout=_QUESTION_TIMEOUT) is None:
            raise EOFError
        return "\n".join(lines)

    def attend(self, check: Callable[[], None]) -> None:
        """From now on call this while we wait for the guest; what it raises ends the wait."""
        self._check = check

    def _alive(self) -> bool:
        self._check()
        return self._pulse is None or self._pulse.alive()

    def _session(self) -> paramiko.Transport:
        """The session; a new one when it is gone."""
        if self._transport is None or not self._transport.is_active():
            self.close()
            self._wait(self.settings.timeout)
        assert self._transport is not None
        return self._transport

    # -- files

    def upload(self, content: bytes | Path, destination: str, mode: int = 0o644) -> None:
        """Write a file of the guest; its length is checked, and its sha256 when it is large."""
        self._files.upload(content, destination, mode)

    def upload_directory(self, source: Path, destination: str, *, contents_only: bool) -> None:
        """`contents_only`: what is in `source` goes into `destination`; else `destination`/`source.name` is made."""
        self._files.upload_directory(source, destination, contents_only=contents_only)

    def download(self, source: str, destination: Path) -> None:
        """The file appears complete or not at all."""
        self._files.download(source, destination)

    def download_directory(self, source: str, destination: Path, *, contents_only: bool) -> None:
        """As `upload_directory`, the other way."""
        self._files.download_directory(source, destination, contents_only=contents_only)


def _hint(refusal: Refusal) -> str:
    if "no common algorithm" in refusal.reason:
        return "set ssh_ciphers or ssh_key_exchange_algorithms to what the guest offers"
    return "look at the guest's screen: is it up, has it a network, does its SSH server run and its firewall let us in?"


def _sleep(seconds: float, check: Callable[[], None]) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        check()
        time.sleep(min(left, 0.25))
