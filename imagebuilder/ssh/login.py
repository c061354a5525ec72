"""From a fresh connection to a session that we are logged in to: algorithms, then authentication (RFC 4253, RFC 4252).

The host key isn't checked against anything: the machine was made a minute ago.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import paramiko

from imagebuilder.errors import GuestError
from imagebuilder.ssh.dial import Refusal, reason_of
from imagebuilder.ssh.run import Transport

# paramiko logs every lost connection with a traceback as an error; without a handler Python prints that.
logging.getLogger("paramiko").addHandler(logging.NullHandler())

_GREETING, _HANDSHAKE, _LOGIN = 30.0, 60.0, 60.0  # seconds; an emulated guest takes its time for cryptography
_POST_QUANTUM = "mlkem"
_Method = Callable[[paramiko.Transport], list[str]]


@dataclass(frozen=True)
class Login:
    """A server, who we are there, and how we prove it; `interactive`: the person answers its questions."""

    host: str
    port: int
    username: str
    password: str = field(default="", repr=False)
    key: paramiko.PKey | None = None
    agent: bool = False
    interactive: bool = False

    def __str__(self) -> str:
        return f"{self.username}@{self.host}:{self.port}"


@dataclass(frozen=True)
class Offer:
    """Algorithms that we offer, best first; empty: our choice."""

    ciphers: tuple[str, ...] = ()
    key_exchanges: tuple[str, ...] = ()


def negotiate(stream: socket.socket | paramiko.Channel, offer: Offer, until: float) -> paramiko.Transport:
    """Agree on algorithms and keys, before the monotonic time `until`; Refusal when that fails.

    The stream belongs to the session afterwards.
    """
    transport = Transport(stream)
    try:
        transport.banner_timeout, transport.handshake_timeout, transport.auth_timeout = _GREETING, _HANDSHAKE, _LOGIN
        _restrict(transport.get_security_options(), offer)
        done, until = threading.Event(), min(until, time.monotonic() + _HANDSHAKE)
        transport.start_client(event=done)
        while not done.wait(0.05) and transport.is_active() and time.monotonic() < until:
            pass
        if not done.is_set() or not transport.is_active():
            raise transport.get_exception() or TimeoutError()
    except (paramiko.SSHException, OSError, EOFError) as error:
        _abandon(transport, stream)
        raise Refusal(_told(error)) from error
    except BaseException:
        _abandon(transport, stream)
        raise
    return transport


def _abandon(transport: paramiko.Transport, stream: socket.socket | paramiko.Channel) -> None:
    transport.close()
    stream.close()  # a session that did not begin leaves it open


def _restrict(options: paramiko.transport.SecurityOptions, offer: Offer) -> None:
    """Offer what was asked for; else everything, but curve25519 before the post-quantum exchange that costs more."""
    cheap_first = sorted(options.kex, key=lambda name: (name.startswith(_POST_QUANTUM), not name.startswith("curve")))
    try:
        options.kex = offer.key_exchanges or tuple(cheap_first)
        if offer.ciphers:
            options.ciphers = offer.ciphers
    except ValueError as error:
        known = (*options.kex, *options.ciphers)
        unknown = [name for name in (*offer.key_exchanges, *offer.ciphers) if name not in known]
        raise GuestError(
            f"Unknown SSH algorithm: {', '.join(unknown)}", hint=f"known are {', '.join(known)}"
        ) from error


def _told(error: BaseException) -> str:
    text = str(error)
    if "banner" in text:
        return "no SSH greeting in time" if "timeout" in text.lower() else "what answers does not speak SSH"
    if isinstance(error, paramiko.ssh_exception.IncompatiblePeer):
        return f"no common algorithm ({text.partition('(')[2].rstrip(')') or text})"
    return reason_of(error)


def authenticate(transport: paramiko.Transport, login: Login) -> None:
    """Log in with every means we have, in turn; a Refusal says what was tried and what the server would take."""
    tried: list[str] = []
    takes: Iterable[str] = ()
    with _methods(login) as methods:
        for name, method in methods:
            if takes and name.split(" ")[0] not in takes:
                continue
            try:
                takes = method(transport)
            except paramiko.BadAuthenticationType as error:
                takes = error.allowed_types
            except paramiko.AuthenticationException:
                tried.append(name)
            except (paramiko.SSHException, OSError, EOFError) as error:
                raise Refusal(f"while logging in: {reason_of(error)}", login=bool(tried)) from error
            if transport.is_authenticated():
                return
            if not transport.is_active():
                break
    raise _refused(transport, login, tried, takes)


def _refused(transport: paramiko.Transport, login: Login, tried: Sequence[str], takes: Iterable[str]) -> Refusal:
    with_what = f" with {' and '.join(dict.fromkeys(tried))}" if tried else ""
    accepts = f" (the server takes {', '.join(takes)})" if takes else ""
    hint = "see that this user exists in the guest, and may log in this way"
    if login.username == "root" and login.password:
        hint = "many systems refuse passwords of root: set 'PermitRootLogin yes' in the kickstart, or use a key"
    elif not tried and takes:
        hint = f"give what the server takes: {', '.join(takes)}"
    with contextlib.suppress(paramiko.SSHException):
        key = transport.get_remote_server_key().asbytes()
        return Refusal(
            f"authentication failed for '{login.username}'{with_what}{accepts}", hint=hint, login=True, host_key=key
        )
    return Refusal(f"authentication failed for '{login.username}'{with_what}{accepts}", hint=hint, login=True)


@contextlib.contextmanager
def _methods(login: Login) -> Iterator[Iterator[tuple[str, _Method]]]:
    """(method of RFC 4252 and what is special about it, the attempt), one after the other."""
    agent = paramiko.Agent() if login.agent else None
    try:
        yield _each_method(login, agent)
    finally:
        if agent is not None:
            agent.close()


def _each_method(login: Login, agent: paramiko.Agent | None) -> Iterator[tuple[str, _Method]]:
    keys: list[tuple[str, paramiko.PKey]] = [("publickey", login.key)] if login.key is not None else []
    keys += [("publickey (agent)", key) for key in (agent.get_keys() if agent else ())]
    for name, key in keys:
        yield name, _with_key(login.username, key)
    if login.password and not login.interactive:
        yield "password", lambda transport: transport.auth_password(login.username, login.password, fallback=False)
    if login.interactive or login.password:
        answer = _ask if login.interactive else lambda title, text, fields: [login.password] * len(fields)
        yield "keyboard-interactive", lambda transport: transport.auth_interactive(login.username, answer)


def _with_key(username: str, key: paramiko.PKey) -> _Method:
    return lambda transport: transport.auth_publickey(username, key)


def _ask(title: str, instructions: str, fields: list[tuple[str, bool]]) -> list[str]:
    """Ask the person on the terminal, without echo."""
    head = "\n".join(text for text in (title, instructions) if text)
    return [getpass.getpass(f"{head}\n{prompt}" if head else prompt) for prompt, _echo in fields]
