"""A TCP port of 127.0.0.1 that is kept for a program which binds it later, without a race."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

from imagebuilder.errors import ImgbuildError


@contextlib.contextmanager
def reserved(minimum: int = 0, maximum: int = 0) -> Iterator[int]:
    """A free port, of the range (both ends included) when one is given; kept until the block ends.

    The socket is bound but doesn't listen: with SO_REUSEADDR on both sides (QEMU sets it) Linux lets the program bind
    beside it, and gives the port to nobody who doesn't name it. Raises ImgbuildError when the range is exhausted.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for port in range(minimum, maximum + 1) if maximum else (0,):
            if not _taken(port) and _bound(keeper, port):
                yield keeper.getsockname()[1]
                return
    raise ImgbuildError(f"no port from {minimum} to {maximum} is free on 127.0.0.1", hint="widen the range")


def _bound(keeper: socket.socket, port: int) -> bool:
    try:
        keeper.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


def _taken(port: int) -> bool:
    """Whether anybody holds the port, listening or not: without SO_REUSEADDR a bind finds out."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
