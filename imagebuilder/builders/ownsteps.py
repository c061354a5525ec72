"""The steps that every builder has, before and after the provisioners: base, shutdown, export."""

from __future__ import annotations

from imagebuilder.autoinstall.distro import Distro
from imagebuilder.builders import inputs
from imagebuilder.builders.qemuoptions import MachineOptions
from imagebuilder.layers.chain import BASE, EXPORT, SHUTDOWN, Step
from imagebuilder.plugins import BuildContext
from imagebuilder.qemu import accel
from imagebuilder.ui import Ui


def own_steps(
    options: MachineOptions, context: BuildContext, distro: Distro | None, ui: Ui, *, fetch: bool
) -> tuple[Step, Step, Step]:
    """`options` as the distro has filled them in; `fetch`: media may be downloaded to find out what they are."""
    shutdown = Step(SHUTDOWN, SHUTDOWN, tuple(inputs.shutdown(options)))
    return _base(options, context, distro, ui, fetch), shutdown, Step(EXPORT, EXPORT, tuple(inputs.export(options)))


def _base(options: MachineOptions, context: BuildContext, distro: Distro | None, ui: Ui, fetch: bool) -> Step:
    choice = accel.choose(options.accelerator or None, options.qemu_binary)
    try:
        found = tuple(inputs.base(options, context, distro, choice, ui, fetch=fetch))
    except inputs.Unknown as url:
        return Step(BASE, BASE, None, why_not=f"what {url} holds is only known when it is fetched")
    return Step(BASE, BASE, found, cache=options.cache)  # cache_key is one of its inputs, as every option is
