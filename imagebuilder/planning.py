"""What `inspect` and `plan` show: a template's parts; what a build would do, without doing any of it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from imagebuilder import __version__, ui
from imagebuilder.caching import Caching, last_of, limits_of, origin_of
from imagebuilder.layers.chain import Verdict, judge
from imagebuilder.layers.store import Store
from imagebuilder.plugins import Outline
from imagebuilder.steps import steps, unkept
from imagebuilder.templates.buildplan import BuildPlan
from imagebuilder.templates.template import Inspection
from imagebuilder.ui import Console, Event, JsonConsole, MachineConsole


def _say(console: Console, text: str) -> None:
    console.show(Event("message", "", text))


def show_inspection(found: Inspection, console: Console) -> None:
    """`imgbuild inspect`."""
    if isinstance(console, MachineConsole):
        _inspection_rows(found, console)
    elif isinstance(console, JsonConsole):
        console.show(Event("plan", "", found.description, _inspection_data(found)))
    else:
        _inspection_text(found, console)


def _inspection_text(found: Inspection, console: Console) -> None:
    if found.description:
        _say(console, f"Description:\n\n  {found.description}\n")
    _section(console, "Required variables", [one.name for one in found.variables if one.required])
    optional = [f"{one.name} = {one.shown}" for one in found.variables if not one.required]
    _section(console, "Optional variables and their defaults", optional)
    _section(console, "Builders", [_titled(name, type_) for name, type_ in found.builders])
    _section(console, "Provisioners", list(found.provisioners))
    _section(console, "Post-processors", [" -> ".join(chain) for chain in found.post_processors])


def _titled(name: str, type_: str) -> str:
    return name if name == type_ else f"{name} ({type_})"


def _section(console: Console, title: str, lines: list[str]) -> None:
    _say(console, f"{title}:\n\n" + "\n".join(f"  {line}" for line in lines or ["<none>"]) + "\n")


def _inspection_rows(found: Inspection, console: MachineConsole) -> None:
    for one in found.variables:
        console.line("", "template-variable", one.name, "" if one.required else one.shown, int(one.required))
    for name, type_ in found.builders:
        console.line("", "template-builder", name, type_)
    for type_ in found.provisioners:
        console.line("", "template-provisioner", type_)


def _inspection_data(found: Inspection) -> dict[str, Any]:
    return {
        "variables": [{"name": v.name, "default": v.shown, "required": v.required} for v in found.variables],
        "builders": [{"name": name, "type": type_} for name, type_ in found.builders],
        "provisioners": list(found.provisioners),
        "post_processors": [list(chain) for chain in found.post_processors],
    }


def show_plan(plan: BuildPlan, caching: Caching, console: Console) -> None:
    """`imgbuild plan`: resolved options, steps in order, QEMU's arguments as far as they are known before the run."""
    name = plan.context.build_name
    voice = ui.Ui(name, console.show)
    voice.mask(*plan.context.sensitive)
    outline, verdicts = plan.builder.outline(), _verdicts(plan, caching, voice)
    for key, value in outline.options:
        if "password" in key and isinstance(value, str) and value:
            voice.mask(value)
    options = json.loads(outline.options.model_dump_json(exclude_defaults=True))
    if isinstance(console, JsonConsole):
        told, argv = list(outline.steps) + _steps(plan), list(outline.argv)
        layers = [_verdict_data(verdict) for verdict in verdicts]
        shown = _masked({"options": options, "steps": told, "layers": layers, "argv": argv}, voice)
        console.show(Event("plan", name, "", shown))
    else:
        _plan_text(outline, options, voice)
        for line in _steps_text(plan, verdicts):
            voice.message(line)


def _verdicts(plan: BuildPlan, caching: Caching, voice: ui.Ui) -> list[Verdict]:
    """What would become of every step; media are not downloaded to find out."""
    if not caching.on:
        return [Verdict(step, step.why_not) for step in unkept(plan)]
    found = steps(plan, voice, fetch=False)
    origin, limits = origin_of(plan), limits_of(found, caching)
    verdicts = judge(found, Store(), limits, origin.template, origin.build)
    last = last_of(found, caching)
    return [one if one.step.number <= last else Verdict(one.step, "not reached (-until)") for one in verdicts]


def _verdict_data(verdict: Verdict) -> dict[str, Any]:
    step = verdict.step
    return {
        "step": step.number, "name": step.name, "title": step.title, "restored": not verdict.why, "why": verdict.why,
        "fingerprint": step.fingerprint,
    }  # fmt: skip


def _masked(tree: Any, voice: ui.Ui) -> Any:
    """The tree with the secrets in its texts masked."""
    if isinstance(tree, dict):
        return {key: _masked(value, voice) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_masked(value, voice) for value in tree]
    return voice.masked(tree) if isinstance(tree, str) else tree


def _plan_text(outline: Outline, options: dict[str, Any], voice: ui.Ui) -> None:
    voice.say("Options")
    for key, value in options.items():
        voice.message(f"{key} = {json.dumps(_masked(value, voice))}")
    voice.say("From nothing to a guest that can be reached")
    for step in outline.steps:
        voice.message(f"- {step}")
    voice.say("QEMU")
    voice.message(shlex.join(outline.argv))
    voice.say("Steps")


def _steps_text(plan: BuildPlan, verdicts: Sequence[Verdict]) -> Iterator[str]:
    for one in verdicts:
        yield f"{one.step.number}. {one.step.title}: {f'runs: {one.why}' if one.why else 'restored'}"
    for chain in plan.post_processors:
        yield f"post-process: {' -> '.join(step.name for step in chain)}"


def _steps(plan: BuildPlan) -> list[str]:
    steps = [f"provision: {step.type}" for step in plan.provisioners]
    steps += ["shut down", "export, checksum and publish the disks"]
    steps += [f"post-process: {' -> '.join(step.name for step in chain)}" for chain in plan.post_processors]
    return steps


def show_version(console: Console) -> None:
    """`imgbuild version`."""
    if isinstance(console, MachineConsole):
        console.line("", "version", __version__)
    else:
        console.show(Event("message", "", f"imgbuild {__version__}"))
