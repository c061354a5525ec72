"""Which layers go when there are too many: those that weren't used for longest, never one below another that stays.

Using a layer uses all that it stands on, so a layer counts as used no earlier than what stands on it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence

from imagebuilder.errors import TemplateError
from imagebuilder.layers.record import Layer
from imagebuilder.layers.store import Store
from imagebuilder.options import bytes_of

VARIABLE = "IMGBUILD_CACHE_SIZE"
_DEFAULT = 30 << 30  # bytes


def limit_bytes() -> int | None:
    """How much the layers may take up, by the environment; None for no limit. Raises TemplateError."""
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return _DEFAULT
    try:
        return bytes_of(text) or None
    except ValueError as error:
        raise TemplateError(f"{VARIABLE}: {error}", hint="write '0' for no limit") from error


def prune(store: Store, *, limit: int | None, max_age: float | None) -> list[Layer]:
    """Remove layers until the rest takes up at most `limit` bytes and was used in the last `max_age` seconds.

    Those in use stay. What was removed, in its order.
    """
    layers = store.layers()
    used = _last_uses(layers)
    total, now = sum(layer.size for layer in layers), time.time()
    removed: list[Layer] = []
    needed: set[str] = set()  # fingerprints below one that stays
    for layer in _oldest_first(layers, used):
        old = max_age is not None and now - used[layer.record.fingerprint] > max_age
        full = limit is not None and total > limit
        if (old or full) and layer.record.fingerprint not in needed and store.remove(layer):
            removed.append(layer)
            total -= layer.size
        else:
            needed.add(layer.record.parent)
    return removed


def _oldest_first(layers: Sequence[Layer], used: Mapping[str, float]) -> list[Layer]:
    by_name = {layer.record.fingerprint: layer for layer in layers}

    def key(layer: Layer) -> tuple[float, int]:
        return used[layer.record.fingerprint], -len(list(_below(layer, by_name)))

    return sorted(layers, key=key)


def _last_uses(layers: Sequence[Layer]) -> dict[str, float]:
    """Fingerprint -> Unix seconds of the last use of the layer or of anything that stands on it."""
    by_name = {layer.record.fingerprint: layer for layer in layers}
    used = {layer.record.fingerprint: layer.used for layer in layers}
    for layer in layers:
        for below in _below(layer, by_name):
            used[below.record.fingerprint] = max(used[below.record.fingerprint], layer.used)
    return used


def _below(layer: Layer, by_name: Mapping[str, Layer]) -> Iterator[Layer]:
    """What a layer stands on, nearest first."""
    seen = {layer.record.fingerprint}
    parent = by_name.get(layer.record.parent)
    while parent is not None and parent.record.fingerprint not in seen:
        seen.add(parent.record.fingerprint)
        yield parent
        parent = by_name.get(parent.record.parent)
