"""The key pair that is made for one build when the template gives no login, and its end: out of the image again."""

from __future__ import annotations

import io
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import paramiko
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from imagebuilder.errors import StoreError
from imagebuilder.plugins import Communicator
from imagebuilder.ssh.config import CommunicatorOptions
from imagebuilder.ssh.keyfile import read_private_key
from imagebuilder.ui import Ui

_CURVES: dict[int, ec.EllipticCurve] = {256: ec.SECP256R1(), 384: ec.SECP384R1(), 521: ec.SECP521R1()}
_RSA_BITS = 3072


@dataclass(frozen=True)
class KeyPair:
    """`public`: a line for authorized_keys, without a line break; `private`: OpenSSH's private key format."""

    public: str
    private: str = field(repr=False)
    key: paramiko.PKey

    def write(self, path: Path) -> None:
        """Put the private key into a new file that only we can read."""
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(self.private)


def generate(kind: str = "", bits: int = 0, comment: str = "imgbuild") -> KeyPair:
    """A new key pair: ed25519 (default), ecdsa or rsa."""
    secret: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
    reader: type[paramiko.Ed25519Key] | type[paramiko.ECDSAKey] | type[paramiko.RSAKey]
    if kind == "rsa":
        secret, reader = rsa.generate_private_key(65537, bits or _RSA_BITS), paramiko.RSAKey
    elif kind == "ecdsa":
        secret, reader = ec.generate_private_key(_CURVES[bits or 256]), paramiko.ECDSAKey
    else:
        secret, reader = ed25519.Ed25519PrivateKey.generate(), paramiko.Ed25519Key
    private = secret.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    ).decode()
    key = reader.from_private_key(io.StringIO(private))
    return KeyPair(f"{key.get_name()} {key.get_base64()} {comment}", private, key)


def read(path: Path) -> KeyPair:
    """A key pair that `KeyPair.write` wrote. StoreError when it isn't one."""
    try:
        key, private = read_private_key(path), path.read_text(encoding="ascii")
    except (OSError, ValueError) as error:
        raise StoreError(f"'{path}' is no key of a build: {error}") from error
    return KeyPair(f"{key.get_name()} {key.get_base64()} imgbuild", private, key)


def for_build(options: CommunicatorOptions, runtime: Path) -> KeyPair | None:
    """The key pair of a build that has no other login; its private half also lies in `runtime`/key (mode 0600)."""
    if not options.makes_key:
        return None
    comment = options.temporary_key_pair_name or "imgbuild"
    pair = generate(options.temporary_key_pair_type, options.temporary_key_pair_bits, comment)
    (runtime / "key").unlink(missing_ok=True)
    pair.write(runtime / "key")
    return pair


def forget(communicator: Communicator, options: CommunicatorOptions, public: str, ui: Ui) -> bool:
    """Take our key out of the guest: always the one made for the build, the person's own when the template says so.
    Whether it is out.

    `public` is the line of the former, or empty. A guest where that fails is told of, and is no failure.
    """
    line = public if options.makes_key else ""
    if not line and options.ssh_clear_authorized_keys and options.ssh_private_key_file:
        key = read_private_key(Path(options.ssh_private_key_file))
        line = f"{key.get_name()} {key.get_base64()}"
    if line and communicator.run(removal(line), timeout=60) != 0:
        ui.warning("The build's key could not be removed from authorized_keys of the image")
        return False
    return True


def removal(line: str) -> str:
    """The shell command that removes a public key from the user's authorized_keys, and from root's where it may.

    The files are written in place: owner, mode and SELinux label stay. Failing to reach root's is no failure.
    """
    key = shlex.quote(" ".join(line.split(" ")[:2]))
    clean = (
        'f=$1/.ssh/authorized_keys; if [ -f "$f" ] && grep -qF "$2" "$f"; '
        'then rest=$(grep -vF "$2" "$f"); if [ -n "$rest" ]; then printf "%s\\n" "$rest"; fi > "$f"; fi'
    )
    ours = f"sh -c {shlex.quote(clean)} sh ~ {key}"
    roots = f"sudo -n sh -c {shlex.quote(clean)} sh /root {key} </dev/null >/dev/null 2>&1"
    return f"{ours} && {{ {roots} || true; }}"
