"""Which messages were taken before: tells a redelivery from a new message. No I/O.

A broker sends what it has no acknowledgement for again, flagged DUP, under the same packet id
[MQTT 5, 4.4 and 3.3.1.1]. So a DUP message whose topic and payload are those last taken under its packet id
is a redelivery. Ids are used again: a broker that counts them through comes to the same one after 65,535
messages, so an entry that is nearly that old speaks of an earlier message and counts for nothing.

A broker that crashed may send under other ids than before; only a sequence or an event time in the payload
covers that.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from gruard.daemon.records import Delivery

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gruard.daemon.records import Message

#: Packet ids are 1 to 65,535 [MQTT 5, 2.2.1].
PACKET_IDS = 65_536
#: An older entry speaks of an earlier round of the ids. The rest is room for what is in flight.
MOST_AGE = 60_000


class Deliveries:
    """The newest message taken under each packet id of the session: 1 MB at most."""

    def __init__(self, known: Iterable[Delivery] = ()) -> None:
        self._ordinals = np.zeros(PACKET_IDS, np.int64)  # from 1; 0: none
        self._digests = np.zeros(PACKET_IDS, np.uint64)
        self._missing: dict[int, tuple[int, ...]] = {}
        self._session = 0
        self._next = 1
        for delivery in known:
            self.note(delivery)

    def judge(self, message: Message) -> tuple[Delivery, bool]:
        """What to note of a QoS 1 message, and whether it was taken before.

        Of one that was, `missing` tells which of its readings were not applied. Changes nothing.
        """
        # No topic holds a NUL [MQTT 5, 4.7.3].
        sent = b"\0".join((message.topic.encode("utf-8", "surrogatepass"), message.payload))
        digest = hashlib.blake2b(sent, digest_size=8).digest()
        packet_id = message.packet_id
        if message.duplicate:
            ordinal = int(self._ordinals[packet_id])
            known = self._digests[packet_id] == int.from_bytes(digest, "little")
            if ordinal and known and self._next - ordinal <= MOST_AGE:
                return Delivery(packet_id, ordinal, digest, self._missing.get(packet_id, ())), True
        return Delivery(packet_id, self._next, digest), False

    def note(self, delivery: Delivery) -> None:
        """Remember a message as taken."""
        packet_id = delivery.packet_id
        self._ordinals[packet_id] = delivery.ordinal
        self._digests[packet_id] = int.from_bytes(delivery.digest, "little")
        self._next = max(self._next, delivery.ordinal + 1)
        if delivery.missing:
            self._missing[packet_id] = delivery.missing
        else:
            self._missing.pop(packet_id, None)

    def forgotten(self, session: int) -> bool:
        """Whether the broker has begun another session since the message before: ids begin anew."""
        if session == self._session:
            return False
        self._session = session
        self._ordinals[:] = 0  # all else is looked at only where there is one
        return True
