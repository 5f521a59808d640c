"""Messages to systemd, over real datagram sockets."""

from __future__ import annotations

import os
import secrets
import socket
from typing import TYPE_CHECKING

import pytest

from gruard.daemon.edges.notify import Notifier

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket such as systemd's and the NOTIFY_SOCKET that names it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@gruard-test-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0" + name[1:] if name.startswith("@") else name)
        receiver.settimeout(5)
        yield receiver, name


def test_life_of_a_service_is_told(systemd: tuple[socket.socket, str]) -> None:
    """Ready, status, watchdog and stopping arrive as the assignments that systemd reads."""
    receiver, name = systemd
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.starting(1.5)
    notifier.ready("12 devices")
    notifier.status("12 devices, 1 alert")
    notifier.watchdog()
    notifier.stopping()
    assert [receiver.recv(1000) for _ in range(5)] == [
        b"EXTEND_TIMEOUT_USEC=1500000",
        b"READY=1\nSTATUS=12 devices",
        b"STATUS=12 devices, 1 alert",
        b"WATCHDOG=1",
        b"STOPPING=1",
    ]


def test_status_cannot_smuggle_an_assignment(systemd: tuple[socket.socket, str]) -> None:
    """Newlines in a status become spaces, and characters that no encoding has do not raise."""
    receiver, name = systemd
    Notifier({"NOTIFY_SOCKET": name}).status("one\nSTOPPING=1\r\ntwo \ud800")
    assert receiver.recv(1000) == b"STATUS=one STOPPING=1 two ?"


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "vsock:2:1234"},
        {"NOTIFY_SOCKET": "/no/such/socket"},
        {"NOTIFY_SOCKET": "/" + "x" * 500},
        {"NOTIFY_SOCKET": "@gruard-nobody-listens"},
    ],
)
def test_missing_manager_is_no_error(environ: dict[str, str]) -> None:
    """Outside systemd, or when its socket is gone, every call returns in silence."""
    notifier = Notifier(environ)
    notifier.ready("up")
    notifier.status("up")
    notifier.watchdog()
    notifier.stopping()


def test_full_socket_does_not_block(systemd: tuple[socket.socket, str]) -> None:
    """A manager that does not read costs messages, not time."""
    receiver, name = systemd
    notifier = Notifier({"NOTIFY_SOCKET": name})
    for _ in range(2000):
        notifier.watchdog()
    assert receiver.recv(1000) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("environ", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 10.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getppid())}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-3"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "9" * 400}, None),
    ],
)
def test_watchdog_interval_is_a_third_of_the_limit(environ: dict[str, str], interval_s: float | None) -> None:
    """The interval follows systemd's limit, and only when the watchdog waits for this very process."""
    assert Notifier(environ).watchdog_interval_s == interval_s
