"""Scripts that run on this machine: what the shell-local provisioner and post-processor have in common.

They are the person's own, see the person's whole environment, and run where `imgbuild` was started.
"""

from __future__ import annotations

import os
import secrets
import shlex
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from imagebuilder import process, script
from imagebuilder.errors import ImgbuildError
from imagebuilder.options import LATE, Bool, Lines, Options, Text, TextMap, Texts
from imagebuilder.plugins import BuildContext
from imagebuilder.script import ExitCodes
from imagebuilder.ui import Ui

_SYSTEMS = ("linux", "darwin", "windows", "freebsd", "openbsd", "netbsd", "solaris")


def _words(value: Any) -> Any:
    """A command as a list; one string is for a shell."""
    return ("/bin/sh", "-c", value) if isinstance(value, str) and value else value


class LocalScriptOptions(Options):
    """Keys of shell-local."""

    command: Text = Field("", description="One command")
    inline: Lines = Field((), description="Lines of a script; the line that failed is named")
    script: Text = Field("", description="A script")
    scripts: Texts = Field((), description="Several of them, run in order")
    inline_shebang: Text | None = Field(None, description="First line of the inline script; default /bin/sh -e")
    execute_command: Annotated[Lines, BeforeValidator(_words), LATE] = Field(
        (), description="The argument list that starts it; {{.Vars}}, {{.Script}} and {{.Command}} are known"
    )
    environment_vars: Texts = Field((), description="'NAME=value' for the script")
    env: TextMap = Field({}, description="NAME -> value for the script; wins over environment_vars")
    env_var_format: Text = Field("%s='%s' ", description="How {{.Vars}} writes a variable: two %s, name and value")
    only_on: Texts = Field((), description="Run only on these systems: linux, darwin, ...")
    tempfile_extension: Text = Field("", description="End of the inline script's file name")
    use_linux_pathing: Bool = Field(False, description="Means something on Windows only")
    valid_exit_codes: ExitCodes = Field((0,), description="Exit codes that are no failure")

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        given = [key for key in ("command", "inline", "script", "scripts") if getattr(self, key)]
        if not given:
            yield "command", "is missing: give command, inline, script or scripts"
        for key in given[1:]:
            yield key, f"can't stand beside {given[0]}: give one of command, inline, script and scripts"
        for key, path in [("script", self.script)] * bool(self.script) + [("scripts", path) for path in self.scripts]:
            if wrong := script.missing(path):
                yield key, wrong
        yield from script.environment_problems(self.environment_vars, self.env_var_format)
        for system in self.only_on:
            if system not in _SYSTEMS:
                yield "only_on", f"'{system}' is no system: write {', '.join(_SYSTEMS)}"


def run(
    options: LocalScriptOptions,
    context: BuildContext,
    ui: Ui,
    *,
    http_address: str = "",
    build: Mapping[str, str] | None = None,
) -> None:
    """Run them all. `build` is what `{{build ...}}` finds. Raises ImgbuildError at the first that fails."""
    if options.only_on and sys.platform not in options.only_on:
        ui.say(f"Not run on this system: only on {', '.join(options.only_on)}")
        return
    _Local(options, context, ui, http_address, build or {}).run()


class _Local:
    def __init__(
        self, options: LocalScriptOptions, context: BuildContext, ui: Ui, http_address: str, build: Mapping[str, str]
    ) -> None:
        self._options, self._context, self._ui, self._build = options, context, ui, build
        self._variables = script.variables(context, http_address, options.environment_vars, options.env)
        self._variables["PACKER_RUN_UUID"] = context.run_uuid

    def run(self) -> None:
        o = self._options
        lines = (o.command,) if o.command else o.inline
        if not lines:
            for path in (o.script,) if o.script else o.scripts:
                self._ui.say(f"Running local script '{path}'")
                self._start(path, f"Local script '{path}'")
            return
        self._ui.say(f"Running local command: {lines[0]}" if len(lines) == 1 else "Running a local inline script")
        made = script.inline(lines, o.inline_shebang, " ".join(o.execute_command))
        with process.temporary_directory() as directory:
            file = directory / f"script_{secrets.token_hex(4)}{o.tempfile_extension}"
            file.write_text(made.text, encoding="utf-8", errors="surrogateescape")
            file.chmod(0o700)
            self._start(str(file), "", made)

    def _start(self, path: str, name: str, made: script.InlineScript | None = None) -> None:
        watch = script.Watch(self._ui.message)
        done = process.run(self._argv(path), check=False, env={**os.environ, **self._variables}, on_line=watch)
        if done.returncode in self._options.valid_exit_codes:
            return
        how = f"with exit status {done.returncode}" if done.returncode > 0 else f"by signal {-done.returncode}"
        what = f"{made.place(watch.failed)} of a local script" if made else name
        raise ImgbuildError(f"{what} failed {how}{watch.tail()}")

    def _argv(self, path: str) -> list[str]:
        """Without an execute_command of the person's the variables only go by the environment: others can read argv."""
        if not self._options.execute_command:
            return ["/bin/sh", "-c", shlex.quote(path) if "/" in path else f"./{shlex.quote(path)}"]
        dot = {
            "Vars": script.assignments(self._variables, self._options.env_var_format),
            "Script": path,
            "Command": path,
        }
        render = self._context.renderer.render
        return [render(word, dot, self._build) for word in self._options.execute_command]
