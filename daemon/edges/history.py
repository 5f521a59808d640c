"""Reading the journal: what the writer and every read-only opening share."""

from __future__ import annotations

from itertools import chain, groupby
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from gruard.daemon.edges.packs import (
    PACK_RECORDS,
    TAIL_RECORDS,
    Fieldset,
    Tail,
    join_records,
    lsn_list,
    pack_range,
    read_record,
    sound_records,
)
from gruard.daemon.edges.rows import DeviceRow, History, StoredReading
from gruard.daemon.edges.tables import Tables

if TYPE_CHECKING:
    import sqlite3
    from array import array
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

HIGHEST_LSN: Final = 2**63 - 1

Run = tuple[Fieldset, np.ndarray]  # records of one set of fields, oldest first


class Reader(Tables):
    """A read-only view of a database that another process may be writing. Belongs to one thread.

    Every method raises StateError if the file cannot be read. A damaged row is left out and counted.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        super().__init__(path, connection)
        self._tail = Tail()

    # --- readings -------------------------------------------------------------------------------------------

    def history(
        self,
        device: str,
        fields: tuple[str, ...],
        limit: int,
        before_lsn: int | None = None,
        min_lsn: int | None = None,
    ) -> History:
        """The newest `limit` readings of a device with min_lsn <= lsn < before_lsn, oldest first."""
        low = 0 if min_lsn is None else min_lsn
        high = HIGHEST_LSN if before_lsn is None else before_lsn
        with self._snapshot():
            self._catch_up()
            return self._history(device, fields, limit, low, high)

    def history_many(self, devices: Iterable[str], fields: tuple[str, ...], limit: int) -> dict[str, History]:
        """The newest `limit` readings of each device, all as of one moment."""
        with self._snapshot():
            self._catch_up()
            return {device: self._history(device, fields, limit, 0, HIGHEST_LSN) for device in devices}

    def readings_after(self, lsn: int, batch: int = 1000) -> Iterator[StoredReading]:
        """The journal behind `lsn`, in order. Between batches no transaction is held open.

        Rows older than the `keep_from_lsn` of a `prune` may have left the journal.
        """
        sql = (
            "SELECT r.lsn, d.id, d.device, r.fieldset, r.record"
            " FROM readings AS r LEFT JOIN devices AS d ON d.id = r.device"
            " WHERE r.lsn > ? ORDER BY r.lsn LIMIT ?"
        )
        while rows := self._all(sql, (lsn, batch)):
            for number, known, device, *rest in rows:
                if device is not None:
                    reading = self._stored_reading(number, device, *rest)
                    if reading is not None:
                        yield reading
                elif known is None:  # of no device that ever was; a forgotten one keeps its row as long
                    self.skipped_rows += 1
            lsn = self._advanced(lsn, rows[-1][0])

    def count_readings(self) -> int:
        """How many readings history can give, over all devices."""
        with self._snapshot():
            self._catch_up()
            found = self._all("SELECT packed_rows, id, packed_lsn + 1 FROM devices WHERE device IS NOT NULL")
            return sum(
                rows + len(self._tail.between(device, low, HIGHEST_LSN)) for rows, device, low in found
            )

    # --- devices --------------------------------------------------------------------------------------------

    def devices(self) -> list[DeviceRow]:
        """Every device, by name."""
        sql = (
            "SELECT id, device, fieldset, readings, packed_lsn, first_s, last_s FROM devices"
            " WHERE device IS NOT NULL ORDER BY device"
        )
        with self._snapshot():
            self._catch_up()
            return [found for row in self._all(sql) if (found := self._device_row(*row))]

    # --- how it is done -------------------------------------------------------------------------------------

    def _history(self, device: str, fields: tuple[str, ...], limit: int, low: int, high: int) -> History:
        runs: list[Run] = []  # newest first
        found = self._all("SELECT id, packed_lsn FROM devices WHERE device = ?", (device,))
        if found and limit > 0:
            identity, packed_lsn = found[0]
            pending = self._tail.between(identity, max(low, packed_lsn + 1), high)
            tail = self._tail_runs(device, pending, min(limit, PACK_RECORDS))
            for fieldset, records in chain(tail, self._pack_runs(device, identity, low, high)):
                inside = records[(records["lsn"] >= low) & (records["lsn"] < high)][-limit:]
                runs.append((fieldset, inside))
                limit -= len(inside)
                if limit == 0:
                    break
        return _assemble(runs[::-1], fields)

    def _tail_runs(self, device: str, pending: array[int], chunk: int) -> Iterator[Run]:
        """Sound records of the tail in runs of one set of fields, newest run first."""
        for end in range(len(pending), 0, -chunk):
            lsns = lsn_list(pending[max(0, end - chunk) : end])
            rows = self._all(
                "SELECT fieldset, record FROM readings"
                " WHERE lsn IN (SELECT value FROM json_each(?)) ORDER BY lsn DESC",
                (lsns,),
            )
            for identity, run in groupby(rows, key=itemgetter(0)):
                yield from self._run(device, identity, [record for _, record in run][::-1])

    def _pack_runs(self, device: str, identity: int, low: int, high: int) -> Iterator[Run]:
        """Sound records of the packs, newest pack first."""
        rows = self._each(
            "SELECT fieldset, body FROM packs WHERE id BETWEEN ? AND ? AND first_lsn < ? AND last_lsn >= ?"
            " ORDER BY id DESC",
            (*pack_range(identity), high, low),
        )
        for fieldset, body in rows:
            yield from self._run(device, fieldset, body)

    def _run(self, device: str, identity: int, body: Any) -> Iterator[Run]:
        """What is sound in a pack's body or a list of records, if anything is."""
        fieldset = self._fieldset(identity)
        if fieldset is None:
            self.skipped_rows += 1
            return
        if isinstance(body, list):
            body = join_records(body, len(fieldset.fields))
        records, damaged = sound_records(body, len(fieldset.fields), fieldset.seed(device))
        self.skipped_rows += damaged
        if len(records):
            yield fieldset, records

    def _stored_reading(self, lsn: int, device: str, identity: int, record: object) -> StoredReading | None:
        fieldset = self._fieldset(identity)
        found = fieldset and read_record(record, len(fieldset.fields), fieldset.seed(device))
        if not fieldset or not found or found[0] != lsn:
            self.skipped_rows += 1
            return None
        _, time_s, received_s, score, flags, values = found
        return StoredReading(
            lsn, device, fieldset.source, fieldset.fields, time_s, received_s, values, score, flags
        )

    def _device_row(  # one argument per column
        self,
        identity: int,
        device: str,
        fieldset_id: int,
        readings: int,
        packed_lsn: int,
        first_s: float | None,
        last_s: float | None,
    ) -> DeviceRow | None:
        fieldset = self._fieldset(fieldset_id)
        pending = self._tail.between(identity, packed_lsn + 1, HIGHEST_LSN)
        if first_s is None:
            for _, records in self._tail_runs(device, pending[:1], 1):
                first_s = float(records[0]["time_s"])
        for newest, records in self._tail_runs(device, pending[-1:], 1):
            fieldset, last_s = newest, float(records[0]["time_s"])
        if fieldset is None:
            self.skipped_rows += 1
            return None
        return DeviceRow(device, fieldset.source, fieldset.fields, readings + len(pending), first_s, last_s)

    def _catch_up(self) -> None:
        """Learn what has been journalled since the last look."""
        if self._tail.count > 4 * TAIL_RECORDS:  # most of it is packed by now
            self._tail = Tail()
        self._read_tail()

    def _read_tail(self) -> None:
        sql = (
            "SELECT r.device, r.lsn FROM readings AS r JOIN devices AS d ON d.id = r.device"
            " WHERE r.lsn > ? AND r.lsn > d.packed_lsn AND d.device IS NOT NULL ORDER BY r.lsn"
        )
        for device, lsn in self._each(sql, (self._tail.newest,)):
            self._tail.add(device, lsn)


def _assemble(runs: Sequence[Run], fields: tuple[str, ...]) -> History:
    """Runs, oldest first, as columns in the order of `fields`."""
    values = np.full((sum(len(records) for _, records in runs), len(fields)), np.nan)  # (T, F)
    at = 0
    for fieldset, records in runs:
        end = at + len(records)
        for place, field in enumerate(fields):
            if field in fieldset.fields:
                values[at:end, place] = records["values"][:, fieldset.fields.index(field)]
        at = end
    return History(
        lsn=_column(runs, "lsn", np.int64),
        time_s=_column(runs, "time_s", np.float64),
        values=values,
        score=_column(runs, "score", np.float64),
        flags=_column(runs, "flags", np.int64),
    )


def _column(runs: Sequence[Run], name: str, kind: type) -> np.ndarray:
    """One number of every record, (T,)."""
    return np.concatenate([np.empty(0, kind), *(records[name] for _, records in runs)])
