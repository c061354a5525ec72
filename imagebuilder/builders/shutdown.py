"""The end of a guest's life in a build: our key out, identity out, file systems trimmed, powered off."""

from __future__ import annotations

from imagebuilder.builders.asroot import as_root
from imagebuilder.builders.qemuoptions import MachineOptions
from imagebuilder.errors import GuestError
from imagebuilder.plugins import BuildContext, Communicator, Guest
from imagebuilder.qemu.machine import Machine
from imagebuilder.ssh import keys as sshkeys
from imagebuilder.ui import Ui

_TRIM = "fstrim -a 2>/dev/null || fstrim / 2>/dev/null || true"

# What makes one machine of many clones: each of them must find or make its own at its first boot.
_SEAL = """
rm -rf /var/lib/cloud/* /var/log/cloud-init.log /var/log/cloud-init-output.log
rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub
[ ! -e /etc/machine-id ] || : > /etc/machine-id
rm -f /var/lib/dbus/machine-id /var/lib/systemd/random-seed /var/lib/systemd/credential.secret
rm -f /var/lib/dhcp/*.leases /var/lib/NetworkManager/*.lease /root/.bash_history
if command -v journalctl >/dev/null; then journalctl --rotate --vacuum-time=1s >/dev/null 2>&1; fi
find /var/log -type f -exec sh -c ': > "$1"' sh {} \\; 2>/dev/null
rm -rf /tmp/* /var/tmp/* 2>/dev/null
sync
"""


def shut_down(machine: Machine, guest: Guest, options: MachineOptions, context: BuildContext, ui: Ui) -> bool:
    """Leave nothing of ours, then power off; QEMU must end by itself, and without an error. Whether all was left as it
    should be; what was not is said. Raises GuestError.
    """
    communicator, limit = guest.communicator, options.shutdown_timeout
    if communicator is None or not machine.running or machine.shutdown is not None:
        ui.warning("The guest has powered itself off: the build's key, if it made one, is still in it")
        machine.wait_shutdown(limit)
        return False
    clean = _leave(communicator, guest, options, ui)
    with ui.step("Shutting the machine down"), ui.progress("Shutting down", limit, "seconds"):
        status: int | None = None
        if options.shutdown_command:
            command = context.renderer.render(options.shutdown_command, build=guest.data)
            status = communicator.run(command, on_line=ui.message, on_error_line=ui.message, timeout=limit)
        else:
            machine.powerdown()
        try:
            machine.wait_shutdown(limit)
        except GuestError as error:
            if status:
                raise GuestError(f"The shutdown_command failed with exit status {status}: {error.message}") from error
            raise
    return clean


def _leave(communicator: Communicator, guest: Guest, options: MachineOptions, ui: Ui) -> bool:
    clean = sshkeys.forget(communicator, options, guest.data.get("SSHPublicKey", ""), ui)
    if options.seals:
        with ui.step("Removing what makes this machine one of a kind (host keys, machine-id, logs)"):
            if communicator.run(as_root(_SEAL), timeout=300) != 0:
                ui.warning("The image could not be sealed: its clones may share host keys or machine-id")
                clean = False
    if not options.skip_compaction:
        with ui.step("Trimming the file systems"):
            communicator.run(as_root(_TRIM), timeout=600)
    return clean
