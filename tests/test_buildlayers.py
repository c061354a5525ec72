"""The layers of one build on a real store: what it goes on from, what it adds, and that others can be at it too."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from imagebuilder.errors import CommandError, GuestError, StoreError, TemplateError
from imagebuilder.inputs import option
from imagebuilder.layers.buildlayers import BuildLayers, Origin
from imagebuilder.layers.chain import BASE, EXPORT, SHUTDOWN, Limits, Step, chain
from imagebuilder.layers.record import Layer
from imagebuilder.layers.store import Store
from imagebuilder.ui import Event, Ui

EARLIER = 1000.0  # seconds


def steps(*scripts: str, base: str = "iso", cache: bool = True) -> tuple[Step, ...]:
    ours = [Step("shell", f"shell: {text}", (option("inline", text),), cache=cache) for text in scripts]
    own = [Step(one, one, (option(one, base if one == BASE else ""),)) for one in (BASE, SHUTDOWN, EXPORT)]
    return chain([own[0], *ours, *own[1:]], "web qemu")


STEPS = steps("one", "two")


@pytest.fixture
def opened(store: Store, told: list[Event]) -> Callable[..., BuildLayers]:
    def build(
        found: Sequence[Step] = STEPS, limits: Limits | None = None, last: int | None = None, *, on: bool = True
    ) -> BuildLayers:
        ui = Ui("web", told.append)
        return BuildLayers(found, store if on else None, Origin("t.json", "web"), ui, limits or Limits(), last)

    return build


Opened = Callable[..., BuildLayers]


def test_a_store_that_can_not_be_made_only_costs_the_layers(tmp_path: Path, told: list[Event]) -> None:
    (tmp_path / "file").touch()
    ui = Ui("web", told.append)
    with BuildLayers(STEPS, Store(tmp_path / "file" / "layers"), Origin("t.json", "web"), ui, Limits()) as layers:
        assert layers.resume() is None and not layers.keeps(STEPS[0])
    warned = next(event.text for event in told if event.kind == "warning")
    assert warned.startswith("No layers are kept or used: can't")


def filled(text: str = "disk") -> Callable[[Path], None]:
    def fill(layer: Path) -> None:
        (layer / "disk0.qcow2").write_text(text)

    return fill


def run(layers: BuildLayers) -> list[int]:
    """Do what a build does, with the numbers of the steps that it ran."""
    layers.resume()
    ran = []
    for step in layers.steps[layers.at + 1 : layers.last + 1]:
        ran.append(step.number)
        if layers.keeps(step):
            layers.keep(step, filled(step.title))
        else:
            layers.passed(step)
    return ran


def texts(told: Sequence[Event], kind: str) -> list[str]:
    return [event.text for event in told if event.kind == kind]


def numbers(layers: Sequence[Layer]) -> list[int]:
    return [layer.record.step for layer in layers]


def kept(store: Store) -> list[int]:
    return sorted(numbers(store.layers()))


def layer_of(store: Store, step: Step) -> Layer:
    layer = store.find(step.fingerprint)
    assert layer is not None
    return layer


# -- going on


def test_a_build_keeps_every_step_and_the_next_needs_none(opened: Opened, store: Store, told: list[Event]) -> None:
    with opened() as layers:
        assert layers.resume() is None and (layers.at, layers.kept, layers.age) == (-1, False, 0.0)
        assert run(layers) == [0, 1, 2, 3, 4]
        assert layers.kept and layers.at == 4 and numbers(layers.held) == [0, 1, 2, 3, 4]
    assert kept(store) == [0, 1, 2, 3, 4]
    assert len(texts(told, "message")) == 5 and texts(told, "message")[0].startswith("Kept as layer ")
    with opened() as layers:
        assert layers.resume() == STEPS[4] and layers.at == 4 and layers.kept
        assert numbers(layers.held) == [4], "the image stands on nothing"
        assert 0 <= layers.age < 60
        assert run(layers) == []
    assert not texts(told, "warning")


@pytest.mark.parametrize(
    ("changed", "ran"),
    [
        (steps("one", "2"), [2, 3, 4]),
        (steps("1", "two"), [1, 2, 3, 4]),
        (steps("one", "two", base="x"), [0, 1, 2, 3, 4]),
        (steps("one", "two", "three"), [3, 4, 5]),
        (steps("one"), [2, 3]),
    ],
    ids=["last", "first", "base", "more", "fewer"],
)
def test_the_next_build_goes_on_from_the_deepest_layer(opened: Opened, changed: Sequence[Step], ran: list[int]) -> None:
    with opened() as layers:
        run(layers)
    with opened(changed) as layers:
        assert run(layers) == ran
    with opened() as layers:
        assert run(layers) == [], "what was there before still is"


def test_layers_know_what_they_stand_on(opened: Opened, store: Store) -> None:
    with opened() as layers:
        run(layers)
    found = [layer_of(store, step).record for step in STEPS]
    assert [record.parent_id for record in found] == ["", *[record.id for record in found[:3]], ""]
    assert [record.parent for record in found] == ["", *[step.fingerprint for step in STEPS[:3]], ""]
    assert [(record.template, record.build, record.name) for record in found[:2]] == [
        ("t.json", "web", "base"), ("t.json", "web", "shell"),
    ]  # fmt: skip
    assert found[1].inputs == tuple((one.label, one.digest) for one in STEPS[1].inputs or ())


def test_a_layer_stems_from_when_the_oldest_below_it_was_made(opened: Opened, store: Store) -> None:
    with opened(last=0) as layers:
        run(layers)
    base = layer_of(store, STEPS[0])
    old = replace(base.record, created=EARLIER, since=EARLIER)
    (base.path / "layer.json").write_bytes(old.to_json())
    with opened() as layers:
        assert run(layers) == [1, 2, 3, 4]
        assert [layer.record.since for layer in layers.held] == [EARLIER] * 5
    assert layer_of(store, STEPS[2]).record.created > EARLIER
    with opened(limits=Limits(max_age=3600)) as layers:
        assert run(layers) == [0, 1, 2, 3, 4], "all of them are as old as the base"
        assert min(layer.record.since for layer in layers.held) > EARLIER
    with opened(limits=Limits(max_age=3600)) as layers:
        assert run(layers) == []


def test_from_a_step_on_what_is_made_replaces_what_was(opened: Opened, store: Store) -> None:
    with opened() as layers:
        run(layers)
    before = [layer_of(store, step).record.id for step in STEPS]
    with opened(limits=Limits(start=2)) as layers:
        assert run(layers) == [2, 3, 4]
    after = [layer_of(store, step).record.id for step in STEPS]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, True, False, False, False]


@pytest.mark.parametrize(("last", "ran"), [(0, [0]), (2, [0, 1, 2]), (4, [0, 1, 2, 3, 4])])
def test_until_a_step(opened: Opened, store: Store, last: int, ran: list[int]) -> None:
    with opened(last=last) as layers:
        assert layers.partial == (last < 4) and run(layers) == ran
    with opened(last=last) as layers:
        assert run(layers) == [] and layers.at == last
    with opened(last=0) as layers:
        assert layers.resume() == STEPS[0], "nothing later than what was asked for"
    assert kept(store) == ran


def test_the_steps_that_every_build_has_are_found_by_name(opened: Opened) -> None:
    layers = opened()
    assert [layers.number(name) for name in (BASE, SHUTDOWN, EXPORT)] == [0, 3, 4]
    assert len({layers.name(step) for step in layers.steps}) == 5


def test_without_a_store_nothing_is_kept(opened: Opened, store: Store) -> None:
    with opened(on=False) as layers:
        assert layers.resume() is None and run(layers) == [0, 1, 2, 3, 4] and not layers.kept
        layers.prune()
    assert not store.directory.exists()


# -- what can't be kept, or not used


def test_after_a_step_that_is_not_kept_only_the_image_can_be(opened: Opened, store: Store) -> None:
    with opened() as layers:
        layers.resume()
        layers.keep(STEPS[0], filled())
        layers.passed(STEPS[1])
        assert [layers.keeps(step) for step in STEPS] == [True, False, False, False, True] and not layers.kept
        layers.passed(STEPS[2])
        layers.passed(STEPS[3])
        layers.keep(STEPS[4], filled())
    assert kept(store) == [0, 4]
    with opened() as layers:
        assert run(layers) == []


def test_a_step_that_says_so_is_not_kept_nor_what_follows(opened: Opened, store: Store) -> None:
    for ran in ([0, 1, 2, 3], [1, 2, 3]):
        with opened(steps("one", cache=False)) as layers:
            assert run(layers) == ran
    assert kept(store) == [0]


@pytest.mark.parametrize(
    "error",
    [StoreError("no room"), CommandError(["cp"], 1, "no room"), OSError(28, "No space left on device")],
    ids=["store", "command", "full-disk"],
)
def test_a_layer_that_can_not_be_written_costs_itself_and_what_follows(
    opened: Opened, store: Store, told: list[Event], error: Exception
) -> None:
    def fail(layer: Path) -> None:
        filled()(layer)
        raise error

    with opened() as layers:
        layers.resume()
        layers.keep(STEPS[0], filled())
        layers.keep(STEPS[1], fail)
        assert layers.at == 1 and not layers.kept
        assert not layers.keeps(STEPS[2]) and layers.keeps(STEPS[4])
        assert len(texts(told, "warning")) == 1 and "Step 1 (shell: one) is not kept" in texts(told, "warning")[0]
    assert kept(store) == [0]
    assert sorted(path.name for path in store.directory.iterdir()) == sorted([STEPS[0].fingerprint, "lock"])
    with opened() as layers:
        assert run(layers) == [1, 2, 3, 4]


def test_a_guest_that_dies_meanwhile_is_not_the_layers_to_judge(opened: Opened, store: Store) -> None:
    def fail(_: Path) -> None:
        raise GuestError("QEMU ended")

    with opened() as layers:
        layers.resume()
        with pytest.raises(GuestError):
            layers.keep(STEPS[0], fail)
    assert kept(store) == []


def test_layers_that_somebody_throws_away_meanwhile_do_not_cost_the_build(opened: Opened, store: Store) -> None:
    with opened() as layers:
        layers.resume()
        layers.keep(STEPS[0], filled())
        shutil.rmtree(store.directory)
        layers.keep(STEPS[1], filled())
        assert not layers.kept, "what it would stand on is gone"
        layers.passed(STEPS[2])
        layers.passed(STEPS[3])
        layers.keep(STEPS[4], filled())
        layers.prune()
    assert kept(store) == [4]


def test_a_store_that_turns_unusable_does_not_cost_the_build(opened: Opened, store: Store, told: list[Event]) -> None:
    with opened() as layers:
        layers.resume()
        layers.keep(STEPS[0], filled())
        shutil.rmtree(store.directory)
        store.directory.write_text("somebody's file")
        layers.keep(STEPS[1], filled())
        layers.passed(STEPS[2])
        layers.keep(STEPS[4], filled())
        assert layers.at == 4 and not layers.kept
        layers.prune()
    assert len(texts(told, "warning")) == 2
    assert store.directory.read_text() == "somebody's file"


def break_disk(layer: Layer) -> None:
    path = layer.path / "disk0.qcow2"
    path.write_text("x" * len(path.read_text()))


def test_a_broken_layer_is_refused_and_the_one_before_taken(opened: Opened, store: Store, told: list[Event]) -> None:
    with opened() as layers:
        run(layers)
    break_disk(layer_of(store, STEPS[4]))
    break_disk(layer_of(store, STEPS[2]))
    with opened() as layers:
        assert run(layers) == [2, 3, 4]
    assert len(texts(told, "warning")) == 2 and all("is broken" in text for text in texts(told, "warning"))
    with opened() as layers:
        assert run(layers) == []


def test_a_layer_that_can_not_be_restored_here_is_replaced(opened: Opened, store: Store) -> None:
    with opened(last=2) as layers:
        run(layers)
    before = [layer_of(store, step).record.id for step in STEPS[:3]]
    with opened() as layers:
        assert layers.resume() == STEPS[2]
        layers.refuse()
        assert (layers.at, layers.kept, layers.held) == (-1, False, ())
        assert layers.resume() == STEPS[1]
        layers.refuse()
        assert run(layers) == [1, 2, 3, 4]
    after = [layer_of(store, step).record.id for step in STEPS[:3]]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, False]


def test_with_nothing_held_there_is_nothing_to_refuse(opened: Opened) -> None:
    with opened() as layers:
        layers.refuse()
        assert layers.resume() is None


def test_what_is_in_use_can_not_be_removed_until_the_end(opened: Opened, store: Store) -> None:
    with opened(last=2) as layers:
        run(layers)
        assert not any(store.remove(layer) for layer in store.layers())
    with opened(last=2) as layers:
        layers.resume()
        assert not any(store.remove(layer) for layer in store.layers())
    assert all(store.remove(layer) for layer in store.layers())


# -- at the end


def test_a_build_brings_the_store_back_to_its_limit(
    opened: Opened, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMGBUILD_CACHE_SIZE", "1")
    with opened() as layers:
        layers.resume()
        for step in STEPS:
            layers.keep(step, filled("x" * 400_000))
        layers.prune()
        taken = sum(layer.size for layer in store.layers())
        assert 0 < taken <= 2**20 < 5 * 400_000


def test_a_limit_that_is_none_is_told_before_anything_is_built(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGBUILD_CACHE_SIZE", "much")
    with pytest.raises(TemplateError, match="IMGBUILD_CACHE_SIZE"), opened():
        raise AssertionError


def test_what_a_dead_build_left_is_swept_away(opened: Opened, store: Store) -> None:
    (store.directory / ".making-dead").mkdir(parents=True)
    with opened():
        assert not (store.directory / ".making-dead").exists()


# -- beside another build

OTHER = """
import sys
from pathlib import Path
from tests.test_buildlayers import STEPS, filled
from imagebuilder.layers.buildlayers import BuildLayers, Origin
from imagebuilder.layers.chain import Limits
from imagebuilder.layers.store import Store
from imagebuilder.ui import Ui
ui = Ui("", lambda event: None)
with BuildLayers(STEPS, Store(Path(sys.argv[1])), Origin("t.json", "other"), ui, Limits()) as layers:
    layers.resume()
    print("ready", flush=True)
    while sys.stdin.readline():
        step = STEPS[layers.at + 1]
        layers.passed(step) if len(sys.argv) > 2 else layers.keep(step, filled("other's"))
        print("done", flush=True)
"""


@contextmanager
def another(store: Store, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Another build of the same template, which does its next step for every line."""
    argv = [sys.executable, "-c", OTHER, str(store.directory), *arguments]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        yield child
        child.kill()


def tell(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None and child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    assert child.stdout.readline() == "done\n"


@contextmanager
def resuming(layers: BuildLayers, told: list[Event]) -> Iterator[list[Step | None]]:
    """`resume` in a thread, here once it waits; joined at the end, with its answer in the list."""
    answer: list[Step | None] = []
    thread = threading.Thread(target=lambda: answer.append(layers.resume()))
    thread.start()
    end = time.monotonic() + 10
    while not any("waiting for its layer" in text for text in texts(told, "say")):
        assert time.monotonic() < end and thread.is_alive()
        time.sleep(0.02)
    yield answer
    thread.join(10)
    assert not thread.is_alive()


def test_a_step_that_another_build_makes_is_waited_for_and_used(
    opened: Opened, store: Store, told: list[Event]
) -> None:
    with another(store) as child, opened(steps("one", "mine")) as layers:
        with resuming(layers, told) as answer:
            tell(child)  # base: it makes step 1 now
            tell(child)  # step 1: what comes next isn't ours
        assert answer == [STEPS[1]]
        assert [layer.record.build for layer in layers.held] == ["other", "other"]
        tell(child)
        assert run(layers) == [2, 3, 4]
    assert texts(told, "say") == ["Another build makes step base just now: waiting for its layer"]
    assert kept(store) == [0, 1, 2, 2, 3, 4]


def test_a_build_that_dies_at_a_step_holds_nobody_up(opened: Opened, store: Store, told: list[Event]) -> None:
    with another(store) as child, opened() as layers:
        tell(child)
        with resuming(layers, told) as answer:
            child.kill()
        assert answer == [STEPS[0]] and layers.at == 0
        assert run(layers) == [1, 2, 3, 4]


def test_a_build_that_can_not_keep_a_step_holds_nobody_up(opened: Opened, store: Store, told: list[Event]) -> None:
    with another(store, "passes") as child, opened() as layers:
        with resuming(layers, told) as answer:
            tell(child)
        assert answer == [None] and child.poll() is None
        assert run(layers) == [0, 1, 2, 3, 4]


def test_two_builds_at_one_step_keep_one_layer(opened: Opened, store: Store) -> None:
    """Who comes to a step that another is at makes it too; the layer that is there first stays."""
    with opened() as layers:
        layers.resume()
        layers.keep(STEPS[0], filled())
        base = layer_of(store, STEPS[0]).record
        theirs = replace(
            base, fingerprint=STEPS[1].fingerprint, id="1" * 32, parent=base.fingerprint, parent_id=base.id
        )
        with store.making(theirs) as making:
            filled("other's")(making.path)
            assert making.keep() is not None
        layers.keep(STEPS[1], filled("ours"))
        assert not layers.kept and not layers.keeps(STEPS[2]), "what follows would stand on ours, which isn't there"
    assert (layer_of(store, STEPS[1]).path / "disk0.qcow2").read_text() == "other's"


@pytest.mark.parametrize("keepable", [True, False], ids=["kept", "passed"])
def test_what_was_changed_while_the_build_ran_spoils_all_that_follows(
    store: Store, told: list[Event], keepable: bool
) -> None:
    ui = Ui("web", told.append)
    with BuildLayers(STEPS, store, Origin("t", "web"), ui, Limits(), None, lambda step: step.number != 1) as layers:
        layers.resume()
        layers.keep(STEPS[0], filled())
        if keepable:
            layers.keep(STEPS[1], filled())
        else:
            layers.passed(STEPS[1])
        assert not any(layers.keeps(step) for step in STEPS[2:])
    assert [layer.record.step for layer in store.layers()] == [0]
    assert "was changed while the build ran" in told[-1].text
