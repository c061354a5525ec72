"""Checksums as a template writes them, and the lists of checksums that distributions publish.

Understood lists: GNU coreutils (`digest *name`, with its escapes), BSD and OpenSSL (`SHA256 (name) = digest`), files
that hold one digest and nothing else, and any of them with comments or inside a PGP clear-signed message (RFC 9580 §7).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from imagebuilder.errors import ChecksumError

ALGORITHMS = {"md5": 32, "sha1": 40, "sha224": 56, "sha256": 64, "sha384": 96, "sha512": 128}
"""Name -> hexadecimal digits of its digest."""

_BY_LENGTH = {length: name for name, length in ALGORITHMS.items()}
_GNU = re.compile(r"(?P<escaped>\\?)(?P<digest>[0-9a-fA-F]{32,128})[ \t]+\*?(?P<name>\S.*)")
_BSD = re.compile(r"(?P<sort>[A-Za-z0-9-]+) ?\((?P<name>.+)\) ?= ?(?P<digest>[0-9a-fA-F]{32,128})")
_ESCAPES = {"\\\\": "\\", "\\n": "\n", "\\r": "\r"}


@dataclass(frozen=True)
class Checksum:
    """What a file must be: a digest, or where a list of digests is (`source`), or anything (`none`: neither)."""

    algorithm: str = ""
    digest: str = ""
    source: str = ""  # URL or path of a list

    def __str__(self) -> str:
        if self.source:
            return f"file:{self.source}"
        return f"{self.algorithm}:{self.digest}" if self.digest else "none"


@dataclass(frozen=True)
class Entry:
    """One line of a list; `name` is "" in a file that holds only a digest."""

    algorithm: str
    digest: str
    name: str


def parse_checksum(text: str) -> Checksum:
    """`none`, a bare digest, `ALGORITHM:DIGEST` or `file:URL_or_path`; ValueError tells what is wrong."""
    text = text.strip()
    if text.lower() == "none":
        return Checksum()
    sort, colon, rest = text.partition(":")
    if colon and sort.lower() == "file":
        if not rest.strip():
            raise ValueError("'file:' names no list of checksums: write 'file:' and its URL or path")
        return Checksum(source=rest.strip())
    if not colon:
        return _bare(text)
    algorithm = sort.strip().lower()
    if algorithm not in ALGORITHMS:
        listed = f"; did you mean 'file:{text}'?" if rest.startswith("//") else ""
        raise ValueError(_unknown(sort) + listed)
    return _digest(algorithm, rest.strip())


def _bare(digest: str) -> Checksum:
    """A digest whose algorithm is told by its length."""
    if not digest:
        raise ValueError("is empty: write a digest like 'sha256:...', 'file:URL' of a list of them, or 'none'")
    _only_hexadecimal(digest)
    if len(digest) not in _BY_LENGTH:
        known = ", ".join(f"{length} ({name})" for name, length in ALGORITHMS.items())
        raise ValueError(f"'{digest}' has {len(digest)} hexadecimal digits, and no known digest has: expected {known}")
    return _digest(_BY_LENGTH[len(digest)], digest)


def _digest(algorithm: str, digest: str) -> Checksum:
    _only_hexadecimal(digest)
    if len(digest) != ALGORITHMS[algorithm]:
        how = "too short" if len(digest) < ALGORITHMS[algorithm] else "too long"
        wanted = ALGORITHMS[algorithm]
        raise ValueError(f"'{digest}' is {how} for {algorithm}: {len(digest)} hexadecimal digits instead of {wanted}")
    return Checksum(algorithm, digest.lower())


def _only_hexadecimal(digest: str) -> None:
    wrong = re.search(r"[^0-9a-fA-F]", digest)
    if wrong:
        raise ValueError(f"'{digest}' is not hexadecimal: character {wrong.start() + 1} is '{wrong.group()}'")


def _unknown(sort: str) -> str:
    near = difflib.get_close_matches(sort.lower(), [*ALGORITHMS, "file", "none"], n=1)
    meant = f"; did you mean '{near[0]}'?" if near else ""
    return f"unknown kind of checksum '{sort}': expected one of {', '.join(ALGORITHMS)}, file, none{meant}"


def entries(text: str) -> Iterator[Entry]:
    """Every digest in a published list; lines that hold none are passed over."""
    for line in _signed_text(text):
        stripped = line.strip()
        if re.fullmatch(r"[0-9a-fA-F]+", stripped) and len(stripped) in _BY_LENGTH:
            yield Entry(_BY_LENGTH[len(stripped)], stripped.lower(), "")
        elif found := _BSD.fullmatch(stripped):
            algorithm = re.sub(r"^sha2?-", "sha", found["sort"].lower())
            if ALGORITHMS.get(algorithm) == len(found["digest"]):
                yield Entry(algorithm, found["digest"].lower(), found["name"])
        elif (found := _GNU.fullmatch(stripped)) and len(found["digest"]) in _BY_LENGTH:
            name = re.sub(r"\\[\\nr]", lambda m: _ESCAPES[m[0]], found["name"]) if found["escaped"] else found["name"]
            yield Entry(_BY_LENGTH[len(found["digest"])], found["digest"].lower(), name)


def _signed_text(text: str) -> Iterator[str]:
    """The lines of a file, or what is signed when it is a clear-signed message; the signature itself isn't checked."""
    skipping = False
    for line in text.lstrip("\N{ZERO WIDTH NO-BREAK SPACE}").splitlines():
        if line.startswith("-----BEGIN PGP SIGNATURE"):
            skipping = True
        elif line.startswith("-----END PGP"):
            skipping = False
        elif not skipping and not line.startswith(("-----", "#")):
            yield line.removeprefix("- ")


def choose(text: str, source: str, paths: Sequence[str]) -> Checksum:
    """The digest for a file that is fetched from one of `paths` (paths of URLs), out of the list `text` from `source`.

    Matched by file name; where a list names it in several directories, by as much of the path as agrees. The longest
    digest is taken. A nameless digest counts when it is the list's only one. ChecksumError when there is none.
    """
    found = list(entries(text))
    for path in paths:
        scored = [(_agreement(entry.name, path), entry) for entry in found]
        best = max((score for score, _ in scored), default=0)
        if best:
            return _strongest([entry for score, entry in scored if score == best], source)
    if found and not any(entry.name for entry in found) and len({entry.algorithm for entry in found}) == len(found):
        return _strongest(found, source)
    raise ChecksumError(f"'{source}' has no checksum for {_named(paths)}", hint=_names_hint(found, paths))


def _agreement(name: str, path: str) -> int:
    """How many of the last components two paths share."""
    count = 0
    mine, theirs = PurePosixPath(name).parts, PurePosixPath(path).parts
    for one, other in zip(reversed(mine), reversed(theirs), strict=False):
        if one != other:
            break
        count += 1
    return count


def _strongest(matching: Sequence[Entry], source: str) -> Checksum:
    longest = max(len(entry.digest) for entry in matching)
    digests = {(entry.algorithm, entry.digest) for entry in matching if len(entry.digest) == longest}
    if len(digests) > 1:
        name = PurePosixPath(matching[0].name).name
        raise ChecksumError(
            f"'{source}' has {len(digests)} different checksums for '{name}'",
            hint="write the right one into iso_checksum",
        )
    return Checksum(*digests.pop())


def _named(paths: Sequence[str]) -> str:
    return " or ".join(dict.fromkeys(f"'{PurePosixPath(path).name}'" for path in paths))


def _names_hint(found: Sequence[Entry], paths: Sequence[str]) -> str:
    names = list(dict.fromkeys(PurePosixPath(entry.name).name for entry in found if entry.name))
    if not names:
        return "nothing in it looks like a checksum: is this the right file?" if not found else "it names no file"
    near = [near for path in paths for near in difflib.get_close_matches(PurePosixPath(path).name, names, n=3)]
    return "it names " + ", ".join(f"'{name}'" for name in dict.fromkeys(near or names[:3]))
