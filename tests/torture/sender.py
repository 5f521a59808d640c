"""A publisher that loses nothing and hides nothing: MQTT 3.1.1 at QoS 1, written out byte by byte.

A client library would queue, resend and renumber by its own rules. Here the rule is one sentence: what has
no PUBACK when a connection ends is sent again, in order, at the head of the next one, and the truth is told.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Self

from support_mqtt import HOST
from torture.truth import size_of, topic_of

if TYPE_CHECKING:
    from torture.truth import Truth

#: Readings without a PUBACK at a time.
WINDOW = 200
_CONNECT, _CONNACK, _PUBLISH_QOS1, _PUBACK, _DISCONNECT = 0x10, 0x20, 0x32, 0x40, 0xE0
#: Seconds that the broker may take for anything; then the connection counts as dead.
_PATIENCE_S = 10.0
_PACKET_IDS = 65_535


class Sender:
    """Publishes a fleet's readings, device after device in turn, at a steady rate until it is stopped.

    `begun`: messages of each place that were sent before and are not sent again.
    """

    def __init__(self, port: int, truth: Truth, rate: float, *, begun: int = 0, host: str = HOST) -> None:
        self.rate = rate  # readings per second; may be changed while it runs
        self._address = (host, port)
        self._truth = truth
        self._socket: socket.socket | None = None
        self._buffer = b""
        self._packet_id = 0
        self._open: OrderedDict[int, tuple[str, int]] = OrderedDict()  # packet id -> device, first reading
        self._again: list[tuple[str, int]] = []  # of an ended connection, oldest first
        self._made = [0] * truth.fleet.places  # readings made at each place so far
        self._turn = 0
        for _ in range(begun * len(self._made)):  # these the daemon has from before
            reading = self._take()
            truth.sent(*reading)
            truth.acknowledged(*reading)
        self._running = threading.Event()
        self._stopping = threading.Event()
        self._idle = threading.Event()  # nothing is open and nothing is to be sent again
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="torture-sender")

    def __enter__(self) -> Self:
        self._running.set()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(2 * _PATIENCE_S)

    def pause(self) -> None:
        """Send nothing new; what is open is still brought to its end."""
        self._running.clear()
        self._idle.clear()

    def resume(self) -> None:
        """Go on."""
        self._running.set()

    def drain(self, timeout_s: float = 60.0) -> bool:
        """Pause, and wait until the broker has acknowledged everything; whether it did in time."""
        self.pause()
        done = self._idle.wait(timeout_s)
        if self.error is not None:
            raise self.error
        return done

    def send_each(self, count: int, timeout_s: float = 60.0) -> bool:
        """Go on until every place has sent `count` readings in all, then drain; whether that came in time."""
        self.resume()
        deadline_s = time.monotonic() + timeout_s
        while min(self._made) < count:
            if self.error is not None or time.monotonic() > deadline_s:
                return False
            time.sleep(0.01)
        return self.drain(timeout_s)

    def _run(self) -> None:
        try:
            self._send_until_stopped()
        except BaseException as error:  # noqa: BLE001 - shown by whoever waits for us
            self.error = error
            self._idle.set()
        finally:
            self._hang_up()

    def _send_until_stopped(self) -> None:
        room, looked_s = 0.0, time.monotonic()
        while not self._stopping.is_set():
            try:
                if self._socket is None:
                    self._connect()
                now = time.monotonic()
                # After an outage the rate goes on as it was: a flood is a test of its own.
                room, looked_s = min(room + (now - looked_s) * self.rate, 0.05 * self.rate + 1), now
                if self._running.is_set():
                    due: list[tuple[str, int]] = []
                    while room >= 1.0 and len(self._open) + len(due) < WINDOW:
                        due.append(self._take())
                        room -= size_of(due[-1][0])
                    self._publish(due)
                elif not self._open and not self._again:
                    self._idle.set()
                self._read(0.004)
            except OSError:
                self._again = [*self._open.values(), *self._again]
                self._open.clear()
                self._hang_up()
                self._stopping.wait(0.05)

    def _take(self) -> tuple[str, int]:
        place = self._turn % len(self._made)
        self._turn += 1
        device, n = self._truth.fleet.device(place, self._made[place])
        self._made[place] += size_of(device)
        return device, n

    def _connect(self) -> None:
        link = socket.create_connection(self._address, _PATIENCE_S)
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._buffer = link, b""
        body = _text("MQTT") + b"\x04\x02\x00\x00" + _text("torture-sender")  # clean session, no keepalive
        link.sendall(_packet(_CONNECT, body))
        answer = link.recv(4)
        if answer[:1] != bytes([_CONNACK]) or answer[-1:] != b"\0":
            raise ConnectionError(f"the broker answered {answer!r}")
        again, self._again = self._again, []
        self._publish(again)

    def _publish(self, readings: list[tuple[str, int]]) -> None:
        """Put readings on the wire. Noted before: a broken send may have carried any number of them."""
        data = []
        for device, n in readings:
            self._packet_id = self._packet_id % _PACKET_IDS + 1
            self._open[self._packet_id] = device, n
            self._truth.sent(device, n)
            body = _text(topic_of(device)) + self._packet_id.to_bytes(2, "big")
            data.append(_packet(_PUBLISH_QOS1, body + self._truth.fleet.payload(device, n)))
        if data and self._socket is not None:
            self._socket.sendall(b"".join(data))

    def _read(self, wait_s: float) -> None:
        link = self._socket
        if link is None or not select.select([link], [], [], wait_s)[0]:
            return
        data = link.recv(65_536)
        if not data:
            raise ConnectionError("the broker closed the connection")
        self._buffer += data
        while len(self._buffer) >= 4:  # nothing but PUBACKs comes, and those of 3.1.1 have four bytes
            head, self._buffer = self._buffer[:4], self._buffer[4:]
            if head[0] != _PUBACK:
                raise ConnectionError(f"the broker sent {head!r}")
            reading = self._open.pop(int.from_bytes(head[2:], "big"), None)
            if reading is not None:
                self._truth.acknowledged(*reading)

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _text(text: str) -> bytes:
    return len(text).to_bytes(2, "big") + text.encode()


def _packet(kind: int, body: bytes) -> bytes:
    length, head = len(body), bytearray([kind])
    while True:
        length, low = length >> 7, length & 0x7F
        head.append(low | (0x80 if length else 0))
        if not length:
            return bytes(head) + body
