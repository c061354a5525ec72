"""Private keys of people: OpenSSH and PEM files (RSA, ECDSA, Ed25519), and the certificate that may belong to one."""

from __future__ import annotations

from pathlib import Path

import paramiko

_CLASSES = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)


def read_private_key(path: Path, certificate: Path | None = None) -> paramiko.PKey:
    """The key in that file; ValueError tells what is wrong with it, or with its certificate."""
    try:
        text = path.expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"can't read '{path}': {_reason(error)}") from error
    if b"PRIVATE KEY" not in text:
        raise ValueError(f"'{path}' holds no private key" + (": is it the public one?" if b"ssh-" in text[:8] else ""))
    key = _parse(path)
    if certificate is not None:
        try:
            key.load_certificate(str(certificate.expanduser()))
        except (OSError, ValueError, paramiko.SSHException) as error:
            raise ValueError(f"can't use the certificate '{certificate}': {_reason(error)}") from error
    return key


def _parse(path: Path) -> paramiko.PKey:
    for kind in _CLASSES:
        try:
            return kind.from_private_key_file(str(path.expanduser()))
        except paramiko.PasswordRequiredException as error:
            raise ValueError(f"'{path}' has a passphrase: load it into an agent and set ssh_agent_auth") from error
        except (paramiko.SSHException, ValueError, IndexError, TypeError):
            continue
    raise ValueError(f"'{path}' is not an RSA, ECDSA or Ed25519 private key")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return (error.strerror or str(error)).lower()
    return str(error)
