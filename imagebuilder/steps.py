"""The steps of a planned build: the builder's own and one for each provisioner, with what their layers are found by."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from imagebuilder.errors import ImgbuildError
from imagebuilder.inputs import Input, option
from imagebuilder.layers.chain import BASE, EXPORT, SHUTDOWN, Step, chain
from imagebuilder.templates.buildplan import BuildPlan, ProvisionerPlan
from imagebuilder.ui import Ui

_SHOWN = ("script", "scripts", "source", "sources", "inline", "command", "destination")
_LENGTH = 50


def steps(plan: BuildPlan, ui: Ui, *, fetch: bool) -> tuple[Step, ...]:
    """All steps in their order. `fetch`: media may be downloaded to find out what they are."""
    base, shutdown, export = plan.builder.steps(ui, fetch=fetch)
    ours = [_step(one, plan.context.sensitive) for one in plan.provisioners]
    told = (plan.context.build_name, plan.context.builder_type, getattr(plan.builder_options, "vm_name", ""))
    return chain([base, *ours, shutdown, export], " ".join(told), plan.context.variables)


def untouched(plan: BuildPlan, step: Step, ui: Ui) -> bool:
    """Whether nothing that a step reads was changed, or even touched, since its fingerprint was made."""
    if step.name in (SHUTDOWN, EXPORT):
        return True
    try:
        if step.number == 0:
            now = plan.builder.steps(ui, fetch=True)[0]
        else:
            now = _step(plan.provisioners[step.number - 1], plan.context.sensitive)
    except ImgbuildError:
        return False
    fresh = [(one.digest, one.stamp) for one in now.inputs or ()]
    return fresh == [(one.digest, one.stamp) for one in (step.inputs or ())[: len(fresh)]]


def unkept(plan: BuildPlan) -> tuple[Step, ...]:
    """The same of a build that keeps no layers: nothing is looked at."""
    why = "layers are off"
    ours = [Step(one.type, _title(one, plan.context.sensitive), None) for one in plan.provisioners]
    found = [Step(BASE, BASE, None), *ours, Step(SHUTDOWN, SHUTDOWN, None), Step(EXPORT, EXPORT, None)]
    return tuple(replace(step, number=number, why_not=why) for number, step in enumerate(found))


def _step(plan: ProvisionerPlan, sensitive: Collection[str]) -> Step:
    inputs = plan.options.inputs()
    if inputs is None and plan.cache_key:
        inputs = [option(name, value) for name, value in plan.options]
    mine: list[Input] | None = None if inputs is None else [option("type", plan.type), *inputs]
    return Step(plan.type, _title(plan, sensitive), None if mine is None else tuple(mine), plan.cache_key, plan.cache)


def _title(plan: ProvisionerPlan, sensitive: Collection[str]) -> str:
    """The type, and what a person knows this one by; without secrets: it is shown and kept."""
    voice = Ui("", lambda event: None)
    voice.mask(*sensitive)
    for name in _SHOWN:
        value = getattr(plan.options, name, None)
        if not value:
            continue
        words = (value,) if isinstance(value, str) else value
        line = (voice.masked(str(words[0])).strip().splitlines() or [""])[0]
        more = " ..." if len(line) > _LENGTH or len(words) > 1 else ""
        return f"{plan.type}: {line[:_LENGTH]}{more}"
    return plan.type
