"""A build's story without a guest: retries, timeouts, cleanup, and what is kept of artifacts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from imagebuilder import build
from imagebuilder.caching import Caching
from imagebuilder.errors import GuestError, ImgbuildError
from imagebuilder.layers import chain as layers
from imagebuilder.layers.buildlayers import BuildLayers
from imagebuilder.options import Options
from imagebuilder.plugins import Artifact, BuildContext, Guest, OnError, Processed
from imagebuilder.templates.buildplan import BuildPlan, PostProcessorPlan, ProvisionerPlan
from imagebuilder.ui import Event, Ui


class Engine:
    def render(self, text: str, dot: Any = None, build: Any = None) -> str:
        return text


class Step:
    """A provisioner that does what the test says and remembers how often."""

    def __init__(self, act: Callable[[int], None] = lambda _: None) -> None:
        self.act, self.calls = act, 0

    def provision(self, guest: Guest, ui: Ui) -> None:
        self.calls += 1
        self.act(self.calls)


def fail(_: int) -> None:
    raise GuestError("it broke", hint="mend it")


def planned(component: Step, **keys: Any) -> ProvisionerPlan:
    core = {"pause_before": 0.0, "timeout": 0.0, "max_retries": 0, "position": None, **keys}
    return ProvisionerPlan(type="test", component=component, options=Options(), **core)


class Session:
    has_disks = False

    def __init__(self, artifact: Artifact) -> None:
        self.made, self.log = artifact, list[str]()

    @contextmanager
    def guest(self, *, end: bool = True) -> Iterator[Guest]:
        self.log.append("boot")
        yield Guest(None, {})
        if end:
            self.log.append("shutdown")

    def use(self, kept: BuildLayers) -> None:
        self.layers = kept

    def keep(self, step: layers.Step, guest: Guest) -> None:
        self.log.append(f"keep {step.number}")

    def artifact(self) -> Artifact:
        self.log.append("export")
        return self.made


class Builder:
    def __init__(self, session: Session) -> None:
        self.one = session

    def steps(self, ui: Ui, *, fetch: bool) -> tuple[layers.Step, ...]:
        return tuple(layers.Step(name, name, ()) for name in (layers.BASE, layers.SHUTDOWN, layers.EXPORT))

    @contextmanager
    def session(self, ui: Ui, *, partial: bool) -> Iterator[Session]:
        yield self.one


def make(tmp_path: Path, *steps: ProvisionerPlan, **keys: Any) -> tuple[BuildPlan, Session]:
    output = tmp_path / "output"
    output.mkdir()
    (output / "disk").write_text("image")
    artifact = Artifact("test", "VM", f"VM files in directory: {output}", (output / "disk",), directory=output)
    session = Session(artifact)
    context = BuildContext("b", "test", Engine(), on_error=keys.pop("on_error", OnError.CLEANUP))
    rest = {"error_cleanup": None, "post_processors": (), **keys}
    return BuildPlan(
        context=context, builder=Builder(session), builder_options=Options(), provisioners=steps, **rest
    ), session


def run(plan: BuildPlan, until: str = "") -> tuple[build.BuildResult, list[Event]]:
    events: list[Event] = []
    return build.run(plan, Ui("b", events.append), Caching(on=False, until=until)), events


def test_the_story_in_order(tmp_path: Path) -> None:
    step = Step()
    plan, session = make(tmp_path, planned(step))
    result, _ = run(plan)
    assert session.log == ["boot", "keep 1", "shutdown", "export"]
    assert step.calls == 1
    assert [artifact.id for artifact in result.artifacts] == ["VM"]


def test_until_ends_it_early(tmp_path: Path) -> None:
    first, second = Step(), Step()
    plan, session = make(tmp_path, planned(first), planned(second))
    result, _ = run(plan, until="1")
    assert (first.calls, second.calls, session.log) == (1, 0, ["boot", "keep 1"])
    assert result.artifacts == () and result.error is None


def test_a_step_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    plan, session = make(tmp_path, planned(Step()))
    result, _ = run(plan, until="nothing")
    assert "there is no step 'nothing'" in str(result.error)
    assert session.log == []


def test_a_failing_provisioner_is_tried_again_as_often_as_max_retries_says(tmp_path: Path) -> None:
    step = Step(lambda call: fail(call) if call < 3 else None)
    plan, _ = make(tmp_path, planned(step, max_retries=2))
    assert run(plan)[0].error is None
    assert step.calls == 3


def test_a_failure_ends_the_build_after_the_cleanup_provisioner(tmp_path: Path) -> None:
    cleanup, never = Step(), Step()
    plan, session = make(tmp_path, planned(Step(fail)), planned(never), error_cleanup=planned(cleanup))
    result, events = run(plan)
    assert isinstance(result.error, GuestError)
    assert (cleanup.calls, never.calls, session.log) == (1, 0, ["boot"])
    assert [event.text for event in events if event.kind == "error"] == ["it broke", "hint: mend it"]


def test_abort_does_not_touch_the_guest_again(tmp_path: Path) -> None:
    cleanup = Step()
    plan, _ = make(tmp_path, planned(Step(fail)), error_cleanup=planned(cleanup), on_error=OnError.ABORT)
    assert run(plan)[0].error is not None
    assert cleanup.calls == 0


def test_a_provisioner_has_a_timeout_and_a_pause_before(tmp_path: Path) -> None:
    plan, _ = make(tmp_path, planned(Step(lambda _: time.sleep(30)), timeout=0.2, pause_before=0.1))
    began = time.monotonic()
    result, _ = run(plan)
    assert "timeout" in str(result.error)
    assert 0.3 <= time.monotonic() - began < 5


def test_an_interrupt_is_no_error(tmp_path: Path) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    plan, _ = make(tmp_path, planned(Step(interrupt)))
    result, _ = run(plan)
    assert result.interrupted
    assert result.error is None


class Maker:
    """A post-processor that writes a file beside its input."""

    def __init__(self, path: Path | None, keep: bool | None = None, error: str = "") -> None:
        self.path, self.keep, self.error = path, keep, error

    def process(self, artifact: Artifact, ui: Ui) -> Processed:
        if self.error:
            raise ImgbuildError(self.error)
        if self.path is None:
            return Processed(artifact, self.keep)
        self.path.write_text("made")
        return Processed(Artifact("made", "files", "made", (self.path,)), self.keep)


def chain(*makers: Maker, keep: bool | None = None) -> tuple[PostProcessorPlan, ...]:
    return tuple(
        PostProcessorPlan(type="t", name="t", component=maker, options=Options(), keep_input_artifact=keep)
        for maker in makers
    )


def exists(tmp_path: Path) -> set[str]:
    return {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("chains", "left"),
    [
        ([], {"output"}),
        ([[("a", None)]], {"a"}),
        ([[("a", True)]], {"a", "output"}),
        ([[("a", None)], [("b", True)]], {"a", "b", "output"}),
        ([[("a", None), ("b", None)]], {"b"}),
        ([[("a", True), ("b", None)]], {"output", "b"}),
        ([[("", True)]], {"output"}),
        ([[("", None)]], {"output"}),
        ([[("", True), ("a", None)]], {"a"}),
    ],
    ids=["none", "replaces", "keeps", "one chain keeps", "sequence", "keep first", "passes on", "same back", "mixed"],
)
def test_what_is_left_when_all_succeeded(tmp_path: Path, chains: list[Any], left: set[str]) -> None:
    made = tuple(chain(*(Maker(tmp_path / name if name else None, keep) for name, keep in one)) for one in chains)
    plan, _ = make(tmp_path, post_processors=made)
    result, _ = run(plan)
    assert result.error is None
    assert exists(tmp_path) == left
    assert {
        path.parent.name if path.name == "disk" else path.name for a in result.artifacts for path in a.files
    } == left


def test_a_failing_post_processor_destroys_nothing(tmp_path: Path) -> None:
    chains = (chain(Maker(tmp_path / "a")), chain(Maker(None, error="disk full")))
    plan, _ = make(tmp_path, post_processors=chains)
    result, events = run(plan)
    assert str(result.error) == "disk full"
    assert exists(tmp_path) == {"a", "output"}
    assert any("untouched" in event.text for event in events)
