"""What the next commit makes durable together: readings, alert decisions, messages taken, alerts delivered.

    add(event), took(delivery, readings), delivered(seqs)      in memory, never fails
    write()                                                    into the database's open transaction
    commit()                                                   durable; only now may the broker forget

The state in memory runs ahead of the disk only by what stands here. A write that fails takes the whole
transaction back; nothing is lost by that, because everything still stands here and is written again.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gruard.daemon.core.events import Removed, Scored
from gruard.daemon.core.flags import flags_of
from gruard.daemon.core.words import Word
from gruard.daemon.edges import failpoints
from gruard.daemon.edges.place import Place
from gruard.daemon.edges.rows import AlertRow, StoredReading
from gruard.daemon.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from gruard.daemon.edges.database import Database
    from gruard.daemon.records import Delivery, Reading


@dataclass(frozen=True, slots=True)
class Told:
    """An alert decision: what is kept of it, and where it is published; nowhere when it is suppressed."""

    row: AlertRow
    topic: str | None


class Pending:
    """One group of facts on its way to the disk. Belongs to the worker thread."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._place = Place(database.path)
        self._facts: list[Scored | Told | Removed | Word] = []  # in the order in which they happened
        self._deliveries: list[tuple[Delivery, Sequence[Reading]]] = []
        self._delivered: set[int] = set()  # seqs of the outbox that the broker has taken
        self._session_lost = False
        self._also: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self._written = 0  # facts in the open transaction
        self.outbox = database.outbox_pending()  # events that wait for the broker

    @property
    def empty(self) -> bool:
        """Whether there is nothing to commit."""
        return not (self._facts or self._deliveries or self._delivered or self._session_lost or self._also)

    def add(self, fact: Scored | Told | Removed | Word) -> None:
        """Keep one fact."""
        self._facts.append(fact)
        if isinstance(fact, Told) and fact.topic is not None:
            self.outbox += 1

    def took(self, delivery: Delivery, readings: Sequence[Reading]) -> None:
        """Keep that a message was taken, and the readings it is fed as."""
        self._deliveries.append((delivery, readings))

    def forget_session(self) -> None:
        """Packet ids begin anew: what was taken under the old ones tells nothing any more."""
        self._session_lost = True
        self._deliveries.clear()

    def delivered(self, seqs: Iterable[int]) -> None:
        """Keep that the broker has taken events of the outbox."""
        fresh = set(seqs) - self._delivered
        self._delivered |= fresh
        self.outbox -= len(fresh)

    @property
    def is_written(self) -> bool:
        """Whether facts stand in the open transaction: readable, and not durable."""
        return self._written > 0

    @property
    def undone(self) -> int:
        """Events that still stand in the outbox and are done with."""
        return len(self._delivered)

    def is_delivered(self, seq: int) -> bool:
        """Whether an event that still stands in the outbox is done with."""
        return seq in self._delivered

    def also(self, write: Callable[[], None], then: Callable[[], None]) -> None:
        """Let `write` take part in the next commit, behind all facts, and `then` follow it.

        A commit that fails is tried again, so `write` may be called more than once; `then` is called once.
        """
        self._also.append((write, then))

    def write(self) -> None:
        """Bring the facts into the open transaction.

        Raises:
            StateError: the disk refuses; nothing of the group is in the database, all of it is here.
        """
        failpoints.reach("journal.before")
        with self.transaction():
            self._place.check()
            self._write_facts()
        failpoints.reach("journal.after")

    def commit(self, backlog: Collection[int] = ()) -> None:
        """Make everything durable. `backlog`: ids (`id()`) of readings that were fed and not scored yet.

        Raises:
            StateError: as `write`.
        """
        self.write()
        with self.transaction():
            if self._session_lost:
                self._database.forget_deliveries()
            if self._deliveries:
                self._database.note_deliveries([_noted(*taken, backlog) for taken in self._deliveries])
            if self._delivered:
                self._database.outbox_done(self._delivered)
            for write, _ in self._also:
                write()
            failpoints.reach("commit.before")
            self._database.commit()
        failpoints.reach("commit.after")
        self._facts.clear()
        self._written = 0
        self._delivered.clear()
        settled, self._also = self._also, []
        self._session_lost = False
        # A message of which a reading still waits is noted again once that is scored.
        self._deliveries = [
            taken for taken in self._deliveries if any(id(one) in backlog for one in taken[1])
        ]
        for _, then in settled:
            then()
        self._place.check()  # what went into a file without a name is not durable

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that writes to the database goes on in here: a write that fails takes the facts back too."""
        try:
            yield
        except StateError:
            self._written = 0
            raise

    def _write_facts(self) -> None:
        readings: list[StoredReading] = []
        for fact in self._facts[self._written :]:
            match fact:
                case Scored():
                    readings.append(_stored(self._database.next_lsn + len(readings), fact))
                case Told():
                    self._write_told(fact)
                case Word():
                    self._append(readings)
                    self._database.keep_word(fact)
                case _:  # Removed: what was journalled before it goes with the device
                    self._append(readings)
                    self._database.forget_device(fact.device)
        self._append(readings)
        self._written = len(self._facts)

    def _append(self, readings: list[StoredReading]) -> None:
        self._database.append(readings)
        readings.clear()

    def _write_told(self, told: Told) -> None:
        row = told.row
        if told.topic is not None:
            self._database.put_outbox(told.topic, row.payload.encode(), qos=1, retain=False, key=row.id)
        self._database.save_alert(row)


def _noted(delivery: Delivery, readings: Sequence[Reading], backlog: Collection[int]) -> Delivery:
    missing = tuple(n for n, reading in enumerate(readings) if id(reading) in backlog) if backlog else ()
    return replace(delivery, missing=missing) if missing else delivery


def _stored(lsn: int, scored: Scored) -> StoredReading:
    r = scored.reading
    return StoredReading(
        lsn,
        r.device,
        r.source,
        scored.fields,
        r.time_s,
        r.received_s,
        scored.values,
        scored.score,
        # What alarms only the baseline may be a part of normal not seen before: it teaches.
        flags_of(in_alarm=scored.alarm and scored.phase == "ready", replayed=r.replayed, sequence=r.sequence),
    )
