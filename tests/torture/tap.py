"""A wire tap between daemon and broker: what was delivered to the daemon, and what either side acknowledged.

Where the broker itself dies, its own memory goes with it, and only the wire can say whose loss a reading is.
"""

from __future__ import annotations

import socket
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from support_mqtt import HOST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CONNECT, _PUBLISH, _PUBACK = 1, 3, 4
_MQTT_5 = 5


@dataclass(slots=True)
class Wire:
    """One direction's open QoS 1 messages of one connection, and the protocol they are spoken in."""

    level: int = 4
    open: dict[int, tuple[str, bytes]] = field(default_factory=dict)  # packet id -> topic, payload


class Tap:
    """A TCP proxy on a port of its own. Everything is kept until it is asked for."""

    def __init__(self, port: int) -> None:
        self._broker_port = port
        self._server = socket.create_server((HOST, 0))
        self.port = int(self._server.getsockname()[1])
        self._lock = threading.Lock()
        self._closing = False
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, name="torture-tap")]
        self.delivered: Counter[tuple[str, bytes]] = Counter()  # broker -> daemon: topic, payload
        self.acked: Counter[tuple[str, bytes]] = Counter()  # of those, PUBACKed by the daemon
        self.told: list[tuple[str, bytes]] = []  # topic, payload from the daemon that the broker PUBACKed

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing = True
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # close alone does not end a waiting accept
        self._server.close()
        for link in list(self._open):
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        for thread in list(self._threads):
            thread.join(10)

    def _accept(self) -> None:
        while not self._closing:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            try:
                far = socket.create_connection((HOST, self._broker_port), 2)
            except OSError:
                near.close()
                continue
            far.settimeout(None)
            inward, outward = Wire(), Wire()

            def from_broker(kind: int, flags: int, body: bytes, w: Wire = inward, o: Wire = outward) -> None:
                self._from_broker(kind, flags, body, w, o)

            def from_daemon(kind: int, flags: int, body: bytes, w: Wire = inward, o: Wire = outward) -> None:
                self._from_daemon(kind, flags, body, w, o)

            for source, sink, see in ((far, near, from_broker), (near, far, from_daemon)):
                source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._open.add(source)
                thread = threading.Thread(target=self._pump, args=(source, sink, see), name="torture-tap")
                self._threads.append(thread)
                thread.start()

    def _pump(
        self, source: socket.socket, sink: socket.socket, see: Callable[[int, int, bytes], None]
    ) -> None:
        buffer = b""
        with suppress(OSError):
            while data := source.recv(65_536):
                buffer += data
                seen, buffer = _split(buffer)
                # Noted first: what has gone out and was not noted would look like a lie of the daemon's.
                for kind, flags, body in seen:
                    see(kind, flags, body)
                sink.sendall(data)
        # A broken connection on one side is one on the other.
        for link in (source, sink):
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        self._open.discard(source)
        source.close()

    def _from_broker(self, kind: int, flags: int, body: bytes, inward: Wire, outward: Wire) -> None:
        with self._lock:
            if kind == _PUBLISH:
                topic, packet_id, payload = _published(body, flags, inward.level)
                self.delivered[topic, payload] += 1
                if packet_id:
                    inward.open[packet_id] = topic, payload
            elif kind == _PUBACK:
                told = outward.open.pop(int.from_bytes(body[:2], "big"), None)
                if told is not None:
                    self.told.append(told)

    def _from_daemon(self, kind: int, flags: int, body: bytes, inward: Wire, outward: Wire) -> None:
        with self._lock:
            if kind == _CONNECT:
                inward.level = outward.level = body[6]
            elif kind == _PUBLISH:
                topic, packet_id, payload = _published(body, flags, outward.level)
                if packet_id:
                    outward.open[packet_id] = topic, payload
            elif kind == _PUBACK:
                taken = inward.open.pop(int.from_bytes(body[:2], "big"), None)
                if taken is not None:
                    self.acked[taken] += 1


def _split(buffer: bytes) -> tuple[list[tuple[int, int, bytes]], bytes]:
    """Whole packets at the head of a buffer as (kind, flags, body), and the rest."""
    packets = list(_packets(buffer))
    used = sum(end for *_, end in packets)
    return [(kind, flags, body) for kind, flags, body, _ in packets], buffer[used:]


def _packets(buffer: bytes) -> Iterator[tuple[int, int, bytes, int]]:
    at = 0
    while at + 2 <= len(buffer):
        length, shift, head = 0, 0, at + 1
        while head < len(buffer):
            byte = buffer[head]
            length |= (byte & 0x7F) << shift
            shift, head = shift + 7, head + 1
            if not byte & 0x80:
                break
        else:
            return
        if head + length > len(buffer):
            return
        yield buffer[at] >> 4, buffer[at] & 0x0F, buffer[head : head + length], head + length - at
        at = head + length


def _published(body: bytes, flags: int, level: int) -> tuple[str, int, bytes]:
    """Topic, packet id (0 with QoS 0) and payload of a PUBLISH."""
    at = 2 + int.from_bytes(body[:2], "big")
    topic, packet_id = body[2:at].decode(), 0
    if flags & 0b0110:
        packet_id, at = int.from_bytes(body[at : at + 2], "big"), at + 2
    if level == _MQTT_5:
        length, shift = 0, 0
        while True:
            byte = body[at]
            length |= (byte & 0x7F) << shift
            shift, at = shift + 7, at + 1
            if not byte & 0x80:
                break
        at += length
    return topic, packet_id, body[at:]
