"""Disk images, artifacts and contexts for tests; made with the real qemu-img."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.image import artifact, disk
from imagebuilder.plugins import Artifact, BuildContext, Disk
from imagebuilder.ui import Event, Ui

needs_qemu_img = pytest.mark.skipif(shutil.which("qemu-img") is None, reason="qemu-img is not installed (qemu-utils)")
MIB = 2**20


class Renderer:
    """`{{ .Name }}` out of the dot; enough for an output name."""

    def render(self, text: str, dot: Mapping[str, Any] | None = None, build: Mapping[str, str] | None = None) -> str:
        return re.sub(r"{{\s*\.(\w+)\s*}}", lambda found: str((dot or {})[found.group(1)]), text)


def context(**keys: Any) -> BuildContext:
    return BuildContext("tiny", "qemu", Renderer(), run_uuid="11111111-2222", template_digest="ab" * 32, **keys)


def quiet() -> Ui:
    return Ui("tiny", lambda _: None)


def listening() -> tuple[Ui, list[Event]]:
    events: list[Event] = []
    return Ui("tiny", events.append), events


def filled(path: Path, *, size: int = 8 * MIB, format: str = "qcow2", seed: bytes = b"golden image\n") -> Path:
    """An image whose first MiB holds text, its second noise, and the rest nothing."""
    raw = path.with_name(path.name + ".raw")
    noise = random.Random(seed).randbytes(MIB)
    with raw.open("wb") as file:
        file.write((seed * MIB)[:MIB] + noise)
        file.truncate(size)
    subprocess.run(["qemu-img", "convert", "-q", "-O", format, str(raw), str(path)], check=True)
    raw.unlink()
    return path


def names(directory: Path) -> list[str]:
    """What is in a directory, hidden names as well."""
    return sorted(path.name for path in directory.iterdir())


def same(one: Path, other: Path) -> bool:
    """Whether two images hold the same disk."""
    return subprocess.run(["qemu-img", "compare", "-q", str(one), str(other)], check=False).returncode == 0


def built(
    directory: Path, *, disks: int = 1, format: str = "qcow2", extra: Mapping[str, bytes] | None = None, **machine: Any
) -> Artifact:
    """A published image, as the qemu builder leaves it."""
    known = {"accelerator": "tcg", "architecture": "x86_64", **machine}
    with artifact.Output(directory) as output:
        names = [f"disk{'' if n == 0 else f'-{n}'}.{format}" for n in range(disks)]
        paths = [filled(output.work / name, format=format, seed=name.encode()) for name in names]
        for name, content in (extra or {}).items():
            (output.work / name).write_bytes(content)
        found = [Disk(path, format, disk.info(path).virtual_size) for path in paths]
        return output.publish(context(), found, quiet(), artifact.Machine(**known))


def fails_midway(monkeypatch: pytest.MonkeyPatch, directory: Path, program: str, script: str) -> None:
    """Put a program of that name first on PATH; `script` is sh, "$real" the real one."""
    real = shutil.which(program)
    folder = directory / "fake-bin"
    folder.mkdir()
    (folder / program).write_text(f"#!/bin/sh\nreal={real}\n{script}\n")
    (folder / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
