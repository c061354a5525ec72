"""Whatever stands in a template, a person reads what is wrong with it, soon, and never a traceback."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imagebuilder import plugins
from imagebuilder.errors import TemplateError
from imagebuilder.gotemplate.layouts import format_time
from imagebuilder.templates.interpolate import STARTED, Engine
from imagebuilder.templates.template import inspect, load_template, plan_builds
from tests import probes

VALID = {
    "_comment": "x",
    "min_packer_version": "1.6.0",
    "variables": {"a": "1", "b": "{{user `a` | upper}}{{env `HOME`}}", "c": "{{isotime `2006`}}"},
    "sensitive-variables": ["a"],
    "builders": [
        {"type": "probe", "memory": "512", "nested": {"create": ["a"]}, "boot_command": ["<wait>{{.Name}}"]},
        {"type": "probe2", "name": "x{{user `b`}}", "iso_md5": "f", "qemuargs": [["-m", "1G"]], "shutdown_timeout": 5},
    ],
    "provisioners": [
        {"type": "note", "inline": ["{{build `Host`}}"], "only": ["probe"], "override": {"probe": {"inline": "x"}}},
        {"type": "note", "inline": "x", "pause_before": "5s", "max_retries": 3},
    ],
    "post-processors": ["stamp", [{"type": "stamp", "keep_input_artifact": True}, "seal"]],
}
TEXT = json.dumps(VALID)
SECONDS = 10.0

fuzzed = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", autouse=True)
def components(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        probes.install(tmp_path_factory.mktemp("site"), patch)
        yield


def survives(content: str | bytes) -> bool:
    """Whether a template is good; anything but a TemplateError for a bad one, or a long time, fails the test."""
    began = time.monotonic()
    try:
        template = load_template("-", content)
        plan_builds(template, environ={}, variables=[("a", "x")])
        inspect(template)
        return True
    except TemplateError as error:
        assert error.problems
        for problem in error.problems:
            str(problem).encode("utf-8")
        return False
    finally:
        assert time.monotonic() - began < SECONDS


def test_the_valid_template_is_valid() -> None:
    assert survives(TEXT)


@fuzzed
@given(st.binary(max_size=400))
def test_any_bytes(content: bytes) -> None:
    survives(content)


@fuzzed
@given(st.text(alphabet="{}[]\":,'#/*\\ \n\t-&*!|>%@`$.=a1ue", max_size=120), st.booleans())
def test_any_punctuation(text: str, flow: bool) -> None:
    survives("{" + text if flow else text)


@fuzzed
@given(st.integers(0, 2**32), st.integers(1, 6))
def test_mutated_text(seed: int, count: int) -> None:
    chance = random.Random(seed)
    text = TEXT
    for _ in range(count):
        start = chance.randrange(len(text) + 1)
        end = min(len(text), start + chance.choice([0, 0, 1, 1, 5, 40]))
        piece = chance.choice(
            ['"', "{", "}", "[", "]", ",", ":", "null", "1e9", "{{", "}}", "\\", "\x00", "é", "`", " ", ""]
        )
        text = text[:start] + piece + text[end:]
    survives(text)


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=20),
    st.sampled_from(["{{user `a`}}", "{{", "{{.X}}", "{{build `ID`}}", "{{if}}", "9" * 30, "\x00", "x" * 3000, "5m"]),
)  # fmt: skip
VALUES = st.recursive(
    ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


def _places(value: Any, route: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield route
    if isinstance(value, (dict, list)):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(entry, (*route, key))


PLACES = list(_places(VALID))[1:]


@fuzzed
@given(st.lists(st.tuples(st.sampled_from(PLACES), VALUES), min_size=1, max_size=3))
def test_mutated_values(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
    template = json.loads(TEXT)
    for route, value in changes:
        inner = template
        try:
            for step in route[:-1]:
                inner = inner[step]
            inner[route[-1]] = value
        except (KeyError, IndexError, TypeError):
            continue
    survives(json.dumps(template))


@fuzzed
@given(
    st.dictionaries(st.sampled_from([*probes.BuilderOptions.model_fields, "iso_md5", "shutdown_wait", "zzz"]), VALUES)
)
def test_any_options(options: dict[str, Any]) -> None:
    survives(json.dumps({"builders": [{**options, "type": "probe"}]}))


SHIPPED = [(sort, name) for sort in plugins.BUILT_IN for name in plugins.BUILT_IN[sort]]


@pytest.mark.parametrize(("sort", "name"), SHIPPED, ids=str)
@settings(fuzzed, max_examples=25)
@given(st.data())
def test_any_options_of_what_ships(sort: plugins.Kind, name: str, data: st.DataObject) -> None:
    model = plugins.options_of(sort, name)
    assert model is not None
    keys = st.sampled_from([field.alias or key for key, field in model.model_fields.items()] + [*model.renamed])
    component = {**data.draw(st.dictionaries(keys, VALUES, max_size=6)), "type": name}
    key = sort.replace("_", "-")
    survives(json.dumps({"builders": [{"type": "probe"}], key: [component]}))


WORDS = st.sampled_from(
    ["user", "upper", "`a`", '"b"', "'c'", "1", "2.5", "-7", "nil", "true", ".", ".A", "$", "$x", ":=", "=", "|", "(",
     ")", "if", "else", "end", "range", "with", "eq", "and", "printf", "`%5d`", '"%s"', "index", "slice",
     "len", "split", "replace_all", "``", "build", "`Host`", "strftime", "`%q%`", "break", "{{", "}}", "{{-", "-}}",
     "/*", "*/", ",", "isotime", " ", "\n"]
)  # fmt: skip


@fuzzed
@given(st.lists(WORDS, max_size=12), st.lists(WORDS, max_size=12))
def test_any_action(first: list[str], second: list[str]) -> None:
    text = "{{" + " ".join(first) + "}} x {{" + " ".join(second) + "}}"
    engine = Engine({"a": "A"}, "n", "t", environ={})
    for action in (lambda: engine.render(text, {"A": ["x", {"B": 1}]}), lambda: engine.check(text)):
        try:
            action()
        except TemplateError as error:
            assert str(error)


PRINTF = st.text(alphabet="%0123456789*.+-# []dsqvxXcUtTefgb!é", max_size=20)


@fuzzed
@given(PRINTF, st.sampled_from(["", "1", "-3 `x`", "2.5 true", "`é` nil 7", ".A"]))
def test_any_printf(pattern: str, arguments: str) -> None:
    try:
        Engine({}).render(f"{{{{printf `{pattern}` {arguments}}}}}", {"A": [1, "x", [2.5]]})
    except TemplateError as error:
        assert str(error)


@fuzzed
@given(st.text(alphabet="0123456789_.,-:ZMSTJanuryodPpm ", max_size=40))
def test_any_layout(layout: str) -> None:
    assert isinstance(format_time(STARTED, layout), str)


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 100_000,
        "[" * 1_000_000,
        '{"builders": [' + '{"type": "probe"},' * 40_000 + "]}",
        "a: " + "[" * 100_000,
        "- " * 100_000,
        "a: &a [" + "*a, " * 10_000 + "]",
        "? " * 10_000,
        json.dumps({"builders": [{"type": "probe", "iso_url": "{{if true}}" * 10_000}]}),
        json.dumps({"builders": [{"type": "probe", "iso_url": "{{" + "(" * 100_000}]}),
        json.dumps({"builders": [{"type": "probe", "iso_url": "{{`" * 100_000}]}),
        json.dumps({"builders": [{"type": "probe", "iso_url": '{{printf "%999999999d" 1}}'}]}),
        json.dumps({"variables": {f"v{n}": f"{{{{user `v{n - 1}`}}}}" * 2 for n in range(1, 60)} | {"v0": "x" * 100},
                    "builders": [{"type": "probe"}]}),
        json.dumps({"variables": {"a": "9" * 500_000}, "builders": [{"type": "probe", "memory": "{{user `a`}}"}]}),
        "{" + ", ".join(f'"k{n}": 1' for n in range(50_000)) + "}",
        "{" + '"k": 1, ' * 50_000 + "}",
        '{"builders": [{"type": "probe", ' + ", ".join(f'"k{n}": 1' for n in range(2_000)) + "}]}",
        '{"a": "' + "\\u00" * 200_000,
        "é: " + "\u2028" * 1000,
    ],
    ids=lambda text: text[:30],
)  # fmt: skip
def test_what_is_made_to_hurt(text: str) -> None:
    assert not survives(text)
