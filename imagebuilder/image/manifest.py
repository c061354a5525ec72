"""manifest.json of a finished image: what it is, and the digests of all its files. docs/manifest.md tells every key.

It is written last, so a directory that has one is a finished image; it is all that the provisioning server knows.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from imagebuilder.digests import digests
from imagebuilder.errors import ChecksumError, ImgbuildError, StoreError
from imagebuilder.ui import Ui

NAME = "manifest.json"


def _inside(name: str) -> str:
    """A name can't lead out of the directory."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or str(path) in ("", "."):
        raise ValueError(f"'{name}' is no name of a file in the image's directory")
    return name


FileName = Annotated[str, AfterValidator(_inside)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # a later version may say more


class ManifestFile(_Part):
    """One file. The keys from `format` on are those of a disk."""

    name: FileName
    size: int = Field(ge=0)  # bytes
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    kind: Literal["disk", "nvram", "other"] = "other"
    format: str | None = None
    virtual_size: int | None = None  # bytes, as the guest sees it
    actual_size: int | None = None  # bytes on the host where it was built
    compression: str | None = None
    backing: str | None = None  # the file it is an overlay on


class Manifest(_Part):
    """What is in manifest.json."""

    manifest_version: Literal[1] = 1
    build_name: str
    builder_type: str
    created: AwareDatetime
    architecture: str = ""
    firmware: Literal["bios", "uefi"] = "bios"
    accelerator: str = ""
    template_sha256: str = ""
    versions: Mapping[str, str] = Field(default_factory=dict)
    files: tuple[ManifestFile, ...]

    @property
    def disks(self) -> tuple[ManifestFile, ...]:
        """The disks in the order in which the machine had them; the first is the system's."""
        return tuple(file for file in self.files if file.kind == "disk")

    def text(self) -> str:
        """The file's content."""
        return self.model_dump_json(indent=2, exclude_none=True) + "\n"


def load_manifest(path: Path) -> Manifest:
    """Read a manifest.json, or that of a directory. Raises StoreError (not there), ImgbuildError (not one of ours)."""
    file = path / NAME if path.is_dir() else path
    try:
        return Manifest.model_validate_json(file.read_bytes())
    except OSError as error:
        raise StoreError(f"can't read '{file}': {error.strerror}", hint="is this a finished image?") from error
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors()[:3])
        raise ImgbuildError(f"'{file}' is no manifest of an image: {wrong}") from error


def verify(manifest: Manifest, directory: Path, ui: Ui) -> None:
    """Check sizes, then digests. ChecksumError names every file that is not what it should be."""
    wrong = [problem for file in manifest.files if (problem := _size_problem(file, directory / file.name))]
    if not wrong:
        found = digests([directory / file.name for file in manifest.files], ["sha256"], ui)
        wrong = [
            f"'{file.name}' has other content than when it was built"
            for file in manifest.files
            if found[directory / file.name]["sha256"] != file.sha256
        ]
    if wrong:
        raise ChecksumError(f"the image in '{directory}' is damaged: {'; '.join(wrong)}", hint="build or copy it again")


def _size_problem(file: ManifestFile, path: Path) -> str:
    if not path.is_file():
        return f"'{file.name}' is missing"
    size = path.stat().st_size
    return f"'{file.name}' has {size} bytes instead of {file.size}" if size != file.size else ""


def utc(seconds: float) -> datetime:
    """Unix seconds as the manifest writes a time."""
    return datetime.fromtimestamp(int(seconds), UTC)
