"""The keys of a builder that say how the guest is reached: Packer's, all of them, and what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from imagebuilder.options import Bool, Duration, Int, Options, Text, Texts
from imagebuilder.ssh.keyfile import read_private_key

_KEY_TYPES: Mapping[str, tuple[int, ...]] = {
    "ed25519": (0, 256),
    "ecdsa": (0, 256, 384, 521),
    "rsa": (0, 2048, 3072, 4096, 8192),
}  # fmt: skip


@dataclass(frozen=True)
class Tunnel:
    """Who connects to `port` on one side comes out at `host`:`target_port` on the other."""

    port: int
    host: str
    target_port: int

    @classmethod
    def parse(cls, text: str) -> Tunnel:
        """Read 'port:host:port'; ValueError tells what is wrong."""
        port, _, rest = text.partition(":")
        host, _, target = rest.rpartition(":")
        if not (_is_port(port) and host and _is_port(target)):
            raise ValueError(f"'{text}' is not a tunnel: write 'port:host:port', like '8080:localhost:80'")
        return cls(int(port), host.strip("[]"), int(target))


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text) < 65536


class CommunicatorOptions(Options):
    """Keys that every builder has whose guest is reached from outside."""

    communicator: Literal["", "ssh", "none", "winrm"] = Field(
        "ssh", description="How the guest is reached: ssh, or none (it powers itself off when it is done)"
    )
    pause_before_connecting: Duration = Field(
        0.0, description="After the first login wait so long and log in again: for guests that reboot once more"
    )
    host_port_min: Int | None = Field(None, ge=1, le=65535, description="Lowest port on this machine; default: any")
    host_port_max: Int | None = Field(None, ge=1, le=65535, description="Highest port on this machine")
    skip_nat_mapping: Bool = Field(False, description="No port forward: connect to ssh_host and ssh_port directly")

    ssh_host: Text = Field("", description="Address to connect to; default: the forwarded port on loopback")
    ssh_port: Int = Field(22, ge=1, le=65535, description="Port of the SSH server in the guest")
    ssh_username: Text = Field("", description="User to log in as; required")
    ssh_password: Text = Field("", description="Its password; answers keyboard-interactive questions too")
    ssh_private_key_file: Text = Field("", description="Private key to log in with, without a passphrase")
    ssh_certificate_file: Text = Field("", description="OpenSSH certificate of that key")
    ssh_keypair_name: Text = Field("", description="Means something to cloud builders only")
    temporary_key_pair_name: Text = Field("", description="Comment of the key pair that is made when there is no login")
    temporary_key_pair_type: Literal["", "ed25519", "ecdsa", "rsa"] = Field(
        "", description="Its type; default ed25519, which guests check fastest (Packer: rsa)"
    )
    temporary_key_pair_bits: Int = Field(0, description="Its size; default: 256 for ecdsa, 3072 for rsa")
    ssh_agent_auth: Bool = Field(False, description="Log in with the keys of your agent (SSH_AUTH_SOCK)")
    ssh_disable_agent_forwarding: Bool = Field(
        True, description="false: what runs in the guest may use your agent's keys (Packer's default)"
    )
    ssh_clear_authorized_keys: Bool = Field(
        False, description="Remove the key we logged in with from the image; a key pair made for the build goes always"
    )
    ssh_pty: Bool = Field(False, description="Run commands on a terminal; their errors come with their output then")
    ssh_timeout: Duration = Field(300.0, description="How long to wait until SSH answers and lets us in")
    ssh_handshake_attempts: Int = Field(10, ge=0, description="Refused logins until the build fails; 0: no limit")
    ssh_ciphers: Texts = Field((), description="Ciphers to offer; default: all that are safe, the cheapest first")
    ssh_key_exchange_algorithms: Texts = Field((), description="Key exchange methods to offer, likewise")
    ssh_file_transfer_method: Literal["", "scp", "sftp"] = Field(
        "", description="How files travel; default: what the guest has (sftp, scp, or plain streams)"
    )
    ssh_keep_alive_interval: Duration = Field(5.0, description="Pause between signs of life; negative: none")
    ssh_read_write_timeout: Duration = Field(
        0.0, description="Silence after which the guest is taken for dead; 0: never"
    )
    ssh_remote_tunnels: Texts = Field((), description="'port:host:port': a port of the guest that leads out")
    ssh_local_tunnels: Texts = Field((), description="'port:host:port': a port here that leads into the guest")

    ssh_bastion_host: Text = Field("", description="Go through this SSH server")
    ssh_bastion_port: Int = Field(22, ge=1, le=65535, description="Its port")
    ssh_bastion_username: Text = Field("", description="User there; default ssh_username")
    ssh_bastion_password: Text = Field("", description="Password there")
    ssh_bastion_agent_auth: Bool = Field(False, description="Log in there with the keys of your agent")
    ssh_bastion_interactive: Bool = Field(False, description="Ask you on the terminal what the bastion wants to know")
    ssh_bastion_private_key_file: Text = Field("", description="Private key for it; default ssh_private_key_file")
    ssh_bastion_certificate_file: Text = Field("", description="OpenSSH certificate of that key")
    ssh_proxy_host: Text = Field("", description="Go through this SOCKS5 proxy; 'http://HOST' for an HTTP one")
    ssh_proxy_port: Int = Field(1080, ge=1, le=65535, description="Its port")
    ssh_proxy_username: Text = Field("", description="User at the proxy")
    ssh_proxy_password: Text = Field("", description="Password there")

    winrm_username: Text = Field("", description="Not used yet, as all winrm_ keys")
    winrm_password: Text = ""
    winrm_host: Text = ""
    winrm_no_proxy: Bool = False
    winrm_port: Int = 5985
    winrm_timeout: Duration = 1800.0
    winrm_use_ssl: Bool = False
    winrm_insecure: Bool = False
    winrm_use_ntlm: Bool = False

    renamed: ClassVar[Mapping[str, str]] = {
        "ssh_host_port_min": "host_port_min",
        "ssh_host_port_max": "host_port_max",
        "ssh_skip_nat_mapping": "skip_nat_mapping",
        "ssh_key_path": "ssh_private_key_file",
        "ssh_disable_agent": "ssh_disable_agent_forwarding",
    }

    @classmethod
    def upgrade(cls, raw: dict[str, Any]) -> Iterator[tuple[str, str]]:
        yield from super().upgrade(raw)
        if "ssh_wait_timeout" in raw:  # wins where both stand, as in Packer
            raw["ssh_timeout"] = raw.pop("ssh_wait_timeout")
            yield "ssh_wait_timeout", "ssh_timeout"

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.communicator == "winrm":
            yield "communicator", "'winrm' is not supported yet: Windows guests can run OpenSSH, use 'ssh'"
        if self.communicator in ("none", "winrm"):
            return
        yield from self._login_problems()
        yield from self._key_problems()
        yield from self._way_problems()
        yield from self._tunnel_problems()

    def _login_problems(self) -> Iterator[tuple[str, str]]:
        if not self.ssh_username:
            yield "ssh_username", "is missing: say whom to log in as (or communicator 'none')"
        for key in ("ssh_agent_auth", "ssh_bastion_agent_auth"):
            if getattr(self, key) and not os.environ.get("SSH_AUTH_SOCK"):
                yield key, "no agent is running here: SSH_AUTH_SOCK is not set"
        if self.ssh_timeout <= 0:
            yield "ssh_timeout", "must be longer than nothing"
        sizes = _KEY_TYPES[self.temporary_key_pair_type or "ed25519"]
        if self.temporary_key_pair_bits not in sizes:
            choices = ", ".join(str(size) for size in sizes if size)
            yield "temporary_key_pair_bits", f"{self.temporary_key_pair_bits} is no size of such a key: write {choices}"

    def _key_problems(self) -> Iterator[tuple[str, str]]:
        for prefix in ("ssh_", "ssh_bastion_"):
            key, certificate = f"{prefix}private_key_file", f"{prefix}certificate_file"
            path, proof = getattr(self, key), getattr(self, certificate)
            if proof and not path and not (prefix == "ssh_bastion_" and self.ssh_private_key_file):
                yield certificate, f"needs the private key it was given for: {key}"
            if path:
                try:
                    read_private_key(Path(path), Path(proof) if proof else None)
                except ValueError as error:
                    yield key, str(error)

    def _way_problems(self) -> Iterator[tuple[str, str]]:
        if self.ssh_bastion_host and self.ssh_proxy_host:
            yield "ssh_proxy_host", "give a bastion or a proxy, not both"
        ways = (
            self.ssh_bastion_password, self.bastion_key_file, self.ssh_bastion_agent_auth, self.ssh_bastion_interactive,
        )  # fmt: skip
        if self.ssh_bastion_host and not any(ways):
            yield "ssh_bastion_host", "needs a login: ssh_bastion_password or ssh_bastion_private_key_file"

    def _tunnel_problems(self) -> Iterator[tuple[str, str]]:
        for key in ("ssh_local_tunnels", "ssh_remote_tunnels"):
            for text in getattr(self, key):
                try:
                    Tunnel.parse(text)
                except ValueError as error:
                    yield key, str(error)

    def doubts(self) -> Iterator[tuple[str, str]]:
        yield from super().doubts()
        if not self.ssh_disable_agent_forwarding:
            yield "ssh_disable_agent_forwarding", "false: whatever runs in the guest may use your agent's keys"
        if self.ssh_bastion_interactive and self.ssh_bastion_password:
            yield "ssh_bastion_password", "is not used: ssh_bastion_interactive asks you"

    @property
    def bastion_key_file(self) -> str:
        return self.ssh_bastion_private_key_file or self.ssh_private_key_file

    @property
    def bastion_certificate_file(self) -> str:
        if self.ssh_bastion_private_key_file:
            return self.ssh_bastion_certificate_file
        return self.ssh_bastion_certificate_file or self.ssh_certificate_file

    @property
    def guest_port(self) -> int:
        """The port in the guest that is forwarded."""
        return self.ssh_port

    @property
    def makes_key(self) -> bool:
        """Whether a key pair is made for this build: there is no other login."""
        given = self.ssh_password or self.ssh_private_key_file or self.ssh_agent_auth
        return self.communicator != "none" and not given
