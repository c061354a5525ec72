"""What builders, provisioners, post-processors and communicators are, and where each is found by its name.

A component is a class with `Options` (its keys) and a constructor `(options, context)` that starts nothing. Built-in
ones stand in the literal table; other people's come through the entry point groups `imgbuild.builders`,
`imgbuild.provisioners` and `imgbuild.post_processors`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, Protocol

from imagebuilder.layers.buildlayers import BuildLayers
from imagebuilder.layers.chain import Step
from imagebuilder.options import Options
from imagebuilder.ui import Ui

Kind = Literal["builders", "provisioners", "post_processors"]

BUILT_IN: Mapping[Kind, Mapping[str, str]] = {
    "builders": {
        "qemu": "imagebuilder.builders.qemu:Qemu",
        "bootstrap": "imagebuilder.builders.bootstrap:Bootstrap",
    },
    "provisioners": {
        "shell": "imagebuilder.provisioners.shell:Shell",
        "file": "imagebuilder.provisioners.file:File",
        "shell-local": "imagebuilder.provisioners.shell_local:ShellLocal",
        "breakpoint": "imagebuilder.provisioners.breakpoint:Breakpoint",
        "sleep": "imagebuilder.provisioners.sleep:Sleep",
        "reboot": "imagebuilder.provisioners.reboot:Reboot",
    },
    "post_processors": {
        "manifest": "imagebuilder.postprocessors.manifest:Manifest",
        "checksum": "imagebuilder.postprocessors.checksum:Checksum",
        "compress": "imagebuilder.postprocessors.compress:Compress",
        "artifice": "imagebuilder.postprocessors.artifice:Artifice",
        "shell-local": "imagebuilder.postprocessors.shell_local:ShellLocal",
        "vagrant": "imagebuilder.postprocessors.vagrant:Vagrant",
        "export": "imagebuilder.postprocessors.export:Export",
    },
}


class OnError(StrEnum):
    """What happens to the machine when a build fails."""

    CLEANUP = "cleanup"
    ABORT = "abort"
    ASK = "ask"
    RUN_CLEANUP_PROVISIONER = "run-cleanup-provisioner"


class Renderer(Protocol):
    """The template engine of a build: renders `{{ ... }}`. `dot` is what `.Path` and friends find (a field that is
    missing is an error); `build` is what the function `build` finds. Raises TemplateError."""

    def render(
        self, text: str, dot: Mapping[str, Any] | None = None, build: Mapping[str, str] | None = None
    ) -> str: ...


@dataclass(frozen=True)
class BuildContext:
    """What every component of one build may know."""

    build_name: str
    builder_type: str
    renderer: Renderer
    template_path: Path | None = None  # None: standard input
    variables: Mapping[str, str] = field(default_factory=dict)
    sensitive: frozenset[str] = frozenset()  # values, not names
    run_uuid: str = ""
    debug: bool = False
    force: bool = False
    on_error: OnError = OnError.CLEANUP
    template_digest: str = ""  # sha256 of the template's bytes


class Communicator(Protocol):
    """A way into the guest. Every method raises GuestError when the guest can't be reached."""

    def run(
        self,
        command: str,
        *,
        on_line: Callable[[str], None] | None = None,
        on_error_line: Callable[[str], None] | None = None,
        timeout: float | None = None,
    ) -> int | None:
        """Run a shell command in the guest; its exit status, or None when the connection was lost meanwhile."""

    def upload(self, content: bytes | Path, destination: str, mode: int = 0o644) -> None: ...

    def upload_directory(self, source: Path, destination: str, *, contents_only: bool) -> None:
        """`contents_only`: what is in `source` goes into `destination`; else `destination`/`source.name` is made."""

    def download(self, source: str, destination: Path) -> None: ...

    def download_directory(self, source: str, destination: Path, *, contents_only: bool) -> None: ...

    def reconnect(self, timeout: float) -> None:
        """Drop the connection and wait until the guest answers again."""


@dataclass(frozen=True)
class Guest:
    """A running machine that can be reached. `data` is what `{{build `Host`}}` finds; `http_address` is "ip:port"."""

    communicator: Communicator | None  # None: communicator "none"
    data: Mapping[str, str]
    http_address: str = ""


@dataclass(frozen=True)
class Disk:
    """One finished disk image; sizes in bytes."""

    path: Path
    format: str  # qcow2, raw
    virtual_size: int


@dataclass(frozen=True)
class Artifact:
    """What a builder or post-processor made. `files` are all of its files; `disks` those that are disk images.
    `directory`: what is removed when the artifact is; None when only `files` are."""

    builder_id: str
    id: str
    description: str
    files: tuple[Path, ...]
    disks: tuple[Disk, ...] = ()
    directory: Path | None = None
    state: Mapping[str, str] = field(default_factory=dict)  # accelerator, architecture ...


@dataclass(frozen=True)
class Processed:
    """A post-processor's outcome. `keep_input`: None lets `keep_input_artifact` decide, True always keeps."""

    artifact: Artifact
    keep_input: bool | None = None


class Provisioner(Protocol):
    def provision(self, guest: Guest, ui: Ui) -> None:
        """Change the guest. Raises GuestError, CommandError."""


class PostProcessor(Protocol):
    def process(self, artifact: Artifact, ui: Ui) -> Processed:
        """Make something of the artifact; what it makes appears complete or not at all. The input is never touched."""


class BuildSession(Protocol):
    """One run of a builder; it owns what the run makes."""

    def use(self, layers: BuildLayers) -> None:
        """Go on from these, and add to them; called first of all."""

    @property
    def has_disks(self) -> bool:
        """Whether the machine that was shut down is in layers already: no guest has to run for the artifact."""

    def guest(self, *, end: bool = True) -> AbstractContextManager[Guest]:
        """Go on from a layer, or install or boot; yields when provisioners can run. `end`: at the end of the block the
        machine is shut down and its disks are kept; else it is only stopped."""

    def keep(self, step: Step, guest: Guest) -> None:
        """Keep what the guest is after this step as a layer, where one can be kept."""

    def artifact(self) -> Artifact:
        """Compact, convert, checksum; put the result under its final name."""


@dataclass(frozen=True)
class Outline:
    """What a builder would do, as `imgbuild plan` shows it."""

    steps: tuple[str, ...]
    argv: tuple[str, ...]  # QEMU's; what only a run can know stands in <angle brackets>
    options: Options  # as they are once everything that fills them in (a distro) has done so


class Builder(Protocol):
    def outline(self) -> Outline:
        """What a session would do; nothing is started for it."""

    def steps(self, ui: Ui, *, fetch: bool) -> tuple[Step, Step, Step]:
        """Its own steps, the base, the shutdown and the export, with all that can change their results.

        `fetch`: media may be downloaded to find out what they are.
        """

    def session(self, ui: Ui, *, partial: bool) -> AbstractContextManager[BuildSession]:
        """Check the host and claim the output; whatever is unfinished at the end of the block is removed. `partial`:
        no artifact will be made."""


def names(kind: Kind) -> list[str]:
    """Every name that can stand as `type`."""
    return sorted(
        {*BUILT_IN[kind], *(entry.name for entry in importlib.metadata.entry_points(group=f"imgbuild.{kind}"))}
    )


def load(kind: Kind, name: str) -> type[Any] | None:
    """The class of that name, or None. Its attribute `Options` is the model of its keys."""
    if name in BUILT_IN[kind]:
        module, _, attribute = BUILT_IN[kind][name].partition(":")
        found: type[Any] = getattr(importlib.import_module(module), attribute)
        return found
    for entry in importlib.metadata.entry_points(group=f"imgbuild.{kind}", name=name):
        return entry.load()  # type: ignore[no-any-return]
    return None


def options_of(kind: Kind, name: str) -> type[Options] | None:
    """The model of a component's keys."""
    component = load(kind, name)
    return component.Options if component else None
