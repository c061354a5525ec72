from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from imagebuilder.options import Options, Text
from imagebuilder.templates import document
from imagebuilder.templates.components import Decoded, Source, decode
from imagebuilder.templates.interpolate import Engine
from tests.probes import BuilderOptions

ENGINE = Engine({"m": "2048", "url": "http://x/y.iso"}, unset=frozenset({"required"}))


def decoded(raw: dict[str, Any] | str, engine: Engine = ENGINE) -> Decoded[BuilderOptions]:
    text = raw if isinstance(raw, str) else json.dumps(raw)
    source = document.load(text, "t.json")
    return decode(BuilderOptions, Source(source.data, source, ()), engine)


def test_values_are_rendered_and_decoded() -> None:
    found = decoded({"memory": "{{user `m`}}", "disk_size": "10G", "headless": "0", "shutdown_timeout": "1m30s",
                     "http_content": {"/a": "{{user `url`}}"}, "nested": {"create": "a,b"}})  # fmt: skip
    assert (found.problems, found.warnings) == ((), ())
    assert found.options == BuilderOptions(
        memory=2048, disk_size="10G", headless=False, shutdown_timeout="90s",
        http_content={"/a": "http://x/y.iso"}, nested={"create": ["a", "b"]},
    )  # fmt: skip


def test_late_fields_keep_their_actions_but_plain_variables() -> None:
    found = decoded(
        {"boot_command": ["{{.HTTPIP}} {{ user `m` }} {{user `m` | upper}}"], "qemuargs": [["-m", "{{.Name}}"]]}
    )
    assert found.options is not None
    assert found.options.boot_command == ("{{.HTTPIP}} 2048 {{user `m` | upper}}",)
    assert found.options.qemuargs == (("-m", "{{.Name}}"),)


def test_null_is_not_given() -> None:
    assert decoded({"memory": None}).options == BuilderOptions()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"memmory": 1}', "1:2: unknown key 'memmory'; did you mean 'memory'?"),
        ('{"zzzzz": 1}', "1:2: unknown key 'zzzzz'"),
        ('{"shutdown_wai": 1}', "1:2: unknown key 'shutdown_wai'; did you mean 'shutdown_wait'?"),
        ('{"_c": "x"}',
         "1:2: unknown key '_c'; comments like '_comment' may only stand at the root of a template"),
        ('{"memory": "x"}', "1:12: 'memory' must be a whole number, got 'x'"),
        ('{"memory": 0}', "1:12: 'memory' must be at least 1, got the number 0"),
        ('{"memory": [1]}', "1:12: 'memory' must be a whole number, got a list"),
        ('{"shutdown_timeout": "5"}', "1:22: 'shutdown_timeout': '5' is not a duration: write '5s'"),
        ('{"disk_interface": "virto"}',
         "1:20: 'disk_interface' must be 'ide', 'virtio' or 'virtio-scsi', got 'virto'; did you mean 'virtio'?"),
        ('{"boot_command": {"a": 1}}', "1:18: 'boot_command' must be a list of strings, got an object"),
        ('{"qemuargs": [["-m", 3]]}', "1:22: 'qemuargs': input should be a valid string"),
        ('{"nested": {"creat": []}}', "1:13: unknown key 'creat' in 'nested'; did you mean 'create'?"),
        ('{"nested": {"level": "x"}}', "1:22: 'nested.level' must be a whole number, got 'x'"),
        ('{"nested": 3}', "1:12: 'nested' must be an object, got the number 3"),
        ('{"http_content": [1]}', "1:18: 'http_content' must be an object with string values, got a list"),
        ('{"iso_url": "x"}', "1:1: 'iso_checksum' is missing"),
        ('{"iso_url": "xx{{uper `x`}}"}',
         "1:18: in '{{uper `x`}}': there is no function 'uper'; did you mean 'upper'?"),
        ('{"iso_url": "{{.Name}}"}',
         "1:16: in '{{.Name}}': '.Name' has no value here; to pass the braces on as text "
         "write {{`{{ ... }}`}}"),
        ('{"boot_command": ["a", "{{.Name"]}', "1:25: in '{{.Name': an action is not closed; end it with '}}'"),
        ('{"qemuargs": [["-m", "{{uper .X}}"]]}', "1:25: in '{{uper .X}}': there is no function 'uper'; "
         "did you mean 'upper'?"),
    ],
    ids=lambda value: value[:30],
)  # fmt: skip
def test_one_problem(text: str, problem: str) -> None:
    found = decoded(text)
    assert [str(one) for one in found.problems] == [f"t.json:{problem}"]
    assert found.options is None


def test_all_problems_are_reported_together() -> None:
    found = decoded({"memory": "x", "memmory": 1, "headless": "maybe", "iso_md5": "bad", "iso_url": "{{zzz}}",
                     "nested": {"level": "x", "lvl": 1}})  # fmt: skip
    messages = sorted(problem.message for problem in found.problems)
    assert messages == [
        "'headless' must be true or false, got 'maybe'",
        "'iso_checksum': there is no such digest",
        "'memory' must be a whole number, got 'x'",
        "'nested.level' must be a whole number, got 'x'",
        "in '{{zzz}}': there is no function 'zzz'",
        "unknown key 'lvl' in 'nested'",
        "unknown key 'memmory'",
    ]


def test_what_is_broken_is_not_called_missing() -> None:
    assert len(decoded({"iso_url": "x", "iso_checksum": []}).problems) == 1


def test_a_variable_without_value_is_not_said_again() -> None:
    found = decoded({"iso_url": "x", "iso_checksum": "{{user `required`}}", "memory": "{{user `required`}}"})
    assert (found.options, found.problems) == (None, ())


@pytest.mark.parametrize(
    ("text", "warning", "field"),
    [
        ('{"shutdown_wait": "5s"}',
         "1:2: 'shutdown_wait' is a deprecated key; write 'shutdown_timeout'", 5.0),
        ('{"shutdown_timeout": "9s", "shutdown_wait": "5s"}',
         "1:28: 'shutdown_wait' is a deprecated key and overrides "
         "'shutdown_timeout' beside it; write 'shutdown_timeout'", 5.0),
        ('{"shutdown_timeout": 5}',
         "1:22: 'shutdown_timeout': 5 has no unit (Packer takes it as nanoseconds): taken as "
         "seconds, write '5s'", 5.0),
        ('{"iso_md5": "ff"}',
         "1:2: 'iso_md5' is a deprecated key; write iso_checksum: 'md5:ff'", 300.0),
        ('{"iso_checksum": "none"}',
         "1:18: 'iso_checksum': 'none': nobody notices a broken file", 300.0),
        ('{"iso_url": "{{user `urll`}}", "iso_checksum": "x"}',
         "1:16: 'urll' is not among the variables: nothing is "
         "put in its place; did you mean 'url'?", 300.0),
        ('{"boot_command": "{{user `urll`}}"}',
         "1:21: 'urll' is not among the variables: nothing is put in its place; "
         "did you mean 'url'?", 300.0),
    ],
    ids=lambda value: str(value)[:30],
)  # fmt: skip
def test_warnings(text: str, warning: str, field: float) -> None:
    found = decoded(text)
    assert [str(one) for one in found.warnings] == [f"t.json:{warning}"]
    assert found.options is not None
    assert found.options.shutdown_timeout == field


def test_a_wrong_value_under_an_old_key_is_found_where_it_stands() -> None:
    assert str(decoded('{"shutdown_wait": "x"}').problems[0]).startswith("t.json:1:19: 'shutdown_timeout': 'x'")
    assert str(decoded('{"iso_md5": "bad"}').problems[0]).startswith("t.json:1:13: 'iso_checksum': there is no")


def test_build_waits_for_the_guest() -> None:
    assert decoded({"iso_checksum": "{{build `ID`}}"}).awaits_build
    assert not decoded({"boot_command": "{{build `ID`}}"}).awaits_build
    source = document.load('{"iso_checksum": "{{build `Host`}}"}', "t.json")
    found = decode(BuilderOptions, Source(source.data, source, ()), ENGINE, {"Host": "h"})
    assert found.options == BuilderOptions(iso_checksum="h")


def test_a_file_that_cannot_be_looked_at_is_a_problem() -> None:
    class Peeking(Options):
        file: Text = ""

        def problems(self) -> Iterator[tuple[str, str]]:
            open(self.file).close()  # noqa: PTH123
            yield from ()

    source = document.load(json.dumps({"file": "x" * 5000}), "t.json")
    found = decode(Peeking, Source(source.data, source, ()), ENGINE)
    assert "can't be looked at: File name too long" in found.problems[0].message


def test_a_required_key() -> None:
    class Required(Options):
        file: Text

    source = document.load('{"fil": 1}', "t.json")
    messages = [str(one) for one in decode(Required, Source(source.data, source, ()), ENGINE).problems]
    assert messages == ["t.json:1:2: unknown key 'fil'; did you mean 'file'?", "t.json:1:1: 'file' is missing"]
