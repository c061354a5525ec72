"""Package sources: both formats, the machine's own, named ones; no secret gets on."""

from __future__ import annotations

from pathlib import Path

import pytest

from imagebuilder.bootstrap import apt
from imagebuilder.bootstrap.apt import Source
from imagebuilder.errors import ImgbuildError

DEBIAN = """\
# A comment
Types: deb deb-src
URIs: http://mirror.test/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
# in the middle
URIs: http://mirror.test/debian-security
Suites: bookworm-security
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 mQINBF
 -----END PGP PUBLIC KEY BLOCK-----

Types: deb
Enabled: no
URIs: http://off.test/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://source.test/debian
Suites: bookworm
Components: main
"""


def executable(path: Path, script: str) -> None:
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose apt reads from the directory that is returned; write sources.list and parts/*.sources there."""
    commands = tmp_path / "bin"
    commands.mkdir()
    settings = "echo 'Acquire::http::Proxy \"http://user:pw@proxy.test:3128\";'; echo 'APT::Architecture \"amd64\";'"
    places = f"echo \"LIST='{tmp_path}/sources.list'\"; echo \"PARTS='{tmp_path}/parts/'\""
    executable(commands / "apt-config", f"if [ $1 = dump ]; then {settings}; else {places}; fi\n")
    executable(commands / "apt-get", "printf 'http://mirror.test/other/\\tSomebody\\n'\n")
    monkeypatch.setenv("PATH", f"{commands}:/usr/bin:/bin")
    (tmp_path / "parts").mkdir()
    (tmp_path / "os-release").write_text('ID=debian\nVERSION_CODENAME="bookworm"\n')
    return tmp_path


def of_machine(machine: Path, suite: str = "bookworm", distribution: str = "debian") -> list[Source]:
    return apt.machine_sources(distribution, suite, os_release=machine / "os-release")


def test_deb822() -> None:
    first, second = apt.parse_sources(DEBIAN)
    assert first.uris == ("http://mirror.test/debian",)
    assert first.suites == ("bookworm", "bookworm-updates", "bookworm-backports")
    assert first.components == ("main", "contrib")
    assert first.options == {"Signed-By": "/usr/share/keyrings/debian-archive-keyring.gpg"}
    assert second.suites == ("bookworm-security",)
    assert second.options["Signed-By"].startswith("-----BEGIN PGP")


def test_deb822_survives_a_round_trip() -> None:
    sources = list(apt.parse_sources(DEBIAN))
    assert list(apt.parse_sources(apt.render(sources))) == sources


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("deb http://m.test/d s main", Source(("http://m.test/d",), ("s",), ("main",))),
        (
            "deb [arch=amd64,arm64 signed-by=/k.gpg] http://m.test/d s main contrib # why",
            Source(
                ("http://m.test/d",), ("s",), ("main", "contrib"),
                {"Architectures": "amd64 arm64", "Signed-By": "/k.gpg"},
            ),
        ),
        ("deb [ trusted=yes ] file:/srv/d ./", Source(("file:/srv/d",), ("./",), (), {"Trusted": "yes"})),
    ],
    ids=["plain", "options", "flat"],
)  # fmt: skip
def test_one_line(line: str, expected: Source) -> None:
    assert list(apt.parse_list(f"# {line}\n{line}\ndeb-src http://m.test/d s main\n")) == [expected]


def test_machine_sources_leave_out_backports(machine: Path) -> None:
    (machine / "parts/debian.sources").write_text(DEBIAN)
    main, security = of_machine(machine)
    assert main.suites == ("bookworm", "bookworm-updates")
    assert security.suites == ("bookworm-security",)


def test_another_release_of_the_same_distribution(machine: Path) -> None:
    (machine / "sources.list").write_text(
        "deb http://m.test/d stable main\ndeb http://m.test/s bookworm-security main\n"
    )
    assert [source.suites for source in of_machine(machine, "trixie")] == [("trixie",), ("trixie-security",)]


def test_other_peoples_repositories_are_left_out(machine: Path) -> None:
    (machine / "sources.list").write_text(
        "deb http://mirror.test/debian bookworm main\n"
        "deb http://mirror.test/other bookworm main\n"  # by the origin in its Release file
        "deb [signed-by=/usr/share/keyrings/vendor.gpg] http://vendor.test/apt bookworm main\n"
        "deb http://mirror.test/pgdg bookworm-pgdg main\n"
    )
    assert [source.uris for source in of_machine(machine)] == [("http://mirror.test/debian",)]


def test_another_distribution_asks_for_mirrors(machine: Path) -> None:
    with pytest.raises(ImgbuildError, match="runs debian") as caught:
        of_machine(machine, "noble", "ubuntu")
    assert caught.value.hint and "mirrors" in caught.value.hint


def test_no_archive_at_all(machine: Path) -> None:
    with pytest.raises(ImgbuildError, match="no archive of debian for 'bookworm'"):
        of_machine(machine)


def test_proxy_is_passed_on_and_nothing_else(machine: Path) -> None:
    assert apt.acquire_settings().splitlines()[0] == 'Acquire::http::Proxy "http://user:pw@proxy.test:3128";'
    assert "Architecture" not in apt.acquire_settings()


def test_named_mirrors(tmp_path: Path) -> None:
    key = tmp_path / "key.gpg"
    lines = (f"deb [signed-by={key}] http://m.test/d sid main", "deb [trusted=yes] http://n.test/d sid main")
    first, second = apt.named_sources(lines, "debian", "bookworm", ())
    assert first.options == {"Signed-By": str(key)} and second.options == {"Trusted": "yes"}
    with pytest.raises(ImgbuildError, match=r"key\.gpg.* is missing"):
        apt.check_keyrings([first])


def test_credentials_do_not_get_into_an_image() -> None:
    source = Source(("https://user:s3cret@m.test/d", "http://n.test/d"), ("s",), ("main",))
    assert apt.credentials(source) == ["s3cret"]
    assert apt.without_credentials(source).uris == ("https://m.test/d", "http://n.test/d")
