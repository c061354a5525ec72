"""SSH servers that real ones won't be: with passwords, questions, refusals and signals (paramiko's server side)."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import paramiko

from imagebuilder.ssh.keys import generate


@dataclass
class Behaviour:
    """How the server behaves; `tried` collects the logins that it saw."""

    password: str = ""
    interactive: bool = False  # asks instead of taking a password
    refuse_first: int = 0  # logins refused before the right one is taken
    signal: str = ""  # commands end by this signal
    silent: bool = False  # commands never end, nothing is answered
    first_output: str = ""  # what the first command prints
    tried: list[str] = field(default_factory=list)
    connections: int = 0


class _Server(paramiko.ServerInterface):
    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour

    def get_allowed_auths(self, username: str) -> str:
        return "keyboard-interactive" if self.behaviour.interactive else "password"

    def check_auth_password(self, username: str, password: str) -> int:
        return self._judge(password) if not self.behaviour.interactive else paramiko.common.AUTH_FAILED

    def check_auth_interactive(self, username: str, submethods: str) -> int | paramiko.InteractiveQuery:
        if not self.behaviour.interactive:
            return paramiko.common.AUTH_FAILED
        return paramiko.InteractiveQuery("", "", ("Password: ", False), ("Again: ", False))

    def check_auth_interactive_response(self, responses: list[str]) -> int:
        return self._judge("/".join(responses))

    def _judge(self, said: str) -> int:
        self.behaviour.tried.append(said)
        wanted = self.behaviour.password if not self.behaviour.interactive else "/".join([self.behaviour.password] * 2)
        right = said == wanted and len(self.behaviour.tried) > self.behaviour.refuse_first
        return paramiko.common.AUTH_SUCCESSFUL if right else paramiko.common.AUTH_FAILED

    def check_channel_request(self, kind: str, chanid: int) -> int:
        return paramiko.common.OPEN_SUCCEEDED

    def check_channel_exec_request(self, channel: paramiko.Channel, command: bytes) -> bool:
        threading.Timer(0.1, self._run, (channel,)).start()  # after the answer to this request
        return True

    def _run(self, channel: paramiko.Channel) -> None:
        with contextlib.suppress(OSError, EOFError, paramiko.SSHException):
            if self.behaviour.silent and not self.behaviour.first_output:
                return
            if self.behaviour.first_output:
                channel.sendall(self.behaviour.first_output.encode())
                self.behaviour.first_output = ""
            if self.behaviour.signal:
                message = paramiko.Message()
                message.add_byte(paramiko.common.byte_chr(98))  # SSH_MSG_CHANNEL_REQUEST
                message.add_int(channel.remote_chanid)
                message.add_string("exit-signal")
                message.add_boolean(False)
                message.add_string(self.behaviour.signal)
                message.add_boolean(False)
                message.add_string("")
                message.add_string("")
                channel.transport._send_user_message(message)  # type: ignore[union-attr]
            else:
                channel.send_exit_status(0)
            channel.close()


@contextlib.contextmanager
def fake(behaviour: Behaviour, port: int = 0) -> Iterator[int]:
    """Serve until the end of the block; yields the port."""
    host_key, sessions, ending = generate().key, list[paramiko.Transport](), threading.Event()
    server = socket.create_server(("127.0.0.1", port))
    server.settimeout(0.1)

    def serve() -> None:
        while not ending.is_set():
            with contextlib.suppress(TimeoutError):
                stream, _ = server.accept()
                behaviour.connections += 1
                session = paramiko.Transport(stream)
                sessions.append(session)
                session.add_server_key(host_key)
                with contextlib.suppress(paramiko.SSHException, EOFError, OSError):
                    session.start_server(event=threading.Event(), server=_Server(behaviour))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield int(server.getsockname()[1])
    finally:
        ending.set()
        thread.join()
        server.close()
        for session in sessions:
            session.close()
