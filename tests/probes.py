"""Components for tests of templates, found as other people's are: through entry points of an installed distribution."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field

from imagebuilder.options import LATE, Bool, Duration, Int, Lines, Options, Size, Text, TextMap, Texts
from imagebuilder.plugins import Artifact, BuildContext, Guest, Outline, Processed
from imagebuilder.ui import Ui


class Nested(Options):
    create: Texts = ()
    level: Int = 0


class BuilderOptions(Options):
    """Something of everything that real builders have."""

    memory: Int = Field(512, ge=1)
    disk_size: Size = 2**30
    disk_interface: Literal["ide", "virtio", "virtio-scsi"] = "virtio"
    headless: Bool = True
    shutdown_timeout: Duration = 300.0
    iso_url: Text = ""
    iso_checksum: Text = ""
    http_content: TextMap = Field({})
    boot_command: Annotated[Lines, LATE] = ()
    qemuargs: Annotated[tuple[tuple[str, ...], ...], LATE] = ()
    nested: Nested = Nested()

    renamed: ClassVar[dict[str, str]] = {"shutdown_wait": "shutdown_timeout"}

    @classmethod
    def upgrade(cls, raw: dict[str, Any]) -> Iterator[tuple[str, str]]:
        if "iso_md5" in raw:
            raw["iso_checksum"] = f"md5:{raw.pop('iso_md5')}"
            yield "iso_md5", f"iso_checksum: '{raw['iso_checksum']}'"

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.iso_url and not self.iso_checksum:
            yield "iso_checksum", "is missing"
        if self.iso_checksum == "md5:bad":
            yield "iso_checksum", "there is no such digest"

    def doubts(self) -> Iterator[tuple[str, str]]:
        if self.iso_checksum == "none":
            yield "iso_checksum", "'none': nobody notices a broken file"


class Builder:
    Options = BuilderOptions

    def __init__(self, options: BuilderOptions, context: BuildContext) -> None:
        self.options, self.context = options, context

    def outline(self) -> Outline:
        return Outline((), (), self.options)


class ProvisionerOptions(Options):
    inline: Texts = ()
    environment_vars: Texts = ()
    execute_command: Annotated[Text, LATE] = "{{.Vars}} {{.Path}}"

    def problems(self) -> Iterator[tuple[str, str]]:
        if not self.inline:
            yield "inline", "is missing"


class Provisioner:
    Options = ProvisionerOptions

    def __init__(self, options: ProvisionerOptions, context: BuildContext) -> None:
        self.options, self.context = options, context

    def provision(self, guest: Guest, ui: Ui) -> None:
        ui.say(" ".join(self.options.inline))


class PostProcessorOptions(Options):
    output: Annotated[Text, LATE] = "{{.BuildName}}"
    label: Text = ""


class PostProcessor:
    Options = PostProcessorOptions

    def __init__(self, options: PostProcessorOptions, context: BuildContext) -> None:
        self.options, self.context = options, context

    def process(self, artifact: Artifact, ui: Ui) -> Processed:
        ui.say(self.options.label)
        return Processed(artifact)


def install(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the components into a directory that is put on the path: builders probe and probe2, and so on."""
    metadata = directory / "probes-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: probes\nVersion: 1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(
        "[imgbuild.builders]\nprobe = tests.probes:Builder\nprobe2 = tests.probes:Builder\n"
        "[imgbuild.provisioners]\nnote = tests.probes:Provisioner\n"
        "[imgbuild.post_processors]\nstamp = tests.probes:PostProcessor\nseal = tests.probes:PostProcessor\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(directory))
