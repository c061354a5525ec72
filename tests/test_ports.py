from __future__ import annotations

import socket

import pytest

from imagebuilder.errors import ImgbuildError
from imagebuilder.qemu import ports


def test_a_kept_port_is_nobody_elses_but_can_be_bound() -> None:
    with ports.reserved() as port:
        with socket.socket() as stranger, pytest.raises(OSError):
            stranger.bind(("127.0.0.1", port))
        with socket.socket() as program:
            program.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as QEMU's listening sockets do
            program.bind(("127.0.0.1", port))
            program.listen()
            with socket.create_connection(("127.0.0.1", port), 5):
                pass


def test_two_kept_ports_differ() -> None:
    with ports.reserved() as first, ports.reserved(first, first + 20) as second:
        assert first < second <= first + 20


def test_a_range_includes_both_ends_and_can_be_exhausted() -> None:
    with (
        ports.reserved() as port,
        pytest.raises(ImgbuildError, match=f"no port from {port} to {port}"),
        ports.reserved(port, port),
    ):
        raise AssertionError
    with ports.reserved(port, port) as again:
        assert again == port


def test_an_error_in_the_block_passes_through() -> None:
    with pytest.raises(ZeroDivisionError), ports.reserved():
        raise ZeroDivisionError
    with pytest.raises(ConnectionResetError), ports.reserved():
        raise ConnectionResetError
