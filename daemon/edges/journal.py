"""Writing the journal: groups that become durable together, and packing."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager, suppress
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from gruard.daemon.edges.checksums import SEALED, keeping, row_checksum
from gruard.daemon.edges.history import HIGHEST_LSN, Reader
from gruard.daemon.edges.packs import (
    PACK_RECORDS,
    TAIL_RECORDS,
    Tail,
    fieldset_text,
    lsn_list,
    pack_range,
    write_record,
)
from gruard.daemon.edges.rows import DeviceEntry
from gruard.daemon.edges.schema import BUSY_MS, is_damage
from gruard.daemon.edges.tables import CHECKPOINTS, LSN_FLOOR
from gruard.daemon.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    import numpy as np

    from gruard.daemon.edges.rows import StoredReading


def suspect_path(path: Path) -> Path:
    """The mark that a database failed in use, so that the next start looks at it thoroughly."""
    return path.with_name(path.name + ".suspect")


class Journal(Reader):
    """The one writer. Writes gather in a group; `commit` makes the group durable as a whole.

    Any write that fails takes the whole group back, as `rollback` does, and raises StateError: what was
    committed before stands, what was not has to be written again, from the same `next_lsn`.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        super().__init__(path, connection)
        self.next_lsn = 1
        self._owners: dict[str, dict[tuple[str, tuple[str, ...]], tuple[int, int, int]]] = {}
        self._sweep: list[tuple[int, int]] = []
        self._has_stale_frames = False
        self._settled: set[int] = set()  # generations that are whole since this opening
        self._start_over()

    def append(self, rows: Sequence[StoredReading]) -> None:
        """Journal readings. Their LSNs are new; one device's readings come in rising order.

        Raises ValueError if `values` and `fields` of a row differ in length.
        """
        with self._whole():
            stored = [self._journal_row(row) for row in rows]
            self._write_many("INSERT INTO readings VALUES (?, ?, ?, ?)", stored)
            for lsn, device, _, _ in stored:
                self._tail.add(device, lsn)
            self.next_lsn = max(self.next_lsn, self._tail.newest + 1)
            self._pack_some(2 * len(stored))

    def commit(self) -> None:
        """Make the group durable: when this returns it survives kill -9 and power loss."""
        if self._connection.in_transaction:
            self._write("COMMIT")
            if self._has_stale_frames:
                self._cut_log()

    def rollback(self) -> None:
        """Take the group back."""
        if self._connection.in_transaction:
            self._all("ROLLBACK")
        self._start_over()

    def fold_log(self) -> None:
        """Bring what the write-ahead log holds into the database's file, through the open connection."""
        self.rollback()
        self._all("PRAGMA wal_checkpoint(TRUNCATE)")

    def forget_device(self, device: str) -> None:
        """Drop a device at once; its stored readings follow when `prune` comes to them."""
        with self._whole():
            for (identity,) in self._all("SELECT id FROM devices WHERE device = ?", (device,)):
                for generation in self._generations():
                    sql = f"DELETE FROM {CHECKPOINTS[generation.id]} WHERE device = ?"  # noqa: S608 - one of two
                    states = generation.states - self._write(sql, (identity,)).rowcount
                    self._keep("generations", generation._replace(states=states))
                # Its row stays as long as the journal has readings of its.
                gone = self._entry(identity)._replace(device=None, packed_lsn=self.next_lsn - 1)
                self._keep("devices", gone)
                self._tail.drop(identity, HIGHEST_LSN)
            self._owners.pop(device, None)

    # --- how it is done -------------------------------------------------------------------------------------

    def _start_over(self) -> None:
        """Read from the file what is held in memory."""
        self._fieldsets.clear()
        self._owners.clear()
        self._settled.clear()
        self._tail = Tail()
        self._read_tail()
        newest = self._all("SELECT max(lsn) FROM readings")[0][0]
        self.next_lsn = max((newest or 0) + 1, int(self.meta(LSN_FLOOR) or 1))

    def _cut_log(self) -> None:
        """Empty the write-ahead log, if nobody reads it just now.

        A commit that failed may have left its frames, marked as committed, behind the end of the log; to a
        start after a kill they would look like the rest of a damaged log (pages.py).
        """
        with suppress(sqlite3.Error):  # the group is durable, the next commit tries again
            self._connection.execute("PRAGMA busy_timeout = 0")
            (busy, _, _) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            self._has_stale_frames = bool(busy)
        self._connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")

    def _catch_up(self) -> None:
        """Nothing to learn: all that is journalled came through here."""

    def _journal_row(self, row: StoredReading) -> tuple[int, int, int, bytes]:
        if row.values.shape != (len(row.fields),):
            raise ValueError(f"values of shape {row.values.shape} for {len(row.fields)} fields")
        device, fieldset, seed = self._owner(row.device, row.source, row.fields)
        record = write_record(row.lsn, row.time_s, row.received_s, row.score, row.flags, row.values, seed)
        return int(row.lsn), device, fieldset, record  # SQLite would store a numpy integer as bytes

    def _owner(self, device: str, source: str, fields: tuple[str, ...]) -> tuple[int, int, int]:
        """The ids of device and set of fields, made at first sight, and the seed of their checksums."""
        known = self._owners.setdefault(device, {})
        owner = known.get((source, fields))
        if owner is None:
            identity = self._fieldset_id(source, fields)
            fieldset = self._fieldset(identity)
            if fieldset is None:
                raise StateError(
                    f"The set of fields of device {device} cannot be read back from {self.path}."
                )
            owner = known[source, fields] = (
                self._device_id(device, identity),
                identity,
                fieldset.seed(device),
            )
        return owner

    def _fieldset_id(self, source: str, fields: tuple[str, ...]) -> int:
        key = (source, fieldset_text(fields))
        for (identity,) in self._all("SELECT id FROM fieldsets WHERE source = ? AND fields = ?", key):
            return int(identity)
        return self._enter("fieldsets", key)

    def _device_id(self, device: str, fieldset: int) -> int:
        for (identity,) in self._all("SELECT id FROM devices WHERE device = ?", (device,)):
            return int(identity)
        return self._enter("devices", (device, fieldset, None, None, 0, 0, 0, 0))

    def _entry(self, identity: int) -> DeviceEntry:
        """A device's row. Raises StateError if it is not what was written."""
        for row in self._sealed("devices", "WHERE id = ?", (identity,)):
            return DeviceEntry(*row)
        raise self._unreadable(sqlite3.DatabaseError("a device's row is damaged"))

    def _pack_some(self, records: int) -> None:
        """Shorten an overlong tail by about so many records, device after device.

        The round takes from each device what it held when the round began, so that one busy device cannot
        keep the others' readings in the journal for ever.
        """
        while records > 0 and self._tail.count > TAIL_RECORDS:
            if not self._sweep:
                self._sweep = sorted(
                    ((key, len(held)) for key, held in self._tail.lsns.items()), reverse=True
                )
            device, due = self._sweep.pop()
            packed = self._pack(device, min(due, PACK_RECORDS))
            if 0 < packed < due:
                self._sweep.append((device, due - packed))
            records -= packed

    def _pack_oldest(self, identity: int) -> int:
        """Pack a device's oldest tail records although the tail is not long; how many left the tail."""
        return self._pack(identity, PACK_RECORDS)

    def _pack(self, identity: int, limit: int) -> int:
        """Copy up to `limit` of a device's oldest tail records into one pack; how many left the tail."""
        lsns = self._tail.lsns.get(identity)
        if lsns is None:
            return 0
        rows = self._all(
            "SELECT r.lsn, r.fieldset, r.record, d.device FROM readings AS r JOIN devices AS d ON d.id = ?"
            " WHERE r.lsn IN (SELECT value FROM json_each(?)) ORDER BY r.lsn",
            (identity, lsn_list(lsns[:limit])),
        )
        run = list(takewhile(lambda row: row[1] == rows[0][1], rows))
        last_lsn = run[-1][0] if run else lsns[:limit][-1]
        taken = self._tail.drop(identity, last_lsn + 1)
        entry = self._entry(identity)
        if run:
            _, fieldset, _, device = run[0]
            for _, records in self._run(device, fieldset, [record for _, _, record, _ in run]):
                entry = self._store_pack(entry, fieldset, records)
        self._keep("devices", entry._replace(readings=entry.readings + taken, packed_lsn=last_lsn))
        return taken

    def _store_pack(self, entry: DeviceEntry, fieldset: int, records: np.ndarray) -> DeviceEntry:
        first, last = records[0], records[-1]
        pack = pack_range(entry.id)[0] + entry.next_pack
        row = (pack, fieldset, int(first["lsn"]), int(last["lsn"]), records.tobytes())
        self._write("INSERT INTO packs VALUES (?, ?, ?, ?, ?)", row)
        return entry._replace(
            fieldset=fieldset,
            packed_rows=entry.packed_rows + len(records),
            next_pack=entry.next_pack + 1,
            first_s=float(first["time_s"]) if entry.first_s is None else entry.first_s,
            last_s=float(last["time_s"]),
        )

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Take the group back if any step inside fails, a reading one included."""
        try:
            yield
        except StateError:
            if self._connection.in_transaction:  # a failed write has gone back already
                self.rollback()
            raise

    def _keep(self, table: str, row: Sequence[object]) -> None:
        """Write a row of a table with checksums, or write it anew."""
        self._write(keeping(table), (*row, row_checksum(table, *row)))

    def _enter(self, table: str, row: Sequence[object]) -> int:
        """Add a row to a table that numbers its rows itself; the number."""
        with self._whole():
            columns = ", ".join(SEALED[table][1:])
            marks = ", ".join("?" * len(row))
            sql = f"INSERT INTO {table} ({columns}) VALUES ({marks})"  # noqa: S608 - our own names
            number = self._write(sql, row).lastrowid or 0
            self._keep(table, (number, *row))
            return number

    def _write(self, sql: str, parameters: Sequence[object] = ()) -> sqlite3.Cursor:
        return self._attempt(self._connection.execute, sql, parameters)

    def _write_many(self, sql: str, rows: Iterable[Sequence[object]]) -> None:
        self._attempt(self._connection.executemany, sql, rows)

    def _attempt(
        self, run: Callable[[str, Any], sqlite3.Cursor], sql: str, parameters: object
    ) -> sqlite3.Cursor:
        """One statement in the open group, or in a new one: every write goes through here."""
        try:
            if not self._connection.in_transaction:
                self._connection.execute("BEGIN IMMEDIATE")
            return run(sql, parameters)
        except sqlite3.ProgrammingError:
            raise  # a bug of ours
        except sqlite3.Error as error:
            self._suspect(error)
            self._has_stale_frames = True
            self.rollback()
            raise StateError(f"The database {self.path} cannot be written: {error}.") from error

    def _unreadable(self, error: sqlite3.Error) -> StateError:
        self._suspect(error)
        return super()._unreadable(error)

    def _suspect(self, error: sqlite3.Error) -> None:
        if is_damage(error):
            with suppress(OSError):
                suspect_path(self.path).touch(mode=0o600)
