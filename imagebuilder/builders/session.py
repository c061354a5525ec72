"""One build on a QEMU machine: what every builder shares once it has said how the first boot goes.

The story is `MachineSession.guest`: go on from a layer, or serve, prepare the first boot, install, start from disk,
reach the guest; then end it.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from imagebuilder import failure, process
from imagebuilder.builders import export, hardware, sealing, waiting
from imagebuilder.builders.hardware import GUEST_VIEW, FirstBoot
from imagebuilder.builders.qemuoptions import system_disk_name
from imagebuilder.builders.reach import Reach
from imagebuilder.builders.run import Run, Source
from imagebuilder.builders.shutdown import shut_down
from imagebuilder.builders.wake import wake
from imagebuilder.builders.workspace import Workspace
from imagebuilder.console import keyboard, screen
from imagebuilder.console.bootcommand import parse as parse_boot_command
from imagebuilder.errors import CommandError, GuestError, ImgbuildError, StoreError
from imagebuilder.image.artifact import Output
from imagebuilder.layers.buildlayers import BuildLayers
from imagebuilder.layers.chain import EXPORT, SHUTDOWN, Step
from imagebuilder.layers.record import MEMORY
from imagebuilder.media.httpserver import Access
from imagebuilder.plugins import Artifact, Guest, OnError
from imagebuilder.qemu import ports
from imagebuilder.qemu.arguments import MachineConfig
from imagebuilder.qemu.machine import Machine
from imagebuilder.ssh import keys as sshkeys
from imagebuilder.ssh.keyfile import read_private_key
from imagebuilder.ui import Ui, duration


@contextlib.contextmanager
def open_session(source: Source, ui: Ui, *, partial: bool) -> Iterator[MachineSession]:
    """Claim the output and a private run-time directory; both are gone at the end, unless published or kept.

    `partial`: nothing will be published, so an image that has the output's name already is in nobody's way.
    """
    final = Path(source.options.output_directory or f"output-{source.context.build_name}")
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(Output(final, force=source.context.force or partial))
        runtime = stack.enter_context(process.temporary_directory())
        failure.clear(failure.folder_of(final))
        if source.options.ssh_password != source.options.ssh_username:
            ui.mask(source.options.ssh_password)
        yield MachineSession(source, output, runtime, ui)


@contextlib.contextmanager
def resumed_guest(source: Source, ui: Ui, layers: BuildLayers) -> Iterator[Guest]:
    """The guest as the layer that `layers` holds has it, to look around in: nothing is kept, no output is claimed.

    Raises GuestError, StoreError, CommandError when it can't be restored.
    """
    with contextlib.ExitStack() as stack:
        runtime = stack.enter_context(process.temporary_directory())
        output = Output(runtime / "output")  # only a name: its work lies beside it, in what is gone at the end
        output.work.mkdir(mode=0o700)
        session = MachineSession(source, output, runtime, ui)
        session.use(layers)
        yield session._restored(layers.steps[layers.at], stack)


class MachineSession:
    """Owns the machine of one build from its first boot to its shutdown, then its disks."""

    _layers: BuildLayers
    _seals: sealing.Seals

    def __init__(self, source: Source, output: Output, runtime: Path, ui: Ui) -> None:
        self._source, self._output, self._runtime, self._ui = source, output, runtime, ui
        self._options, self._context = source.options, source.context
        self._evidence = failure.Evidence(failure.folder_of(output.final), access_log=runtime / "access.log")
        working = output.work / "working"
        working.mkdir()
        self._disks = Workspace(working)
        self._config: MachineConfig | None = None
        self._machine: Machine | None = None
        self._run: Run | None = None
        self._data: dict[str, str] = {}

    def use(self, layers: BuildLayers) -> None:
        """Go on from these, and add to them."""
        self._layers = layers
        self._seals = sealing.Seals(self._disks, layers, self._ui)

    # -- the guest

    @contextlib.contextmanager
    def guest(self, *, end: bool = True) -> Iterator[Guest]:
        """Go on from a layer, or install or boot; reach the guest. `end`: shut it down when the block is done."""
        with contextlib.ExitStack() as stack, self._reported():
            guest = self._resumed(stack) or self._begun(stack)
            self._data = dict(guest.data)
            yield guest
            if end:
                self._end(guest)

    def keep(self, step: Step, guest: Guest) -> None:
        """Keep what the guest is now, after this step, as a layer; where none can be kept, nothing happens."""
        assert self._machine is not None and self._run is not None
        self._seals.running(step, self._machine, guest, self._run.key)

    def _begun(self, stack: contextlib.ExitStack) -> Guest:
        self._disks.clear()  # a layer that could not be used may have left its UEFI variables
        shutil.rmtree(self._runtime / "tpm", ignore_errors=True)
        run = self._serve(stack)
        boot = self._source.first_boot(run)
        config = self._described(boot, run)
        machine = self._start(config, stack)
        self._type(boot, machine, run)
        if boot.installing:
            limit = self._options.ssh_timeout
            waiting.until_end(machine, run, "Waiting for the installer to finish", limit, "ssh_timeout")
            self._ui.say("The installer is done; starting the installed system")
            machine = self._start(hardware.from_disk(config), stack)
        guest = stack.enter_context(self._reach(run).guest(machine, self._options.ssh_timeout))
        self.keep(self._layers.steps[0], guest)
        return guest

    def _resumed(self, stack: contextlib.ExitStack) -> Guest | None:
        """The guest as a layer has it. A layer that can't be used here is said, and the one before it tried."""
        while self._layers.at >= 0:
            step = self._layers.steps[self._layers.at]
            with contextlib.ExitStack() as attempt:
                try:
                    guest = self._restored(step, attempt)
                    stack.push(attempt.pop_all())
                    return guest
                except (GuestError, StoreError, CommandError) as error:
                    self._ui.warning(f"The layer of step {step} can't be used: {error.message}")
            self._layers.refuse()
            self._layers.resume(last=step.number)
        return None

    def _restored(self, step: Step, stack: contextlib.ExitStack) -> Guest:
        layer = self._layers.held[-1]
        text = f"Going on from step {step}, as it was left {duration(self._layers.age)} ago"
        self._ui.event("say", text, step=step.number, title=step.title, layer=layer.record.fingerprint)
        run = self._serve(stack, layer.path)
        self._put_disks(run)
        self._disks.tops = self._disks.overlays()
        config = self._described(self._source.resumed(run, self._disks.tops), run)
        if layer.has_memory:
            machine = self._start(replace(config, incoming=layer.path / MEMORY), stack)
        else:
            machine = self._start(config if config.boot == "c" else hardware.from_disk(config), stack)
        guest = stack.enter_context(self._reach(run).guest(machine, self._options.ssh_timeout))
        if layer.has_memory and guest.communicator is not None:
            wake(guest.communicator, self._ui)
        return guest

    def _put_disks(self, run: Run) -> None:
        """The disks of the layers that we go on from."""
        held = self._layers.held
        self._disks.restore(held, [self._layers.name(layer.record) for layer in held], self._source.image(run))

    def _reach(self, run: Run) -> Reach:
        return Reach(self._source, run, self._evidence)

    def _end(self, guest: Guest) -> None:
        """Until the machine is off; its disks are a layer then."""
        assert self._machine is not None and self._run is not None
        if guest.communicator is None:
            limit, what = self._options.shutdown_timeout, "Waiting for the guest to power itself off"
            waiting.until_end(self._machine, self._run, what, limit, "shutdown_timeout")
        else:
            clean = shut_down(self._machine, guest, self._options, self._context, self._ui)
            if not clean:
                self._layers.spoil()
        self._seals.shut_down(self._layers.steps[self._layers.number(SHUTDOWN)], self._run.key)

    # -- the image

    @property
    def has_disks(self) -> bool:
        """Whether layers hold the machine that was shut down, or even the finished image: no guest has to run."""
        return self._layers.at >= self._layers.number(SHUTDOWN)

    def artifact(self) -> Artifact:
        """Compact every disk, write the manifest, put all under the final name."""
        try:
            image = self._image()
            self._disks.clear()
            self._disks.directory.rmdir()  # it lies in what will be published
            with self._ui.step(f"Publishing {self._output.final}"):
                made = self._output.publish(self._context, image.disks, self._ui, image.machine)
        except ImgbuildError as error:
            failure.report(error, self._evidence, self._ui)
            if self._context.on_error is not OnError.CLEANUP and self._disks.directory.is_dir():
                self._hand_over()
                self._ui.say(f"The disks are kept: {self._disks.directory}")
            raise
        return replace(made, state={**self._data, **made.state})

    def _image(self) -> export.Image:
        step = self._layers.steps[self._layers.number(EXPORT)]
        if self._layers.at == step.number:
            self._ui.say(f"Nothing has changed since the image was made {duration(self._layers.age)} ago")
            with contextlib.ExitStack() as stack:
                self._data = self._reach(self._serve(stack, serving=False)).data()
            return export.restore(self._layers.held[-1].path, self._options, self._context, self._output)
        if self._config is None:
            self._disks_from_layer()
        assert self._config is not None
        image = export.write(self._config, self._disks, self._options, self._context, self._output, self._ui)
        if self._layers.keeps(step):
            self._layers.keep(step, lambda layer: export.keep(image, layer))
        return image

    def _disks_from_layer(self) -> None:
        """The disks of a machine that was shut down in an earlier build."""
        self._ui.say(f"Going on from the machine that was shut down {duration(self._layers.age)} ago")
        with contextlib.ExitStack() as stack:
            run = self._serve(stack, self._layers.held[-1].path, serving=False)
            self._put_disks(run)
            self._data = self._reach(run).data()
            drives = tuple(hardware.drive(self._options, path) for path in self._disks.sealed)
            self._config = self._described(FirstBoot(drives, boot="c"), run)

    # -- before the guest runs

    def _serve(self, stack: contextlib.ExitStack, layer: Path | None = None, *, serving: bool = True) -> Run:
        """Keys, HTTP server, ports. `layer`: the guest in it knows the key that lies there."""
        key = sealing.key_of(layer, self._runtime) if layer else sshkeys.for_build(self._options, self._runtime)
        runs: list[Run] = []
        server = self._source.server(self._runtime, lambda: runs[0], self._saw) if serving else None
        port = 0
        if server is not None:
            stack.enter_context(server)
            port = server.address[1]
            self._evidence.http = server
            where = f"{server.address[0]}:{port} of this machine"
            self._ui.say(f"Serving the guest at http://{GUEST_VIEW}:{port}/ ({where})")
        data = {
            "Name": system_disk_name(self._options, self._context.build_name),
            "OutputDir": str(self._disks.directory), "SSHPublicKey": self._public_key(key),
            "HTTPIP": GUEST_VIEW, "HTTPPort": port, "SSHHostPort": self._own_forward(stack) or "",
            "HTTPDir": getattr(self._options, "http_directory", ""), "HTTPContent": "",
        }  # fmt: skip
        runs.append(Run(self._disks.directory, self._runtime, self._ui, key, server, data))
        self._run = runs[0]
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

    def _described(self, boot: FirstBoot, run: Run) -> MachineConfig:
        choice = hardware.choose_accelerator(self._options, self._ui)
        config = hardware.machine_config(self._options, self._context, boot, choice, run.data)
        config = replace(config, nvram=self._disks.nvram)
        if self._options.qmp_enable:
            path = config.qmp_socket_path or self._runtime / f"{config.name}.monitor"
            config = replace(config, qmp_socket_path=path)
            self._ui.message(f"QMP for you: {path}")
        hardware.warn_of_lost_parts(config, self._ui)
        hardware.mask_passwords(config, self._ui)
        self._disks.tops = tuple(Path(drive.path) for drive in config.drives)
        self._config = config
        return config

    def _start(self, config: MachineConfig, stack: contextlib.ExitStack) -> Machine:
        keepable = self._context.on_error is not OnError.CLEANUP
        machine = Machine(config, self._runtime, self._ui, may_survive=keepable)
        self._evidence.machine = self._machine = machine
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
                waiting.pause(boot.boot_wait, machine)
        for text, label in boot.typed:
            command = parse_boot_command(self._context.renderer.render(text, dot=run.data))
            with self._ui.step(label or "Typing the boot command"):
                keyboard.type_command(
                    command, machine.monitor, waiter=wait_for, ui=self._ui, key_interval=boot.key_interval or None
                )

    # -- when it fails

    @contextlib.contextmanager
    def _reported(self) -> Iterator[None]:
        """Write down what a failure left to see while the machine still stands; keep it when the person asked to."""
        try:
            yield
        except ImgbuildError as error:
            failure.report(error, self._evidence, self._ui)
            if self._wants_to_keep():
                self._keep_machine()
            raise
        except KeyboardInterrupt:
            if self._context.on_error is OnError.ABORT:
                self._keep_machine()
            raise

    def _wants_to_keep(self) -> bool:
        if self._evidence.machine is None or not self._evidence.machine.running:
            return False
        if self._context.on_error is OnError.ASK:
            return self._ui.ask("[a]bort and keep the machine, or anything else to clean up?") == "a"
        return self._context.on_error in (OnError.ABORT, OnError.RUN_CLEANUP_PROVISIONER)

    def _hand_over(self) -> None:
        """The disks outlive us, and whatever becomes of the layers that they stand on."""
        process.keep(self._output.work)
        with contextlib.suppress(OSError, CommandError):  # no room for what has to be copied: then it stands on layers
            self._disks.own()

    def _keep_machine(self) -> None:
        """Hand the machine over to the person: it, its disks and its keys outlive us."""
        machine, o = self._evidence.machine, self._options
        if machine is None or not machine.running:
            return
        process.keep(self._runtime)
        self._hand_over()
        self._ui.say("The machine is kept")
        port = machine.host_port
        self._ui.message(str(machine.release()))
        key = f" -i {self._runtime / 'key'}" if (self._runtime / "key").is_file() else ""
        key = f" -i {o.ssh_private_key_file}" if o.ssh_private_key_file else key
        if port is not None:
            self._ui.message(f"ssh -p {port}{key} {o.ssh_username}@127.0.0.1")
        self._ui.message(f"Its disks: {self._disks.directory}")
