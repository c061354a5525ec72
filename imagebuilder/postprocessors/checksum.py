"""Digests of the artifact's files, as GNU coreutils writes and checks them (`sha256sum -c FILE`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from pydantic import Field

from imagebuilder.digests import digests
from imagebuilder.media.checksum import ALGORITHMS
from imagebuilder.options import LATE, Options, Text, Texts
from imagebuilder.plugins import Artifact, BuildContext, Processed
from imagebuilder.suggestion import did_you_mean
from imagebuilder.ui import Ui
from imagebuilder.whole import whole


class ChecksumOptions(Options):
    """Writes checksums of the artifact's files; all kinds are computed in one read. File names are relative to the
    place of the checksum file, so that `sha256sum -c` works there. An earlier file is replaced, never added to."""

    checksum_types: Texts = Field(("md5",), description="md5, sha1, sha224, sha256, sha384, sha512")
    output: Annotated[Text, LATE] = Field(
        "packer_{{.BuildName}}_{{.BuilderType}}_{{.ChecksumType}}.checksum",
        description="File to write; without {{.ChecksumType}} all kinds go into one",
    )

    def problems(self) -> Iterator[tuple[str, str]]:
        for kind in self.checksum_types:
            if kind not in ALGORITHMS:
                instead = did_you_mean(kind, ALGORITHMS) or f"expected {', '.join(ALGORITHMS)}"
                yield "checksum_types", f"'{kind}' is no kind of checksum; {instead}"
        if not self.checksum_types:
            yield "checksum_types", "is empty: name at least one, like 'sha256'"

    def doubts(self) -> Iterator[tuple[str, str]]:
        if set(self.checksum_types) <= {"md5", "sha1"}:
            yield "checksum_types", "can be forged: md5 and sha1 only tell accidents; write 'sha256'"


class Checksum:
    """The checksum post-processor."""

    Options = ChecksumOptions

    def __init__(self, options: ChecksumOptions, context: BuildContext) -> None:
        self._options, self._context = options, context

    def process(self, artifact: Artifact, ui: Ui) -> Processed:
        """The artifact with the checksum files; the input is always kept. Raises StoreError."""
        kinds = tuple(dict.fromkeys(self._options.checksum_types))
        lists: dict[Path, list[str]] = {}
        for kind in kinds:
            lists.setdefault(self._output(artifact, kind), []).append(kind)
        found = digests(artifact.files, kinds, ui)
        with ExitStack() as stack:
            for target, listed in lists.items():
                lines = [_line(found[file][kind], file, target) for kind in listed for file in artifact.files]
                stack.enter_context(whole(target, [disk.path for disk in artifact.disks])).write_bytes(b"".join(lines))
        for target in lists:
            ui.message(f"Wrote {target}")
        files = tuple(dict.fromkeys((*artifact.files, *lists)))
        description = f"Created artifact from files: {', '.join(map(str, files))}"
        made = Artifact(
            "packer.post-processor.checksum", artifact.id, description, files, artifact.disks, state=artifact.state
        )
        return Processed(made, keep_input=True)

    def _output(self, artifact: Artifact, kind: str) -> Path:
        dot = {
            "BuildName": self._context.build_name,
            "BuilderType": self._context.builder_type,
            "ChecksumType": kind,
        }
        build = {"ID": artifact.id, **artifact.state}
        return Path(self._context.renderer.render(self._options.output, dot, build))


def _line(digest: str, file: Path, target: Path) -> bytes:
    """Two spaces before the name, and a backslash in front of all when the name holds escapes."""
    name = os.fsencode(os.path.relpath(file.absolute(), target.absolute().parent))
    escaped = name.replace(b"\\", rb"\\").replace(b"\n", rb"\n").replace(b"\r", rb"\r")
    return (b"\\" if escaped != name else b"") + digest.encode() + b"  " + escaped + b"\n"
