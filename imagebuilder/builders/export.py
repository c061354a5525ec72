"""From the disks a build worked on to the files people ship: flattened, compacted, compressed, with a manifest."""

from __future__ import annotations

import shutil
from pathlib import Path

from imagebuilder.builders.qemuoptions import MachineOptions, system_disk_name
from imagebuilder.image import disk
from imagebuilder.image.artifact import Machine, Output
from imagebuilder.plugins import Artifact, BuildContext, Disk
from imagebuilder.qemu.arguments import Drive, MachineConfig
from imagebuilder.ui import Ui, size

_NVRAM = "efivars.fd"


def publish(
    config: MachineConfig, working: Path, options: MachineOptions, context: BuildContext, output: Output, ui: Ui
) -> Artifact:
    """Write every disk in its final form, then give the output its name. `working` is removed."""
    name = system_disk_name(options, context.build_name)
    names = [name, *(f"{name}-{number}" for number in range(1, len(config.drives)))]
    disks = [_export(drive, output.work / one, options, ui) for drive, one in zip(config.drives, names, strict=True)]
    nvram = _NVRAM if _keep_nvram(config, options, output) else ""
    shutil.rmtree(working)
    machine = Machine(config.accelerator, _architecture(config), "uefi" if config.firmware else "bios", nvram)
    with ui.step(f"Publishing {output.final}"):
        return output.publish(context, disks, ui, machine)


def _export(drive: Drive, target: Path, options: MachineOptions, ui: Ui) -> Disk:
    source = Path(drive.path)
    if options.stays_overlay or (options.skip_compaction and _is_whole(source, options)):
        source.rename(target)
    else:
        compression: disk.Compression | None = (
            "zstd" if options.format == "qcow2" and options.disk_compression else None
        )
        with ui.step(f"Exporting {target.name} ({options.format})"), ui.progress("Exporting", 100, "percent") as update:
            disk.convert(
                source, drive.format, target, format=options.format, compression=compression, progress=update,
                extra=options.qemu_img_args.convert,
            )  # fmt: skip
    found = disk.info(target, follow=True)
    ui.message(f"{target.name}: {size(found.virtual_size)} for the guest, {size(found.actual_size)} on this machine")
    return Disk(target, options.format, found.virtual_size)


def _is_whole(path: Path, options: MachineOptions) -> bool:
    """Whether the working disk already is what shall be shipped: of the right format, standing on nothing."""
    return options.format == "qcow2" and disk.info(path, follow=True).backing is None


def _keep_nvram(config: MachineConfig, options: MachineOptions, output: Output) -> bool:
    """The guest's UEFI variables travel beside the disk: boot entries and Secure Boot keys are in them."""
    if config.firmware is None or config.nvram is None or options.efi_drop_efivars or not config.nvram.is_file():
        return False
    shutil.move(config.nvram, output.work / _NVRAM)
    return True


def _architecture(config: MachineConfig) -> str:
    return Path(config.binary).name.removeprefix("qemu-system-")
