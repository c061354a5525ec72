"""Runs scripts on this machine while the guest stands ready."""

from __future__ import annotations

from imagebuilder import localscript
from imagebuilder.plugins import BuildContext, Guest
from imagebuilder.ui import Ui


class ShellLocalOptions(localscript.LocalScriptOptions):
    """Keys of the shell-local provisioner."""


class ShellLocal:
    """The shell-local provisioner."""

    Options = ShellLocalOptions

    def __init__(self, options: ShellLocalOptions, context: BuildContext) -> None:
        self._options, self._context = options, context

    def provision(self, guest: Guest, ui: Ui) -> None:
        localscript.run(self._options, self._context, ui, http_address=guest.http_address, build=guest.data)
