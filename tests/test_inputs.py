"""Inputs of provisioners: what can change the guest changes the fingerprint, and nothing else does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagebuilder import inputs, plugins
from imagebuilder.errors import StoreError
from imagebuilder.options import Options
from imagebuilder.provisioners.breakpoint import BreakpointOptions
from imagebuilder.provisioners.file import FileOptions
from imagebuilder.provisioners.reboot import RebootOptions
from imagebuilder.provisioners.shell import ShellOptions
from imagebuilder.provisioners.shell_local import ShellLocalOptions
from imagebuilder.provisioners.sleep import SleepOptions


def fingerprint(options: Options) -> str:
    found = options.inputs()
    assert found is not None
    return inputs.fingerprint("", found)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a script of two names, a file, and a tree of every kind of entry."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.sh", "same.sh"):
        Path(name).write_text("echo a\n")
    Path("b.sh").write_text("echo b\n")
    Path("crlf.sh").write_bytes(b"echo a\r\n")
    Path("tree/deep").mkdir(parents=True)
    Path("tree/file").write_text("one")
    Path("tree/deep/inner").write_text("two")
    Path("tree/link").symlink_to("file")
    Path("outside").write_text("three")
    Path("tree/out").symlink_to("../outside")
    return tmp_path


# -- fingerprints themselves


def test_a_fingerprint_depends_on_parent_content_role_and_order() -> None:
    one, two = inputs.content("r", "l", "1"), inputs.content("r", "l", "2")
    others = [
        inputs.fingerprint("p", [one, two]), inputs.fingerprint("", [two, one]), inputs.fingerprint("", [one]),
        inputs.fingerprint("", [inputs.content("other", "l", "1"), two]),
    ]  # fmt: skip
    assert len({inputs.fingerprint("", [one, two]), *others}) == 5
    assert inputs.fingerprint("", [inputs.content("r", "another label", "1"), two]) == inputs.fingerprint(
        "", [one, two]
    )


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: inputs.content("r", "l", "echo $PACKER_BUILD_NAME"), True),
        (lambda: inputs.content("r", "l", "echo $PACKER"), False),
        (lambda: inputs.option("inline", ["echo $PACKER_BUILDER_TYPE"]), True),
        (lambda: inputs.file("r", Path("names")), True),
        (lambda: inputs.file("r", Path("a.sh")), False),
        (lambda: inputs.combined("r", "l", [inputs.file("r", Path("a.sh")), inputs.file("r", Path("names"))]), True),
    ],
    ids=["text", "nearly", "option", "file over a chunk's edge", "file", "combined"],
)
def test_what_names_the_build_is_known(make: Callable[[], inputs.Input], named: bool) -> None:
    Path("names").write_bytes(b"x" * ((1 << 20) - 5) + b"$PACKER_BUILD_NAME")
    assert make().names_build is named


def test_options_are_inputs_by_default() -> None:
    found = inputs.options(SleepOptions(duration="5s"))
    assert [one.label for one in found] == list(SleepOptions.model_fields)


# -- provisioners

SHELL: dict[str, Any] = {"inline": ["echo a"]}
FILE: dict[str, Any] = {"source": "a.sh", "destination": "/x"}
TREE: dict[str, Any] = {"source": "tree", "destination": "/x"}

CHANGES: dict[str, tuple[type[Options], dict[str, Any], dict[str, Any]]] = {
    "inline": (ShellOptions, SHELL, {"inline": ["echo b"]}),
    "script's bytes": (ShellOptions, {"script": "a.sh"}, {"script": "b.sh"}),
    "order of scripts": (ShellOptions, {"scripts": ["a.sh", "b.sh"]}, {"scripts": ["b.sh", "a.sh"]}),
    "binary": (ShellOptions, {"script": "a.sh"}, {"binary": True}),
    "CRLF in a binary script": (ShellOptions, {"script": "a.sh", "binary": True}, {"script": "crlf.sh"}),
    "environment_vars": (ShellOptions, SHELL, {"environment_vars": ["A=1"]}),
    "env": (ShellOptions, SHELL, {"env": {"A": "1"}}),
    "env_var_format": (ShellOptions, SHELL, {"env_var_format": "export %s=%s; "}),
    "use_env_var_file": (ShellOptions, SHELL, {"use_env_var_file": True}),
    "execute_command": (ShellOptions, SHELL, {"execute_command": "sudo {{.Path}}"}),
    "inline_shebang": (ShellOptions, SHELL, {"inline_shebang": "/bin/bash"}),
    "remote_folder": (ShellOptions, SHELL, {"remote_folder": "/root"}),
    "remote_file": (ShellOptions, SHELL, {"remote_file": "s.sh"}),
    "remote_path": (ShellOptions, SHELL, {"remote_path": "/root/s.sh"}),
    "expect_disconnect": (ShellOptions, SHELL, {"expect_disconnect": True}),
    "valid_exit_codes": (ShellOptions, SHELL, {"valid_exit_codes": [0, 3]}),
    "skip_clean": (ShellOptions, SHELL, {"skip_clean": True}),
    "file's bytes": (FileOptions, FILE, {"source": "b.sh"}),
    "destination": (FileOptions, FILE, {"destination": "/y"}),
    "name of a file in a directory": (FileOptions, {**FILE, "destination": "/x/"}, {"source": "same.sh"}),
    "content": (FileOptions, {"content": "a", "destination": "/x"}, {"content": "b"}),
    "empty content": (FileOptions, {"content": "a", "destination": "/x"}, {"content": ""}),
    "directory or what is in it": (FileOptions, TREE, {"source": "tree/"}),
    "more sources": (FileOptions, {**FILE, "destination": "/x/"}, {"sources": ["b.sh"]}),
    "order of sources": (
        FileOptions, {"sources": ["a.sh", "b.sh"], "destination": "/x/"}, {"sources": ["b.sh", "a.sh"]},
    ),
    "reboot's command": (RebootOptions, {}, {"command": "reboot -f"}),
    "sleep's duration": (SleepOptions, {"duration": "5s"}, {"duration": "6s"}),
}  # fmt: skip


@pytest.mark.parametrize(("model", "given", "change"), CHANGES.values(), ids=CHANGES)
def test_what_can_change_the_guest_changes_the_fingerprint(
    model: type[Options], given: dict[str, Any], change: dict[str, Any]
) -> None:
    assert fingerprint(model.model_validate({**given, **change})) != fingerprint(model.model_validate(given))


SAME: dict[str, tuple[type[Options], dict[str, Any], dict[str, Any]]] = {
    "script's path": (ShellOptions, {"script": "a.sh"}, {"script": "same.sh"}),
    "script or scripts": (ShellOptions, {"script": "a.sh"}, {"script": "", "scripts": ["a.sh"]}),
    "CRLF": (ShellOptions, {"script": "a.sh"}, {"script": "crlf.sh"}),
    "start_retry_timeout": (ShellOptions, SHELL, {"start_retry_timeout": "1s"}),
    "pause_after": (ShellOptions, SHELL, {"pause_after": "1s"}),
    "execute_command's default": (ShellOptions, SHELL, {"execute_command": "chmod +x {{.Path}}; {{.Vars}} {{.Path}}"}),
    "inline_shebang's default": (ShellOptions, SHELL, {"inline_shebang": "/bin/sh -e"}),
    "inline_shebang without lines": (ShellOptions, {"script": "a.sh"}, {"inline_shebang": "/bin/bash"}),
    "env_var_format's default": (ShellOptions, SHELL, {"env_var_format": "%s='%s' "}),
    "env or environment_vars": (
        ShellOptions, {**SHELL, "env": {"A": "1"}}, {"env": {}, "environment_vars": ["A=1"]},
    ),
    "order of valid_exit_codes": (
        ShellOptions, {**SHELL, "valid_exit_codes": [0, 3]}, {"valid_exit_codes": [3, 0]},
    ),
    "file's path": (FileOptions, FILE, {"source": "same.sh"}),
    "source or sources": (FileOptions, FILE, {"source": "", "sources": ["a.sh"]}),
    "generated": (FileOptions, FILE, {"generated": True}),
    "glob": (FileOptions, FILE, {"source": "a.s?"}),
    "reboot_timeout": (RebootOptions, {}, {"reboot_timeout": "1s"}),
    "breakpoint's note": (BreakpointOptions, {"disable": True}, {"note": "look"}),
}  # fmt: skip


@pytest.mark.parametrize(("model", "given", "change"), SAME.values(), ids=SAME)
def test_what_can_not_change_the_guest_changes_nothing(
    model: type[Options], given: dict[str, Any], change: dict[str, Any]
) -> None:
    assert fingerprint(model.model_validate({**given, **change})) == fingerprint(model.model_validate(given))


def relink(link: str, target: str) -> None:
    Path(link).unlink()
    Path(link).symlink_to(target)


def become_link(name: str, target: str) -> None:
    Path(name).rename(Path(name).with_name(target))
    Path(name).symlink_to(target)


TREE_CHANGES: dict[str, Callable[[], object]] = {
    "bytes": lambda: Path("tree/deep/inner").write_text("three"),
    "mode": lambda: Path("tree/file").chmod(0o755),
    "directory's mode": lambda: Path("tree/deep").chmod(0o700),
    "new file": lambda: Path("tree/new").touch(),
    "new empty directory": lambda: Path("tree/new").mkdir(),
    "name": lambda: Path("tree/file").rename("tree/renamed"),
    "link's target": lambda: relink("tree/link", "deep/inner"),
    "link instead of a file": lambda: become_link("tree/file", "f"),
    "behind a link that leads out": lambda: Path("outside").write_text("four"),
}


@pytest.mark.parametrize("change", TREE_CHANGES.values(), ids=TREE_CHANGES)
@pytest.mark.parametrize("source", ["tree", "tree/"])
def test_all_that_arrives_of_a_directory_counts(change: Callable[[], object], source: str) -> None:
    options = FileOptions.model_validate({**TREE, "source": source})
    before = fingerprint(options)
    change()
    assert fingerprint(options) != before


def test_a_directorys_name_counts_only_where_it_ends_up_in_the_guest() -> None:
    both = [fingerprint(FileOptions.model_validate({**TREE, "source": source})) for source in ("tree", "tree/")]
    Path("tree").rename("moved")
    named, inside = (FileOptions.model_validate({**TREE, "source": source}) for source in ("moved", "moved/"))
    assert (fingerprint(named) == both[0], fingerprint(inside) == both[1]) == (False, True)


def test_a_files_mode_counts() -> None:
    before = fingerprint(FileOptions.model_validate(FILE))
    Path("a.sh").chmod(0o755)
    assert fingerprint(FileOptions.model_validate(FILE)) != before


@pytest.mark.parametrize(
    "options",
    [ShellOptions(script="a.sh"), FileOptions(**FILE), FileOptions(**TREE), FileOptions(**{**TREE, "source": "tree/"})],
    ids=["script", "file", "directory", "what is in it"],
)
def test_times_and_the_place_of_everything_change_nothing(
    options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint(options)
    for path in (path for path in tmp_path.rglob("*") if not path.is_symlink()):
        os.utime(path, (1, 1))
    Path("elsewhere").mkdir()
    for path in list(tmp_path.iterdir()):
        if path.name != "elsewhere":
            path.rename(tmp_path / "elsewhere" / path.name)
    monkeypatch.chdir("elsewhere")
    assert fingerprint(options) == before


UNSEEN: dict[str, Options] = {
    "download": FileOptions(source="/in/guest", destination="x", direction="download"),
    "generated and not there": FileOptions(source="later", destination="/x", generated=True),
    "shell-local": ShellLocalOptions(inline=("true",)),
    "breakpoint": BreakpointOptions(),
}


@pytest.mark.parametrize("options", UNSEEN.values(), ids=UNSEEN)
def test_what_can_not_be_seen_from_here_has_no_inputs(options: Options) -> None:
    assert options.inputs() is None


@pytest.mark.parametrize(
    "options",
    [
        ShellOptions(script="gone.sh"),
        FileOptions(source="gone", destination="/x"),
        FileOptions(source="dangling", destination="/x"),
    ],
    ids=["script", "file", "link that leads nowhere"],
)
def test_what_can_not_be_read_is_an_error(options: Options) -> None:
    Path("dangling").symlink_to("nowhere")
    with pytest.raises(StoreError, match="can't read"):
        options.inputs()


def test_a_directory_that_leads_back_to_itself_is_an_error() -> None:
    Path("around").mkdir()
    Path("around/again").symlink_to(Path("around").absolute())
    with pytest.raises(StoreError, match="leads back"):
        FileOptions(source="around", destination="/x").inputs()


def test_a_label_is_the_path_as_written() -> None:
    found = [*(ShellOptions(scripts=("./a.sh",)).inputs()), *(FileOptions(**TREE).inputs() or ())]
    assert {"./a.sh", "tree"} <= {one.label for one in found}


@pytest.mark.parametrize("name", plugins.BUILT_IN["provisioners"])
def test_each_key_of_a_provisioner_has_its_row_here(name: str) -> None:
    """A new key is an input by default, and somebody has to say here that it is, or isn't."""
    model = plugins.options_of("provisioners", name)
    assert model is not None
    rows = [
        given.keys() | change.keys() for kind, given, change in (*CHANGES.values(), *SAME.values()) if kind is model
    ]
    tried = {key for row in rows for key in row}
    unseen = {"direction"} if model is FileOptions else set()
    if model is not ShellLocalOptions:
        assert tried | unseen == set(model.model_fields)


@pytest.mark.parametrize(
    "script",
    ["echo $PACKER_BUILD_NAME", "env | sort > /etc/e", "printenv", "export -p", "x=1; env", "cat /proc/self/environ"],
)
def test_a_script_that_may_read_the_builds_name_is_noticed(script: str) -> None:
    assert inputs.content("script", "a.sh", f"#!/bin/sh\n{script}\n").names_build


@pytest.mark.parametrize("script", ["#!/usr/bin/env bash\ntrue", "env A=1 make", "# the production env is here"])
def test_a_script_that_only_uses_env_is_shared(script: str) -> None:
    assert not inputs.content("script", "a.sh", script).names_build


def test_a_file_that_was_touched_has_another_stamp_and_the_same_digest(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("one")
    before = inputs.file("source", path)
    path.write_text("two")
    path.write_text("one")
    after = inputs.file("source", path)
    assert before == after and before.stamp != after.stamp
