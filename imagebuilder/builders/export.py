"""From the disks a build worked on to the files people ship: flattened, compacted, compressed; also out of a layer."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.builders.qemuoptions import MachineOptions, system_disk_name
from imagebuilder.builders.workspace import NVRAM, SOURCE, Workspace, copy
from imagebuilder.errors import StoreError
from imagebuilder.image import disk
from imagebuilder.image.artifact import Machine, Output
from imagebuilder.plugins import BuildContext, Disk
from imagebuilder.qemu.arguments import MachineConfig
from imagebuilder.ui import Ui, size

_FACTS = "image.json"


@dataclass(frozen=True)
class Image:
    """Finished files in an output's work directory, as its manifest will tell them."""

    disks: tuple[Disk, ...]
    machine: Machine


def write(
    config: MachineConfig, workspace: Workspace, options: MachineOptions, context: BuildContext, output: Output, ui: Ui
) -> Image:
    """Write every disk in its final form into `output.work`."""
    names = _names(options, context, len(workspace.tops))
    targets = [output.work / name for name in names]
    disks = [_export(number, target, workspace, options, ui) for number, target in enumerate(targets)]
    nvram = NVRAM if _ships_nvram(config, options, workspace) else ""
    if nvram:
        shutil.copyfile(workspace.nvram, output.work / nvram)
    machine = Machine(config.accelerator, _architecture(config), "uefi" if config.firmware else "bios", nvram)
    return Image(tuple(disks), machine)


def keep(image: Image, layer: Path) -> None:
    """Copy the finished files into a layer's directory; the names there don't depend on the build's."""
    for number, one in enumerate(image.disks):
        copy(one.path, layer / _kept_name(number))
    if image.machine.nvram:
        copy(image.disks[0].path.with_name(image.machine.nvram), layer / image.machine.nvram)
    facts = {
        "machine": dataclasses.asdict(image.machine),
        "disks": [{"format": one.format, "virtual_size": one.virtual_size} for one in image.disks],
    }
    (layer / _FACTS).write_text(json.dumps(facts), encoding="utf-8")


def restore(layer: Path, options: MachineOptions, context: BuildContext, output: Output) -> Image:
    """The other way: a layer's files under this build's names. StoreError when the layer isn't what it should be."""
    try:
        facts = json.loads((layer / _FACTS).read_text(encoding="utf-8"))
        machine, rows = Machine(**facts["machine"]), facts["disks"]
        targets = [output.work / name for name in _names(options, context, len(rows))]
        disks = tuple(Disk(target, **row) for target, row in zip(targets, rows, strict=True))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise StoreError(f"the layer '{layer}' holds no image: {error}") from error
    for number, one in enumerate(disks):
        copy(layer / _kept_name(number), one.path)
    if machine.nvram:
        copy(layer / machine.nvram, output.work / machine.nvram)
    return Image(disks, machine)


def _kept_name(number: int) -> str:
    return f"image{number}"


def _names(options: MachineOptions, context: BuildContext, count: int) -> Sequence[str]:
    name = system_disk_name(options, context.build_name)
    return [name, *(f"{name}-{number}" for number in range(1, count))]


def _export(number: int, target: Path, workspace: Workspace, options: MachineOptions, ui: Ui) -> Disk:
    source = workspace.tops[number]
    if options.stays_overlay and number == 0:
        _overlay(source, target, workspace.directory / SOURCE)
    elif options.skip_compaction and _is_whole(source, options):
        shutil.move(source, target)
    else:
        compress = options.format == "qcow2" and options.disk_compression and not options.skip_compaction
        with ui.step(f"Exporting {target.name} ({options.format})"), ui.progress("Exporting", 100, "percent") as update:
            disk.convert(
                source, "qcow2", target, format=options.format, compression="zstd" if compress else None,
                progress=update, extra=options.qemu_img_args.convert,
            )  # fmt: skip
    found = disk.info(target, follow=True)
    ui.message(f"{target.name}: {size(found.virtual_size)} for the guest, {size(found.actual_size)} on this machine")
    return Disk(target, options.format, found.virtual_size)


def _overlay(source: Path, target: Path, image: Path) -> None:
    """All that the build changed, as one overlay on the image that was given, named by its full path."""
    disk.overlay(target, source, "qcow2")
    disk.rebase(target, image)


def _is_whole(path: Path, options: MachineOptions) -> bool:
    """Whether the working disk already is what shall be shipped: its format is right, it stands on nothing, is ours."""
    ours = not path.is_symlink() and path.stat().st_nlink == 1  # a layer's is a link to it, or has a second name
    return ours and options.format == "qcow2" and disk.info(path, follow=True).backing is None


def _ships_nvram(config: MachineConfig, options: MachineOptions, workspace: Workspace) -> bool:
    """The guest's UEFI variables travel beside the disk: boot entries and Secure Boot keys are in them."""
    return config.firmware is not None and not options.efi_drop_efivars and workspace.nvram.is_file()


def _architecture(config: MachineConfig) -> str:
    return Path(config.binary).name.removeprefix("qemu-system-")
