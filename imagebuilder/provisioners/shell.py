"""Runs scripts in the guest: inline lines, or files of this machine."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from imagebuilder import inputs, script
from imagebuilder.errors import GuestError, StoreError
from imagebuilder.inputs import Input
from imagebuilder.options import LATE, Bool, Duration, Lines, Options, Text, TextMap, Texts
from imagebuilder.plugins import BuildContext, Communicator, Guest
from imagebuilder.script import ExitCodes
from imagebuilder.ssh.tree import quoted
from imagebuilder.ui import Ui, duration

DISCONNECTED = 2300218
"""The exit code that Packer gives to a lost connection; templates list it in valid_exit_codes."""

_EXECUTE = "chmod +x {{.Path}}; {{.Vars}} {{.Path}}"
_EXECUTE_WITH_FILE = "chmod +x {{.Path}}; . {{.EnvVarFile}} && {{.Path}}"
_AS_ANOTHER = re.compile(r"\b(su|runuser|machinectl|setpriv)\b|\b(sudo|doas)\b.*\s(-\w*u\b|--user)")
_FORM = "%s='%s' "  # of a variable in front of a command
_HARMLESS = frozenset({"start_retry_timeout", "pause_after"})  # only how long we wait
_IN_OTHER_WORDS = frozenset(  # what they mean is an input, not how it was written
    {"script", "scripts", "execute_command", "inline_shebang", "environment_vars", "env", "env_var_format"}
    | {"valid_exit_codes"}
)
_RETRY_PAUSE = 2.0  # seconds
_CLEAN_TIMEOUT = 60.0  # seconds


class ShellOptions(Options):
    """Keys of the shell provisioner."""

    inline: Lines = Field((), description="Lines of a script; the line that failed is named")
    script: Text = Field("", description="A script of this machine")
    scripts: Texts = Field((), description="Several of them, run in order")
    inline_shebang: Text | None = Field(None, description="First line of the inline script; default /bin/sh -e")
    execute_command: Annotated[Text, LATE] = Field(
        "", description="How a script is started: {{.Path}}, {{.Vars}} and {{.EnvVarFile}} are known"
    )
    environment_vars: Texts = Field((), description="'NAME=value' for the script")
    env: TextMap = Field({}, description="NAME -> value for the script; wins over environment_vars")
    env_var_format: Text = Field("", description="How a variable is written: two %s for its name and its value")
    use_env_var_file: Bool = Field(False, description="Variables go by a file that only the user can read")
    remote_folder: Text = Field("/tmp", description="Where scripts go in the guest")  # noqa: S108 - theirs
    remote_file: Text = Field("", description="Their name there; default: a random one")
    remote_path: Text = Field("", description="Both in one")
    binary: Bool = Field(False, description="Leave the bytes of script files alone; else CRLF becomes LF")
    expect_disconnect: Bool = Field(False, description="The script may end with the connection, as a reboot does")
    valid_exit_codes: ExitCodes = Field((0,), description="Exit codes that are no failure")
    skip_clean: Bool = Field(False, description="Leave the script in the guest")
    start_retry_timeout: Duration = Field(
        300.0, description="How long to try to start a script while the guest is away"
    )
    pause_after: Duration = Field(0.0, description="Wait afterwards")

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        given = [key for key in ("inline", "script", "scripts") if getattr(self, key)]
        if not given:
            yield "inline", "is missing: give inline, script or scripts"
        for key in given[1:]:
            yield key, f"can't stand beside {given[0]}: give one of inline, script and scripts"
        for key, path in [("script", self.script)] * bool(self.script) + [("scripts", path) for path in self.scripts]:
            if wrong := script.missing(path):
                yield key, wrong
        yield from script.environment_problems(self.environment_vars, self.env_var_format)
        if self.execute_command and ".Path" not in self.execute_command:
            yield "execute_command", "must hold {{.Path}}: without it the script is not run"

    def doubts(self) -> Iterator[tuple[str, str]]:
        yield from super().doubts()
        command = self.execute_command
        if command and ".Vars" not in command and ".EnvVarFile" not in command and (self.env or self.environment_vars):
            yield "execute_command", "has neither {{.Vars}} nor {{.EnvVarFile}}: the script won't see its variables"
        if ".EnvVarFile" in command and not self.use_env_var_file:
            yield "execute_command", "has {{.EnvVarFile}}, which needs use_env_var_file true"

    def inputs(self) -> Sequence[Input]:
        meaning = {
            "execute_command": self.command,
            "inline_shebang": self._shebang,
            "environment": {**dict(entry.partition("=")[::2] for entry in self.environment_vars), **self.env},
            "env_var_format": self.env_var_format or ("" if self.use_env_var_file else _FORM),
            "valid_exit_codes": sorted(set(self.valid_exit_codes)),
        }
        scripts = [self._script_input(number, path) for number, path in enumerate(self.all_scripts)]
        return [*inputs.options(self, _HARMLESS, _IN_OTHER_WORDS), *inputs.options(meaning.items()), *scripts]

    def _script_input(self, number: int, path: str) -> Input:
        touched = inputs.stamp(Path(path)) if Path(path).exists() else ""
        return replace(inputs.content(f"script {number}", path, self._read(path)), stamp=touched)

    @property
    def all_scripts(self) -> tuple[str, ...]:
        return (self.script,) if self.script else self.scripts

    @property
    def command(self) -> str:
        """How a script is started."""
        return self.execute_command or (_EXECUTE_WITH_FILE if self.use_env_var_file else _EXECUTE)

    @property
    def _shebang(self) -> str | None:
        """The first line that an inline script gets; None where it has one itself, or where there is none."""
        own = self.inline_shebang is None and bool(self.inline) and self.inline[0].startswith("#!")
        return None if own or not self.inline else self.inline_shebang or script.SHEBANG

    def _read(self, path: str) -> bytes:
        try:
            return self.as_uploaded(Path(path))
        except OSError as error:
            raise StoreError(f"can't read the script '{path}': {error.strerror}") from error

    def as_uploaded(self, path: Path) -> bytes:
        """A script's bytes as the guest gets them. Raises OSError."""
        content = path.read_bytes()
        return content if self.binary else content.replace(b"\r\n", b"\n")


@dataclass(frozen=True)
class _Script:
    """What will be uploaded, and how it is spoken of; `inline` when it was made of lines."""

    name: str
    content: bytes
    inline: script.InlineScript | None = None


class Shell:
    """The shell provisioner."""

    Options = ShellOptions

    def __init__(self, options: ShellOptions, context: BuildContext) -> None:
        self._options, self._context = options, context

    def provision(self, guest: Guest, ui: Ui) -> None:
        if guest.communicator is None:
            raise GuestError("A shell provisioner needs a communicator, and this build has none")
        for one in self._scripts():
            ui.say(f"Running {one.name}")
            _Run(self._options, self._context, guest, guest.communicator, ui).run(one)
        if self._options.pause_after > 0:
            ui.say(f"Pausing {duration(self._options.pause_after)} (pause_after)")
            time.sleep(self._options.pause_after)

    def _scripts(self) -> list[_Script]:
        o = self._options
        if o.inline:
            made = script.inline(o.inline, o.inline_shebang, o.command)
            count = len(o.inline)
            name = f"an inline script of {count} lines" if count > 1 else f"inline: {o.inline[0]}"
            return [_Script(name, made.text.encode(errors="surrogateescape"), made)]
        return [_Script(f"script '{path}'", self._content(Path(path))) for path in o.all_scripts]

    def _content(self, path: Path) -> bytes:
        try:
            return self._options.as_uploaded(path)
        except OSError as error:
            raise GuestError(f"Can't read the script '{path}': {error.strerror}") from error


class _Run:
    """One script on its way through a guest."""

    def __init__(
        self, options: ShellOptions, context: BuildContext, guest: Guest, communicator: Communicator, ui: Ui
    ) -> None:
        self._options, self._context, self._guest = options, context, guest
        self._communicator, self._ui = communicator, ui
        token = secrets.token_hex(8)
        self._path = options.remote_path or f"{options.remote_folder}/{options.remote_file or f'script_{token}.sh'}"
        self._file = f"{options.remote_folder}/varfile_{token}.sh" if options.use_env_var_file else ""

    def run(self, one: _Script) -> None:
        """Upload, start, judge, clean up."""
        watch = script.Watch(self._ui.message)
        command = self._command()
        status = self._retried(lambda: self._start(one, command, watch))
        self._judge(status, one, watch)
        if not self._options.skip_clean:
            self._retried(self._clean)

    def _command(self) -> str:
        dot = {"Path": self._path, "Vars": self._variables(_FORM), "EnvVarFile": self._file}
        return self._context.renderer.render(self._options.command, dot, self._guest.data)

    def _variables(self, form: str) -> str:
        o = self._options
        found = script.variables(self._context, self._guest.http_address, o.environment_vars, o.env)
        return script.assignments(found, o.env_var_format or form)

    def _start(self, one: _Script, command: str, watch: script.Watch) -> int | None:
        if self._file:
            self._communicator.upload(self._variables("export %s='%s'\n").encode(), self._file, 0o600)
        mode = 0o755 if _AS_ANOTHER.search(self._options.execute_command) else 0o700
        self._communicator.upload(one.content, self._path, mode)
        errors = script.Watch(self._ui.error, watch)
        return self._communicator.run(command, on_line=watch, on_error_line=errors)

    def _retried(self, act: Callable[[], int | None]) -> int | None:
        """Again while only the connection is at fault: the guest may be rebooting."""
        until = time.monotonic() + self._options.start_retry_timeout
        while True:
            try:
                return act()
            except GuestError as error:
                if not error.lost or time.monotonic() + _RETRY_PAUSE > until:
                    raise
                self._ui.message(f"{error.message}; trying again")
                time.sleep(_RETRY_PAUSE)

    def _judge(self, status: int | None, one: _Script, watch: script.Watch) -> None:
        """Raise unless the script ended as it may."""
        o = self._options
        if status is None:
            if o.expect_disconnect or DISCONNECTED in o.valid_exit_codes:
                self._ui.message("The connection ended with the script, as expected")
                return
            raise GuestError(
                f"The connection was lost while {one.name} ran{watch.tail()}",
                hint="if it reboots the guest, set expect_disconnect true, or use the reboot provisioner",
            )
        if status not in o.valid_exit_codes:
            what = one.inline.place(watch.failed) if one.inline else f"Script {one.name.removeprefix('script ')}"
            raise GuestError(f"{what} failed with exit status {status}{watch.tail()}", hint=_hint(status))

    def _clean(self) -> None:
        paths = " ".join(quoted(path) for path in (self._path, self._file) if path)
        status = self._communicator.run(f"rm -f {paths}", timeout=_CLEAN_TIMEOUT)
        if status is None:
            raise GuestError("The connection was lost while the script was removed", lost=True)
        if status != 0:
            self._ui.warning(f"'{self._path}' could not be removed from the guest")


def _hint(status: int) -> str | None:
    return {
        126: "the guest may not execute it: is its file system mounted noexec? Set remote_folder",
        127: "a command was not found in the guest (or the interpreter in the script's first line)",
        137: "it was killed: perhaps the guest ran out of memory",
    }.get(status)
