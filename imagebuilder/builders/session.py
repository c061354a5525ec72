"""One build on a QEMU machine: what every builder shares once it has said how the first boot goes.

The story is `MachineSession.guest`: serve, prepare the first boot, install, start from disk, reach the guest, end it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from imagebuilder import failure, process
from imagebuilder.builders import export, hardware
from imagebuilder.builders.hardware import GUEST_VIEW, FirstBoot
from imagebuilder.builders.qemuoptions import MachineOptions, system_disk_name
from imagebuilder.builders.shutdown import shut_down
from imagebuilder.console import keyboard, screen, symptoms
from imagebuilder.console.bootcommand import parse as parse_boot_command
from imagebuilder.errors import GuestError, ImgbuildError
from imagebuilder.image.artifact import Output
from imagebuilder.media.httpserver import Access, HttpServer
from imagebuilder.plugins import Artifact, BuildContext, Guest, OnError
from imagebuilder.qemu import ports
from imagebuilder.qemu.arguments import MachineConfig
from imagebuilder.qemu.machine import Machine
from imagebuilder.ssh import keys as sshkeys
from imagebuilder.ssh.communicator import SshCommunicator
from imagebuilder.ssh.keyfile import read_private_key
from imagebuilder.ui import Ui, duration

_POLL = 0.5  # seconds between two looks at a guest that we wait for


@dataclass(frozen=True)
class Run:
    """What the parts of one run know of each other. `data` is the dot of late templates."""

    working: Path  # the disks while they are worked on, beside the output
    runtime: Path  # private: sockets, keys, logs, media
    ui: Ui
    key: sshkeys.KeyPair | None
    http: HttpServer | None
    data: Mapping[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """What a builder adds: what is served, and the first boot."""

    @property
    def options(self) -> MachineOptions: ...

    @property
    def context(self) -> BuildContext: ...

    def server(self, runtime: Path, run: Callable[[], Run], on_request: Callable[[Access], None]) -> HttpServer | None:
        """The HTTP server of the build, or None when nothing is served. `run` is known when the guest asks."""

    def first_boot(self, run: Run) -> FirstBoot:
        """Get media and disks ready."""


@contextlib.contextmanager
def open_session(source: Source, ui: Ui) -> Iterator[MachineSession]:
    """Claim the output and a private run-time directory; both are gone at the end, unless published or kept."""
    final = Path(source.options.output_directory or f"output-{source.context.build_name}")
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(Output(final, force=source.context.force))
        runtime = stack.enter_context(process.temporary_directory())
        failure.clear(failure.folder_of(final))
        if source.options.ssh_password != source.options.ssh_username:
            ui.mask(source.options.ssh_password)
        yield MachineSession(source, output, runtime, ui)


class MachineSession:
    """Owns the machine of one build from its first boot to its shutdown, then its disks."""

    def __init__(self, source: Source, output: Output, runtime: Path, ui: Ui) -> None:
        self._source, self._output, self._runtime, self._ui = source, output, runtime, ui
        self._options, self._context = source.options, source.context
        self._evidence = failure.Evidence(failure.folder_of(output.final), access_log=runtime / "access.log")
        self._working = output.work / "working"
        self._working.mkdir()
        self._config: MachineConfig | None = None
        self._data: dict[str, str] = {}

    @contextlib.contextmanager
    def guest(self) -> Iterator[Guest]:
        """Install or boot, reach the guest; shut it down when the block is done."""
        with contextlib.ExitStack() as stack, self._reported():
            run = self._serve(stack)
            boot = self._source.first_boot(run)
            config = self._config = self._machine(boot, run)
            machine = self._start(config, stack)
            self._type(boot, machine, run)
            if boot.installing:
                limit = self._options.ssh_timeout
                self._until_end(machine, run, "Waiting for the installer to finish", limit, "ssh_timeout")
                self._ui.say("The installer is done; starting the installed system")
                machine = self._start(hardware.from_disk(config), stack)
            with self._reach(machine, run) as guest:
                yield guest
                if guest.communicator is None:
                    limit = self._options.shutdown_timeout
                    self._until_end(
                        machine, run, "Waiting for the guest to power itself off", limit, "shutdown_timeout"
                    )
                else:
                    shut_down(machine, guest, self._options, self._context, self._ui)

    def artifact(self) -> Artifact:
        """Compact every disk, write the manifest, put all under the final name."""
        assert self._config is not None
        try:
            made = export.publish(self._config, self._working, self._options, self._context, self._output, self._ui)
        except ImgbuildError as error:
            failure.report(error, self._evidence, self._ui)
            if self._context.on_error is not OnError.CLEANUP and self._working.is_dir():
                process.keep(self._output.work)
                self._ui.say(f"The disks are kept: {self._working}")
            raise
        return replace(made, state={**self._data, **made.state})

    # -- before the guest runs

    def _serve(self, stack: contextlib.ExitStack) -> Run:
        key = sshkeys.for_build(self._options, self._runtime)
        runs: list[Run] = []
        server = self._source.server(self._runtime, lambda: runs[0], self._saw)
        port = 0
        if server is not None:
            stack.enter_context(server)
            port = server.address[1]
            self._evidence.http = server
            self._ui.say(
                f"Serving the guest at http://{GUEST_VIEW}:{port}/ ({server.address[0]}:{port} of this machine)"
            )
        forward = self._own_forward(stack)
        data = {
            "Name": system_disk_name(self._options, self._context.build_name),
            "OutputDir": str(self._output.work), "SSHPublicKey": self._public_key(key),
            "HTTPIP": GUEST_VIEW, "HTTPPort": port, "SSHHostPort": forward or "",
            "HTTPDir": getattr(self._options, "http_directory", ""), "HTTPContent": "",
        }  # fmt: skip
        runs.append(Run(self._working, self._runtime, self._ui, key, server, data))
        return runs[0]

    def _own_forward(self, stack: contextlib.ExitStack) -> int | None:
        """A port for templates that forward it to the guest by themselves, in their qemuargs."""
        o = self._options
        if not any("SSHHostPort" in word for row in o.qemuargs for word in row):
            return None
        return stack.enter_context(ports.reserved(o.host_port_min or 0, o.host_port_max or 0))

    def _public_key(self, key: sshkeys.KeyPair | None) -> str:
        if key is not None:
            return key.public
        if not self._options.ssh_private_key_file:
            return ""
        own = read_private_key(Path(self._options.ssh_private_key_file).expanduser())
        return f"{own.get_name()} {own.get_base64()}"

    def _saw(self, access: Access) -> None:
        self._ui.message(f"The guest fetched {access.path} ({access.status})")

    def _machine(self, boot: FirstBoot, run: Run) -> MachineConfig:
        choice = hardware.choose_accelerator(self._options, self._ui)
        config = hardware.machine_config(self._options, self._context, boot, choice, run.data)
        config = replace(config, nvram=self._working / "efivars.fd")
        if self._options.qmp_enable:
            path = config.qmp_socket_path or self._runtime / f"{config.name}.monitor"
            config = replace(config, qmp_socket_path=path)
            self._ui.message(f"QMP for you: {path}")
        hardware.warn_of_lost_parts(config, self._ui)
        hardware.mask_passwords(config, self._ui)
        return config

    # -- the installation and the first boot

    def _start(self, config: MachineConfig, stack: contextlib.ExitStack) -> Machine:
        keepable = self._context.on_error is not OnError.CLEANUP
        machine = Machine(config, self._runtime, self._ui, may_survive=keepable)
        self._evidence.machine = machine
        what = f"{config.accelerator}, {config.cpus} CPU{'s' * (config.cpus > 1)}, {config.memory_mib} MiB"
        self._ui.say(f"Starting the machine ({what})")
        stack.enter_context(machine)
        if machine.vnc_address:
            self._ui.message(f"Its screen: vnc://{machine.vnc_address}")
        return machine

    def _type(self, boot: FirstBoot, machine: Machine, run: Run) -> None:
        """Wait, then type the boot command."""

        def wait_for(text: str, limit: float) -> object:
            return screen.wait_for_text(
                text, monitor=machine.monitor, serial_log=machine.serial_log, timeout=limit, check=machine.check
            )

        if boot.typed and boot.boot_wait > 0:
            with self._ui.step(f"Waiting {duration(boot.boot_wait)} for the boot prompt"):
                self._pause(boot.boot_wait, machine)
        for text, label in boot.typed:
            command = parse_boot_command(self._context.renderer.render(text, dot=run.data))
            with self._ui.step(label or "Typing the boot command"):
                keyboard.type_command(
                    command, machine.monitor, waiter=wait_for, ui=self._ui, key_interval=boot.key_interval or None
                )

    @staticmethod
    def _pause(seconds: float, machine: Machine) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            machine.check()
            time.sleep(min(left, _POLL))

    def _until_end(self, machine: Machine, run: Run, what: str, limit: float, key: str) -> None:
        """Wait until the guest reboots or powers off by itself; the machine ends with that."""
        began = time.monotonic()
        watcher = symptoms.Watcher(machine.serial_log, machine.monitor)
        with self._ui.step(what), self._ui.progress(what, limit, "seconds") as update:
            while machine.running:
                try:
                    machine.check_health()
                    self._look(watcher, run)
                except GuestError:
                    if machine.shutdown is None:
                        raise
                    break  # it ended while we looked
                update(time.monotonic() - began)
                if time.monotonic() - began > limit:
                    raise GuestError(
                        f"The guest did not end within {duration(limit)}", hint=f"raise {key} if it is slow"
                    )
                time.sleep(_POLL)
            machine.wait_shutdown(_POLL)

    def _look(self, watcher: symptoms.Watcher, run: Run) -> None:
        """Raise what ends a wait at once: a fatal sign of the guest, a kickstart that can't be rendered."""
        if run.http is not None and run.http.failures:
            raise run.http.failures[0]
        symptom = watcher.scan()
        if symptom is not None and symptom.fatal:
            raise GuestError(f"The guest can't go on: {symptom.sentence}", hint=symptom.advice)

    # -- a guest that can be reached

    @contextlib.contextmanager
    def _reach(self, machine: Machine, run: Run) -> Iterator[Guest]:
        address = f"{GUEST_VIEW}:{run.http.address[1]}" if run.http else ""
        if self._options.communicator == "none":
            self._evidence.ssh = False
            yield Guest(None, {"PackerHTTPAddr": address}, address)
            return
        with SshCommunicator.of(self._options, self._port(machine, run), run.key, self._ui) as communicator:
            self._connect(communicator, machine, run)
            self._evidence.connected = True
            self._data = self._guest_data(communicator, run, address)
            yield Guest(communicator, self._data, address)

    def _port(self, machine: Machine, run: Run) -> int | None:
        """The port of this machine that leads to the guest. Never this machine's own SSH server: GuestError."""
        o = self._options
        port = machine.host_port or run.data["SSHHostPort"] or None
        if port is None and o.ssh_host in ("", "localhost", "127.0.0.1", "::1") and o.ssh_port == 22:
            raise GuestError(
                "No port of this machine leads to the guest, so SSH would reach this machine itself",
                hint="give ssh_host; or forward a port in your -netdev: hostfwd=tcp:127.0.0.1:{{ .SSHHostPort }}-:22",
            )
        return port

    def _connect(self, communicator: SshCommunicator, machine: Machine, run: Run) -> None:
        """Wait for SSH, looking at screen and serial line meanwhile; later only at QEMU: scripts may print anything."""
        watcher, limit, began = (
            symptoms.Watcher(machine.serial_log, machine.monitor),
            self._options.ssh_timeout,
            time.monotonic(),
        )
        with self._ui.step("Waiting for SSH"), self._ui.progress("Waiting for SSH", limit, "seconds") as update:

            def check() -> None:
                machine.check()
                self._look(watcher, run)
                update(time.monotonic() - began)

            communicator.connect(limit, check=check)
        communicator.attend(machine.check_health)

    def _guest_data(self, communicator: SshCommunicator, run: Run, address: str) -> dict[str, str]:
        """What `{{build `Host`}}` and its like find."""
        o = self._options
        ip, _, port = address.partition(":")
        return {
            "ID": str(run.data["Name"]), "Host": communicator.host, "Port": str(communicator.port),
            "User": o.ssh_username, "Password": o.ssh_password, "ConnType": "ssh",
            "PackerRunUUID": self._context.run_uuid,
            "PackerHTTPIP": ip, "PackerHTTPPort": port, "PackerHTTPAddr": address,
            "SSHPublicKey": str(run.data["SSHPublicKey"]), "SSHPrivateKey": run.key.private if run.key else "",
            "SSHPrivateKeyFile": o.ssh_private_key_file, "SSHAgentAuth": str(o.ssh_agent_auth).lower(),
        }  # fmt: skip

    # -- when it fails

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """Write down what a failure left to see while the machine still stands; keep it when the person asked to."""
        try:
            yield
        except ImgbuildError as error:
            failure.report(error, self._evidence, self._ui)
            if self._wants_to_keep():
                self._keep()
            raise
        except KeyboardInterrupt:
            if self._context.on_error is OnError.ABORT:
                self._keep()
            raise

    def _wants_to_keep(self) -> bool:
        if self._evidence.machine is None or not self._evidence.machine.running:
            return False
        if self._context.on_error is OnError.ASK:
            return self._ui.ask("[a]bort and keep the machine, or anything else to clean up?") == "a"
        return self._context.on_error in (OnError.ABORT, OnError.RUN_CLEANUP_PROVISIONER)

    def _keep(self) -> None:
        """Hand the machine over to the person: it, its disks and its keys outlive us."""
        machine, o = self._evidence.machine, self._options
        if machine is None or not machine.running:
            return
        for path in (self._output.work, self._runtime):
            process.keep(path)
        self._ui.say("The machine is kept")
        port = machine.host_port
        self._ui.message(str(machine.release()))
        key = f" -i {self._runtime / 'key'}" if (self._runtime / "key").is_file() else ""
        key = f" -i {o.ssh_private_key_file}" if o.ssh_private_key_file else key
        if port is not None:
            self._ui.message(f"ssh -p {port}{key} {o.ssh_username}@127.0.0.1")
        self._ui.message(f"Its disks: {self._output.work}")
