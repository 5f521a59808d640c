"""The start: live models, checkpoints, then the journal behind them, through the very engine.

Nothing is decided again and nothing is published: alerts were decided, and put in the outbox, in the commit
that made their readings durable. A switch of models saves both generations of checkpoints in one
transaction with it, so the journal behind a checkpoint was always scored by the model that is live now.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

from gruard.daemon.core.batcher import MOST_READINGS, waves
from gruard.daemon.core.engine import BASELINE, DeviceRow
from gruard.daemon.core.events import EnrolDue, Event
from gruard.daemon.core.flags import REPLAYED, sequence_of
from gruard.daemon.edges import failpoints
from gruard.daemon.enrolment import chunks, enrol
from gruard.daemon.records import Reading

if TYPE_CHECKING:
    from collections.abc import Callable

    from gruard.daemon.core.engine import Engine
    from gruard.daemon.edges.database import Database
    from gruard.daemon.edges.rows import StoredReading
    from gruard.daemon.rounds import Rounds

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
    replayed = _replay(engine, database, {name: row.lsn for name, row in saved.items()}, heartbeat)
    rounds.resume()
    failpoints.reach("recover.after")
    return replayed


def _replay(engine: Engine, database: Database, lsns: dict[str, int], heartbeat: Callable[[], None]) -> int:
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
