"""Components whose options hold `{{build ...}}`: their values are known, and they are made, when the guest runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from imagebuilder.errors import TemplateError
from imagebuilder.plugins import Artifact, BuildContext, Guest, Processed
from imagebuilder.templates.components import Source, decode
from imagebuilder.templates.interpolate import Engine
from imagebuilder.ui import Ui


@dataclass(frozen=True)
class _Awaits:
    component: type[Any]
    source: Source
    engine: Engine
    context: BuildContext

    def make(self, build: Mapping[str, str]) -> Any:
        """The component itself. Raises TemplateError when its options are wrong now that they are known."""
        decoded = decode(self.component.Options, self.source, self.engine, build)
        if decoded.options is None:
            raise TemplateError(decoded.problems)
        return self.component(decoded.options, self.context)


@dataclass(frozen=True)
class AwaitsGuest(_Awaits):
    """A provisioner."""

    def provision(self, guest: Guest, ui: Ui) -> None:
        self.make(guest.data).provision(guest, ui)


@dataclass(frozen=True)
class AwaitsArtifact(_Awaits):
    """A post-processor; `build` knows the artifact's state and, as ID, its id."""

    def process(self, artifact: Artifact, ui: Ui) -> Processed:
        processed: Processed = self.make({"ID": artifact.id, **artifact.state}).process(artifact, ui)
        return processed
