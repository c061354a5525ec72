"""Waits."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from pydantic import Field

from imagebuilder import inputs
from imagebuilder.inputs import Input
from imagebuilder.options import Duration, Options
from imagebuilder.plugins import BuildContext, Guest
from imagebuilder.ui import Ui
from imagebuilder.ui import duration as spoken


class SleepOptions(Options):
    """Keys of the sleep provisioner."""

    duration: Duration = Field(0.0, description="How long")

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.duration <= 0:
            yield "duration", "must be longer than nothing: write it like '30s'"

    def inputs(self) -> Sequence[Input]:
        return inputs.options(self)


class Sleep:
    """The sleep provisioner."""

    Options = SleepOptions

    def __init__(self, options: SleepOptions, _context: BuildContext) -> None:
        self._options = options

    def provision(self, guest: Guest, ui: Ui) -> None:
        seconds = self._options.duration
        ui.say(f"Sleeping {spoken(seconds)}")
        with ui.progress("Sleeping", seconds, "seconds") as update:
            began = time.monotonic()
            while (passed := time.monotonic() - began) < seconds:
                update(passed)
                time.sleep(min(seconds - passed, 0.5))
