"""`imgbuild cache`: what is listed, what would be used next, and what goes when room is made."""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from imagebuilder import cachecommand
from imagebuilder.cli import main
from imagebuilder.errors import TemplateError
from imagebuilder.layercli import cache
from imagebuilder.layers.record import Layer, Record
from imagebuilder.layers.store import Store
from imagebuilder.steps import steps
from imagebuilder.templates import template
from imagebuilder.templates.buildplan import BuildPlan
from imagebuilder.ui import JsonConsole, MachineConsole, TextConsole
from tests.images import quiet

HOUR, DAY = 3600.0, 86400.0
SECRET = "5" * 64


def make(store: Store, fingerprint: str, parent: Layer | None = None, *, age: float = 0, **about: Any) -> Layer:
    """A layer with 40 KiB of disk, made and used so many seconds ago; with memory unless its step is off."""
    then = time.time() - age
    record = Record(fingerprint=fingerprint, created=then, since=then, inputs=(("base.sh", SECRET),), **about)
    if parent is not None:
        record = replace(record, parent=parent.record.fingerprint, parent_id=parent.record.id)
    with store.making(record) as making:
        (making.path / "disk0.qcow2").write_bytes(os.urandom(40 << 10))
        if record.name != "shutdown":
            (making.path / "memory.zst").write_bytes(b"memory")
        layer = making.keep()
    assert layer is not None
    os.utime(layer.path / "layer.json", (then, then))
    return layer


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """In the cache that the test has for itself: a base, two steps on it, and a base of another template."""
    monkeypatch.chdir(tmp_path)
    store = Store()
    mine: dict[str, Any] = {"template": str(Path("t.json").absolute()), "build": "qemu"}
    base = make(store, "a" * 64, age=9 * DAY, step=0, name="base", title="base", **mine)
    shell = make(store, "ab" + "0" * 62, base, age=3 * HOUR + 60, step=1, name="shell", title="shell: a.sh", **mine)
    make(store, "c" * 64, shell, age=300, step=2, name="shutdown", title="shutdown", **mine)
    make(
        store,
        "d" * 64,
        age=2 * DAY,
        step=0,
        name="base",
        title="base",
        template=str(Path("other.json").absolute()),
        build="tiny",
    )
    return store


class Shown:
    """What a command has said, as text, as JSON or as machine-readable lines."""

    def __init__(self) -> None:
        self._out = io.StringIO()
        self.text = TextConsole(self._out, None, color=False)
        self.json, self.machine = JsonConsole(self._out), MachineConsole(self._out)

    @property
    def lines(self) -> list[str]:
        return self._out.getvalue().splitlines()

    @property
    def objects(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]

    @property
    def rows(self) -> list[list[str]]:
        return [line.split(",")[1:] for line in self.lines]


@pytest.fixture
def shown() -> Shown:
    return Shown()


def letters(store: Store) -> str:
    return " ".join(layer.record.fingerprint[:2] for layer in store.layers())


@contextmanager
def held(store: Store, fingerprint: str) -> Iterator[None]:
    """As a build that goes on from it."""
    holding = store.hold(fingerprint, quiet())
    assert holding is not None
    with holding:
        yield


# -- ls


def test_layers_are_listed_by_template_build_and_step(store: Store, shown: Shown) -> None:
    cachecommand.show_layers(store, shown.text)
    taken = sum(layer.size for layer in store.layers()) / 1024
    assert shown.lines == [
        "other.json",
        "  LAYER         BUILD  STEP           SIZE      HOLDS   MADE       USED",
        "  dddddddddddd  tiny   0 base         48.0 KiB  memory  2 d ago    2 d ago",
        "",
        "t.json",
        "  LAYER         BUILD  STEP           SIZE      HOLDS   MADE       USED",
        "  aaaaaaaaaaaa  qemu   0 base         48.0 KiB  memory  9 d ago    9 d ago",
        "  ab0000000000  qemu   1 shell: a.sh  48.0 KiB  memory  3 h ago    3 h ago",
        "  cccccccccccc  qemu   2 shutdown     44.0 KiB  disk    5 min ago  5 min ago",
        "",
        f"4 layers in {store.directory}, {taken:.1f} KiB of at most 30.0 GiB (IMGBUILD_CACHE_SIZE)",
    ]


def test_a_table_fits_a_terminal_and_a_row_is_one_line(store: Store, shown: Shown) -> None:
    long = "shell: " + "word " * 30 + "\nof a second line"
    make(store, "e" * 64, step=12, name="shell", title=long, template="/far" * 60, build="build" * 20)
    cachecommand.show_layers(store, shown.text)
    table = shown.lines[:-1]
    assert max(map(len, table)) == 100
    (row,) = [line for line in table if "eeeeeeeeeeee" in line]
    assert "  12 shell: word" in row and "...  " in row and row.endswith("0 s ago")


def test_an_empty_cache_is_said_and_nothing_is_made(shown: Shown) -> None:
    cachecommand.show_layers(Store(), shown.text)
    assert shown.lines == [f"No layers in {Store().directory}"]
    assert not Store().directory.exists()


def test_no_limit_is_said(store: Store, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGBUILD_CACHE_SIZE", "0")
    cachecommand.show_layers(store, shown.text)
    assert "without a limit" in shown.lines[-1]


def test_programs_get_one_object_or_line_a_layer(store: Store) -> None:
    as_json, as_lines = Shown(), Shown()
    cachecommand.show_layers(store, as_json.json)
    cachecommand.show_layers(store, as_lines.machine)
    by_name = {one["fingerprint"]: one for one in as_json.objects}
    assert by_name.keys() == {layer.record.fingerprint for layer in store.layers()}
    shutdown, base = by_name["c" * 64], by_name["a" * 64]
    assert (shutdown["build"], shutdown["step"], shutdown["memory"], base["memory"]) == ("qemu", 2, False, True)
    assert shutdown["parent"] == "ab" + "0" * 62 and base["parent"] == "" and base["used_next"] is None
    assert [row[:4] for row in as_lines.rows] == [
        [one["build"], "layer", one["fingerprint"], one["template"]] for one in as_json.objects
    ]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildPlan:
    """A build of two scripts on an image, with a QEMU that only tells its version."""
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "bin/qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho QEMU emulator version 7.2.0\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    Path("image").write_bytes(b"image")
    builder = {
        "type": "qemu", "disk_image": True, "iso_url": "image", "iso_checksum": "none", "ssh_username": "root",
        "accelerator": "tcg",
    }  # fmt: skip
    scripts = [{"type": "shell", "inline": ["echo one"]}, {"type": "shell", "inline": ["echo two"]}]
    return written({"builders": [builder], "provisioners": scripts})


def written(content: dict[str, Any]) -> BuildPlan:
    Path("t.json").write_text(json.dumps(content))
    return template.plan_builds(template.load_template("t.json"), environ={}).builds[0]


def test_what_a_template_would_use_next_is_marked(store: Store, shown: Shown, plan: BuildPlan) -> None:
    base, first, *_ = steps(plan, quiet(), fetch=False)
    mine = str(Path("t.json").absolute())
    kept = make(store, base.fingerprint, step=0, name="base", title="base", template="elsewhere.json", build="b")
    make(store, first.fingerprint, kept, step=1, name="shell", title=first.title, template=mine, build="qemu")
    cachecommand.show_layers(store, shown.json, [plan])
    found = {one["fingerprint"]: one["used_next"] for one in shown.objects}
    unused = {"a" * 64: False, "ab" + "0" * 62: False, "c" * 64: False}  # its own, of an earlier day
    assert found == {base.fingerprint: True, first.fingerprint: True, **unused}

    content = json.loads(Path("t.json").read_text())
    content["provisioners"][0]["inline"] = ["echo other"]
    changed, as_text = written(content), Shown()
    cachecommand.show_layers(store, as_text.text, [changed])
    assert [line.split()[0] for line in as_text.lines if line.endswith("  used")] == [base.fingerprint[:12]]
    assert as_text.lines[-2].startswith("5 layers, ") and as_text.lines[-1].startswith("6 layers in ")


# -- show


@pytest.mark.parametrize(("prefix", "found"), [("c", "c" * 64), ("AB", "ab" + "0" * 62), ("d" * 64, "d" * 64)])
def test_a_layer_is_found_by_the_beginning_of_its_fingerprint(store: Store, prefix: str, found: str) -> None:
    assert cachecommand.find(store, prefix).record.fingerprint == found


@pytest.mark.parametrize(
    ("prefix", "said"),
    [("", "there is no layer ''"), ("e", "there is no layer 'e'"), ("a", "'a' is the beginning of 2 layers: aaaa")],
    ids=["empty", "none", "several"],
)
def test_any_other_beginning_is_an_error(store: Store, prefix: str, said: str) -> None:
    with pytest.raises(TemplateError, match=said) as caught:
        cachecommand.find(store, prefix)
    assert caught.value.hint


def test_all_of_a_layer_is_shown_but_no_digest_of_an_input(store: Store) -> None:
    as_text, as_json = Shown(), Shown()
    layer = cachecommand.find(store, "ab")
    cachecommand.show_layer(store, layer, as_text.text)
    cachecommand.show_layer(store, layer, as_json.json)
    facts = dict(line.split(maxsplit=1) for line in as_text.lines if line[:1].strip())
    assert facts["Layer"] == layer.record.fingerprint and facts["Build"] == "qemu of t.json"
    assert (
        facts["Stands"] == "on   aaaaaaaaaaaa (qemu: 0 base)" and facts["Carries"] == "cccccccccccc (qemu: 2 shutdown)"
    )
    assert facts["Inputs"] == "base.sh" and facts["Files"] == "disk0.qcow2 (40.0 KiB)"
    (one,) = as_json.objects
    assert one["children"] == ["c" * 64] and one["inputs"] == ["base.sh"]
    assert one["files"] == {"disk0.qcow2": 40960, "memory.zst": 6}
    assert not [line for line in (*as_text.lines, *as_json.lines) if SECRET in line]


def test_a_layer_without_its_parent_says_so(store: Store, shown: Shown) -> None:
    layer = cachecommand.find(store, "ab")
    assert store.remove(cachecommand.find(store, "aa"))
    cachecommand.show_layer(store, layer, shown.text)
    assert "Stands on   what is gone: it can't be used" in shown.lines


# -- prune and rm


def test_prune_takes_what_was_used_least_recently(store: Store, shown: Shown) -> None:
    limit = sum(layer.size for layer in store.layers()) - 1
    cachecommand.prune_layers(store, shown.text, max_size=limit)
    assert letters(store) == "aa ab cc"
    assert shown.lines == [
        "Removed dddddddddddd (tiny: 0 base), 48.0 KiB, used 2 d ago",
        "1 layer removed, 48.0 KiB; 3 layers left, 140.0 KiB",
    ]


def test_prune_by_age_leaves_what_carries_something_younger(store: Store, shown: Shown) -> None:
    cachecommand.prune_layers(store, shown.json, max_age=DAY)
    assert letters(store) == "aa ab cc"
    assert [one["fingerprint"] for one in shown.objects if one.get("removed")] == ["d" * 64]


def test_a_dry_run_removes_nothing(store: Store, shown: Shown) -> None:
    cachecommand.prune_layers(store, shown.text, max_size=0, dry_run=True)
    assert letters(store) == "aa ab cc dd"
    assert shown.lines[0].startswith("Would remove dddddddddddd") and len(shown.lines) == 5
    assert shown.lines[-1] == "4 layers would be removed, 188.0 KiB; 0 layers left, 0 B"


def test_without_options_the_limit_of_the_cache_holds(
    store: Store, shown: Shown, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMGBUILD_CACHE_SIZE", "150k")
    cachecommand.prune_layers(store, shown.text)
    assert letters(store) == "aa ab cc"


def test_prune_leaves_what_is_in_use_and_says_so(store: Store, shown: Shown) -> None:
    with held(store, "ab" + "0" * 62):
        cachecommand.prune_layers(store, shown.text, max_size=0)
    assert letters(store) == "aa ab"
    assert shown.lines[-1] == "That is more than 0 B: a build or a shell uses what is left"


def test_prune_removes_what_a_dead_process_left(store: Store, shown: Shown) -> None:
    left = store.directory / ".making-0123"
    left.mkdir(mode=0o700)
    cachecommand.prune_layers(store, shown.text)
    assert not left.exists() and letters(store) == "aa ab cc dd"


@pytest.mark.parametrize(
    ("prefixes", "left"),
    [(["cc"], "aa ab dd"), (["ab"], "aa dd"), (["aa", "cc"], "dd"), (["cc", "aa", "dd"], "")],
    ids=["leaf", "middle", "root and leaf", "all"],
)
def test_rm_takes_what_stands_on_a_layer_too(store: Store, shown: Shown, prefixes: list[str], left: str) -> None:
    wanted = [cachecommand.find(store, prefix) for prefix in prefixes]
    count = len(store.layers())
    assert cachecommand.remove_layers(store, wanted, shown.text) == 0
    assert letters(store) == left
    assert sum(line.startswith("Removed ") for line in shown.lines) == count - len(left.split())


def test_rm_leaves_what_is_in_use_and_fails(store: Store, shown: Shown) -> None:
    with held(store, "ab" + "0" * 62):
        assert cachecommand.remove_layers(store, store.layers(), shown.json) == 1
    assert letters(store) == "aa ab"
    told = {one["fingerprint"]: one["kind"] for one in shown.objects if "fingerprint" in one}
    assert told == {"a" * 64: "error", "ab" + "0" * 62: "error", "c" * 64: "message", "d" * 64: "message"}


# -- the command line


@dataclass(frozen=True)
class Done:
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def imgbuild(capsys: pytest.CaptureFixture[str]) -> Run:
    """The console script, in this process: it starts a dozen times here."""

    def run(*words: str) -> Done:
        with pytest.raises(SystemExit) as ended:
            main(words)
        code = ended.value.code or 0
        assert isinstance(code, int)
        return Done(code, *capsys.readouterr())

    return run


@pytest.mark.parametrize("name", sorted(cache.commands))
def test_every_command_has_help_with_an_example(imgbuild: Run, name: str) -> None:
    done = imgbuild("cache", name, "--help")
    assert done.code == 0 and f"Example: imgbuild cache {name}" in done.out


@pytest.mark.parametrize("dry", [True, False], ids=["dry", "real"])
def test_prune_tells_of_what_lost_its_parent(store: Store, shown: Shown, dry: bool) -> None:
    shutil.rmtree(store.directory / ("a" * 64))
    cachecommand.prune_layers(store, shown.json, dry_run=dry)
    assert {one["fingerprint"] for one in shown.objects if "fingerprint" in one} == {"ab" + "0" * 62, "c" * 64}
    assert len(store.layers()) == (3 if dry else 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rm"], "name the layers to remove"),
        (["rm", "-all", "aa"], "name the layers to remove"),
        (["rm", "aa", "nothing"], "there is no layer 'nothing'"),
        (["show", "a"], "is the beginning of 2 layers"),
        (["prune", "-max-size=much"], "-max-size: 'much' is not a size"),
        (["prune", "-max-age=old"], "-max-age: 'old' is no age"),
        (["prune", "-max-age=-5m"], "-max-age: '-5m' is no age"),
        (["ls", "no-such.json"], "no-such.json"),
    ],
    ids=" ".join,
)
def test_wrong_words_end_with_2_and_remove_nothing(imgbuild: Run, store: Store, words: list[str], said: str) -> None:
    done = imgbuild("cache", *words)
    assert (done.code, done.out) == (2, "") and said in done.err
    assert letters(store) == "aa ab cc dd"


def test_rm_and_prune_take_packers_spelling(imgbuild: Run, store: Store) -> None:
    assert imgbuild("cache", "prune", "-max-age=1d", "-dry-run=true").code == 0
    assert letters(store) == "aa ab cc dd"
    assert imgbuild("cache", "prune", "-max-age=1d").code == 0
    assert letters(store) == "aa ab cc"
    done = imgbuild("cache", "rm", "-all", "--json")
    assert done.code == 0 and letters(store) == ""
    assert [json.loads(line).get("step") for line in done.out.splitlines()] == [2, 1, 0, None]


def test_rm_tells_in_its_exit_code_that_something_stayed(imgbuild: Run, store: Store) -> None:
    with held(store, "a" * 64):
        done = imgbuild("cache", "rm", "aa")
    assert done.code == 1 and "is in use by a build or a shell: it stays" in done.out


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-5, "0 s ago"), (59, "59 s ago"), (61, "1 min ago"), (3599, "59 min ago"), (3700, "1 h ago"),
        (47.9 * HOUR, "47 h ago"), (2.1 * DAY, "2 d ago"), (400 * DAY, "400 d ago"),
    ],
)  # fmt: skip
def test_times_as_people_say_them(seconds: float, said: str) -> None:
    assert cachecommand.ago(time.time() - seconds) == said
