"""Compressed files and archives, opened by the real tools."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from imagebuilder.errors import CommandError, ImgbuildError
from imagebuilder.image.compression import Method
from imagebuilder.plugins import Artifact
from imagebuilder.postprocessors.compress import Compress, CompressOptions, how
from imagebuilder.ui import Event, Ui
from tests.images import context, fails_midway, listening, names, quiet

READERS = {
    "gz": ["gzip", "-dc"], "bgzf": ["gzip", "-dc"], "xz": ["xz", "-dc"], "bz2": ["bzip2", "-dc"],
    "bzip2": ["bzip2", "-dc"], "zst": ["zstd", "-dc", "-q"], "lz4": ["lz4", "-dc", "-q"],
}  # fmt: skip


def content(size: int) -> bytes:
    """Half text, half noise."""
    noise = random.Random(7).randbytes(size // 2)
    return (b"golden image " * (size // 26 + 1))[: size - len(noise)] + noise


def artifact(directory: Path, **files: int) -> Artifact:
    directory.mkdir(exist_ok=True)
    for name, size in files.items():
        (directory / name).write_bytes(content(size))
    return Artifact("x", "VM", "x", tuple(directory / name for name in files), directory=directory)


def compress(output: Path, **keys: object) -> Compress:
    return Compress(CompressOptions.model_validate({"output": str(output), **keys}), context())


def need(name: str) -> None:
    program = READERS[name][0]
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("size", [0, 1, 3_000_001, 30_000_000], ids=["empty", "byte", "some", "chunks"])
def test_the_real_tool_gives_the_same_bytes_back(tmp_path: Path, name: str, size: int) -> None:
    need(name)
    made = artifact(tmp_path / "out", disk=size)
    target = tmp_path / f"disk.{name}"
    done = compress(target, compression_level=1).process(made, quiet())
    assert done.artifact.files == (target,)
    assert done.keep_input is None
    with target.open("rb") as file:
        assert subprocess.run(READERS[name], stdin=file, capture_output=True, check=True).stdout == content(size)
    if size > 1000:
        assert target.stat().st_size < size * 0.55
    assert names(tmp_path) == sorted([target.name, "out"])


@pytest.mark.parametrize("name", ["tar", "tar.gz", "tar.xz", "tar.bz2", "tar.zst", "tgz", "tar.bgzf"])
def test_a_tar_is_read_by_tar(tmp_path: Path, name: str) -> None:
    if name == "tar.zst":
        need("zst")
    made = artifact(tmp_path / "out", disk=5000, other=1_500_000)
    compress(tmp_path / f"all.{name}").process(made, quiet())
    (tmp_path / "back").mkdir()
    extra = ["-z"] if name == "tar.bgzf" else []
    subprocess.run(["tar", *extra, "-xf", tmp_path / f"all.{name}", "-C", tmp_path / "back"], check=True)
    assert names(tmp_path / "back") == ["disk", "other"]
    assert (tmp_path / "back" / "other").read_bytes() == content(1_500_000)


def test_a_zip_is_read_by_unzip_or_python(tmp_path: Path) -> None:
    import zipfile

    made = artifact(tmp_path / "out", disk=5000, other=1_500_000)
    compress(tmp_path / "all.zip").process(made, quiet())
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        assert archive.testzip() is None
        assert archive.read("other") == content(1_500_000)


def test_packers_default_is_a_tar_gz_without_extension(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = artifact(tmp_path / "out", disk=5000)
    monkeypatch.chdir(tmp_path)
    Compress(CompressOptions(), context()).process(made, quiet())
    listed = subprocess.run(["tar", "-tzf", "packer_tiny_qemu"], capture_output=True, text=True, check=True)
    assert listed.stdout.split() == ["disk"]


@pytest.mark.parametrize(
    ("format", "name", "expected"),
    [
        ("", "x.tar.gz", ("tar", Method.GZIP)),
        ("", "disk.qcow2.xz", ("", Method.XZ)),
        ("", "x.tar", ("tar", None)),
        ("", "x.1.zip", ("zip", None)),
        ("", "centos-9.1", ("tar", Method.GZIP)),
        ("", "x", ("tar", Method.GZIP)),
        ("", "x.tzst", ("tar", Method.ZSTD)),
        ("", "tar.gz", ("", Method.GZIP)),
        ("xz", "x.tar.gz", ("", Method.XZ)),
        ("tar.lz4", "x", ("tar", Method.LZ4)),
        ("zip", "x.gz", ("zip", None)),
    ],
    ids=str,
)
def test_the_name_or_the_format_says_how(format: str, name: str, expected: tuple[str, Method | None]) -> None:
    assert how(format, name) == expected


def test_one_bare_file_only(tmp_path: Path) -> None:
    with pytest.raises(ImgbuildError, match="exactly one file, and the artifact has 2: disk, other") as caught:
        compress(tmp_path / "x.xz").process(artifact(tmp_path / "out", disk=1, other=1), quiet())
    assert "tar" in str(caught.value.hint)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    made = artifact(tmp_path / "out", disk=3_000_000)
    for name in ("one.gz", "two.gz"):
        compress(tmp_path / name).process(made, quiet())
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()


def test_levels_count(tmp_path: Path) -> None:
    made = artifact(tmp_path / "out")
    words = random.Random(3).choices([b"alpha", b"beta", b"gamma", b"delta", b"eps"], k=400_000)
    (tmp_path / "out" / "disk").write_bytes(b" ".join(words))
    made = Artifact("x", "VM", "x", (tmp_path / "out" / "disk",))
    sizes = []
    for level in (1, 9, 99):
        compress(tmp_path / f"{level}.gz", compression_level=level).process(made, quiet())
        sizes.append((tmp_path / f"{level}.gz").stat().st_size)
    assert sizes[0] > sizes[1] == sizes[2]


def test_a_failing_program_leaves_the_input_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need("zst")
    fails_midway(monkeypatch, tmp_path, "zstd", "head -c 1000; echo disk on fire >&2; exit 3")
    made = artifact(tmp_path / "out", disk=5_000_000)
    with pytest.raises(CommandError, match="disk on fire"):
        compress(tmp_path / "x.zst").process(made, quiet())
    assert names(tmp_path) == ["fake-bin", "out"]
    assert (tmp_path / "out" / "disk").read_bytes() == content(5_000_000)


@pytest.mark.parametrize("name", ["gz", "bgzf", "xz", "bz2", "zst", "lz4", "tar.gz", "zip"])
def test_an_interrupt_ends_it_at_once_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    if name in READERS:
        need(name)

    interrupted: list[float] = []

    def interrupt(event: Event) -> None:
        if event.kind == "progress" and event.data["done"] > 0:
            interrupted.append(time.monotonic())
            raise KeyboardInterrupt

    made = artifact(tmp_path / "out", disk=0)
    (tmp_path / "out" / "disk").write_bytes(random.Random(1).randbytes(60_000_000))
    with pytest.raises(KeyboardInterrupt):
        compress(tmp_path / f"x.{name}", compression_level=9).process(made, Ui("tiny", interrupt))
    assert time.monotonic() - interrupted[0] < 3
    assert names(tmp_path) == ["out"]


def test_a_missing_program_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ImgbuildError, match="'lz4' is not installed"):
        compress(tmp_path / "x.lz4").process(artifact(tmp_path / "out", disk=1), quiet())


def test_progress_ends_with_all_bytes(tmp_path: Path) -> None:
    ui, events = listening()
    compress(tmp_path / "x.tar.gz").process(artifact(tmp_path / "out", disk=9, other=4), ui)
    totals = {event.data["total"] for event in events if event.kind == "progress"}
    assert totals == {13}


def test_an_unknown_format_is_a_problem() -> None:
    (problem,) = CompressOptions(format="tar.gzip").problems()
    assert "did you mean" in problem[1]
