"""What can change the result of a builder's steps: the base (installation or first disk), the shutdown, the export.

Every option of a builder is an input of its base unless it stands in one of the tables below, with the reason why.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from imagebuilder import __version__, inputs, process
from imagebuilder.autoinstall import kickstart
from imagebuilder.autoinstall.distro import Distro
from imagebuilder.bootstrap import apt
from imagebuilder.builders import defaults, hardware
from imagebuilder.builders.hardware import FirstBoot
from imagebuilder.builders.qemuoptions import MachineOptions, QemuOptions
from imagebuilder.errors import StoreError, TemplateError
from imagebuilder.inputs import Input
from imagebuilder.media import collect, download, verified
from imagebuilder.media.checksum import parse_checksum
from imagebuilder.media.transfer import shown
from imagebuilder.options import bytes_of
from imagebuilder.plugins import BuildContext
from imagebuilder.qemu import accel
from imagebuilder.qemu.arguments import MachineConfig
from imagebuilder.ssh.keyfile import read_private_key
from imagebuilder.ui import Ui

HARMLESS = frozenset(
    # names and places on this machine; vm_name counts where the guest is told it
    {"vm_name", "output_directory", "iso_target_path", "iso_target_extension", "iso_skip_cache"}
    # how a person watches
    | {"headless", "display", "use_default_display", "qmp_enable", "qmp_socket_path"}
    | {"disable_vnc", "vnc_bind_address", "vnc_port_min", "vnc_port_max", "vnc_use_password", "vnc_password"}
    # how long we wait, how fast we type
    | {"ssh_timeout", "ssh_read_write_timeout", "ssh_keep_alive_interval", "ssh_handshake_attempts"}
    | {"shutdown_timeout", "boot_wait", "boot_key_interval"}
    # ways to the guest and to us that leave no trace in it
    | {"host_port_min", "host_port_max", "skip_nat_mapping", "ssh_host", "ssh_port", "ssh_certificate_file"}
    | {"ssh_ciphers", "ssh_key_exchange_algorithms", "ssh_local_tunnels"}
    | {"ssh_bastion_host", "ssh_bastion_port", "ssh_bastion_username", "ssh_bastion_password"}
    | {"ssh_bastion_agent_auth", "ssh_bastion_interactive", "ssh_bastion_private_key_file"}
    | {"ssh_bastion_certificate_file"}
    | {"ssh_proxy_host", "ssh_proxy_port", "ssh_proxy_username", "ssh_proxy_password"}
    | {"http_bind_address", "http_port_min", "http_port_max"}
    # a comment that goes with the key that is removed at the end
    | {"temporary_key_pair_name"}
    # whether layers are kept, not what is in them
    | {"cache"}
    # no effect
    | {"run_once", "ssh_keypair_name", "boot_keygroup_interval", "http_interface", "http_network_protocol"}
    | {"winrm_username", "winrm_password", "winrm_host", "winrm_no_proxy", "winrm_port", "winrm_timeout"}
    | {"winrm_use_ssl", "winrm_insecure", "winrm_use_ntlm"}
)
SHUTDOWN_OPTIONS = frozenset({"shutdown_command", "seal", "skip_compaction", "ssh_clear_authorized_keys"})
"""What acts when the last provisioner is done."""
EXPORT_OPTIONS = frozenset({"format", "disk_compression", "use_backing_file", "efi_drop_efivars"})
"""What acts on disks at rest; skip_compaction, which trims in the guest before, does as well."""

_IN_OTHER_WORDS = frozenset(  # what they mean is an input, not how it was written
    {"accelerator", "cpu_model", "cpus", "memory", "communicator", "qemu_binary", "qemu_img_args"}
    | {"disk_additional_size", "boot_command", "boot_steps", "ssh_private_key_file"}
    | {"iso_url", "iso_urls", "iso_checksum", "kernel", "initrd", "cloud_init"}
    | {"firmware", "efi_firmware_code", "efi_firmware_vars"}
    | {"http_directory", "http_templates", "floppy_files", "floppy_dirs", "floppy_content", "cd_files", "cd_content"}
    | {"mirrors", "image_mirrors", "components"}
)
_READ_WHOLE = re.compile(r"--?(cdrom|kernel|initrd|dtb|bios|pflash|fd[ab]|hd[a-d])")  # QEMU switches that name a file
_READ_PART = re.compile(r"--?(drive|blockdev|device|fw_cfg|acpitable|smbios)")  # and those that name one among others
_NAMED_FILE = re.compile(r"(?:^|,)(?:file|filename|file\.filename)=([^,]+)")


class Unknown(Exception):
    """A medium's digest is only known once it is fetched; with iso_skip_cache it never is. str() is its URL."""


@runtime_checkable
class _FromPackages(Protocol):
    """The options of a builder whose first disk is made from packages."""

    distribution: str
    suite: str
    mirrors: tuple[str, ...]
    image_mirrors: tuple[str, ...]
    components: tuple[str, ...]
    cloud_init: bool


def base(
    options: MachineOptions, context: BuildContext, distro: Distro | None, choice: accel.Choice, ui: Ui, *, fetch: bool
) -> list[Input]:
    """Everything up to the guest that the first provisioner meets. `options`: as the distro has filled them in.

    With `fetch` media are downloaded where only that tells what they are; without it Unknown is raised then. Raises
    StoreError (a file that can't be read), TemplateError (a kickstart that can't be rendered, media that can't be).
    """
    found = [*_machine(options, context, choice, ui), *_written(options), *_told_its_name(options, context)]
    if isinstance(options, QemuOptions):
        found += [*_media(options, ui, fetch), *_served(options, context, distro), *_volumes(options)]
        found += _cloud_init(options)
    elif isinstance(options, _FromPackages):
        found += [inputs.option("cloud_init", options.cloud_init), *_archives(options)]
    return found


def shutdown(options: MachineOptions) -> list[Input]:
    """What changes the guest's disk after the last provisioner."""
    effective = {**_only(options, SHUTDOWN_OPTIONS), "seal": options.seals}
    return inputs.options(effective.items())


def export(options: MachineOptions) -> list[Input]:
    """What makes the finished image of a disk at rest."""
    chosen = _only(options, EXPORT_OPTIONS | {"skip_compaction"})
    if options.stays_overlay and isinstance(options, QemuOptions):  # the result names its image by its full path
        chosen["image"] = [os.path.realpath(url) for url in options.urls]
    return inputs.options({**chosen, "qemu_img_args": options.qemu_img_args.convert}.items())


def _only(options: MachineOptions, names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in options if name in names}


# -- the machine


def _machine(o: MachineOptions, context: BuildContext, choice: accel.Choice, ui: Ui) -> Iterator[Input]:
    config = _config(o, context, choice)
    yield inputs.option("imgbuild", __version__)
    yield inputs.option("QEMU", _qemu_version(o.qemu_binary))
    yield inputs.option("accelerator", choice.name)
    yield inputs.option("cpu_model", config.cpu_model)
    if choice.name == "kvm":
        yield inputs.option("this machine's CPU", _host_cpu())
    for role, path in _firmware(config).items():
        yield inputs.file(role, path)
    for name in _qemuargs_files(o.qemuargs):
        yield inputs.content("qemuargs", name, _remembered(Path(name), ui))


def _config(o: MachineOptions, context: BuildContext, choice: accel.Choice) -> MachineConfig:
    """The machine of the first boot, as far as CPU and firmware go."""
    boot = FirstBoot((), foreign=isinstance(o, QemuOptions) and not o.disk_image)
    return hardware.machine_config(o, context, boot, choice, hardware.placeholders(o, context))


def _qemu_version(binary: str) -> str:
    said = process.run([process.find(binary, package="qemu-system"), "--version"], timeout=60).stdout
    return f"{Path(binary).name}: {said.partition(chr(10))[0]}"


def _host_cpu() -> str:
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    found = [re.search(rf"(?m)^{key}\s*:\s*(.*)$", text) for key in ("model name", "flags")]
    return " ".join(one[1] for one in found if one)


def _firmware(config: MachineConfig) -> dict[str, Path]:
    code, variables = (config.firmware.code, config.firmware.vars) if config.firmware else (None, None)
    files = {"firmware": config.bios, "firmware code": code, "firmware variables": variables}
    return {role: path for role, path in files.items() if path is not None}


def _qemuargs_files(rows: Iterable[Sequence[str]]) -> list[str]:
    """Files of this machine that QEMU arguments of the person's make disks, media or firmware of."""
    named = [word for row in rows if row and _READ_WHOLE.fullmatch(row[0]) for word in row[1:]]
    parts = [word for row in rows if row and _READ_PART.fullmatch(row[0]) for word in row[1:]]
    named += [path for word in parts for path in _NAMED_FILE.findall(word)]
    return [path for path in named if Path(path).is_file()]


# -- options


def _written(o: MachineOptions) -> list[Input]:
    """The options as they are; those that can be written in several ways, as what they mean."""
    meaning: dict[str, object] = {
        "communicator": o.communicator or "ssh", "cpus": o.cpus or 1, "memory": o.memory_mib,
        "disk_additional_size": [bytes_of(size) for size in o.disk_additional_size],
        "qemu_img_args": o.qemu_img_args.create,  # convert is the export's; nothing runs resize
        "ssh_private_key_file": _public_key(o),
    }  # fmt: skip
    if isinstance(o, QemuOptions):
        meaning["boot_command"] = _typed(o)
    return [
        *inputs.options(o, HARMLESS, SHUTDOWN_OPTIONS, EXPORT_OPTIONS, _IN_OTHER_WORDS),
        *inputs.options(meaning.items()),
    ]


def _typed(o: QemuOptions) -> list[str]:
    return [command for command, _ in o.boot_steps] or ["".join(o.boot_command)]


def _public_key(o: MachineOptions) -> str:
    """What the guest is given to let us in: one of the person's, a new one at each build, or none."""
    if o.makes_key or not o.ssh_private_key_file:
        return "<key>" if o.makes_key else ""
    try:
        own = read_private_key(Path(o.ssh_private_key_file))
    except ValueError as error:
        raise StoreError(str(error)) from error
    return f"{own.get_name()} {own.get_base64()}"


def _told_its_name(o: MachineOptions, context: BuildContext) -> list[Input]:
    """What differs between builds of a template and is in the guest's reach only where a late template names it."""
    late = [word for row in o.qemuargs for word in row]
    if isinstance(o, QemuOptions):
        late += [*_typed(o), o.kernel_args]
    dot = hardware.placeholders(o, context) | {"HTTPDir": getattr(o, "http_directory", "")}
    used = [name for name in ("Name", "HTTPDir") if any(re.search(rf"{{{{[^}}]*\.{name}\b", text) for text in late)]
    return [inputs.option(name, dot[name]) for name in used]


# -- media


def _media(o: QemuOptions, ui: Ui, fetch: bool) -> Iterator[Input]:
    if o.urls:
        digest = _declared(o.iso_checksum) or _local(o.urls, ui)
        if digest is None and fetch and not o.iso_skip_cache:
            target = Path(o.iso_target_path) if o.iso_target_path else None
            path = download.fetch(o.urls, o.iso_checksum, ui, target=target, extension=o.iso_target_extension)
            digest = _remembered(path, ui)
        elif digest is None and not o.iso_skip_cache:
            digest = _downloaded(o.urls, ui)
        yield inputs.content("iso_url", shown(o.urls[0]), _certain(digest, o.urls[0]))
    sources = {"kernel": o.kernel, **{f"initrd {number}": source for number, source in enumerate(o.initrd)}}
    for role, source in sources.items():
        if source.startswith("iso:"):
            yield inputs.option(role, source)
        elif source:
            yield inputs.content(role, shown(source), _boot_file(source, ui, fetch))


def _boot_file(source: str, ui: Ui, fetch: bool) -> str:
    if "://" in source and fetch:
        return _remembered(download.fetch([source], "none", ui), ui)
    return _certain(_local([source], ui) or _downloaded([source], ui), source)


def _certain(digest: str | None, url: str) -> str:
    if digest is None:
        raise Unknown(shown(url))
    return digest


def _declared(checksum: str) -> str | None:
    """ALGORITHM:DIGEST as the template has it."""
    try:
        declared = parse_checksum(checksum or "none")
    except ValueError as error:
        raise TemplateError(f"iso_checksum {error}") from error
    return str(declared) if declared.digest else None


def _local(urls: Sequence[str], ui: Ui) -> str | None:
    """The digest of a medium that is on this machine, when it would be tried before any that has to be fetched."""
    try:
        sources = [download.source_of(url) for url in urls]
    except ValueError as error:
        raise TemplateError(str(error)) from error
    for source in sources:
        if source.path is None:
            return None
        if source.path.is_file():
            return _remembered(source.path, ui)
    return None


def _downloaded(urls: Sequence[str], ui: Ui) -> str | None:
    """The digest of the file that was downloaded from one of these URLs and used last, if it is still as it was."""
    folder = verified.directory()
    found: list[tuple[int, Path]] = []
    for place in folder.glob("*.json") if folder.is_dir() else ():
        record = verified.read(place)
        if record and record.url in urls and record.describes(Path(record.path)):
            found.append((place.stat().st_mtime_ns, Path(record.path)))
    return _remembered(max(found)[1], ui) if found else None


def _remembered(path: Path, ui: Ui) -> str:
    return f"sha256:{verified.remembered(path, 'sha256', ui)}"


# -- what the guest reads


def _served(o: QemuOptions, context: BuildContext, distro: Distro | None) -> Iterator[Input]:
    """The HTTP server's directory and rendered files; http_content is an option like others."""
    if o.http_directory:
        yield _directory(Path(o.http_directory))
    dot = hardware.placeholders(o, context) | {"SSHPublicKey": _public_key(o)}
    for path, name in o.http_templates.items():
        variables = defaults.kickstart_variables(o, context, distro, dot)
        yield inputs.content(f"http_templates {path}", name, kickstart.render(name, variables))


def _directory(top: Path) -> Input:
    """All that is served of a directory: nothing hidden; links don't lead out of it; nobody sees modes."""
    found = []
    for path in sorted(top.resolve().rglob("*")):
        name = path.relative_to(top.resolve())
        if any(part.startswith(".") for part in name.parts):
            continue
        if path.is_symlink():
            found.append(inputs.content(f"link {name}", str(name), os.fspath(path.readlink())))
        elif path.is_file():
            found.append(inputs.file(f"file {name}", path))
    return inputs.combined("http_directory", str(top), found)


def _volumes(o: QemuOptions) -> Iterator[Input]:
    """Floppy and CD, file by file; a file keeps on a CD whether it can be executed."""
    floppy = collect.floppy_files(o.floppy_files, o.floppy_dirs, o.floppy_content)
    yield from _volume("floppy", floppy, 0)
    yield from _volume("cd", collect.cd_files(o.cd_files, o.cd_content), 0o111)


def _volume(kind: str, files: Mapping[str, bytes | Path], modes: int) -> Iterator[Input]:
    for name, data in sorted(files.items()):
        if isinstance(data, bytes):
            yield inputs.content(f"{kind} {name} 0", f"{kind}: {name}", data)
        else:
            read = inputs.file(f"{kind} {name} {data.stat().st_mode & modes:o}", data)
            yield replace(read, label=str(data))


def _cloud_init(o: QemuOptions) -> Iterator[Input]:
    seed = o.cloud_init
    yield inputs.option("cloud_init", seed and {"hostname": seed.hostname or defaults.HOSTNAME})
    files = {key: getattr(seed, key) for key in ("user_data", "meta_data", "network_config")} if seed else {}
    for key, name in files.items():
        if name:
            yield inputs.file(f"cloud_init {key}", Path(name))


def _archives(o: _FromPackages) -> Iterator[Input]:
    """The archives that packages come from, and keys that are copied into the image because no package brings them."""
    if o.mirrors:
        sources = apt.named_sources(o.mirrors, o.distribution, o.suite, o.components)
    else:
        sources = apt.machine_sources(o.distribution, o.suite, o.components)
    written = apt.named_sources(o.image_mirrors, o.distribution, o.suite, o.components) or sources
    for role, archives in {"mirrors": sources, "image_mirrors": written}.items():
        yield inputs.content(role, role, apt.render(map(apt.without_credentials, archives)))
    keyrings = {name for source in written for name in source.options.get("Signed-By", "").split()}
    for name in sorted(keyrings):
        if name.startswith("/") and f"{o.distribution}-archive" not in name:
            yield inputs.file("keyring", Path(name))
