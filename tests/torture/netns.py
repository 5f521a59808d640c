"""A network namespace behind a cable that can be pulled: for a daemon that must notice a dead link.

Whatever a thread starts or asks `with namespace:` happens inside. Needs root, the `ip` command and a kernel
that allows both.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Self

_CLONE_NEWNET = 0x40000000
#: RFC 5737 keeps this network for documentation: nothing on a real one is shadowed.
OUTSIDE, INSIDE = "203.0.113.1", "203.0.113.2"
_NETWORK = "203.0.113."
_PREFIX = 30
_NOBODY = "02:00:00:00:00:99"  # a locally administered address that no interface has


def why_not() -> str:
    """Why a namespace cannot be had here; empty when it can."""
    if os.geteuid() != 0:
        return "needs root to make a network namespace"
    if shutil.which("ip") is None:
        return "needs the ip command (Debian package iproute2)"
    probe = f"torture-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode:
        return f"no network namespace can be made: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], check=False)
    taken = subprocess.run(
        ["ip", "route", "show", "table", "all"], capture_output=True, text=True, check=True
    )
    return f"the network {_NETWORK}0 is in use here" if _NETWORK in taken.stdout else ""


class Namespace:
    """One namespace and the cable to it: `OUTSIDE` here, `INSIDE` there."""

    def __init__(self) -> None:
        self._name = f"torture-{os.getpid()}"
        self._near, self._far = f"tt{os.getpid()}a"[-15:], f"tt{os.getpid()}b"[-15:]
        self._entered: list[ExitStack] = []

    def make(self) -> Self:
        """Make namespace and cable; `remove` takes both away."""
        _ip("netns", "add", self._name)
        _ip("link", "add", self._near, "type", "veth", "peer", "name", self._far, "netns", self._name)
        _ip("address", "add", f"{OUTSIDE}/{_PREFIX}", "dev", self._near)
        _ip("-n", self._name, "address", "add", f"{INSIDE}/{_PREFIX}", "dev", self._far)
        _ip("-n", self._name, "link", "set", "lo", "up")
        _ip("-n", self._name, "link", "set", self._far, "up")
        _ip("link", "set", self._near, "up")
        return self

    def remove(self) -> None:
        """Take away what `make` made."""
        subprocess.run(["ip", "link", "del", self._near], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "del", self._name], capture_output=True, check=False)

    def pull(self) -> None:
        """Take the cable out: nothing passes, and nobody is told."""
        _ip("link", "set", self._near, "down")

    def plug(self) -> None:
        """Put it back."""
        _ip("link", "set", self._near, "up")

    def deafen(self) -> None:
        """Let packets out of the namespace and none in: a half-open connection."""
        _ip("neighbour", "replace", INSIDE, "lladdr", _NOBODY, "dev", self._near, "nud", "permanent")

    def undeafen(self) -> None:
        """Let packets in again."""
        _ip("neighbour", "delete", INSIDE, "dev", self._near)

    def __enter__(self) -> Self:
        stack = ExitStack()
        here = os.open(f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net", os.O_RDONLY)
        stack.callback(os.close, here)
        stack.callback(_move_to, here)
        there = os.open(Path("/run/netns", self._name), os.O_RDONLY)
        try:
            _move_to(there)
        finally:
            os.close(there)
        self._entered.append(stack)
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.pop().close()


def _move_to(namespace: int) -> None:
    """Move the calling thread, and what it starts from now on, into a namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)
