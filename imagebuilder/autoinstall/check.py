"""Whether an installer would accept an answer file: kickstart, preseed, cloud-config, autoinstall, AutoYaST.

`check` returns what is wrong, a sentence each; nothing is fetched and nothing of the file is run. Sources: pykickstart
for kickstarts, debconf-set-selections(1), the autoinstall reference of Subiquity, cloud-init's modules, AutoYaST's DTD.
"""

from __future__ import annotations

import re
import shutil
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from typing import Any

import yaml
from pydantic import ValidationError
from pykickstart.errors import KickstartError, KickstartWarning
from pykickstart.parser import KickstartParser
from pykickstart.version import makeVersion, versionMap

from imagebuilder import process
from imagebuilder.autoinstall.schema import CLOUD_CONFIG_KEYS, Autoinstall, CloudConfig
from imagebuilder.errors import ImgbuildError
from imagebuilder.suggestion import did_you_mean

_PRESEED_TYPES = (
    "string", "boolean", "select", "multiselect", "password", "note", "text", "title", "error", "seen",
)  # fmt: skip
_HASH = re.compile(r"\$(6|5|y|gy|7|2b)\$[^\s:]+|[!*].*")
_YAST = ("profile", "http://www.suse.com/1.0/yast2ns")


def check(text: str, flavour: str, version: str | None = None) -> list[str]:
    """What is wrong with an answer file, each with its line where that is known; empty: nothing.

    `flavour`: kickstart (`version` like 'RHEL9', 'F41' is required), preseed, cloud-config, autoinstall, autoyast,
    meta-data. Raises ImgbuildError for a flavour or version that is not known.
    """
    if flavour == "kickstart":
        return _kickstart(text, version or "")
    if flavour not in _CHECKS:
        hint = did_you_mean(flavour, FLAVOURS) or f"known are {', '.join(FLAVOURS)}"
        raise ImgbuildError(f"unknown kind of answer file '{flavour}'", hint=hint)
    return list(_CHECKS[flavour](text))


class _Parser(KickstartParser):  # type: ignore[misc]
    """Goes on after an error, and follows no %include (it might be a URL)."""

    def __init__(self, handler: Any) -> None:
        super().__init__(handler, followIncludes=False, errorsAreFatal=False)
        self.found: list[str] = []

    def _tryFunc(self, fn: Callable[[], Any]) -> None:
        try:
            fn()
        except KickstartError as error:
            where = f"line {error.lineno}: " if error.lineno else ""
            self.found.append(where + " ".join(str(error.message).split()))
        except Exception as error:  # pykickstart lets others through (shlex's ValueError, IndexError ...)
            self.found.append(str(error) or type(error).__name__)


def _kickstart(text: str, version: str) -> list[str]:
    if version not in versionMap:
        known = [name for name in versionMap if re.fullmatch(r"RHEL\d+|F\d+", name)]
        hint = did_you_mean(version, known) or f"known are {known[0]} to {known[-1]}"
        raise ImgbuildError(f"unknown kickstart version '{version}'", hint=hint)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        parser = _Parser(makeVersion(version))
        try:
            parser.readKickstartFromString(text)
        except (KickstartError, ValueError) as error:  # what no single line has to answer for, and shlex's
            parser.found.append(" ".join(str(error).split()))
    said = [
        " ".join(str(warning.message).split()) for warning in told if issubclass(warning.category, KickstartWarning)
    ]
    return list(dict.fromkeys(parser.found + said))


def _preseed(text: str) -> Iterator[str]:
    """debconf's own checker where it is, and our reading of the same rules, which it is lenient about."""
    for number, line in _logical_lines(text):
        words = line.split(None, 3)
        if len(words) < 3:
            yield f"line {number}: '{line}' is not 'owner question type value'"
        elif words[2] not in _PRESEED_TYPES:
            meant = did_you_mean(words[2], _PRESEED_TYPES)
            yield f"line {number}: unknown type '{words[2]}'" + (f"; {meant}" if meant else "")
        elif words[2] == "boolean" and (words[3] if len(words) > 3 else "") not in ("true", "false"):
            yield f"line {number}: '{words[1]}' must be true or false, got '{words[3] if len(words) > 3 else ''}'"
    if shutil.which("debconf-set-selections"):
        yield from _debconf(text)


def _debconf(text: str) -> Iterator[str]:
    """With a database of its own: the machine's is locked while packages are installed, and debconf tells nobody."""
    with process.temporary_directory() as home:
        databases = [f"Name: {name}\nDriver: File\nFilename: {home / name}\n" for name in ("config", "templates")]
        (home / "debconf.conf").write_text("\n".join(["Config: config\nTemplates: templates\n", *databases]))
        done = process.run(
            ["debconf-set-selections", "--checkonly"], input=text.encode(), timeout=60, check=False,
            env={"LC_ALL": "C", "DEBCONF_SYSTEMRC": str(home / "debconf.conf")},
        )  # fmt: skip
    if done.returncode != 0:
        yield from (line.removeprefix("error: ") for line in done.stderr.splitlines() if line.startswith("error:"))


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """(number of its first line, text) of what is neither blank nor a comment; a last backslash goes on."""
    begun, pending = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if not pending and (not line.strip() or line.lstrip().startswith("#")):
            continue
        begun = begun if pending else number
        pending += line
        if pending.endswith("\\"):
            pending = pending[:-1] + " "
        else:
            yield begun, pending.strip()
            pending = ""
    if pending:
        yield begun, pending.strip()


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, which PyYAML (and so cloud-init) takes in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.MarkedYAMLError(problem=f"key '{key.value}' stands twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _mapping(text: str) -> tuple[dict[str, Any], list[str]]:
    """A YAML document that must be a mapping with text keys, or why it is not."""
    try:
        document = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        return {}, [where + (error.problem or "is not YAML")]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return {}, [f"is not YAML: {error}"]
    if not isinstance(document, dict):
        return {}, ["must be a mapping of keys to values"]
    wrong = [f"key {key!r} must be text" for key in document if not isinstance(key, str)]
    return ({}, wrong) if wrong else (document, [])


def _cloud_config(text: str) -> Iterator[str]:
    lines = text.splitlines()
    first = lines[1] if lines and lines[0].rstrip() == "## template: jinja" and len(lines) > 1 else text[:40]
    if first.splitlines()[:1] != ["#cloud-config"]:
        yield "line 1: must be '#cloud-config', or cloud-init passes the file over"
    document, problems = _mapping(text)
    yield from problems
    for key in document:
        if key not in CLOUD_CONFIG_KEYS:
            meant = did_you_mean(key, CLOUD_CONFIG_KEYS)
            yield f"unknown key '{key}'" + (f"; {meant}" if meant else "")
    yield from _model(CloudConfig, {key: value for key, value in document.items() if key in CLOUD_CONFIG_KEYS}, ())
    if "autoinstall" in document:
        yield from _answers(document["autoinstall"])


def _autoinstall(text: str) -> Iterator[str]:
    """Either a cloud-config with the key `autoinstall`, or the mapping itself (autoinstall.yaml on the medium)."""
    document, problems = _mapping(text)
    yield from problems
    if problems:
        return
    if text.startswith("#cloud-config"):
        if "autoinstall" not in document:
            yield "the key 'autoinstall' is missing"
        yield from _cloud_config(text)
    else:
        yield from _answers(document.get("autoinstall", document))


def _answers(answers: object) -> Iterator[str]:
    """Subiquity's mapping: keys and types, and what only shows when an installation asks or fails."""
    if not isinstance(answers, dict):
        yield "autoinstall: must be a mapping of keys to values"
        return
    yield from _model(Autoinstall, answers, ("autoinstall",))
    user_data = answers.get("user-data")
    asks = {"identity", "*"} & set(answers.get("interactive-sections") or ())
    if not answers.get("identity") and not isinstance(user_data, dict) and not asks:
        yield "autoinstall: neither 'identity' nor 'user-data' is there: the installer would ask for a user"
    identity = answers.get("identity")
    password = identity.get("password") if isinstance(identity, dict) else None
    if isinstance(password, str) and not _HASH.fullmatch(password):
        yield "autoinstall.identity.password: must be a hash like '$6$...', as sha512_crypt gives"


def _model(model: type[Any], document: dict[str, Any], above: tuple[str, ...]) -> Iterator[str]:
    """A pydantic model's complaints as sentences."""
    try:
        model.model_validate(document)
    except ValidationError as error:
        for problem in error.errors():
            parts = [
                str(part) for part in problem["loc"] if not re.match(r"(str|list|dict|bool|int|function)\b", str(part))
            ]
            where = ".".join([*above, *parts])
            if problem["type"] == "extra_forbidden":
                fields = [field.alias or name for name, field in model.model_fields.items()]
                meant = did_you_mean(parts[-1], fields) if len(parts) == 1 else None
                yield f"{where}: unknown key" + (f"; {meant}" if meant else "")
            else:
                yield f"{where}: {problem['msg'][0].lower()}{problem['msg'][1:]}"


def _meta_data(text: str) -> Iterator[str]:
    """NoCloud's meta-data: may be empty (Ubuntu's installer), else a mapping."""
    if text.strip():
        yield from _mapping(text)[1]


def _autoyast(text: str) -> Iterator[str]:
    if "<!ENTITY" in text:
        yield "entities are not used in AutoYaST profiles"
        return
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - without entities there is nothing to expand
    except ElementTree.ParseError as error:
        yield f"line {error.position[0]}: is not well-formed XML: {error}"
        return
    name, namespace = _YAST
    if root.tag != f"{{{namespace}}}{name}":
        yield f"the root element must be <{name} xmlns=\"{namespace}\">, got '{root.tag}'"
    sort = "{http://www.suse.com/1.0/configns}type"
    for element in root.iter():
        short, kind, value = element.tag.rpartition("}")[2], element.get(sort) or element.get("t"), element.text or ""
        if kind == "boolean" and value.strip() not in ("true", "false"):
            yield f"<{short}> must be true or false, got '{value.strip()}'"
        elif kind == "integer" and not re.fullmatch(r"\s*-?\d+\s*", value):
            yield f"<{short}> must be a whole number, got '{value.strip()}'"


_CHECKS: dict[str, Callable[[str], Iterator[str]]] = {
    "preseed": _preseed,
    "cloud-config": _cloud_config,
    "autoinstall": _autoinstall,
    "meta-data": _meta_data,
    "autoyast": _autoyast,
}
FLAVOURS = ("kickstart", *_CHECKS)
