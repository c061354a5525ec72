"""Which layers go, in which order, and how the limit is told."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from imagebuilder.errors import TemplateError
from imagebuilder.layers.prune import limit_bytes, prune
from imagebuilder.layers.record import Record
from imagebuilder.layers.store import Layer, Store
from imagebuilder.ui import Ui

SIZE = 40 << 10  # bytes of each layer's disk
NAMES = {letter: letter * 64 for letter in "abcdef"}


def make(store: Store, letter: str, parent: Layer | None = None, *, age: float) -> Layer:
    record = Record(fingerprint=NAMES[letter])
    if parent is not None:
        record = replace(record, parent=parent.record.fingerprint, parent_id=parent.record.id)
    with store.making(record) as making:
        (making.path / "disk0.qcow2").write_bytes(os.urandom(SIZE))
        layer = making.keep()
    assert layer is not None
    then = time.time() - age
    os.utime(layer.path / "layer.json", (then, then))
    return layer


def letters(layers: list[Layer]) -> str:
    return "".join(layer.record.fingerprint[0] for layer in layers)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two builds on base a: b, c (used long ago) and d; a base e of another template."""
    store = Store(tmp_path / "layers")
    base = make(store, "a", age=500)
    shell = make(store, "b", base, age=400)
    make(store, "c", shell, age=400)
    make(store, "d", base, age=100)
    make(store, "e", age=300)
    return store


def taken(store: Store) -> int:
    return sum(layer.size for layer in store.layers())


@pytest.mark.parametrize(
    ("fewer", "gone"),
    [(0, ""), (1, "c"), (2, "cb"), (3, "cbe"), (4, "cbed"), (5, "cbeda")],
    ids=["none", "one", "two", "three", "four", "all"],
)
def test_what_was_not_used_for_longest_goes_first_and_children_before_parents(
    store: Store, fewer: int, gone: str
) -> None:
    limit = taken(store) - fewer * (taken(store) // 5)
    assert letters(prune(store, limit=limit, max_age=None)) == gone
    assert taken(store) <= limit
    assert letters(store.layers()) == "".join(sorted(set("abcde") - set(gone)))


@pytest.mark.parametrize(
    ("max_age", "gone"), [(1000, ""), (350, "cb"), (200, "cbe"), (0, "cbeda")], ids=["young", "some", "more", "all"]
)
def test_what_is_too_old_goes_unless_something_younger_stands_on_it(store: Store, max_age: float, gone: str) -> None:
    assert letters(prune(store, limit=None, max_age=max_age)) == gone


def test_without_a_limit_nothing_goes(store: Store) -> None:
    assert prune(store, limit=None, max_age=None) == [] and letters(store.layers()) == "abcde"


def test_what_is_in_use_stays_with_what_it_stands_on(store: Store) -> None:
    held = store.hold(NAMES["b"], Ui("", lambda event: None))
    assert held is not None
    with held:
        assert letters(prune(store, limit=0, max_age=None)) == "ced"
        assert letters(store.layers()) == "ab"
    assert letters(prune(store, limit=0, max_age=None)) == "ba"


@pytest.mark.parametrize(
    ("text", "limit"),
    [(None, 30 << 30), ("", 30 << 30), ("20G", 20 << 30), ("512m", 512 << 20), ("100", 100 << 20), ("0", None)],
    ids=["unset", "empty", "GiB", "MiB", "bare", "none"],
)
def test_the_limit_is_told_by_the_environment(
    monkeypatch: pytest.MonkeyPatch, text: str | None, limit: int | None
) -> None:
    monkeypatch.delenv("IMGBUILD_CACHE_SIZE", raising=False)
    if text is not None:
        monkeypatch.setenv("IMGBUILD_CACHE_SIZE", text)
    assert limit_bytes() == limit


@pytest.mark.parametrize("text", ["20 GB", "-1", "much"])
def test_a_limit_that_is_none_says_what_to_write(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("IMGBUILD_CACHE_SIZE", text)
    with pytest.raises(TemplateError, match=r"IMGBUILD_CACHE_SIZE.*write it like '10G'"):
        limit_bytes()
