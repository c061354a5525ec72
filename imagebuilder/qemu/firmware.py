"""UEFI firmware of the host, found through QEMU's firmware descriptors (QEMU: docs/interop/firmware.json).

A descriptor says where code and variable template lie, for which processor and machine types, with what features.
"""

from __future__ import annotations

import fnmatch
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagebuilder.errors import ImgbuildError

log = logging.getLogger(__name__)

_PACKAGES = {"x86_64": "ovmf", "i386": "ovmf-ia32", "aarch64": "qemu-efi-aarch64", "arm": "qemu-efi-arm"}
_SYSTEM = ("/usr/share/qemu/firmware", "/etc/qemu/firmware")
_ALIASES = {"pc": "pc-i440fx-", "q35": "pc-q35-", "virt": "virt-"}


@dataclass(frozen=True)
class Firmware:
    """Flash images: the code, shared and read-only; `vars`, the template that a machine's own variables begin as."""

    code: Path
    vars: Path | None = None
    code_format: str = "raw"
    vars_format: str = "raw"
    smm: bool = False  # needs `-machine smm=on`: variables that only the firmware may write
    secure_boot: bool = False


def find(
    architecture: str, machine_type: str, *, secure_boot: bool = False, directories: Sequence[Path] | None = None
) -> Firmware:
    """The first firmware, by the order of the descriptors, that fits; with Secure Boot and its keys, or without.

    Raises ImgbuildError that names the package to install.
    """
    known = descriptors(directories)
    passes = [{"secure-boot", "enrolled-keys"}] if secure_boot else [set[str](), {"secure-boot"}]
    for wanted in passes:
        for path in known:
            firmware = _read(path, architecture, machine_type, wanted)
            if firmware is not None:
                return firmware
    kind = "UEFI firmware with Secure Boot" if secure_boot else "UEFI firmware"
    package = _PACKAGES.get(architecture, "ovmf")
    hint = f"install it: apt-get install {package}; or name it: 'efi_firmware_code', 'efi_firmware_vars'"
    if secure_boot and (machine_type == "pc" or machine_type.startswith("pc-i440fx")):
        hint = "Secure Boot needs 'machine_type': 'q35'"
    raise ImgbuildError(f"there is no {kind} for '{machine_type}' machines ({architecture}) on this host", hint=hint)


def given(code: Path, variables: Path | None = None) -> Firmware:
    """Firmware that the person names; raw or qcow2 is told from the files. Raises ImgbuildError when one is missing."""
    for path in (code, variables):
        if path is not None and not path.is_file():
            raise ImgbuildError(f"the firmware file '{path}' does not exist")
    return Firmware(code, variables, _format(code), _format(variables) if variables else "raw")


def descriptors(directories: Sequence[Path] | None = None) -> list[Path]:
    """All descriptors in QEMU's order: by file name; a later directory hides the same name in earlier ones.

    An empty file, or a link to /dev/null, hides a descriptor without a replacement.
    """
    if directories is None:
        configured = Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config").expanduser()
        directories = [*map(Path, _SYSTEM), configured / "qemu/firmware"]
    found: dict[str, Path] = {}
    for directory in directories:
        found.update({path.name: path for path in directory.glob("*.json")})
    return [found[name] for name in sorted(found) if found[name].exists() and found[name].stat().st_size > 0]


def _read(path: Path, architecture: str, machine_type: str, wanted: set[str]) -> Firmware | None:
    """The firmware of a descriptor when it fits and is there; a descriptor that can't be understood is passed over."""
    try:
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        mapping, features = document["mapping"], set(document.get("features", ()))
        fits = any(
            target["architecture"] == architecture and _matches(machine_type, target["machines"])
            for target in document["targets"]
        )
        kind = features & {"secure-boot", "enrolled-keys"}
        if not fits or kind != wanted or "uefi" not in document["interface-types"] or mapping["device"] != "flash":
            return None
        if mapping.get("mode", "split") == "combined":
            return None
        code, template = mapping["executable"], mapping.get("nvram-template")
        firmware = Firmware(
            Path(code["filename"]), Path(template["filename"]) if template else None,
            code["format"], template["format"] if template else "raw",
            smm="requires-smm" in features, secure_boot="enrolled-keys" in features,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.debug("firmware descriptor %s: %r", path, error)
        return None
    return firmware if all(part is None or part.is_file() for part in (firmware.code, firmware.vars)) else None


def _matches(machine_type: str, patterns: Sequence[str]) -> bool:
    full = _ALIASES.get(machine_type, machine_type)
    return any(fnmatch.fnmatchcase(full, pattern) for pattern in patterns)


def _format(path: Path) -> str:
    with path.open("rb") as image:
        return "qcow2" if image.read(4) == b"QFI\xfb" else "raw"
