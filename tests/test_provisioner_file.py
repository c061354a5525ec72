"""The file provisioner, on a real SSH server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imagebuilder.errors import GuestError
from imagebuilder.plugins import BuildContext, Guest
from imagebuilder.provisioners.file import File, FileOptions
from imagebuilder.ssh.communicator import SshCommunicator
from imagebuilder.ssh.settings import SshSettings
from imagebuilder.templates.interpolate import Engine
from imagebuilder.ui import Event, Ui
from tests.sshd import needs_sshd, sshd


@pytest.fixture(scope="module")
def communicator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshCommunicator]:
    quiet = Ui("test", lambda event: None)
    with (
        sshd(tmp_path_factory.mktemp("sshd")) as server,
        SshCommunicator(SshSettings(server.login), quiet) as connected,
    ):
        connected.connect(30)
        yield connected


def provision(communicator: SshCommunicator | None, **given: Any) -> list[str]:
    """What was said."""
    options = FileOptions.model_validate(given)
    assert list(options.problems()) == []
    events: list[Event] = []
    context = BuildContext("web", "qemu", Engine({}))
    File(options, context).provision(Guest(communicator, {}), Ui("web", events.append))
    return [event.text for event in events if event.kind == "say"]


BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "nothing": ({}, ["destination", "source"]),
    "no destination": ({"source": __file__}, ["destination"]),
    "no such source": ({"source": "/nope", "destination": "/x"}, ["source"]),
    "no such sources": ({"sources": ["/nope", __file__, "/no/*"], "destination": "/x/"}, ["sources", "sources"]),
    "content and source": ({"content": "", "source": __file__, "destination": "/x"}, ["content"]),
    "content for a directory": ({"content": "x", "destination": "/x/"}, ["destination"]),
    "content downloaded": ({"content": "x", "destination": "/x", "direction": "download"}, ["content"]),
    "many files to one": ({"sources": [__file__, __file__], "destination": "/x"}, ["destination"]),
}


@pytest.mark.parametrize(("given", "keys"), BAD.values(), ids=BAD)
def test_what_is_wrong_with_options_is_said(given: dict[str, Any], keys: list[str]) -> None:
    assert [key for key, _ in FileOptions.model_validate(given).problems()] == keys


@pytest.mark.parametrize(
    "given",
    [
        {"source": "/made/later", "generated": True, "destination": "/x"},
        {"source": "/in/the/guest", "direction": "download", "destination": "x"},
        {"content": "", "destination": "/x"},
    ],
)
def test_good_options(given: dict[str, Any]) -> None:
    assert list(FileOptions.model_validate(given).problems()) == []


@needs_sshd
def test_content(communicator: SshCommunicator, tmp_path: Path) -> None:
    assert provision(communicator, content="a\nü\n", destination=f"{tmp_path}/x") == [
        f"Uploading content to {tmp_path}/x"
    ]
    assert (tmp_path / "x").read_text() == "a\nü\n"


@needs_sshd
def test_a_file(communicator: SshCommunicator, tmp_path: Path) -> None:
    (tmp_path / "source").write_text("x")
    (tmp_path / "source").chmod(0o755)
    (tmp_path / "there").mkdir()
    said = provision(communicator, source=f"{tmp_path}/source", destination=f"{tmp_path}/there/")
    assert said == [f"Uploading {tmp_path}/source to {tmp_path}/there/source"]
    provision(communicator, source=f"{tmp_path}/source", destination=f"{tmp_path}/there/renamed")
    assert sorted(path.name for path in (tmp_path / "there").iterdir()) == ["renamed", "source"]
    assert (tmp_path / "there" / "source").stat().st_mode & 0o777 == 0o755


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    (directory / "sub").mkdir(parents=True)
    for name in ("a.txt", "b.txt", "c.log", "sub/d e"):
        (directory / name).write_text(name)
    return directory


def names(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file())


ALL = ["a.txt", "b.txt", "c.log", "sub/d e"]


@needs_sshd
@pytest.mark.parametrize("direction", ["upload", "download"])
@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("source/", ALL),
        ("source", [f"source/{name}" for name in ALL]),
        ("source/*.txt", ["a.txt", "b.txt"]),
        ("source/c.log", ["c.log"]),
    ],
)
def test_what_a_source_means(
    written: str, found: list[str], direction: str, source: Path, communicator: SshCommunicator, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    provision(communicator, source=f"{tmp_path}/{written}", destination=f"{tmp_path}/there/", direction=direction)
    assert names(tmp_path / "there") == found


@needs_sshd
@pytest.mark.parametrize("direction", ["upload", "download"])
def test_several_sources(direction: str, source: Path, communicator: SshCommunicator, tmp_path: Path) -> None:
    sources = [f"{source}/a.txt", f"{source}/sub/", f"{source}/c.log"]
    (tmp_path / "there").mkdir()
    said = provision(communicator, sources=sources, destination=f"{tmp_path}/there/", direction=direction)
    assert names(tmp_path / "there") == ["a.txt", "c.log", "d e"]
    assert len(said) == 3


@needs_sshd
def test_a_download_makes_directories(source: Path, communicator: SshCommunicator, tmp_path: Path) -> None:
    provision(communicator, source=f"{source}/a.txt", destination=f"{tmp_path}/new/one/x", direction="download")
    assert (tmp_path / "new" / "one" / "x").read_text() == "a.txt"


@needs_sshd
def test_a_download_into_a_directory_that_is_there(source: Path, communicator: SshCommunicator, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    provision(communicator, source=f"{source}/a.txt", destination=f"{tmp_path}/there", direction="download")
    assert names(tmp_path / "there") == ["a.txt"]


@needs_sshd
def test_odd_names_in_patterns(communicator: SshCommunicator, tmp_path: Path) -> None:
    (tmp_path / "it's $HOME").mkdir()
    (tmp_path / "it's $HOME" / "x y.txt").write_text("x")
    provision(
        communicator, source=f"{tmp_path}/it's $HOME/*.txt", destination=f"{tmp_path}/there/", direction="download"
    )
    assert names(tmp_path / "there") == ["x y.txt"]


@needs_sshd
def test_what_is_missing_at_run_time_is_told(communicator: SshCommunicator, tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="There is nothing to upload at") as caught:
        provision(communicator, source=f"{tmp_path}/none", generated=True, destination="/x")
    assert "earlier provisioner" in str(caught.value.hint)
    with pytest.raises(GuestError, match=r"There is nothing at '.*none\*' in the guest"):
        provision(communicator, source=f"{tmp_path}/none*", direction="download", destination=f"{tmp_path}/x")


def test_no_communicator() -> None:
    with pytest.raises(GuestError, match="needs a communicator"):
        provision(None, content="x", destination="/x")
