"""What someone probably meant who typed a word that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """A question that names the nearest known word; None when none is near."""
    candidates = [name for name in known if name != word]
    folded = {name.casefold().replace("-", "_"): name for name in candidates}
    near = difflib.get_close_matches(word[:100].casefold().replace("-", "_"), list(folded), n=1, cutoff=0.6)
    return f"did you mean '{folded[near[0]]}'?" if near else None
