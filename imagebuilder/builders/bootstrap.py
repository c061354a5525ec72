"""The builder `bootstrap`: the first disk is made from distribution packages, then booted and provisioned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

from pydantic import Field

from imagebuilder import cloudinit
from imagebuilder.bootstrap import disk as bootstrap
from imagebuilder.bootstrap.partition import Firmware
from imagebuilder.bootstrap.spec import BootstrapSpec
from imagebuilder.builders.hardware import FirstBoot, argv, drive
from imagebuilder.builders.ownsteps import own_steps
from imagebuilder.builders.qemuoptions import MachineOptions, system_disk_name
from imagebuilder.builders.run import Run
from imagebuilder.builders.session import MachineSession, open_session
from imagebuilder.layers.chain import Step
from imagebuilder.media.httpserver import Access, HttpServer
from imagebuilder.media.iso import write_iso
from imagebuilder.options import Bool, Size, Text, Texts
from imagebuilder.plugins import BuildContext, Outline
from imagebuilder.ui import Ui


class BootstrapOptions(MachineOptions):
    """The bootstrap builder: a Debian or Ubuntu from packages; no installer and no ISO."""

    distribution: Literal["debian", "ubuntu"] = Field("debian", description="Which distribution")
    suite: Text = Field("bookworm", description="Its release's code name: bookworm, trixie, jammy, noble ...")
    architecture: Literal["amd64"] = Field("amd64", description="For which machines")
    mirrors: Texts = Field((), description="Package mirrors; default: this machine's own apt sources")
    image_mirrors: Texts = Field((), description="Mirrors written into the image; default: those it is made from")
    components: Texts = Field((), description="Components such as main; default: those of the sources")
    packages: Texts = Field((), description="More packages for the first disk")
    variant: Text = Field("minbase", description="mmdebstrap's variant")
    kernel_package: Text = Field("", description="Kernel package; default: the distribution's for virtual machines")
    kernel_args: Text = Field("console=tty0 console=ttyS0,115200", description="The image's kernel command line")
    hostname: Text = Field("localhost", description="Host name of the image before cloud-init sets one")
    image_firmware: Firmware = Field(Firmware.BOTH, description="bios, uefi, or both: how the image can be booted")
    cloud_init: Bool = Field(True, description="Put cloud-init into the image")
    documentation: Bool = Field(False, description="Keep manual pages, documentation and translations")
    locale: Text = Field("C.UTF-8", description="Locale of the image")
    timezone: Text = Field("Etc/UTC", description="Time zone of the image")
    ssh_username: Text = Field("root", description="User the build logs in as")
    disk_size: Size = Field(10 * 2**30, description="Size of the disk; clones can grow it, the file system follows")

    @property
    def seals(self) -> bool:
        return self.seal is not False

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if not self.cloud_init and self.ssh_username != "root":
            yield "ssh_username", "must be 'root' when the image has no cloud-init to make another user"


class Bootstrap:
    """Makes the first disk with `imagebuilder.bootstrap`, seeds its first boot with the build's key."""

    Options = BootstrapOptions

    def __init__(self, options: BootstrapOptions, context: BuildContext) -> None:
        self.options, self.context = options, context

    def steps(self, ui: Ui, *, fetch: bool) -> tuple[Step, Step, Step]:
        return own_steps(self.options, self.context, None, ui, fetch=fetch)

    def session(self, ui: Ui, *, partial: bool) -> AbstractContextManager[MachineSession]:
        return open_session(self, ui, partial=partial)

    def outline(self) -> Outline:
        o = self.options
        steps = (f"make a disk of {o.distribution} {o.suite} from packages", "boot it", "wait for SSH")
        return Outline(steps, argv(o, self.context, FirstBoot((drive(o, "<disk>"),), ("<seed.iso>",), boot="c")), o)

    def server(self, runtime: Path, run: Callable[[], Run], on_request: Callable[[Access], None]) -> HttpServer | None:
        return None

    def first_boot(self, run: Run) -> FirstBoot:
        target = run.working / f"{system_disk_name(self.options, self.context.build_name)}.qcow2"
        bootstrap.make_disk(self._spec(run), target, run.ui, work=run.working)
        return self.resumed(run, [target])

    def image(self, run: Run) -> Path | None:
        return None

    def resumed(self, run: Run, disks: Sequence[Path]) -> FirstBoot:
        cdroms: tuple[str, ...] = ()
        if self.options.cloud_init and run.key is not None:
            seed = run.runtime / "seed.iso"
            files = cloudinit.seed_files(ssh_keys=[run.key.public], user=self.options.ssh_username)
            write_iso(seed, cloudinit.LABEL, files)
            cdroms = (str(seed),)
        return FirstBoot(tuple(drive(self.options, path) for path in disks), cdroms, boot="c")

    def _spec(self, run: Run) -> BootstrapSpec:
        o = self.options
        key = (run.key.public,) if run.key is not None and not o.cloud_init else ()
        return BootstrapSpec(
            distribution=o.distribution, suite=o.suite, architecture=o.architecture, mirrors=o.mirrors,
            image_mirrors=o.image_mirrors, components=o.components, packages=o.packages, variant=o.variant,
            kernel=o.kernel_package, kernel_arguments=o.kernel_args, hostname=o.hostname, disk_size=o.disk_size,
            firmware=o.image_firmware, cloud_init=o.cloud_init, documentation=o.documentation,
            ssh_authorized_keys=key, locale=o.locale, timezone=o.timezone,
        )  # fmt: skip
