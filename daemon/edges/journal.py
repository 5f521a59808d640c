"""Writing the journal: groups that become durable together, packing, pruning."""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager, suppress
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from gruard.daemon.edges.checksums import SEALED, keeping, row_checksum
from gruard.daemon.edges.history import HIGHEST_LSN, Reader
from gruard.daemon.edges.packs import (
    PACK_RECORDS,
    TAIL_RECORDS,
    Tail,
    fieldset_text,
    lsn_list,
    pack_range,
    record_layout,
    write_record,
)
from gruard.daemon.edges.schema import is_damage
from gruard.daemon.edges.tables import CHECKPOINTS
from gruard.daemon.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from gruard.daemon.edges.rows import StoredReading

#: A device is cut back once it is over its cap by one part in so many: pruning by single readings would
#: rewrite a pack for each.
_SLACK: Final = 16
#: What is over and done with, how much of it is kept, and how the oldest goes: each a bound on the disk.
_ENDED: Final = (
    (
        "SELECT count(*) FROM alerts",
        10_000,
        (
            "DELETE FROM alerts WHERE rowid IN"
            " (SELECT rowid FROM alerts WHERE resolved_s IS NOT NULL ORDER BY updated_s LIMIT ?)"
        ),
    ),
    (
        "SELECT count(*) FROM models",
        1000,
        (
            "DELETE FROM models WHERE rowid IN"
            " (SELECT rowid FROM models WHERE status IN ('retired', 'rejected') ORDER BY created_s LIMIT ?)"
        ),
    ),
)


def suspect_path(path: Path) -> Path:
    """The mark that a database failed in use, so that the next start looks at it thoroughly."""
    return path.with_name(path.name + ".suspect")


class DeviceEntry(NamedTuple):
    """A row of `devices`."""

    id: int
    device: str | None  # None: forgotten, its packs wait for pruning
    fieldset: int
    first_s: float | None
    last_s: float | None
    readings: int  # ever packed
    packed_rows: int
    packed_lsn: int
    next_pack: int


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

    def rollback(self) -> None:
        """Take the group back."""
        if self._connection.in_transaction:
            self._all("ROLLBACK")
        self._start_over()

    def forget_device(self, device: str) -> None:
        """Drop a device at once; its stored readings follow when `prune` comes to them."""
        with self._whole():
            for (identity,) in self._all("SELECT id FROM devices WHERE device = ?", (device,)):
                for generation in self._generations():
                    sql = f"DELETE FROM {CHECKPOINTS[generation.id]} WHERE device = ?"  # noqa: S608 - one of two
                    gone = self._write(sql, (identity,)).rowcount
                    self._keep("generations", generation._replace(states=generation.states - gone))
                self._keep("devices", self._entry(identity)._replace(device=None))
                self._tail.drop(identity, HIGHEST_LSN)
            self._owners.pop(device, None)

    def prune(
        self,
        max_rows_per_device: int,
        keep_from_lsn: int,
        limit: int,
        *,
        max_bytes: int | None = None,  # noqa: ARG002
        oldest_s: float | None = None,  # noqa: ARG002
    ) -> int:
        """Delete at most `limit` stored rows; returns how many, 0 once there is nothing to do.

        First what the journal still holds of packed readings, then each device's oldest readings beyond its
        cap (looked at once it is over by a sixteenth) and what forgotten devices left, then all but the
        newest 10,000 alerts and 1,000 models, open and live ones never. A reading thus counts twice on its
        way out: a steady stream needs a pace of twice its readings. No reading with lsn >= keep_from_lsn
        goes, nor the newest of all, which tells `next_lsn` after a restart.
        """
        with self._whole():
            cut = min(keep_from_lsn, self.next_lsn - 1)
            removed = self._trim_journal(cut, limit)
            for device, excess in self._over_cap(max_rows_per_device):
                if removed >= limit:
                    break
                removed += self._drop_oldest(device, min(excess, limit - removed), cut)
            return removed + self._drop_ended(limit - removed)

    # --- how it is done -------------------------------------------------------------------------------------

    def _start_over(self) -> None:
        """Read from the file what is held in memory."""
        self._fieldsets.clear()
        self._owners.clear()
        self._settled.clear()
        self._tail = Tail()
        self._read_tail()
        newest = self._all("SELECT max(lsn) FROM readings")[0][0]
        self.next_lsn = (newest or 0) + 1

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

    def _trim_journal(self, cut: int, limit: int) -> int:
        """Delete up to `limit` journal rows below `cut` that are packed or nobody's."""
        cut = min(cut, self._tail.oldest(default=cut))
        if not self._all("SELECT 1 FROM readings WHERE lsn < ? LIMIT 1", (cut,)):
            return 0
        sql = (
            "DELETE FROM readings WHERE lsn IN (SELECT lsn FROM readings WHERE lsn < ? ORDER BY lsn LIMIT ?)"
        )
        return self._write(sql, (cut, limit)).rowcount

    def _over_cap(self, cap: int) -> Iterator[tuple[int, int]]:
        """Device ids and by how many readings each is over its cap; forgotten ones by all they have."""
        for identity, device, packed in self._all("SELECT id, device, packed_rows FROM devices"):
            rows = packed + len(self._tail.lsns.get(identity, ()))
            if device is None:
                yield identity, HIGHEST_LSN
            elif rows > cap + cap // _SLACK:
                yield identity, rows - cap

    def _drop_oldest(self, identity: int, wanted: int, cut: int) -> int:
        """Delete up to `wanted` of a device's oldest readings below `cut`."""
        removed = 0
        while removed < wanted:
            packs = self._all(
                "SELECT id, fieldset, body FROM packs WHERE id BETWEEN ? AND ? ORDER BY id LIMIT 1",
                pack_range(identity),
            )
            if packs:
                pack, fieldset, body = packs[0]
                count = self._shorten(pack, fieldset, body, wanted - removed, cut)
                if not count:
                    break
                removed += count
            elif not (self._tail.between(identity, 0, cut) and self._pack(identity, PACK_RECORDS)):
                break
        if removed:
            entry = self._entry(identity)
            self._keep("devices", entry._replace(packed_rows=max(0, entry.packed_rows - removed)))
        if not packs:
            self._write("DELETE FROM devices WHERE id = ? AND device IS NULL", (identity,))
        return removed

    def _drop_ended(self, limit: int) -> int:
        """Delete up to `limit` of the oldest resolved alerts and replaced models beyond what is kept."""
        removed = 0
        for counting, kept, deleting in _ENDED:
            excess = min(self._all(counting)[0][0] - kept, limit - removed)
            if excess > 0:
                removed += self._write(deleting, (excess,)).rowcount
        return removed

    def _shorten(self, pack: int, fieldset: int, body: object, wanted: int, cut: int) -> int:
        """Take up to `wanted` of the oldest records below `cut` out of a pack; how many those were."""
        found = self._fieldset(fieldset)
        if found is None or not isinstance(body, bytes):  # damaged: nobody can read it
            self._write("DELETE FROM packs WHERE id = ?", (pack,))
            return 1
        layout = record_layout(len(found.fields))
        lsns = np.frombuffer(body, layout, len(body) // layout.itemsize)["lsn"]
        count = min(wanted, int(np.searchsorted(lsns, cut)))
        if count == len(lsns):
            self._write("DELETE FROM packs WHERE id = ?", (pack,))
            return max(count, 1)
        if count:
            self._write(
                "UPDATE packs SET first_lsn = ?, body = ? WHERE id = ?",
                (int(lsns[count]), body[count * layout.itemsize :], pack),
            )
        return count

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
            self.rollback()
            raise StateError(f"The database {self.path} cannot be written: {error}.") from error

    def _unreadable(self, error: sqlite3.Error) -> StateError:
        self._suspect(error)
        return super()._unreadable(error)

    def _suspect(self, error: sqlite3.Error) -> None:
        if is_damage(error):
            with suppress(OSError):
                suspect_path(self.path).touch(mode=0o600)
