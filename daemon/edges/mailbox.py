"""What the network thread and the worker thread hand each other, behind one lock. No paho, no sockets.

Inbound: an inbox bounded in messages and in bytes. A QoS 0 message that does not fit is shed and counted. A
QoS 1 message is never dropped: from twice the bounds on the network thread stops reading (`paused`) until the
worker has taken some, and the broker keeps the rest. Outbound: acknowledgements and publishes in the order
they were given; at most `limit` QoS 1 publishes are open, because the queue that survives a crash is the
outbox on disk.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from gruard.daemon.records import Message

#: QoS 1 publishes without a PUBACK; also paho's own default, so that paho never queues.
MAX_IN_FLIGHT = 20
#: Payload bytes in the inbox, beyond which QoS 0 messages are shed.
CAPACITY_BYTES = 64 * 2**20
#: Publishes that wait for a slow socket before further QoS 0 ones are dropped.
MAX_WAITING = 1000


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One publish on its way out."""

    token: int
    topic: str
    payload: bytes
    qos: int
    retain: bool
    content_type: str | None
    schema: str | None


class Mailbox:
    """Thread-safe; `ring` wakes the network thread. Nothing here blocks but `take`."""

    def __init__(self, capacity: int, ring: Callable[[], None]) -> None:
        self.capacity = capacity
        self.shed = 0
        self.resting = False  # nothing more is to be read: the end is near
        self._ring = ring
        self._arrived = threading.Condition()  # also the lock of everything below
        self._inbox: deque[Message] = deque()
        self._inbox_bytes = 0
        self._outgoing: deque[Outgoing | Sequence[Message]] = deque()
        self._limit = 0  # QoS 1 publishes that may be open now; 0: not connected
        self._token = 0
        self._open: set[int] = set()
        self._confirmed: list[int] = []
        self._failed: list[int] = []

    def __len__(self) -> int:
        return len(self._inbox)

    @property
    def in_flight(self) -> int:
        """QoS 1 publishes that wait for their PUBACK."""
        return len(self._open)

    @property
    def paused(self) -> bool:
        """Whether the network thread must leave further messages with the broker."""
        full = len(self._inbox) >= 2 * self.capacity or self._inbox_bytes >= 2 * CAPACITY_BYTES
        return full or self.resting

    # worker thread

    def take(self, limit: int, timeout_s: float) -> list[Message]:
        """The oldest messages, up to `limit`; waits up to `timeout_s` for the first."""
        with self._arrived:
            self._arrived.wait_for(self.__len__, timeout_s)
            was_paused = self.paused
            taken = [self._inbox.popleft() for _ in range(min(limit, len(self._inbox)))]
            self._inbox_bytes -= sum(len(message.payload) for message in taken)
            resumed = was_paused and not self.paused
        if resumed:
            self._ring()
        return taken

    def acknowledge(self, messages: Sequence[Message]) -> None:
        """Queue acknowledgements."""
        if messages:
            with self._arrived:
                self._outgoing.append(tuple(messages))
            self._ring()

    def offer(
        self,
        topic: str,
        payload: bytes,
        qos: int,
        *,
        retain: bool,
        content_type: str | None,
        schema: str | None,
    ) -> int | None:
        """Queue a publish and return its token; None when not connected or too much is under way."""
        with self._arrived:
            if self._limit == 0 or len(self._outgoing) >= MAX_WAITING:
                return None
            if qos and len(self._open) >= self._limit:
                return None
            self._token += 1
            token = self._token
            if qos:
                self._open.add(token)
            self._outgoing.append(Outgoing(token, topic, payload, qos, retain, content_type, schema))
        self._ring()
        return token

    def confirmed(self) -> list[int]:
        """Tokens whose PUBACK came since the last call."""
        with self._arrived:
            tokens, self._confirmed = self._confirmed, []
        return tokens

    def failed(self) -> list[int]:
        """Tokens refused by the broker, or whose connection ended first, since the last call."""
        with self._arrived:
            tokens, self._failed = self._failed, []
        return tokens

    # network thread

    def open(self, limit: int) -> None:
        """A connection was accepted; `limit` QoS 1 publishes may be open on it."""
        with self._arrived:
            self._limit = min(limit, MAX_IN_FLIGHT)

    def close(self) -> None:
        """The connection ended: every open publish failed, and none is accepted until `open`."""
        with self._arrived:
            self._limit = 0
            self._failed.extend(sorted(self._open))
            self._open.clear()
            self._outgoing = deque(item for item in self._outgoing if not isinstance(item, Outgoing))

    def deliver(self, messages: Iterable[Message]) -> None:
        """Put messages into the inbox; those of QoS 0 are shed while it is full."""
        with self._arrived:
            for message in messages:
                full = len(self._inbox) >= self.capacity or self._inbox_bytes >= CAPACITY_BYTES
                if full and message.qos == 0:
                    self.shed += 1
                else:
                    self._inbox.append(message)
                    self._inbox_bytes += len(message.payload)
            self._arrived.notify()

    def next_outgoing(self) -> Outgoing | Sequence[Message] | None:
        """The oldest publish or group of acknowledgements."""
        with self._arrived:
            return self._outgoing.popleft() if self._outgoing else None

    def settle(self, token: int, *, accepted: bool) -> None:
        """The broker answered a QoS 1 publish."""
        with self._arrived:
            self._open.discard(token)
            (self._confirmed if accepted else self._failed).append(token)
