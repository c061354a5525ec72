"""Keeping what a build's machine is after a step: as it runs, with its memory, or its disks alone when it is off."""

from __future__ import annotations

from pathlib import Path

from imagebuilder.builders.workspace import Workspace
from imagebuilder.errors import GuestError, ImgbuildError, StoreError
from imagebuilder.layers.buildlayers import BuildLayers
from imagebuilder.layers.chain import Step
from imagebuilder.layers.record import MEMORY
from imagebuilder.plugins import Communicator, Guest
from imagebuilder.qemu import snapshot
from imagebuilder.qemu.machine import Machine
from imagebuilder.ssh import keys as sshkeys
from imagebuilder.ui import Ui

_KEY = "key"  # the private key of the build, which the guest knows
_SYNC_TIMEOUT = 300.0  # seconds


class Seals:
    """Makes layers of one build's machine."""

    def __init__(self, disks: Workspace, layers: BuildLayers, ui: Ui) -> None:
        self._disks, self._layers, self._ui = disks, layers, ui
        self._memory: bool | None = None  # whether this machine's memory can be kept; None: that isn't known yet

    def running(self, step: Step, machine: Machine, guest: Guest, key: sshkeys.KeyPair | None) -> None:
        """Keep a running machine; it goes on afterwards. Where that can't be done, it is said, once."""
        alive = machine.running and machine.shutdown is None  # else a provisioner has powered it off
        if not self._layers.keeps(step) or guest.communicator is None or not alive:
            self._layers.passed(step)
            return
        communicator = guest.communicator
        try:
            self._layers.keep(
                step, lambda layer: self._fill(machine, communicator, layer, self._layers.name(step), key)
            )
        except GuestError as error:  # QEMU refuses, or the guest is just going down
            self._ui.warning(f"Step {step} can't be kept as a layer: {error.message}")
            self._layers.passed(step)

    def shut_down(self, step: Step, key: sshkeys.KeyPair | None) -> None:
        """Keep the disks of a machine that is off."""
        if not self._layers.keeps(step):
            self._layers.passed(step)
            return

        def fill(layer: Path) -> None:
            self._disks.seal(self._layers.name(step))
            self._disks.fill(layer)
            _write_key(key, layer)

        self._layers.keep(step, fill)

    def _fill(
        self, machine: Machine, communicator: Communicator, layer: Path, name: str, key: sshkeys.KeyPair | None
    ) -> None:
        if not self._memory:  # the disk may be all that is kept: what the guest has written must be on it
            communicator.run("sync", timeout=_SYNC_TIMEOUT)
        wanted = self._memory is not False and snapshot.memory_can_be_kept(machine.monitor)
        with snapshot.standing_still(machine.monitor):
            self._seal(machine, name)
            self._memory = wanted and snapshot.save_memory(machine.monitor, layer / MEMORY)
            self._disks.fill(layer)
        if not self._memory and machine.config.tpm:
            raise StoreError("a TPM's state can only be kept together with the memory, and this machine's can't be")
        _write_key(key, layer)

    def _seal(self, machine: Machine, name: str) -> None:
        before, below = self._disks.tops, self._disks.sealed
        self._disks.seal(name)
        try:
            overlays = self._disks.overlays()
            snapshot.seal(machine.monitor, overlays)
        except ImgbuildError:
            self._disks.tops, self._disks.sealed = before, below
            raise
        self._disks.tops = overlays


def _write_key(key: sshkeys.KeyPair | None, layer: Path) -> None:
    if key is not None:
        key.write(layer / _KEY)


def key_of(layer: Path, runtime: Path) -> sshkeys.KeyPair | None:
    """The key that the guest of a layer knows; its private half also lies in `runtime`/key."""
    if not (layer / _KEY).is_file():
        return None
    key = sshkeys.read(layer / _KEY)
    (runtime / _KEY).unlink(missing_ok=True)
    key.write(runtime / _KEY)
    return key
