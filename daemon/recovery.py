"""The start: live models, checkpoints, then the journal behind them, through the very engine.

Nothing is decided again and nothing is published: alerts were decided, and put in the outbox, in the commit
that made their readings durable. A switch of models saves both generations of checkpoints in one
transaction with it, so the journal behind a checkpoint was always scored by the model that is live now.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import TYPE_CHECKING

import msgspec

from gruard.daemon.core.batcher import MOST_READINGS, waves
from gruard.daemon.core.engine import BASELINE, DeviceRow
from gruard.daemon.core.events import EnrolDue, Event
from gruard.daemon.core.flags import REPLAYED, sequence_of
from gruard.daemon.edges import failpoints
from gruard.daemon.edges.history import HIGHEST_LSN
from gruard.daemon.enrolment import chunks, enrol
from gruard.daemon.records import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gruard.daemon.core.engine import Engine
    from gruard.daemon.core.words import Word
    from gruard.daemon.edges.database import Database
    from gruard.daemon.edges.rows import StoredReading
    from gruard.daemon.rounds import Rounds

#: Open alerts looked through: more than there are devices.
MOST_OPEN = 10_000_000

log = logging.getLogger(__name__)


def recover(engine: Engine, database: Database, rounds: Rounds, heartbeat: Callable[[], None]) -> int:
    """Bring the engine to where the journal ends. Returns the readings replayed."""
    failpoints.reach("recover.before")
    rounds.restore(database.live_models())
    saved = {row.device: row for row in database.checkpoints()}
    due = engine.restore(
        DeviceRow(r.device, r.source, r.fields, r.layout, r.model or BASELINE, r.state)
        for r in saved.values()
    )
    for asked in due:
        enrol(engine, database, [asked], heartbeat, saved[asked.device].lsn + 1)
    lsns = {name: row.lsn for name, row in saved.items()}
    heard = Unheard(engine, database.words(), lsns)
    replayed = _replay(engine, database, lsns, heard, heartbeat)
    heard.finish()
    engine.drifting(_open_drifts(database))
    rounds.resume()
    failpoints.reach("recover.after")
    return replayed


def _open_drifts(database: Database) -> dict[str, tuple[str, float]]:
    """Open alerts of slow drift, which no reading raised: device -> id and since when."""
    return {
        row.device: (row.id, row.opened_s)
        for row in database.alerts(MOST_OPEN, open_only=True)
        if msgspec.json.decode(row.payload).get("kind") == "drift"
    }


class Unheard:
    """Words that operators said after the checkpoints: each is heard where it was said, between two readings.

    A word as old as its device's checkpoint may be in it or not; the device knows. What was said before the
    first reading of a device that has no checkpoint was said of another one, which had its name before.
    """

    def __init__(self, engine: Engine, words: Iterable[Word], lsns: dict[str, int]) -> None:
        self._engine = engine
        self._waiting: dict[str, deque[Word]] = {}
        self._newest = 0
        for word in words:
            self._newest = word.id
            if word.lsn >= lsns.get(word.device, 0):
                self._waiting.setdefault(word.device, deque()).append(word)

    def before(self, device: str, lsn: int) -> None:
        """Let a device hear what was said before its reading `lsn`."""
        waiting = self._waiting.get(device)
        while waiting and waiting[0].lsn < lsn:
            word = waiting.popleft()
            self._engine.hear(word.id, device, word.change)

    def finish(self) -> None:
        """Let all devices hear what was said last."""
        for device in list(self._waiting):
            self.before(device, HIGHEST_LSN + 1)
        told = (device.heard for device in self._engine.devices.values())
        self._engine.heard = max(self._newest, *told, 0)


def _replay(
    engine: Engine,
    database: Database,
    lsns: dict[str, int],
    unheard: Unheard,
    heartbeat: Callable[[], None],
) -> int:
    """Run the rows behind each device's checkpoint (device -> lsn) through the engine again."""
    sources = {source.name for source in engine.options.sources}
    replayed = 0
    for batch in chunks(database.readings_after(database.recovery_start()), MOST_READINGS):
        heartbeat()
        rows = {}  # id of a reading -> its row in the journal
        for stored in batch:
            if stored.source in sources and stored.lsn > lsns.get(stored.device, 0):
                reading = reading_of(stored)
                rows[id(reading)] = stored, reading
        for wave in waves(reading for _, reading in rows.values()):
            here = {reading.device: rows[id(reading)][0] for reading in wave}
            due: list[Event] = []
            for behind in here.values():
                unheard.before(behind.device, behind.lsn)
                due += engine.place(behind.device, behind.source, behind.fields)
            for event in due + engine.receive(wave):
                if isinstance(event, EnrolDue):
                    enrol(engine, database, [event], heartbeat, here[event.device].lsn + 1)
            replayed += len(wave)
        failpoints.reach("recover.replayed")
    return replayed


def reading_of(stored: StoredReading) -> Reading:
    """A journalled reading as it was let in: its fields are known to be the device's."""
    values = zip(stored.fields, stored.values.tolist(), strict=True)
    seen = {name: value for name, value in values if not math.isnan(value)}
    return Reading(
        stored.device,
        stored.source,
        stored.time_s,
        stored.received_s,
        seen,
        growing=True,
        sequence=sequence_of(stored.flags),
        replayed=bool(stored.flags & REPLAYED),
        admitted=True,
    )
