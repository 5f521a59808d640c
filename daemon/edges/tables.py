"""Reading the tables beside the journal: checkpoints, deliveries, alerts, outbox, models, meta."""

from __future__ import annotations

import math
import sqlite3
from contextlib import contextmanager, suppress
from heapq import merge
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import msgspec

from gruard.daemon.core.words import Span, Word, spans
from gruard.daemon.edges.checksums import is_sound, read_deliveries, reading
from gruard.daemon.edges.packs import Fieldset, checkpoint_checksum, read_fieldset
from gruard.daemon.edges.rows import AlertRow, Checkpoint, ModelRow, OutboxRow
from gruard.daemon.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from gruard.daemon.records import Delivery

#: Checkpoints are written into two tables in turns: a damaged row has an older one behind it.
CHECKPOINTS: Final = ("checkpoints_0", "checkpoints_1")
GENERATIONS: Final = (0, 1)
#: The meta key of the lowest LSN that a salvaged database may give next.
LSN_FLOOR: Final = "lsn_floor"
_PAGE: Final = 256  # rows read at a time where no transaction is to be held open


#: Readings of a device on average from which on a model has seen enough to be an anchor.
MATURE_ROWS: Final = 2000


def is_mature(manifest: str) -> bool:
    """Whether a model, by its manifest (JSON), has seen enough to be what later ones are measured by."""
    known = msgspec.json.decode(manifest)
    return bool(known.get("rows", 0) >= MATURE_ROWS * max(len(known.get("devices", ())), 1))


class Generation(NamedTuple):
    """How far one of the two sets of checkpoints goes."""

    id: int
    lsn: int  # it covers every device up to here; 0: it holds nothing yet
    states: int  # so many devices have a row in it


class Tables:
    """A view of a database that another process may be writing. Belongs to one thread.

    Every method raises StateError if the file cannot be read. A damaged row is left out and counted.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self.skipped_rows = 0  # damaged rows and packs left out since opening
        self._connection = connection
        self._fieldsets: dict[int, Fieldset] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    # --- checkpoints ----------------------------------------------------------------------------------------

    def checkpoints(self) -> Iterator[Checkpoint]:
        """Of each device the newest sound checkpoint of the two generations."""
        both = merge(*map(self._states, GENERATIONS), key=itemgetter(0))
        for _, found in groupby(both, key=itemgetter(0)):
            yield max((checkpoint for _, checkpoint in found), key=attrgetter("lsn"))

    def older_generation(self) -> int:
        """The generation to save next: one that is not whole, or else the one that is behind."""
        newest, older = self._generations()
        return older.id if self._is_whole(newest) or not self._is_whole(older) else newest.id

    def recovery_start(self) -> int:
        """The LSN behind which the journal is to be replayed, so that nothing is missed.

        It is the newest generation's if every row of it is sound. Else a device may come back from its older
        row, and needs the journal behind that; others pass over what their row already covers.
        """
        newest, older = self._generations()
        return newest.lsn if self._is_whole(newest) else older.lsn

    def keep_from_lsn(self) -> int:
        """The first LSN that recovery may need, if it comes to the worst: `prune` must leave it."""
        return self._generations()[1].lsn + 1

    # --- deliveries, alerts, outbox, models, meta -----------------------------------------------------------

    def deliveries(self) -> Iterator[Delivery]:
        """The newest message noted under each packet id."""
        newest: dict[int, Delivery] = {}
        for count, body in self._each("SELECT count, body FROM deliveries ORDER BY seq"):
            rows = read_deliveries(body)
            newest.update((row.packet_id, row) for row in rows)
            self.skipped_rows += len(rows) != count
        yield from newest.values()

    def alerts(self, limit: int, *, open_only: bool = False) -> list[AlertRow]:
        """The newest alerts, newest first."""
        which = "WHERE resolved_s IS NULL OR NOT ? ORDER BY opened_s DESC, rowid DESC LIMIT ?"
        return [AlertRow(*row) for row in self._sealed("alerts", which, (open_only, limit))]

    def alert(self, identity: str) -> AlertRow | None:
        """The alert with this id."""
        return next((AlertRow(*row) for row in self._sealed("alerts", "WHERE id = ?", (identity,))), None)

    def alerts_of(self, device: str) -> list[AlertRow]:
        """All that is kept of a device's alerts, newest first."""
        which = "WHERE device = ? ORDER BY opened_s DESC, rowid DESC"
        return [AlertRow(*row) for row in self._sealed("alerts", which, (device,))]

    def words(self, after_lsn: int = -1) -> list[Word]:
        """What operators have said since the reading `after_lsn`, oldest first."""
        return [Word(*row) for row in self._sealed("feedback", "WHERE lsn > ? ORDER BY id", (after_lsn,))]

    def judged(self, before_lsn: int | None = None) -> dict[str, list[Span]]:
        """By device the readings that operators have judged, by what they said before a reading."""
        said = [word for word in self.words() if before_lsn is None or word.lsn < before_lsn]
        ends = {}
        for word in said:
            row = None if word.alert is None else self.alert(word.alert)
            if row is not None:
                ends[row.id] = math.inf if row.resolved_s is None else row.resolved_s
        return spans(said, ends)

    def outbox(self, limit: int) -> list[OutboxRow]:
        """What waits for the broker, in the order in which it was put."""
        return [
            OutboxRow(seq, topic, payload, qos, bool(retain), key)
            for seq, topic, payload, qos, retain, key in self._sealed(
                "outbox", "ORDER BY seq LIMIT ?", (limit,)
            )
        ]

    def outbox_pending(self) -> int:
        """How many messages wait for the broker."""
        return int(self._all("SELECT count(*) FROM outbox")[0][0])

    def models(self) -> list[ModelRow]:
        """The registry, oldest first."""
        return [ModelRow(*row) for row in self._sealed("models", "ORDER BY created_s, rowid")]

    def anchors(self) -> dict[str, str]:
        """The first model in charge of each group that had seen enough, or the first: group -> id."""
        used = [row for row in self.models() if row.activated_s is not None]
        mature = [row for row in used if is_mature(row.manifest)]
        return {row.group: row.id for row in (*reversed(used), *reversed(mature))}

    def live_models(self) -> list[ModelRow]:
        """The live model of each group."""
        return [row for row in self.models() if row.status == "live"]

    def meta(self, key: str) -> str | None:
        """The value kept under `key`."""
        for _, value in self._sealed("meta", "WHERE key = ?", (key,)):
            return str(value)
        return None

    def size_bytes(self) -> int:
        """What the database takes on the disk, its write-ahead log included."""
        sizes = 0
        for suffix in ("", "-wal"):
            try:
                sizes += self.path.with_name(self.path.name + suffix).stat().st_size
            except FileNotFoundError:  # the log is made by the first write
                continue
        return sizes

    # --- how it is done -------------------------------------------------------------------------------------

    def _states(self, generation: int) -> Iterator[tuple[int, Checkpoint]]:
        """Sound rows of one generation, by the device's id."""
        table = CHECKPOINTS[generation]
        sql = (
            "SELECT s.device, d.device, s.fieldset, s.lsn, s.layout, s.model, s.state, s.checksum"  # noqa: S608
            f" FROM {table} AS s JOIN devices AS d ON d.id = s.device"
            " WHERE s.device > ? AND d.device IS NOT NULL ORDER BY s.device LIMIT ?"
        )
        last = 0
        while rows := self._all(sql, (last, _PAGE)):
            for identity, device, fieldset_id, *rest, checksum in rows:
                fieldset = self._fieldset(fieldset_id)
                if fieldset and checkpoint_checksum(generation, device, fieldset, *rest) == checksum:
                    yield identity, Checkpoint(device, fieldset.source, fieldset.fields, *rest)
                else:
                    self.skipped_rows += 1
            last = self._advanced(last, rows[-1][0])

    def _generations(self) -> tuple[Generation, Generation]:
        """Newest and older.

        One whose entry is damaged goes at least as far as its newest row, and counts as not whole.
        """
        known = {row[0]: Generation(*row) for row in self._sealed("generations")}
        for number in GENERATIONS:
            if number not in known:
                lsn = max((checkpoint.lsn for _, checkpoint in self._states(number)), default=0)
                known[number] = Generation(number, lsn, -1)
        older, newest = sorted(known.values(), key=attrgetter("lsn"))
        return newest, older

    def _is_whole(self, generation: Generation) -> bool:
        """Whether every row of a generation is there and sound."""
        return generation.states == sum(1 for _ in self._states(generation.id))

    def _fieldset(self, identity: int) -> Fieldset | None:
        found = self._fieldsets.get(identity)
        if found is None:
            for _, source, fields in self._sealed("fieldsets", "WHERE id = ?", (identity,)):
                found = read_fieldset(source, fields)
            if found is not None:
                self._fieldsets[identity] = found
        return found

    def _sealed(
        self, table: str, which: str = "", parameters: Sequence[object] = ()
    ) -> Iterator[tuple[Any, ...]]:
        """The sound rows of a table with checksums, without these."""
        for row in self._each(reading(table) + which, parameters):
            if is_sound(table, row):
                yield row[:-1]
            else:
                self.skipped_rows += 1

    @contextmanager
    def _snapshot(self) -> Iterator[None]:
        """Let all reads inside see one moment of the file."""
        inside_a_group = self._connection.in_transaction
        if not inside_a_group:
            self._all("BEGIN")
        try:
            yield
        finally:
            if not inside_a_group and self._connection.in_transaction:
                self._all("ROLLBACK")

    def _all(self, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
        return list(self._each(sql, parameters))

    def _each(self, sql: str, parameters: Sequence[object] = ()) -> Iterator[Any]:
        """The rows of a query, one by one: every read goes through here."""
        try:
            cursor = self._connection.execute(sql, parameters)
            try:
                yield from cursor
            finally:
                with suppress(sqlite3.ProgrammingError):  # closed before this iteration was given up
                    cursor.close()
        except sqlite3.ProgrammingError:
            raise  # a bug of ours, such as another thread's connection
        except sqlite3.Error as error:
            raise self._unreadable(error) from error

    def _advanced(self, before: int, after: int) -> int:
        """`after`, unless damage has put a table out of order: paging through it would never end."""
        if after > before:
            return after
        raise self._unreadable(sqlite3.DatabaseError("its rows are out of order"))

    def _unreadable(self, error: sqlite3.Error) -> StateError:
        return StateError(f"The database {self.path} cannot be read: {error}.")
