"""Reading: histories, devices and checkpoints, by the writer and beside it."""

from __future__ import annotations

import math
import sqlite3
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support_database import FIELDS, NOW_S, checkpoint, reading, readings

from gruard.daemon.edges import history as history_module
from gruard.daemon.edges import journal as journal_module
from gruard.daemon.edges.database import Database, open_database, open_readonly
from gruard.daemon.edges.packs import read_fieldset
from gruard.daemon.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(tmp_path, now_s=NOW_S) as opened:
        yield opened


@pytest.fixture(params=["in the tail", "in packs"])
def packed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether readings stay in the journal's tail or move into packs at once."""
    if request.param == "in packs":
        for module in (journal_module, history_module):
            monkeypatch.setattr(module, "TAIL_RECORDS", 3)
            monkeypatch.setattr(module, "PACK_RECORDS", 4)


def test_history_gives_the_newest_rows_oldest_first(database: Database, packed: None) -> None:
    """The limit takes the newest rows, the order is by LSN, and uncommitted rows are seen."""
    database.append(readings(1, 20, ["pump-1", "pump-2"]))
    found = database.history("pump-1", FIELDS, 4)
    assert found.lsn.tolist() == [14, 16, 18, 20]
    assert found.values.tolist() == [[14, 14.5], [16, 16.5], [18, 18.5], [20, 20.5]]
    assert found.score.tolist() == [0.25] * 4
    assert (found.lsn.dtype, found.values.dtype, found.flags.dtype) == (np.int64, np.float64, np.int64)


def test_history_orders_columns_as_asked_and_fills_what_a_row_lacks(database: Database, packed: None) -> None:
    """Rows with other sets of fields are brought to the fields asked for, NaN where one is lacking."""
    database.append(
        [
            reading(1, fields=("temp",), values=(1.0,)),
            reading(2, fields=("load", "temp"), values=(20.0, 2.0)),
            reading(3, fields=("load", "temp"), values=(30.0, math.nan)),
            reading(4, fields=("other",), values=(4.0,)),
            reading(5, fields=("temp", "load", "other"), values=(5.0, 50.0, 500.0)),
            reading(6, fields=("temp",), values=(6.0,)),
        ]
    )
    found = database.history("pump-1", ("temp", "load"), 10)
    nan = math.nan
    expected = [[1, nan], [2, 20], [nan, 30], [nan, nan], [5, 50], [6, nan]]
    np.testing.assert_array_equal(found.values, expected)
    np.testing.assert_array_equal(database.history("pump-1", (), 10).values, np.empty((6, 0)))
    assert database.devices()[0].fields == ("temp",)


def test_history_of_an_unknown_device_is_empty(database: Database) -> None:
    """No rows, and still (0, F)."""
    found = database.history("nobody", FIELDS, 10)
    assert found.values.shape == (0, 2)
    assert found.lsn.shape == found.time_s.shape == found.score.shape == found.flags.shape == (0,)


@pytest.mark.parametrize("limit", [0, -1])
def test_history_with_no_room_is_empty(database: Database, limit: int) -> None:
    """A limit of nothing gives nothing."""
    database.append(readings(1, 5))
    assert database.history("pump-1", FIELDS, limit).lsn.tolist() == []


def test_history_many_equals_history_of_each(database: Database, packed: None) -> None:
    """One call for many devices gives what a call for each would."""
    names = [f"pump-{number}" for number in range(7)]
    database.append(readings(1, 100, names))
    many = database.history_many([*names, "nobody"], FIELDS, 9)
    assert list(many) == [*names, "nobody"]
    for name, found in many.items():
        single = database.history(name, FIELDS, 9)
        np.testing.assert_array_equal(found.lsn, single.lsn)
        np.testing.assert_array_equal(found.values, single.values)


def test_readings_after_goes_through_the_journal_in_order(database: Database) -> None:
    """Recovery reads all devices' rows behind an LSN, however small the batches."""
    database.append(readings(1, 50, ["pump-1", "pump-2", "pump-3"]))
    found = list(database.readings_after(20, batch=7))
    assert [row.lsn for row in found] == list(range(21, 51))
    assert found[0].device == "pump-1"
    found[0].values[0] = 1.0  # its own copy


def test_readings_after_sees_what_is_appended_meanwhile(database: Database) -> None:
    """The iteration holds no snapshot: rows that come while it runs are given too."""
    database.append(readings(1, 10))
    rows = database.readings_after(0, batch=5)
    next(rows)
    database.append(readings(11, 2))
    assert [row.lsn for row in rows] == list(range(2, 13))


def test_devices_tell_counts_and_times(database: Database, packed: None) -> None:
    """Each device shows its source, newest fields, readings ever, first and last event time."""
    database.append(readings(1, 30, ["pump-2", "pump-1"]))
    database.append([reading(31, "pump-1", fields=("temp",))])
    first, second = database.devices()
    assert (first.device, first.source, first.fields, first.readings) == ("pump-1", "plant", ("temp",), 16)
    assert (first.first_s, first.last_s) == (NOW_S + 1, NOW_S + 31)
    assert (second.device, second.readings, second.fields) == ("pump-2", 15, FIELDS)
    assert (second.first_s, second.last_s) == (NOW_S + 2, NOW_S + 30)
    assert database.count_readings() == 31


def test_checkpoints_come_back_newest_only(tmp_path: Path) -> None:
    """A device's newer checkpoint replaces the older, more than one page of them is read, bytes are kept."""
    state = bytes(range(256)) * 8
    with open_database(tmp_path, now_s=NOW_S) as database:
        many = [checkpoint(f"pump-{number}", lsn=number) for number in range(600)]
        database.save_checkpoints(many, generation=0, lsn=600)
        database.save_checkpoints([checkpoint("pump-3", lsn=10**12, state=state)], generation=0, lsn=10**12)
        database.commit()
    with open_readonly(tmp_path) as reader:
        found = {row.device: row for row in reader.checkpoints()}
        assert len(found) == 600
        assert found["pump-3"] == checkpoint("pump-3", lsn=10**12, state=state)
        assert found["pump-4"] == checkpoint("pump-4", lsn=4)
        assert [row.first_s for row in reader.devices()] == [None] * 600


def test_checkpoint_of_a_forgotten_device_is_gone(database: Database) -> None:
    """Forgetting a device forgets its memory; a new device of that name starts without one."""
    for generation in (0, 1):
        both = [checkpoint("pump-1"), checkpoint("pump-2")]
        database.save_checkpoints(both, generation=generation, lsn=7)
    database.forget_device("pump-1")
    database.append([reading(1, "pump-1")])
    assert [row.device for row in database.checkpoints()] == ["pump-2"]


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE checkpoints_0 SET state = x'0103' WHERE lsn = 1",
        "UPDATE checkpoints_0 SET state = 'text' WHERE lsn = 1",
        "UPDATE checkpoints_0 SET lsn = 5 WHERE lsn = 1",
        "UPDATE checkpoints_0 SET model = NULL WHERE lsn = 1",
        "UPDATE checkpoints_0 SET checksum = NULL WHERE lsn = 1",
        "UPDATE checkpoints_0 SET state = NULL, checksum = NULL WHERE lsn = 1",
        "UPDATE checkpoints_0 SET fieldset = 99 WHERE lsn = 1",
        "UPDATE devices SET device = 'pump-9' WHERE device = 'pump-1'",
    ],
)
def test_damaged_checkpoint_is_left_out_and_counted(database: Database, damage: str) -> None:
    """A checkpoint that is not what was saved, by one column, is never given out."""
    database.save_checkpoints([checkpoint("pump-1", lsn=1), checkpoint("pump-2", lsn=2)], generation=0, lsn=2)
    database._write(damage)
    assert [row.device for row in database.checkpoints()] == ["pump-2"]
    assert database.skipped_rows == 1


def test_history_under_a_damaged_name_is_left_out(database: Database, packed: None) -> None:
    """Rows never come out under a device, field or source they were not stored under."""
    database.append(readings(1, 20))
    database._write("UPDATE devices SET device = 'pump-9'")
    assert len(database.history("pump-9", FIELDS, 100).lsn) == 0
    assert database.skipped_rows > 0
    database._write("UPDATE devices SET device = 'pump-1'")
    database._fieldsets.clear()
    database._write('UPDATE fieldsets SET fields = \'["temp","lead"]\'')
    assert len(database.history("pump-1", FIELDS, 100).lsn) == 0


@pytest.mark.parametrize("text", ["", "[", "7", '["temp", 3]', "{}"])
def test_damaged_set_of_fields_costs_its_rows(database: Database, text: str) -> None:
    """A set of fields that cannot be read leaves its device out, and others in."""
    database.append([reading(1), reading(2, "pump-2", fields=("temp",))])
    database._write("UPDATE fieldsets SET fields = ? WHERE id = 1", (text,))
    database._fieldsets.clear()
    assert [row.device for row in database.devices()] == ["pump-2"]
    assert [row.device for row in database.readings_after(0)] == ["pump-2"]
    assert len(database.history("pump-1", FIELDS, 10).lsn) == 0


def test_reader_sees_commits_and_nothing_before(tmp_path: Path, packed: None) -> None:
    """A read-only opening beside the writer sees each commit as it comes, through packing and pruning."""
    with open_database(tmp_path, now_s=NOW_S) as database, open_readonly(tmp_path) as reader:
        assert reader.devices() == []
        for first in range(1, 400, 20):
            database.append(readings(first, 20, ["pump-1", "pump-2"]))
            database.prune(50, first - 10, 1000)
            before = reader.history("pump-1", FIELDS, 1).lsn.tolist()
            assert before == ([first - 1] if first > 1 else [])
            database.commit()
            assert reader.history("pump-1", FIELDS, 40).lsn.tolist() == list(range(2, first + 20, 2))[-40:]
            assert reader.devices() == database.devices()
            assert reader.count_readings() == database.count_readings()
        assert reader.skipped_rows == 0


def test_reader_sees_one_moment_although_readings_move_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is packed and pruned between two steps of a read is not missing from it."""
    monkeypatch.setattr(journal_module, "TAIL_RECORDS", 100)
    with open_database(tmp_path, now_s=NOW_S) as database, open_readonly(tmp_path) as reader:
        database.append(readings(1, 100))
        database.commit()
        learn = reader._catch_up

        def meanwhile() -> None:
            learn()
            monkeypatch.setattr(journal_module, "TAIL_RECORDS", 0)
            database.append(readings(101, 100))
            database.prune(20, 10**9, 1000)
            database.commit()

        monkeypatch.setattr(reader, "_catch_up", meanwhile)
        assert reader.history("pump-1", FIELDS, 1000).lsn.tolist() == list(range(1, 101))
        monkeypatch.setattr(reader, "_catch_up", learn)
        assert reader.history("pump-1", FIELDS, 1000).lsn.tolist() == list(range(181, 201))


def test_reader_in_another_process_reads_while_the_writer_writes(tmp_path: Path) -> None:
    """Another process reads whole groups, in order, while commits go on."""
    program = """
        import sys
        from pathlib import Path
        from gruard.daemon.edges.database import open_readonly
        with open_readonly(Path(sys.argv[1])) as reader:
            newest = 0
            while newest < 4000:
                lsns = reader.history("pump-1", ("temp",), 10**6).lsn.tolist()
                assert lsns == list(range(1, len(lsns) + 1)), lsns
                assert len(lsns) % 40 == 0
                newest = len(lsns)
            assert reader.skipped_rows == 0
    """
    with open_database(tmp_path, now_s=NOW_S) as database:
        database.commit()
        child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program), str(tmp_path)])
        for first in range(1, 4001, 40):
            database.append(readings(first, 40))
            database.commit()
        assert child.wait(timeout=60) == 0


def test_reader_works_without_a_daemon_and_after_a_crash(tmp_path: Path) -> None:
    """What was committed is read with the writer gone, whether it closed cleanly or not."""
    database = open_database(tmp_path, now_s=NOW_S)
    database.append(readings(1, 10))
    database.commit()
    database.close()
    with open_readonly(tmp_path) as reader:
        assert len(reader.history("pump-1", FIELDS, 100).lsn) == 10
    with open_database(tmp_path, now_s=NOW_S) as database:
        database.append(readings(11, 10))
        database.commit()
        crashed = tmp_path / "crashed"
        crashed.mkdir()
        for name in ("gruard.db", "gruard.db-wal"):
            (crashed / name).write_bytes((tmp_path / name).read_bytes())
    with open_readonly(crashed) as reader:
        assert len(reader.history("pump-1", FIELDS, 100).lsn) == 20


def test_reader_cannot_write(tmp_path: Path) -> None:
    """A read-only opening is one."""
    with open_database(tmp_path, now_s=NOW_S) as database, open_readonly(tmp_path) as reader:
        database.commit()
        assert not hasattr(reader, "append")
        with pytest.raises(StateError, match="readonly"):
            reader._all("DELETE FROM meta")


def test_reader_drops_its_notes_of_a_long_tail(tmp_path: Path, packed: None) -> None:
    """A reader open for long does not remember every reading that ever passed."""
    with open_database(tmp_path, now_s=NOW_S) as database, open_readonly(tmp_path) as reader:
        for first in range(1, 1000, 10):
            database.append(readings(first, 10))
            database.commit()
            reader.count_readings()
        if history_module.TAIL_RECORDS < 1000:
            assert reader._tail.count <= 4 * history_module.TAIL_RECORDS + 10
        assert reader.history("pump-1", FIELDS, 10**6).lsn.tolist() == list(range(1, 1001))


def test_reader_without_a_database_says_so(tmp_path: Path) -> None:
    """Before the first start there is nothing to read, in one sentence."""
    with pytest.raises(StateError, match=r"no database in .* yet"):
        open_readonly(tmp_path)
    with pytest.raises(StateError, match=r"no database in .* yet"):
        open_readonly(tmp_path / "missing")


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0" + bytes(84), b"garbage" * 1000])
def test_reader_of_a_damaged_file_says_so(tmp_path: Path, content: bytes) -> None:
    """A file that is no database raises StateError and is left where it is."""
    (tmp_path / "gruard.db").write_bytes(content)
    with pytest.raises(StateError, match="cannot be read"):
        open_readonly(tmp_path)
    assert (tmp_path / "gruard.db").read_bytes() == content


def test_reader_of_a_database_with_exchanged_pages_says_so(tmp_path: Path) -> None:
    """Rows of one table in another's place are found when a reader opens, not when it trips over them."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        database.append(readings(1, 5))
        database.commit()
        sql = "SELECT rootpage FROM sqlite_schema WHERE name IN ('devices', 'fieldsets')"
        pages = [slice(4096 * (number - 1), 4096 * number) for (number,) in database._all(sql)]
    content = bytearray((tmp_path / "gruard.db").read_bytes())
    content[pages[0]], content[pages[1]] = content[pages[1]], content[pages[0]]
    (tmp_path / "gruard.db").write_bytes(content)
    with pytest.raises(StateError, match="cannot be read"):
        open_readonly(tmp_path)


def test_reader_of_a_foreign_database_says_so(tmp_path: Path) -> None:
    """Somebody else's SQLite file is refused."""
    connection = sqlite3.connect(tmp_path / "gruard.db")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE t (a)")
    connection.close()
    with pytest.raises(StateError, match="not one of gruard's"):
        open_readonly(tmp_path)


def test_reading_of_a_device_that_never_was_is_counted(database: Database) -> None:
    """A row whose device was damaged is left out and counted; a forgotten device's row is none."""
    database.append(readings(1, 6, ["pump-1", "pump-2"]))
    database.forget_device("pump-2")
    database._write("UPDATE readings SET device = 77 WHERE lsn = 4")
    assert [row.lsn for row in database.readings_after(0)] == [2, 6]
    assert database.skipped_rows == 1


@pytest.mark.parametrize("body", [None, "text", b"short"])
def test_pack_that_is_none_is_left_out(
    database: Database, monkeypatch: pytest.MonkeyPatch, body: object
) -> None:
    """A pack without bytes, or with too few, costs its readings and no others."""
    for module in (journal_module, history_module):
        monkeypatch.setattr(module, "TAIL_RECORDS", 3)
        monkeypatch.setattr(module, "PACK_RECORDS", 4)
    database.append(readings(1, 20))
    database._write("UPDATE packs SET body = ? WHERE id = (SELECT min(id) FROM packs)", (body,))
    assert database.history("pump-1", FIELDS, 100).lsn.tolist() == list(range(5, 21))
    assert database.skipped_rows == 1


def test_rows_out_of_order_are_an_error_and_no_endless_loop(database: Database) -> None:
    """Paging stops where damage has put a table out of order."""
    with pytest.raises(StateError, match="out of order"):
        database._advanced(5, 5)


def test_size_counts_the_log_if_there_is_one(tmp_path: Path) -> None:
    """What the file and its log take together."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        database.append(readings(1, 5))
        database.commit()
        assert database.size_bytes() > (tmp_path / "gruard.db").stat().st_size
    assert database.size_bytes() == (tmp_path / "gruard.db").stat().st_size  # closing took the log away


@pytest.mark.parametrize("text", ["", "[", "7", '["temp", 3]', "{}"])
def test_text_that_names_no_fields_is_no_set_of_fields(text: str) -> None:
    """Names from a damaged index are looked at before they are tried."""
    assert read_fieldset("plant", text) is None
