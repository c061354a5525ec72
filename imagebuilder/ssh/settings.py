"""What an SSH communicator knows before its first attempt, resolved from a template's options."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import paramiko

from imagebuilder.errors import GuestError
from imagebuilder.ssh.config import CommunicatorOptions, Tunnel
from imagebuilder.ssh.keyfile import read_private_key
from imagebuilder.ssh.keys import KeyPair
from imagebuilder.ssh.login import Login, Offer
from imagebuilder.ssh.proxy import Proxy


@dataclass(frozen=True)
class SshSettings:
    """What is known before the first attempt; times are in seconds."""

    login: Login
    bastion: Login | None = None
    proxy: Proxy | None = None
    offer: Offer = field(default_factory=Offer)
    attempts: int = 10  # refused logins until we give up; 0: no limit
    timeout: float = 300.0
    pause_before_connecting: float = 0.0
    keep_alive: float = 5.0
    silence: float = 0.0  # after which the guest is dead; 0: never
    pty: bool = False
    forward_agent: bool = False
    transfer_method: str = ""
    local_tunnels: tuple[Tunnel, ...] = ()
    remote_tunnels: tuple[Tunnel, ...] = ()

    @classmethod
    def of(cls, options: CommunicatorOptions, host_port: int | None, key: KeyPair | None) -> SshSettings:
        """From a template's options. `host_port`: the forwarded port, None when the guest is reached directly."""
        o = options
        own = key.key if key else _read(o.ssh_private_key_file, o.ssh_certificate_file)
        login = Login(
            o.ssh_host or "127.0.0.1", host_port or o.ssh_port, o.ssh_username, o.ssh_password, own, o.ssh_agent_auth
        )
        proxy = Proxy.of(o.ssh_proxy_host, o.ssh_proxy_port, o.ssh_proxy_username, o.ssh_proxy_password)
        return cls(
            login, _bastion(o), proxy if o.ssh_proxy_host else None,
            Offer(o.ssh_ciphers, o.ssh_key_exchange_algorithms), o.ssh_handshake_attempts, o.ssh_timeout,
            o.pause_before_connecting, o.ssh_keep_alive_interval, o.ssh_read_write_timeout, o.ssh_pty,
            not o.ssh_disable_agent_forwarding, o.ssh_file_transfer_method,
            tuple(map(Tunnel.parse, o.ssh_local_tunnels)), tuple(map(Tunnel.parse, o.ssh_remote_tunnels)),
        )  # fmt: skip


def _bastion(o: CommunicatorOptions) -> Login | None:
    if not o.ssh_bastion_host:
        return None
    return Login(
        o.ssh_bastion_host, o.ssh_bastion_port, o.ssh_bastion_username or o.ssh_username, o.ssh_bastion_password,
        _read(o.bastion_key_file, o.bastion_certificate_file), o.ssh_bastion_agent_auth, o.ssh_bastion_interactive,
    )  # fmt: skip


def _read(path: str, certificate: str) -> paramiko.PKey | None:
    try:
        return read_private_key(Path(path), Path(certificate) if certificate else None) if path else None
    except ValueError as error:
        raise GuestError(f"Can't log in: {error}") from error
