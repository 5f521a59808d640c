"""A small HTTP server for metrics, health, the API and the status page: GET and HEAD, nothing else.

The answers need no header of the request, so none is parsed: the request line decides and the rest is
only read to its end. One answer a connection (RFC 9112 section 9.6).

One thread holds all connections and gives none of them more than a little memory and time, so neither
thousands of silent ones nor readers that do not read keep a scraper out: a request that is there is always
taken before the place of its connection is given away. Routes run on threads of their own, a few at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import http
import logging
import re
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from gruard.daemon.errors import ListenError

#: Routes that run at once, and answers that are on their way at once; a further answer takes the place of
#: the oldest whose client does not read.
MAX_CONNECTIONS = 16
#: Connections that have not asked yet, requests that wait for a route's turn, and connections that have their
#: answer. A further one takes the place of the oldest, only a further request is turned away.
MAX_WAITING = 256
#: A request line and its headers; browsers send about 1 KiB.
MAX_REQUEST_BYTES = 8192
#: A request arrives in one receive, or two; a client that sends byte by byte is cut off after this many.
MAX_RECEIVES = 16
#: A connection has this long to ask, and again as long to read its answer.
IO_TIMEOUT_S = 2.0
#: A request is turned away when its turn has not come and its route not ended by then: Prometheus waits 10 s.
TURN_TIMEOUT_S = 5.0
#: A refused client may still be sending: closing at once would meet it with a reset, not an answer.
MAX_DRAIN_RECEIVES = 16
DRAIN_TIMEOUT_S = 0.2

# Accepted at a time. The next look at what the connections sent comes before MAX_WAITING are accepted.
_ACCEPTED = 64
_BACKLOG = 512  # connections that the kernel holds for us
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

    A route runs on a thread of its own: what it reads must be safe to read from there. One that raises is
    answered with 500 and logged. Port 0 asks the system for a free one.
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
        """Whether the thread that holds the connections runs."""
        return self._thread is not None and self._thread.is_alive()

    def revive(self) -> None:
        """Go on with a new thread, in place of one that has died."""
        if self._server is not None:
            self._serve_on_thread(self._server)

    def start(self) -> None:
        """Listen and serve; raises ListenError when the address cannot be had."""
        try:
            listening = _listen(self._host, self._port)
        except (OSError, OverflowError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise ListenError(f"Cannot listen for HTTP on {self._host}:{self._port}: {reason}.") from error
        self._port = listening.getsockname()[1]
        self._server = _Server(listening, self._routes)
        self._serve_on_thread(self._server)

    def _serve_on_thread(self, server: _Server) -> None:
        self._thread = threading.Thread(target=server.run, name="gruard-http", daemon=True)
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Stop listening and cut every connection; wait at most `timeout` seconds for running routes."""
        if self._server is None or self._thread is None:
            return
        self._server.stop(self._thread, timeout)
        if not self._server.routes_ended(timeout):
            _log.warning("HTTP routes were still running after %g s", timeout)
        self._server = None


class _Server:
    """All connections of a listening socket, on one event loop."""

    def __init__(self, listening: socket.socket, routes: Mapping[str, Route]) -> None:
        self._routes = routes
        self.asking: dict[_Connection, None] = {}  # silent or half through a request, the oldest first
        self.reading: dict[_Connection, None] = {}  # with an answer on its way, the oldest first
        self.leaving: dict[_Connection, None] = {}  # with all of it, the oldest first
        self._turns: deque[tuple[_Connection, str, str]] = deque()  # requests that wait for a route's turn
        self._running = 0
        self._ended = threading.Condition()
        self.loop = asyncio.new_event_loop()
        self.loop.set_exception_handler(_tell)
        serving = self.loop.create_server(lambda: _Connection(self), sock=listening, backlog=_ACCEPTED)
        self._listener = self.loop.run_until_complete(serving)
        listening.listen(_BACKLOG)

    def run(self) -> None:
        """Serve until `shutdown`; may be called again."""
        self.loop.run_forever()

    def shutdown(self) -> None:
        """Let `run` return."""
        self.loop.call_soon_threadsafe(self.loop.stop)

    def stop(self, thread: threading.Thread, timeout: float) -> None:
        """Cut everything and end the thread."""
        if thread.is_alive():
            self.shutdown()
            thread.join(timeout)
        if thread.is_alive():
            return
        self._turns.clear()
        self._listener.close()
        # Turns of the loop in which what was accepted last arrives, and what is cut is closed.
        for _ in range(4):
            for connection in (*self.asking, *self.reading, *self.leaving):
                connection.cut()
            self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    def routes_ended(self, timeout: float) -> bool:
        """Wait for the routes that run."""
        with self._ended:
            return self._ended.wait_for(lambda: not self._running, timeout)

    def ask(self, connection: _Connection, method: str, path: str) -> None:
        """Give a request its turn, now or later."""
        if len(self._turns) >= MAX_WAITING:
            connection.cut()
            return
        self._turns.append((connection, method, path))
        self._next_turn()

    def read(self, connection: _Connection) -> None:
        """Give a connection a place to read its answer; one that does not read loses it first."""
        if len(self.reading) >= MAX_CONNECTIONS:
            standing = (other for other in self.reading if other.stands_still())
            next(standing, next(iter(self.reading))).cut()
        self.reading[connection] = None

    def _next_turn(self) -> None:
        while self._turns and self._running < MAX_CONNECTIONS:
            connection, method, path = self._turns.popleft()
            if connection.is_cut:
                continue
            with self._ended:
                self._running += 1
            work = threading.Thread(
                target=self._work, args=(connection, method, path), name="gruard-http-route", daemon=True
            )
            try:
                work.start()
            except RuntimeError:  # no thread to be had: the place must not be lost with it
                self._leave()
                connection.cut()

    def _work(self, connection: _Connection, method: str, path: str) -> None:
        answer = b""
        try:
            answer = self._answer(method, path)
        finally:
            self._leave()
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                self.loop.call_soon_threadsafe(self._answered, connection, answer)

    def _leave(self) -> None:
        with self._ended:
            self._running -= 1
            self._ended.notify_all()

    def _answered(self, connection: _Connection, answer: bytes) -> None:
        connection.answer(answer)
        self._next_turn()

    def _answer(self, method: str, path: str) -> bytes:
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


class _Connection(asyncio.Protocol):
    """Reads one request, sends one answer, and reads away what else the client sends."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self._received = b""
        self._receives_left = MAX_RECEIVES
        self._is_ended = False  # the client sends no more
        self._is_sent = False  # the answer
        self._unread = 0  # bytes of it, when somebody last looked
        self.is_cut = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        asking = self._server.asking
        asking[self] = None
        if len(asking) > MAX_WAITING:
            next(iter(asking)).cut()
        self._timer = self._server.loop.call_later(IO_TIMEOUT_S, self.cut)

    def data_received(self, data: bytes) -> None:
        self._receives_left -= 1
        if self not in self._server.asking:
            # Behind the request: a body that nobody wants.
            if self._receives_left < 0:
                self.cut()
            return
        self._received += data
        try:
            request = _request(self._received, is_last=not self._receives_left)
        except _BadRequestError as error:
            self._asked()
            self.answer(_encode(_plain(error.status)))
        else:
            if request is not None:
                self._asked()
                self._server.ask(self, *request)

    def eof_received(self) -> bool:
        self._is_ended = True
        if self in self._server.asking:
            self._asked()
            self.answer(_encode(_plain(400)))
        return not self._is_sent  # a client that sends no more may still read

    def answer(self, answer: bytes) -> None:
        """Send the answer, if the client is still there."""
        if self.is_cut:
            return
        self._server.read(self)
        self._restart(IO_TIMEOUT_S)
        self._transport.set_write_buffer_limits(high=0)
        self._transport.write(answer)
        try:
            self._transport.write_eof()
        except OSError:  # the client is gone, which is no event
            self.cut()
        else:
            if not self._transport.get_write_buffer_size():
                self.resume_writing()

    def stands_still(self) -> bool:
        """Whether the client has read nothing since this was last asked."""
        before, self._unread = self._unread, self._transport.get_write_buffer_size()
        return self._unread == before

    def resume_writing(self) -> None:
        """See the client go, now that the kernel has all of the answer."""
        self._is_sent = True
        self._server.reading.pop(self, None)
        leaving = self._server.leaving
        leaving[self] = None
        if len(leaving) > MAX_WAITING:
            next(iter(leaving)).cut()
        self._restart(0.0 if self._is_ended else DRAIN_TIMEOUT_S)

    def cut(self) -> None:
        """End the connection at once."""
        self.connection_lost(None)  # its place is free now, and not only in the next turn of the loop
        self._transport.abort()

    def connection_lost(self, _: Exception | None) -> None:
        self.is_cut = True
        self._timer.cancel()
        for group in (self._server.asking, self._server.reading, self._server.leaving):
            group.pop(self, None)

    def _asked(self) -> None:
        del self._server.asking[self]
        self._received = b""
        self._receives_left = MAX_DRAIN_RECEIVES
        self._restart(TURN_TIMEOUT_S)

    def _restart(self, seconds: float) -> None:
        self._timer.cancel()
        self._timer = self._server.loop.call_later(seconds, self.cut)


def _listen(host: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
    except BaseException:
        listening.close()
        raise
    return listening


def _tell(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    _log.warning("An HTTP connection failed: %s", context["message"], exc_info=context.get("exception"))


def _request(received: bytes, *, is_last: bool) -> tuple[str, str] | None:
    """Method and path once the head of the request is complete; `is_last`: nothing more is waited for."""
    head = received[:MAX_REQUEST_BYTES]
    if b"\r\n\r\n" in head or b"\n\n" in head:
        return _parse_request_line(head)
    if len(received) > MAX_REQUEST_BYTES:
        raise _BadRequestError(431 if b"\n" in head else 414)
    if is_last:
        raise _BadRequestError(408)
    return None


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
