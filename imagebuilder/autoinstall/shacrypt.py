"""SHA-512 crypt, the password hashes of /etc/shadow (U. Drepper, "Unix crypt using SHA-256 and SHA-512", 0.6, 2008).

Python's own `crypt` is gone from 3.13. No key stretching of today's strength: use long passwords, or better, SSH keys.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import re
import secrets

from imagebuilder import paths, process
from imagebuilder.errors import StoreError

_LETTERS = "./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_ROUNDS = 5000
_SALT = re.compile(r"[./0-9A-Za-z]{1,16}")


def sha512_crypt(password: str, salt: str | None = None) -> str:
    """`$6$salt$hash`. Without a salt: one that stays the same for this password and this user (see `stable_salt`).

    ValueError for a salt that is not 1 to 16 of `./0-9A-Za-z`, and for a password with a NUL.
    """
    salt = stable_salt(password) if salt is None else salt
    if not _SALT.fullmatch(salt):
        raise ValueError(f"'{salt}' is not a salt: write 1 to 16 letters, digits, '.' and '/'")
    if "\0" in password:
        raise ValueError("a password can't hold a NUL character")
    return f"$6${salt}${_encoded(_digest(password.encode(), salt.encode()))}"


def stable_salt(password: str) -> str:
    """A salt nobody else can foresee (it needs the user's secret key), that is the same at the next build.

    A random one would change every rendered kickstart, and with it the layer that caches its installation.
    """
    digest = hmac.digest(_key(), password.encode(), "sha256")
    return "".join(_LETTERS[byte & 63] for byte in digest[:16])


def _key() -> bytes:
    """The user's secret key: made once, complete or not at all, readable by nobody else."""
    path = paths.cache_directory() / "salt.key"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            aside = path.with_name(f"salt.key.{os.getpid()}.{secrets.token_hex(4)}.tmp")
            with process.temporary_path(aside):
                descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(secrets.token_bytes(32))
                with contextlib.suppress(FileExistsError):
                    path.hardlink_to(aside)
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"can't keep the key for salts in '{path}': {error.strerror}") from error


def _digest(key: bytes, salt: bytes) -> bytes:
    """The digest after all rounds; the numbers in comments are the specification's steps."""
    other = hashlib.sha512(key + salt + key).digest()  # 4-8
    mixed = hashlib.sha512(key + salt + _repeated(other, len(key)))  # 1-3, 9-10
    count = len(key)
    while count:  # 11
        mixed.update(other if count & 1 else key)
        count >>= 1
    digest = mixed.digest()  # 12
    p = _repeated(hashlib.sha512(key * len(key)).digest(), len(key))  # 13-16
    s = _repeated(hashlib.sha512(salt * (16 + digest[0])).digest(), len(salt))  # 17-20
    for number in range(_ROUNDS):  # 21
        odd = number & 1
        text = (p if odd else digest) + (s if number % 3 else b"") + (p if number % 7 else b"") + (digest if odd else p)
        digest = hashlib.sha512(text).digest()
    return digest


def _repeated(block: bytes, length: int) -> bytes:
    return (block * (length // len(block) + 1))[:length]


def _encoded(digest: bytes) -> str:
    """Three bytes in four letters, in the order of step 22."""
    text, (a, b, c) = "", (0, 21, 42)
    for _ in range(21):
        text += _letters(digest[a] << 16 | digest[b] << 8 | digest[c], 4)
        a, b, c = b + 1, c + 1, a + 1
    return text + _letters(digest[63], 2)


def _letters(value: int, count: int) -> str:
    return "".join(_LETTERS[value >> 6 * place & 63] for place in range(count))
