"""The shell provisioner, on a real SSH server."""

from __future__ import annotations

import re
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.errors import GuestError
from imagebuilder.plugins import BuildContext, Guest
from imagebuilder.provisioners.shell import Shell, ShellOptions
from imagebuilder.ssh.communicator import SshCommunicator
from imagebuilder.ssh.settings import SshSettings
from imagebuilder.templates.interpolate import Engine
from imagebuilder.ui import Event, Ui
from tests.sshd import Server, needs_sshd, sshd


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(scope="module")
def communicator(server: Server) -> Iterator[SshCommunicator]:
    with SshCommunicator(SshSettings(server.login, timeout=20), Ui("test", lambda event: None)) as connected:
        connected.connect(30)
        yield connected


class Bench:
    """A guest whose scripts lie in a directory of the test's own, and what was said."""

    def __init__(self, communicator: SshCommunicator, directory: Path, data: Mapping[str, str]) -> None:
        self.guest = Guest(communicator, data, "10.0.2.2:8123")
        self.directory = directory
        self.events: list[Event] = []

    def run(self, **given: Any) -> None:
        options = ShellOptions.model_validate({"remote_folder": str(self.directory), **given})
        assert list(options.problems()) == []
        context = BuildContext("web", "qemu", Engine({}, "web", "qemu"))
        Shell(options, context).provision(self.guest, Ui("web", self.events.append))

    def said(self, kind: str = "message") -> list[str]:
        return [event.text for event in self.events if event.kind == kind]


@pytest.fixture
def bench(communicator: SshCommunicator, tmp_path: Path) -> Bench:
    directory = tmp_path / "remote"
    directory.mkdir()
    return Bench(communicator, directory, {"ID": "i-1", "Host": "127.0.0.1"})


# -- options

BAD: dict[str, tuple[dict[str, Any], list[tuple[str, str]]]] = {
    "nothing": ({}, [("inline", "is missing: give inline, script or scripts")]),
    "script and scripts": (
        {"script": __file__, "scripts": [__file__]},
        [("scripts", "can't stand beside script: give one of inline, script and scripts")],
    ),
    "inline and script": (
        {"inline": ["true"], "script": __file__},
        [("script", "can't stand beside inline: give one of inline, script and scripts")],
    ),
    "no such scripts": (
        {"scripts": ["/nope", __file__, "/"]},
        [("scripts", "there is no file '/nope'"), ("scripts", "there is no file '/'")],
    ),
    "variables": (
        {"inline": ["true"], "environment_vars": ["A"]},
        [("environment_vars", "'A' is not of the form 'NAME=value'")],
    ),
    "command": (
        {"inline": ["true"], "execute_command": "sudo {{.Vars}} sh"},
        [("execute_command", "must hold {{.Path}}: without it the script is not run")],
    ),
}


@pytest.mark.parametrize(("given", "found"), BAD.values(), ids=BAD)
def test_what_is_wrong_with_options_is_said(given: dict[str, Any], found: list[tuple[str, str]]) -> None:
    assert list(ShellOptions.model_validate(given).problems()) == found


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"execute_command": "sh {{.Path}}", "env": {"A": "1"}}, "won't see its variables"),
        ({"execute_command": ". {{.EnvVarFile}}; {{.Path}}"}, "needs use_env_var_file"),
    ],
)
def test_doubts(given: dict[str, Any], part: str) -> None:
    ((key, message),) = ShellOptions.model_validate({"inline": ["true"], **given}).doubts()
    assert key == "execute_command" and part in message


# -- running


@needs_sshd
def test_inline(bench: Bench) -> None:
    bench.run(inline=["echo one, two", "echo err >&2"])
    assert bench.said("say") == ["Running an inline script of 2 lines"]
    assert bench.said() == ["one, two"]
    assert bench.said("error") == ["err"]
    assert list(bench.directory.iterdir()) == []


@needs_sshd
def test_a_single_line_is_shown(bench: Bench) -> None:
    bench.run(inline="echo a,b")
    assert bench.said("say") == ["Running inline: echo a,b"]
    assert bench.said() == ["a,b"]


@needs_sshd
def test_the_inline_line_that_failed_is_named(bench: Bench) -> None:
    with pytest.raises(GuestError) as caught:
        bench.run(inline=["echo fine", "echo because >&2; exit 4", "echo never"])
    assert caught.value.message == (
        "Inline line 2 ('echo because >&2; exit 4') failed with exit status 4:\nfine\nbecause"
    )
    assert bench.said() == ["fine"]


@needs_sshd
def test_a_script_file_that_failed_is_named(bench: Bench, tmp_path: Path) -> None:
    script = tmp_path / "base.sh"
    script.write_text("#!/bin/sh\nseq 20\nexit 7\n")
    with pytest.raises(GuestError) as caught:
        bench.run(script=str(script))
    assert caught.value.message == f"Script '{script}' failed with exit status 7:\n16\n17\n18\n19\n20"


@needs_sshd
def test_scripts_run_in_order_until_one_fails(bench: Bench, tmp_path: Path) -> None:
    paths = []
    for name, status in (("a", 0), ("b", 1), ("c", 0)):
        paths.append(tmp_path / f"{name}.sh")
        paths[-1].write_text(f"#!/bin/sh\necho {name}\nexit {status}\n")
    with pytest.raises(GuestError, match=r"b\.sh' failed with exit status 1"):
        bench.run(scripts=[str(path) for path in paths])
    assert bench.said() == ["a", "b"]


@needs_sshd
@pytest.mark.parametrize("binary", [False, True])
def test_dos_line_ends(binary: bool, bench: Bench, tmp_path: Path) -> None:
    script = tmp_path / "dos.sh"
    script.write_bytes(b"#!/bin/sh\necho a\r\n")
    given = {"binary": binary, "skip_clean": True, "script": str(script), "remote_file": "there"}
    bench.run(**given)
    assert (bench.directory / "there").read_bytes() == (script.read_bytes() if binary else b"#!/bin/sh\necho a\n")


@needs_sshd
def test_names_cannot_be_guessed_and_modes_are_private(bench: Bench) -> None:
    bench.run(inline=["true"], skip_clean=True)
    bench.run(inline=["true"], skip_clean=True)
    one, two = bench.directory.iterdir()
    assert one.name != two.name
    assert re.fullmatch(r"script_[0-9a-f]{16}\.sh", one.name)
    assert stat.S_IMODE(one.stat().st_mode) & 0o077 & ~0o011 == 0  # the default command says chmod +x


@needs_sshd
def test_another_user_may_read_what_it_shall_run(bench: Bench) -> None:
    bench.run(
        inline=["true"], skip_clean=True, execute_command="true || su - nobody -c '{{.Path}}'", remote_file="there"
    )
    assert stat.S_IMODE((bench.directory / "there").stat().st_mode) == 0o755


@needs_sshd
def test_variables(bench: Bench) -> None:
    bench.run(
        inline=['echo "$A|$B|$PACKER_BUILD_NAME|$PACKER_BUILDER_TYPE|$PACKER_HTTP_ADDR|$PACKER_HTTP_PORT"'],
        environment_vars=["A=it's $HOME", "B=1"], env={"B": "2"},
    )  # fmt: skip
    assert bench.said() == ["it's $HOME|2|web|qemu|10.0.2.2:8123|8123"]


@needs_sshd
def test_secrets_go_by_a_private_file(bench: Bench) -> None:
    seen = 'grep -az hunter2 /proc/$PPID/cmdline /proc/$$/cmdline || echo "$SECRET" | tr a-z A-Z; stat -c %a "$0" *'
    bench.run(
        inline=[f"cd {bench.directory}", seen], env={"SECRET": "hunter2"}, use_env_var_file=True,
        remote_file="script", skip_clean=True,
    )  # fmt: skip
    assert bench.said() == ["HUNTER2", "711", "711", "600"]
    bench.run(inline=["true"], env={"SECRET": "x"}, use_env_var_file=True)
    assert len(list(bench.directory.glob("varfile_*"))) == 1  # the second one was removed


@needs_sshd
@pytest.mark.parametrize(
    "command",
    [
        "{{.Vars}} bash -eu '{{.Path}}'",
        "chmod +x {{ .Path }}; env {{ .Vars }} {{ .Path }}",
        "{{.Vars}} sh -eux {{.Path}}",
    ],
)
def test_execute_commands_of_real_templates(command: str, bench: Bench) -> None:
    bench.run(inline=["echo $A"], execute_command=command, env={"A": "x"})
    assert bench.said() == ["x"]
    assert not [text for text in bench.said("error") if "imgbuild" in text]


@needs_sshd
def test_build_data_in_the_command(bench: Bench) -> None:
    bench.run(inline=["echo $ID"], execute_command="ID={{build `ID`}} sh {{.Path}}")
    assert bench.said() == ["i-1"]


@needs_sshd
def test_other_interpreters(bench: Bench) -> None:
    bench.run(inline=["import sys", "print(sys.version_info >= (3,))"], inline_shebang="/usr/bin/env python3")
    assert bench.said() == ["True"]
    with pytest.raises(GuestError, match="The inline script failed with exit status 3"):
        bench.run(inline=["import sys", "sys.exit(3)"], inline_shebang="/usr/bin/env python3")


@needs_sshd
@pytest.mark.parametrize(("codes", "fails"), [([0, 3], False), ([3], False), ([0], True)])
def test_valid_exit_codes(codes: list[int], fails: bool, bench: Bench) -> None:
    if fails:
        with pytest.raises(GuestError, match="exit status 3"):
            bench.run(inline=["exit 3"], valid_exit_codes=codes)
    else:
        bench.run(inline=["exit 3"], valid_exit_codes=codes)


@needs_sshd
@pytest.mark.parametrize(("status", "part"), [(126, "noexec"), (127, "not found"), (137, "out of memory")])
def test_hints(status: int, part: str, bench: Bench) -> None:
    with pytest.raises(GuestError) as caught:
        bench.run(inline=[f"exit {status}"])
    assert part in str(caught.value.hint)


DROP = (  # end the server process of this session: the nearest one above us
    'p=$$; while [ "$p" -gt 1 ] && [ "$(cat /proc/$p/comm)" != sshd ]; do p=$(ps -o ppid= -p $p | tr -d " "); done; '
    '[ "$p" -gt 1 ] && kill -KILL $p'
)


@needs_sshd
def test_a_lost_connection_is_an_error(bench: Bench) -> None:
    with pytest.raises(GuestError) as caught:
        bench.run(inline=["echo before", DROP, "sleep 20"])
    assert caught.value.message == "The connection was lost while an inline script of 3 lines ran:\nbefore"
    assert "expect_disconnect" in str(caught.value.hint)


@needs_sshd
@pytest.mark.parametrize(
    "given", [{"expect_disconnect": True}, {"valid_exit_codes": [0, 2300218]}], ids=["key", "code"]
)
def test_an_expected_disconnect(given: dict[str, Any], bench: Bench) -> None:
    bench.run(inline=[DROP, "sleep 20"], **given)
    assert bench.said()[-1] == "The connection ended with the script, as expected"
    assert list(bench.directory.iterdir()) == []  # removed over a new session


@needs_sshd
def test_a_directory_that_is_not_there_is_told_at_once(bench: Bench) -> None:
    began = time.monotonic()
    with pytest.raises(GuestError, match=r"Can't upload to '.*nowhere/script_"):
        bench.run(inline=["true"], remote_folder=f"{bench.directory}/nowhere")
    assert time.monotonic() - began < 5


@needs_sshd
def test_a_guest_that_reboots_between_scripts_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "remote").mkdir()
    back = threading.Event()

    def start() -> None:
        time.sleep(1)
        with sshd(tmp_path / "sshd", port=server.port, key=server.key):
            back.wait(30)

    thread = threading.Thread(target=start)
    quiet = Ui("", lambda event: None)
    with sshd(tmp_path / "sshd") as server, SshCommunicator(SshSettings(server.login, timeout=20), quiet) as connected:
        connected.connect(20)
        bench = Bench(connected, tmp_path / "remote", {})
        bench.run(inline=[DROP, "sleep 20"], expect_disconnect=True, skip_clean=True)
        server.stop()
        thread.start()
        try:
            bench.run(inline=["echo again"])
        finally:
            connected.close()
            back.set()
            thread.join()
    assert bench.said()[-1] == "again"


@needs_sshd
def test_pause_after(bench: Bench) -> None:
    began = time.monotonic()
    bench.run(inline=["true"], pause_after="300ms")
    assert time.monotonic() - began > 0.3
    assert bench.said("say")[-1] == "Pausing 0.3 s (pause_after)"


def test_no_communicator() -> None:
    options = ShellOptions.model_validate({"inline": ["true"]})
    with pytest.raises(GuestError, match="needs a communicator"):
        Shell(options, BuildContext("web", "qemu", Engine({}))).provision(Guest(None, {}), Ui("", lambda event: None))
