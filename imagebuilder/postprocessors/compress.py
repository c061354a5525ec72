"""The artifact's files in one compressed file or archive, made with all cores."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Annotated

from pydantic import Field

from imagebuilder.image import archive, compression
from imagebuilder.image.compression import Method, compressing
from imagebuilder.options import LATE, Int, Options, Text
from imagebuilder.plugins import Artifact, BuildContext, Processed
from imagebuilder.suggestion import did_you_mean
from imagebuilder.ui import Ui, size
from imagebuilder.whole import whole

_METHODS: Mapping[str, Method] = {
    "gz": Method.GZIP, "bgzf": Method.BGZF, "xz": Method.XZ, "bz2": Method.BZIP2, "bzip2": Method.BZIP2,
    "zst": Method.ZSTD, "zstd": Method.ZSTD, "lz4": Method.LZ4,
}  # fmt: skip
_SHORT = {"tgz": "tar.gz", "txz": "tar.xz", "tbz2": "tar.bz2", "tzst": "tar.zst"}
FORMATS = ("tar", "zip", *_METHODS, *(f"tar.{name}" for name in _METHODS), *_SHORT)


class CompressOptions(Options):
    """Packs the artifact's files. The end of the output's name says how (`.tar.gz`, `.zip`, `.xz`, `.zst` ...), unless
    `format` does; any other name becomes a tar.gz, as in Packer, whose default name has no extension either."""

    output: Annotated[Text, LATE] = Field("packer_{{.BuildName}}_{{.BuilderType}}", description="The file to make")
    format: Text = Field("", description=f"How: {', '.join(FORMATS)}; default: what the output's name says")
    compression_level: Int = Field(6, description="1 (fast) to 9 (small), zstd to 19, lz4 to 12; 0 is the default")

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.format and self.format not in FORMATS:
            instead = did_you_mean(self.format, FORMATS) or f"expected one of {', '.join(FORMATS)}"
            yield "format", f"'{self.format}' is not known; {instead}"


class Compress:
    """The compress post-processor."""

    Options = CompressOptions

    def __init__(self, options: CompressOptions, context: BuildContext) -> None:
        self._options, self._context = options, context

    def process(self, artifact: Artifact, ui: Ui) -> Processed:
        """An artifact of one file. Raises ImgbuildError, StoreError."""
        dot = {"BuildName": self._context.build_name, "BuilderType": self._context.builder_type}
        build = {"ID": artifact.id, **artifact.state}
        target = Path(self._context.renderer.render(self._options.output, dot, build))
        container, method = how(self._options.format, target.name)
        if method is not None:
            compression.check(method)
        files = archive.members(artifact)
        if container == "":
            archive.only(artifact.files, f"'.{method}'")
        total = archive.total(files)
        with ui.progress(f"Compressing {target.name}", total) as update, whole(target, artifact.files) as aside:
            with aside.open("wb") as out:
                self._pack(out, container, method, files, update)
            packed = aside.stat().st_size
        ui.message(f"Compressed {size(total)} into {size(packed)}: {target}")
        description = f"compressed artifacts in: {target}"
        return Processed(Artifact("packer.post-processor.compress", "", description, (target,), state=artifact.state))

    def _pack(
        self, out: IO[bytes], container: str, method: Method | None, files: Mapping[str, Path], update: archive.Progress
    ) -> None:
        level = self._options.compression_level if self._options.compression_level > 0 else 6
        if container == "zip":
            archive.zip(out, files, update, min(level, 9))
        elif method is None:
            archive.tar(out, files, update)
        else:
            with compressing(out, method, level) as writer:
                if container:
                    archive.tar(writer, files, update)
                else:
                    archive.copy(next(iter(files.values())), writer, update)


def how(format: str, name: str) -> tuple[str, Method | None]:
    """Container ("tar", "zip" or "" for one bare file) and method, by a format or else by the end of a name."""
    words = (_SHORT.get(format, format) or _ending(name)).split(".")
    if words[-1] in ("tar", "zip"):
        return words[-1], None
    if words[-1] in _METHODS:
        return ("tar" if words[0] == "tar" and len(words) > 1 else ""), _METHODS[words[-1]]
    return "tar", Method.GZIP


def _ending(name: str) -> str:
    """The last two parts of a name that say something: 'tar.gz', 'xz', ''."""
    found = re.search(r"(?:\.(tar))?\.(\w+)$", name)
    if found is None:
        return ""
    known = _SHORT.get(found[2], found[2])
    return f"tar.{known}" if found[1] else known
