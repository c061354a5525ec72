"""The command `provision`. So far: the releases it knows and their kickstarts; the server itself is yet to come."""

from __future__ import annotations

import json
import sys

import click

from imagebuilder import __version__
from imagebuilder.autoinstall import distro
from imagebuilder.errors import ImgbuildError

_EPILOG = "Example: provision distro show debian-12"


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.version_option(__version__, prog_name="provision")
def main_group() -> None:
    """Provision machines: what is known of distribution releases."""


@main_group.group("distro", epilog=_EPILOG)
def distro_group() -> None:
    """Distribution releases that ship."""


@distro_group.command("list", epilog="Example: provision distro list")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def list_command(as_json: bool) -> None:
    """List them."""
    known = [distro.load_distro(name) for name in distro.distro_names()]
    if as_json:
        click.echo(json.dumps([one.model_dump(mode="json") for one in known], indent=2))
        return
    width = max(len(one.name) for one in known)
    for one in known:
        click.echo(f"{one.name:<{width}}  {one.title}")


@distro_group.command("show", epilog=_EPILOG)
@click.argument("name")
def show_command(name: str) -> None:
    """Show one, as JSON."""
    click.echo(json.dumps(distro.load_distro(name).model_dump(mode="json"), indent=2))


def main() -> None:
    """The console script."""
    try:
        main_group.main(prog_name="provision", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except ImgbuildError as error:
        click.echo(f"Error: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""), err=True)
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
