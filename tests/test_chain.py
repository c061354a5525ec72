"""Steps with their fingerprints, what of them is usable, and the reasons why a step must run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from imagebuilder import inputs
from imagebuilder.errors import ImgbuildError
from imagebuilder.inputs import Input, option
from imagebuilder.layers.chain import BASE, EXPORT, SHUTDOWN, Limits, Step, chain, changed, deepest, find, judge, usable
from imagebuilder.layers.record import Layer, Record

HOUR = 3600.0


def shell(text: str, title: str = "shell: a.sh", **keys: object) -> Step:
    return replace(Step("shell", title, (inputs.content("script", "a.sh", text),)), **keys)  # type: ignore[arg-type]


def build(*ours: Step, base: str = "iso", name: str = "web") -> tuple[Step, ...]:
    own = [Step(one, one, (option(one, base if one == BASE else ""),)) for one in (BASE, SHUTDOWN, EXPORT)]
    return chain([own[0], *ours, *own[1:]], f"{name} qemu")


def names(steps: Sequence[Step]) -> list[str]:
    return [step.fingerprint for step in steps]


# -- fingerprints


def test_every_step_has_its_number_and_a_fingerprint_of_its_own() -> None:
    found = build(shell("one"), shell("one"))
    assert [step.number for step in found] == [0, 1, 2, 3, 4]
    assert len(set(names(found))) == 5, "the same script twice is two steps"
    assert names(found) == names(build(shell("one"), shell("one")))


@pytest.mark.parametrize(
    ("other", "first"),
    [
        (build(shell("one"), shell("2")), 2),
        (build(shell("1"), shell("two")), 1),
        (build(shell("one"), shell("two"), base="another"), 0),
        (build(shell("two"), shell("one")), 1),
        (build(shell("one"), shell("new"), shell("two")), 2),
        (build(shell("one"), shell("two", cache_key="2024")), 2),
    ],
    ids=["second", "first", "base", "order", "inserted", "cache-key"],
)
def test_a_change_counts_from_its_step_on(other: Sequence[Step], first: int) -> None:
    found = build(shell("one"), shell("two"))
    same = [one == two for one, two in zip(names(found), names(other), strict=False)]
    assert same == [number < first for number in range(len(found))]


def test_a_title_is_no_input() -> None:
    assert names(build(shell("one", "shell: a.sh"))) == names(build(shell("one", "shell: renamed.sh")))


UNSEEN = "what it does can't be seen from here: give it a cache_key if it is the same every time"


@pytest.mark.parametrize(
    ("step", "why", "word"),
    [
        (shell("one", cache=False), "cache is false", "never kept"),
        (shell("one", cache=False, cache_key="1"), "cache is false", "never kept"),
        (Step("breakpoint", "breakpoint", None), UNSEEN, "never kept"),
        (shell("one", why_not="http://x/y must be fetched"), "http://x/y must be fetched", "not known"),
    ],
    ids=["cache-false", "cache-false-wins", "unseen", "unknown-as-yet"],
)
def test_nothing_is_kept_of_some_steps_and_of_all_that_follow(step: Step, why: str, word: str) -> None:
    found = build(shell("zero"), step, shell("two"))
    kept = [bool(one.fingerprint) for one in found]
    assert kept == [True, True, False, False, False, False]
    after = f"comes after {found[2]}, which is {word}"
    assert [one.why_not for one in found] == ["", "", why, after, after, after]


def test_the_last_step_in_the_way_is_not_named_twice() -> None:
    found = build(shell("one", cache=False), shell("two", cache=False), shell("three"))
    assert found[3].why_not == "comes after 1 (shell: a.sh), which is never kept"


def test_a_cache_key_makes_an_unseen_step_one_that_is_kept() -> None:
    one, other = (build(Step("shell-local", "shell-local", None, cache_key=key)) for key in ("1", "2"))
    assert all(names(one)) and names(one)[0] == names(other)[0] and names(one)[1] != names(other)[1]
    assert ("cache_key", option("cache_key", "1").digest) in [(i.label, i.digest) for i in one[1].inputs or ()]


def test_builds_share_their_steps_until_one_reads_which_build_it_is() -> None:
    given = (shell("one"), shell("echo $PACKER_BUILD_NAME"), shell("three"))
    web, db = (names(build(*given, name=name)) for name in ("web", "db"))
    assert [one == two for one, two in zip(web, db, strict=True)] == [True, True, False, False, False, False]
    plain = [names(build(shell("one"), shell("three"), name=name)) for name in ("web", "db")]
    assert plain[0] == plain[1]


def test_a_base_is_shared_though_a_file_in_it_names_the_build() -> None:
    """Its inputs hold whatever the guest is told of the build; only what runs in the guest reads its environment."""
    served = inputs.content("served", "ks", "PACKER_BUILD_NAME")
    found = [chain([Step(BASE, BASE, (served,)), shell("one")], name) for name in ("web", "db")]
    assert [one == two for one, two in zip(names(found[0]), names(found[1]), strict=True)] == [True, False]


@pytest.mark.parametrize("where", [BASE, "shell", SHUTDOWN])
def test_late_templates_that_ask_for_the_build_are_not_shared(where: str) -> None:
    asks = inputs.option("shutdown_command", "echo {{ build `ID` }}; poweroff")
    steps = [Step(BASE, BASE, ()), shell("one"), Step(SHUTDOWN, SHUTDOWN, ()), Step(EXPORT, EXPORT, ())]
    steps = [replace(step, inputs=(*(step.inputs or ()), asks)) if step.name == where else step for step in steps]
    found = [names(chain(steps, name)) for name in ("web qemu", "db qemu")]
    first = [step.name for step in steps].index(where)
    assert found[0][:first] == found[1][:first] and not set(found[0][first:]) & set(found[1][first:])


def test_late_templates_that_ask_for_variables_know_their_values() -> None:
    asks = inputs.option("execute_command", "{{ user `who` | upper }} {{.Path}}")
    steps = [Step(BASE, BASE, ()), Step("shell", "shell: x", (asks,))]
    found = [names(chain(steps, "web", {"who": who})) for who in ("me", "you")]
    assert found[0][0] == found[1][0] and found[0][1] != found[1][1]


# -- a step by what a person writes

STEPS = build(
    shell("1", "shell: scripts/base.sh"), shell("2", "shell: scripts/web.sh"), Step("file", "file: 2.conf", ())
)


@pytest.mark.parametrize(
    ("word", "number"),
    [("0", 0), ("base", 0), ("2", 2), ("shell: scripts/web.sh", 2), ("web.sh", 2), ("WEB", 2), ("file", 3),
     ("2.conf", 3), ("shutdown", 4), ("export", 5)],
)  # fmt: skip
def test_a_step_is_found_by_its_number_name_or_a_part_of_its_title(word: str, number: int) -> None:
    assert find(STEPS, word).number == number


@pytest.mark.parametrize(
    ("word", "message", "hint"),
    [
        ("shell", "'shell' is more than one step", "1 (shell: scripts/base.sh), 2 (shell: scripts/web.sh)"),
        ("scripts/", "'scripts/' is more than one step", "2 (shell: scripts/web.sh)"),
        ("9", "there is no step '9'", "0 (base), 1 (shell: scripts/base.sh)"),
        ("exprot", "there is no step 'exprot'", "did you mean 'export'?"),
    ],
    ids=["name", "part", "number", "mistyped"],
)
def test_a_step_that_is_not_one_is_told_with_what_to_write(word: str, message: str, hint: str) -> None:
    with pytest.raises(ImgbuildError) as raised:
        find(STEPS, word)
    assert raised.value.message == message and hint in (raised.value.hint or "")


# -- what a store makes needless


class Shelf:
    """Records as a store would find them: each layer with those it stands on."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}
        self.useless: set[str] = set()  # whose parents have other ids than they had

    def keep(self, steps: Sequence[Step], *, build: str = "web", ago: float = 0.0) -> None:
        """Every step of a build that can be kept, made so many seconds ago."""
        parent: Record | None = None
        then = time.time() - ago
        for step in steps:
            if step.fingerprint:
                parent = self.records.setdefault(step.fingerprint, _record(step, parent, build, then))

    def find(self, fingerprint: str) -> Layer | None:
        record = self.records.get(fingerprint) if fingerprint not in self.useless else None
        whole = record is not None and (not record.parent or self.find(record.parent) is not None)
        return _layer(record) if record is not None and whole else None

    def chain(self, layer: Layer) -> list[Layer]:
        raise AssertionError("nobody needs it to judge")

    def layers(self) -> list[Layer]:
        return [_layer(record) for record in self.records.values()]


def _record(step: Step, parent: Record | None, build: str, then: float) -> Record:
    return Record(
        fingerprint=step.fingerprint, parent=parent.fingerprint if parent and step.name != EXPORT else "",
        template="t.json", build=build, step=step.number, name=step.name, title=step.title, created=then, since=then,
        inputs=tuple((one.label, one.digest) for one in step.inputs or ()),
    )  # fmt: skip


def _layer(record: Record) -> Layer:
    return Layer(record, Path(record.fingerprint), record.created, 0)


def whys(steps: Sequence[Step], shelf: Shelf, limits: Limits | None = None, build: str = "web") -> list[str]:
    return [verdict.why for verdict in judge(steps, shelf, limits or Limits(), "t.json", build)]


@pytest.fixture
def shelf() -> Shelf:
    """What is there once base, one, two, shutdown and export were built."""
    shelf = Shelf()
    shelf.keep(build(shell("one"), shell("two")))
    return shelf


def test_nothing_must_run_when_nothing_has_changed(shelf: Shelf) -> None:
    steps = build(shell("one"), shell("two"))
    assert whys(steps, shelf) == [""] * 5 and deepest(steps, shelf, Limits()) == 4


def test_the_image_alone_is_enough(shelf: Shelf) -> None:
    steps = build(shell("one"), shell("two"))
    for step in steps[:4]:
        del shelf.records[step.fingerprint]
    assert deepest(steps, shelf, Limits()) == 4


AGAIN, NEW = "an earlier step runs again", "not built before"


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (build(shell("one"), shell("2")), ["", "", "a.sh changed", AGAIN, AGAIN]),
        (build(shell("one"), shell("two"), base="x"), ["base changed", AGAIN, AGAIN, AGAIN, AGAIN]),
        (build(shell("one"), shell("two", cache_key="x")), ["", "", "cache_key is new", AGAIN, AGAIN]),
        (build(shell("one"), replace(shell("two"), inputs=())), ["", "", "a.sh is gone", AGAIN, AGAIN]),
        (build(shell("one"), shell("two"), shell("3")), ["", "", "", NEW, AGAIN, AGAIN]),
        (build(shell("one")), ["", "", "an earlier step has changed", AGAIN]),
        (build(shell("one"), Step("file", "file", (option("content", 1),))), ["", "", NEW, AGAIN, AGAIN]),
        (build(shell("one"), shell("two", cache=False)),
         ["", "", "cache is false", *["comes after 2 (shell: a.sh), which is never kept"] * 2]),
    ],
    ids=["content", "base", "cache-key", "gone", "more", "fewer", "another-type", "cache-false"],
)  # fmt: skip
def test_every_step_that_must_run_says_why(shelf: Shelf, steps: Sequence[Step], expected: list[str]) -> None:
    assert whys(steps, shelf) == expected


def test_a_layer_that_is_gone_is_told_by_what_is_left(shelf: Shelf) -> None:
    steps = build(shell("one"), shell("two"))
    for step in steps[1:]:
        del shelf.records[step.fingerprint]
    assert whys(steps, shelf)[1:3] == [NEW] * 2, "no record tells that it ever was"


def test_a_layer_whose_ground_is_gone(shelf: Shelf) -> None:
    steps = build(shell("one"), shell("two"))
    for step in (steps[0], steps[4]):
        del shelf.records[step.fingerprint]
    assert whys(steps, shelf) == [NEW, AGAIN, AGAIN, AGAIN, NEW]


def test_a_step_after_one_that_was_just_mended_was_never_built_on_it(shelf: Shelf) -> None:
    """The last build kept its first step anew and failed in the second: that one has not changed, nor is it gone."""
    shelf.keep(build(shell("mended"))[:2])
    found = whys(build(shell("mended"), shell("two")), shelf)
    assert found == ["", "", "an earlier step has changed", AGAIN, AGAIN]


def test_a_layer_made_anew_takes_what_stood_on_it_along(shelf: Shelf) -> None:
    steps = build(shell("one"), shell("two"))
    del shelf.records[steps[4].fingerprint]
    shelf.useless = {step.fingerprint for step in steps[2:]}
    assert whys(steps, shelf)[:4] == ["", "", "an earlier step was made anew", AGAIN]


def test_what_another_build_made_is_used_but_not_compared_with(shelf: Shelf) -> None:
    steps = build(shell("one"), shell("db"))
    assert whys(steps, shelf, build="db") == ["", "", NEW, NEW, NEW]


def test_the_last_of_several_runs_is_compared_with(shelf: Shelf) -> None:
    for number, step in enumerate((shell("two", cache_key="a"), shell("2", cache_key="b"))):
        shelf.keep(build(shell("one"), step), ago=HOUR * (2 - number))
    latest = build(shell("one"), replace(shell("two"), inputs=(*(shell("two").inputs or ()), option("x", 1))))
    assert whys(latest, shelf)[2] == "x is new"


@pytest.mark.parametrize("start", [0, 2, 4])
def test_from_a_step_on_all_runs_again(shelf: Shelf, start: int) -> None:
    steps, limits = build(shell("one"), shell("two")), Limits(start=start)
    assert deepest(steps, shelf, limits) == start - 1
    assert whys(steps, shelf, limits) == [""] * start + ["asked for by -from"] * (5 - start)
    assert usable(steps[start], shelf, limits) is None


def test_from_a_step_that_has_changed_says_what_changed(shelf: Shelf) -> None:
    assert whys(build(shell("one"), shell("2")), shelf, Limits(start=2))[2:] == ["a.sh changed", AGAIN, AGAIN]


def test_what_stems_from_too_long_ago_is_not_used() -> None:
    shelf = Shelf()
    shelf.keep(build(shell("one"))[:1], ago=3 * HOUR)
    shelf.keep(build(shell("one")), ago=0.5 * HOUR)
    old, steps = "its layer stems from 3 h 0 min ago (-cache-max-age)", build(shell("one"))
    for fingerprint, record in shelf.records.items():
        shelf.records[fingerprint] = replace(record, since=time.time() - 3 * HOUR)
    assert whys(steps, shelf, Limits(max_age=HOUR)) == [old] * 4
    assert whys(steps, shelf, Limits(max_age=4 * HOUR)) == [""] * 4


# -- what differs between two runs

CHANGES: dict[str, tuple[Mapping[str, str], Mapping[str, str], list[str]]] = {
    "nothing": ({"a": "1"}, {"a": "1"}, []),
    "content": ({"a": "1", "b": "2"}, {"a": "1", "b": "3"}, ["b changed"]),
    "new": ({"a": "1"}, {"a": "1", "b": "2"}, ["b is new"]),
    "gone": ({"a": "1", "b": "2"}, {"a": "1"}, ["b is gone"]),
    "renamed": ({"old.sh": "1"}, {"new.sh": "1"}, ["new.sh moved"]),
    "renamed-and-changed": ({"old.sh": "1"}, {"new.sh": "2"}, ["new.sh is new", "old.sh is gone"]),
}


@pytest.mark.parametrize(("before", "now", "expected"), CHANGES.values(), ids=CHANGES)
def test_what_changed(before: Mapping[str, str], now: Mapping[str, str], expected: list[str]) -> None:
    assert list(changed(list(before.items()), list(now.items()))) == expected


def test_two_inputs_of_one_name_are_two() -> None:
    assert list(changed([("a", "1"), ("a", "2")], [("a", "1"), ("a", "3")])) == ["a changed"]
    assert list(changed([("a", "1"), ("a", "2")], [("a", "1")])) == ["a is gone"]


def test_a_file_that_was_only_renamed_is_no_reason() -> None:
    """Its label is no part of the fingerprint, so its layer is used."""
    shelf = Shelf()
    shelf.keep(build(shell("one")))
    moved = Input("renamed.sh", (shell("one").inputs or ())[0].digest)
    assert whys(build(replace(shell("one"), inputs=(moved,))), shelf) == [""] * 4


def test_two_scripts_that_changed_places_are_told() -> None:
    one, two = (inputs.content("script", name, name) for name in ("a.sh", "b.sh"))
    shelf = Shelf()
    shelf.keep(build(Step("shell", "s", (one, two))))
    assert whys(build(Step("shell", "s", (two, one))), shelf)[1] == "the order of its inputs changed"


def test_many_changes_are_cut_short(shelf: Shelf) -> None:
    many = replace(shell("two"), inputs=tuple(option(str(number), number) for number in range(6)))
    assert whys(build(shell("one"), many), shelf)[2] == "0 is new, 1 is new, 2 is new, 3 is new and more"
