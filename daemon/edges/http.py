"""A small HTTP server for metrics, health, the API and the status page: GET and HEAD, nothing else.

The answers need no header of the request, so none is parsed: the request line decides and the rest is
only read to its end. Each limit holds whatever a client sends: connections at once, bytes of a request,
receives a request may be spread over, seconds of each. One answer a connection (RFC 9112 section 9.6).
"""

from __future__ import annotations

import contextlib
import http
import logging
import re
import socket
import socketserver
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gruard.daemon.errors import ListenError

#: Connections served at once; more wait in the kernel's queue.
MAX_CONNECTIONS = 16
#: How long a new connection waits for a place before it takes that of the oldest one.
PLACE_WAIT_S = 0.25
#: A request line and its headers; browsers send about 1 KiB.
MAX_REQUEST_BYTES = 8192
#: A request arrives in one receive, or two; a client that sends byte by byte is cut off after this many.
MAX_RECEIVES = 16
#: Each receive, and the whole of the answer, may take this long.
IO_TIMEOUT_S = 2.0
#: A refused client may still be sending: closing at once would meet it with a reset, not an answer.
MAX_DRAIN_RECEIVES = 16
DRAIN_TIMEOUT_S = 0.2

_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) ([\x21-\x7e]+) HTTP/1\.[01]")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Response:
    """One answer: status code, content type and body."""

    status: int
    content_type: str
    body: bytes


Route = Callable[[], Response]


class _BadRequestError(Exception):
    """What the client sent is no request; carries the status of the answer."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class HttpServer:
    """Serves `routes` (path -> function that makes the answer) on threads of its own.

    A route runs on the thread of its connection: what it reads must be safe to read from there. One that
    raises is answered with 500 and logged. Port 0 asks the system for a free one.
    """

    def __init__(self, host: str, port: int, routes: Mapping[str, Route]) -> None:
        self._host = host
        self._port = port
        self._routes = routes
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def port(self) -> int:
        """The port: once started, the real one."""
        return self._port

    @property
    def alive(self) -> bool:
        """Whether the thread that accepts connections runs."""
        return self._thread is not None and self._thread.is_alive()

    def revive(self) -> None:
        """Accept connections on a new thread, in place of one that has died."""
        if self._server is not None:
            self._serve_on_thread(self._server)

    def start(self) -> None:
        """Listen and serve; raises ListenError when the address cannot be had."""
        try:
            self._server = _Server(self._host, self._port, self._routes)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ListenError(f"Cannot listen for HTTP on {self._host}:{self._port}: {reason}.") from error
        self._port = self._server.server_address[1]
        self._serve_on_thread(self._server)

    def _serve_on_thread(self, server: _Server) -> None:
        self._thread = threading.Thread(
            target=server.serve_forever, args=(0.1,), name="gruard-http", daemon=True
        )
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Stop listening and cut every connection; wait at most `timeout` seconds for running routes."""
        if self._server is None or self._thread is None:
            return
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout)
        if not self._server.cut_all(timeout):
            _log.warning("HTTP connections were still being answered after %g s", timeout)
        self._server = None


class _Connection(socketserver.BaseRequestHandler):
    """Reads one request, sends one answer."""

    request: socket.socket
    server: _Server

    def handle(self) -> None:
        self.request.settimeout(IO_TIMEOUT_S)
        # A client that goes away, or is cut off to make room, is no event: OSError ends it in silence.
        with contextlib.suppress(OSError):
            try:
                answer = self.server.answer(*self._receive())
            except _BadRequestError as error:
                answer = _encode(_plain(error.status))
            self.request.sendall(answer)
            self._drain()

    def _receive(self) -> tuple[str, str]:
        received = b""
        for _ in range(MAX_RECEIVES):
            chunk = self.request.recv(MAX_REQUEST_BYTES)
            if not chunk:
                raise _BadRequestError(400)
            received += chunk
            if b"\r\n\r\n" in received or b"\n\n" in received:
                return _parse_request_line(received)
            if len(received) > MAX_REQUEST_BYTES:
                raise _BadRequestError(431 if b"\n" in received else 414)
        raise _BadRequestError(408)

    def _drain(self) -> None:
        self.request.shutdown(socket.SHUT_WR)
        self.request.settimeout(DRAIN_TIMEOUT_S)
        for _ in range(MAX_DRAIN_RECEIVES):
            if not self.request.recv(65_536):
                return


class _Server(socketserver.TCPServer):
    """Accepts connections and gives each a thread, never more than MAX_CONNECTIONS at once."""

    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, routes: Mapping[str, Route]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._routes = routes
        self._open: dict[socket.socket, None] = {}  # in the order of arrival
        self._changed = threading.Condition()
        super().__init__((host, port), _Connection)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            # Out of file descriptors, say. The pending connection keeps the listening socket readable,
            # so returning at once would spin.
            threading.Event().wait(0.1)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._changed:
            if not self._changed.wait_for(self._has_place, PLACE_WAIT_S):
                self._cut_oldest()
                if not self._changed.wait_for(self._has_place, PLACE_WAIT_S):
                    self.shutdown_request(request)
                    return
            self._open[request] = None
        thread = threading.Thread(
            target=self._serve, args=(request, client_address), name="gruard-http-connection", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:  # no thread to be had: the place must not be lost with it
            self._release(request)
            raise

    def _has_place(self) -> bool:
        return len(self._open) < MAX_CONNECTIONS

    def _cut_oldest(self) -> None:
        oldest = next(iter(self._open))
        _cut(oldest)
        # To the back: should its route never return, the next one to be cut is another.
        self._open[oldest] = self._open.pop(oldest)

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        finally:
            self._release(request)

    def _release(self, request: socket.socket) -> None:
        with self._changed:
            del self._open[request]
            self.shutdown_request(request)
            self._changed.notify_all()

    def answer(self, method: str, path: str) -> bytes:
        """Return the whole answer to a request: head and, unless the method is HEAD, body."""
        with_body = method != "HEAD"
        if method not in {"GET", "HEAD"}:
            return _encode(_plain(405))
        route = self._routes.get(path)
        if route is None:
            return _encode(_plain(404), with_body=with_body)
        try:
            return _encode(route(), with_body=with_body)
        except Exception:  # noqa: BLE001 -- whatever a route raises costs one answer, never the server
            _log.exception("The HTTP route %s failed", path)
            return _encode(_plain(500), with_body=with_body)

    def cut_all(self, timeout: float) -> bool:
        """Cut every connection and say whether all threads ended within `timeout` seconds."""
        with self._changed:
            for request in self._open:
                _cut(request)
            return self._changed.wait_for(lambda: not self._open, timeout)

    def handle_error(self, *_: Any) -> None:
        _log.exception("An HTTP connection could not be taken")


def _cut(request: socket.socket) -> None:
    """End a connection from another thread: its blocked receive or send returns at once."""
    with contextlib.suppress(OSError):
        request.shutdown(socket.SHUT_RDWR)


def _parse_request_line(received: bytes) -> tuple[str, str]:
    line = received.split(b"\n", 1)[0].removesuffix(b"\r")
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise _BadRequestError(400)
    method, target = match[1].decode("ascii"), match[2].decode("ascii")
    return method, target.partition("?")[0]


def _plain(status: int) -> Response:
    return Response(status, "text/plain; charset=utf-8", f"{http.HTTPStatus(status).phrase}\n".encode())


def _encode(response: Response, *, with_body: bool = True) -> bytes:
    phrase = http.HTTPStatus(response.status).phrase
    lines = [
        f"HTTP/1.1 {response.status} {phrase}",
        f"Content-Type: {response.content_type}",
        f"Content-Length: {len(response.body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    if response.status == http.HTTPStatus.METHOD_NOT_ALLOWED:
        lines.append("Allow: GET, HEAD")
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    return head + response.body if with_body else head
