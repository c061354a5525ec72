"""The plan of one build: its builder, provisioners and post-processors with their options decoded."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import Field

from imagebuilder import plugins
from imagebuilder.errors import Position, Problem, TemplateError
from imagebuilder.gotemplate.tokens import ExpressionError
from imagebuilder.options import Bool, Duration, Int, Options, Text, Texts, kind
from imagebuilder.plugins import BuildContext, Builder, Kind, PostProcessor, Provisioner
from imagebuilder.suggestion import did_you_mean
from imagebuilder.templates.components import Decoded, Source, decode
from imagebuilder.templates.deferred import AwaitsArtifact, AwaitsGuest
from imagebuilder.templates.interpolate import Engine, Unset
from imagebuilder.templates.templatefile import Entry, Template
from imagebuilder.templates.tree import Route


@dataclass(frozen=True)
class ProvisionerPlan:
    """A provisioner of one build; times are seconds, 0 is none."""

    type: str
    component: Provisioner
    options: Options
    pause_before: float
    timeout: float
    max_retries: int
    position: Position
    cache: bool = True  # false: never kept as a layer
    cache_key: str = ""  # what its result depends on and we can't see


@dataclass(frozen=True)
class PostProcessorPlan:
    """A step of a chain; `keep_input_artifact` None: the template leaves it to the post-processor."""

    type: str
    name: str
    component: PostProcessor
    options: Options
    keep_input_artifact: bool | None


@dataclass(frozen=True)
class BuildPlan:
    """All that one build needs to run."""

    context: BuildContext
    builder: Builder
    builder_options: Options
    provisioners: tuple[ProvisionerPlan, ...] = ()
    error_cleanup: ProvisionerPlan | None = None
    post_processors: tuple[tuple[PostProcessorPlan, ...], ...] = ()


class _Selection(Options):
    """The builds a component is for."""

    only: Texts = ()
    except_: Texts = Field((), alias="except")

    def applies_to(self, build: str) -> bool:
        return build in self.only if self.only else build not in self.except_


class _ProvisionerKeys(_Selection):
    """Keys of a provisioner that are not its type's own."""

    pause_before: Duration = 0.0
    timeout: Duration = 0.0
    max_retries: Int = Field(0, ge=0)
    cache: Bool = True
    cache_key: Text = ""


class _PostProcessorKeys(_Selection):
    """Keys of a post-processor that are not its type's own."""

    keep_input_artifact: Bool | None = None


S = TypeVar("S", bound=_Selection)


class Planner:
    """Plans one build; what is wrong and what is doubtful gathers in `problems` and `warnings`."""

    def __init__(self, template: Template, engine: Engine, context: BuildContext, builds: Collection[str]) -> None:
        self.template, self.engine, self.context, self.builds = template, engine, context, builds
        self.name = context.build_name
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []

    def plan(self, builder: Entry, skipped: Collection[str]) -> BuildPlan | None:
        """The plan, or None when there are problems. `skipped` are post-processors that -except names."""
        made = self.component("builders", builder, self.source(builder, builder.raw), build={})
        provisioners = [self.provisioner(entry) for entry in self.template.provisioners]
        cleanup = self.template.error_cleanup
        error_cleanup = self.provisioner(cleanup) if cleanup else None
        chains = [self.chain(chain, skipped) for chain in self.template.post_processors]
        if self.problems or made is None:
            return None
        return BuildPlan(
            self.context,
            made[0],
            made[1],
            tuple(step for step in provisioners if step is not None),
            error_cleanup,
            tuple(chain for chain in chains if chain),
        )

    def provisioner(self, entry: Entry) -> ProvisionerPlan | None:
        keys, rest = self.keys(_ProvisionerKeys, entry)
        overrides = rest.pop("override", None)
        moved = self.override(entry, overrides, rest)
        if not keys.applies_to(self.name):
            return None
        made = self.component("provisioners", entry, self.source(entry, rest, moved))
        if made is None:
            return None
        where = self.template.document.position(entry.route)
        times = (keys.pause_before, keys.timeout, keys.max_retries)
        return ProvisionerPlan(entry.type, made[0], made[1], *times, where, keys.cache, keys.cache_key)

    def chain(self, entries: tuple[Entry, ...], skipped: Collection[str]) -> tuple[PostProcessorPlan, ...]:
        """The steps for this build; one that -except names ends the chain."""
        steps: list[PostProcessorPlan] = []
        for entry in entries:
            name = self.rendered(entry.name or entry.type)
            if name in skipped:
                break
            keys, rest = self.keys(_PostProcessorKeys, entry)
            made = None
            if keys.applies_to(self.name):
                made = self.component("post_processors", entry, self.source(entry, rest))
            if made is not None:
                steps.append(PostProcessorPlan(entry.type, name, made[0], made[1], keys.keep_input_artifact))
        return tuple(steps)

    # --- keys that belong to no component

    def keys(self, model: type[S], entry: Entry) -> tuple[S, dict[str, Any]]:
        """The keys of `model`, and what is left for the component."""
        names = {field.alias or name for name, field in model.model_fields.items()}
        mine = {key: value for key, value in entry.raw.items() if key in names}
        decoded = decode(model, self.source(entry, mine), self.engine)
        self.note(decoded)
        options = decoded.readable or model.model_validate({})
        if options.only and options.except_:
            self.problem("give 'only' or 'except', not both", (*entry.route, "except"), key=True)
        for key, builds in (("only", options.only), ("except", options.except_)):
            for number, build in enumerate(builds):
                self.known_build(build, (*entry.route, key, number))
        return options, {key: value for key, value in entry.raw.items() if key not in names}

    def override(self, entry: Entry, raw: Any, into: dict[str, Any]) -> dict[str, Route]:
        """Put the keys for this build over the others; where they stand."""
        moved: dict[str, Route] = {}
        route = (*entry.route, "override")
        if raw is not None and not isinstance(raw, dict):
            self.problem(f"'override' must be an object of builds, got {kind(raw)}", route)
        for build, keys in raw.items() if isinstance(raw, dict) else ():
            name = self.rendered(build)
            if not isinstance(keys, dict):
                self.problem(f"must be an object of keys for build '{build[:60]}', got {kind(keys)}", (*route, build))
            elif self.known_build(name, (*route, build), key=True) and name == self.name:
                into |= keys
                moved |= {key: (*route, build, key) for key in keys}
        return moved

    def known_build(self, name: str, route: Route, *, key: bool = False) -> bool:
        if name in self.builds:
            return True
        hint = did_you_mean(name, self.builds) or f"there are {', '.join(sorted(self.builds))}"
        self.problem(f"there is no build '{name[:60]}'", route, hint, key=key)
        return False

    def rendered(self, text: str) -> str:
        """A name; where it can't be rendered, as it was written."""
        try:
            return self.engine.evaluate(text)[0]
        except (ExpressionError, Unset):
            return text

    # --- components

    def component(
        self, sort: Kind, entry: Entry, source: Source, build: Mapping[str, str] | None = None
    ) -> tuple[Any, Options] | None:
        """The component and its options; None when something is wrong with them."""
        found = plugins.load(sort, entry.type)
        if found is None:
            self.unknown_type(sort, entry)
            return None
        decoded: Decoded[Options] = decode(found.Options, source, self.engine, build)
        self.note(decoded)
        if decoded.options is None:
            return None
        if decoded.awaits_build:
            awaits = AwaitsGuest if sort == "provisioners" else AwaitsArtifact
            return awaits(found, source, self.engine, self.context), decoded.options
        try:
            return found(decoded.options, self.context), decoded.options
        except TemplateError as error:
            self.problems += error.problems
            return None

    def unknown_type(self, sort: Kind, entry: Entry) -> None:
        known = plugins.names(sort)
        word = sort.replace("_", "-").removesuffix("s")
        hint = did_you_mean(entry.type, known) or f"known are {', '.join(known)}"
        if sort == "builders" and len(self.builds) > 1:
            hint += "; other builds of the template are selected with -only"
        self.problem(f"unknown {word} '{entry.type[:60]}'", (*entry.route, "type"), hint)

    def source(self, entry: Entry, raw: Mapping[str, Any], moved: Mapping[str, Route] | None = None) -> Source:
        return Source(raw, self.template.document, entry.route, moved or {})

    def note(self, decoded: Decoded[Any]) -> None:
        self.problems += decoded.problems
        self.warnings += decoded.warnings

    def problem(self, message: str, route: Route, hint: str | None = None, *, key: bool = False) -> None:
        self.problems.append(Problem(message, self.template.document.position(route, key), hint))
