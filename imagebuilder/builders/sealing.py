"""Keeping what a build's machine is after a step: as it runs, with its memory, or its disks alone when it is off."""

from __future__ import annotations

from pathlib import Path

from imagebuilder.builders.workspace import Workspace
from imagebuilder.errors import CommandError, GuestError, StoreError
from imagebuilder.layers.buildlayers import BuildLayers
from imagebuilder.layers.chain import Step
from imagebuilder.layers.record import MEMORY
from imagebuilder.plugins import Communicator, Guest
from imagebuilder.qemu import snapshot
from imagebuilder.qemu.machine import Machine
from imagebuilder.qemu.qmp import QmpError
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
        """Keep a running machine; it goes on afterwards. Where that can't be done, it is said.

        Raises GuestError when it isn't known any more what the machine's disks are: the build can't go on.
        """
        alive = machine.running and machine.shutdown is None  # else a provisioner has powered it off
        if not self._layers.keeps(step) or guest.communicator is None or not alive:
            self._layers.passed(step)
            return
        communicator, name = guest.communicator, self._layers.name(step)
        try:
            self._layers.keep(step, lambda layer: self._fill(machine, communicator, layer, name, key))
        except QmpError as error:
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
            self._disks.fill_nvram(layer)
            _write_key(key, layer)

        self._layers.keep(step, fill)

    def _fill(
        self, machine: Machine, communicator: Communicator, layer: Path, name: str, key: sshkeys.KeyPair | None
    ) -> None:
        if not self._memory:
            _sync(communicator)
        wanted = self._memory is not False and snapshot.memory_can_be_kept(machine.monitor)
        with snapshot.standing_still(machine.monitor):
            self._seal(machine, name)
            kept = wanted and snapshot.save_memory(machine.monitor, layer / MEMORY)
            self._disks.fill_nvram(layer)
        if not kept and (machine.config.tpm or self._memory):
            self._memory = kept
            raise StoreError("the machine's memory could not be kept, and its disks alone are not all of its state")
        self._memory = kept
        self._disks.fill(layer)
        _write_key(key, layer)

    def _seal(self, machine: Machine, name: str) -> None:
        before, below = self._disks.tops, self._disks.sealed
        self._disks.seal(name)
        overlays = before
        try:
            overlays = self._disks.overlays()
            snapshot.seal(machine.monitor, overlays)
        except (QmpError, StoreError, CommandError):  # QEMU said no, or was never asked; anything else, and who knows
            self._disks.tops, self._disks.sealed = before, below
            raise
        self._disks.tops = overlays


def _sync(communicator: Communicator) -> None:
    """Have the guest write what it holds back: its disks may be all that is kept."""
    try:
        done = communicator.run("sync", timeout=_SYNC_TIMEOUT) == 0
    except GuestError:
        done = False
    if not done:
        raise StoreError("the guest could not be told to write its disks; it is going down, perhaps")


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
