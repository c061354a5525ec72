"""Files on their way into a guest and out of it, by each method, through real servers."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagebuilder.errors import GuestError, StoreError
from imagebuilder.ssh.communicator import SshCommunicator
from imagebuilder.ssh.settings import SshSettings
from imagebuilder.ssh.sftp import Sftp
from imagebuilder.ssh.tree import Meter, Receiver, entries, followed, quoted, relative_to_home
from imagebuilder.ui import Event, Ui
from tests.sshd import Server, dropbear, needs_dropbear, needs_sshd, sshd

TOOLS = ("sh", "bash", "cat", "chmod", "mkdir", "tar", "wc", "test", "sha256sum", "printf")
"""What a guest has that has neither an SFTP server nor scp."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with sshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(scope="module")
def bare_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """OpenSSH without an SFTP server, in a system without scp."""
    directory = tmp_path_factory.mktemp("bare")
    (directory / "bin").mkdir()
    for name in TOOLS:
        (directory / "bin" / name).symlink_to(shutil.which(name) or f"/bin/{name}")
    extra = f'ForceCommand PATH={directory}/bin /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
    with sshd(directory / "sshd", extra=extra, sftp=False) as running:
        yield running


def quiet(server: Server) -> SshCommunicator:
    return SshCommunicator(SshSettings(server.login), Ui("test", lambda event: None))


@pytest.fixture(scope="module", params=["sftp", "scp", "streams", "no choice"])
def guest(request: pytest.FixtureRequest, server: Server, bare_server: Server) -> Iterator[SshCommunicator]:
    used = bare_server if request.param == "streams" else server
    method = request.param if request.param in ("sftp", "scp") else ""
    with SshCommunicator(
        SshSettings(used.login, transfer_method=method), Ui("test", lambda event: None)
    ) as communicator:
        communicator.connect(30)
        yield communicator


pytestmark = needs_sshd

CONTENTS = {
    "empty": b"",
    "text": b"hello\n",
    "binary": bytes(range(256)) * 4,
    "large": os.urandom(3 << 20),
    "just a chunk": b"x" * 32768,
}
NAMES = ["plain", "with space", "it's", 'a"b$c`d', "-dash", "ümläut", "semi;colon & co", "back\\slash", "*?[x]"]


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS)
def test_there_and_back(content: bytes, guest: SshCommunicator, tmp_path: Path) -> None:
    guest.upload(content, f"{tmp_path}/there", 0o640)
    assert (tmp_path / "there").read_bytes() == content
    assert stat.S_IMODE((tmp_path / "there").stat().st_mode) == 0o640
    guest.download(f"{tmp_path}/there", tmp_path / "new" / "back")
    assert (tmp_path / "new" / "back").read_bytes() == content
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "back"]


@pytest.mark.parametrize("name", NAMES)
def test_names(name: str, guest: SshCommunicator, tmp_path: Path) -> None:
    (tmp_path / "source").write_text(name)
    guest.upload(tmp_path / "source", f"{tmp_path}/{name}")
    assert (tmp_path / name).read_text() == name
    guest.download(f"{tmp_path}/{name}", tmp_path / "back")
    assert (tmp_path / "back").read_text() == name


def test_an_upload_replaces_what_was_there(guest: SshCommunicator, tmp_path: Path) -> None:
    (tmp_path / "there").write_bytes(b"longer than the new one")
    guest.upload(b"short", f"{tmp_path}/there", 0o600)
    assert (tmp_path / "there").read_bytes() == b"short"
    assert stat.S_IMODE((tmp_path / "there").stat().st_mode) == 0o600


def tree(root: Path) -> Path:
    (root / "sub" / "deeper").mkdir(parents=True)
    (root / "empty").mkdir(mode=0o750)
    (root / "a b").write_text("a b")
    (root / "run").write_text("#!/bin/sh\n")
    (root / "run").chmod(0o755)
    (root / "sub" / "it's").write_bytes(os.urandom(40000))
    (root / "sub" / "deeper" / ".hidden").write_text("h")
    (root / "sub" / "zero").touch()
    return root


def listing(root: Path) -> dict[str, tuple[int, bytes | None]]:
    return {
        str(path.relative_to(root)): (
            stat.S_IMODE(path.stat().st_mode), None if path.is_dir() else path.read_bytes(),
        )
        for path in root.rglob("*")
    }  # fmt: skip


@pytest.mark.parametrize("contents_only", [True, False], ids=["contents", "itself"])
def test_directories(contents_only: bool, guest: SshCommunicator, tmp_path: Path) -> None:
    source = tree(tmp_path / "source")
    guest.upload_directory(source, f"{tmp_path}/new/there", contents_only=contents_only)
    there = tmp_path / "new" / "there" / ("" if contents_only else "source")
    assert listing(there) == listing(source)
    guest.download_directory(str(there), tmp_path / "back", contents_only=contents_only)
    back = tmp_path / "back" / ("" if contents_only else there.name)
    assert listing(back) == listing(source)


def test_directories_are_merged_into_what_is_there(guest: SshCommunicator, tmp_path: Path) -> None:
    source = tree(tmp_path / "source")
    for place in ("there", "back"):
        (tmp_path / place / "sub").mkdir(parents=True)
        (tmp_path / place / "sub" / "other").write_text("stays")
        (tmp_path / place / "a b").write_text("replaced")
    guest.upload_directory(source, f"{tmp_path}/there", contents_only=True)
    guest.download_directory(f"{source}/", tmp_path / "back", contents_only=True)
    for place in ("there", "back"):
        assert (tmp_path / place / "sub" / "other").read_text() == "stays"
        assert (tmp_path / place / "a b").read_text() == "a b"


def test_links(guest: SshCommunicator, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("outside")
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "file").write_text("inside")
    (source / "sub" / "inside").symlink_to("../file")
    (source / "to directory").symlink_to("sub")
    (source / "out").symlink_to(tmp_path / "outside")
    guest.upload_directory(source, f"{tmp_path}/there", contents_only=True)
    there = tmp_path / "there"
    assert (there / "sub" / "inside").read_text() == "inside"
    assert (there / "to directory" / "inside").read_text() == "inside"
    assert (there / "out").read_text() == "outside" and not (there / "out").is_symlink()
    if guest.settings.transfer_method != "scp":
        assert (there / "sub" / "inside").readlink() == Path("../file")


MISTAKES = {
    "upload into nowhere": (lambda guest, tmp: guest.upload(b"x", f"{tmp}/no/where"), "Can't upload to '{tmp}/no/"),
    "upload onto a directory": (lambda guest, tmp: guest.upload(b"x", f"{tmp}"), "end the destination with '/'"),
    "download nothing": (lambda guest, tmp: guest.download(f"{tmp}/none", tmp / "x"), "No such file|no such file"),
    "download no directory": (
        lambda guest, tmp: guest.download_directory(f"{tmp}/none", tmp / "x", contents_only=True), "No such|no such",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("act", "part"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_are_told(act: object, part: str, guest: SshCommunicator, tmp_path: Path) -> None:
    with pytest.raises(GuestError, match=part.format(tmp=tmp_path)) as caught:
        act(guest, tmp_path)  # type: ignore[operator]
    assert not caught.value.lost
    assert list(tmp_path.iterdir()) == []
    assert guest.run("true") == 0


def test_a_local_file_that_is_not_there(guest: SshCommunicator, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"Can't read '.*/none', which was to be uploaded"):
        guest.upload(tmp_path / "none", f"{tmp_path}/x")


def test_a_full_disk_is_noticed(guest: SshCommunicator, tmp_path: Path) -> None:
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(GuestError, match="Can't upload to"):
        guest.upload(b"x" * 100000, f"{tmp_path}/full", 0o666)


def test_names_with_line_breaks(guest: SshCommunicator, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "a\nb").write_text("x")
    if guest.settings.transfer_method == "scp":
        with pytest.raises(GuestError, match="can't carry a name with a line break"):
            guest.upload_directory(source, f"{tmp_path}/there", contents_only=True)
    else:
        guest.upload_directory(source, f"{tmp_path}/there", contents_only=True)
        guest.download_directory(f"{tmp_path}/there", tmp_path / "back", contents_only=True)
        assert (tmp_path / "back" / "a\nb").read_text() == "x"


@pytest.mark.parametrize("method", ["sftp", "scp"])
def test_a_method_that_the_guest_lacks(method: str, bare_server: Server, tmp_path: Path) -> None:
    settings = SshSettings(bare_server.login, transfer_method=method)
    with SshCommunicator(settings, Ui("test", lambda event: None)) as communicator:
        communicator.connect(30)
        with pytest.raises(GuestError, match="the guest has no") as caught:
            communicator.upload(b"x", f"{tmp_path}/x")
    assert "ssh_file_transfer_method" in str(caught.value.hint)


def test_without_an_sftp_server_scp_is_taken(tmp_path: Path) -> None:
    with sshd(tmp_path / "sshd", extra="LogLevel DEBUG1", sftp=False) as server, quiet(server) as communicator:
        communicator.connect(30)
        communicator.upload(b"one", f"{tmp_path}/one")
        communicator.upload(b"two", f"{tmp_path}/two")
        assert server.log.count("subsystem request for sftp") == 1
    assert (tmp_path / "two").read_text() == "two"


@needs_dropbear
def test_dropbear(tmp_path: Path) -> None:
    with dropbear(tmp_path / "dropbear") as server, quiet(server) as communicator:
        communicator.connect(30)
        communicator.upload(CONTENTS["large"], f"{tmp_path}/there")
        communicator.upload(b"home", "~/in home")
        communicator.upload_directory(tree(tmp_path / "source"), f"{tmp_path}/tree", contents_only=True)
        communicator.download("~/in home", tmp_path / "back")
    assert (tmp_path / "there").read_bytes() == CONTENTS["large"]
    assert (tmp_path / "back").read_bytes() == b"home"
    assert (tmp_path / "dropbear" / "home" / "in home").read_bytes() == b"home"
    assert listing(tmp_path / "tree") == listing(tmp_path / "source")


def test_a_secret_is_never_readable_by_others(server: Server, tmp_path: Path) -> None:
    """The mode is there before the content: seen by reading while the upload goes on."""
    modes: set[int] = set()

    class Slow:
        def read(self, count: int, /) -> bytes:
            modes.add(stat.S_IMODE((tmp_path / "secret").stat().st_mode))
            return next(pieces, b"")

    pieces = iter([b"x" * 10, b"y" * 10])
    with quiet(server) as communicator:
        communicator.connect(30)
        assert communicator._transport is not None
        Sftp(communicator._transport).put(Slow(), 20, f"{tmp_path}/secret", 0o600)
    assert modes == {0o600}


def test_progress_of_large_files_only(server: Server, tmp_path: Path) -> None:
    events: list[Event] = []
    with SshCommunicator(SshSettings(server.login), Ui("test", events.append)) as communicator:
        communicator.connect(30)
        communicator.upload(b"small", f"{tmp_path}/small")
        assert events == []
        communicator.upload(CONTENTS["large"], f"{tmp_path}/large")
    assert events[0].text == f"Uploading {tmp_path}/large"
    assert events[0].data["total"] == 3 << 20


def test_a_file_that_is_damaged_afterwards_is_noticed(server: Server, tmp_path: Path) -> None:
    """Something in the guest changes it: the digest that is compared is that of what was sent."""
    bin = tmp_path / "bin"
    bin.mkdir()
    (bin / "sha256sum").write_text("#!/bin/sh\necho " + "0" * 64 + "  -\n")
    (bin / "sha256sum").chmod(0o755)
    extra = f'ForceCommand PATH={bin}:$PATH /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
    with sshd(tmp_path / "sshd", extra=extra, sftp=False) as changed, quiet(changed) as communicator:
        communicator.connect(30)
        with pytest.raises(GuestError, match="arrived damaged"):
            communicator.upload(CONTENTS["large"], f"{tmp_path}/there")


# -- what needs no server


def test_entries_and_what_links_lead_to(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "f").write_text("123")
    (source / "dangling").symlink_to("nowhere")
    (source / "inside").symlink_to("sub")
    os.mkfifo(source / "fifo")
    found = [(entry.name, entry.kind, entry.size) for entry in entries(source)]
    assert found == [("dangling", "link", 0), ("inside", "link", 0), ("sub", "directory", 0), ("sub/f", "file", 3)]
    assert [entry.name for entry in followed(entries(source))] == ["inside", "inside/f", "sub", "sub/f"]


@pytest.mark.parametrize("target", ["..", "../../source", "."])
def test_links_in_a_circle_end(target: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub" / "up").symlink_to(target)
    with pytest.raises(GuestError, match="leads back to a directory that it is in"):
        list(followed(entries(source)))


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a\0b"])
def test_nothing_lands_outside(name: str, tmp_path: Path) -> None:
    receiver = Receiver(tmp_path, Meter(lambda done: None))
    for act in (receiver.directory, lambda name: receiver.file(name, 0o644, lambda target: None)):
        with pytest.raises(GuestError, match="leads elsewhere"):
            act(name)


def test_nothing_is_written_through_a_link_from_the_guest(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    receiver = Receiver(tmp_path / "in", Meter(lambda done: None))
    receiver.link("sub", str(tmp_path / "out"))
    receiver.file("sub/evil", 0o644, lambda target: None)
    with pytest.raises(FileExistsError):
        receiver.finish()
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("path", "for_shell", "for_sftp"),
    [
        ("/a b", "'/a b'", "/a b"), ("~/x y", "~/'x y'", "x y"), ("~", "~/", "."), ("-x", "./-x", "-x"),
        ("~user/x", "'~user/x'", "~user/x"), ("rel", "rel", "rel"),
    ],
)  # fmt: skip
def test_paths_of_the_guest(path: str, for_shell: str, for_sftp: str) -> None:
    assert (quoted(path), relative_to_home(path)) == (for_shell, for_sftp)
