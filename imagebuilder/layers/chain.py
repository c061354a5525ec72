"""The steps of a build with their fingerprints, and what of them a store of layers makes needless.

Pure: from what the steps are to what they are found by; from a store's records to the reason why a step must run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from imagebuilder.errors import TemplateError
from imagebuilder.inputs import Input, fingerprint, option
from imagebuilder.layers.record import Layer, Record
from imagebuilder.suggestion import did_you_mean
from imagebuilder.ui import duration

BASE, SHUTDOWN, EXPORT = "base", "shutdown", "export"
_AFTER = "comes after"


@dataclass(frozen=True)
class Step:
    """One step of a build. `fingerprint` "": nothing can be kept of it, and `why_not` says why."""

    name: str  # "base", a provisioner's type, "shutdown", "export"
    title: str  # the same with what a person knows it by: "shell scripts/base.sh"
    inputs: tuple[Input, ...] | None  # None: what it does can't be seen from here
    cache_key: str = ""  # what the template says of what we can't see
    cache: bool = True
    number: int = 0  # 0 is the base, 1 the first provisioner
    fingerprint: str = ""
    why_not: str = ""

    def __str__(self) -> str:
        return self.title if _own(self) else f"{self.number} ({self.title})"


def chain(steps: Sequence[Step], build: str, variables: Mapping[str, str] | None = None) -> tuple[Step, ...]:
    """The steps with numbers and fingerprints. `build`: what tells it from others, which some scripts read;
    `variables`: the user's, which some late templates ask for."""
    out: list[Step] = []
    parent, why_not, named, late = "", "", False, False
    for number, step in enumerate(steps):
        inputs = [*(step.inputs or ()), *([option("cache_key", step.cache_key)] if step.cache_key else [])]
        late = late or any("build" in one.late for one in inputs)
        named = named or late or any(one.names_build for one in inputs)  # what one step has put there, another may read
        if late or (named and not _own(step)):
            inputs.append(option("the build's name", build))
        if any("user" in one.late for one in inputs):
            inputs.append(option("variables", dict(variables or {})))
        why_not = why_not or step.why_not or _why_never(step)
        parent = "" if why_not else fingerprint(parent, inputs)
        out.append(replace(step, number=number, inputs=tuple(inputs), fingerprint=parent, why_not=why_not))
        if why_not and not why_not.startswith(_AFTER):
            why_not = f"{_AFTER} {out[-1]}, {'which is not known' if step.why_not else 'which is never kept'}"
    return tuple(out)


def _why_never(step: Step) -> str:
    if not step.cache:
        return "cache is false"
    if step.inputs is None and not step.cache_key:
        return "what it does can't be seen from here: give it a cache_key if it is the same every time"
    return ""


def find(steps: Sequence[Step], word: str) -> Step:
    """The step that -from, -until and -at mean: its number, its name, or a part of its title that only it has.

    Raises TemplateError.
    """
    exact = [step for step in steps if word in (str(step.number), step.name, step.title)]
    found = exact or [step for step in steps if word.lower() in step.title.lower()]
    if len(found) == 1:
        return found[0]
    names = [step.title for step in steps]
    listed = ", ".join(f"{step.number} ({step.title})" for step in (found or steps))
    what = f"'{word}' is more than one step" if found else f"there is no step '{word}'"
    near = None if found else did_you_mean(word, names)
    raise TemplateError(what, hint=near or f"write one of their numbers: {listed}")


class Known(Protocol):
    """What is asked of a store."""

    def find(self, fingerprint: str) -> Layer | None: ...
    def layers(self) -> list[Layer]: ...


@dataclass(frozen=True)
class Limits:
    """What may be used of the layers. `start`: the first step to run again in any case; `max_age`: seconds."""

    start: int | None = None
    max_age: float | None = None


def usable(step: Step, store: Known, limits: Limits) -> Layer | None:
    """The layer of a step, when there is one that may be used."""
    if not step.fingerprint or (limits.start is not None and step.number >= limits.start):
        return None
    layer = store.find(step.fingerprint)
    return layer if layer is not None and not _too_old(layer, limits) else None


def deepest(steps: Sequence[Step], store: Known, limits: Limits) -> int:
    """The number of the last step whose layer can be used; -1 when all of them must run."""
    return next((step.number for step in reversed(steps) if usable(step, store, limits)), -1)


def _age(layer: Layer) -> float:
    return time.time() - layer.record.since


def _too_old(layer: Layer, limits: Limits) -> bool:
    return limits.max_age is not None and _age(layer) > limits.max_age


@dataclass(frozen=True)
class Verdict:
    """What will become of a step: `why` it must run; "" when its layer is used."""

    step: Step
    why: str


def judge(steps: Sequence[Step], store: Known, limits: Limits, template: str, build: str) -> list[Verdict]:
    """For every step whether it is restored or run, and why."""
    done = deepest(steps, store, limits)
    earlier = [layer.record for layer in store.layers()]
    known = [record for record in earlier if (record.template, record.build) == (template, build)]
    return [
        Verdict(step, "" if step.number <= done else _why(step, store, limits, known, step.number > done + 1))
        for step in steps
    ]


def _own(step: Step) -> bool:
    """Whether it is one that every build has once, whatever its number."""
    return step.name in (BASE, SHUTDOWN, EXPORT)


def _why(step: Step, store: Known, limits: Limits, known: Sequence[Record], follows: bool) -> str:
    if step.why_not:
        return step.why_not
    if limits.start is not None and step.number >= limits.start and store.find(step.fingerprint):
        return "asked for by -from"
    layer = store.find(step.fingerprint)
    if layer is not None and _too_old(layer, limits):
        return f"its layer stems from {duration(_age(layer))} ago (-cache-max-age)"
    before = [record for record in known if record.name == step.name and (record.step == step.number or _own(step))]
    if not before:
        return "not built before"
    last = max(before, key=lambda record: record.created)
    now = [(one.label, one.digest) for one in step.inputs or ()]
    changes = list(changed(last.inputs, now))
    if changes:
        return ", ".join(changes[:4]) + (" and more" if len(changes) > 4 else "")
    if [digest for _, digest in last.inputs] != [digest for _, digest in now]:
        return "the order of its inputs changed"
    if follows:
        return "an earlier step runs again"
    return "an earlier step was made anew" if last.fingerprint == step.fingerprint else "an earlier step has changed"


def changed(before: Sequence[tuple[str, str]], now: Sequence[tuple[str, str]]) -> Iterator[str]:
    """What differs between the inputs of two runs of a step, in words."""
    old, new = _numbered(before), _numbered(now)
    for key in dict.fromkeys([*new, *old]):
        name = key[0]
        if key not in old:
            yield f"{name} is new" if not _moved(new[key], before) else f"{name} moved"
        elif key not in new:
            if not _moved(old[key], now):
                yield f"{name} is gone"
        elif old[key] != new[key]:
            yield f"{name} changed"


def _moved(digest: str, others: Sequence[tuple[str, str]]) -> bool:
    """Whether the same input is there under another label: a file that was renamed, say."""
    return any(digest == other for _, other in others)


def _numbered(inputs: Sequence[tuple[str, str]]) -> dict[tuple[str, int], str]:
    """(label, how many of that label came before) -> digest."""
    seen: dict[str, int] = {}
    out: dict[tuple[str, int], str] = {}
    for label, digest in inputs:
        seen[label] = seen.get(label, -1) + 1
        out[label, seen[label]] = digest
    return out
