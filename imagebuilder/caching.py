"""What a person says about layers, and the layers of one build that follow from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from imagebuilder.errors import TemplateError
from imagebuilder.layers.buildlayers import BuildLayers, Origin
from imagebuilder.layers.chain import Limits, Step, find
from imagebuilder.layers.store import Store
from imagebuilder.steps import steps, unkept, untouched
from imagebuilder.templates.buildplan import BuildPlan
from imagebuilder.ui import Ui


@dataclass(frozen=True)
class Caching:
    """What the person said about layers. `first`: run again from this step; `until`: end with that one; `max_age`: use
    nothing older, in seconds."""

    on: bool = True
    first: str = ""
    until: str = ""
    max_age: float | None = None


def layers_of(plan: BuildPlan, caching: Caching, ui: Ui) -> BuildLayers:
    """The layers that a build may use and add to. Raises ImgbuildError for a step that isn't there."""
    on = caching.on and not plan.context.debug  # who pauses a build may do anything to its guest meanwhile
    found = steps(plan, ui, fetch=True) if on else unkept(plan)
    limits = limits_of(found, caching)
    return BuildLayers(
        found,
        Store() if on else None,
        origin_of(plan),
        ui,
        limits,
        last_of(found, caching),
        lambda step: untouched(plan, step, ui),
    )


def origin_of(plan: BuildPlan) -> Origin:
    """Whose layers those of a build are: its template's full path, '-' for standard input, and its name."""
    path = plan.context.template_path
    return Origin(str(path.absolute()) if path else "-", plan.context.build_name)


def limits_of(found: Sequence[Step], caching: Caching) -> Limits:
    """What may be used. Raises TemplateError for a step that isn't there."""
    first = find(found, caching.first) if caching.first else None
    if first is not None and first.number > last_of(found, caching):
        raise TemplateError(f"-from={caching.first} comes after -until={caching.until}: nothing would be run again")
    return Limits(first.number if first is not None else None, caching.max_age)


def last_of(found: Sequence[Step], caching: Caching) -> int:
    """The number of the last step that is to be done. Raises TemplateError for a step that isn't there."""
    return find(found, caching.until).number if caching.until else len(found) - 1
