"""The shell-local provisioner: scripts of this machine."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.errors import ImgbuildError
from imagebuilder.plugins import BuildContext, Guest
from imagebuilder.provisioners.shell_local import ShellLocal, ShellLocalOptions
from imagebuilder.templates.interpolate import Engine
from imagebuilder.ui import Event, Ui


def provision(**given: Any) -> tuple[list[str], list[str]]:
    """(steps, output)"""
    options = ShellLocalOptions.model_validate(given)
    assert list(options.problems()) == []
    events: list[Event] = []
    context = BuildContext("web", "qemu", Engine({}), run_uuid="u-1")
    guest = Guest(None, {"Host": "127.0.0.1", "Port": "2222"}, "10.0.2.2:8123")
    ShellLocal(options, context).provision(guest, Ui("web", events.append))
    return tuple([event.text for event in events if event.kind == kind] for kind in ("say", "message"))  # type: ignore[return-value]


BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({}, ["command"]),
    "two": ({"command": "true", "inline": ["true"]}, ["inline"]),
    "no such script": ({"script": "/nope"}, ["script"]),
    "system": ({"command": "true", "only_on": ["beos"]}, ["only_on"]),
    "form": ({"command": "true", "env_var_format": "%s"}, ["env_var_format"]),
}


@pytest.mark.parametrize(("given", "keys"), BAD.values(), ids=BAD)
def test_what_is_wrong_with_options_is_said(given: dict[str, Any], keys: list[str]) -> None:
    assert [key for key, _ in ShellLocalOptions.model_validate(given).problems()] == keys


def test_a_command() -> None:
    said, output = provision(command="echo one, two; echo err >&2")
    assert (said, output) == (["Running local command: echo one, two; echo err >&2"], ["one, two", "err"])


def test_scripts_run_where_we_are_with_our_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "a b.sh"
    script.write_text('#!/bin/sh\necho "$MINE|$PWD|$A|$PACKER_BUILD_NAME|$PACKER_HTTP_IP|$PACKER_RUN_UUID"\n')
    script.chmod(0o755)
    monkeypatch.setenv("MINE", "mine")
    monkeypatch.chdir(tmp_path)
    for written in (str(script), "a b.sh"):
        _, output = provision(script=written, environment_vars=["A=it's"])
        assert output == [f"mine|{tmp_path}|it's|web|10.0.2.2|u-1"]


def test_the_inline_line_that_failed_is_named() -> None:
    with pytest.raises(ImgbuildError) as caught:
        provision(inline=["echo fine", "echo because; exit 4", "echo never"])
    assert caught.value.message == (
        "Inline line 2 ('echo because; exit 4') of a local script failed with exit status 4:\nfine\nbecause"
    )


def test_a_script_that_failed_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.sh").write_text("#!/bin/sh\nexit 3\n")
    (tmp_path / "x.sh").chmod(0o755)
    with pytest.raises(ImgbuildError, match=r"Local script '.*x\.sh' failed with exit status 3"):
        provision(script=str(tmp_path / "x.sh"))
    provision(script=str(tmp_path / "x.sh"), valid_exit_codes=[3])


def test_a_script_that_is_killed() -> None:
    with pytest.raises(ImgbuildError, match=r"Inline line 1 \('kill -9 \$\$'\) of a local script"):
        provision(command="kill -9 $$")


@pytest.mark.parametrize(
    ("command", "found"),
    [
        (["/bin/sh", "-c", "{{.Vars}} {{.Script}}"], ["x"]),
        (["bash", "-c", "export {{.Vars}}; . {{.Command}}"], ["x"]),
        ("echo {{build `Port`}} {{.Script}} >/dev/null; echo {{build `Port`}}", ["2222"]),
    ],
    ids=["list", "legacy", "string"],
)
def test_execute_commands(command: list[str] | str, found: list[str]) -> None:
    assert provision(inline=["echo $A"], execute_command=command, env={"A": "x"})[1] == found


def test_secrets_are_in_no_argv() -> None:
    _, output = provision(inline=["tr '\\0' ' ' </proc/$PPID/cmdline; echo; echo $SECRET"], env={"SECRET": "hunter2"})
    assert "hunter2" not in output[0] and output[-1] == "hunter2"


def test_only_on() -> None:
    assert provision(command="echo x", only_on=["darwin"]) == (["Not run on this system: only on darwin"], [])
    assert provision(command="echo x", only_on=["linux"])[1] == ["x"]


def test_the_scripts_name_and_its_end() -> None:
    _, output = provision(inline=["echo $0; stat -c %a $0 $(dirname $0)"], tempfile_extension=".sh")
    assert output[0].endswith(".sh")
    assert output[1:] == ["700", "700"]
    assert not Path(output[0]).exists() and not Path(output[0]).parent.exists()


def test_ctrl_c_ends_it_at_once() -> None:
    threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT]).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        provision(command="echo $$; sleep 60")
    assert time.monotonic() - began < 10


def test_other_interpreters() -> None:
    assert os.access("/usr/bin/env", os.X_OK)
    assert provision(inline=["print('hi')"], inline_shebang="/usr/bin/env python3")[1] == ["hi"]
