"""The layers of one build: which of them it goes on from, and those it adds."""

from __future__ import annotations

import contextlib
import logging
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagebuilder.errors import CommandError, StoreError
from imagebuilder.layers import prune
from imagebuilder.layers.chain import EXPORT, Limits, Step, deepest, usable
from imagebuilder.layers.record import Layer, Record
from imagebuilder.layers.store import Held, Store
from imagebuilder.ui import Ui, duration, size

log = logging.getLogger(__name__)

_PAUSE = 0.5  # seconds between two looks at a step that another build makes


@dataclass(frozen=True)
class Origin:
    """Whose layers they are, for those who read `imgbuild cache ls`."""

    template: str
    build: str


class BuildLayers:
    """What a build uses of a store, and adds to it: a context manager, which lets go of all of it."""

    def __init__(
        self, steps: Sequence[Step], store: Store | None, origin: Origin, ui: Ui, limits: Limits,
        last: int | None = None, untouched: Callable[[Step], bool] = lambda step: True,
    ) -> None:  # fmt: skip
        self.steps = tuple(steps)
        self.last = len(steps) - 1 if last is None else last  # -until: the last step there shall be
        self._store, self._origin, self._ui, self._limits = store, origin, ui, limits
        self._held: Held | None = None
        self._at = -1  # the step whose state we have: restored or made
        self._parent: Record | None = None  # the record of its layer; None when there is none, and none can follow
        self._untouched = untouched  # whether what a step reads still is what its fingerprint tells
        self._spoiled = self._waited = False
        self._refused: set[str] = set()
        self._claimed = contextlib.ExitStack()

    def __enter__(self) -> BuildLayers:
        if self._store is not None:
            prune.limit_bytes()  # wrong, it is told before anything is built
            try:
                self._store.sweep()
            except StoreError as error:
                self._without(error)
        return self

    def __exit__(self, *_: object) -> None:
        self._claimed.close()
        self._release()

    # -- going on from what is there

    @property
    def partial(self) -> bool:
        """Whether the build ends before its image is made (-until)."""
        return self.last < len(self.steps) - 1

    @property
    def kept(self) -> bool:
        """Whether the state we are at is a layer."""
        return self._parent is not None

    @property
    def at(self) -> int:
        """The number of the step whose state we have; -1 before the first."""
        return self._at

    @property
    def held(self) -> Sequence[Layer]:
        """The layers that state consists of, the first one first; they stay as long as we do."""
        return self._held.layers if self._held is not None else ()

    @property
    def age(self) -> float:
        """Seconds since the state we went on from was left."""
        return time.time() - self._held.layers[-1].record.created if self._held is not None else 0.0

    def number(self, name: str) -> int:
        """The number of a step that every build has: base, shutdown, export."""
        return next(step.number for step in self.steps if step.name == name)

    def resume(self, last: int | None = None) -> Step | None:
        """The deepest step whose layer can be used, held from now on; None: begin at the beginning. None after `last`.

        Waits while another build makes the step that would come next.
        """
        last = self.last if last is None else last
        while self._store is not None:
            try:
                self._release()
                self._at = self._deepest(self._store, last)
                if not self._claim(self._store):
                    self._wait()
                elif self._at < 0 or self._hold(self._store, self.steps[self._at]):
                    break
                else:
                    self._refused.add(self.steps[self._at].fingerprint)  # it was broken
            except StoreError as error:
                self._without(error)
        return self.steps[self._at] if self._at >= 0 else None

    def _deepest(self, store: Store, last: int) -> int:
        steps = [step for step in self.steps[: last + 1] if step.fingerprint not in self._refused]
        return deepest(steps, store, self._limits)

    def _wait(self) -> None:
        if not self._waited:
            self._waited = True
            self._ui.say(f"Another build makes step {self.steps[self._at + 1]} just now: waiting for its layer")
        time.sleep(_PAUSE)

    def _without(self, error: StoreError) -> None:
        self._ui.warning(f"No layers are kept or used: {error.message}")
        self._release()
        self._store = None

    def _hold(self, store: Store, step: Step) -> bool:
        self._held = store.hold(step.fingerprint, self._ui)
        self._parent = self._held.layers[-1].record if self._held is not None else None
        return self._held is not None

    def _claim(self, store: Store) -> bool:
        """Whether the step that comes next is ours to make: no other build is at it."""
        self._claimed.close()
        following = self.steps[self._at + 1] if self._at < self.last else None
        if following is None or not following.fingerprint:
            return True
        ours = self._claimed.enter_context(store.claim(following.fingerprint))
        return ours and (following.fingerprint in self._refused or usable(following, store, self._limits) is None)

    def refuse(self) -> None:
        """The layer we hold can't be used here: go on without it; what replaces it is kept in its place."""
        if self._held is not None:
            self._refused.add(self._held.layers[-1].record.fingerprint)
        self._release()

    def _release(self) -> None:
        if self._held is not None:
            self._held.close()
        self._held, self._parent, self._at = None, None, -1

    # -- adding

    def keeps(self, step: Step) -> bool:
        """Whether a layer can be kept of this step, once it is done."""
        follows = step.number == 0 or step.name == EXPORT or self._parent is not None
        return self._store is not None and bool(step.fingerprint) and follows and not self._spoiled

    def name(self, of: Step | Record) -> str:
        """By what the disks of a step's layer are called in the workspace."""
        return of.fingerprint[:16]

    def passed(self, step: Step) -> None:
        """A step is done of which no layer is kept: nothing after it can be, but the finished image."""
        self._at, self._parent = step.number, None
        self._claimed.close()  # who waits for its layer need not
        self._was_touched(step)

    def _was_touched(self, step: Step) -> bool:
        """Whether what a step reads isn't what its fingerprint tells any more: then nothing is kept from here on, the
        image neither."""
        if self._store is None or self._spoiled or not step.fingerprint or self._untouched(step):
            return False
        self._ui.warning(f"Step {step} is not kept, nor what follows: what it reads was changed while the build ran")
        self.spoil()
        return True

    def spoil(self) -> None:
        """What comes now is not what it should be, as the person was told: nothing of it is kept."""
        self._spoiled = True

    def keep(self, step: Step, fill: Callable[[Path], None]) -> None:
        """Keep the state after a step: `fill` puts its files into a directory. A failure only costs the layer."""
        assert self._store is not None
        began, parent = time.monotonic(), None if step.name == EXPORT else self._parent
        if self._was_touched(step):
            self.passed(step)
            return
        self._at = step.number
        kept = None
        try:
            with self._store.making(self._record(step, parent)) as making:
                fill(making.path)
                kept = making.keep(replace=self._replaces(step))
                if kept is not None:
                    self._hold_more(kept)
                else:
                    self._ui.message(f"Step {step} is not kept: another layer of it is in its place, and in use")
        except (StoreError, CommandError) as error:
            self._ui.warning(f"Step {step} is not kept: {error.message}")
        self._parent = kept.record if kept is not None else None
        if kept is not None:
            text = f"Kept as layer {kept.record.fingerprint[:12]} ({size(kept.size)}, {_took(began)})"
            self._ui.event("message", text, step=step.number, title=step.title, layer=kept.record.fingerprint)
        self._claim_next()

    def _replaces(self, step: Step) -> bool:
        start = self._limits.start
        aged = self._limits.max_age is not None
        return step.fingerprint in self._refused or aged or (start is not None and step.number >= start)

    def _record(self, step: Step, parent: Record | None) -> Record:
        now = time.time()
        since = min([now, *(layer.record.since for layer in self.held)])
        return Record(
            fingerprint=step.fingerprint, id=uuid.uuid4().hex, parent=parent.fingerprint if parent else "",
            parent_id=parent.id if parent else "", template=self._origin.template, build=self._origin.build,
            step=step.number, name=step.name, title=step.title, created=now, since=since,
            inputs=tuple((one.label, one.digest) for one in step.inputs or ()), files={},
        )  # fmt: skip

    def _hold_more(self, layer: Layer) -> None:
        self._held = self._held or Held()
        self._held.add(layer)

    def _claim_next(self) -> None:
        """Tell other builds what we do next; when one of them is at it already, both do it and one layer stays."""
        with contextlib.suppress(StoreError):  # then nobody is told
            if self._store is not None and self._at < self.last:
                self._claim(self._store)

    def prune(self) -> None:
        """Bring the store back to its size limit; what is in use stays."""
        if self._store is None:
            return
        self._release()
        try:
            removed = prune.prune(self._store, limit=prune.limit_bytes(), max_age=None)
        except StoreError as error:
            self._ui.warning(f"The layers take up more than they should: {error.message}")
        else:
            log.debug("pruned %d layers", len(removed))


def _took(began: float) -> str:
    return duration(time.monotonic() - began)
