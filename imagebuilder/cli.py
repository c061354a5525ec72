"""The command `imgbuild`: options, what is shown, exit codes.

Exit codes: 0 ok, 1 a build failed, 2 the input is wrong, 130 interrupted.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from imagebuilder import __version__, build, commandline, interrupt, layercli, planning, results, trial, ui, workers
from imagebuilder.caching import Caching
from imagebuilder.commandline import SELECTION, TEMPLATE, VARIABLES, console_of, plan_of
from imagebuilder.errors import ImgbuildError, TemplateError
from imagebuilder.plugins import OnError
from imagebuilder.templates import template

_BOOLEAN = frozenset({
    "color", "debug", "force", "timestamp-ui", "machine-readable", "json", "syntax-only", "parallel", "cache",
    "dry-run", "all",
})  # fmt: skip


def normalise(arguments: Sequence[str]) -> list[str]:
    """Packer's spelling to click's: `-only=a` -> `--only=a`, `-color=false` -> `--no-color`; after `--` nothing."""
    out: list[str] = []
    for number, word in enumerate(arguments):
        if word == "--":
            return out + list(arguments[number:])
        if re.match(r"-[a-z][a-z-]+(=|$)", word):
            word = f"-{word}"
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in _BOOLEAN and equals:
            word = f"--{name}" if value.lower() in ("true", "1", "t") else f"--no-{name}"
        out.append(word)
    return out


def _hoist(arguments: list[str]) -> tuple[list[str], str]:
    """Take `-machine-readable` and `--json` out, wherever they stand; what is left, and which was there."""
    style = "json" if "--json" in arguments else "machine" if "--machine-readable" in arguments else "text"
    styles = ("--json", "--machine-readable", "--no-json", "--no-machine-readable")
    return [word for word in arguments if word not in styles], style


_CACHING = commandline.options(
    click.option("--cache/--no-cache", default=True, help="Keep every step as a layer, and use what is kept."),
    click.option(
        "--from", "first", default="", metavar="STEP", help="Run again from this step (number, name or title)."
    ),
    click.option("--until", default="", metavar="STEP", help="End when this step is kept; no image is made."),
    click.option("--cache-max-age", metavar="AGE", help="Use no layer that stems from longer ago, as '7d' or '12h'."),
)
_ON_ERROR = click.Choice([str(choice) for choice in OnError])


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Every option may be written with one dash, as Packer's. Example: imgbuild build -var mem=2048 centos.json",
)
@click.version_option(__version__, prog_name="imgbuild")
def main_group() -> None:
    """Build golden disk images: describe a machine once, build its image, boot a thousand of it.

    Every command takes --machine-readable (Packer's comma-separated lines) and --json (events as JSON lines).
    """


@main_group.command("build", epilog="Example: imgbuild build -only=qemu -var 'version=12' debian-12.json")
@TEMPLATE
@VARIABLES
@SELECTION
@click.option("--force/--no-force", help="Replace an earlier image of this name.")
@click.option(
    "--on-error", type=_ON_ERROR, default="cleanup", show_default=True, help="What to do with a failed machine."
)
@_CACHING
@click.option("--parallel-builds", type=click.IntRange(0), default=0, metavar="N", help="At most N builds at once.")
@click.option("--parallel/--no-parallel", default=True, hidden=True)
@click.option("--debug/--no-debug", help="Pause after every provisioner.")
@click.option("--color/--no-color", default=None, help="Colours; default: on a terminal.")
@click.option("--timestamp-ui/--no-timestamp-ui", help="Begin every line with the time.")
@click.pass_context
def build_command(context: click.Context, /, path: str, **options: Any) -> None:
    """Build the images of TEMPLATE ('-': standard input)."""
    plan = plan_of(path, options)
    build.check(plan)
    console = console_of(context, options["color"], options["timestamp_ui"])
    _warn(plan.warnings, console)
    at_once = 1 if not options["parallel"] else options["parallel_builds"]
    try:
        outcome = workers.run_all(plan.builds, console.show, at_once=at_once, caching=_caching(options))
    finally:
        console.close()
    context.exit(results.show(outcome, console, partial=bool(options["until"])))


@main_group.command("validate", epilog="Example: imgbuild validate -var-file=ci.json centos.json")
@TEMPLATE
@VARIABLES
@SELECTION
@click.option("--syntax-only/--no-syntax-only", help="Only look whether the file can be read.")
@click.pass_context
def validate_command(context: click.Context, /, path: str, syntax_only: bool, **options: Any) -> None:
    """Report everything that is wrong with TEMPLATE; nothing is started."""
    console = console_of(context)
    if syntax_only:
        template.load_template(path).check()
        console.show(ui.Event("say", "", "Syntax-only check passed. Everything looks okay."))
        return
    plan = plan_of(path, options)
    build.check(plan)
    _warn(plan.warnings, console)
    console.show(ui.Event("say", "", "The template is valid."))


@main_group.command("inspect", epilog="Example: imgbuild inspect centos.json")
@TEMPLATE
@click.pass_context
def inspect_command(context: click.Context, /, path: str) -> None:
    """Show what TEMPLATE holds: variables, builders, provisioners, post-processors."""
    planning.show_inspection(template.inspect(template.load_template(path)), console_of(context))


@main_group.command("plan", epilog="Example: imgbuild plan -only=qemu centos.json")
@TEMPLATE
@VARIABLES
@SELECTION
@click.option("--force/--no-force", help="As in build.")
@_CACHING
@click.pass_context
def plan_command(context: click.Context, /, path: str, **options: Any) -> None:
    """Show what `build` would do: resolved options, steps, which of them layers spare and why the others must run,
    QEMU's arguments. Nothing is started."""
    plan = plan_of(path, options)
    build.check(plan)
    console = console_of(context)
    _warn(plan.warnings, console)
    for one in plan.builds:
        planning.show_plan(one, _caching(options), console)


@main_group.command("boot", epilog="Example: imgbuild boot --check output-qemu")
@click.argument("image", type=click.Path(exists=True, path_type=Path))
@click.option("--check", is_flag=True, help="End it when it answers; exit code 1 when it doesn't.")
@click.option("--efi", is_flag=True, help="Boot by UEFI.")
@click.option("--memory", "memory_mib", type=click.IntRange(64), default=1024, show_default=True, help="MiB.")
@click.option("--cpus", type=click.IntRange(1), default=2, show_default=True, help="Virtual CPUs.")
@click.option("--ssh-username", default="root", show_default=True, help="User to log in as.")
@click.option("--ssh-private-key-file", default="", help="Its key; default: a new one, brought in by cloud-init.")
@click.option("--wait-for", default="", metavar="TEXT", help="Wait for a text on screen or serial line, not for SSH.")
@click.option(
    "--timeout", type=click.FloatRange(min=1), default=300.0, show_default=True, help="Seconds until it must answer."
)
@click.pass_context
def boot_command(context: click.Context, /, image: Path, **options: Any) -> None:
    """Try IMAGE (a disk, or an output directory) on a throw-away overlay."""
    console = console_of(context)
    try:
        trial.boot(trial.Trial(image, **options), ui.Ui("boot", console.show))
    finally:
        console.close()


@main_group.command("version", epilog="Example: imgbuild version")
@click.pass_context
def version_command(context: click.Context, /) -> None:
    """Print the version."""
    planning.show_version(console_of(context))


main_group.add_command(layercli.cache)
main_group.add_command(layercli.shell)


def _caching(options: dict[str, Any]) -> Caching:
    return Caching(
        options["cache"],
        options["first"],
        options["until"],
        commandline.age(options["cache_max_age"], "cache-max-age"),
    )


def _warn(warnings: Sequence[object], console: ui.Console) -> None:
    for warning in warnings:
        console.show(ui.Event("warning", "", str(warning)))


def _log() -> None:
    """PACKER_LOG / IMGBUILD_LOG: the developers' log on standard error, or in the file of ..._LOG_PATH."""
    path = os.environ.get("IMGBUILD_LOG_PATH") or os.environ.get("PACKER_LOG_PATH")
    if path or (os.environ.get("IMGBUILD_LOG") or os.environ.get("PACKER_LOG") or "0") != "0":
        target: dict[str, Any] = {"filename": Path(path)} if path else {"stream": sys.stderr}
        logging.basicConfig(level=logging.DEBUG, format="%(asctime)s %(name)s: %(message)s", **target)
        logging.getLogger("paramiko").setLevel(logging.INFO)


def main(arguments: Sequence[str] | None = None) -> None:
    """The console script."""
    words, style = _hoist(normalise(sys.argv[1:] if arguments is None else arguments))
    _log()
    try:
        with interrupt.unwinding():
            sys.exit(main_group.main(words, prog_name="imgbuild", standalone_mode=False, obj=style))
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except ImgbuildError as error:
        _fail(error, style)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (OSError, ValueError) as error:
        logging.getLogger(__name__).debug("unexpected", exc_info=error)
        _fail(ImgbuildError(f"{type(error).__name__}: {error}", hint="IMGBUILD_LOG=1 shows where it came from"), style)
    except (KeyboardInterrupt, click.Abort):
        ui.stderr_line("Interrupted.")
        sys.exit(interrupt.EXIT_CODE)


def _fail(error: ImgbuildError, style: str) -> None:
    problems = error.problems if isinstance(error, TemplateError) else (error.message,)
    if style == "json":
        for problem in problems:
            ui.JsonConsole(sys.stdout).show(ui.Event("error", "", str(problem), _place(problem)))
    elif style == "machine":
        for problem in problems:
            ui.MachineConsole(sys.stdout).show(ui.Event("error", "", str(problem)))
    for problem in problems:
        ui.stderr_line(f"Error: {problem}")
    if error.hint:
        ui.stderr_line(f"hint: {error.hint}")
    sys.exit(error.exit_code)


def _place(problem: object) -> dict[str, Any]:
    position = getattr(problem, "position", None)
    return json.loads(json.dumps(position.__dict__)) if position else {}
