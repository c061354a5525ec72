"""The template key `qemuargs`: rows of QEMU arguments that take the place of ours, by Packer's merge rules.

A row is a switch and its value. A switch that a row gives drops every default of that switch (a `-drive` row the
system disk and the ISO, a `-device` row the controllers), as templates depend on it; what imgbuild needs for itself
stays. Our own order is kept, so the same template gives the same argv.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

Rows = Sequence[Sequence[str]]

_IGNORED = frozenset({"-daemonize", "--daemonize"})  # QEMU would leave its owner


@dataclass(frozen=True)
class Argument:
    """A switch with its value, and the rows' switches that drop it. `own`: imgbuild needs it, rows come before it."""

    switch: str
    value: str = ""
    dropped_by: frozenset[str] = frozenset()
    own: bool = False

    @property
    def words(self) -> list[str]:
        return [self.switch, self.value] if self.value else [self.switch]


def default(switch: str, value: str = "", *also: str) -> Argument:
    """An argument that a row of the same switch drops, and rows of the switches `also`."""
    return Argument(switch, value, frozenset({switch, *also}))


def own(switch: str, value: str = "") -> Argument:
    """An argument that stays whatever the rows say."""
    return Argument(switch, value, own=True)


def pairs(rows: Rows) -> list[tuple[str, str]]:
    """Rows as (switch, value): Packer joins all that follows the switch, without a separator."""
    return [(row[0], "".join(row[1:])) for row in rows if row and row[0] not in _IGNORED]


def values(rows: Rows, *switches: str) -> list[str]:
    """What the rows give to any of these switches."""
    return [value for switch, value in pairs(rows) if switch in switches]


def merge(arguments: Iterable[Argument], rows: Rows) -> list[str]:
    """The argv: rows stand where the first argument that they drop stood, all others just before our own."""
    waiting = pairs(rows)
    switches = frozenset(switch for switch, _ in waiting)
    words: list[str] = []

    def place(switch: str | None = None) -> None:
        placed = [pair for pair in waiting if switch in (None, pair[0])]
        waiting[:] = [pair for pair in waiting if pair not in placed]
        words.extend(word for pair in placed for word in pair if word)

    for argument in arguments:
        if argument.own:
            place()
        if argument.dropped_by & switches:
            place(argument.switch)
        else:
            words.extend(argument.words)
    place()
    return words


def machine_type(rows: Rows, otherwise: str) -> str:
    """The machine type that counts: the last one that a row gives, or `otherwise`."""
    for value in reversed(values(rows, "-machine", "-M", "--machine")):
        for part in value.split(","):
            name, equals, given = part.partition("=")
            if name == "type" or not equals:
                return given or name
    return otherwise


def accelerators(rows: Rows) -> list[str]:
    """Accelerators that rows ask for, in their order; whatever the template's `accelerator` says, QEMU obeys these."""
    found = [name for value in values(rows, "-machine", "-M", "--machine") for name in _ACCEL.findall(value)]
    found += [_first(value) for value in values(rows, "-accel", "--accel")]
    kvm = ["kvm" for switch, _ in pairs(rows) if switch in ("-enable-kvm", "--enable-kvm")]
    return [*(name for entry in found for name in entry.split(":")), *kvm]


def without_kvm(rows: Rows) -> tuple[tuple[str, ...], ...]:
    """The rows with TCG in the place of KVM, for a host whose KVM was proved not to work (`-cpu host` needs KVM)."""
    return tuple(_without_kvm(rows))


_ACCEL = re.compile(r"(?:^|,)accel=([^,]+)")
_CPU_OF_KVM = re.compile(r"^(host|kvm64|kvm32)(?=,|$)")


def _first(value: str) -> str:
    return value.split(",")[0].removeprefix("accel=")


def _without_kvm(rows: Rows) -> Iterator[tuple[str, ...]]:
    for switch, value in pairs(rows):
        if switch in ("-enable-kvm", "--enable-kvm"):
            continue
        if switch in ("-machine", "-M", "--machine"):
            value = _ACCEL.sub(lambda found: found.group(0).replace("kvm:tcg", "tcg").replace("kvm", "tcg"), value)
            value = ",".join(part for part in value.split(",") if not part.startswith("kernel_irqchip"))
        elif switch in ("-accel", "--accel") and _first(value) == "kvm":
            value = "tcg"
        elif switch in ("-cpu", "--cpu"):
            value = _CPU_OF_KVM.sub("max", value)
        yield (switch, value) if value else (switch,)
