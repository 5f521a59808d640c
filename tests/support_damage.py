"""A state directory with known content, what may be read back from it, and ways to damage its files."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from support_database import FIELDS, NOW_S, alert, model, reading

from gruard.daemon.edges import history, journal, schema
from gruard.daemon.edges.checksums import SEALED
from gruard.daemon.edges.database import Database, open_database
from gruard.daemon.edges.rows import Checkpoint
from gruard.daemon.records import Delivery

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

    import pytest

    from gruard.daemon.edges.history import Reader
    from gruard.daemon.edges.rows import StoredReading

DEVICES = ("pump-1", "pump-2", "pump-3", "pump-4", "pump-5")
GROUP, GROUPS = 20, 60
PAGE = 4096
#: What an installation of the database consists of.
FILES = ("gruard.db", "gruard.db-wal", "gruard.db-shm", "gruard.lock")


def content_of(row: StoredReading) -> tuple[object, ...]:
    """Everything of a reading, to compare."""
    return (
        row.lsn, row.device, row.source, row.fields, row.time_s, row.received_s, row.values.tobytes(),
        row.score, row.flags,
    )  # fmt: skip


@dataclass
class Truth:
    """Everything ever written, and what an undamaged copy gives."""

    readings: dict[int, tuple[object, ...]] = field(default_factory=dict)
    alerts: set[object] = field(default_factory=set)
    outbox: set[object] = field(default_factory=set)
    models: set[object] = field(default_factory=set)
    meta: set[str] = field(default_factory=set)
    checkpoints: set[object] = field(default_factory=set)
    deliveries: set[object] = field(default_factory=set)
    sums: dict[str, int] = field(default_factory=dict)  # device -> what its memory must be in the end


@dataclass
class Found:
    """What a database gives."""

    journal: set[int]  # LSNs
    history: set[int]
    sums: dict[str, int]
    alerts: int
    outbox: int
    models: int
    checkpoints: int
    deliveries: int
    keep_from: int


def shorten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let packing begin early."""
    for module in (journal, history):
        monkeypatch.setattr(module, "TAIL_RECORDS", 200)
        monkeypatch.setattr(module, "PACK_RECORDS", 16)


def build(directory: Path, *, copies: dict[int, Path]) -> Truth:
    """Fill a new database group by group, as a daemon does; copy its files after some of the groups.

    The memory of a device is the sum of the LSNs of its readings, so that a reading that is missed or counted
    twice shows.
    """
    truth = Truth()
    sums = dict.fromkeys(DEVICES, 0)
    with open_database(directory, now_s=NOW_S) as database:
        for group in range(1, GROUPS + 1):
            _write_group(database, group, truth, sums)
            if group % 6 == 0:
                _save(database, truth, sums)
                database.prune(150, database.keep_from_lsn(), 200)
            database.commit()
            if group == GROUPS // 2:
                database._all("PRAGMA wal_checkpoint")
            if group in copies:
                shutil.copytree(directory, copies[group])
    truth.sums = sums
    return truth


def _write_group(database: Database, group: int, truth: Truth, sums: dict[str, int]) -> None:
    first = database.next_lsn
    rows = []
    for lsn in range(first, first + GROUP):
        fields = FIELDS if lsn % 7 else ("temp",)
        row = reading(lsn, DEVICES[lsn * lsn % len(DEVICES)], fields=fields)
        truth.readings[lsn] = content_of(row)
        sums[row.device] += lsn
        rows.append(row)
    database.append(rows)
    deliveries = [Delivery(n * 7 % 65_535 + 1, n, n.to_bytes(8, "big"), (n,) * (n % 9 == 0)) for n in
                  range(first, first + GROUP)]  # fmt: skip
    database.note_deliveries(deliveries)
    truth.deliveries.update(deliveries)
    for number in range(3):
        topic, payload = f"alerts/{group}-{number}", b"payload %d" % group * (1 + 300 * (number == 2))
        seq = database.put_outbox(topic, payload, 1, retain=False, key=f"{group}-{number}")
        truth.outbox.add((seq, topic, payload, f"{group}-{number}"))
    database.outbox_done(row.seq for row in database.outbox(2))
    for told in (
        alert(f"a-{group}", NOW_S + group),
        alert(f"a-{group - 3}", NOW_S + group - 3, NOW_S + group),
    ):
        database.save_alert(told)
        truth.alerts.add(told)
    if group % 10 == 1:
        database.add_model(model(f"m-{group}"))
        database.activate_model(f"m-{group}", first, NOW_S + group)
        truth.models.update(f"m-{n}" for n in range(1, group + 1, 10))
    database.set_meta("key", f"value-{group}")
    truth.meta.add(f"value-{group}")


def _save(database: Database, truth: Truth, sums: dict[str, int]) -> None:
    lsn = database.next_lsn - 1
    rows = [
        Checkpoint(name, "plant", FIELDS, lsn, "layout", "m-1", b"%020d" % total + bytes(500))
        for name, total in sums.items()
    ]
    truth.checkpoints.update(rows)
    database.save_checkpoints(rows, generation=database.older_generation(), lsn=lsn)


def read_back(reader: Reader, truth: Truth, *, sealed: bool = True) -> Found:
    """Read everything there is; whatever comes out must have been written.

    `sealed` is false for what a database of version 1 held, whose small tables had no checksums.
    """
    found_journal = {}
    for row in reader.readings_after(0, batch=50):
        assert truth.readings[row.lsn] == content_of(row)
        found_journal[row.lsn] = row
    found_history = set()
    for name in DEVICES:
        past = reader.history(name, FIELDS, 10**6)
        for lsn, time_s, values, score, flags in zip(
            past.lsn.tolist(), past.time_s.tolist(), past.values.tolist(), past.score, past.flags, strict=True
        ):
            _, device, _, fields, told_s, _, _, told_score, told_flags = truth.readings[lsn]
            assert (device, told_s, told_score, told_flags) == (name, time_s, score, flags)
            assert values[0] == lsn
            assert values[1] == lsn + 0.5 or len(fields) == 1  # type: ignore[arg-type]
            assert lsn not in found_history or not sealed
            found_history.add(lsn)
    sums, behind = {}, {}
    checkpoints = list(reader.checkpoints())
    assert set(checkpoints) <= truth.checkpoints
    for kept in checkpoints:
        sums[kept.device], behind[kept.device] = int(kept.state[:20]), kept.lsn
    for row in reader.readings_after(reader.recovery_start()):
        if row.lsn > behind.get(row.device, 0):
            sums[row.device] = sums.get(row.device, 0) + row.lsn
    alerts, outbox, models = reader.alerts(10**6), reader.outbox(10**6), reader.models()
    deliveries = list(reader.deliveries())
    assert set(deliveries) <= truth.deliveries
    if sealed:
        assert set(alerts) <= truth.alerts
        assert {(row.seq, row.topic, row.payload, row.key) for row in outbox} <= truth.outbox
        assert all((row.qos, row.retain) == (1, False) for row in outbox)
        assert len({row.id for row in alerts}) == len(alerts)
        assert {row.id for row in models} <= truth.models
        assert len(reader.live_models()) <= 1
        assert reader.meta("key") in {None, *truth.meta}
        assert {row.device for row in reader.devices()} <= set(DEVICES)
    return Found(
        set(found_journal), found_history, sums, len(alerts), len(outbox), len(models), len(checkpoints),
        len(deliveries), reader.keep_from_lsn(),
    )  # fmt: skip


def make_old(directory: Path, source: Path) -> None:
    """Make a database of schema version 1 with what the one in `source` holds."""
    directory.mkdir()
    connection = sqlite3.connect(directory / "gruard.db", isolation_level=None)
    for statement in schema._V1:
        connection.execute(statement)
    connection.execute("ATTACH ? AS new", (str(source / "gruard.db"),))
    connection.execute("INSERT INTO meta SELECT key, value FROM new.meta WHERE key <> 'schema_version'")
    connection.execute("INSERT INTO meta VALUES ('schema_version', '1')")
    connection.execute("INSERT INTO meta SELECT 'checkpoint_lsn', lsn FROM new.generations WHERE id = 0")
    for table in ("fieldsets", "devices", "outbox", "alerts", "models"):
        columns = ", ".join(SEALED[table])
        sql = f"INSERT INTO {table} ({columns}) SELECT {columns} FROM new.{table}"  # noqa: S608 - our own names
        connection.execute(sql)
    connection.execute("INSERT INTO readings SELECT * FROM new.readings")
    connection.execute("INSERT INTO packs SELECT * FROM new.packs")
    connection.execute("INSERT INTO device_state SELECT * FROM new.checkpoints_0")
    connection.execute("PRAGMA user_version = 1")
    connection.execute("DETACH new")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()


def work_on(database: Database, truth: Truth) -> set[int]:
    """One more group, and both generations of checkpoints; the LSNs of its readings."""
    first = database.next_lsn
    _write_group(database, 95, truth, dict.fromkeys(DEVICES, 0))
    for _ in range(2):
        _save(database, truth, dict.fromkeys(DEVICES, first))
    database.commit()
    return set(range(first, first + GROUP))


# --- damage ----------------------------------------------------------------------------------------------


def _flip(content: bytearray, rng: random.Random) -> None:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _flip_many(content: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([2, 4, 16, 64])):
        _flip(content, rng)


def _byte(content: bytearray, rng: random.Random) -> None:
    content[rng.randrange(len(content))] = rng.randrange(256)


def _head(content: bytearray, rng: random.Random) -> None:
    content[rng.randrange(min(len(content), 108))] ^= 1 << rng.randrange(8)


def _page_head(content: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(content)) // PAGE * PAGE + rng.randrange(12)
    content[min(place, len(content) - 1)] ^= 1 << rng.randrange(8)


def _zero(content: bytearray, rng: random.Random) -> None:
    size = rng.choice([1, 16, 512, PAGE, 3 * PAGE])
    place = rng.randrange(len(content)) // size * size
    content[place : place + size] = bytes(len(content[place : place + size]))


def _zero_all(content: bytearray, _: random.Random) -> None:
    content[:] = bytes(len(content))


def _cut(content: bytearray, rng: random.Random) -> None:
    edge = rng.choice([0, 1, 16, 32, 100, 512, PAGE, 4120, len(content) - 1, rng.randrange(len(content))])
    offset = rng.choice([0, 0, 1, -1])
    times = rng.randrange(1, 8)
    del content[max(0, min(edge * times + offset, len(content))) :]


def _empty(content: bytearray, _: random.Random) -> None:
    content.clear()


def _swap(content: bytearray, rng: random.Random) -> None:
    size = rng.choice([512, PAGE, 4120])
    one, other = (rng.randrange(len(content)) // size * size for _ in range(2))
    first, second = content[one : one + size], content[other : other + size]
    if len(first) == len(second):
        content[one : one + size], content[other : other + size] = second, first


def _noise(content: bytearray, rng: random.Random) -> None:
    content[:] = rng.randbytes(rng.choice([1, 100, len(content)]))


def _foreign(content: bytearray, rng: random.Random) -> None:
    content[:] = rng.choice([b"SQLite format 3\0", b"\x7fELF", b"{}", b"PK\3\4"]) + rng.randbytes(9000)


def _grow(content: bytearray, rng: random.Random) -> None:
    content += rng.randbytes(rng.choice([1, 512, PAGE, 4120]))


#: Kind -> how it changes a file's bytes.
KINDS: dict[str, Callable[[bytearray, random.Random], None]] = {
    "flip": _flip, "flips": _flip_many, "byte": _byte, "head": _head, "page head": _page_head, "zero": _zero,
    "zero all": _zero_all, "cut": _cut, "empty": _empty, "swap": _swap, "noise": _noise, "foreign": _foreign,
    "grow": _grow,
}  # fmt: skip
#: How often each is drawn: mostly small damage, which has to cost little.
WEIGHTS = (8, 3, 4, 2, 3, 4, 1, 4, 1, 3, 1, 1, 1)


#: Damage to a file as a whole, one draw in ten.
WHOLE_KINDS = ("missing", "early", "foreign database")


def damage(file: Path, rng: random.Random, early: Path) -> str:
    """Damage a file in a way that the generator draws; which way. `early` has it as it once was."""
    if rng.random() < 0.1:
        kind = rng.choice(WHOLE_KINDS)
        file.unlink()
        if kind == "early" and (early / file.name).exists():
            shutil.copy(early / file.name, file)
        elif kind == "foreign database":
            connection = sqlite3.connect(file)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE t (a)")
            connection.close()
        return kind
    kind = rng.choices(list(KINDS), WEIGHTS)[0]
    content = bytearray(file.read_bytes())
    if content:
        KINDS[kind](content, rng)
    file.write_bytes(content)
    return kind
