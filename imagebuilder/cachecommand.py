"""`imgbuild cache`: what is kept as layers, what the next build would use of it, and making room."""

from __future__ import annotations

import re
import textwrap
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Any

from imagebuilder.caching import origin_of
from imagebuilder.errors import TemplateError
from imagebuilder.layers import prune
from imagebuilder.layers.chain import Limits, judge
from imagebuilder.layers.record import Layer
from imagebuilder.layers.store import Store
from imagebuilder.steps import steps
from imagebuilder.templates.buildplan import BuildPlan
from imagebuilder.ui import Console, Event, JsonConsole, MachineConsole, Ui, size

_WIDTH = 100
_STEP = 2  # the column of the table that gives way
_LONGEST_BUILD = 20
_SHORT = 12  # digits of a fingerprint that a person is shown


# -- ls


def show_layers(store: Store, console: Console, plans: Sequence[BuildPlan] | None = None) -> None:
    """All layers; with `plans` only theirs, and which of them the next builds would use."""
    everything = store.layers()
    mine, wanted = _of(plans, store, everything, console) if plans is not None else (everything, None)
    mine.sort(key=lambda layer: (layer.record.template, layer.record.build, layer.record.step, layer.record.created))
    if isinstance(console, JsonConsole):
        for layer in mine:
            used_next = None if wanted is None else layer.record.fingerprint in wanted
            _say(console, layer.record.title, **_data(layer), used_next=used_next)
    elif isinstance(console, MachineConsole):
        _rows(mine, wanted, console)
    else:
        for line in _table(mine, wanted):
            _say(console, line)
        _say(console, _total(store, mine, everything))


def _of(
    plans: Sequence[BuildPlan], store: Store, everything: Sequence[Layer], console: Console
) -> tuple[list[Layer], set[str]]:
    """What these builds made or could use, and the fingerprints of what they would use next; nothing is fetched."""
    theirs, wanted, origins = set[str](), set[str](), set[tuple[str, str]]()
    for plan in plans:
        origin = origin_of(plan)
        template, name = origin.template, origin.build
        voice = Ui(name, console.show)
        voice.mask(*plan.context.sensitive)
        found = steps(plan, voice, fetch=False)
        verdicts = judge(found, store, Limits(), template, name)
        theirs |= {step.fingerprint for step in found if step.fingerprint}
        wanted |= {verdict.step.fingerprint for verdict in verdicts if not verdict.why}
        origins.add((template, name))
    mine = [
        layer
        for layer in everything
        if layer.record.fingerprint in theirs or (layer.record.template, layer.record.build) in origins
    ]
    return mine, wanted


def _table(layers: Sequence[Layer], wanted: set[str] | None) -> Iterator[str]:
    """Lines of at most 100 columns: templates as headings, below each its layers by build and step."""
    head = ["LAYER", "BUILD", "STEP", "SIZE", "HOLDS", "MADE", "USED"] + ["NEXT"] * (wanted is not None)
    lines = iter(_aligned([head, *(_cells(layer, wanted) for layer in layers)]))
    first = next(lines)
    for template, some in groupby(layers, key=lambda layer: layer.record.template):
        yield _shortened(_place(template), _WIDTH)
        yield first
        yield from (next(lines) for _ in some)
        yield ""


def _place(template: str) -> str:
    """A template's path as one would write it here."""
    path = Path(template or "-")
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _cells(layer: Layer, wanted: set[str] | None) -> list[str]:
    record = layer.record
    cells = [
        record.fingerprint[:_SHORT], _shortened(record.build, _LONGEST_BUILD), _step(layer), size(layer.size),
        "memory" if layer.has_memory else "disk", ago(record.created), ago(layer.used),
    ]  # fmt: skip
    if wanted is not None:
        cells.append("used" if record.fingerprint in wanted else "")
    return cells


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    too_wide = 2 + sum(widths) + 2 * (len(widths) - 1) - _WIDTH
    widths[_STEP] = max(widths[_STEP] - max(too_wide, 0), 10)
    return [
        "  " + "  ".join(_shortened(cell, width).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _total(store: Store, mine: Sequence[Layer], everything: Sequence[Layer]) -> str:
    if not everything:
        return f"No layers in {store.directory}"
    limit, taken = prune.limit_bytes(), _sum(everything)
    of = f"of at most {size(limit)}" if limit is not None else "without a limit"
    text = f"{_counted(everything)} in {store.directory}, {size(taken)} {of} ({prune.VARIABLE})"
    return text if len(mine) == len(everything) else f"{_counted(mine)}, {size(_sum(mine))}\n{text}"


def _rows(layers: Sequence[Layer], wanted: set[str] | None, console: MachineConsole) -> None:
    for layer in layers:
        record, holds = layer.record, "memory" if layer.has_memory else "disk"
        next_build = "" if wanted is None else int(record.fingerprint in wanted)
        console.line(
            record.build, "layer", record.fingerprint, record.template, record.step, record.name, record.title,
            layer.size, holds, int(record.created), int(layer.used), next_build,
        )  # fmt: skip


# -- show


def find(store: Store, prefix: str) -> Layer:
    """The layer whose fingerprint begins so. Raises TemplateError when there is none, or more than one."""
    word = prefix.lower()
    found = [layer for layer in store.layers() if word and layer.record.fingerprint.startswith(word)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise TemplateError(f"there is no layer '{prefix}'", hint="`imgbuild cache ls` lists them")
    names = ", ".join(_named(layer) for layer in found[:4]) + (" ..." if len(found) > 4 else "")
    raise TemplateError(f"'{prefix}' is the beginning of {len(found)} layers: {names}", hint="write more of it")


def show_layer(store: Store, layer: Layer, console: Console) -> None:
    """Everything of one layer; of its inputs the names, never what they hold."""
    below = store.chain(layer)
    above = [one for one in store.layers() if one.record.parent == layer.record.fingerprint]
    labels = list(dict.fromkeys(label for label, _ in layer.record.inputs))
    if isinstance(console, JsonConsole):
        files = {name: file.size for name, file in layer.record.files.items()}
        children = [one.record.fingerprint for one in above]
        more = {"directory": str(layer.path), "files": files, "children": children, "inputs": labels}
        _say(console, layer.record.title, **_data(layer), **more)
    elif isinstance(console, MachineConsole):
        _rows([layer], None, console)
        for name, file in layer.record.files.items():
            console.line(layer.record.build, "layer-file", name, file.size)
        for label in labels:
            console.line(layer.record.build, "layer-input", label)
    else:
        for line in _page(layer, below, above, labels):
            _say(console, line)


def _page(layer: Layer, below: Sequence[Layer], above: Sequence[Layer], labels: Sequence[str]) -> Iterator[str]:
    record = layer.record
    parent = _named(below[-2]) if len(below) > 1 else "what is gone: it can't be used" if record.parent else "nothing"
    yield from _fact("Layer", record.fingerprint)
    yield from _fact("Step", _step(layer))
    yield from _fact("Build", f"{record.build} of {_place(record.template)}")
    yield from _fact("Made", _moment(record.created))
    if record.since < record.created - 1:
        yield from _fact("Stems from", f"what was made {_moment(record.since)}")
    yield from _fact("Last used", _moment(layer.used))
    yield from _fact("Holds", ("memory and disks" if layer.has_memory else "disks only") + f", {size(layer.size)}")
    yield from _fact("Stands on", parent)
    yield from _fact("Carries", *(_named(one) for one in above))
    yield from _fact("Files", *(f"{name} ({size(file.size)})" for name, file in record.files.items()))
    yield from _fact("Inputs", ", ".join(map(_plain, labels)))
    yield from _fact("Directory", str(layer.path))


def _fact(title: str, *values: str) -> Iterator[str]:
    """A title and what belongs to it, wrapped, one value below the other; nothing without values."""
    lines = [line for value in values for line in _wrapped(value)]
    for number, line in enumerate(lines):
        yield f"{title if number == 0 else '':<12}{line}"


def _wrapped(value: str) -> list[str]:
    """Paths and fingerprints stay whole, so that they can be copied."""
    return textwrap.wrap(value, _WIDTH - 12, break_on_hyphens=False, break_long_words=False)


# -- prune and rm


def prune_layers(
    store: Store, console: Console, *, max_size: int | None = None, max_age: float | None = None, dry_run: bool = False
) -> None:
    """Remove what can't be used, then what was used least recently; without a limit given, what is too much for the
    store's own."""
    if max_size is None and max_age is None:
        max_size = prune.limit_bytes()
    before = store.layers()
    useless = [layer for layer in before if not store.chain(layer)]  # what they stood on is gone, or was made anew
    if before and not dry_run:
        store.sweep()
        useless = [layer for layer in useless if not layer.path.exists()]
    pruned = prune.prune(_Untouched(store.directory) if dry_run else store, limit=max_size, max_age=max_age)
    gone = [*useless, *(layer for layer in pruned if layer not in useless)]
    for layer in gone:
        _tell_removal(layer, console, dry_run=dry_run)
    ids = {layer.record.id for layer in gone}
    left = [layer for layer in before if layer.record.id not in ids] if dry_run else store.layers()
    would = "would be " if dry_run else ""
    _say(console, f"{_counted(gone)} {would}removed, {size(_sum(gone))}; {_counted(left)} left, {size(_sum(left))}")
    if max_size is not None and _sum(left) > max_size:
        _say(console, f"That is more than {size(max_size)}: a build or a shell uses what is left")


class _Untouched(Store):
    """A store that only says what would go."""

    def remove(self, layer: Layer) -> bool:
        return True


def remove_layers(store: Store, wanted: Sequence[Layer], console: Console) -> int:
    """Remove layers and all that stands on them; the exit code: 1 when a build uses one of them, which stays."""
    doomed = _with_descendants(store.layers(), wanted)
    gone = [removed for layer in wanted for removed in store.remove_with_descendants(layer)]
    for layer in gone:
        _tell_removal(layer, console)
    left = {layer.record.id for layer in store.layers()}
    held = [layer for layer in doomed if layer.record.id in left]
    for layer in held:
        text = f"Layer {_named(layer)} is in use by a build or a shell: it stays"
        console.show(Event("error", "", text, _data(layer)))
    _say(console, f"{_counted(gone)} removed, {size(_sum(gone))}")
    return 1 if held else 0


def _with_descendants(layers: Iterable[Layer], roots: Sequence[Layer]) -> list[Layer]:
    """These layers and all that stands on them."""
    found = {layer.record.fingerprint: layer for layer in roots}
    by_depth = sorted(layers, key=lambda layer: layer.record.step)  # what stands on a layer is of a later step
    for layer in by_depth:
        if layer.record.parent in found:
            found[layer.record.fingerprint] = layer
    return list(found.values())


def _tell_removal(layer: Layer, console: Console, *, dry_run: bool = False) -> None:
    verb = "Would remove" if dry_run else "Removed"
    text = f"{verb} {_named(layer)}, {size(layer.size)}, used {ago(layer.used)}"
    _say(console, text, **_data(layer), removed=not dry_run)


# -- words


def ago(moment: float) -> str:
    """How long ago Unix seconds were, as people say it: '40 s ago', '5 min ago', '3 h ago', '12 d ago'."""
    seconds = max(time.time() - moment, 0)
    for unit, length, until in (("s", 1, 60), ("min", 60, 3600), ("h", 3600, 2 * 86400)):
        if seconds < until:
            return f"{int(seconds // length)} {unit} ago"
    return f"{int(seconds // 86400)} d ago"


def _moment(moment: float) -> str:
    when = datetime.fromtimestamp(moment).astimezone()
    return f"{ago(moment)} ({when:%Y-%m-%d %H:%M:%S})"


def _step(layer: Layer) -> str:
    """With its number, by which -from, -until and -at find it."""
    return _plain(f"{layer.record.step} {layer.record.title}")


def _named(layer: Layer) -> str:
    return f"{layer.record.fingerprint[:_SHORT]} ({_plain(layer.record.build)}: {_step(layer)})"


def _counted(layers: Sequence[Layer]) -> str:
    return f"{len(layers)} layer{'' if len(layers) == 1 else 's'}"


def _sum(layers: Iterable[Layer]) -> int:
    return sum(layer.size for layer in layers)


def _plain(text: str) -> str:
    """On one line."""
    return re.sub(r"\s+", " ", text)


def _shortened(text: str, width: int) -> str:
    text = _plain(text)
    return text if len(text) <= width else text[: width - 3] + "..."


def _data(layer: Layer) -> dict[str, Any]:
    """What programs are told of a layer."""
    record = layer.record
    return {
        "fingerprint": record.fingerprint, "template": record.template, "build": record.build, "step": record.step,
        "name": record.name, "title": record.title, "size": layer.size, "memory": layer.has_memory,
        "created": record.created, "since": record.since, "used": layer.used, "parent": record.parent,
    }  # fmt: skip


def _say(console: Console, text: str, **more: Any) -> None:
    console.show(Event("message", "", text, more))
