"""Links that break: a relay on the loopback, and a cable of two virtual network cards."""

from __future__ import annotations

import os
import random
import select
import shutil
import socket
import subprocess
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Self

import pytest
from support_mqtt import HOST

if TYPE_CHECKING:
    from collections.abc import Iterable


class Relay:
    """Passes bytes between clients and a port, late or not at all, in order.

    `delay_s` holds back every chunk; `loss` is the share of chunks that come 0.2 to 0.6 s later still, which
    is what a lost segment looks like behind TCP. While `hold` is set nothing passes, and nobody is told.
    """

    def __init__(self, target: int, *, delay_s: float = 0.0, loss: float = 0.0, seed: int = 0) -> None:
        self.hold = threading.Event()
        self._target, self._delay_s, self._loss = target, delay_s, loss
        self._rng = random.Random(seed)
        self._over = threading.Event()
        self._server = socket.create_server((HOST, 0))
        self.port = int(self._server.getsockname()[1])
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._server.accept()
                server = socket.create_connection((HOST, self._target))
                self._open += [client, server]
                for source, sink in ((client, server), (server, client)):
                    thread = threading.Thread(target=self._pass, args=(source, sink), daemon=True)
                    self._threads.append(thread)
                    thread.start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        waiting: list[tuple[float, bytes]] = []  # when to pass on, what
        with suppress(OSError):
            while not self._over.is_set():
                ready, _, _ = select.select([source], [], [], 0.01)
                if ready:
                    chunk = source.recv(65_536)
                    late_s = self._delay_s
                    if self._rng.random() < self._loss:
                        late_s += self._rng.uniform(0.2, 0.6)
                    waiting.append((time.monotonic() + late_s, chunk))
                while waiting and waiting[0][0] <= time.monotonic() and not self.hold.is_set():
                    _, chunk = waiting.pop(0)
                    if not chunk:
                        sink.shutdown(socket.SHUT_RDWR)
                        return
                    sink.sendall(chunk)
                if waiting and not waiting[-1][1]:
                    self._over.wait(0.01)  # the source has ended, and select would return at once

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for thread in self._threads:
            thread.join(10)
        for sock in self._open:
            sock.close()


class Cable:
    """Two virtual network cards with a network namespace at the far end; needs root.

    Run commands at the far end with `far_end` in front of them.
    """

    near, far = "10.213.7.1", "10.213.7.2"

    def __init__(self) -> None:
        if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("nsenter") is None:
            pytest.skip("needs root and the commands ip and nsenter, to make network cards")
        self._card, self._far_card = f"gv{os.getpid()}a", f"gv{os.getpid()}b"

    @property
    def far_end(self) -> list[str]:
        return ["nsenter", "-t", str(self._holder.pid), "-n"]

    def unplug(self) -> None:
        """Take the card down: the kernel knows that there is no way."""
        self._ip("link", "set", self._card, "down")

    def plug(self) -> None:
        self._ip("link", "set", self._card, "up")

    def swallow(self) -> None:
        """Let every packet, either way, vanish without a word to anybody."""
        for other, card, within in self._ways():
            self._ip("neigh", "replace", other, "lladdr", _NOBODY, "dev", card, *_PERMANENT, within=within)

    def deliver(self) -> None:
        for other, card, within in self._ways():
            self._ip("neigh", "del", other, "dev", card, within=within)

    def _ways(self) -> list[tuple[str, str, list[str]]]:
        return [(self.far, self._card, []), (self.near, self._far_card, self.far_end)]

    def _ip(self, *arguments: str, within: Iterable[str] = ()) -> None:
        subprocess.run([*within, "ip", *arguments], check=True, capture_output=True, timeout=10)

    def __enter__(self) -> Self:
        self._holder = subprocess.Popen(["unshare", "-n", "sleep", "600"])
        try:
            time.sleep(0.2)
            peer = ("type", "veth", "peer", "name", self._far_card, "netns", str(self._holder.pid))
            self._ip("link", "add", self._card, *peer)
            self._ip("addr", "add", f"{self.near}/30", "dev", self._card)
            self._ip("addr", "add", f"{self.far}/30", "dev", self._far_card, within=self.far_end)
            self._ip("link", "set", "lo", "up", within=self.far_end)
            self._ip("link", "set", self._far_card, "up", within=self.far_end)
            self.plug()
        except subprocess.CalledProcessError:
            self.__exit__()
            pytest.skip("may not make network cards here")
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["ip", "link", "del", self._card], check=False, capture_output=True, timeout=10)
        self._holder.kill()
        self._holder.wait(10)


_NOBODY = "02:00:00:00:00:99"
_PERMANENT = ("nud", "permanent")
