"""What a restored guest is told: what time it is now, and that others may wake up from the same state as it did.

Without the second, two guests restored from one layer draw the same random numbers. Kernels with a vmgenid driver
notice by themselves (Linux 5.18 with CONFIG_VMGENID; Debian 12's cloud kernel hasn't it). The others are made to
reseed: a seed is written to /dev/urandom, and ioctl RNDRESEEDCRNG (random(4), Linux 4.17) takes it into use.
"""

from __future__ import annotations

import secrets
import struct
import time

from imagebuilder.builders.asroot import as_root
from imagebuilder.plugins import Communicator
from imagebuilder.ui import Ui

_TIMEOUT = 60.0  # seconds
_SEED = 32  # bytes
_NO_CLOCK, _NO_SEED = 1, 2  # bits of what the script counts; its exit status is 10 more, so that it isn't sudo's

# exit(ioctl(0, RNDRESEEDCRNG, 0) != 0) for x86-64 Linux: no guest need have a tool for it.
_CODE = bytes.fromhex("31ff be07520000 31d2 b810000000 0f05 31ff 4885c0 400f95c7 b83c000000 0f05")
_BASE = 0x400000

_SCRIPT = """
failed=0
date -u -s "@$1" || date -u -s "@${1%.*}" || date -u -D %s -s "${1%.*}" || failed=1
printf "$2" > /dev/urandom
for folder in /run /tmp /root; do
  file=$folder/imgbuild-reseed-$$
  if (umask 077 && set -C && printf "$3" > "$file") && chmod 700 "$file" && "$file" < /dev/urandom; then
    rm -f "$file"
    exit $((10 + failed))
  fi
  rm -f "$file"
done
perl -e 'open(F, ">", "/dev/urandom") && defined(ioctl(F, 0x5207, 0)) or exit 1' && exit $((10 + failed))
exit $((12 + failed))
"""


def wake(communicator: Communicator, ui: Ui) -> None:
    """Set the clock, have the random pool reseeded; a guest where that fails is told of. GuestError: it is lost."""
    words = (f"{time.time():.3f}", _octal(secrets.token_bytes(_SEED)), _octal(program()))
    status = communicator.run(f"({as_root(_SCRIPT, *words)}) >/dev/null 2>&1", timeout=_TIMEOUT) or 0
    failed = status - 10 if status in range(10, 14) else _NO_CLOCK | _NO_SEED
    if failed & _NO_CLOCK:
        ui.warning("The guest's clock could not be set (that takes root, or sudo without a password)")
    if failed & _NO_SEED:
        ui.warning("The guest could not be made to reseed: another build restored from here may draw the same numbers")


def program() -> bytes:
    """An ELF-64 file that has the kernel reseed from its pool; its standard input is /dev/urandom."""
    size = 64 + 56 + len(_CODE)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, _BASE + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 0x1000) + _CODE


def _octal(data: bytes) -> str:
    """As the format of printf(1)."""
    return "".join(f"\\{byte:03o}" for byte in data)
