"""`imgbuild shell`: a shell in a guest as a layer has it, to find out what is wrong; its changes are thrown away."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import cast

from imagebuilder import plugins
from imagebuilder.builders.run import Source
from imagebuilder.builders.session import resumed_guest
from imagebuilder.caching import origin_of
from imagebuilder.errors import ImgbuildError, TemplateError
from imagebuilder.layers.buildlayers import BuildLayers
from imagebuilder.layers.chain import EXPORT, SHUTDOWN, Known, Limits, Step, find, usable
from imagebuilder.layers.store import Store
from imagebuilder.ssh.communicator import SshCommunicator
from imagebuilder.steps import steps
from imagebuilder.templates.buildplan import BuildPlan
from imagebuilder.ui import Ui


def only_build(plans: Sequence[BuildPlan]) -> BuildPlan:
    """The one build that is meant. Raises TemplateError."""
    if len(plans) == 1:
        return plans[0]
    names = ", ".join(plan.context.build_name for plan in plans)
    raise TemplateError(f"a shell opens in one build: choose it with -only (there are {names})")


def open_shell(plan: BuildPlan, at: str, ui: Ui) -> int:
    """Restore the layer after step `at` ("": the deepest of a guest that runs), open a shell; its exit status.

    Raises ImgbuildError when there is no such layer, GuestError when it can't be restored.
    """
    ui.mask(*plan.context.sensitive)
    source, store = _source(plan), Store()
    found = steps(plan, ui, fetch=False)
    step = choose(found, at, store, _path(plan))
    if step.name == SHUTDOWN and getattr(plan.builder_options, "makes_key", False):
        raise ImgbuildError(
            "nobody can log in to the machine that was shut down: the build's key is out of it",
            hint="open an earlier step, or try the image: imgbuild boot",
        )
    with BuildLayers(found, store, origin_of(plan), ui, Limits(), step.number) as layers:
        layers.resume()
        if layers.at != step.number:
            raise _missing(step, _path(plan))
        with resumed_guest(source, ui, layers) as guest:
            if not isinstance(guest.communicator, SshCommunicator):
                raise ImgbuildError("only a guest that is reached by SSH can open a shell")
            ui.say("Whatever is done in this shell is thrown away at its end")
            return guest.communicator.shell()


def choose(found: Sequence[Step], at: str, store: Known, path: str) -> Step:
    """The step whose layer is opened. Raises ImgbuildError when there is no such layer."""
    if at:
        step = find(found, at)
        if step.name == EXPORT:
            raise ImgbuildError("the layer of step export is an image, no machine", hint="`imgbuild boot` tries images")
        if step.why_not:
            raise ImgbuildError(f"no layer is kept of step {step}: {step.why_not}")
        if usable(step, store, Limits()) is None:
            raise _missing(step, path)
        return step
    running = [step for step in found if step.name not in (SHUTDOWN, EXPORT)]
    kept = [step for step in running if usable(step, store, Limits())]
    if kept:
        return kept[-1]
    if running[0].why_not:
        raise ImgbuildError(f"no layer is kept of step {running[0]}: {running[0].why_not}")
    raise _missing(running[0], path)


def _missing(step: Step, path: str) -> ImgbuildError:
    word = step.name if step.name == SHUTDOWN or step.number == 0 else str(step.number)
    command = shlex.join(["imgbuild", "build", f"-until={word}", path])
    return ImgbuildError(f"there is no layer of step {step} as the template is now", hint=f"run `{command}`")


def _source(plan: BuildPlan) -> Source:
    """The builder, as far as its machine is ours to restore."""
    if plan.context.builder_type not in plugins.BUILT_IN["builders"]:
        raise ImgbuildError(f"builder '{plan.context.builder_type}' is not imgbuild's own: its machines open no shell")
    if getattr(plan.builder_options, "communicator", "ssh") == "none":
        raise ImgbuildError("the build has communicator 'none': nothing is kept of a guest that nobody can reach")
    return cast(Source, plan.builder)


def _path(plan: BuildPlan) -> str:
    return str(plan.context.template_path or "-")
