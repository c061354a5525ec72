"""Where things lie: data that ships, the cache, the state of a user (XDG Base Directory Specification 0.8)."""

from __future__ import annotations

import os
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent


def shipped(kind: str) -> Path:
    """The directory of data that ships: `distros`, `kickstarts` or `builds`; in a wheel or in a checkout."""
    packaged = Path(__file__).resolve().parent / "data" / kind
    return packaged if packaged.is_dir() else _CHECKOUT / kind


def cache_directory() -> Path:
    """Downloads and answers that can be had again: IMGBUILD_CACHE_DIR, PACKER_CACHE_DIR or ~/.cache/imgbuild."""
    chosen = os.environ.get("IMGBUILD_CACHE_DIR") or os.environ.get("PACKER_CACHE_DIR")
    if chosen:
        return Path(chosen).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "imgbuild"
