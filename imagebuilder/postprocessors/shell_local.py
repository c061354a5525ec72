"""Scripts of the person's that run on this machine once the artifact is made."""

from __future__ import annotations

from imagebuilder import localscript
from imagebuilder.plugins import Artifact, BuildContext, Processed
from imagebuilder.ui import Ui


class ShellLocalOptions(localscript.LocalScriptOptions):
    """Runs scripts on this machine; the artifact is handed on as it was. When one fails, the image stays."""


class ShellLocal:
    """The shell-local post-processor."""

    Options = ShellLocalOptions

    def __init__(self, options: ShellLocalOptions, context: BuildContext) -> None:
        self._options, self._context = options, context

    def process(self, artifact: Artifact, ui: Ui) -> Processed:
        """The same artifact. Raises ImgbuildError when a script fails."""
        localscript.run(self._options, self._context, ui, build={"ID": artifact.id, **artifact.state})
        return Processed(artifact, keep_input=True)
