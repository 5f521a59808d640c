"""Messages to systemd: readiness, status, watchdog (sd_notify(3), spoken over its datagram socket).

Without NOTIFY_SOCKET in the environment, outside systemd that is, every call does nothing. A failed send
is no reason to stop scoring, so nothing here raises.
"""

from __future__ import annotations

import contextlib
import os
import socket
import weakref
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


class Notifier:
    """Speaks to the service manager named in `environ`.

    `watchdog_interval_s` says how often `watchdog` is to be called: a third of the manager's limit, or
    None when no watchdog waits for this process.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._address = _socket_address(environ.get("NOTIFY_SOCKET", ""))
        # Kept for good: when visitors hold every descriptor, the watchdog must still hear of us.
        self._datagrams = None
        if self._address is not None:
            with contextlib.suppress(OSError):
                self._datagrams = _datagram_socket()
        if self._datagrams is not None:
            weakref.finalize(self, self._datagrams.close)
        self.watchdog_interval_s = _watchdog_interval_s(environ)

    def starting(self, seconds: float) -> None:
        """Say that start-up moves, and within how many seconds the next word comes (EXTEND_TIMEOUT_USEC)."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def ready(self, status: str) -> None:
        """Say that start-up is over, and what `systemctl status` shows from now on."""
        self._send(f"READY=1\nSTATUS={_one_line(status)}")

    def status(self, text: str) -> None:
        """Change what `systemctl status` shows."""
        self._send(f"STATUS={_one_line(text)}")

    def watchdog(self) -> None:
        """Say that the pipeline moves. Call it from the loop that does the work, never from a timer."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """Say that a clean stop has begun."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if self._address is None or self._datagrams is None:
            return
        # Not connected: each message finds a manager that was restarted under the same name.
        with contextlib.suppress(OSError):
            self._datagrams.sendto(message.encode("utf-8", "replace"), self._address)


def _datagram_socket() -> socket.socket:
    datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    datagrams.setblocking(False)
    return datagrams


def _socket_address(named: str) -> str | None:
    if named.startswith("@"):
        return "\0" + named[1:]
    return named if named.startswith("/") else None


def _watchdog_interval_s(environ: Mapping[str, str]) -> float | None:
    # Both variables are inherited by children: a watchdog that waits for another process is not ours.
    if environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        third_s = int(environ.get("WATCHDOG_USEC", "0")) / 3e6
    except (ValueError, OverflowError):
        return None
    return third_s if third_s > 0 else None


def _one_line(text: str) -> str:
    # A newline would begin another assignment.
    return " ".join(text.split())
