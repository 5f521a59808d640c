"""Copying what is sound in a damaged database into a new one.

Rows are told by their shape and proven by their checksums, wherever in the file or its log they lie: neither
the first page, nor inner pages, nor frames of the log before them have to be sound. The names of devices and
sets of fields, on which all other rows hang, are stored twice, in their table and in its index, and taken
from either.

What cannot be had back: what was on the damaged bytes themselves; what was cut off with the end of a file; a
group that was the last in the log when a frame of it was damaged (nothing tells it from what a power cut
leaves of a group that was never acknowledged). Where the list of free pages is damaged, deleted rows may come
back: history that was pruned, or a message, which is then published again under its own id. Of a database of
schema version 1 only readings and checkpoints are proven; its small tables had no checksums.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter, defaultdict
from functools import lru_cache
from itertools import chain, product
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from gruard.daemon.edges.checksums import SEALED, is_sound, keeping, read_deliveries, row_checksum
from gruard.daemon.edges.packs import (
    Fieldset,
    checkpoint_checksum,
    fieldset_text,
    pack_owner,
    pack_range,
    read_fieldset,
    read_record,
    record_layout,
    sound_records,
)
from gruard.daemon.edges.pages import Cell, Pages
from gruard.daemon.edges.rows import DeviceEntry, Salvaged
from gruard.daemon.edges.tables import CHECKPOINTS, GENERATIONS, LSN_FLOOR

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator
    from pathlib import Path

Row = tuple[Any, ...]

#: Table -> the kinds of a row's columns: "0" for NULL, which also stands for the row's own number, n(umber),
#: t(ext), b(lob). Several tables of one shape would be told apart by their checksums.
_SHAPES: Final = {
    table: re.compile(shape)
    for table, shape in {
        "meta": "ttn",
        "generations": "0nnn",
        "fieldsets": "0ttn",
        "devices": "0[t0]n[n0][n0]nnnnn",
        "models": "tttn[t0][n0]tt[n0][n0]n",
        "alerts": "tttttnn[n0]nntn",
        "outbox": "0tbnntn",
        "feedback": "0tttt[t0]nnnntn",
        "sqlite_sequence": "tn",
        "deliveries": "0nb",
        "readings": "0nnb",
        "packs": "0nnnb",
        "checkpoints": "0nnt[t0]bn",
    }.items()
}
_HANGING: Final = frozenset({"readings", "packs", "checkpoints"})  # rows that only names can prove
#: Of two rows under one key, one of them left over from before, the one with more of this is newer.
_NEWER: Final = {
    "devices": "packed_lsn",
    "alerts": "updated_s",
    "generations": "lsn",
    "models": "activated_s",
}
_GROUP, _STATUS, _ACTIVATED_S = (
    SEALED["models"].index(name) for name in ("group_name", "status", "activated_s")
)
#: A damaged row's number is believed if it is no further than this from what is sound.
_NEAR: Final = 1_000_000


class _Pack(NamedTuple):
    """One pack of a device, by its place among them."""

    number: int
    last_lsn: int
    rows: int


class _Names:
    """What is known of the names under each number: the one that is proven, or those that it may be."""

    def __init__(self) -> None:
        self.proven: dict[int, Any] = {}
        self._possible: dict[int, list[Any]] = defaultdict(list)

    def suggest(self, identity: object, name: object) -> None:
        if isinstance(identity, int) and name is not None:
            self._possible[identity].append(name)

    def of(self, identity: int) -> list[Any]:
        return [self.proven[identity]] if identity in self.proven else self._possible.get(identity, [])


class Salvage:
    """One pass over a damaged database into the connection of a new and empty one."""

    def __init__(self, pages: Pages, target: sqlite3.Connection) -> None:
        self._pages, self._target = pages, target
        self._sealed: dict[str, dict[Any, tuple[int, Row]]] = {table: {} for table in SEALED}
        self._devices, self._fieldsets = _Names(), _Names()
        self._sequences: dict[str, int] = {}
        self._saved: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()
        self._fieldset_of: dict[int, int] = {}  # device -> one it has had
        self._times: dict[int, tuple[float, float]] = {}  # device -> first and last event time in its packs
        self._journal = array("q")  # LSNs of sound rows and of those whose device was forgotten
        self._newest = 0  # LSN of anything that is sound
        self._doubtful = array("q")  # LSNs of damaged rows

    def run(self) -> Salvaged:
        """Copy everything. Raises sqlite3.Error if the new database cannot be written."""
        for table, rowid, row in self._rows(hanging=False):
            if table == "deliveries":
                self._take_deliveries(rowid, *row[1:])
            elif table == "sqlite_sequence":
                self._sequences[row[0]] = int(row[1])
            else:
                self._take_sealed(table, rowid, row)
        for identity, (_, row) in self._sealed["fieldsets"].items():
            self._fieldsets.proven[identity] = read_fieldset(*row[1:])
        for identity, (_, row) in self._sealed["devices"].items():
            self._devices.proven[identity] = row[1]
        take: dict[str, Callable[..., None]] = {
            "readings": self._take_reading, "packs": self._take_pack, "checkpoints": self._take_checkpoint,
        }  # fmt: skip
        for table, rowid, row in self._rows(hanging=True):
            take[table](rowid, *row[1:])
        self._settle()
        self._retire_models()
        self._write_sealed()
        self._count_lost()
        return Salvaged(dict(self._saved), {table: count for table, count in self._lost.items() if count > 0})

    # --- what lies in the pages -----------------------------------------------------------------------------

    def _rows(self, *, hanging: bool) -> Iterator[tuple[str, int, Row]]:
        """Rows that have the shape of a table's, of those that hang on names or of the others."""
        for cells in self._pages.leaves():
            for cell in cells:
                if cell is None:
                    self._lost["unreadable"] += hanging  # counted once
                    continue
                shape = "".join(map(_kind, cell.kinds))
                if cell.rowid is None:
                    if hanging:
                        break
                    self._suggest(shape, cell)
                    continue
                table = _table_of(shape)
                if table is None:
                    continue
                if (table in _HANGING) != hanging:
                    break  # a page's entries are of one table
                try:
                    yield table, cell.rowid, cell.values()
                except ValueError:
                    self._lost[table] += 1

    def _suggest(self, shape: str, cell: Cell) -> None:
        """Take a name from an index."""
        try:
            if shape == "tn":
                self._devices.suggest(*reversed(cell.values()))
            elif shape == "ttn":
                source, text, identity = cell.values()
                self._fieldsets.suggest(identity, read_fieldset(str(source), str(text)))
        except ValueError:
            return

    def _take_sealed(self, table: str, rowid: int, row: Row) -> None:
        if row[0] is None:
            row = (rowid, *row[1:])
        if not is_sound(table, row):
            self._lost[table] += 1
            if table == "devices":
                self._devices.suggest(rowid, row[1])
            elif table == "fieldsets":
                self._fieldsets.suggest(rowid, read_fieldset(row[1], row[2]))
            return
        before = self._sealed[table].get(row[0])
        if before is not None and table in _NEWER:
            place = SEALED[table].index(_NEWER[table])
            if (before[1][place] or 0) > (row[place] or 0):
                return
        self._sealed[table][row[0]] = rowid, row[:-1]

    def _take_deliveries(self, seq: int, count: int, body: bytes) -> None:
        if len(read_deliveries(body)) == count:
            self._target.execute("INSERT OR IGNORE INTO deliveries VALUES (?, ?, ?)", (seq, count, body))
            self._saved["deliveries"] += count
        else:
            self._lost["deliveries"] += 1

    # --- rows that hang on names ----------------------------------------------------------------------------

    def _owners(self, device: int, fieldset: int) -> Iterator[tuple[str, Fieldset]]:
        """Whose a row may be. One that is proven to be somebody's proves the names for all others."""
        for name, fields in product(self._devices.of(device), self._fieldsets.of(fieldset)):
            if name is not None and fields is not None:
                yield name, fields

    def _prove(self, device: int, name: str, fieldset: int, fields: Fieldset) -> None:
        self._devices.proven[device] = name
        self._fieldsets.proven[fieldset] = fields
        self._fieldset_of[device] = fieldset

    def _is_forgotten(self, device: int) -> bool:
        return self._devices.proven.get(device, "") is None

    def _take_reading(self, lsn: int, device: int, fieldset: int, record: bytes) -> None:
        for name, fields in self._owners(device, fieldset):
            found = read_record(record, len(fields.fields), fields.seed(name))
            if found is not None and found[0] == lsn:
                self._prove(device, name, fieldset, fields)
                row = (lsn, device, fieldset, record)
                self._target.execute("INSERT OR IGNORE INTO readings VALUES (?, ?, ?, ?)", row)
                self._saved["readings"] += 1
                self._journal.append(lsn)
                self._newest = max(self._newest, lsn)
                return
        (self._journal if self._is_forgotten(device) else self._doubtful).append(lsn)

    def _take_pack(self, pack: int, fieldset: int, _first: int, _last: int, body: bytes) -> None:
        device = pack_owner(pack)
        for name, fields in self._owners(device, fieldset):
            records, _ = sound_records(body, len(fields.fields), fields.seed(name))
            if len(records):
                self._prove(device, name, fieldset, fields)
                first, last = int(records["lsn"][0]), int(records["lsn"][-1])
                row = (pack, fieldset, first, last, records.tobytes())
                self._target.execute("INSERT OR IGNORE INTO packs VALUES (?, ?, ?, ?, ?)", row)
                self._newest = max(self._newest, last)
                begun, _ = self._times.get(device, (float(records["time_s"][0]), 0.0))
                self._times[device] = begun, float(records["time_s"][-1])
                return

    def _take_checkpoint(
        self,
        device: int,
        fieldset: int,
        lsn: int,
        layout: str,
        model: str | None,
        state: bytes,
        checksum: int,
    ) -> None:
        for (name, fields), generation in product(self._owners(device, fieldset), GENERATIONS):
            if checkpoint_checksum(generation, name, fields, lsn, layout, model, state) == checksum:
                self._prove(device, name, fieldset, fields)
                table = CHECKPOINTS[generation]
                self._target.execute(
                    f"INSERT INTO {table} VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (device) DO UPDATE SET"  # noqa: S608
                    " fieldset = excluded.fieldset, lsn = excluded.lsn, layout = excluded.layout,"
                    " model = excluded.model, state = excluded.state, checksum = excluded.checksum"
                    f" WHERE excluded.lsn > {table}.lsn",
                    (device, fieldset, lsn, layout, model, state, checksum),
                )
                self._newest = max(self._newest, lsn)
                return

    # --- putting it together --------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Bring the devices' counters to what was saved of their packs, and enter names from an index."""
        packed = self._order_packs()
        known = {row[0]: DeviceEntry(*row) for _, row in self._sealed["devices"].values()}
        reopened: dict[int, tuple[int, int]] = {}  # device -> bounds of what counts as not packed again
        for identity, name in self._devices.proven.items():
            if name is None:  # forgotten, and nothing of it was copied
                known.pop(identity, None)
                continue
            packs = packed.get(identity, [])
            rows = sum(pack.rows for pack in packs)
            first_s, last_s = self._times.get(identity, (None, None))
            fieldset = self._fieldset_of.get(identity, 0)
            fresh = DeviceEntry(identity, name, fieldset, first_s, last_s, rows, 0, 0, 0)
            entry = known.get(identity, fresh)
            self._lost["packs"] += max(0, entry.packed_rows - rows)
            newest = packs[-1] if packs else _Pack(-1, 0, 0)
            if rows < entry.packed_rows or identity not in known:
                reopened[identity] = newest.last_lsn, entry.packed_lsn
                entry = entry._replace(packed_lsn=newest.last_lsn)
            next_pack = max(entry.next_pack, newest.number + 1)
            known[identity] = entry._replace(packed_rows=rows, next_pack=next_pack)
        for lsn, identity in self._target.execute("SELECT lsn, device FROM readings") if reopened else ():
            low, high = reopened.get(identity, (0, 0))
            if low < lsn <= high:
                known[identity] = known[identity]._replace(readings=known[identity].readings - 1)
        self._sealed["devices"] = {identity: (identity, tuple(entry)) for identity, entry in known.items()}
        for identity, fields in self._fieldsets.proven.items():
            row = (identity, fields.source, fieldset_text(fields.fields))
            self._sealed["fieldsets"].setdefault(identity, (identity, row))

    def _retire_models(self) -> None:
        """Leave one live model in each group; an entry left over from before may say that another is."""
        models = self._sealed["models"]
        live: dict[str, str] = {}  # group -> model
        for identity, (_, row) in sorted(models.items(), key=lambda item: item[1][1][_ACTIVATED_S] or 0):
            if row[_STATUS] == "live":
                before = live.get(row[_GROUP])
                if before is not None:
                    rowid, old = models[before]
                    models[before] = rowid, (*old[:_STATUS], "retired", *old[_STATUS + 1 :])
                live[row[_GROUP]] = identity

    def _order_packs(self) -> dict[int, list[_Pack]]:
        """Each device's packs by their readings, and numbered so; a pack's number has no checksum."""
        packed: dict[int, list[_Pack]] = defaultdict(list)
        sql = (
            "SELECT id, fieldset, first_lsn, last_lsn, length(body) FROM packs"
            " ORDER BY id >> 32, first_lsn, last_lsn DESC"
        )
        for pack, fieldset, first, last, size in self._target.execute(sql).fetchall():
            packs = packed[pack_owner(pack)]
            if packs and first <= packs[-1].last_lsn:  # the same readings once more, under another number
                self._target.execute("DELETE FROM packs WHERE id = ?", (pack,))
                continue
            rows = size // record_layout(len(self._fieldsets.proven[fieldset].fields)).itemsize
            packs.append(_Pack(pack - pack_range(pack_owner(pack))[0], last, rows))
            self._saved["packs"] += rows
        for device, packs in packed.items():
            numbers = [pack.number for pack in packs]
            if numbers != sorted(numbers):
                base, unused = pack_range(device)[0], max(numbers) + 1
                for place, number in enumerate(numbers, unused):
                    sql = "UPDATE packs SET id = ? WHERE id = ?"
                    self._target.execute(sql, (base + place, base + number))
                    packs[place - unused] = packs[place - unused]._replace(number=place)
        return packed

    def _write_sealed(self) -> None:
        self._target.execute("DELETE FROM generations")  # a new file's, which say that there is nothing
        for generation, table in enumerate(CHECKPOINTS):
            ((newest,),) = self._target.execute(f"SELECT max(lsn) FROM {table}")  # noqa: S608 - one of two names
            _, known = self._sealed["generations"].get(generation, (0, None))
            if known and newest and known[1] < newest:  # left over from before
                del self._sealed["generations"][generation]
        for table, rows in self._sealed.items():
            for _, row in sorted(rows.values(), key=itemgetter(0)):
                if row[0] != "schema_version":
                    self._target.execute(keeping(table), (*row, row_checksum(table, *row)))
                    self._saved[table] += 1
        for table, number in self._sequences.items():
            if table in SEALED and 0 < number < 1 << 31:
                self._target.execute(
                    "DELETE FROM sqlite_sequence WHERE name = ? AND seq < ?", (table, number)
                )
                self._target.execute(
                    "INSERT INTO sqlite_sequence SELECT ?1, ?2"
                    " WHERE NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = ?1)",
                    (table, number),
                )

    def _count_lost(self) -> None:
        # Numbers that only damaged rows tell are believed if they are near.
        told = [lsn for lsn in chain(self._doubtful, self._journal) if 0 <= lsn < self._newest + _NEAR]
        newest = max([self._newest, *told])
        floor = (LSN_FLOOR, str(newest + 1))
        self._target.execute(keeping("meta"), (*floor, row_checksum("meta", *floor)))
        generations = [row for _, row in self._sealed["generations"].values()]
        for number, _, states in generations:
            ((saved,),) = self._target.execute(f"SELECT count(*) FROM {CHECKPOINTS[number]}")  # noqa: S608
            self._saved["checkpoints"] += saved
            self._lost["checkpoints"] += max(0, states - saved)
        # The journal is cut only at its beginning, and never behind the older generation.
        found = set(self._journal)
        begin = min(found or told, default=newest + 1) - 1
        covered = min((lsn for _, lsn, _ in generations), default=0)
        begin = min(begin, covered) if covered else begin
        self._lost["readings"] = newest - begin - len(found)


@lru_cache(maxsize=4096)
def _table_of(shape: str) -> str | None:
    """The table whose rows look so."""
    return next((table for table, known in _SHAPES.items() if known.fullmatch(shape)), None)


def _kind(serial: int) -> str:
    """The kind of a column by its serial type."""
    if serial >= 12:  # section 2.1 of the file format
        return "bt"[serial % 2]
    return "n" if serial else "0"


def salvage(path: Path, target: sqlite3.Connection) -> Salvaged:
    """Copy what is sound in the database at `path`, and in its log, into a new and empty one.

    Raises sqlite3.Error, OSError: the new one cannot be written, and nothing was.
    """
    with Pages(path) as pages:
        target.execute("BEGIN IMMEDIATE")
        saved = Salvage(pages, target).run()
        target.execute("COMMIT")
    return saved
