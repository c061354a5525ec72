from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from imagebuilder.errors import TemplateError
from imagebuilder.plugins import Artifact, Guest, OnError
from imagebuilder.templates.template import BuildPlan, Plan, inspect, load_template, plan_builds
from imagebuilder.ui import Event, Ui
from tests import probes

BUILDER = {"type": "probe"}
NOTE = {"type": "note", "inline": ["true"]}


@pytest.fixture(autouse=True)
def components(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    probes.install(tmp_path_factory.mktemp("site"), monkeypatch)


def planned(template: dict[str, Any] | str, **options: Any) -> Plan:
    text = template if isinstance(template, str) else json.dumps(template)
    return plan_builds(load_template("-", text), **{"environ": {}, **options})


def refused(template: dict[str, Any] | str, **options: Any) -> list[str]:
    with pytest.raises(TemplateError) as caught:
        planned(template, **options)
    return [str(problem).removeprefix("<stdin>:") for problem in caught.value.problems]


def warned(template: dict[str, Any] | str, **options: Any) -> list[str]:
    return [str(problem).removeprefix("<stdin>:") for problem in planned(template, **options).warnings]


def options_of(build: BuildPlan) -> probes.BuilderOptions:
    return cast(probes.BuilderOptions, build.builder_options)


def values(template: dict[str, Any], **options: Any) -> dict[str, str]:
    return dict(planned({"builders": [BUILDER], **template}, **options).builds[0].context.variables)


# --- the whole


def test_a_template_in_json_and_yaml_is_the_same(tmp_path: Path) -> None:
    template = {
        "_comment": "x",
        "min_packer_version": "1.6.0",
        "description": "d",
        "variables": {"size": "10G", "pass": "secret"},
        "sensitive-variables": ["pass"],
        "builders": [{"type": "probe", "name": "{{user `size`}}", "disk_size": "{{user `size`}}", "memory": "64"}],
        "provisioners": [
            {"type": "note", "inline": ["{{build_name}} {{build_type}}"], "timeout": "5m", "pause_before": "3s"}
        ],
        "error-cleanup-provisioner": {"type": "note", "inline": "x"},
        "post-processors": [
            "stamp",
            {"type": "seal", "keep_input_artifact": False},
            [{"type": "stamp"}, {"type": "seal"}],
        ],
    }
    json_file, yaml_file = tmp_path / "t.json", tmp_path / "t.yaml"
    json_file.write_text(json.dumps(template), encoding="utf-8")
    yaml_file.write_text(
        "# x\n_comment: x\nmin_packer_version: 1.6.0\ndescription: d\nvariables: {size: 10G, pass: secret}\n"
        "sensitive-variables: [pass]\nbuilders:\n- type: probe\n  name: '{{user `size`}}'\n"
        "  disk_size: '{{user `size`}}'\n  memory: 64\n"
        "provisioners:\n- type: note\n  inline: ['{{build_name}} {{build_type}}']\n  timeout: 5m\n  pause_before: 3s\n"
        "error-cleanup-provisioner:\n  type: note\n  inline: x\n"
        "post-processors:\n- stamp\n- {type: seal, keep_input_artifact: false}\n- [{type: stamp}, {type: seal}]\n",
        encoding="utf-8",
    )
    for file in (json_file, yaml_file):
        plan = plan_builds(load_template(file), environ={}, on_error=OnError.ABORT, force=True)
        (build,) = plan.builds
        assert plan.warnings == ()
        assert (build.context.build_name, build.context.builder_type) == ("10G", "probe")
        assert (build.context.sensitive, build.context.on_error, build.context.force) == (
            frozenset({"secret"}),
            OnError.ABORT,
            True,
        )
        assert build.context.template_path == file
        assert len(build.context.template_digest) == 64
        assert (options_of(build).disk_size, options_of(build).memory) == (10 * 2**30, 64)
        (step,) = build.provisioners
        assert (step.type, step.pause_before, step.timeout, step.max_retries) == ("note", 3, 300, 0)
        assert cast(probes.ProvisionerOptions, step.options).inline == ("10G probe",)
        assert build.error_cleanup is not None
        chains = [
            [(step.type, step.name, step.keep_input_artifact) for step in chain] for chain in build.post_processors
        ]
        assert chains == [
            [("stamp", "stamp", None)], [("seal", "seal", False)], [("stamp", "stamp", None), ("seal", "seal", None)],
        ]  # fmt: skip


def test_all_problems_are_raised_at_once() -> None:
    text = """{
  "builderz": [],
  "min_packer_version": "9.0.0",
  "variables": {"need": null, "bad": "{{uper `x`}}"},
  "builders": [
    {"type": "probe", "memmory": 1, "memory": "{{user `need`}}"},
    {"type": "prob", "name": "b"},
    {"name": "c"}
  ],
  "provisioners": [
    {"type": "not"},
    {"type": "note", "only": ["zz"], "max_retries": "x"}
  ],
  "post-processors": ["stmp", [["x"]]]
}"""
    assert refused(text) == [
        "2:3: unknown root key 'builderz'; did you mean 'builders'?",
        "3:25: the template wants Packer 9.0.0; imgbuild understands the templates of 1.15.0",
        "4:25: the variable 'need' has no value; give it with -var 'need=...', in a -var-file, or in the "
        "environment as PKR_VAR_need",
        "4:41: variable 'bad': in '{{uper `x`}}': there is no function 'uper'; did you mean 'upper'?",
        "6:23: unknown key 'memmory'; did you mean 'memory'?",
        "7:14: unknown builder 'prob'; did you mean 'probe'?; other builds of the template are selected with -only",
        "8:5: builder 3 has no 'type'",
        "11:14: unknown provisioner 'not'; did you mean 'note'?",
        "12:31: there is no build 'zz'; there are b, probe",
        "12:53: 'max_retries' must be a whole number, got 'x'",
        "14:23: unknown post-processor 'stmp'; did you mean 'stamp'?",
        "14:32: post-processor 2.1: a list can't stand in a list",
    ]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("[]", "1:1: a template is an object with 'builders' in it, got a list"),
        ("", "1:1: a template is an object with 'builders' in it, got nothing"),
        ({}, "1:1: the template has no builders; 'builders' must hold at least one"),
        ({"builders": {}}, "1:14: 'builders' must be a list, got an object"),
        ({"builders": ["x"]}, "1:15: builder 1 must be an object with a 'type', got 'x'"),
        ({"builders": [{"typ": "x"}]}, "1:15: builder 1 has no 'type'; is 'typ' meant to be 'type'?"),
        ({"builders": [{"type": 3}]}, "1:15: 'type' must be a string, got the number 3"),
        ({"builders": [{"type": "probe", "name": []}]}, "1:41: 'name' must be a string, got a list"),
        ({"builders": [{"type": "probe", "name": "{{zz}}"}]}, "1:44: in '{{zz}}': there is no function 'zz'"),
        ({"builders": [BUILDER, BUILDER]},
         "1:34: two builds have the name 'probe'; give one of them another 'name': the first one is in line 1"),
        ({"description": 3, "builders": [BUILDER]}, "1:17: 'description' must be a string, got the number 3"),
        ({"min_packer_version": "x", "builders": [BUILDER]}, "1:24: 'x' is no version; write it like '1.6.0'"),
        ({"variables": [], "builders": [BUILDER]}, "1:15: must be an object with string values, got a list"),
        ({"variables": {"a": []}, "builders": [BUILDER]},
         "1:21: the value of variable 'a' must be a string, got a list"),
        ({"sensitive-variables": [3], "builders": [BUILDER]}, "1:26: must be the name of a variable, got the number 3"),
        ({"builders": [{**BUILDER, "iso_url": "{{build `ID`}}"}]},
         "1:47: in '{{build `ID`}}': 'build': has no value before there is a guest; use it in a provisioner"),
    ],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_shape(template: dict[str, Any] | str, problem: str) -> None:
    assert refused(template)[0].startswith(problem)


def test_push_and_numbers_are_taken_with_a_warning() -> None:
    template = '{"push": {}, "variables": {"a": 1.10, "b": true}, "builders": [{"type": "probe"}]}'
    assert warned(template) == [
        "1:2: 'push' has no effect: the service it was for is gone; remove it",
        "1:33: the value of variable 'a' is no string (Packer refuses it): taken as '1.10'; write \"1.10\"",
        "1:44: the value of variable 'b' is no string (Packer refuses it): taken as 'true'; write \"true\"",
    ]


# --- files


def test_template_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none.json", "there is no template"),
        (tmp_path, "can't be read: Is a directory"),
        (tmp_path / "x.pkr.hcl", "HCL templates are not understood"),
        (Path("a\0b"), "can't be read"),
    ):
        with pytest.raises(TemplateError, match=message):
            load_template(path)


def test_template_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/t.json").write_text(
        '{"builders": [{"type": "probe", "iso_checksum": "{{template_dir}}"}]}', encoding="utf-8"
    )
    monkeypatch.chdir(tmp_path)
    (build,) = plan_builds(load_template("sub/../sub/t.json"), environ={}).builds
    assert options_of(build).iso_checksum == str(tmp_path / "sub")


# --- variables


def test_precedence_of_values(tmp_path: Path) -> None:
    template = {"variables": dict.fromkeys("abcdef", "default")}
    (tmp_path / "1.json").write_text(json.dumps(dict.fromkeys("bcdef", "first")), encoding="utf-8")
    (tmp_path / "2.yaml").write_text("c: 1.10\nd: second\ne: second\nf: second", encoding="utf-8")
    found = values(
        template,
        var_files=[tmp_path / "1.json", tmp_path / "2.yaml"],
        environ={"PKR_VAR_d": "environ", "IMGBUILD_VAR_e": "ours", "PKR_VAR_e": "environ", "PKR_VAR_f": "environ"},
        variables=[("f", "x"), ("f", "option")],
    )
    assert found == {"a": "default", "b": "first", "c": "1.10", "d": "environ", "e": "ours", "f": "option"}


def test_variables_refer_to_each_other() -> None:
    template = {"variables": {"a": "{{user `b`}}!", "b": "{{user `c` | upper}}{{env `X`}}", "c": "c"}}
    assert values(template, environ={"X": "1"}) == {"a": "C1!", "b": "C1", "c": "c"}


def test_a_long_chain_of_variables() -> None:
    chain = {f"v{n}": f"{{{{user `v{n + 1}`}}}}" for n in range(3000)} | {"v3000": "end"}
    assert values({"variables": chain})["v0"] == "end"


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"a": "{{user `b`}}", "b": "{{user `a`}}"}, "1:21: variables refer to each other in a circle: a -> b -> a"),
        ({"a": "{{user `a`}}"}, "1:21: variables refer to each other in a circle: a -> a"),
        ({"a": "x{{user `bb`}}", "bbb": ""},
         "1:25: variable 'a': in '{{user `bb`}}': 'user': the variable 'bb' is not "
         "declared; did you mean 'bbb'?"),
        ({"a": "{{build_name}}"}, "1:24: variable 'a': in '{{build_name}}': 'build_name': has no value here"),
        ({"a": None, "b": "{{user `a`}}"}, "1:21: the variable 'a' has no value"),
    ],
    ids=str,
)  # fmt: skip
def test_variables_without_value(variables: dict[str, str], problem: str) -> None:
    (found,) = refused({"variables": variables, "builders": [{**BUILDER, "iso_checksum": "{{user `a`}}"}]})
    assert found.startswith(problem)


def test_a_variable_may_hold_what_is_known_only_where_it_is_used() -> None:
    template = {
        "variables": {
            "ks": "ks.cfg",
            "boot": "ks=http://{{ .HTTPIP }}:{{.HTTPPort}}/{{user `ks`}}",
            "more": "{{user `boot`}}!",
        },
        "builders": [{**BUILDER, "boot_command": "{{ user `more` }}<enter>"}],
    }
    (build,) = planned(template).builds
    (typed,) = options_of(build).boot_command
    assert typed == "ks=http://{{ .HTTPIP }}:{{.HTTPPort}}/ks.cfg!<enter>"
    dot = {"HTTPIP": "10.0.2.2", "HTTPPort": 80}
    assert build.context.renderer.render(typed, dot) == "ks=http://10.0.2.2:80/ks.cfg!<enter>"
    assert build.context.renderer.render("{{user `more` | upper}}", dot) == "KS=HTTP://10.0.2.2:80/KS.CFG!"
    template["builders"] = [{**BUILDER, "iso_checksum": "{{user `boot`}}"}]
    assert "'user': 'boot' holds '{{ .HTTPIP }}': '.HTTPIP' has no value here" in refused(template)[0]


def test_a_variable_that_holds_itself() -> None:
    template = {
        "variables": {"a": '{{`{{user `}}{{print `"a"`}}{{`}}`}}'},
        "builders": [{**BUILDER, "iso_checksum": "{{user `a`}}"}],
    }
    assert "again and again" in refused(template)[0]


def test_undeclared_values_are_said_and_taken(tmp_path: Path) -> None:
    (tmp_path / "v.json").write_text('{"sise": "1"}', encoding="utf-8")
    template = {"variables": {"size": "0"}, "builders": [BUILDER]}
    found = warned(
        template,
        var_files=[tmp_path / "v.json"],
        environ={"PKR_VAR_syze": "2"},
        variables=[("zzz", "3"), ("size", "4")],
    )
    assert found == [
        "the template declares no variable 'syze', which the environment (PKR_VAR_...) gives; did you mean 'size'?",
        "the template declares no variable 'zzz', which -var gives",
        f"{tmp_path}/v.json:1:10: the template declares no variable 'sise', which var-file '{tmp_path}/v.json' gives; "
        "did you mean 'size'?",
    ]
    template["builders"] = [{**BUILDER, "iso_checksum": "{{user `zzz`}}"}]
    assert options_of(planned(template, variables=[("zzz", "3")]).builds[0]).iso_checksum == "3"


def test_var_files_that_are_wrong(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": 1,}', encoding="utf-8")
    (tmp_path / "b.json").write_text('{"a": null, "b": 1}', encoding="utf-8")
    (tmp_path / "c.yaml").write_text("- a", encoding="utf-8")
    files = [tmp_path / name for name in ("a.json", "b.json", "c.yaml", "d.json")]
    found = refused({"builders": [BUILDER]}, var_files=files)
    assert [problem.split("\n")[0].replace(f"{tmp_path}/", "") for problem in found] == [
        "var-file 'd.json' can't be read: No such file or directory",
        "a.json:1:8: a comma after the last entry; remove it",
        "b.json:1:7: the value of variable 'a' must be a string, got null",
        "c.yaml:1:1: must be an object with string values, got a list",
    ]


def test_sensitive_variables_that_do_not_exist_are_said() -> None:
    template = {"variables": {"password": "x"}, "sensitive-variables": ["pasword"], "builders": [BUILDER]}
    assert warned(template)[0].endswith("there is no variable 'pasword' to keep secret; did you mean 'password'?")


def test_an_undeclared_variable_in_a_component_is_nothing_and_said() -> None:
    template = {"variables": {"url": "x"}, "builders": [{**BUILDER, "iso_checksum": "a{{user `urll`}}"}]}
    plan = planned(template)
    assert options_of(plan.builds[0]).iso_checksum == "a"
    assert "'urll' is not among the variables" in plan.warnings[0].message


# --- selection

MANY = {
    "builders": [{"type": "probe"}, {"type": "probe2"}, {"type": "virtualbox-iso"}, {"type": "probe", "name": "web"}],
    "provisioners": [
        {**NOTE, "only": ["web"], "max_retries": 1},
        {**NOTE, "except": ["web"], "max_retries": 2},
        {**NOTE, "override": {"web": {"inline": ["over"], "execute_command": "x"}}, "max_retries": "3"},
    ],
    "post-processors": ["stamp", [{"type": "stamp", "name": "first"}, {"type": "seal", "only": ["web"]}, "stamp"]],
}


def names(plan: Plan) -> list[str]:
    return [build.context.build_name for build in plan.builds]


def test_only_and_except_select_builds() -> None:
    assert names(planned(MANY, only=["web", "probe"])) == ["probe", "web"]
    assert names(planned(MANY, except_=["virtualbox-iso"])) == ["probe", "probe2", "web"]
    assert names(planned(MANY, only=["web", "probe"], except_=["web"])) == ["probe"]


def test_foreign_builders_need_not_be_known_when_not_selected() -> None:
    assert refused(MANY) == [
        "1:63: unknown builder 'virtualbox-iso'; known are bootstrap, probe, probe2, qemu; other builds of the "
        "template are selected with -only"
    ]


def test_names_that_are_not_there() -> None:
    assert refused(MANY, only=["wed"], except_=["frst"]) == [
        "-only: the template has no build 'wed'; did you mean 'web'?",
        "-except: the template has no build or post-processor 'frst'; did you mean 'first'?",
    ]
    assert refused(MANY, only=["web"], except_=["web"]) == ["-only and -except leave no build to run"]


def test_except_ends_a_chain_at_a_post_processor() -> None:
    def steps(**options: Any) -> list[list[str]]:
        (build,) = planned(MANY, **options).builds
        return [[step.name for step in chain] for chain in build.post_processors]

    assert steps(only=["web"]) == [["stamp"], ["first", "seal", "stamp"]]
    assert steps(only=["probe"]) == [["stamp"], ["first", "stamp"]]
    assert steps(only=["web"], except_=["seal"]) == [["stamp"], ["first"]]
    assert steps(only=["web"], except_=["first"]) == [["stamp"]]
    assert steps(only=["web"], except_=["stamp"]) == [["first", "seal"]]


def test_provisioners_are_for_their_builds() -> None:
    probe, web = planned(MANY, only=["web", "probe"]).builds
    assert [step.max_retries for step in probe.provisioners] == [2, 3]
    assert [step.max_retries for step in web.provisioners] == [1, 3]
    last = cast(probes.ProvisionerOptions, web.provisioners[-1].options)
    assert (last.inline, last.execute_command) == (("over",), "x")


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"only": ["a"], "except": ["a"]}, "2:48: give 'only' or 'except', not both"),
        ({"except": ["ab"]}, "2:44: there is no build 'ab'; did you mean 'a'?"),
        ({"override": {"ab": {}}}, "2:46: there is no build 'ab'"),
        ({"override": {"a": 3}}, "2:51: must be an object of keys for build 'a', got the number 3"),
        ({"override": 3}, "2:45: 'override' must be an object of builds, got the number 3"),
        ({"override": {"a": {"inlin": 3}}}, "2:52: unknown key 'inlin'; did you mean 'inline'?"),
        ({"override": {"a": {"inline": 3}}}, "2:62: 'inline' must be a list of strings, got the number 3"),
        ({"max_retries": -1}, "2:48: 'max_retries' must be at least 0, got the number -1"),
        ({"pause_before": "5"}, "2:49: 'pause_before': '5' is not a duration: write '5s'"),
        ({"name": "x"}, "2:33: unknown key 'name'"),
    ],
    ids=str,
)
def test_keys_of_every_provisioner(keys: dict[str, Any], problem: str) -> None:
    note = json.dumps({"type": "note", "inline": "x", **keys})
    assert refused('{"builders": [{"type": "probe", "name": "a"}], "provisioners": [\n' + note + "]}")[0].startswith(
        problem
    )


def test_only_may_name_a_build_as_it_is_written() -> None:
    template = {
        "variables": {"n": "a"},
        "builders": [{**BUILDER, "name": "{{user `n`}}"}],
        "provisioners": [{**NOTE, "only": ["{{user `n`}}"], "override": {"{{user `n`}}": {"inline": "o"}}}],
    }
    (step,) = planned(template).builds[0].provisioners
    assert cast(probes.ProvisionerOptions, step.options).inline == ("o",)


def test_a_problem_of_several_builds_is_said_once() -> None:
    template = {"builders": [BUILDER, {"type": "probe2"}], "provisioners": [{"type": "note", "zzz": 1}]}
    assert len(refused(template)) == 2


# --- what waits for the guest


def test_build_is_filled_in_when_the_guest_runs() -> None:
    template = {
        "builders": [BUILDER],
        "provisioners": [{"type": "note", "inline": "ssh {{build `Host`}}"}],
        "post-processors": [{"type": "stamp", "label": "{{build `ID`}} {{build `Host`}}"}],
    }
    (build,) = planned(template).builds
    events: list[Event] = []
    ui = Ui("probe", events.append)
    build.provisioners[0].component.provision(Guest(None, {"Host": "10.0.0.1"}), ui)
    artifact = Artifact("probe", "the-id", "", (), state={"Host": "h"})
    build.post_processors[0][0].component.process(artifact, ui)
    assert [event.text for event in events] == ["ssh 10.0.0.1", "the-id h"]


# --- inspect


def test_inspect() -> None:
    template = {
        "description": "d",
        "variables": {"b": "x", "a": None, "p": "secret"},
        "sensitive-variables": ["p"],
        "builders": [{"type": "unknown", "name": "{{user `b`}}"}],
        "provisioners": [NOTE],
        "post-processors": ["stamp", ["seal", {"type": "stamp", "name": "last"}]],
    }
    found = inspect(load_template("-", json.dumps(template)))
    assert [(one.name, one.required, one.shown) for one in found.variables] == [
        ("a", True, ""), ("b", False, "x"), ("p", False, "<sensitive>"),
    ]  # fmt: skip
    assert (found.description, found.builders, found.provisioners) == ("d", (("{{user `b`}}", "unknown"),), ("note",))
    assert found.post_processors == (("stamp",), ("seal", "last"))


def test_inspect_refuses_a_shape_that_is_wrong() -> None:
    with pytest.raises(TemplateError, match="unknown root key 'builder'; did you mean 'builders'"):
        inspect(load_template("-", '{"builder": []}'))
