"""A Vagrant box for the provider libvirt (vagrant-libvirt's box format with `disks`), written as a stream."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from imagebuilder import process
from imagebuilder.errors import ImgbuildError
from imagebuilder.image import archive, disk
from imagebuilder.image.compression import Method, compressing
from imagebuilder.options import LATE, Bool, Int, Options, Text, Texts
from imagebuilder.plugins import Artifact, BuildContext, Disk, Processed
from imagebuilder.ui import Ui, size
from imagebuilder.whole import whole

PROVIDER = "libvirt"
_GO_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "i386": "386", "riscv64": "riscv64", "ppc64le": "ppc64le"}
_DRIVERS = {"kvm": "kvm", "tcg": "qemu", "none": "qemu", "hvf": "qemu"}

Late = Annotated[Text, LATE]


class _Overridable(Options):
    """Keys that a provider may override."""

    output: Late | None = Field(
        None,
        description="The box; default packer_{{.BuildName}}_{{.Provider}}.box, "
        "and with `architecture` packer_{{.BuildName}}_{{.Provider}}_{{.Architecture}}.box",
    )
    compression_level: Int = Field(6, ge=0, le=9, description="0 (none) to 9 (small)")
    include: Texts = Field((), description="More files for the box")
    vagrantfile_template: Late = Field("", description="A Vagrantfile that comes after the box's own lines")
    vagrantfile_template_generated: Bool = Field(False, description="That file is made by the build: not there yet")

    def problems(self) -> Iterator[tuple[str, str]]:
        for name in self.include:
            if not Path(name).is_file():
                yield "include", f"there is no file '{name}'"
        name = self.vagrantfile_template
        if name and "{{" not in name and not self.vagrantfile_template_generated and not Path(name).is_file():
            yield "vagrantfile_template", f"there is no file '{name}'"


class Overrides(Options):
    """Per provider."""

    libvirt: _Overridable = Field(_Overridable(), description="Keys for the provider libvirt")


class VagrantOptions(_Overridable):
    """Makes a box for vagrant-libvirt of all disks. Also of what `artifice` chose."""

    architecture: Text = Field("", description="As Vagrant names it: amd64, arm64; default: the guest's")
    provider_override: Text = Field("", description="Only 'libvirt' can be made")
    override: Annotated[Overrides, LATE] = Field(Overrides(), description="Keys for one provider: {libvirt: {...}}")

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.provider_override not in ("", PROVIDER):
            yield "provider_override", f"'{self.provider_override}' boxes can't be made of QEMU's disks: only 'libvirt'"
        yield from (("override", f"libvirt.{key}: {message}") for key, message in self.override.libvirt.problems())

    def effective(self) -> _Overridable:
        """These keys with the provider's over them."""
        given = self.override.libvirt
        keys = {key: getattr(self, key) for key in _Overridable.model_fields}
        return _Overridable.model_construct(**keys | {key: getattr(given, key) for key in given.model_fields_set})


class Vagrant:
    """The vagrant post-processor."""

    Options = VagrantOptions

    def __init__(self, options: VagrantOptions, context: BuildContext) -> None:
        self._options, self._keys, self._context = options, options.effective(), context

    def process(self, artifact: Artifact, ui: Ui) -> Processed:
        """An artifact of the box. Raises ImgbuildError, StoreError."""
        if not artifact.disks:
            raise ImgbuildError(
                f"there is no disk image in the artifact to make a box of: {artifact.description}",
                hint="after 'artifice', name a qcow2 in its files",
            )
        architecture = self._options.architecture or self._architecture(artifact)
        target = self._output(artifact, architecture)
        with ExitStack() as stack:
            aside = stack.enter_context(whole(target, artifact.files))
            disks = [self._qcow2(image, number, target, stack, ui) for number, image in enumerate(artifact.disks)]
            files = self._files(artifact, architecture, disks)
            total = archive.total(files)
            update = stack.enter_context(ui.progress(f"Writing {target.name}", total))
            with aside.open("wb") as out, compressing(out, Method.GZIP, self._keys.compression_level) as writer:
                archive.tar(writer, files, update)
            ui.message(f"Packed {size(total)} into {size(aside.stat().st_size)}: {target}")
        description = f"'{PROVIDER}' provider box: {target}"
        return Processed(Artifact("mitchellh.post-processor.vagrant", PROVIDER, description, (target,)))

    def _output(self, artifact: Artifact, architecture: str) -> Path:
        default = "packer_{{.BuildName}}_{{.Provider}}" + ("_{{.Architecture}}" if self._options.architecture else "")
        dot = {
            "BuildName": self._context.build_name, "BuilderType": self._context.builder_type, "Provider": PROVIDER,
            "ArtifactId": artifact.id, "Architecture": architecture,
        }  # fmt: skip
        return Path(self._render(self._keys.output or f"{default}.box", artifact, dot))

    def _files(self, artifact: Artifact, architecture: str, disks: Sequence[Path]) -> dict[str, archive.Content]:
        """What is in the box: small files first, so that a reader of the stream has them at once."""
        files: dict[str, archive.Content] = {
            "metadata.json": metadata(architecture, len(disks)).encode(),
            "Vagrantfile": self._vagrantfile(artifact).encode(),
        }
        images = {f"box_{number}.img": image for number, image in enumerate(disks)}
        for file in map(Path, self._keys.include):
            if file.name in files or file.name in images:
                raise ImgbuildError(f"'include': the box has a '{file.name}' already, besides '{file}'")
            files[file.name] = file
        return {**files, **images}

    def _vagrantfile(self, artifact: Artifact) -> str:
        name = self._render(self._keys.vagrantfile_template, artifact, {})
        try:
            own = Path(name).read_text(encoding="utf-8") if name else ""
        except OSError as error:
            raise ImgbuildError(f"can't read vagrantfile_template '{name}': {error.strerror}") from error
        return vagrantfile(artifact.state.get("accelerator", ""), own)

    def _qcow2(self, image: Disk, number: int, target: Path, stack: ExitStack, ui: Ui) -> Path:
        """The image itself, or a qcow2 beside the box that is gone with the block: the format knows nothing else."""
        if image.format == "qcow2" and disk.info(image.path, follow=True).backing is None:
            return image.path
        place = stack.enter_context(process.temporary_path(target.with_name(f".{target.name}.{number}.qcow2")))
        with ui.progress(f"Converting {image.path.name}", 100, "percent") as update:
            disk.convert(image.path, image.format, place, format="qcow2", compression="zstd", progress=update)
        return place

    @staticmethod
    def _architecture(artifact: Artifact) -> str:
        guest = artifact.state.get("architecture") or platform.machine()
        return _GO_ARCHITECTURES.get(guest, guest)

    def _render(self, text: str, artifact: Artifact, dot: dict[str, str]) -> str:
        return self._context.renderer.render(text, dot, {"ID": artifact.id, **artifact.state})


def metadata(architecture: str, disks: int) -> str:
    """The box's metadata.json."""
    content: dict[str, Any] = {
        "architecture": architecture,
        "disks": [{"format": "qcow2", "path": f"box_{number}.img"} for number in range(disks)],
        "provider": PROVIDER,
    }
    return json.dumps(content)


def vagrantfile(accelerator: str, own: str = "") -> str:
    """The box's Vagrantfile: how libvirt is to run it, then the user's own text. Raises ImgbuildError."""
    driver = _DRIVERS.get(accelerator or "none")
    if driver is None:
        raise ImgbuildError(f"vagrant-libvirt has no driver for the accelerator '{accelerator}'")
    lines = (
        "# Made by imgbuild for the box that it lies in.",
        'Vagrant.configure("2") do |config|',
        "  config.vm.provider :libvirt do |libvirt|",
        f'    libvirt.driver = "{driver}"',
        "  end",
        "end",
    )
    return "\n".join(lines) + "\n" + (f"\n{own.rstrip()}\n" if own else "")
