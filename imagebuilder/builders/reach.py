"""A guest that can be reached: SSH, and what templates may know of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from imagebuilder.builders import waiting
from imagebuilder.builders.hardware import GUEST_VIEW
from imagebuilder.builders.run import Run, Source
from imagebuilder.console import symptoms
from imagebuilder.errors import GuestError
from imagebuilder.failure import Evidence
from imagebuilder.plugins import Guest
from imagebuilder.qemu.machine import Machine
from imagebuilder.ssh.communicator import SshCommunicator


@dataclass(frozen=True)
class Reach:
    """One run's way to its guest."""

    source: Source
    run: Run
    evidence: Evidence

    @property
    def address(self) -> str:
        """Of the build's HTTP server, as the guest sees it."""
        return f"{GUEST_VIEW}:{self.run.http.address[1]}" if self.run.http else ""

    @contextlib.contextmanager
    def guest(self, machine: Machine, timeout: float) -> Iterator[Guest]:
        """The guest, as soon as it lets us in; GuestError after `timeout` seconds."""
        if self.source.options.communicator == "none":
            self.evidence.ssh = False
            yield Guest(None, {"PackerHTTPAddr": self.address}, self.address)
            return
        port = self._port(machine)
        with SshCommunicator.of(self.source.options, port, self.run.key, self.run.ui) as communicator:
            self._connect(communicator, machine, timeout)
            self.evidence.connected = True
            yield Guest(communicator, self.data(communicator.host, communicator.port), self.address)

    def _port(self, machine: Machine) -> int | None:
        """The port of this machine that leads to the guest. Never this machine's own SSH server: GuestError."""
        o = self.source.options
        port = machine.host_port or self.run.data["SSHHostPort"] or None
        if port is None and o.ssh_host in ("", "localhost", "127.0.0.1", "::1") and o.ssh_port == 22:
            raise GuestError(
                "No port of this machine leads to the guest, so SSH would reach this machine itself",
                hint="give ssh_host; or forward a port in your -netdev: hostfwd=tcp:127.0.0.1:{{ .SSHHostPort }}-:22",
            )
        return port

    def _connect(self, communicator: SshCommunicator, machine: Machine, limit: float) -> None:
        """Wait for SSH, looking at screen and serial line meanwhile; later only at QEMU: scripts may print anything."""
        ui, began = self.run.ui, time.monotonic()
        watcher = symptoms.Watcher(machine.serial_log, machine.monitor)
        with ui.step("Waiting for SSH"), ui.progress("Waiting for SSH", limit, "seconds") as update:

            def check() -> None:
                machine.check()
                waiting.look(watcher, self.run)
                update(time.monotonic() - began)

            communicator.connect(limit, check=check)
        communicator.attend(machine.check_health)

    def data(self, host: str = "127.0.0.1", port: int = 0) -> dict[str, str]:
        """What `{{build `Host`}}` and its like find; without a guest that runs, what is known all the same."""
        o, key, data = self.source.options, self.run.key, self.run.data
        ip, _, http_port = self.address.partition(":")
        return {
            "ID": str(data["Name"]), "Host": host, "Port": str(port or ""),
            "User": o.ssh_username, "Password": o.ssh_password, "ConnType": "ssh",
            "PackerRunUUID": self.source.context.run_uuid,
            "PackerHTTPIP": ip, "PackerHTTPPort": http_port, "PackerHTTPAddr": self.address,
            "SSHPublicKey": str(data["SSHPublicKey"]), "SSHPrivateKey": key.private if key else "",
            "SSHPrivateKeyFile": o.ssh_private_key_file, "SSHAgentAuth": str(o.ssh_agent_auth).lower(),
        }  # fmt: skip
