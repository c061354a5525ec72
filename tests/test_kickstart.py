"""Rendering autoinstall templates: what they may use, what they may not, and where their mistakes are."""

from __future__ import annotations

import json
import shlex
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from imagebuilder import paths
from imagebuilder.autoinstall import kickstart
from imagebuilder.errors import TemplateError

AWKWARD = [
    "plain",
    "it's",
    'say "hi"',
    "$HOME `id` \\ !",
    "two\nlines",
    "# no comment",
    "yes",
    "1e3",
    "",
    "caf\u00e9 \U0001f600",
]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def render(text: str, **variables: object) -> str:
    Path("t.j2").write_text(text, encoding="utf-8")
    return kickstart.render("t.j2", variables)


def problems(text: str, **variables: object) -> list[str]:
    with pytest.raises(TemplateError) as caught:
        render(text, **variables)
    return [str(problem) for problem in caught.value.problems]


def test_blocks_leave_no_blank_lines_and_the_last_line_break_stays() -> None:
    text = (
        "lang {{ lang }}\n{% for name in names %}\n    {% if name %}\nuser --name={{ name }}\n"
        "    {% endif %}\n{% endfor %}\nend\n"
    )
    assert render(text, lang="en_US", names=["a", "", "b"]) == "lang en_US\nuser --name=a\nuser --name=b\nend\n"


@pytest.mark.parametrize("value", AWKWARD)
def test_quoting(value: str) -> None:
    assert shlex.split(render("{{ v | shell }}", v=value)) == [value]
    assert yaml.safe_load(render("key: {{ v | yaml }}\n", v=value)) == {"key": value}
    assert ElementTree.fromstring(render('<a b="{{ v | xml }}">{{ v | xml }}</a>', v=value)).text == (value or None)


@settings(max_examples=50, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_any_value_survives_yaml(value: object) -> None:
    assert yaml.safe_load(f"key: {kickstart.yaml(value)}\n") == {"key": json.loads(json.dumps(value))}


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_text_survives_the_shell(value: str) -> None:
    assert shlex.split(kickstart.shell(value)) == [value]


def test_what_can_not_be_quoted_is_an_error() -> None:
    assert problems("{{ v | xml }}", v="\x00") == ["t.j2:1:1: character '\\x00' can't be in an XML document"]
    assert problems("\n{{ v | oneline }}", v="a\nd-i evil string x") == [
        "t.j2:2:1: 'a\\nd-i evil string x' holds a line break"
    ]
    assert render("{{ v | oneline }}", v="one line") == "one line"


def test_password_hash() -> None:
    assert render("{{ 'x' | sha512_crypt('salt') }}").startswith("$6$salt$")
    assert render("{{ 'x' | sha512_crypt }}") == render("{{ 'x' | sha512_crypt }} ").strip()


def test_every_unknown_variable_is_named_with_its_place() -> None:
    text = "one\n  two {{ hostnam }}\n{% if disk == 'x' %}{% endif %}\n{{ lang | shell }}\n"
    assert problems(text, hostname="a", lang="b") == [
        "t.j2:2:10: variable 'hostnam' is not set; did you mean 'hostname'?",
        "t.j2:3:7: variable 'disk' is not set; known are hostname, lang",
    ]


def test_a_missing_attribute_and_what_is_tested_for() -> None:
    assert problems("{{ net.ip }}", net={"mac": "x"}) == ["t.j2:1:1: 'dict object' has no attribute 'ip'"]
    assert render("{% if proxy is defined %}{{ proxy }}{% endif %}{{ x | default('d') }}") == "d"


def test_syntax_errors_have_their_line() -> None:
    found = problems("fine\n{% if x %}\n{{ y \n")
    assert found[0].startswith("t.j2:")
    assert problems("{% frobnicate %}")[0].startswith("t.j2:1:1: Encountered unknown tag 'frobnicate'")
    assert "No filter named 'shel'" in problems("{{ x | shel }}", x=1)[0]


def test_includes_come_from_beside_from_snippets_and_from_what_ships(here: Path) -> None:
    (here / "snippets").mkdir()
    (here / "snippets/users.j2").write_text("user {{ name }}\n")
    (here / "beside.j2").write_text("beside\n")
    assert render("{% include 'beside.j2' %}{% include 'users.j2' %}", name="joe") == "beside\nuser joe\n"
    (here / "snippets/users.j2").write_text("\n{{ nam }}\n")
    found = problems("{% include 'users.j2' %}", name="joe")
    assert found == ["snippets/users.j2:2:4: variable 'nam' is not set; did you mean 'name'?"]
    assert problems("\n{% include 'nope.j2' %}") == ["t.j2:2:1: there is no template 'nope.j2' to include"]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "snippets/../../secret", "..\\secret"])
def test_includes_stay_where_templates_are(name: str, here: Path) -> None:
    work = here / "work"
    work.mkdir()
    (here / "secret").write_text("secret")
    (work / "t.j2").write_text("{% include name %}")
    with pytest.raises(TemplateError, match="there is no template"):
        kickstart.render(work / "t.j2", {"name": name})


def test_where_a_template_is_looked_for(here: Path) -> None:
    (here / "lib").mkdir()
    (here / "lib/x.j2").write_text("from lib")
    assert kickstart.render("x.j2", {}, search=[here / "lib"]) == "from lib"
    (here / "x.j2").write_text("from here")
    assert kickstart.render("x.j2", {}, search=[here / "lib"]) == "from here"
    with pytest.raises(TemplateError, match=r"there is no kickstart template 'y\.j2'"):
        kickstart.render("y.j2", {})
    assert kickstart.find(here / "x.j2") == here / "x.j2"
    assert paths.shipped("kickstarts").is_dir()


def test_a_changed_template_is_rendered_anew() -> None:
    assert render("one") == "one"
    assert render("two!") == "two!"


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ [].__class__.__base__.__subclasses__() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ ''|attr('__class__') }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{% set x = names.append('z') %}",
        "{% set _ = d.update({'a': 1}) %}",
        "{{ range(10000000)|list }}",
        "{{ 'x' * 100000000 }}",
        "{{ 9 ** (9 ** 9) }}",
        "{{ 'x'.ljust(100000000) }}",
        "{{ '%100000000d' % 1 }}",
        "{{ 'x'|center(100000000) }}",
        "{{ 'x\n'|indent(100000000) }}",
        "{{ lipsum(100000) }}",
        "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
        "{% include 't.j2' %}",
        "{{ 1 / 0 }}",
        "{{ names + 1 }}",
        "{{ names[9] }}",
        "{{ 'a' | int(base=99) }}{{ [1, 'a'] | sort }}",
    ],
)
def test_the_sandbox_holds(text: str) -> None:
    began = time.monotonic()
    found = problems(text, names=["a"], d={})
    assert len(found) == 1
    assert found[0].startswith("t.j2:1:") or found[0].startswith("t.j2:2:"), found
    assert time.monotonic() - began < 5


def test_loops_in_loops_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kickstart, "TIME_LIMIT", 0.2)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    began = time.monotonic()
    assert "is there a loop in a loop?" in problems(loops)[0]
    assert time.monotonic() - began < 3


def test_a_template_that_is_not_text(here: Path) -> None:
    (here / "t.j2").write_bytes(b"\xff\xfe")
    with pytest.raises(TemplateError, match=r"t\.j2"):
        kickstart.render("t.j2", {})


def test_a_long_template_is_quick() -> None:
    text = "{% for n in range(1000) %}\nline {{ n }} {{ name | shell }}\n{% endfor %}\n"
    render(text, name="x")
    began = time.monotonic()
    assert render(text, name="x").count("\n") == 1000
    assert time.monotonic() - began < 1
