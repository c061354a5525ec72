"""The builder `qemu`: an installer ISO, a kernel and initrd, or an existing disk image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from imagebuilder import cloudinit
from imagebuilder.autoinstall import kickstart
from imagebuilder.builders import defaults
from imagebuilder.builders.hardware import FirstBoot, argv, drive, placeholders
from imagebuilder.builders.ownsteps import own_steps
from imagebuilder.builders.qemuoptions import QemuOptions, system_disk_name
from imagebuilder.builders.run import Run
from imagebuilder.builders.session import MachineSession, open_session
from imagebuilder.builders.workspace import SOURCE
from imagebuilder.errors import ImgbuildError
from imagebuilder.image import disk
from imagebuilder.layers.chain import Step
from imagebuilder.media import collect as media
from imagebuilder.media import download, transfer
from imagebuilder.media.floppy import write_floppy
from imagebuilder.media.httpserver import Access, HttpServer
from imagebuilder.media.iso import iso_read, write_iso
from imagebuilder.options import bytes_of
from imagebuilder.plugins import BuildContext, Outline
from imagebuilder.ui import Ui


class Qemu:
    """Says how the first boot goes; `MachineSession` does the rest."""

    Options = QemuOptions

    def __init__(self, options: QemuOptions, context: BuildContext) -> None:
        self.distro, self.options = defaults.with_distro(options)
        self.context = context

    def steps(self, ui: Ui, *, fetch: bool) -> tuple[Step, Step, Step]:
        return own_steps(self.options, self.context, self.distro, ui, fetch=fetch)

    def session(self, ui: Ui, *, partial: bool) -> AbstractContextManager[MachineSession]:
        return open_session(self, ui, partial=partial)

    def outline(self) -> Outline:
        o, steps = self.options, []
        if o.urls:
            steps.append(f"fetch {o.urls[0]}")
        steps += [f"take {source} for the boot" for source in (o.kernel, *o.initrd) if source]
        steps.append("overlay the image" if o.disk_image else f"create a disk of {o.disk_size // 2**20} MiB")
        steps += [f"serve http://.../{path.lstrip('/')}" for path in (*o.http_templates, *o.http_content)]
        steps.append("boot the installer" if self._installs else "boot")
        steps += ["type the boot command"] if o.boot_command or o.boot_steps else []
        steps += ["wait until it reboots, start from disk"] if self._installs else []
        steps += [] if o.communicator == "none" else ["wait for SSH"]
        boot = FirstBoot(
            (drive(o, "<disk>"), *(drive(o, f"<disk-{n}>") for n, _ in enumerate(o.disk_additional_size, 1))),
            () if o.disk_image or not o.urls else (o.urls[0],), boot="c" if o.disk_image else "once=d",
            kernel=Path("<kernel>") if o.kernel else None, initrd=(Path("<initrd>"),) if o.initrd else (),
            kernel_args=self._rendered(o.kernel_args, placeholders(o, self.context)) if o.kernel else "",
            installing=self._installs, foreign=not o.disk_image,
        )  # fmt: skip
        return Outline(tuple(steps), argv(o, self.context, boot), o)

    @property
    def _installs(self) -> bool:
        """Whether the first boot is known to be an installation that ends with a reset."""
        o = self.options
        if o.wait_for_reset is not None:
            return o.wait_for_reset
        return o.communicator != "none" and not o.disk_image and bool(o.distro or o.kernel)

    # -- what is served

    def server(self, runtime: Path, run: Callable[[], Run], on_request: Callable[[Access], None]) -> HttpServer | None:
        o = self.options
        if not (o.http_directory or o.http_content or o.http_templates):
            return None
        templates = {path: self._template(name, run) for path, name in o.http_templates.items()}
        return HttpServer(
            directory=Path(o.http_directory) if o.http_directory else None, content=o.http_content,
            templates=templates, bind=o.http_bind_address, port_min=o.http_port_min, port_max=o.http_port_max,
            on_request=on_request, log_path=runtime / "access.log",
        )  # fmt: skip

    def _template(self, name: str, run: Callable[[], Run]) -> Callable[[], str]:
        return lambda: kickstart.render(
            name, defaults.kickstart_variables(self.options, self.context, self.distro, run().data)
        )

    # -- the first boot

    def first_boot(self, run: Run) -> FirstBoot:
        source = self._fetch(run) if self.options.urls else None
        return self._boot(run, source, self._disks(source if self.options.disk_image else None, run))

    def image(self, run: Run) -> Path | None:
        found = self._fetch(run) if self.options.disk_image else None
        return Path(found) if found is not None else None

    def resumed(self, run: Run, disks: Sequence[Path]) -> FirstBoot:
        if self._installs:  # the media of the installation are gone from it
            drives = tuple(drive(self.options, path) for path in disks)
            return FirstBoot(drives, boot="c", foreign=not self.options.disk_image)
        medium = self._fetch(run) if self.options.urls and not self.options.disk_image else None
        return self._boot(run, medium, disks)

    def _boot(self, run: Run, source: Path | str | None, disks: Sequence[Path]) -> FirstBoot:
        o = self.options
        cdroms = [str(source)] if source is not None and not o.disk_image else []
        seeds = self._cd(run) + self._seed(run)
        return FirstBoot(
            tuple(drive(o, path) for path in disks), (*cdroms, *seeds), self._floppy(run),
            kernel=self._boot_file(o.kernel, "kernel", source, run) if o.kernel else None,
            initrd=tuple(self._boot_file(name, f"initrd{n}", source, run) for n, name in enumerate(o.initrd)),
            kernel_args=self._rendered(o.kernel_args, run.data), boot="c" if o.disk_image else "once=d",
            installing=self._installs, typed=self._typed(), boot_wait=o.boot_wait, key_interval=o.boot_key_interval,
            foreign=not o.disk_image,
        )  # fmt: skip

    def _rendered(self, text: str, dot: object) -> str:
        return self.context.renderer.render(text, dot=dot) if text else ""  # type: ignore[arg-type]

    def _typed(self) -> tuple[tuple[str, str], ...]:
        o = self.options
        return o.boot_steps or ((("".join(o.boot_command), ""),) if o.boot_command else ())

    def _fetch(self, run: Run) -> Path | str:
        o = self.options
        if o.iso_skip_cache:
            transfer.check_ranges(o.urls[0])
            return o.urls[0]
        with run.ui.step(f"Retrieving {o.urls[0]}"):
            target = Path(o.iso_target_path) if o.iso_target_path else None
            return download.fetch(o.urls, o.iso_checksum, run.ui, target=target, extension=o.iso_target_extension)

    def _boot_file(self, source: str, name: str, iso: Path | str | None, run: Run) -> Path:
        """A kernel or initrd: out of the ISO, from a URL, or a file."""
        inner = source.removeprefix("iso:")
        if inner == source:
            return download.fetch([source], "none", run.ui) if "://" in source else Path(source).absolute()
        if not isinstance(iso, Path):
            raise ImgbuildError(f"'{source}' is to come out of an ISO, and there is none here", hint="give iso_url")
        iso_read(iso, inner, run.runtime / name)
        return run.runtime / name

    def _disks(self, image: Path | str | None, run: Run) -> list[Path]:
        """The disks of the run: qcow2 in the work directory; an image given is never written to."""
        o, name = self.options, system_disk_name(self.options, self.context.build_name)
        first = run.working / name
        if image is None:
            run.ui.say(f"Creating disk ({o.disk_size // 2**20} MiB)")
            disk.create(first, o.disk_size, "qcow2", o.qemu_img_args.create)
        else:
            self._overlay(first, Path(image), run)
        more = [(run.working / f"{name}-{n}", size) for n, size in enumerate(o.disk_additional_size, 1)]
        for path, size in more:
            disk.create(path, bytes_of(size), "qcow2", o.qemu_img_args.create)
        return [first, *(path for path, _ in more)]

    def _overlay(self, path: Path, image: Path, run: Run) -> None:
        """A disk on top of the image, grown to disk_size; the export flattens it unless it is to stay an overlay."""
        o, found = self.options, disk.info(image)
        size = found.virtual_size if o.skip_resize_disk else max(o.disk_size, found.virtual_size)
        if o.disk_size < found.virtual_size and not o.skip_resize_disk and "disk_size" in o.model_fields_set:
            raise ImgbuildError(
                f"disk_size {o.disk_size // 2**20}M is less than the image's {found.virtual_size // 2**20}M",
                hint="a disk can't be shrunk: raise disk_size, or set skip_resize_disk",
            )
        run.ui.say(f"Creating disk on top of {image.name} ({size // 2**20} MiB)")
        source = run.working / SOURCE
        source.unlink(missing_ok=True)
        source.symlink_to(image.absolute())
        disk.overlay(path, source, found.format, size, relative=True)

    # -- media

    def _cd(self, run: Run) -> list[str]:
        o, path = self.options, run.runtime / "cd.iso"
        if not o.cd_files and not o.cd_content:
            return []
        run.ui.say("Creating CD")
        write_iso(path, o.cd_label, media.cd_files(o.cd_files, o.cd_content))
        return [str(path)]

    def _seed(self, run: Run) -> list[str]:
        o, path = self.options, run.runtime / "seed.iso"
        if o.cloud_init is None:
            return []
        run.ui.say("Creating the cloud-init seed")
        files = cloudinit.seed_files(
            user_data=_text(o.cloud_init.user_data), network_config=_text(o.cloud_init.network_config),
            meta_data=defaults.yaml_object(o.cloud_init.meta_data),
            ssh_keys=[str(run.data["SSHPublicKey"])] if run.data["SSHPublicKey"] else [], user=o.ssh_username,
            hostname=o.cloud_init.hostname or defaults.HOSTNAME,
        )  # fmt: skip
        write_iso(path, cloudinit.LABEL, files)
        return [str(path)]

    def _floppy(self, run: Run) -> Path | None:
        o, path = self.options, run.runtime / "floppy.img"
        if not (o.floppy_files or o.floppy_dirs or o.floppy_content):
            return None
        run.ui.say("Creating floppy disk")
        write_floppy(path, media.floppy_files(o.floppy_files, o.floppy_dirs, o.floppy_content), o.floppy_label)
        return path


def _text(name: str) -> str:
    return Path(name).read_text(encoding="utf-8") if name else ""
