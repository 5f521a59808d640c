"""The journal: what is committed stays, what is not is gone, and the disk stays bounded."""

from __future__ import annotations

import math
import random
import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support_database import FIELDS, NOW_S, reading, readings

from gruard.daemon.edges import history as history_module
from gruard.daemon.edges import journal as journal_module
from gruard.daemon.edges.database import Database, open_database, open_readonly
from gruard.daemon.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator

_TESTS = Path(__file__).parent  # where the child finds support_database


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(tmp_path, now_s=NOW_S) as opened:
        yield opened


@pytest.fixture
def short_tail(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packing begins after 40 readings and makes packs of at most 16."""
    for module in (journal_module, history_module):
        monkeypatch.setattr(module, "TAIL_RECORDS", 40)
        monkeypatch.setattr(module, "PACK_RECORDS", 16)


def _count(database: Database, table: str) -> int:
    return len(database._all(f"SELECT 1 FROM {table}"))  # noqa: S608 - table names of this file


def _lsns(database: Database, device: str = "pump-1") -> list[int]:
    return database.history(device, FIELDS, 10**6).lsn.tolist()


def test_append_survives_reopening_bit_by_bit(tmp_path: Path) -> None:
    """A committed reading comes back with every field as it was, NaN and signed zero included."""
    row = reading(1, values=(math.nan, -0.0), score=math.nan)
    with open_database(tmp_path, now_s=NOW_S) as database:
        database.append([row])
        database.commit()
    with open_database(tmp_path, now_s=NOW_S) as database:
        (found,) = database.readings_after(0)
    assert found.values.tobytes() == row.values.tobytes()
    assert math.isnan(found.score)
    for name in ("lsn", "device", "source", "fields", "time_s", "received_s", "flags"):
        assert getattr(found, name) == getattr(row, name)


def test_append_keeps_infinite_and_numpy_numbers(database: Database) -> None:
    """Infinities and numpy scalars are stored as the numbers they are."""
    row = reading(1, values=(math.inf, 1e308))
    numpy_row = type(row)(
        np.int64(2), row.device, row.source, row.fields, np.float64(5.0), np.float64(6.0), row.values,
        np.float32(0.5), np.int64(3),
    )  # fmt: skip
    database.append([row, numpy_row])
    first, second = database.readings_after(0)
    assert first.values.tolist() == [math.inf, 1e308]
    assert (second.lsn, second.time_s, second.score, second.flags) == (2, 5.0, 0.5, 3)


def test_next_lsn_continues_after_restart_and_returns_after_rollback(tmp_path: Path) -> None:
    """LSNs go on where the last commit left them."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        assert database.next_lsn == 1
        database.append(readings(1, 5))
        database.commit()
        database.append(readings(6, 5))
        assert database.next_lsn == 11
        database.rollback()
        assert database.next_lsn == 6
        database.append(readings(6, 2))
    with open_database(tmp_path, now_s=NOW_S) as database:
        assert database.next_lsn == 6


def test_rollback_takes_back_new_devices_and_packs(database: Database, short_tail: None) -> None:
    """After a rollback that undid packing, devices and history are as at the last commit."""
    database.append(readings(1, 30))
    database.commit()
    database.append(readings(31, 100, ["pump-1", "pump-2"]))
    assert _count(database, "packs") > 0
    database.rollback()
    assert _lsns(database) == list(range(1, 31))
    assert [row.device for row in database.devices()] == ["pump-1"]
    assert _count(database, "packs") == 0
    database.append(readings(31, 100, ["pump-1", "pump-2"]))
    database.commit()
    assert _lsns(database) == [*range(1, 31), *range(32, 131, 2)]
    assert _lsns(database, "pump-2") == list(range(31, 131, 2))


def test_append_refuses_values_that_do_not_fit_the_fields(database: Database) -> None:
    """A row with more values than fields is a bug and raises ValueError."""
    with pytest.raises(ValueError, match="fields"):
        database.append([reading(1, values=(1.0, 2.0, 3.0))])


def test_append_of_a_used_lsn_takes_the_whole_group_back(database: Database) -> None:
    """A duplicate LSN raises StateError and nothing of its group is stored."""
    database.append(readings(1, 3))
    database.commit()
    database.append(readings(4, 3))
    with pytest.raises(StateError, match="cannot be written"):
        database.append(readings(3, 1))
    database.commit()
    assert _lsns(database) == [1, 2, 3]
    assert database.next_lsn == 4


def test_full_disk_is_reported_and_writing_resumes(database: Database) -> None:
    """A full disk raises StateError, costs only the open group, and writing goes on once there is room."""
    database.append(readings(1, 10))
    database.commit()
    pages = database._all("PRAGMA page_count")[0][0]
    database._all(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StateError, match="full"):
        database.append(readings(11, 5000))
    assert database.next_lsn == 11
    database._all("PRAGMA max_page_count = 1000000")
    database.append(readings(11, 100))
    database.commit()
    assert _lsns(database) == list(range(1, 111))
    assert not (database.path.parent / "gruard.db.suspect").exists()


def test_failing_commit_is_reported_and_takes_the_group_back(tmp_path: Path) -> None:
    """When the disk refuses the commit itself, StateError comes up and only earlier groups are there."""
    program = """
        import resource, sys
        from pathlib import Path
        from gruard.daemon.edges.database import open_database
        from gruard.daemon.errors import StateError
        from support_database import readings
        database = open_database(Path(sys.argv[1]), now_s=0.0)
        database.append(readings(1, 10))
        database.commit()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        database.append(readings(11, 500))
        size = database.path.with_name("gruard.db-wal").stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5000, limits[1]))
        try:
            database.commit()
        except StateError as error:
            print(error)
        assert database.next_lsn == 11, database.next_lsn
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        database.append(readings(11, 5))
        database.commit()
    """
    done = _run_child(program, tmp_path)
    assert "cannot be written" in done
    with open_database(tmp_path, now_s=NOW_S) as database:
        assert database.set_aside is None
        assert _lsns(database) == list(range(1, 16))


def test_uncommitted_group_is_absent_after_kill(tmp_path: Path) -> None:
    """kill -9 between append and commit leaves exactly the committed groups."""
    program = """
        import os, signal, sys
        from pathlib import Path
        from gruard.daemon.edges.database import open_database
        from support_database import readings
        database = open_database(Path(sys.argv[1]), now_s=0.0)
        database.append(readings(1, 300))
        database.commit()
        database.append(readings(301, 5000))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    _run_child(program, tmp_path, killed=True)
    with open_database(tmp_path, now_s=NOW_S) as database:
        assert database.set_aside is None
        assert _lsns(database) == list(range(1, 301))


@pytest.mark.parametrize("seed", range(6))
def test_committed_groups_survive_kill_at_any_moment(tmp_path: Path, seed: int) -> None:
    """After kill -9 amid packing and pruning every LSN told is there, once, and no half of a group."""
    program = """
        import sys
        from pathlib import Path
        from gruard.daemon.edges import journal
        from gruard.daemon.edges.database import open_database
        from support_database import readings
        journal.TAIL_RECORDS, journal.PACK_RECORDS = 200, 16
        database = open_database(Path(sys.argv[1]), now_s=0.0)
        while True:
            first = database.next_lsn
            database.append(readings(first, 20, ["pump-1", "pump-2", "pump-3"]))
            database.prune(10**9, first - 100, 1000)
            database.commit()
            print(first + 19, flush=True)
    """
    rng = random.Random(seed)
    told = 0
    for _ in range(3):
        child = _start_child(program, tmp_path)
        assert child.stdout is not None
        for _ in range(rng.randrange(5, 120)):
            told = int(child.stdout.readline())
        child.kill()
        rest = child.stdout.read().split()
        child.wait()
        child.stdout.close()
        told = int(rest[-1]) if rest else told
        with open_database(tmp_path, now_s=NOW_S) as database:
            assert database.set_aside is None
            stored = database.next_lsn - 1
            assert stored in {told, told + 20}
            kept = sorted(lsn for name in ("pump-1", "pump-2", "pump-3") for lsn in _lsns(database, name))
            assert kept == list(range(1, stored + 1))
            journalled = [row.lsn for row in database.readings_after(max(0, stored - 100))]
            assert journalled == list(range(max(0, stored - 100) + 1, stored + 1))
            assert sum(row.readings for row in database.devices()) == stored
            assert database.skipped_rows == 0


def test_packing_leaves_history_as_it_was(database: Database, short_tail: None) -> None:
    """Readings that moved into packs are read back in order, whole, and by any bounds."""
    database.append(readings(1, 500, ["pump-1", "pump-2"]))
    assert _count(database, "packs") > 10
    found = database.history("pump-1", FIELDS, 1000)
    assert found.lsn.tolist() == list(range(2, 501, 2))
    assert found.time_s.tolist() == [NOW_S + lsn for lsn in found.lsn]
    assert found.values.tolist() == [[lsn, lsn + 0.5] for lsn in found.lsn]
    assert found.flags.tolist() == [lsn % 3 for lsn in found.lsn]
    for before, low, limit in [
        (None, None, 3),
        (100, None, 30),
        (101, 51, 1000),
        (490, 480, 4),
        (3, None, 9),
        (2, 2, 9),
    ]:
        expected = [n for n in range(2, 501, 2) if (low or 0) <= n < (before or 10**9)][-limit:]
        assert database.history("pump-1", FIELDS, limit, before, low).lsn.tolist() == expected


def test_packing_serves_quiet_devices_beside_a_busy_one(database: Database, short_tail: None) -> None:
    """A device that fills the tail cannot keep another's readings, and so the journal, for ever."""
    database.append([*readings(1, 9, ["busy"]), reading(10, "quiet")])
    for first in range(11, 2011, 20):
        database.append(readings(first, 20, ["busy"]))
        database.prune(10**9, 10**9, 1000)
    assert _count(database, "readings") < 200
    assert _lsns(database, "quiet") == [10]
    assert _lsns(database, "busy") == [*range(1, 10), *range(11, 2011)]


def test_prune_cuts_each_device_to_its_cap(database: Database, short_tail: None) -> None:
    """Each device keeps exactly its newest readings, packed or not; a device under the cap keeps all."""
    database.append(readings(1, 400, ["pump-1", "pump-2", "pump-1"]))
    database.append(readings(401, 3, ["few"]))
    before = {name: _lsns(database, name) for name in ("pump-1", "pump-2", "few")}
    while database.prune(25, 10**9, 50):
        pass
    for name, lsns in before.items():
        assert _lsns(database, name) == lsns[-25:]
    assert database.count_readings() == 25 + 25 + 3
    assert [row.readings for row in database.devices()] == [3, len(before["pump-1"]), len(before["pump-2"])]


def test_prune_removes_no_more_than_its_limit_a_call(database: Database, short_tail: None) -> None:
    """One call deletes at most `limit` rows and tells how many; repeated calls come to an end."""
    database.append(readings(1, 1000, ["pump-1", "pump-2"]))
    while True:
        stored = _count(database, "readings") + database.count_readings()
        removed = database.prune(100, 10**9, 37)
        assert removed <= 37
        if not removed:
            break
        assert stored - _count(database, "readings") - database.count_readings() <= 2 * 37
    assert database.count_readings() == 200


def test_prune_keeps_what_recovery_needs(database: Database, short_tail: None) -> None:
    """No reading with lsn >= keep_from_lsn leaves the journal or the history."""
    database.append(readings(1, 300))
    while database.prune(10, 200, 1000):
        pass
    assert [row.lsn for row in database.readings_after(0)][-101:] == list(range(200, 301))
    assert _lsns(database) == list(range(200, 301))


def test_prune_keeps_the_newest_lsn_through_a_restart(tmp_path: Path, short_tail: None) -> None:
    """After everything was forgotten and pruned, a restart does not use an LSN again."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        database.append(readings(1, 100))
        database.forget_device("pump-1")
        while database.prune(10, 10**9, 1000):
            pass
        database.commit()
    with open_database(tmp_path, now_s=NOW_S) as database:
        assert database.next_lsn == 101


def test_prune_with_nothing_to_do_opens_no_group(database: Database) -> None:
    """A call that finds nothing returns 0 and writes nothing."""
    database.append(readings(1, 10))
    database.commit()
    assert database.prune(100, 10**9, 100) == 0
    assert not database._connection.in_transaction


def test_disk_stays_bounded_under_a_steady_stream(tmp_path: Path, short_tail: None) -> None:
    """With pruning at the pace of the stream the file stops growing."""
    sizes = []
    with open_database(tmp_path, now_s=NOW_S) as database:
        for first in range(1, 20_001, 100):
            database.append(readings(first, 100, ["pump-1", "pump-2"]))
            database.prune(200, first - 100, 300)
            database.commit()
            sizes.append(database._all("PRAGMA page_count")[0][0])
        assert database.count_readings() < 600
        assert _count(database, "readings") < 400
    assert max(sizes[100:]) <= max(sizes[:100])


def test_log_stays_bounded_while_a_reader_reads(tmp_path: Path) -> None:
    """The write-ahead log is folded back even with a reader open beside the writer."""
    log = tmp_path / "gruard.db-wal"
    with open_database(tmp_path, now_s=NOW_S) as database, open_readonly(tmp_path) as reader:
        database.append(readings(1, 300))
        database.commit()
        after = reader.readings_after(0, batch=1)
        for _ in range(200):
            database.put_outbox("t", bytes(100_000), 1, retain=False, key="k")
            database.commit()
            next(after)
            reader.history("pump-1", FIELDS, 10)
        assert log.stat().st_size < 6_000_000
        assert database.size_bytes() == (tmp_path / "gruard.db").stat().st_size + log.stat().st_size


def test_log_shrinks_after_a_reader_held_it_open(tmp_path: Path) -> None:
    """A log that grew because a reader stood still is cut back once the reader has moved."""
    log = tmp_path / "gruard.db-wal"
    with open_database(tmp_path, now_s=NOW_S) as database, open_readonly(tmp_path) as reader:
        with reader._snapshot():
            reader.outbox_pending()
            for _ in range(25):
                database.put_outbox("t", bytes(1_000_000), 1, retain=False, key="k")
                database.commit()
        assert log.stat().st_size > 20_000_000
        for _ in range(3):
            database.put_outbox("t", b"x", 1, retain=False, key="k")
            database.commit()
        assert log.stat().st_size < 17_000_000


def test_forgotten_device_is_gone_at_once_and_may_come_back_new(tmp_path: Path, short_tail: None) -> None:
    """Nothing of a forgotten device is read any more, not even when its name is used again."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        database.append(readings(1, 200, ["pump-1", "pump-2"]))
        database.forget_device("pump-1")
        database.forget_device("never-heard")
        assert _lsns(database) == []
        assert {row.device for row in database.readings_after(0)} == {"pump-2"}
        database.append(readings(201, 3))
        database.commit()
    with open_database(tmp_path, now_s=NOW_S) as database:
        assert _lsns(database) == [201, 202, 203]
        assert [(row.device, row.readings) for row in database.devices()] == [("pump-1", 3), ("pump-2", 100)]
        while database.prune(10**9, 10**9, 10):
            pass
        assert _count(database, "devices") == 2
        assert _lsns(database) == [201, 202, 203]
        assert database.skipped_rows == 0


def test_new_device_never_inherits_the_readings_of_a_forgotten_one(tmp_path: Path) -> None:
    """A device's number is not given again while its readings may still lie in the journal."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        database.append(readings(1, 10, ["old"]))
        database.forget_device("old")
        assert database.prune(100, 1, 100) == 0
        database.append(readings(11, 2, ["new"]))
        database.commit()
        assert _count(database, "devices") == 2
    with open_database(tmp_path, now_s=NOW_S) as database:
        assert _lsns(database, "new") == [11, 12]
        assert database.count_readings() == 2
        assert database.skipped_rows == 0


def test_damaged_record_costs_only_itself(tmp_path: Path, short_tail: None) -> None:
    """A record with a flipped bit, in journal or pack, is left out and counted; all others are there."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        database.append(readings(1, 100))
        database.commit()
        packed = database._all("SELECT id, first_lsn, body FROM packs ORDER BY id LIMIT 1")[0]
        body = bytearray(packed[2])
        body[len(body) // 2] ^= 4
        database._write("UPDATE packs SET body = ? WHERE id = ?", (bytes(body), packed[0]))
        database._write("UPDATE readings SET record = substr(record, 1, 20) WHERE lsn = 99")
        database._write("UPDATE readings SET record = 'text' WHERE lsn = 98")
        database._write("UPDATE readings SET record = NULL WHERE lsn = 97")
        lsns = _lsns(database)
        assert len(lsns) == 96
        assert not {97, 98, 99} & set(lsns)
        assert database.skipped_rows == 4
        assert len(list(database.readings_after(0))) == len(database._all("SELECT 1 FROM readings")) - 3


def test_damaged_records_do_not_stop_packing(database: Database, short_tail: None) -> None:
    """Packing passes over damaged and vanished journal rows and counts the damaged."""
    database.append(readings(1, 30))
    database._write("UPDATE readings SET record = x'00' WHERE lsn = 3")
    database._write("UPDATE readings SET fieldset = 999 WHERE lsn = 5")
    database._write("DELETE FROM readings WHERE lsn BETWEEN 9 AND 28")
    database.append(readings(31, 500))
    assert _lsns(database) == [1, 2, 4, 6, 7, 8, 29, 30, *range(31, 531)]
    assert database.skipped_rows >= 2
    while database.prune(20, 10**9, 1000):
        pass
    assert _lsns(database) == list(range(511, 531))


@pytest.mark.parametrize("body", [None, b"", b"short", 7])
def test_damaged_pack_is_pruned_like_any_other(database: Database, short_tail: None, body: object) -> None:
    """A pack that nobody can read does not stand in the way of pruning, which errs by no more than a pack."""
    database.append(readings(1, 200))
    database._write("UPDATE packs SET body = ? WHERE id = (SELECT min(id) FROM packs)", (body,))
    while database.prune(20, 10**9, 1000):
        pass
    assert database._all("SELECT 1 FROM packs WHERE body IS ?", (body,)) == []
    kept = _lsns(database)
    assert 20 - 16 < len(kept) <= 20
    assert kept == list(range(201 - len(kept), 201))


def test_failing_read_inside_a_write_takes_the_group_back(database: Database, short_tail: None) -> None:
    """If packing cannot read the journal, append raises StateError and stores nothing."""
    database.append(readings(1, 30))
    database.commit()
    database._write(
        "CREATE TEMP VIEW devices AS SELECT 1 AS id, NULL + 'x' AS device, json('{') AS packed_lsn"
    )
    with pytest.raises(StateError, match="cannot be read"):
        database.append(readings(31, 100))
    database.commit()
    assert _count(database, "readings") == 30
    assert database.next_lsn == 31
    assert (database.path.parent / "gruard.db.suspect").exists()


def test_writing_from_another_thread_is_a_bug(database: Database) -> None:
    """The opening belongs to the thread that made it; another's use is not dressed up as a disk error."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool, pytest.raises(sqlite3.ProgrammingError):
        pool.submit(database.append, readings(1, 1)).result()


def _start_child(program: str, directory: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(directory)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=str(_TESTS),
    )


def _run_child(program: str, directory: Path, *, killed: bool = False) -> str:
    child = _start_child(program, directory)
    output, _ = child.communicate(timeout=60)
    assert child.returncode == (-9 if killed else 0)
    return output


def test_damage_to_a_device_in_use_is_an_error_that_marks_the_file(
    database: Database, short_tail: None
) -> None:
    """A damaged row of a device, or of its fields, stops the group and has the file looked into."""
    database.append(readings(1, 30))
    database.commit()
    for damage in ("UPDATE devices SET readings = 7", "UPDATE fieldsets SET checksum = 1"):
        database._write(damage)
        database._owners.clear()
        database._fieldsets.clear()
        with pytest.raises(StateError):
            database.append(readings(31, 100) if "devices" in damage else [reading(31, "pump-2")])
        assert database.count_readings() == 30
    assert (database.path.parent / "gruard.db.suspect").exists()


def test_packing_passes_over_a_device_that_was_forgotten_meanwhile(
    database: Database, short_tail: None
) -> None:
    """A round of packing that had a device on its list goes on without it."""
    database.append(readings(1, 45, ["pump-1", "pump-2", "pump-3"]))
    for name in ("pump-1", "pump-2", "pump-3"):
        if database._sweep:
            database.forget_device(name)
    database.append(readings(46, 300, ["pump-4"]))
    assert _lsns(database, "pump-4") == list(range(46, 346))


def test_writing_from_another_thread_is_a_bug_and_no_damage(database: Database) -> None:
    """Misuse is not taken for a broken disk: the group stays as it is."""
    database.append(readings(1, 3))
    errors: list[Exception] = []

    def misuse() -> None:
        try:
            database.append(readings(4, 1))
        except sqlite3.ProgrammingError as error:
            errors.append(error)

    thread = threading.Thread(target=misuse)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert _lsns(database) == [1, 2, 3]


def test_folded_log_leaves_everything_committed_in_the_file(tmp_path: Path) -> None:
    """Through the open connection: also when somebody took the log's name away."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        database.append(readings(1, 300))
        database.commit()
        (tmp_path / "gruard.db-wal").unlink()
        database.append(readings(301, 5))
        database.fold_log()
        assert database.next_lsn == 301
        copy = tmp_path / "copy"
        copy.mkdir()
        (copy / "gruard.db").write_bytes((tmp_path / "gruard.db").read_bytes())
    with open_database(copy, now_s=NOW_S) as database:
        assert _lsns(database) == list(range(1, 301))
