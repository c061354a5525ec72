"""Progress and advice out of what mmdebstrap prints."""

from __future__ import annotations

import pytest

from imagebuilder.bootstrap.progress import InstallProgress, advice, first_errors

OUTPUT = """\
I: running apt-get update...
Get:1 http://mirror.test/debian bookworm InRelease [151 kB]
I: downloading packages with apt...
0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.
Need to get 22.2 MB of archives.
I: extracting archives...
I: installing essential packages...
Unpacking dash (0.5) ...
Setting up dash (0.5) ...
I: installing remaining packages inside the chroot...
0 upgraded, 3 newly installed, 0 to remove and 0 not upgraded.
Need to get 1,024 kB/79.7 MB of archives.
Need to get 1,024 kB/79.7 MB of archives.
Unpacking a (1) ...
Unpacking b (1) ...
Setting up a (1) ...
imgbuild: configuring
imgbuild: sealing
imgbuild: writing
"""


def test_goes_up_and_tells_the_stages() -> None:
    percents: list[float] = []
    messages: list[str] = []
    progress = InstallProgress(percents.append, messages.append)
    for line in OUTPUT.splitlines():
        progress.line(line)
    assert percents == sorted(percents) and percents[0] == 0 and percents[-1] == 95
    assert 30 < percents[percents.index(80) - 1] < 80
    assert messages == [
        "Fetching package lists", "Downloading the base system", "2 packages, 22.2 MB to download",
        "Extracting the base system", "Installing the base system", "Downloading and installing packages",
        "3 packages, 1,024 kB to download", "Configuring", "Removing what belongs to one machine only",
        "Writing the root file system",
    ]  # fmt: skip
    assert progress.lines == OUTPUT.splitlines()


@pytest.mark.parametrize(
    ("output", "word"),
    [
        ("E: Unable to locate package hallo\n", "'hallo'"),
        ("Temporary failure resolving 'mirror.test'", "network"),
        ("The repository is not signed.", "keyring"),
        ("404  Not Found [IP: 127.0.0.1 80]", "suite"),
        ("dpkg: No space left on device", "free some space"),
    ],
    ids=["package", "name", "key", "suite", "space"],
)
def test_advice(output: str, word: str) -> None:
    assert word in (advice(output) or "")


def test_no_advice() -> None:
    assert advice("dpkg: error processing package x") is None


def test_first_errors() -> None:
    assert first_errors("Get:1\nE: first\nnoise\nE: second\n") == "E: first\nE: second"
    assert first_errors("one\ntwo\n") == "one\ntwo"
