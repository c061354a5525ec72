from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import imagebuilder
from imagebuilder.errors import TemplateError
from imagebuilder.gotemplate.tokens import ExpressionError
from imagebuilder.templates.interpolate import Engine, Unset

ENGINE = Engine(
    {"a": "A", "dashed": "x-y-z", "empty": ""},
    build_name="web",
    builder_type="qemu",
    template_directory=Path("/templates"),
    started=datetime(2026, 11, 21, 9, 5, 7, tzinfo=UTC),
)
DOT: Mapping[str, Any] = {"Path": "/tmp/x.sh", "Vars": "", "L": ["a", "b"], "M": {"k": "v", "j": 2}, "N": 3}

# Rendered by Packer 1.6.6 as well, where it is installed.
SAME_IN_PACKER = {
    "plain text": "plain text",
    "{{user `a`}}/{{user \"a\"}}": "A/A",
    "{{ user   `a` | lower | printf `%s-%s` `b` }}": "b-a",
    "a {{- `b` -}} c": "abc",
    "a {{- /* gone */ -}} c": "ac",
    "{{/* gone\n */}}x": "x",
    "{{`{{ .Names }}`}}": "{{ .Names }}",
    r'{{"tab\t\x41\u00e9\101\"\\"}}': 'tab\tAéA"\\',
    "{{if eq (user `a`) `A`}}yes{{else}}no{{end}}": "yes",
    "{{if ne 1 1}}1{{else if true}}2{{else}}3{{end}}": "2",
    "{{if and (not false) (or `` `x`)}}t{{end}}": "t",
    "{{and 1 0 2}} {{or 0 `` 3}} {{not ``}}": "0 3 true",
    "{{eq 1 2 1}} {{eq `a` `b`}} {{ne 1 2}} {{lt 1 2}} {{le `b` `a`}} {{gt 2.5 1.5}} {{ge 1 1}}":
        "true false true true false true true",
    "{{len `é`}} {{index `abc` 1}} {{slice `abcd` 1 3}} {{slice `abcd` 2}}": "2 98 bc cd",
    "{{print `a` `b` 1 2 `c` 3 nil true}}": "ab1 2c3 <nil> true",
    "{{println `a` 1}}.": "a 1\n.",
    "{{html `<a href=\"x\">'&`}}": "&lt;a href=&#34;x&#34;&gt;&#39;&amp;",
    "{{js `<a>='x'\"`}}": r"\u003Ca\u003E\u003D\'x\'\"",
    "{{urlquery `a b&é/~`}}": "a+b%26%C3%A9%2F~",
    "{{printf `%d|%5d|%-5d|%05d|%+d|%x|%X|%#x|%o|%b` 3 3 3 3 3 255 255 255 8 5}}":
        "3|    3|3    |00003|+3|ff|FF|0xff|10|101",
    "{{printf `%s|%5s|%-5s|%05s|%.2s|%q|%x|% X` `x` `x` `x` `x` `xyz` `a\"b` `hi` `hi`}}":
        'x|    x|x    |0000x|xy|"a\\"b"|6869|68 69',
    "{{printf `%v %v %v %v %t %%` 1.5 1e21 `s` true false}}": "1.5 1e+21 s true false %",
    "{{printf `%6.2f|%08.3f|%e|%g|%g` 3.14159 3.14159 3.0 100000000.0 0.00001}}":
        "  3.14|0003.142|3.000000e+00|1e+08|1e-05",
    "{{printf `%c|%U|%q|%T|%T` 65 65 65 `s` 1}}": "A|U+0041|'A'|string|int",
    "{{printf `%[2]d %[1]d` 1 2}} {{printf `%*d` 5 3}}": "2 1     3",
    "{{printf `%d` `x`}} {{printf `%s`}} {{printf `a` 1}} {{printf `%z` 3}}":
        "%!d(string=x) %!s(MISSING) a%!(EXTRA int=1) %!z(int=3)",
    "{{0x1F}} {{1_000}} {{.5}} {{'a'}} {{017}} {{-3}} {{1e3}} {{1.0}} {{0b11}}": "31 1000 0.5 97 15 -3 1000 1 3",
    "{{$x := `5`}}{{$x}}{{$x = `6`}}{{$x}}": "56",
    "{{with `x`}}{{.}}{{end}}{{with ``}}1{{else}}2{{end}}": "x2",
    "{{(print `a`) | upper}}{{print (print (print 1))}}": "A1",
    "{{split `a-b-c` `-` 2}} {{split (user `dashed`) \"-\" 0}}": "c x",
    "{{replace `a` `b` 1 `aaa`}} {{replace_all `a` `b` `aaa`}} {{`a.b` | replace_all `.` `-`}}": "baa bbb a-b",
    "{{upper `é`}}{{lower `ÀB`}}": "Éàb",
    "{{build_name}} {{build_type}}": "web null",
    "{{printf `%v %g %v %v %v` 1e8 1e5 123456.0 1234567.0 -0.00001234}}": "1e+08 100000 123456 1.234567e+06 -1.234e-05",
    "{{printf `%.3d|%.d|%+v|% d|%T|%x|%-05d|%6.2s|` 5 0 3 4 nil -255 3 `abc`}}": "005||3| 4|<nil>|-ff|3    |    ab|",
}  # fmt: skip


@pytest.mark.parametrize("text", SAME_IN_PACKER)
def test_rendering(text: str) -> None:
    engine = Engine(ENGINE.variables, "web", "null", started=ENGINE.started)
    assert engine.render(text) == SAME_IN_PACKER[text]


def packer_build(packer: str, template: dict[str, Any], directory: Path) -> str:
    """What Packer prints when it runs a template."""
    (directory / "t.json").write_text(json.dumps(template), encoding="utf-8")
    private = {"HOME": str(directory), "PATH": os.environ["PATH"], "CHECKPOINT_DISABLE": "1", "TMPDIR": str(directory)}
    done = subprocess.run([packer, "build", "t.json"], cwd=directory, env=private, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_rendering_is_packer_s(tmp_path: Path) -> None:
    """Every text is given to a shell by Packer's shell-local as a variable, and read back."""
    packer = shutil.which("packer")
    version = packer and subprocess.run([packer, "version"], capture_output=True, text=True).stdout
    if not packer or "Packer v" not in (version or ""):
        pytest.skip("needs HashiCorp's packer on PATH")
    texts = [text for text in SAME_IN_PACKER if "{{`{{" not in text]  # Packer renders until nothing changes
    environment = [f"V{number}={text}" for number, text in enumerate(texts)]
    template = {
        "variables": dict(ENGINE.variables),
        "builders": [{"type": "null", "communicator": "none", "name": "web"}],
        "provisioners": [
            {
                "type": "shell-local",
                "environment_vars": environment,
                "inline_shebang": "/bin/bash -e",
                "inline": ["for n in ${!V*}; do printf '%s=%s\\0' $n \"${!n}\"; done > values"],
            }
        ],
    }
    packer_build(packer, template, tmp_path)
    values = dict(entry.split("=", 1) for entry in (tmp_path / "values").read_text("utf-8").split("\0")[:-1])
    engine = Engine(ENGINE.variables, "web", "null", started=ENGINE.started)
    for number, text in enumerate(texts):
        assert (text, engine.render(text)) == (text, values[f"V{number}"])


def test_fields_in_variables_are_packer_s(tmp_path: Path) -> None:
    """A variable that holds `{{.Vars}}` is rendered where it is used."""
    packer = shutil.which("packer")
    if not packer or "Packer v" not in subprocess.run([packer, "version"], capture_output=True, text=True).stdout:
        pytest.skip("needs HashiCorp's packer on PATH")
    command = "{{ .Vars }} sh -c 'echo $X-{{user `a`}}'"
    template = {
        "variables": {"a": "A", "command": command},
        "builders": [{"type": "null", "communicator": "none"}],
        "provisioners": [
            {
                "type": "shell-local",
                "environment_vars": ["X=1"],
                "inline": ["true"],
                "execute_command": ["/bin/sh", "-c", "{{user `command`}}"],
            }
        ],
    }
    assert "null: 1-A" in packer_build(packer, template, tmp_path)
    engine = Engine({"a": "A", "command": command})
    assert engine.render("{{user `command`}}", {"Vars": "X='1' "}) == "X='1'  sh -c 'echo $X-A'"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("{{.Path}} {{ .M.k }} {{(index .M `k`)}} {{$.N}}", "/tmp/x.sh v v 3"),
        ("{{if .Vars}}x{{else}}none{{end}}", "none"),
        ("{{range .L}}<{{.}}>{{end}}", "<a><b>"),
        ("{{range $i, $e := .L}}{{$i}}={{$e}};{{end}}", "0=a;1=b;"),
        ("{{range $e := .L}}{{if eq $e `b`}}{{break}}{{end}}{{$e}}{{end}}", "a"),
        ("{{range $e := .L}}{{if eq $e `a`}}{{continue}}{{end}}{{$e}}{{end}}", "b"),
        ("{{range $k, $v := .M}}{{$k}}{{$v}}{{end}}", "j2kv"),
        ("{{with .M}}{{.k}}{{$.Path}}{{end}}", "v/tmp/x.sh"),
        ("{{.L}} {{.M}} {{len .L}} {{index .L 1}} {{slice .L 1}}", "[a b] map[j:2 k:v] 2 b [b]"),
        ("{{isotime}} {{isotime `2006-Jan-02`}} {{timestamp}}", "2026-11-21T09:05:07Z 2026-Nov-21 1795251907"),
        ("{{strftime `%Y%m%d`}}", "20261121"),
        ("{{template_dir}}", "/templates"),
        ("{{clean_resource_name `a b/c.d`}}", "a-b-c-d"),
        ("{{packer_version}}", "1.15.0"),
        ("{{imgbuild_version}}", imagebuilder.__version__),
        ("{{build `Host`}}", "{{build `Host`}}"),
    ],
)
def test_values_of_a_build(text: str, wanted: str) -> None:
    assert ENGINE.render(text, DOT) == wanted


def test_build_has_its_values_when_the_guest_runs() -> None:
    assert ENGINE.render("{{build `Host`}}:{{build `Port`}}", build={"Host": "h", "Port": "22"}) == "h:22"


def test_pwd_and_uuid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ENGINE.render("{{pwd}}") == str(tmp_path)
    first, second = ENGINE.render("{{uuid}} {{uuid}}").split()
    assert first != second
    assert re.fullmatch(r"[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}", first)
    assert abs(int(first[:8], 16) - time.time()) < 100


def test_env_is_for_variables() -> None:
    assert Engine({}, environ={"X": "1"}).render("{{env `X`}}{{env `Y`}}") == "1"


@pytest.mark.parametrize(
    ("text", "offset", "message"),
    [
        ("ab {{uper `x`}}", 5, "there is no function 'uper'; did you mean 'upper'?"),
        ("ab {{ zzz }}", 6, "there is no function 'zzz'; text for others is written {{`{{ ... }}`}}"),
        ("{{if false}}{{zzz}}{{end}}", 14, "there is no function 'zzz'"),
        ("{{.Pth}}", 2, "'.Pth' has no value here; did you mean '.Path'?"),
        ("{{.Zzzz}}", 2, "'.Zzzz' has no value here; known here are .L, .M, .N, .Path, .Vars"),
        ("{{.M.x}}", 2, "'.x' has no value here"),
        ("{{.Path.x}}", 2, "'.x' has no value here"),
        ("{{user 'name'}}", 7, "'name' is no string; write `name`"),
        ("{{user `a}}", 7, "a string is not closed: its backquote has no partner"),
        ('{{user "a}}', 7, "a string is not closed: its quote has no partner"),
        ("{{user `a`", 0, "an action is not closed; end it with '}}'"),
        ("x{{", 1, "an action is not closed"),
        ("{{user`a`}}", 6, "'`a`' follows without a space"),
        ("{{}}", 0, "a value is missing"),
        ("{{ | upper}}", 3, "a value is missing"),
        ("{{user}}", 2, "'user': takes 1 argument, got 0"),
        ("{{upper `a` `b`}}", 2, "'upper': takes 1 argument, got 2"),
        ("{{isotime `a` `b`}}", 2, "'isotime': takes 0 to 1 argument, got 2"),
        ("{{upper 3}}", 2, "'upper': argument 1 must be a string, got the int 3"),
        ("{{split `a` `-` `0`}}", 2, "'split': argument 3 must be a number, got the string 0"),
        ("{{split `a-b` `-` 2}}", 2, "'split': there is no part 2: 'a-b' has 2 between '-'"),
        ("{{env `HOME`}}", 2, "'env': the environment can only be read in 'variables'; declare \"home\": "),
        ("{{build `Hst`}}", 2, "'build': 'Hst' is nothing that a build knows; did you mean 'Host'?"),
        ("{{sed `a` `b`}}", 2, "'sed': is not supported, in Packer neither; use 'replace'"),
        ("{{vault `a` `b`}}", 2, "'vault': this store of secrets is not supported; put it into the environment"),
        ("{{consul_key `a`}}", 2, "'consul_key': this store of secrets is not supported"),
        ("{{aws_secretsmanager `a`}}", 2, "'aws_secretsmanager': this store of secrets is not supported"),
        ("{{strftime `%L`}}", 2, "'strftime': '%L' is no conversion of strftime"),
        ("{{eq `a` 1}}", 2, "'eq': can't compare the string a with the int 1"),
        ("{{eq 1}}", 2, "'eq': takes at least 2 arguments, got 1"),
        ("{{lt true false}}", 2, "'lt': can't put true and false in order"),
        ("{{index .L 2}}", 2, "'index': the index 2 is out of range: there are 2"),
        ("{{index 3 1}}", 2, "'index': the int 3 has no entries"),
        ("{{slice `abc` 2 1}}", 2, "'slice': the first bound 2 is greater than the second, 1"),
        ("{{len 3}}", 2, "'len': the int 3 has no length"),
        ("{{end}}", 0, "'end' without an 'if', 'with' or 'range' before it"),
        ("{{if 1}}x", 0, "'if' is never ended"),
        ("{{if 1}}{{else}}{{else}}{{end}}", 0, "'else' stands twice"),
        ("{{break}}", 0, "'break' outside of a 'range'"),
        ("{{range `x`}}{{end}}", 8, "'range' can't go over 'x'"),
        ("{{define `x`}}{{end}}", 0, "'define' is not supported"),
        ("{{$y}}", 2, "the variable '$y' is not declared"),
        ("{{if true}}{{$y := 1}}{{end}}{{$y}}", 31, "the variable '$y' is not declared"),
        ("{{nil}}", 2, "'nil' can only be an argument"),
        ("{{`a` `b`}}", 2, "only a function takes arguments"),
        ("{{1 | 2}}", 6, "only a function can stand after '|'"),
        ("{{(1}}", 2, "a parenthesis is not closed"),
        ("{{1)}}", 3, "')' is not expected here"),
        ("{{ {x} }}", 3, "'{' means nothing in an action"),
        ("{{/* x }}", 0, "a comment is not closed"),
        ("{{99999999999999999999}}", 2, "'99999999999999999999' is too large"),
        ("{{09}}", 2, "'09' is no number"),
        ('{{"\\z"}}', 3, "'\\z' is no escape"),
        ("{{" + "(" * 100 + "1" + ")" * 100 + "}}", 52, "nested more than 50 deep"),
        ("{{if 1}}" * 60, 400, "nested more than 50 deep"),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_mistakes(text: str, offset: int, message: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        ENGINE.evaluate(text, DOT)
    assert str(caught.value.problem).startswith(message)
    assert caught.value.offset == offset


def test_render_quotes_the_action_that_is_wrong() -> None:
    with pytest.raises(TemplateError) as caught:
        ENGINE.render("one {{.Path}} two {{.Pth}}", DOT)
    assert str(caught.value) == "in '{{.Pth}}': '.Pth' has no value here; did you mean '.Path'?"


@pytest.mark.parametrize(
    "text",
    [
        '{{printf "%999999999d" 1}}',
        '{{printf "%.999999999f" 1.5}}',
        '{{printf "%*d" 99999999 1}}',
        "{{$x := `" + "a" * 1000 + "`}}" + "{{$x = print $x $x}}" * 40,
        "{{$x := printf `%9999d` 1}}" + "{{$x = replace_all ` ` (print $x) $x}}" * 4,
        "{{range $.L}}" * 30 + "x" + "{{end}}" * 30,
        '{{$x := printf "%9999d" 1}}' + "{{$x}}" * 200,
        "{{$x := `" + "a" * 500_000 + "`}}" + "{{$y := len $x}}" * 1000,
    ],
    ids=["width", "precision", "star", "doubling", "replacing", "looping", "printing", "measuring"],
)
def test_time_and_space_are_bounded(text: str) -> None:
    began = time.monotonic()
    with pytest.raises(ExpressionError, match=r"too large|longer than|too many steps"):
        ENGINE.evaluate(text, DOT)
    assert time.monotonic() - began < 5


def test_an_undeclared_variable_is_nothing_and_a_doubt() -> None:
    text, doubts = ENGINE.evaluate("ab{{user `dashd`}}")
    assert text == "ab"
    assert [(doubt.offset, doubt.hint) for doubt in doubts] == [(4, "did you mean 'dashed'?")]
    assert "'dashd' is not among the variables" in doubts[0].message


def test_a_printf_that_does_not_fit_is_a_doubt() -> None:
    assert "printf writes '%!d(string=x)'" in ENGINE.evaluate("{{printf `%d` `x`}}")[1][0].message


def test_check_finds_what_will_be_wrong_later() -> None:
    assert ENGINE.check("{{.Anything}} {{user `a`}} {{build `Host`}} {{.X | upper}}") == []
    doubts = ENGINE.check("{{.Path}} {{user `nope`}} {{if .X}}{{print (user `no`)}}{{end}}")
    assert [doubt.offset for doubt in doubts] == [12, 44]
    for text in (
        "{{.Path",
        "{{if .X}}{{zzz}}{{end}}",
        "{{env `X`}}",
        "{{build `Zzz`}}",
        "{{`Zzz` | build}}",
        "{{user}}",
    ):
        with pytest.raises(ExpressionError):
            ENGINE.check(text)


def test_a_variable_without_value_is_said_elsewhere() -> None:
    with pytest.raises(Unset):
        Engine({}, unset=frozenset({"x"})).render("{{user `x`}}")
