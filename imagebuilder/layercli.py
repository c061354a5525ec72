"""The commands about layers: `imgbuild cache ls|show|prune|rm` and `imgbuild shell`."""

from __future__ import annotations

import sys
from typing import Any

import click

from imagebuilder import cachecommand, commandline, shellcommand
from imagebuilder.commandline import SELECTION, TEMPLATE, VARIABLES
from imagebuilder.layers.store import Store
from imagebuilder.ui import Ui


@click.group("cache", epilog="Example: imgbuild cache ls centos.json")
def cache() -> None:
    """Show and remove what is kept of builds: a layer for every step.

    Layers lie in IMGBUILD_CACHE_DIR (default: ~/.cache/imgbuild) and take up at most IMGBUILD_CACHE_SIZE (30G).
    """


@cache.command("ls", epilog="Example: imgbuild cache ls -only=qemu centos.json")
@click.argument("path", metavar="[TEMPLATE]", required=False)
@VARIABLES
@SELECTION
@click.pass_context
def ls(context: click.Context, /, path: str | None, **options: Any) -> None:
    """List all layers; with TEMPLATE its own, and which of them its next build would use."""
    plans = commandline.plan_of(path, options).builds if path else None
    cachecommand.show_layers(Store(), commandline.console_of(context, out=sys.stdout), plans)


@cache.command("show", epilog="Example: imgbuild cache show 6710d0")
@click.argument("layer", metavar="ID")
@click.pass_context
def show(context: click.Context, /, layer: str) -> None:
    """Show all of one layer. ID is the beginning of its fingerprint."""
    store = Store()
    cachecommand.show_layer(store, cachecommand.find(store, layer), commandline.console_of(context, out=sys.stdout))


@cache.command("prune", epilog="Example: imgbuild cache prune --max-size 10G --max-age 7d")
@click.option("--max-size", metavar="SIZE", help="Leave at most so much, as '10G'. Default: IMGBUILD_CACHE_SIZE.")
@click.option("--max-age", metavar="AGE", help="Leave nothing that wasn't used for so long, as '7d' or '12h'.")
@click.option("--dry-run/--no-dry-run", help="Only say what would go.")
@click.pass_context
def prune(context: click.Context, /, max_size: str | None, max_age: str | None, dry_run: bool) -> None:
    """Make room: what was used least recently goes first. What a build uses stays."""
    limit, oldest = commandline.size(max_size, "max-size"), commandline.age(max_age, "max-age")
    console = commandline.console_of(context, out=sys.stdout)
    cachecommand.prune_layers(Store(), console, max_size=limit, max_age=oldest, dry_run=dry_run)


@cache.command("rm", epilog="Example: imgbuild cache rm 6710d0 a25ef3")
@click.argument("layers", metavar="ID...", nargs=-1)
@click.option("--all/--no-all", "everything", help="All layers.")
@click.pass_context
def rm(context: click.Context, /, layers: tuple[str, ...], everything: bool) -> None:
    """Remove layers, and all that stands on them. What a build uses stays, and the exit code is 1."""
    if bool(layers) == everything:
        raise click.UsageError("name the layers to remove, or give --all", context)
    store = Store()
    wanted = store.layers() if everything else [cachecommand.find(store, word) for word in layers]
    context.exit(cachecommand.remove_layers(store, wanted, commandline.console_of(context, out=sys.stdout)))


@click.command("shell", epilog="Example: imgbuild shell -at=2 centos.json")
@TEMPLATE
@click.option("--at", default="", metavar="STEP", help="After this step (number, name or title); default: the last.")
@VARIABLES
@SELECTION
@click.pass_context
def shell(context: click.Context, /, path: str, at: str, **options: Any) -> None:
    """Open a shell in the guest of TEMPLATE as it was kept after a step; what is done in it is thrown away.

    The exit code is the shell's. Standard output is the shell's alone: everything else is said on standard error.
    """
    plan = shellcommand.only_build(commandline.plan_of(path, options).builds)
    console = commandline.console_of(context, out=sys.stderr)
    context.exit(shellcommand.open_shell(plan, at, Ui(plan.context.build_name, console.show)))
