"""What a template leaves out: a distro's ISO, kernel and kickstart, and the variables that a kickstart may use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from imagebuilder.autoinstall.distro import Distro, load_distro
from imagebuilder.builders.hardware import GUEST_VIEW
from imagebuilder.builders.qemuoptions import QemuOptions
from imagebuilder.errors import TemplateError
from imagebuilder.plugins import BuildContext

HOSTNAME = "localhost"
"""A guest's host name when the template gives none: a build's own name would keep builds from sharing their base."""


def with_distro(options: QemuOptions) -> tuple[Distro | None, QemuOptions]:
    """The options with what their `distro` brings; any key that the template has itself wins."""
    if not options.distro:
        return None, options
    distro = load_distro(options.distro)
    typed = bool(options.boot_command or options.boot_steps)
    brought: dict[str, Any] = {"http_templates": distro.http_templates, "memory": distro.memory}
    if not options.urls:
        brought |= {"iso_urls": distro.iso_url, "iso_checksum": distro.iso_checksum}
    if not typed and distro.kernel:
        initrd = tuple(f"iso:{path}" for path in distro.initrd)
        brought |= {"kernel": f"iso:{distro.kernel}", "initrd": initrd, "kernel_args": distro.kernel_args}
    elif not typed:
        brought |= {"boot_command": distro.boot_command, "boot_wait": distro.boot_wait}
    update = {key: value for key, value in brought.items() if value and key not in options.model_fields_set}
    return distro, options.model_copy(update=update)


def kickstart_variables(
    options: QemuOptions, context: BuildContext, distro: Distro | None, dot: Mapping[str, Any]
) -> dict[str, object]:
    """What a kickstart template finds: the template's variables, and what only the build knows (which wins)."""
    disk = "vda" if options.disk_interface == "virtio" else "sda"
    return {
        **context.variables,
        "http_ip": GUEST_VIEW, "http_port": dot["HTTPPort"], "http_url": f"http://{GUEST_VIEW}:{dot['HTTPPort']}",
        "ssh_public_key": dot["SSHPublicKey"], "ssh_username": options.ssh_username,
        "ssh_password": options.ssh_password, "name": dot["Name"], "hostname": hostname(options.vm_name),
        "disk": disk, "efi": options.efi, "distro": distro,
    }  # fmt: skip


def hostname(name: str) -> str:
    """A machine's name as a host name (RFC 1123): without the extension of its disk; HOSTNAME when it has none."""
    word = name.removesuffix(".qcow2").removesuffix(".raw").removesuffix(".img")
    return "".join(c if c.isascii() and c.isalnum() else "-" for c in word).strip("-").lower()[:63] or HOSTNAME


def yaml_object(name: str) -> dict[str, Any]:
    """The object that a YAML file holds; {} for no file."""
    if not name:
        return {}
    try:
        found = yaml.safe_load(Path(name).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise TemplateError(f"'{name}' is not YAML: {error}") from error
    if not isinstance(found, dict):
        raise TemplateError(f"'{name}' must hold an object (key: value)")
    return found
