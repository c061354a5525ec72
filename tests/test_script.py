"""Scripts made of lines: marks that name the line that failed, and change nothing else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from imagebuilder import script
from imagebuilder.plugins import BuildContext
from imagebuilder.script import Watch, inline

SHELLS = [words for words in (["dash"], ["bash"], ["busybox", "sh"]) if shutil.which(words[0])]


class Plain:
    def render(self, text: str, dot: object = None, build: object = None) -> str:
        return text


def context() -> BuildContext:
    return BuildContext("web", "qemu", Plain())


def run(shell: list[str], text: str, tmp_path: Path, *options: str) -> tuple[int, list[str], str, int | None]:
    """(exit status, output lines, errors without marks, line that failed)"""
    path = tmp_path / "script"
    path.write_text(text)
    done = subprocess.run([*shell, *options, str(path)], capture_output=True, text=True, cwd=tmp_path)
    shown: list[str] = []
    watch = Watch(shown.append)
    for line in done.stderr.split("\n"):
        watch(line)
    return done.returncode, done.stdout.split("\n"), "\n".join(shown), watch.failed


SAME = {
    "succeeds": ["echo one", "echo two"],
    "fails": ["echo one", "false", "echo two"],
    "exit status": ["true", "exit 7"],
    "bare exit": ["false || true", "sh -c 'exit 3' && true", "exit"],
    "status of the line before": ["true && false || (exit 5) && true", "echo $?"],
    "status with a function": ["seen() { echo got $?; }", "! true", "seen"],
    "if over lines": ["if true", "then", "echo yes", "fi", "false"],
    "case over lines": ["case x in", "x)", "echo x;;", "esac"],
    "here-document over lines": ["cat <<EOF", "a $((1 + 1))", "EOF", "echo after"],
    "quote over lines": ["echo 'a", "b'", 'echo "c', 'd"', "false"],
    "continued line": ["echo a \\", "b", "false"],
    "comment": ["# nothing", "echo a # more", "# \\", "echo b"],
    "pipe at the end": ["echo a |", "cat", "true &&", "echo b"],
    "own trap": ["trap 'echo bye' EXIT", "false"],
    "subshell": ["(", "echo in", "exit 4", ")", "echo not reached"],
    "background": ["sleep 0 &", "wait", "echo done"],
    "exec": ["exec sh -c 'exit 9'"],
    "unset variables": ["set -u", "echo ${NOPE:-none}", "echo $NOPE", "echo not reached"],
    "empty lines": ["", "echo a", "", "false"],
    "function over lines": ["f() {", "return 6", "}", "f"],
    "syntax error": ["echo a", "fi", "echo b"],
    "returns in a list": ["false && echo never", "echo on"],
    "entries of several lines": ["for i in 1 2; do\n  echo $i\ndone\nfalse\n", "echo not reached"],
    "local status": ["x=$(exit 3) || echo status $?", "echo $?"],
    "errors redirected": ["exec 2>&1", "ls /nonexistent-file", "echo not reached"],
    "cd and loops": ["cd /", "for i in a b", "do echo $i", "done", "while false", "do :; done", "pwd"],
}


@pytest.mark.parametrize("shell", SHELLS, ids=lambda words: words[0])
@pytest.mark.parametrize("lines", SAME.values(), ids=SAME)
def test_marks_change_nothing(lines: list[str], shell: list[str], tmp_path: Path) -> None:
    for options in [(), ("-e",), ("-eu",), ("-ex",)]:
        if options == ("-ex",) and any(line.endswith("&") for line in lines):
            continue  # what runs in the background traces, or not, before its shell ends
        shebang = " ".join(["/bin/sh", *options])
        plain = run(shell, f"#!{shebang}\n" + "\n".join(lines) + "\n", tmp_path, *options)
        marked = run(shell, inline(lines, shebang).text, tmp_path, *options)
        assert told(marked) == told(plain), options


def told(outcome: tuple[int, list[str], str, int | None]) -> tuple[int, list[str], list[str]]:
    """What a person can see of it; both sides of a pipe trace at the same time, so their letters are sorted."""
    status, output, errors, _ = outcome
    return status, [line for line in output if "__imgbuild" not in line], sorted(errors)


FAILS = {
    "second": (["echo one", "sh -c 'exit 4'", "echo two"], 2, "Inline line 2 ('sh -c 'exit 4'')"),
    "first": (["false"], 1, "Inline line 1 ('false')"),
    "a block": (["echo a", "if true", "then sh -c 'exit 4'", "fi", "echo b"], 2, "Inline lines 2 to 4 ('if true')"),
    "after a block": (["if true", "then echo a", "fi", "false"], 4, "Inline line 4 ('false')"),
    "after a here-document": (["cat <<EOF", "x", "EOF", "true", "false"], 5, "Inline line 5 ('false')"),
    "a quote": (["true", "sh -c 'echo", "exit 4'"], 2, "Inline lines 2 to 3 ('sh -c 'echo')"),
    "function": (["f() {", "  false", "}", "true", "f"], 5, "Inline line 5 ('f')"),
    "in a subshell": (["true", "(exit 4)"], 2, "Inline line 2 ('(exit 4)')"),
    "long": (["true", "false " + "x" * 200], 2, "Inline line 2 ('false " + "x" * 91 + "...')"),
}


@pytest.mark.parametrize("shell", SHELLS, ids=lambda words: words[0])
@pytest.mark.parametrize(("lines", "number", "place"), FAILS.values(), ids=FAILS)
def test_the_line_that_failed_is_named(
    lines: list[str], number: int, place: str, shell: list[str], tmp_path: Path
) -> None:
    for options in ("-e", "-ex"):
        made = inline(lines, f"/bin/sh {options}")
        status, _, errors, failed = run(shell, made.text, tmp_path, options)
        assert status != 0
        assert (failed, made.place(failed)) == (number, place)
        assert "imgbuild" not in errors


UNMARKED = {
    "python": (["print(1)"], "/usr/bin/python3", ""),
    "env python": (["print(1)"], "/usr/bin/env python3", ""),
    "csh by command": (["echo a", "false"], None, "csh {{.Path}}"),
    "piped somewhere": (["echo a", "false"], None, "export {{.Vars}} && cat {{.Path}} | su -m"),
    "PIPESTATUS": (["false | true", "echo ${PIPESTATUS[0]}"], "/bin/bash -e", ""),
    "traced and looks at the status": (["false || echo $?", "true"], "/bin/sh -ex", ""),
    "traced by command": (["true", "exit"], None, "sudo -E bash -eux '{{ .Path }}'"),
}


@pytest.mark.parametrize(("lines", "shebang", "command"), UNMARKED.values(), ids=UNMARKED)
def test_no_marks_where_they_could_be_noticed(lines: list[str], shebang: str | None, command: str) -> None:
    made = inline(lines, shebang, command)
    assert made.text == f"#!{shebang or '/bin/sh -e'}\n" + "\n".join(lines) + "\n"
    assert made.starts == ()


def test_a_shebang_in_the_first_line_counts() -> None:
    assert inline(["#!/bin/bash -e\n[[ a = a ]]", "false"]).text.startswith("#!/bin/bash -e\n__imgbuild_line=1; ")
    assert inline(["#!/usr/bin/perl", "print 1"]).text == "#!/usr/bin/perl\n\nprint 1\n"
    assert inline(["#!/usr/bin/perl", "true"], "/bin/sh").text.startswith("#!/bin/sh\n")


def test_line_numbers_in_a_shells_own_messages_stay(tmp_path: Path) -> None:
    made = inline(["true", "true", "nonexistent-command"])
    assert ": 4: nonexistent-command" in run(["dash"], made.text, tmp_path)[2].replace("line 4", "4")


def test_a_bash_only_block_that_sh_takes_for_a_word_is_left_whole(tmp_path: Path) -> None:
    lines = ["function foo", "{", "echo called", "}", "foo"]
    made = inline(lines, "/bin/bash -e")
    assert 2 not in made.starts
    assert run(["bash"], made.text, tmp_path)[1][0] == "called"


def test_output_without_a_line_break_before_the_mark_is_kept(tmp_path: Path) -> None:
    made = inline(["printf unfinished >&2", "exit 3"])
    status, _, errors, failed = run(["sh"], made.text, tmp_path)
    assert (status, errors.strip(), failed) == (3, "unfinished", 2)


def test_variables_are_sorted_and_the_map_wins() -> None:
    found = script.variables(context(), "10.0.2.2:8000", ["B=1", "A=x=y", "B=2"], {"A": "z"})
    assert found == {
        "A": "z", "B": "2", "PACKER_BUILDER_TYPE": "qemu", "PACKER_BUILD_NAME": "web",
        "PACKER_HTTP_ADDR": "10.0.2.2:8000", "PACKER_HTTP_IP": "10.0.2.2", "PACKER_HTTP_PORT": "8000",
    }  # fmt: skip
    assert list(found) == sorted(found)


def test_values_are_quoted_for_a_shell() -> None:
    value = "it's $HOME `x`\n100%"
    text = script.assignments({"A": value, "B": ""}, "%s='%s' ")
    assert text == "A='it'\"'\"'s $HOME `x`\n100%' B='' "
    assert (
        subprocess.run(["sh", "-c", f"{text} sh -c 'printf %s \"$A\"'"], capture_output=True, text=True).stdout == value
    )


@pytest.mark.parametrize(
    ("listed", "form", "found"),
    [
        (["A=1"], "", []),
        (["A"], "", [("environment_vars", "'A' is not of the form 'NAME=value'")]),
        (["=secret"], "", [("environment_vars", "'' is not of the form 'NAME=value'")]),
        ([], "%s=x", [("env_var_format", "needs two %s: one for the name, one for the value")]),
    ],
)
def test_environment_problems(listed: list[str], form: str, found: list[tuple[str, str]]) -> None:
    assert list(script.environment_problems(listed, form)) == found
