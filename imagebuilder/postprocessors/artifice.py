"""Other files take the place of the artifact's: those that a script made, for the post-processors that follow."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from imagebuilder.errors import ImgbuildError
from imagebuilder.image import disk
from imagebuilder.options import Options, Texts
from imagebuilder.plugins import Artifact, BuildContext, Disk, Processed
from imagebuilder.ui import Ui

_RAW = (".raw", ".img")  # raw images have nothing else to be known by


class ArtificeOptions(Options):
    """Hands other files to the next post-processor instead of the artifact's; nothing is deleted. A pattern that
    matches no file is an error."""

    files: Texts = Field(..., min_length=1, description="Paths and patterns (`**` crosses directories)")


class Artifice:
    """The artifice post-processor."""

    Options = ArtificeOptions

    def __init__(self, options: ArtificeOptions, context: BuildContext) -> None:
        self._options, self._context = options, context

    def process(self, artifact: Artifact, ui: Ui) -> Processed:
        """An artifact of these files; what is known of the machine stays with it. Raises ImgbuildError."""
        files = _matching(self._options.files)
        ui.message(f"Using these files as the artifact: {', '.join(map(str, files))}")
        description = f"Created artifact from files: {', '.join(map(str, files))}"
        disks = tuple(found for file in files if (found := _disk(file, artifact)) is not None)
        made = Artifact(
            "packer.post-processor.artifice", artifact.id, description, files, disks, state=dict(artifact.state)
        )
        return Processed(made, keep_input=True)


def _matching(patterns: Sequence[str]) -> tuple[Path, ...]:
    found: dict[Path, None] = {}
    for pattern in patterns:
        names = glob.glob(pattern, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute patterns
        files = [Path(name) for name in sorted(names) if Path(name).is_file()]
        if not files:
            raise ImgbuildError(
                f"'files': nothing matches '{pattern}' in '{Path.cwd()}'",
                hint="see what the post-processors before it made, and where",
            )
        found.update(dict.fromkeys(files))
    return tuple(found)


def _disk(file: Path, artifact: Artifact) -> Disk | None:
    """The file as a disk image, when it is one."""
    for known in artifact.disks:
        if known.path.absolute() == file.absolute():
            return known
    try:
        found = disk.info(file)
    except ImgbuildError:
        return None
    if found.format == "raw" and file.suffix not in _RAW:
        return None
    return Disk(file, found.format, found.virtual_size)
