"""What a template may write as iso_checksum, and the lists that distributions publish."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest

from imagebuilder.errors import ChecksumError
from imagebuilder.media.checksum import ALGORITHMS, Checksum, Entry, choose, entries, parse_checksum

ISO = b"an installer"
SHA256 = hashlib.sha256(ISO).hexdigest()
SHA512 = hashlib.sha512(ISO).hexdigest()
MD5 = hashlib.md5(ISO).hexdigest()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_is_taken_bare_and_prefixed(algorithm: str) -> None:
    digest = hashlib.new(algorithm, ISO).hexdigest()
    assert parse_checksum(digest) == Checksum(algorithm, digest)
    assert parse_checksum(f"{algorithm}:{digest}") == Checksum(algorithm, digest)
    assert parse_checksum(f"  {algorithm.upper()}:{digest.upper()} ") == Checksum(algorithm, digest)


def test_none_and_lists() -> None:
    assert parse_checksum("none") == Checksum()
    assert str(parse_checksum("none")) == "none"
    assert parse_checksum("file:http://mirror/SHA256SUMS") == Checksum(source="http://mirror/SHA256SUMS")
    assert str(parse_checksum(f"sha256:{SHA256}")) == f"sha256:{SHA256}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("sha256:0909", "'0909' is too short for sha256: 4 hexadecimal digits instead of 64"),
        ("md5:" + SHA256, "too long for md5"),
        ("zzz", "'zzz' is not hexadecimal: character 1 is 'z'"),
        ("abcdef", "'abcdef' has 6 hexadecimal digits"),
        ("sha265:" + SHA256, "unknown kind of checksum 'sha265'.*did you mean 'sha256'"),
        ("http://mirror/SHA256SUMS", "unknown kind of checksum 'http'.*did you mean 'file:http://mirror/SHA256SUMS'"),
        ("file:", "names no list"),
        ("sha256:" + SHA256[:-1] + "g", "character 64 is 'g'"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_checksum(text)


CLEARSIGNED = f"""-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

# Fedora-Server-dvd-x86_64-41-1.4.iso: 12 bytes
SHA256 (Fedora-Server-dvd-x86_64-41-1.4.iso) = {SHA256}
- - dash escaped
-----BEGIN PGP SIGNATURE-----

iQIzBAEBCAAdFiEEuuAZ2Dqy
{"ab" * 32}  Fedora-Server-dvd-x86_64-41-1.4.iso
-----END PGP SIGNATURE-----
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{SHA256}  a.iso\n", [Entry("sha256", SHA256, "a.iso")]),
        (f"{SHA256} *a b.iso\r\n", [Entry("sha256", SHA256, "a b.iso")]),
        (f"\\{MD5}  a\\\\b\\nc.iso\n", [Entry("md5", MD5, "a\\b\nc.iso")]),
        (f"SHA256 (a.iso) = {SHA256.upper()}\n", [Entry("sha256", SHA256, "a.iso")]),
        (f"SHA2-512(a.iso)= {SHA512}\n", [Entry("sha512", SHA512, "a.iso")]),
        (f"\ufeff{SHA256}\n", [Entry("sha256", SHA256, "")]),
        (f"MD5 (a.iso) = {SHA256}\n", []),
        ("<html>not found</html>", []),
        (CLEARSIGNED, [Entry("sha256", SHA256, "Fedora-Server-dvd-x86_64-41-1.4.iso")]),
    ],
    ids=["gnu", "gnu-binary", "gnu-escaped", "bsd", "openssl", "only-a-digest", "lying", "html", "clearsigned"],
)
def test_lists(text: str, expected: list[Entry]) -> None:
    assert list(entries(text)) == expected


@pytest.mark.parametrize(
    "tool", [["sha256sum"], ["sha256sum", "--tag"], ["md5sum", "-b"], ["openssl", "dgst", "-sha1"]]
)
def test_what_real_tools_write_is_read(tool: list[str], tmp_path: Path) -> None:
    (tmp_path / "x (1).iso").write_bytes(ISO)
    listed = subprocess.run([*tool, "x (1).iso"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    found = choose(listed, "SUMS", ["/pub/x (1).iso"])
    assert found.digest == hashlib.new(found.algorithm, ISO).hexdigest()


def test_the_strongest_of_several_algorithms_is_taken() -> None:
    text = f"MD5 (a.iso) = {MD5}\nSHA512 (a.iso) = {SHA512}\nSHA256 (a.iso) = {SHA256}\n"
    assert choose(text, "CHECKSUM", ["/a.iso"]) == Checksum("sha512", SHA512)


def test_the_directory_decides_between_equal_names() -> None:
    text = f"{'0' * 64}  ./netboot/gtk/linux\n{SHA256}  ./netboot/amd64/linux\n"
    assert choose(text, "SUMS", ["/images/netboot/amd64/linux"]).digest == SHA256
    with pytest.raises(ChecksumError, match="2 different checksums for 'linux'"):
        choose(text, "SUMS", ["/elsewhere/linux"])


def test_any_of_several_urls_may_be_the_one_that_is_listed() -> None:
    assert choose(f"{SHA256}  a-1.0.iso\n", "SUMS", ["/local.iso", "/pub/a-1.0.iso"]).digest == SHA256


def test_a_digest_without_a_name_is_for_the_file() -> None:
    assert choose(f"{SHA256}\n", "a.iso.sha256", ["/a.iso"]).digest == SHA256


def test_a_list_without_the_file_names_what_is_near() -> None:
    with pytest.raises(ChecksumError, match=r"'SUMS' has no checksum for 'debian-12\.iso'") as caught:
        choose(f"{SHA256}  debian-13.iso\n{SHA256}  zebra\n", "SUMS", ["/debian-12.iso"])
    assert caught.value.hint == "it names 'debian-13.iso'"
    with pytest.raises(ChecksumError) as caught:
        choose("<html>", "SUMS", ["/a.iso"])
    assert "is this the right file" in str(caught.value.hint)
