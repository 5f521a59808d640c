"""The HTTP server: what it serves, what it refuses, and that no client can take it away from others."""

from __future__ import annotations

import http.client
import logging
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from gruard.daemon.edges import http as edge
from gruard.daemon.edges.http import MAX_CONNECTIONS, MAX_REQUEST_BYTES, HttpServer, Response
from gruard.daemon.errors import ListenError

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = b"gruard_ready 1\n" * 100


def broken() -> Response:
    raise ValueError("a bug in a route")


def impossible() -> Response:
    return Response(999, "text/plain", b"")


@pytest.fixture
def server() -> Iterator[HttpServer]:
    server = HttpServer(
        "127.0.0.1",
        0,
        {
            "/metrics": lambda: Response(200, "text/plain; version=0.0.4; charset=utf-8", PAGE),
            "/readyz": lambda: Response(503, "application/json", b'{"ready": false}'),
            "/broken": broken,
            "/impossible": impossible,
        },
    )
    server.start()
    yield server
    server.stop(5.0)


def fetch(
    server: HttpServer, path: str, method: str = "GET", body: bytes | None = None
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path, body=body)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def send_raw(server: HttpServer, sent: bytes) -> bytes:
    """Everything the server answers to these bytes; b"" when it just closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        try:
            client.sendall(sent)
            client.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: client.recv(65_536), b""))
        except OSError:
            return b""


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def test_get_returns_the_route_s_answer(server: HttpServer) -> None:
    """Status, content type and body are the route's own, and the connection closes after them."""
    response, body = fetch(server, "/metrics")
    assert (response.status, body) == (200, PAGE)
    assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert response.headers["Content-Length"] == str(len(PAGE))
    assert response.headers["Connection"] == "close"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


def test_route_chooses_the_status(server: HttpServer) -> None:
    """A readiness route that answers 503 is passed on with its body."""
    response, body = fetch(server, "/readyz")
    assert (response.status, body) == (503, b'{"ready": false}')


def test_query_is_ignored(server: HttpServer) -> None:
    """A query string does not turn a known path into an unknown one."""
    response, body = fetch(server, "/metrics?x=y&name[]=z?")
    assert (response.status, body) == (200, PAGE)


def test_head_has_the_head_of_get_and_no_body(server: HttpServer) -> None:
    """HEAD tells the length of the page without sending it."""
    response, body = fetch(server, "/metrics", "HEAD")
    assert (response.status, body) == (200, b"")
    assert response.headers["Content-Length"] == str(len(PAGE))
    assert send_raw(server, b"HEAD /nowhere HTTP/1.1\r\n\r\n").endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "path", ["/", "/metrics/", "/Metrics", "//metrics", "/../metrics", "/%6detrics", "*"]
)
def test_unknown_path_is_404(server: HttpServer, path: str) -> None:
    """Paths are compared as they are: nothing is decoded, folded or resolved."""
    response, body = fetch(server, path)
    assert (response.status, body) == (404, b"Not Found\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_other_methods_are_405(server: HttpServer, method: str) -> None:
    """Whatever is neither GET nor HEAD is refused by name, even with a body that nobody reads."""
    response, _ = fetch(server, "/metrics", method, body=b"x" * 100_000)
    assert response.status == 405
    assert response.headers["Allow"] == "GET, HEAD"


def test_refusal_reaches_a_client_that_still_sends(server: HttpServer) -> None:
    """A body that follows its refused head is read away, not met with a reset of the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 3000\r\n\r\n")
        for _ in range(3):
            time.sleep(0.02)
            client.sendall(b"x" * 1000)
        assert status_of(client.recv(65_536)) == 405


@pytest.mark.parametrize("path", ["/broken", "/impossible"])
def test_route_that_raises_is_500_and_logged(
    server: HttpServer, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug in a route costs one answer: plain text without the error's own words, and a log line."""
    with caplog.at_level(logging.ERROR):
        response, body = fetch(server, path)
    assert (response.status, body) == (500, b"Internal Server Error\n")
    assert f"The HTTP route {path} failed" in caplog.text
    assert fetch(server, "/metrics")[0].status == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"", 400),
        (b"\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET /metrics\r\n\r\n", 400),
        (b"get /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/9.9\r\n\r\n", 400),
        (b"GET  /metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1 \r\n\r\n", 400),
        (b"GET /met\xffrics HTTP/1.1\r\n\r\n", 400),
        (b"GET /met\x00rics HTTP/1.1\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n", 400),
        (b"GET /metrics HTTP/1.1", 400),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n", 400),
        (b"GET /" + b"a" * (2 * MAX_REQUEST_BYTES), 414),
        (b"GET / HTTP/1.1\r\nCookie: " + b"a" * (2 * MAX_REQUEST_BYTES), 431),
        (b"GET /metrics HTTP/1.0\n\n", 200),
        (b"GET /metrics HTTP/1.1\r\n\xff\xfe: nonsense\r\n\r\n", 200),
        (b"GET /metrics HTTP/1.1\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n", 200),
    ],
)
def test_raw_bytes_get_one_honest_answer(server: HttpServer, sent: bytes, status: int) -> None:
    """Broken, oversized and foreign requests are each answered once, with the status that fits."""
    answer = send_raw(server, sent)
    assert status_of(answer) == status
    assert answer.count(b"HTTP/1.1 ") == 1


def test_random_bytes_never_stop_the_server(server: HttpServer) -> None:
    """After five hundred random requests, long and short, the page is still served."""
    chance = random.Random(7)
    for _ in range(500):
        sent = chance.choice([b"", b"GET ", b"GET /metrics HTTP/1.1\r\n"]) + chance.randbytes(
            chance.randrange(200)
        )
        answer = send_raw(server, sent)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    assert fetch(server, "/metrics")[1] == PAGE


def test_request_in_pieces_is_served(server: HttpServer) -> None:
    """A request that arrives in several segments is still one request."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        for piece in (b"GET /met", b"rics HTTP/1.1\r", b"\nHost: x\r\n", b"\r\n"):
            client.sendall(piece)
            time.sleep(0.02)
        assert client.recv(20).startswith(b"HTTP/1.1 200 OK")


def test_request_byte_by_byte_is_cut_off(server: HttpServer) -> None:
    """A client that dribbles is answered 408 after a bounded number of bytes instead of being waited for."""
    answer = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"GET /metrics HTTP/1.1\r\nHost: a.very.patient.client\r\n\r\n":
            try:
                client.sendall(bytes([byte]))
            except ConnectionError:
                break
            time.sleep(0.02)
        answer = client.recv(100)
    assert status_of(answer) == 408


def test_silent_clients_do_not_keep_others_out(server: HttpServer) -> None:
    """More silent connections than there are places, and the page is still served within seconds."""
    silent = [
        socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(MAX_CONNECTIONS + 4)
    ]
    try:
        assert fetch(server, "/metrics")[1] == PAGE
    finally:
        for client in silent:
            client.close()


def test_slow_readers_do_not_keep_others_out() -> None:
    """Clients that never read a large answer lose their place to one that does."""
    large = b"x" * 20_000_000
    server = HttpServer("127.0.0.1", 0, {"/": lambda: Response(200, "text/plain", large)})
    server.start()
    slow = []
    try:
        for _ in range(MAX_CONNECTIONS + 1):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            slow.append(client)
        assert status_of(send_raw(server, b"HEAD / HTTP/1.1\r\n\r\n")) == 200
    finally:
        for client in slow:
            client.close()
        server.stop(5.0)


def test_two_hundred_parallel_clients_are_all_served(server: HttpServer) -> None:
    """A burst far beyond the number of places waits its turn and loses nobody."""
    with ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(lambda _: fetch(server, "/metrics")[1], range(200)))
    assert answers == [PAGE] * 200


def test_connections_served_at_once_are_bounded() -> None:
    """However many clients come, no more routes run at once than there are places."""
    running = most = 0
    lock = threading.Lock()

    def route() -> Response:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return Response(200, "text/plain", b"")

    server = HttpServer("127.0.0.1", 0, {"/": route})
    server.start()
    try:
        with ThreadPoolExecutor(100) as pool:
            answers = list(pool.map(lambda _: fetch(server, "/")[0].status, range(100)))
    finally:
        server.stop(5.0)
    assert answers == [200] * 100
    assert 1 < most <= MAX_CONNECTIONS


def test_routes_that_hang_do_not_take_every_place_for_ever() -> None:
    """With every place held by a route that hangs, newcomers are turned away; after it, all is well."""
    release = threading.Event()

    def hang() -> Response:
        release.wait(30)
        return Response(200, "text/plain", b"")

    server = HttpServer("127.0.0.1", 0, {"/hang": hang, "/": lambda: Response(200, "text/plain", b"ok")})
    server.start()
    clients = []
    try:
        for _ in range(MAX_CONNECTIONS):
            client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
            client.sendall(b"GET /hang HTTP/1.1\r\n\r\n")
            clients.append(client)
        time.sleep(0.2)
        assert send_raw(server, b"GET / HTTP/1.1\r\n\r\n") == b""
        release.set()
        assert fetch(server, "/")[1] == b"ok"
    finally:
        release.set()
        for client in clients:
            client.close()
        server.stop(5.0)


def test_stop_ends_at_once_with_clients_connected(server: HttpServer) -> None:
    """Stopping cuts open connections, frees the port and is harmless when repeated."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        client.sendall(b"GET /met")
        time.sleep(0.1)
        started = time.monotonic()
        server.stop(5.0)
        assert time.monotonic() - started < 4
        assert client.recv(10) == b""
    server.stop(5.0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=1)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("gruard-http")]


def test_stop_before_start_does_nothing() -> None:
    """A server that never started has nothing to stop."""
    HttpServer("127.0.0.1", 0, {}).stop(1.0)


def test_address_in_use_is_said_in_a_sentence(server: HttpServer) -> None:
    """A second daemon on the same port fails with an error that names the address."""
    second = HttpServer("127.0.0.1", server.port, {})
    with pytest.raises(ListenError, match=rf"127\.0\.0\.1:{server.port}: Address already in use\."):
        second.start()


@pytest.mark.parametrize(("host", "port"), [("192.0.2.1", 0), ("127.0.0.1", 70_000), ("no.such.invalid", 0)])
def test_address_that_is_not_ours_is_said_in_a_sentence(host: str, port: int) -> None:
    """Foreign addresses, impossible ports and unknown names are errors of ours, not tracebacks."""
    with pytest.raises(ListenError, match=r"Cannot listen for HTTP on .*\.$"):
        HttpServer(host, port, {}).start()


def test_port_is_free_again_right_after_stop(server: HttpServer) -> None:
    """A restart does not wait for the closed connections of the run before."""
    fetch(server, "/metrics")
    server.stop(5.0)
    again = HttpServer("127.0.0.1", server.port, {})
    again.start()
    again.stop(5.0)


def test_ipv6_address_is_served() -> None:
    """A host with colons is an IPv6 address."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    server = HttpServer("::1", 0, {"/": lambda: Response(200, "text/plain", b"six")})
    server.start()
    try:
        with socket.create_connection(("::1", server.port), timeout=10) as client:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert client.recv(1000).endswith(b"six")
    finally:
        server.stop(5.0)


def test_lack_of_threads_loses_no_place(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system gives no more threads, connections are dropped, and served again afterwards."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(edge.threading.Thread, "start", refuse)
        for _ in range(MAX_CONNECTIONS + 1):
            assert send_raw(server, b"GET /metrics HTTP/1.1\r\n\r\n") == b""
    assert fetch(server, "/metrics")[1] == PAGE
