from __future__ import annotations

import hashlib

import pytest

from imagebuilder.errors import TemplateError
from imagebuilder.templates import document
from imagebuilder.templates.document import load
from imagebuilder.templates.yamltext import resolve


def problems(text: str | bytes, file: str = "t.json") -> list[str]:
    with pytest.raises(TemplateError) as caught:
        load(text, file)
    return [str(problem) for problem in caught.value.problems]


def test_json_values_and_positions() -> None:
    found = load('{\n  "a": [1, -2.5e1, true, null],\n  "b": {"c": "x\\n\\u00e9\\ud83d\\ude00"}\n}', "t.json")
    assert found.data == {"a": [1, -25.0, True, None], "b": {"c": "x\né😀"}}
    assert str(found.position(("a",))) == "t.json:2:8"
    assert str(found.position(("a",), key=True)) == "t.json:2:3"
    assert str(found.position(("a", 2))) == "t.json:2:20"
    assert str(found.position(("b", "nope", 3))) == "t.json:3:8"
    assert found.spelling(("a", 1)) == "-2.5e1"


def test_digest_is_that_of_the_bytes_and_bom_is_tolerated() -> None:
    content = b'\xef\xbb\xbf{"a": 1}'
    found = load(content, "t.json")
    assert found.data == {"a": 1}
    assert found.digest == hashlib.sha256(content).hexdigest()
    assert str(found.position(("a",), key=True)) == "t.json:1:2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1,}', "t.json:1:8: a comma after the last entry; remove it"),
        ('[1, 2,\n]', "t.json:1:6: a comma after the last entry; remove it"),
        ('{"a": 1 // x\n}', "t.json:1:9: JSON has no comments; use a root key like '_comment', or YAML"),
        ('{# x\n"a": 1}', "t.json:1:2: JSON has no comments; use a root key like '_comment', or YAML"),
        ('{"a": 1\n "b": 2}', "t.json:1:8: a comma is missing here; put ',' between the entries"),
        ("{'a': 1}", 't.json:1:2: a string in quotes that JSON does not know; use "double quotes"'),
        ("{a: 1}", 't.json:1:2: the key a has no quotes; write "a"'),
        ('{"a": True}', "t.json:1:7: True is no JSON value; write true"),
        ('{"a": None}', "t.json:1:7: None is no JSON value; write null"),
        ('{"a": 012}', 't.json:1:7: 012 is no JSON value; write "012"'),
        ('{"a": NaN}', 't.json:1:7: NaN is no JSON value; write "NaN"'),
        ('{"a": "x\ny"}', "t.json:1:7: a string is not closed on its line; add '\"', or write a line break as \\n"),
        ('{"a": "x\ty"}', "t.json:1:9: a control character stands in a string; write it as \\t"),
        ('{"a": "\\d"}', "t.json:1:8: '\\d' is no escape in JSON; write '\\\\d' for a backslash"),
        ('{"a": 1}}', "t.json:1:9: something stands after the end of the template; a template is one { ... }"),
        ('{"a": [1}', "t.json:1:9: expected ',' or ']', got '}'\n"),
        ('{"a" 1}', "t.json:1:6: expected ':' after 'a', got '1'\n"),
        ('{"a" = 1}', "t.json:1:6: '=' after a key; write ':'"),
        ('{\n"a": [1', "t.json:2:8: the '[' of line 2 is never closed; add ']'"),
        ('{"a": }', "t.json:1:7: expected a value, got '}'\n"),
        ("", "t.json:1:1: expected a value, got the end of the file\n"),
        ('{"a": 1e999}', "t.json:1:7: the number is too large\n"),
        ('{"a": 1' + "0" * 5000 + "}", "t.json:1:7: the number is too large\n"),
    ],
    ids=lambda value: value[:20],
)  # fmt: skip
def test_json_mistakes_are_named(text: str, message: str) -> None:
    assert problems(text)[0].startswith(message)


def test_json_error_shows_the_line_with_a_caret() -> None:
    assert problems('{\n  "a": 1,\n}')[0] == (
        "t.json:2:9: a comma after the last entry; remove it\n    2 |   \"a\": 1,\n      |         ^"
    )  # fmt: skip


def test_all_json_mistakes_are_reported_at_once() -> None:
    assert len(problems("{'a': 1, // x\n b: [1 2,],}")) == 6


def test_long_lines_are_cut_around_the_mistake() -> None:
    excerpt = problems('{"a": "' + "x" * 100_000 + '",}')[0].splitlines()
    assert len(excerpt[1]) < 150
    assert excerpt[1][excerpt[2].index("^")] == ","


@pytest.mark.parametrize("name", ["t.json", "t.yaml"])
def test_duplicate_keys_are_all_reported(name: str) -> None:
    text = '{"a": 1, "b": {"x": 1, "x": 2},\n "a": 3, "a": 4}'
    assert problems(text, name) == [
        f"{name}:1:24: the key 'x' stands twice; the first one is in line 1, column 16",
        f"{name}:2:2: the key 'a' stands twice; the first one is in line 1, column 2",
        f"{name}:2:10: the key 'a' stands twice; the first one is in line 1, column 2",
    ]


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 5000, "[" * 70 + "]" * 70], ids=["lists", "objects", "closed"]
)
@pytest.mark.parametrize("name", ["t.json", "t.yaml"])
def test_deep_nesting_is_an_error(name: str, text: str) -> None:
    assert "nested more than 64 deep" in problems(text, name)[0]


def test_size_is_limited() -> None:
    assert "too large" in problems(b" " * (document.MAX_BYTES + 1))[0]


def test_bytes_that_are_not_utf8_are_said() -> None:
    found = load(b'{"a": "caf\xe9"}', "t.json")
    assert found.data == {"a": "caf\ufffd"}
    assert str(found.warnings[0]) == "t.json:1:11: some bytes are not UTF-8; save it as UTF-8"


def test_yaml_values_and_positions() -> None:
    found = load("a: &x {k: 1}\nb: *x\nc:\n  <<: *x\n  d: yes\ne: |\n  one {{ x }}\n  two {{ y }}\n", "t.yaml")
    assert found.data == {
        "a": {"k": 1}, "b": {"k": 1}, "c": {"k": 1, "d": "yes"}, "e": "one {{ x }}\ntwo {{ y }}\n",
    }  # fmt: skip
    assert str(found.position(("c", "d"))) == "t.yaml:5:6"
    assert str(found.position(("b", "k"))) == "t.yaml:2:4"
    assert str(found.inside(("e",), found.data["e"].index("{{ y"))) == "t.yaml:8:7"


@pytest.mark.parametrize(
    ("text", "value"),
    [("yes", "yes"), ("on", "on"), ("true", True), ("False", False), ("0755", "0755"), ("0x1F", 31), ("12:30", "12:30"),
     ("1.10", 1.1), ("1e3", 1000.0), (".inf", ".inf"), ("2001-01-01", "2001-01-01"), ("~", None), ("", None),
     ("-7", -7), ("1" * 400, "1" * 400)],
    ids=str,
)  # fmt: skip
def test_yaml_scalars_hold_no_surprises(text: str, value: object) -> None:
    assert resolve(text) == value
    assert type(resolve(text)) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: {{user `x`}}", "quote a value that begins with '{{'"),
        ("a: {{ .x }}", "quote a value that begins with '{{'"),
        ("a:\n\t- b", "YAML is indented with spaces"),
        ("a: !!python/object/apply:os.system [x]", "the tag"),
        ("a: *b", "'*b' stands for nothing yet"),
        ("a: &a [*a]", "'*a' stands for nothing yet"),
        ("a: 1\n---\nb: 2", "a second document begins"),
        ("a: !!int x", "'x' is not a int"),
        ("a: \x00", "U+0000 may not stand in YAML"),
        ("<<: 3", "'<<' takes a mapping"),
    ],
)
def test_yaml_mistakes_are_named(text: str, message: str) -> None:
    assert message in problems(text, "t.yaml")[0]


def test_aliases_count_as_what_they_stand_for() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    text += "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    assert "the aliases stand for too much" in problems(text, "t.yaml")[0]


@pytest.mark.parametrize(("text", "data"), [(' {"a": 1}', {"a": 1}), ("a: 1", {"a": 1})], ids=["json", "yaml"])
def test_standard_input_may_be_both(text: str, data: object) -> None:
    found = load(text, "-")
    assert found.data == data
    assert found.position(()).file == "<stdin>"


@pytest.mark.parametrize(
    ("text", "file", "column"),
    [
        ('{"a": "xx{{y}}"}', "t.json", 10),
        ('{"a": "\\"\\u0041{{y}}"}', "t.json", 16),
        ("a: xx{{y}}", "t.yaml", 6),
        ("a: 'xx{{y}}'", "t.yaml", 7),
        ('a: "\\t{{y}}"', "t.yaml", 7),
    ],
)
def test_position_inside_a_string(text: str, file: str, column: int) -> None:
    found = load(text, file)
    assert found.inside(("a",), found.data["a"].index("{{")).column == column
