"""Packer's manifest file: one JSON with what each build of a run made; builds of several runs may share it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from imagebuilder.digests import digests
from imagebuilder.errors import ImgbuildError, StoreError
from imagebuilder.image.manifest import ManifestFile, load_manifest
from imagebuilder.options import LATE, Bool, Options, Text, TextMap
from imagebuilder.plugins import Artifact, BuildContext, Processed
from imagebuilder.ui import Ui
from imagebuilder.whole import write

_PATIENCE = 60.0  # seconds to wait for another build that writes the same file


class ManifestOptions(Options):
    """Adds the build to a JSON file in Packer's format; files also have `sha256`, disks `format` and `virtual_size`.
    With -force a new run begins the file anew."""

    output: Annotated[Text, LATE] = Field("packer-manifest.json", description="The file; other builds may add to it")
    strip_path: Bool = Field(False, description="Write the names of files without directories")
    strip_time: Bool = Field(False, description="Leave out the time, so that the same build writes the same")
    custom_data: TextMap = Field({}, description="Names and values of your own")

    renamed: ClassVar[Mapping[str, str]] = {"filename": "output"}


class Manifest:
    """The manifest post-processor."""

    Options = ManifestOptions

    def __init__(self, options: ManifestOptions, context: BuildContext) -> None:
        self._options, self._context = options, context

    def process(self, artifact: Artifact, ui: Ui) -> Processed:
        """The artifact as it was. Raises StoreError."""
        dot = {"BuildName": self._context.build_name, "BuilderType": self._context.builder_type}
        build = {"ID": artifact.id, **artifact.state}
        target = Path(self._context.renderer.render(self._options.output, dot, build))
        entry = self._entry(artifact, ui)
        with _locked(target.absolute().parent):
            builds = [*self._earlier(target), entry]
            content = {"builds": builds, "last_run_uuid": self._context.run_uuid}
            write(target, json.dumps(content, indent=2, ensure_ascii=False))
        ui.message(f"Wrote {target}")
        return Processed(artifact, keep_input=True)

    def _entry(self, artifact: Artifact, ui: Ui) -> dict[str, Any]:
        o, context = self._options, self._context
        return {
            "name": context.build_name,
            "builder_type": context.builder_type,
            **({} if o.strip_time else {"build_time": int(time.time())}),
            "files": [self._file(file, known) for file, known in _described(artifact, ui).items()],
            "artifact_id": artifact.id,
            "packer_run_uuid": context.run_uuid,
            "custom_data": o.custom_data or None,
        }

    def _file(self, path: Path, known: dict[str, Any]) -> dict[str, Any]:
        name = path.name if self._options.strip_path else str(path)
        return {"name": name, "size": path.stat().st_size, **known}

    def _earlier(self, target: Path) -> list[Any]:
        """The builds that are in the file already."""
        try:
            content = json.loads(target.read_bytes())
            builds, last = list(content["builds"]), content.get("last_run_uuid")
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(
                f"'{target}' is there and is no manifest of Packer's form, so nothing can be added to it",
                hint="choose another output, or move it away",
            ) from error
        return [] if self._context.force and last != self._context.run_uuid else builds


def _described(artifact: Artifact, ui: Ui) -> dict[Path, dict[str, Any]]:
    """What is known of each file beyond name and size: from the image's own manifest, else by reading it."""
    known = _published(artifact)
    unknown = [file for file in artifact.files if file not in known]
    sums = digests(unknown, ["sha256"], ui) if unknown else {}
    found: dict[Path, dict[str, Any]] = {}
    for file in artifact.files:
        if file in known:
            entry = {key: getattr(known[file], key) for key in ("sha256", "format", "virtual_size")}
            found[file] = {key: value for key, value in entry.items() if value is not None}
        else:
            found[file] = {"sha256": sums[file]["sha256"]}
    return found


def _published(artifact: Artifact) -> dict[Path, ManifestFile]:
    if artifact.directory is None:
        return {}
    try:
        manifest = load_manifest(artifact.directory)
    except ImgbuildError:
        return {}
    return {artifact.directory / file.name: file for file in manifest.files}


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Hold the directory's lock (flock(2)), which leaves no file behind and goes with whoever holds it."""
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        end = time.monotonic() + _PATIENCE
        while not _try_lock(descriptor):
            if time.monotonic() > end:
                raise StoreError(f"another program has held the lock of '{directory}' for {_PATIENCE:.0f} s")
            time.sleep(0.05)
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
