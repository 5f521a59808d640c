"""Whatever others do to the HTTP port, a scraper that behaves gets every page, and the server stays small."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

from gruard.daemon.edges.http import MAX_CONNECTIONS, MAX_WAITING, HttpServer, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.alone

PAGE = b'gruard_device_score_ratio{device="pump-1"} 0.25\n' * 4000  # of five hundred devices, say
SCRAPES = 10
PATIENCE_S = 10.0  # how long Prometheus waits when nobody tells it otherwise


@pytest.fixture
def server() -> Iterator[HttpServer]:
    server = HttpServer("127.0.0.1", 0, {"/metrics": lambda: Response(200, "text/plain", PAGE)})
    server.start()
    yield server
    server.stop(5.0)


def scrape(port: int) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
    try:
        connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip", "User-Agent": "Prometheus"})
        response = connection.getresponse()
        assert response.status == 200
        return response.read()
    finally:
        connection.close()


def open_sockets() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Attack:
    """Does the same to a port again and again, on some threads, holding the last so many connections open."""

    def __init__(
        self, port: int, act: Callable[[socket.socket], object], hold: int, threads: int = 2
    ) -> None:
        self._port, self._act, self._hold = port, act, hold
        self._over = threading.Event()
        self.connections = 0
        self._threads = [threading.Thread(target=self._run, name="attack") for _ in range(threads)]

    def _run(self) -> None:
        held: list[socket.socket] = []
        while not self._over.is_set():
            client = socket.socket()
            client.settimeout(0.05)
            held.append(client)
            with contextlib.suppress(OSError):
                client.connect(("127.0.0.1", self._port))
                self._act(client)
                self.connections += 1
            if len(held) > self._hold:
                held.pop(0).close()
        for client in held:
            client.close()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        time.sleep(0.5)
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()


def ask_and_never_read(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")


def dribble(client: socket.socket) -> None:
    for byte in b"GET /":
        client.sendall(bytes([byte]))


def flood(client: socket.socket) -> None:
    client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
    while client.recv(65_536):
        pass


ATTACKS: dict[str, tuple[Callable[[socket.socket], object], int, int]] = {
    "scrape flood": (flood, 0, 8),
    "silence": (lambda _: None, 300, 2),
    "one byte and silence": (lambda client: client.sendall(b"G"), 300, 2),
    "dribbling": (dribble, 300, 2),
    "readers that do not read": (ask_and_never_read, 300, 2),
    "no HTTP": (lambda client: client.sendall(b"\x16\x03\x01\x02\0\x01" * 20), 10, 2),
    "endless heads": (lambda client: client.sendall(b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 10_000), 10, 2),
    "coming and going": (lambda client: client.close(), 0, 2),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_scraper_is_served_whatever_others_do(server: HttpServer, name: str) -> None:
    """Under each attack every scrape is answered in time, whole, and threads stay few."""
    act, hold, threads = ATTACKS[name]
    most_threads = 0
    with Attack(server.port, act, hold, threads) as attack:
        for _ in range(SCRAPES):
            assert scrape(server.port) == PAGE
            routes = [t for t in threading.enumerate() if t.name.startswith("gruard-http")]
            most_threads = max(most_threads, len(routes))
    assert attack.connections > SCRAPES
    assert most_threads <= MAX_CONNECTIONS + 1
    assert scrape(server.port) == PAGE


def test_ten_thousand_connections_are_held_to_a_few(server: HttpServer) -> None:
    """Of ten thousand clients that say nothing the newest few hundred are kept, and pages are served."""
    before = open_sockets()
    clients: list[socket.socket] = []
    most = 0
    try:
        for number in range(10_000):
            with contextlib.suppress(OSError):
                client = socket.create_connection(("127.0.0.1", server.port), timeout=1)
                clients.append(client)
            if len(clients) > 400:
                clients.pop(0).close()
            if number % 500 == 499:
                assert scrape(server.port) == PAGE
                most = max(most, open_sockets() - before - len(clients))
    finally:
        for client in clients:
            client.close()
    assert most <= 2 * MAX_WAITING


def test_answers_nobody_reads_do_not_pile_up(server: HttpServer) -> None:
    """Hundreds of clients that ask and do not read leave no more answers in memory than there are places."""
    clients = []
    try:
        for _ in range(20 * MAX_CONNECTIONS):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=5)
            clients.append(client)
            with contextlib.suppress(OSError):
                ask_and_never_read(client)
        assert server._server is not None
        assert len(server._server.reading) <= MAX_CONNECTIONS
        assert scrape(server.port) == PAGE
    finally:
        for client in clients:
            client.close()
