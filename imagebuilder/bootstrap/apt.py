"""Where packages come from: the machine's own apt sources and settings, or mirrors that were named.

Reads both formats of sources.list(5), one-line and deb822. Nothing here knows the name of any mirror.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from imagebuilder import process
from imagebuilder.errors import ImgbuildError

KEYRINGS = {
    "debian": (Path("/usr/share/keyrings/debian-archive-keyring.gpg"), "debian-archive-keyring"),
    "ubuntu": (Path("/usr/share/keyrings/ubuntu-archive-keyring.gpg"), "ubuntu-keyring"),
}
"""Distribution -> the keyring its archive is signed with, and the package that holds it (the same name in both)."""

_PASSED_ON = re.compile(
    r"Acquire::((https?|ftp)::.*|Retries|Check-Valid-Until|Check-Date|Max-FutureTime|ForceIPv[46]|Proxy-Auto-Detect)",
    re.IGNORECASE,
)
_ALIASES = ("stable", "oldstable", "oldoldstable", "testing")


@dataclass(frozen=True)
class Source:
    """One archive: where it is, which suites and components are taken from it, and how it is trusted."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    options: Mapping[str, str] = field(default_factory=dict)  # deb822 names: Signed-By, Trusted, Architectures ...

    def deb822(self) -> str:
        """The stanza for a file in sources.list.d."""
        fields = {"Types": "deb", "URIs": " ".join(self.uris), "Suites": " ".join(self.suites)}
        if self.components:
            fields["Components"] = " ".join(self.components)
        return "".join(f"{key}: {value}\n" for key, value in {**fields, **self.options}.items())


def render(sources: Iterable[Source]) -> str:
    """A whole file of sources.list.d, named `*.sources`."""
    return "\n".join(source.deb822() for source in sources)


def without_credentials(source: Source) -> Source:
    """The same archive with no user name or password in its URIs: what may lie in an image."""
    return replace(source, uris=tuple(re.sub(r"(?<=://)[^/@]*@", "", uri) for uri in source.uris))


def credentials(source: Source) -> list[str]:
    """The passwords in a source's URIs."""
    return [password for uri in source.uris if (password := urlsplit(uri).password)]


def machine_sources(
    distribution: str, suite: str, components: Sequence[str] = (), *, os_release: Path = Path("/etc/os-release")
) -> list[Source]:
    """The machine's own archives of `distribution`, for `suite` (another release of the same one too).

    Backports and other people's repositories are left out. Raises ImgbuildError when the machine has none.
    """
    mine = _os_release(os_release)
    if mine.get("ID") != distribution:
        raise ImgbuildError(
            f"this machine runs {mine.get('ID') or 'something else'}: its apt sources know no mirror of {distribution}",
            hint=f'name one: "mirrors": ["http://.../{distribution}"]',
        )
    origins = _origins()
    found: list[Source] = []
    for source in _configured():
        if not _official(source, distribution, origins):
            continue
        suites = tuple(_translated(source.suites, mine.get("VERSION_CODENAME", ""), suite))
        if suites:
            found.append(replace(source, suites=suites, components=tuple(components) or source.components))
    if not any(suite in source.suites for source in found):
        raise ImgbuildError(
            f"the apt sources of this machine have no archive of {distribution} for '{suite}'",
            hint="name a mirror with 'mirrors', or look at /etc/apt/sources.list.d",
        )
    return found


def named_sources(mirrors: Sequence[str], distribution: str, suite: str, components: Sequence[str]) -> list[Source]:
    """Mirrors that were named: an archive's URL, or a whole line `deb [options] URL suite component...`."""
    default = ("main", "universe") if distribution == "ubuntu" else ("main",)
    sources = []
    for mirror in mirrors:
        lines = list(parse_list(mirror))
        sources += lines or [Source((mirror,), (suite,), tuple(components) or default)]
    return [source if _trusted(source) else _signed(source, distribution) for source in sources]


def _trusted(source: Source) -> bool:
    return "Signed-By" in source.options or source.options.get("Trusted", "").lower() == "yes"


def _signed(source: Source, distribution: str) -> Source:
    keyring, package = KEYRINGS[distribution]
    if not keyring.is_file():
        raise ImgbuildError(
            f"the keys that sign {distribution}'s packages are not on this machine ('{keyring}' is missing)",
            hint=f"install them: apt-get install {package}",
        )
    return replace(source, options={**source.options, "Signed-By": str(keyring)})


def check_keyrings(sources: Iterable[Source]) -> None:
    """Fail early when a keyring that a source names is not there."""
    for source in sources:
        for name in source.options.get("Signed-By", "").split():
            if name.startswith("/") and not Path(name).is_file():
                packages = [package for path, package in KEYRINGS.values() if str(path) == name]
                hint = (
                    f"install it: apt-get install {packages[0]}" if packages else "correct 'Signed-By' of that source"
                )
                raise ImgbuildError(f"the keyring '{name}' of '{source.uris[0]}' is missing", hint=hint)


def acquire_settings() -> str:
    """Proxies and other settings for downloads of the machine's apt, as apt.conf(5); may hold a proxy's password."""
    dump = process.run([process.find("apt-config", package="apt"), "dump"], timeout=30).stdout
    kept = [line for line in dump.splitlines() if _PASSED_ON.match(line.split(" ", 1)[0]) and not line.endswith(' "";')]
    directory = Path("/etc/apt/auth.conf.d")
    kept += [f'Dir::Etc::netrcparts "{directory}";'] if directory.is_dir() else []
    return "".join(line + "\n" for line in kept)


def parse_list(text: str) -> Iterator[Source]:
    """One-line format: `deb [option=value ...] uri suite [component ...]`."""
    for line in text.splitlines():
        found = re.fullmatch(r"\s*deb\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<rest>[^#]+)(?:#.*)?", line)
        words = found["rest"].split() if found else []
        if found is None or len(words) < 2:
            continue
        options = dict(word.split("=", 1) for word in (found["options"] or "").split() if "=" in word)
        named = {_DEB822.get(key, key.title()): value.replace(",", " ") for key, value in options.items()}
        yield Source((words[0],), (words[1],), tuple(words[2:]), named)


_DEB822 = {"arch": "Architectures", "lang": "Languages", "signed-by": "Signed-By", "trusted": "Trusted"}


def parse_sources(text: str) -> Iterator[Source]:
    """Format deb822: stanzas of fields."""
    for stanza in re.split(r"\n[ \t]*\n", re.sub(r"(?m)^#.*\n?", "", text)):
        fields: dict[str, str] = {}
        for match in re.finditer(r"(?m)^([\w-]+):[ \t]*(.*(?:\n[ \t].*)*)", stanza):
            fields[match[1].title()] = match[2].strip()
        if "deb" not in fields.pop("Types", "").split() or fields.pop("Enabled", "yes").lower() in ("no", "false", "0"):
            continue
        uris, suites = fields.pop("Uris", "").split(), fields.pop("Suites", "").split()
        components = fields.pop("Components", "").split()
        if uris and suites:
            yield Source(tuple(uris), tuple(suites), tuple(components), fields)


def _configured() -> Iterator[Source]:
    """Everything in the files that apt reads."""
    shell = process.run(
        [process.find("apt-config", package="apt"), "shell",
         "LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d"], timeout=30,
    ).stdout  # fmt: skip
    places = dict(re.findall(r"(?m)^(LIST|PARTS)='(.*)'$", shell))
    parts = Path(places.get("PARTS", "/etc/apt/sources.list.d"))
    files = [Path(places.get("LIST", "/etc/apt/sources.list")), *(sorted(parts.iterdir()) if parts.is_dir() else ())]
    for file in files:
        if file.is_file() and file.suffix in (".list", ".sources"):
            parse = parse_sources if file.suffix == ".sources" else parse_list
            yield from parse(file.read_text(encoding="utf-8", errors="replace"))


def _os_release(path: Path) -> dict[str, str]:
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return {key: value.strip("\"'") for key, value in re.findall(r"(?m)^(\w+)=(.*)$", text)}


def _origins() -> dict[str, str]:
    """URI -> who publishes it, for archives whose lists have been downloaded."""
    pattern = "$(REPO_URI)\t$(ORIGIN)"
    done = process.run(["apt-get", "indextargets", "--format", pattern], check=False, timeout=60)
    pairs = (line.split("\t") for line in done.stdout.splitlines() if line.count("\t") == 1)
    return {uri.rstrip("/"): origin for uri, origin in pairs if not origin.startswith("$")}


def _official(source: Source, distribution: str, origins: Mapping[str, str]) -> bool:
    """Whether it is the distribution's own: by what its Release file says, else by the key it is signed with."""
    known = {origins[uri.rstrip("/")] for uri in source.uris if uri.rstrip("/") in origins}
    if known:
        return known == {distribution.title()}
    key = source.options.get("Signed-By", "")
    return not key or f"{distribution}-archive" in key or key.startswith("-----BEGIN")


def _translated(suites: Iterable[str], mine: str, wanted: str) -> Iterator[str]:
    """The suites of `wanted` that stand where the machine has its own release's."""
    for suite in suites:
        stem, mark, rest = re.fullmatch(r"([^-/]*)([-/]?)(.*)", suite).groups()  # type: ignore[union-attr]
        if stem in (mine, wanted, *_ALIASES) and rest in ("", "updates", "security"):
            yield f"{wanted}{mark}{rest}"
