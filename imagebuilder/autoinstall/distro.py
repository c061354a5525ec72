"""Releases of distributions: where their installer is, how it boots, what answers its questions.

A release is a file, distros/NAME.yaml, and this model is its format: distros/README.md lists the keys for authors.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from imagebuilder import paths
from imagebuilder.errors import Position, Problem, TemplateError
from imagebuilder.media.checksum import parse_checksum
from imagebuilder.options import Duration, Int, Lines, Size, Text
from imagebuilder.suggestion import did_you_mean


class Family(StrEnum):
    """Whose installer it is, and so whose answer files."""

    REDHAT = "redhat"
    DEBIAN = "debian"
    UBUNTU = "ubuntu"
    SUSE = "suse"
    OTHER = "other"


class Flavour(StrEnum):
    """What `kickstart.check` checks an answer file as."""

    KICKSTART = "kickstart"
    PRESEED = "preseed"
    AUTOINSTALL = "autoinstall"
    CLOUD_CONFIG = "cloud-config"
    META_DATA = "meta-data"
    AUTOYAST = "autoyast"


class Firmware(StrEnum):
    """What the installer and the installed system boot from."""

    BIOS = "bios"
    EFI = "efi"


def _paths(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _text_of_version(value: Any) -> Any:
    """9 and 22.04 are numbers in YAML; a version is text (and 22.10 would have lost its zero)."""
    if isinstance(value, float):
        raise ValueError(f"write it in quotes: '{value}'")
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Answer(_Model):
    """One file that the embedded server renders for the installer."""

    template: Text = Field(description="Template in kickstarts/, like 'redhat.ks.j2'")
    path: Annotated[tuple[str, ...], BeforeValidator(_paths)] = Field(
        min_length=1, description="URL path or paths it is served at, like '/ks.cfg'"
    )
    flavour: Flavour = Field(description="What it is checked as: kickstart, preseed, autoinstall, ...")
    version: Text = Field("", description="Version of its syntax: for kickstart 'RHEL9', 'F41'")

    @field_validator("path")
    @classmethod
    def _absolute(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for path in value:
            if not path.startswith("/") or "{{" in path:
                raise ValueError(f"'{path}' must begin with '/' and hold no template")
        return value

    @model_validator(mode="after")
    def _has_version(self) -> Answer:
        if self.flavour is Flavour.KICKSTART and not self.version:
            raise ValueError("a kickstart needs a 'version', like 'RHEL9'")
        return self


class Repository(_Model):
    """Packages that the installer takes from the network."""

    name: Text = Field(min_length=1, description="Its name, like 'BaseOS'; the first one has the installation tree")
    metalink: Text = Field("", description="URL of a metalink: mirrors near the machine, with digests")
    mirrorlist: Text = Field("", description="URL of a list of mirrors")
    url: Text = Field("", description="URL of the repository itself")
    path: Text = Field("", description="Where it lies on a mirror of one's own (the variable 'mirror')")

    @model_validator(mode="after")
    def _is_somewhere(self) -> Repository:
        if sum(map(bool, (self.metalink, self.mirrorlist, self.url))) != 1:
            raise ValueError("give one of 'metalink', 'mirrorlist' and 'url'")
        return self


class Distro(_Model):
    """One release of a distribution for one architecture. Sizes are bytes, times seconds."""

    name: Text = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$", description="Name of the file without '.yaml'")
    title: Text = Field(min_length=1, description="Name for people, like 'Rocky Linux 9'")
    family: Family = Field(description="redhat, debian, ubuntu, suse or other")
    version: Annotated[str, BeforeValidator(_text_of_version)] = Field(description="Release, in quotes: '9', '24.04'")
    arch: Text = Field("x86_64", description="Architecture in QEMU's spelling")
    iso_url: Annotated[tuple[str, ...], BeforeValidator(_paths)] = Field(
        min_length=1, description="URL or URLs of the installer's ISO, tried in order"
    )
    iso_checksum: Text = Field(description="As in a template: 'sha256:...' or 'file:URL' of the published list")
    kernel: Text = Field("", description="Path of the kernel in the ISO, for a direct boot; with 'initrd'")
    initrd: Annotated[tuple[str, ...], BeforeValidator(_paths)] = Field((), description="Path or paths of the initrd")
    kernel_args: Text = Field("", description="Arguments of the kernel; a late template with .HTTPIP and .HTTPPort")
    boot_command: Lines = Field((), description="What is typed at the ISO's own boot prompt instead; a late template")
    boot_wait: Duration = Field(10.0, description="Pause before the boot command is typed")
    autoinstall: Answer = Field(description="The answer file: template, path, flavour, version")
    extra: tuple[Answer, ...] = Field((), description="More files for the installer, like cloud-init's meta-data")
    memory_mib_min: Int = Field(2048, ge=64, description="Memory the installer needs, in MiB")
    disk_size: Size = Field(10 << 30, ge=1 << 20, description="Disk a default installation fits on, like '10G'")
    cpu_model: Text = Field("", description="Least CPU of QEMU's it runs on, when the default is too old")
    firmware: tuple[Firmware, ...] = Field(
        (Firmware.BIOS, Firmware.EFI), min_length=1, description="Firmware it boots from, the preferred first"
    )
    os_variant: Text = Field("", description="libosinfo's short id, like 'rocky9'")
    end_of_life: date | None = Field(None, description="Last day of free support, YYYY-MM-DD")
    repositories: tuple[Repository, ...] = Field((), description="Where an installer without packages takes them from")
    packages: tuple[str, ...] = Field((), description="Packages the templates install beside the smallest system")

    @field_validator("iso_checksum")
    @classmethod
    def _understood(cls, value: str) -> str:
        parse_checksum(value)
        return value

    @model_validator(mode="after")
    def _boots_somehow(self) -> Distro:
        if bool(self.kernel) != bool(self.initrd):
            raise ValueError("'kernel' and 'initrd' go together")
        if not self.kernel and not self.boot_command:
            raise ValueError("give 'kernel' and 'initrd', or a 'boot_command'")
        served = [path for answer in self.answers for path in answer.path]
        twice = sorted({path for path in served if served.count(path) > 1})
        if twice:
            raise ValueError(f"'{twice[0]}' is served twice")
        return self

    @property
    def answers(self) -> tuple[Answer, ...]:
        """Every file that is rendered for the installer."""
        return (self.autoinstall, *self.extra)

    @property
    def http_templates(self) -> dict[str, str]:
        """URL path -> template in kickstarts/, as the builder's option of that name."""
        return {path: answer.template for answer in self.answers for path in answer.path}

    @property
    def memory(self) -> int:
        """MiB, as the builder's option of that name."""
        return self.memory_mib_min


_MODELS: dict[str, type[BaseModel]] = {"autoinstall": Answer, "extra": Answer, "repositories": Repository}


def distro_names() -> list[str]:
    """Every release that can be named, in the order people count: debian-9 before debian-12."""
    found = (path.stem for path in paths.shipped("distros").glob("*.yaml"))
    return sorted(
        found, key=lambda name: [part.zfill(6) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    )


def load_distro(name: str) -> Distro:
    """The release of that name. TemplateError when there is none, or with everything that is wrong with its file."""
    path = paths.shipped("distros") / f"{name}.yaml"
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", name) or not path.is_file():
        known = distro_names()
        hint = did_you_mean(name, known) or f"known are {', '.join(known) or 'none'}"
        raise TemplateError([Problem(f"unknown distro '{name}'", hint=hint)])
    return read_distro(path)


def read_distro(path: Path) -> Distro:
    """A release's file. TemplateError with everything that is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8")
        document = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = Position(str(path), mark.line + 1, mark.column + 1) if mark else None
        raise TemplateError([Problem(error.problem or "is not YAML", place)]) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise TemplateError(f"can't read '{path}': {error}") from error
    if not isinstance(document, dict):
        raise TemplateError(f"'{path}' must be a mapping of keys to values")
    try:
        distro = Distro.model_validate(document)
    except ValidationError as error:
        raise TemplateError([_problem(path, text, item) for item in error.errors()]) from error
    if distro.name != path.stem:
        message = f"'name' is '{distro.name}', and the file is '{path.name}'"
        raise TemplateError([Problem(message, _line(path, text, ["name"]))])
    return distro


def _problem(path: Path, text: str, item: Any) -> Problem:
    """One of pydantic's complaints, with the line of its key."""
    parts = [str(part) for part in item["loc"]]
    hint = None
    if item["type"] == "extra_forbidden":
        model = _MODELS.get(parts[0] if len(parts) > 1 else "", Distro)
        message, hint = f"unknown key '{parts[-1]}'", did_you_mean(parts[-1], model.model_fields)
    elif item["type"] == "missing":
        message = f"key '{'.'.join(parts)}' is missing"
    else:
        reason = item["msg"].removeprefix("Value error, ")
        message = f"'{'.'.join(parts)}': {reason[0].lower()}{reason[1:]}" if parts else reason
    return Problem(message, _line(path, text, parts), hint)


def _line(path: Path, text: str, keys: Iterable[str]) -> Position:
    """Where the innermost of the keys stands, by what the file looks like; its beginning when that can't be told."""
    place, lines = Position(str(path), 1, 1), text.splitlines()
    start = 0
    for key in keys:
        for number in range(start, len(lines)):
            found = re.match(rf"[\s-]*{re.escape(key)}\s*:", lines[number])
            if found:
                column = len(lines[number]) - len(lines[number].lstrip(" -")) + 1
                place, start = Position(str(path), number + 1, column), number
                break
    return place
