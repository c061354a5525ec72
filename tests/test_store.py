"""The store of layers: whole or not there at all, whoever uses it at the same time and however that one ends."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from imagebuilder.errors import StoreError
from imagebuilder.layers.record import Record, from_json
from imagebuilder.layers.store import Layer, Store
from imagebuilder.ui import Event, Ui

BASE, SHELL, LAST = "a" * 64, "b" * 64, "c" * 64
FILES = {"disk0.qcow2": b"disk" * 5000, "memory.zst": b"memory"}


@pytest.fixture
def ui(told: list[Event]) -> Ui:
    return Ui("test", told.append)


def record(fingerprint: str, parent: Layer | None = None) -> Record:
    made = Record(fingerprint=fingerprint, title="shell base.sh", inputs=(("base.sh", "1" * 64),))
    return replace(made, parent=parent.record.fingerprint, parent_id=parent.record.id) if parent else made


def make(store: Store, fingerprint: str, parent: Layer | None = None, *, again: bool = False) -> Layer | None:
    with store.making(record(fingerprint, parent)) as making:
        for name, content in FILES.items():
            (making.path / name).write_bytes(content)
        return making.keep(replace=again)


def three(store: Store) -> list[Layer]:
    """A base, a step on it, a step on that."""
    layers: list[Layer] = []
    for fingerprint in (BASE, SHELL, LAST):
        layer = make(store, fingerprint, layers[-1] if layers else None)
        assert layer is not None
        layers.append(layer)
    return layers


def names(store: Store) -> list[str]:
    """What lies in the store's directory, but for the file of locks."""
    return sorted(path.name for path in store.directory.iterdir() if path.name != "lock")


def warnings(told: list[Event]) -> list[str]:
    return [event.text for event in told if event.kind == "warning"]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextlib.contextmanager
def another_process(store: Store, code: str) -> Iterator[subprocess.Popen[str]]:
    """Another build with a `store` of the same directory; here once it has printed a line."""
    setup = (
        "import sys, time\nfrom pathlib import Path\n"
        "from imagebuilder.layers.store import Record, Store\nfrom imagebuilder.ui import Ui\n"
        f"store = Store(Path({str(store.directory)!r}))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", setup + code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        line = child.stdout.readline()
        assert line == "ready\n", line
        yield child
        if child.poll() is None:
            child.kill()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def rest(child: subprocess.Popen[str]) -> str:
    """What it prints until it ends."""
    assert child.stdout is not None
    return child.stdout.read()


def test_a_layer_comes_back_as_it_was_made(store: Store, ui: Ui, told: list[Event]) -> None:
    base, shell, last = three(store)
    assert store.find(LAST) == last and store.chain(last) == [base, shell, last]
    assert store.layers() == [base, shell, last]
    assert last.has_memory and last.size >= sum(map(len, FILES.values()))
    assert last.record.inputs == (("base.sh", "1" * 64),) and last.record.parent_id == shell.record.id
    held = store.hold(LAST, ui)
    assert held is not None and held.layers == [base, shell, last]
    assert {name: (held.layers[-1].path / name).read_bytes() for name in FILES} == FILES
    held.close()
    held.close()
    assert not warnings(told)


def test_a_record_reads_as_it_was_written() -> None:
    given = replace(record(BASE), template="vms/\N{GREEK SMALL LETTER ALPHA}.json", step=3, name="shell", build="qemu")
    assert from_json(given.to_json()) == given
    assert from_json(replace(given, template="\udcff.json").to_json()).template == "?.json"


def test_nothing_is_there_before_the_first_layer(store: Store, ui: Ui) -> None:
    assert store.layers() == [] and store.find(BASE) is None
    assert not store.directory.exists()
    assert store.hold(BASE, ui) is None


@pytest.mark.parametrize("name", ["", "..", "A" * 64], ids=["empty", "above", "capitals"])
def test_only_a_fingerprint_names_a_layer(store: Store, ui: Ui, name: str) -> None:
    base = make(store, BASE)
    with pytest.raises(ValueError, match="no fingerprint"):
        store.hold(name, ui)
    assert store.find(name) is None and store.layers() == [base]


@pytest.mark.parametrize("before", [None, 0o755, 0o700], ids=["missing", "open", "private"])
def test_everything_is_private(store: Store, before: int | None) -> None:
    if before is not None:
        store.directory.mkdir()
        store.directory.chmod(before)
    with store.making(record(BASE)) as making:
        (making.path / "key").write_text("secret")
        (making.path / "key").chmod(0o644)
        assert mode(making.path) == 0o700
        layer = making.keep()
    assert layer is not None
    assert (mode(store.directory), mode(layer.path)) == (0o700, 0o700)
    assert {mode(path) for path in layer.path.iterdir()} == {0o600}


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory to another user")
def test_a_directory_of_another_user_is_not_trusted(store: Store) -> None:
    store.directory.mkdir()
    os.chown(store.directory, 12345, 12345)
    with pytest.raises(StoreError, match="another user"), store.making(record(BASE)):
        pass


def test_a_directory_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(StoreError, match="can't write layers"),
        Store(tmp_path / "file" / "layers").making(record(BASE)),
    ):
        pass


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def add_field(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "colour": "red"}))


def bend(path: Path) -> None:
    name = path.parent / "elsewhere"
    path.rename(name.parent.parent / name.name)
    path.symlink_to(name.parent.parent / name.name)


BREAKAGES: dict[str, tuple[str, Callable[[Path], object]]] = {
    "truncated": ("disk0.qcow2", lambda path: os.truncate(path, 100)),
    "flipped": ("disk0.qcow2", flip),
    "flipped-memory": ("memory.zst", flip),
    "missing": ("memory.zst", Path.unlink),
    "symlink": ("memory.zst", bend),
    "extra-file": ("key", Path.touch),
    "no-record": ("layer.json", Path.unlink),
    "extra-field": ("layer.json", add_field),
    "rubbish": ("layer.json", lambda path: path.write_bytes(b"\xff{")),
    "list": ("layer.json", lambda path: path.write_text("[]")),
    "other-name": ("layer.json", lambda path: path.write_text(path.read_text().replace(SHELL, "d" * 64))),
    "other-digest": ("layer.json", lambda path: path.write_text(path.read_text().replace('256": "', '256": "0'))),
}  # fmt: skip


@pytest.mark.parametrize(("file", "damage"), BREAKAGES.values(), ids=BREAKAGES.keys())
@pytest.mark.parametrize("asked", [SHELL, LAST], ids=["itself", "descendant"])
def test_a_broken_layer_goes_with_what_stands_on_it(
    store: Store, ui: Ui, told: list[Event], file: str, damage: Callable[[Path], object], asked: str
) -> None:
    three(store)
    damage(store.directory / SHELL / file)
    assert store.hold(asked, ui) is None
    assert len(warnings(told)) == 1 and SHELL[:12] in warnings(told)[0]
    assert [name for name in names(store) if name != "elsewhere"] == [BASE]
    with store.hold(BASE, ui) or pytest.fail("the base is sound"):
        pass


def test_a_file_in_a_layers_place_is_no_layer_and_makes_room(store: Store) -> None:
    store.directory.mkdir(mode=0o700)
    (store.directory / BASE).write_text("rubbish")
    assert store.layers() == [] and make(store, BASE) is not None


def test_a_broken_layer_in_use_stays_until_it_is_let_go(store: Store, ui: Ui, told: list[Event]) -> None:
    three(store)
    with store.hold(LAST, ui) or pytest.fail():
        flip(store.directory / SHELL / "disk0.qcow2")
        assert store.hold(LAST, ui) is None
        assert names(store) == [BASE, SHELL, LAST]
    assert store.hold(LAST, ui) is None and names(store) == [BASE]
    assert len(warnings(told)) == 2


def test_records_that_go_round_in_a_circle_are_no_layers(store: Store, ui: Ui) -> None:
    base = make(store, BASE)
    shell = make(store, SHELL, base)
    assert base is not None and shell is not None
    about = base.path / "layer.json"
    circle = replace(base.record, parent=SHELL, parent_id=shell.record.id)
    about.write_bytes(circle.to_json())
    assert store.find(SHELL) is None and store.hold(SHELL, ui) is None
    assert len(store.remove_with_descendants(shell)) == 2


def test_using_a_layer_uses_all_that_it_stands_on(store: Store, ui: Ui) -> None:
    for layer in three(store):
        os.utime(layer.path / "layer.json", (1000, 1000))
    with store.hold(SHELL, ui) or pytest.fail():
        pass
    used = {layer.record.fingerprint: layer.used for layer in store.layers()}
    assert used[LAST] == 1000 and min(used[BASE], used[SHELL]) > time.time() - 60


def test_a_layer_made_anew_leaves_its_descendants_useless(store: Store) -> None:
    base, shell, _ = three(store)
    anew = make(store, BASE, again=True)
    assert anew is not None and anew.record.id != base.record.id
    assert store.find(SHELL) is None and store.find(LAST) is None
    assert make(store, SHELL, base) is None, "stands on what is gone"
    other = make(store, SHELL, anew)
    assert other is not None and store.find(SHELL) == other != shell
    store.sweep()
    assert names(store) == [BASE, SHELL]


def test_the_first_of_two_equal_layers_stays(store: Store) -> None:
    first = make(store, BASE)
    assert make(store, BASE) is None
    assert store.find(BASE) == first and names(store) == [BASE]


def test_two_processes_keep_one_layer(store: Store) -> None:
    code = (
        f"with store.making(Record(fingerprint={BASE!r})) as making:\n"
        "    (making.path / 'disk0.qcow2').write_bytes(b'x' * 3000000)\n"
        "    print('ready', flush=True); sys.stdin.readline()\n"
        "    print(making.keep() is not None)\n"
    )
    with another_process(store, code) as one, another_process(store, code) as two:
        for child in (one, two):
            assert child.stdin is not None
            child.stdin.write("\n")
            child.stdin.flush()
        answers = sorted(rest(child) for child in (one, two))
    assert answers == ["False\n", "True\n"]
    assert names(store) == [BASE] and store.find(BASE) is not None


def test_a_layer_that_is_not_kept_leaves_nothing(store: Store) -> None:
    with store.making(record(BASE)) as making:
        (making.path / "disk0.qcow2").write_bytes(b"x")
    with pytest.raises(KeyboardInterrupt), store.making(record(BASE)) as making:
        raise KeyboardInterrupt
    assert names(store) == []


def test_a_layer_holds_nothing_but_files(store: Store) -> None:
    with pytest.raises(StoreError, match="nothing but files"), store.making(record(BASE)) as making:
        (making.path / "disk0.qcow2").symlink_to("/dev/null")
        making.keep()
    assert names(store) == []


def test_errors_of_a_connection_are_not_the_stores(store: Store) -> None:
    with pytest.raises(ConnectionResetError), store.making(record(BASE)):
        raise ConnectionResetError


MAKING = (
    f"with store.making(Record(fingerprint={BASE!r})) as making:\n"
    "    (making.path / 'disk0.qcow2').write_bytes(b'x' * 100000)\n"
    "    print('ready', flush=True); time.sleep(60)\n"
)


def test_a_killed_build_leaves_nothing(store: Store) -> None:
    with another_process(store, MAKING) as child:
        assert len(names(store)) == 1 and store.layers() == []
        child.kill()
    until(lambda: names(store) == [])  # the janitor


def test_what_a_power_failure_left_is_swept_and_what_lives_is_not(store: Store) -> None:
    with another_process(store, MAKING):
        living = names(store)
        for name in (".making-dead", ".gone-dead", "d" * 64):
            (store.directory / name).mkdir()
            (store.directory / name / "disk0.qcow2").touch()
        with store.making(record(BASE)) as ours:
            store.sweep()
            assert names(store) == sorted([*living, ours.path.name])


@pytest.mark.parametrize("held", [BASE, SHELL, LAST], ids=["base", "middle", "leaf"])
def test_a_held_layer_and_what_it_stands_on_are_not_removed(store: Store, ui: Ui, held: str) -> None:
    layers = three(store)
    order = [BASE, SHELL, LAST]
    kept = order[: order.index(held) + 1]
    code = f"held = store.hold({held!r}, Ui('', lambda event: None)); print('ready', flush=True); time.sleep(60)"
    with another_process(store, code) as child:
        assert not store.remove(layers[0])
        assert make(store, held, layers[order.index(held) - 1] if held != BASE else None, again=True) is None
        removed = store.remove_with_descendants(layers[0])
        assert [layer.record.fingerprint for layer in removed] == [name for name in reversed(order) if name not in kept]
        assert names(store) == kept
        child.kill()
        child.wait()
    assert len(store.remove_with_descendants(layers[0])) == len(kept) and names(store) == []


def test_the_layer_just_made_is_held_with_the_rest(store: Store, ui: Ui) -> None:
    base, shell, _ = three(store)
    with store.hold(SHELL, ui) or pytest.fail() as held:
        with store.making(record("d" * 64, shell)) as making:
            kept = making.keep()
            assert kept is not None and not store.remove(kept), "its maker has it still"
            assert held.add(kept)
        assert not store.remove(kept) and held.layers == [base, shell, kept]
    assert store.remove(kept) and not held.add(kept)


def test_remove_takes_only_the_layer_that_was_meant(store: Store) -> None:
    old = make(store, BASE)
    assert old is not None and make(store, BASE, again=True) is not None
    assert not store.remove(old) and len(store.layers()) == 1


def test_one_step_is_made_once(store: Store) -> None:
    code = f"with store.claim({BASE!r}) as ours:\n    print('ready' if ours else 'no', flush=True); time.sleep(60)"
    with another_process(store, code) as child:
        with store.claim(BASE) as ours, store.claim(SHELL) as other:
            assert (ours, other) == (False, True)
        child.send_signal(signal.SIGKILL)
        child.wait()
        with store.claim(BASE) as ours:
            assert ours
    assert [path.name for path in store.directory.iterdir()] == ["lock"]


def test_threads_of_one_process_share_no_claim(store: Store) -> None:
    seen: list[bool] = []

    def ask() -> None:
        with Store(store.directory).claim(BASE) as ours:
            seen.append(ours)

    def in_thread() -> None:
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()

    with store.claim(BASE) as ours:
        assert ours
        in_thread()
        in_thread()  # the first one's end frees nothing
    in_thread()
    assert seen == [False, False, True]


FULL = (
    "from imagebuilder.errors import StoreError\n"
    "try:\n"
    f"    with store.making(Record(fingerprint={BASE!r}, title='x' * 20000)) as making:\n"
    "        (making.path / 'disk0.qcow2').write_bytes(b'x' * size)\n"
    "        making.keep()\n"
    "except StoreError as error:\n"
    "    print('ready', flush=True); print(error.message)\n"
)


@pytest.mark.parametrize("size", [100, 100000], ids=["record", "disk"])
def test_a_file_that_may_not_grow_is_a_store_error(store: Store, size: int) -> None:
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += f"resource.setrlimit(resource.RLIMIT_FSIZE, (10000, {resource.RLIM_INFINITY})); size = {size}\n"
    with another_process(store, limit + FULL) as child:
        assert "can't write layers" in rest(child)
    assert names(store) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
@pytest.mark.parametrize("size", [180 << 10, 1 << 20], ids=["record", "disk"])
def test_a_full_disk_costs_the_layer_being_written(store: Store, size: int) -> None:
    store.directory.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=192k,mode=0700", "tmpfs", str(store.directory)]
    if subprocess.run(mounted, check=False, stderr=subprocess.DEVNULL).returncode != 0:
        pytest.skip("mount isn't allowed here")
    try:
        with another_process(store, f"size = {size}\n" + FULL) as child:
            assert "No space left" in rest(child)
        assert names(store) == [] and make(store, BASE) is not None
    finally:
        subprocess.run(["umount", str(store.directory)], check=True)
