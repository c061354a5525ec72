"""One build from its plan to its artifacts: guest, provisioners, export, post-processors.

Builds run on the main thread of their process: a signal is a KeyboardInterrupt wherever the build stands.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType

from imagebuilder.caching import Caching, layers_of
from imagebuilder.errors import GuestError, ImgbuildError, Problem, TemplateError
from imagebuilder.image import artifact as artifacts
from imagebuilder.layers.buildlayers import BuildLayers
from imagebuilder.layers.chain import SHUTDOWN
from imagebuilder.plugins import Artifact, BuildSession, Guest, OnError, Processed
from imagebuilder.templates.buildplan import BuildPlan, PostProcessorPlan, ProvisionerPlan
from imagebuilder.templates.template import Plan
from imagebuilder.ui import Ui, duration

log = logging.getLogger(__name__)

_WITHOUT_GUEST = frozenset({"shell-local", "breakpoint", "sleep"})


@dataclass(frozen=True)
class BuildResult:
    """What came of one build: artifacts, or the error that ended it; seconds it took."""

    name: str
    artifacts: tuple[Artifact, ...] = ()
    error: ImgbuildError | None = None
    interrupted: bool = False
    seconds: float = field(default=0.0, compare=False)


def check(plan: Plan) -> None:
    """What is only seen across components: provisioners that need a guest nobody can reach. Raises TemplateError."""
    found = [
        Problem(
            f"provisioner '{step.type}' needs to reach the guest, and build '{build.context.build_name}' has "
            "communicator 'none'",
            step.position,
            "use a communicator, or only shell-local, breakpoint and sleep",
        )
        for build in plan.builds
        if getattr(build.builder_options, "communicator", "ssh") == "none"
        for step in build.provisioners
        if step.type not in _WITHOUT_GUEST
    ]
    if found:
        raise TemplateError(found)


def run(plan: BuildPlan, ui: Ui, caching: Caching | None = None) -> BuildResult:
    """Run one build to its end; errors become part of the result, an interrupt too once all is cleaned up."""
    began = time.monotonic()
    ui.mask(*plan.context.sensitive)
    name, kept = plan.context.build_name, list[Artifact]()
    try:
        kept = _run(plan, ui, kept, caching or Caching())
    except KeyboardInterrupt:
        ui.error(_interrupted(plan, kept))
        return BuildResult(name, tuple(kept), interrupted=True, seconds=time.monotonic() - began)
    except (ImgbuildError, OSError, ValueError) as error:
        known = error if isinstance(error, ImgbuildError) else _unexpected(error)
        _tell(known, ui)
        known.message, known.hint = ui.masked(known.message), known.hint and ui.masked(known.hint)
        return BuildResult(name, tuple(kept), error=known, seconds=time.monotonic() - began)
    seconds = time.monotonic() - began
    ui.event("finished", f"Build '{name}' finished after {duration(seconds)}.", seconds=round(seconds, 3))
    return BuildResult(name, tuple(kept), seconds=seconds)


def _run(plan: BuildPlan, ui: Ui, kept: list[Artifact], caching: Caching) -> list[Artifact]:
    """`kept` gets the image as soon as it is there: what fails later doesn't take it away."""
    with plan.builder.session(ui, partial=bool(caching.until)) as session, layers_of(plan, caching, ui) as layers:
        session.use(layers)
        layers.resume()
        if not session.has_disks and layers.at < layers.last:
            with session.guest(end=layers.last >= layers.number(SHUTDOWN)) as guest:
                provision(plan, session, layers, guest, ui)
        if layers.partial:
            _say_where_it_ended(layers, ui)
            return kept
        kept.append(session.artifact())
        layers.prune()
    return post_process(plan.post_processors, kept[0], ui)


def _say_where_it_ended(layers: BuildLayers, ui: Ui) -> None:
    step = layers.steps[layers.last]
    if layers.kept:
        ui.say(f"Done until step {step}; 'imgbuild shell' opens it")
    else:
        ui.warning(f"Done until step {step}, but it could not be kept" + (f": {step.why_not}" * bool(step.why_not)))


def _interrupted(plan: BuildPlan, kept: Sequence[Artifact]) -> str:
    if kept:
        return f"Interrupted; the image is finished: {kept[0].description}"
    if plan.context.on_error is OnError.ABORT:
        return "Interrupted"
    return "Interrupted: everything this build had begun is removed"


def _unexpected(error: OSError | ValueError) -> ImgbuildError:
    """A mistake that no part of the program has put into words."""
    log.debug("unexpected", exc_info=error)
    return ImgbuildError(f"{type(error).__name__}: {error}", hint="IMGBUILD_LOG=1 shows where it came from")


def _tell(error: ImgbuildError, ui: Ui) -> None:
    if not error.told:
        ui.failure(error)


def provision(plan: BuildPlan, session: BuildSession, layers: BuildLayers, guest: Guest, ui: Ui) -> None:
    """Run the provisioners that no layer covers, in order, and keep what comes of each; when one fails for good, the
    error-cleanup-provisioner, and the error goes on."""
    for number, step in enumerate(plan.provisioners, 1):
        if number <= layers.at or number > layers.last:
            continue
        try:
            _provision_or_ask(plan, step, guest, ui)
        except ImgbuildError:
            if layers.kept:
                ui.message("The state before it is kept: the next build tries just that; 'imgbuild shell' opens it")
            if plan.error_cleanup is not None and plan.context.on_error is not OnError.ABORT:
                _clean_up(plan.error_cleanup, guest, ui)
            raise
        if plan.context.debug:
            ui.ask(f"Provisioner '{step.type}' is done. Press enter to continue.")
        session.keep(layers.steps[number], guest)


def _clean_up(step: ProvisionerPlan, guest: Guest, ui: Ui) -> None:
    ui.say("Running the error-cleanup-provisioner")
    try:
        _attempt(step, guest, ui)
    except ImgbuildError as error:
        ui.error(f"The error-cleanup-provisioner failed too: {error.message}")


def _provision_or_ask(plan: BuildPlan, step: ProvisionerPlan, guest: Guest, ui: Ui) -> None:
    while True:
        try:
            _with_retries(step, guest, ui)
            return
        except ImgbuildError as error:
            if plan.context.on_error is not OnError.ASK:
                raise
            _tell(error, ui)
            if ui.ask(f"Provisioner '{step.type}' failed. [r]etry it, or anything else to end the build?") != "r":
                raise


def _with_retries(step: ProvisionerPlan, guest: Guest, ui: Ui) -> None:
    if step.pause_before:
        ui.say(f"Pausing {duration(step.pause_before)} before '{step.type}'")
        time.sleep(step.pause_before)
    for attempt in range(step.max_retries + 1):
        try:
            _attempt(step, guest, ui)
            return
        except ImgbuildError as error:
            if attempt == step.max_retries:
                raise
            ui.error(error.message)
            ui.say(f"Trying '{step.type}' again (retry {attempt + 1} of {step.max_retries})")


def _attempt(step: ProvisionerPlan, guest: Guest, ui: Ui) -> None:
    with deadline(step.timeout, f"provisioner '{step.type}'"):
        step.component.provision(guest, ui)


@contextlib.contextmanager
def deadline(seconds: float, what: str) -> Iterator[None]:
    """End the block with a GuestError after so many seconds (0: never). Only on the main thread (setitimer(2))."""
    if not seconds:
        yield
        return

    def expire(_signal: int, _frame: FrameType | None) -> None:
        raise GuestError(f"{what} took longer than its timeout of {duration(seconds)}")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def post_process(chains: Sequence[Sequence[PostProcessorPlan]], built: Artifact, ui: Ui) -> list[Artifact]:
    """Run every chain on the built artifact; what no chain keeps is removed only after all of them succeeded.

    Packer destroys the finished image when a post-processor fails; here a failure leaves all that exists where it is.
    """
    left, replaced = _Left(built), list[Artifact]()
    for chain in chains:
        current = built
        for step in chain:
            ui.say(f"Running post-processor: {step.name}")
            try:
                done: Processed = step.component.process(current, ui)
            except ImgbuildError:
                ui.message(f"The image is untouched: {built.description}")
                raise
            if done.artifact is current:
                continue  # it only looked at it
            if _kept(step, done):
                left.keep(current)
            else:
                replaced.append(current)
            current = done.artifact
        left.keep(current)
    kept = left.artifacts if chains else [built]
    for artifact in replaced:
        if artifact not in kept:
            artifacts.destroy(artifact, keeping=kept)
    return kept


class _Left:
    """What stays of a build's artifacts, the built one first; each once."""

    def __init__(self, built: Artifact) -> None:
        self._built = built
        self._kept: list[Artifact] = []

    def keep(self, artifact: Artifact) -> None:
        if artifact not in self._kept:
            self._kept.append(artifact)

    @property
    def artifacts(self) -> list[Artifact]:
        return sorted(self._kept, key=lambda artifact: artifact is not self._built)


def _kept(step: PostProcessorPlan, done: Processed) -> bool:
    if done.keep_input is not None:
        return done.keep_input
    return bool(step.keep_input_artifact)
