"""The disks in the formats that other hypervisors and clouds take."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from imagebuilder import process
from imagebuilder.digests import digests
from imagebuilder.errors import ImgbuildError
from imagebuilder.image import archive, disk, ovf
from imagebuilder.options import LATE, Bool, Int, Options, Text, Texts
from imagebuilder.plugins import Artifact, BuildContext, Disk, Processed
from imagebuilder.suggestion import did_you_mean
from imagebuilder.ui import Ui, size
from imagebuilder.whole import whole


@dataclass(frozen=True)
class _Format:
    """What qemu-img calls it, and how its files are called."""

    driver: str
    extension: str


FORMATS: Mapping[str, _Format] = {
    "qcow2": _Format("qcow2", "qcow2"), "raw": _Format("raw", "raw"), "vmdk": _Format("vmdk", "vmdk"),
    "vpc": _Format("vpc", "vhd"), "vhd": _Format("vpc", "vhd"), "vhdx": _Format("vhdx", "vhdx"),
    "vdi": _Format("vdi", "vdi"), "ova": _Format("vmdk", "ova"),
}  # fmt: skip


class ExportOptions(Options):
    """Writes the disks in other formats: vmdk (VMware, EC2), vhd (Hyper-V, Azure, EC2), vhdx (Hyper-V), vdi
    (VirtualBox), raw, qcow2, and ova (one file with the machine's description, for VMware and VirtualBox). The
    artifact itself is kept."""

    format: Text = Field("", description=f"One of {', '.join(FORMATS)}")
    formats: Texts = Field((), description="Several of them")
    output: Annotated[Text, LATE] = Field(
        "packer_{{.BuildName}}_{{.BuilderType}}{{.Disk}}.{{.Extension}}",
        description="Files to make; {{.Format}}, {{.Extension}} and {{.Disk}} ('', '-1', '-2' ...) are known",
    )
    compression: Bool = Field(True, description="Compress a qcow2 (zstd)")
    vmdk_subformat: Literal["streamOptimized", "monolithicSparse"] = Field(
        "streamOptimized", description="Kind of vmdk; streamOptimized is compressed, and what EC2 imports"
    )
    vhd_subformat: Literal["dynamic", "fixed"] = Field("dynamic", description="Kind of vhd; Azure takes only 'fixed'")
    ova_cpus: Int = Field(1, ge=1, description="CPUs of the machine in an ova")
    ova_memory: Int = Field(1024, ge=64, description="Its memory in MiB")
    ova_disk_controller: Literal["sata", "scsi", "ide"] = Field("sata", description="What its disks are attached to")

    def problems(self) -> Iterator[tuple[str, str]]:
        for name in self.wanted:
            if name not in FORMATS:
                key, instead = "formats" if self.formats else "format", did_you_mean(name, FORMATS)
                yield key, f"'{name}' is not known; {instead or 'expected one of ' + ', '.join(FORMATS)}"
        if not self.wanted:
            yield "format", "is missing: name a format, or several in 'formats'"

    @property
    def wanted(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*((self.format,) if self.format else ()), *self.formats)))


class Export:
    """The export post-processor."""

    Options = ExportOptions

    def __init__(self, options: ExportOptions, context: BuildContext) -> None:
        self._options, self._context = options, context

    def process(self, artifact: Artifact, ui: Ui) -> Processed:
        """An artifact of the new files; all of them appear, or none. Raises ImgbuildError, StoreError."""
        if not artifact.disks:
            raise ImgbuildError(f"there is no disk image in the artifact to export: {artifact.description}")
        made: dict[Path, Disk | None] = {}
        with ExitStack() as stack:
            for name in self._options.wanted:
                if name == "ova":
                    target = self._target(name, "", artifact, made)
                    made[target] = None
                    self._ova(artifact, stack.enter_context(whole(target, artifact.files)), target, ui)
                    continue
                for number, image in enumerate(artifact.disks):
                    target = self._target(name, f"-{number}" if number else "", artifact, made)
                    made[target] = Disk(target, FORMATS[name].driver, image.virtual_size)
                    self._convert(image, name, stack.enter_context(whole(target, artifact.files)), target, ui)
        for target in made:
            ui.message(f"Wrote {target} ({size(target.stat().st_blocks * 512)})")
        description = f"Exported disks: {', '.join(map(str, made))}"
        disks = tuple(found for found in made.values() if found is not None)
        exported = Artifact(
            "imgbuild.post-processor.export", artifact.id, description, tuple(made), disks, state=artifact.state
        )
        return Processed(exported, keep_input=True)

    def _target(self, name: str, number: str, artifact: Artifact, made: Collection[Path]) -> Path:
        dot = {
            "BuildName": self._context.build_name, "BuilderType": self._context.builder_type, "Format": name,
            "Extension": FORMATS[name].extension, "Disk": number,
        }  # fmt: skip
        build = {"ID": artifact.id, **artifact.state}
        target = Path(self._context.renderer.render(self._options.output, dot, build))
        if target in made:
            raise ImgbuildError(
                f"'output' gives the name '{target}' to two files", hint="put {{.Disk}} and {{.Extension}} into it"
            )
        return target

    def _convert(self, image: Disk, name: str, aside: Path, target: Path, ui: Ui) -> None:
        driver = FORMATS[name].driver
        with ui.progress(f"Exporting {target.name}", 100, "percent") as update:
            disk.convert(
                image.path, image.format, aside, format=driver, progress=update, extra=self._arguments(name),
                compression="zstd" if driver == "qcow2" and self._options.compression else None,
            )  # fmt: skip

    def _arguments(self, name: str) -> tuple[str, ...]:
        if name == "ova":
            return "-o", f"subformat=streamOptimized,adapter_type={self._adapter}"
        if name == "vmdk":
            return "-o", f"subformat={self._options.vmdk_subformat}"
        if FORMATS[name].driver == "vpc":  # without force_size QEMU rounds the size to a geometry of 1987
            return "-o", f"subformat={self._options.vhd_subformat},force_size=on"
        return ()

    @property
    def _adapter(self) -> str:
        return "lsilogic" if self._options.ova_disk_controller == "scsi" else "ide"

    def _ova(self, artifact: Artifact, aside: Path, target: Path, ui: Ui) -> None:
        """The description, its digests and the disks in one tar, in the order that the standard wants."""
        with ExitStack() as stack:
            files = []
            for number, image in enumerate(artifact.disks, 1):
                file = stack.enter_context(
                    process.temporary_path(target.with_name(f".{target.name}.disk{number}.vmdk"))
                )
                self._convert(image, "ova", file, Path(f"{target.stem}-disk{number}.vmdk"), ui)
                files.append(file)
            images = [
                ovf.Image(f"{target.stem}-disk{number}.vmdk", file.stat().st_size, image.virtual_size)
                for number, (file, image) in enumerate(zip(files, artifact.disks, strict=True), 1)
            ]
            description = ovf.descriptor(self._machine(target), images).encode()
            sums = digests(files, ["sha256"], ui)
            named = {image.name: sums[file]["sha256"] for image, file in zip(images, files, strict=True)}
            content: dict[str, archive.Content] = {
                f"{target.stem}.ovf": description,
                f"{target.stem}.mf": ovf.manifest(f"{target.stem}.ovf", description, named).encode(),
                **{image.name: file for image, file in zip(images, files, strict=True)},
            }
            with aside.open("wb") as out, ui.progress(f"Writing {target.name}", archive.total(content)) as update:
                archive.tar(out, content, update, ustar=True)

    def _machine(self, target: Path) -> ovf.Machine:
        o = self._options
        return ovf.Machine(target.stem, o.ova_cpus, o.ova_memory, ovf.Controller(o.ova_disk_controller))
