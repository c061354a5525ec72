"""`imgbuild boot`: try a finished image on a throw-away overlay, with a login of its own when it has cloud-init."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from imagebuilder import cloudinit, process
from imagebuilder.console import screen, symptoms
from imagebuilder.errors import GuestError, ImgbuildError
from imagebuilder.image import disk
from imagebuilder.image.manifest import load_manifest
from imagebuilder.media.iso import write_iso
from imagebuilder.qemu import accel, firmware
from imagebuilder.qemu.arguments import Drive, MachineConfig, quote
from imagebuilder.qemu.machine import Machine
from imagebuilder.ssh import keys as sshkeys
from imagebuilder.ssh.communicator import SshCommunicator
from imagebuilder.ssh.config import CommunicatorOptions
from imagebuilder.ui import Ui


@dataclass(frozen=True)
class Trial:
    """How to try an image. `check`: end when the guest answered; times in seconds."""

    image: Path
    check: bool = False
    efi: bool = False
    memory_mib: int = 1024
    cpus: int = 2
    ssh_username: str = "root"
    ssh_private_key_file: str = ""
    wait_for: str = ""  # a text on its screen or serial line instead of SSH
    timeout: float = 300.0


def disk_of(image: Path) -> tuple[Path, bool]:
    """The first disk of an output directory and whether it boots by UEFI (its manifest says); a file is the disk."""
    if image.is_file():
        return image, False
    if not (image / "manifest.json").is_file():
        raise ImgbuildError(
            f"there is no image at '{image}'", hint="name a disk image, or a directory with manifest.json"
        )
    manifest = load_manifest(image)
    if not manifest.disks:
        raise ImgbuildError(f"the image in '{image}' has no disk")
    return image / manifest.disks[0].name, manifest.firmware == "uefi"


def boot(trial: Trial, ui: Ui) -> None:
    """Boot the image and wait until it answers; then end it (`check`), or leave it to the person until Ctrl-C."""
    image, efi = disk_of(trial.image)
    trial = replace(trial, efi=trial.efi or efi)
    found = disk.info(image, follow=True)
    with process.temporary_directory() as runtime:
        overlay = runtime / "disk.qcow2"
        disk.overlay(overlay, image, found.format)
        options = CommunicatorOptions(
            ssh_username=trial.ssh_username, ssh_private_key_file=trial.ssh_private_key_file, ssh_timeout=trial.timeout
        )
        key = sshkeys.for_build(options, runtime)
        config = _config(trial, overlay, _seed(trial, key, runtime), ui)
        ui.say(f"Booting {image} ({config.accelerator}); the image itself is not written to")
        with Machine(config, runtime, ui) as machine:
            began = time.monotonic()
            with _answering(trial, machine, options, key, ui):
                ui.say(f"It answers after {time.monotonic() - began:.1f} s")
                if not trial.check:
                    _leave_to_the_person(trial, machine, runtime, ui)
    ui.say(f"The image: {image.absolute()} ({found.format}, {found.virtual_size // 2**20} MiB for the guest)")
    ui.say(f"Boot it by hand: {command_line(image, found.format, efi=trial.efi)}")


def command_line(image: Path, format: str, *, efi: bool = False) -> str:
    """QEMU's shortest command that boots the image and leaves it as it is; its console is the terminal."""
    flash = f"if=pflash,format=raw,readonly=on,file={firmware.find('x86_64', 'q35').code}" if efi else ""
    words = [
        "qemu-system-x86_64", *(["-machine", "q35", "-drive", flash] if efi else []), "-m", "1024", "-nographic",
        "-snapshot", "-drive", f"file={quote(image.absolute())},format={format},if=virtio", "-nic", "user,model=virtio",
    ]  # fmt: skip
    return shlex.join(words)


def _config(trial: Trial, overlay: Path, cdroms: tuple[str, ...], ui: Ui) -> MachineConfig:
    choice = accel.choose(None, "qemu-system-x86_64")
    if choice.warning:
        ui.warning(choice.warning)
    return MachineConfig(
        name="trial", accelerator=choice.name, cpu_model=choice.cpu_model, cpus=trial.cpus, memory_mib=trial.memory_mib,
        drives=(Drive(str(overlay)),), cdroms=cdroms, boot="c", guest_port=22,
        machine_type="q35" if trial.efi else "pc", firmware=firmware.find("x86_64", "q35") if trial.efi else None,
    )  # fmt: skip


def _seed(trial: Trial, key: sshkeys.KeyPair | None, runtime: Path) -> tuple[str, ...]:
    if key is None:
        return ()
    files = cloudinit.seed_files(ssh_keys=[key.public], user=trial.ssh_username, hostname="trial")
    write_iso(runtime / "seed.iso", cloudinit.LABEL, files)
    return (str(runtime / "seed.iso"),)


@contextlib.contextmanager
def _answering(
    trial: Trial, machine: Machine, options: CommunicatorOptions, key: sshkeys.KeyPair | None, ui: Ui
) -> Iterator[None]:
    """Until the text stands somewhere, or SSH let us in."""
    if trial.wait_for:
        screen.wait_for_text(
            trial.wait_for, monitor=machine.monitor, serial_log=machine.serial_log, timeout=trial.timeout,
            check=machine.check,
        )  # fmt: skip
        yield
        return
    watcher = symptoms.Watcher(machine.serial_log, machine.monitor)

    def check() -> None:
        machine.check()
        symptom = watcher.scan()
        if symptom is not None and symptom.fatal:
            raise GuestError(f"The image does not boot: {symptom.sentence}", hint=symptom.advice)

    with SshCommunicator.of(options, machine.host_port, key, ui) as communicator:
        with ui.step("Waiting for SSH"), ui.progress("Waiting for SSH", trial.timeout, "seconds"):
            communicator.connect(trial.timeout, check=check)
        communicator.run('. /etc/os-release; echo "$PRETTY_NAME, Linux $(uname -r)"', on_line=ui.message, timeout=60)
        yield


def _leave_to_the_person(trial: Trial, machine: Machine, runtime: Path, ui: Ui) -> None:
    key = trial.ssh_private_key_file or str(runtime / "key")
    ui.say(f"ssh -p {machine.host_port} -i {key} -o StrictHostKeyChecking=no {trial.ssh_username}@127.0.0.1")
    if machine.vnc_address:
        ui.message(f"Its screen: vnc://{machine.vnc_address}")
    ui.say("Press Ctrl-C to end it; nothing that is done in it is kept")
    with contextlib.suppress(KeyboardInterrupt):
        while machine.running:
            time.sleep(0.5)
