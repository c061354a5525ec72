"""What the parts of one run know of each other, and what a builder adds to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from imagebuilder.builders.hardware import FirstBoot
from imagebuilder.builders.qemuoptions import MachineOptions
from imagebuilder.media.httpserver import Access, HttpServer
from imagebuilder.plugins import BuildContext
from imagebuilder.ssh import keys as sshkeys
from imagebuilder.ui import Ui


@dataclass(frozen=True)
class Run:
    """`data` is the dot of late templates."""

    working: Path  # the disks while they are worked on
    runtime: Path  # private: sockets, keys, logs, media
    ui: Ui
    key: sshkeys.KeyPair | None
    http: HttpServer | None
    data: Mapping[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """What a builder adds: what is served, and how the machine first comes up."""

    @property
    def options(self) -> MachineOptions: ...

    @property
    def context(self) -> BuildContext: ...

    def server(self, runtime: Path, run: Callable[[], Run], on_request: Callable[[Access], None]) -> HttpServer | None:
        """The HTTP server of the build, or None when nothing is served. `run` is known when the guest asks."""

    def first_boot(self, run: Run) -> FirstBoot:
        """Get media and disks ready."""

    def image(self, run: Run) -> Path | None:
        """The existing image that the first disk stands on, fetched; None when there is none."""

    def resumed(self, run: Run, disks: Sequence[Path]) -> FirstBoot:
        """The machine once it can be reached, with these disks: what a layer goes on with, its media as they were."""
