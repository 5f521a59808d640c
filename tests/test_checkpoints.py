"""Two generations of checkpoints, the messages that were taken, and what a database of version 1 becomes."""

from __future__ import annotations

import random
import sqlite3
from typing import TYPE_CHECKING

import pytest
import support_damage
from support_database import FIELDS, NOW_S, alert, checkpoint, model, reading, readings

from gruard.daemon.edges import schema
from gruard.daemon.edges.checksums import read_deliveries, row_checksum
from gruard.daemon.edges.database import Database, open_database, open_readonly
from gruard.daemon.errors import StateError
from gruard.daemon.records import Delivery

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(tmp_path, now_s=NOW_S) as opened:
        yield opened


def _lsns(database: Database) -> dict[str, int]:
    return {row.device: row.lsn for row in database.checkpoints()}


def _delivery(number: int, packet_id: int | None = None) -> Delivery:
    return Delivery(
        number % 65_535 + 1 if packet_id is None else packet_id, number, number.to_bytes(8, "big")
    )


# --- generations -----------------------------------------------------------------------------------------


def test_new_database_has_no_checkpoints_and_keeps_the_whole_journal(database: Database) -> None:
    """Before the first checkpoint recovery begins at the beginning."""
    assert database.older_generation() == 0
    assert database.recovery_start() == 0
    assert database.keep_from_lsn() == 1
    assert _lsns(database) == {}


def test_generations_are_written_in_turns(database: Database) -> None:
    """The one to write is the one that is behind; the journal is kept from behind the older."""
    for turn, lsn in enumerate((10, 20, 30)):
        generation = database.older_generation()
        assert generation == turn % 2
        database.save_checkpoints([checkpoint("pump-1", lsn)], generation=generation, lsn=lsn)
        assert database.recovery_start() == lsn
        assert _lsns(database) == {"pump-1": lsn}
    assert database.keep_from_lsn() == 21


def test_checkpoint_without_a_device_that_moved_still_moves_the_generation(database: Database) -> None:
    """A generation covers its devices up to its LSN, whether they moved or not."""
    database.save_checkpoints([checkpoint("pump-1", 10)], generation=0, lsn=10)
    database.save_checkpoints([], generation=1, lsn=20)
    assert database.recovery_start() == 20
    assert database.keep_from_lsn() == 11
    database.save_checkpoints([], generation=0, lsn=30)
    assert (database.recovery_start(), database.keep_from_lsn()) == (30, 21)
    assert _lsns(database) == {"pump-1": 10}


def test_generation_is_whole_by_itself_after_a_restart(tmp_path: Path) -> None:
    """What only the other generation knows is taken over at the first save, so that either may be lost."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        many = [checkpoint(f"pump-{number}", 10) for number in range(300)]
        database.save_checkpoints(many, generation=0, lsn=10)
        database.commit()
    with open_database(tmp_path, now_s=NOW_S) as database:
        database.save_checkpoints([checkpoint("pump-7", 20)], generation=1, lsn=20)
        database._write("DELETE FROM checkpoints_0")
        assert _lsns(database) == {f"pump-{number}": 20 if number == 7 else 10 for number in range(300)}
        assert database.recovery_start() == 20


def test_damaged_row_of_the_newest_generation_falls_back_to_the_older(tmp_path: Path) -> None:
    """One device comes back from its older row and the journal behind it; the next save mends that."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        both = ("pump-1", "pump-2")
        database.save_checkpoints([checkpoint(name, 10) for name in both], generation=0, lsn=10)
        database.save_checkpoints([checkpoint(name, 20) for name in both], generation=1, lsn=20)
        database._write("UPDATE checkpoints_1 SET state = x'00' WHERE device = 1")
        database.commit()
    with open_database(tmp_path, now_s=NOW_S) as database:
        assert _lsns(database) == {"pump-1": 10, "pump-2": 20}
        assert database.skipped_rows == 1
        assert database.recovery_start() == 10
        assert database.keep_from_lsn() == 11
        # The whole one is not touched before the other is whole again.
        assert database.older_generation() == 1
        database.save_checkpoints([checkpoint("pump-1", 25)], generation=1, lsn=25)
        assert _lsns(database) == {"pump-1": 25, "pump-2": 20}
        assert (database.recovery_start(), database.older_generation()) == (25, 0)


def test_missing_row_of_the_newest_generation_is_noticed(database: Database) -> None:
    """A generation knows how many rows it has: one that vanished makes it not whole."""
    both = [checkpoint("pump-1", 10), checkpoint("pump-2", 10)]
    for generation, lsn in ((0, 10), (1, 20)):
        database.save_checkpoints(both, generation=generation, lsn=lsn)
    database._write("DELETE FROM checkpoints_1 WHERE device = 2")
    database.commit()
    database.rollback()  # forgets what it knows, as a start does
    assert database.recovery_start() == 10
    assert database.older_generation() == 1


def test_both_generations_damaged_are_written_oldest_first(database: Database) -> None:
    """With no whole generation left recovery begins behind the older, which is written next."""
    for generation, lsn in ((0, 10), (1, 20)):
        database.save_checkpoints([checkpoint("pump-1", lsn)], generation=generation, lsn=lsn)
        database._write(f"UPDATE checkpoints_{generation} SET state = x'00'")  # noqa: S608
    database.commit()
    database.rollback()
    assert (database.recovery_start(), database.older_generation()) == (10, 0)


def test_damaged_entry_of_a_generation_is_read_off_its_rows(database: Database) -> None:
    """Without its entry a generation goes at least as far as its newest row, and counts as not whole."""
    for generation, lsn in ((0, 10), (1, 20)):
        database.save_checkpoints([checkpoint("pump-1", lsn)], generation=generation, lsn=lsn)
    database._write("UPDATE generations SET lsn = 99 WHERE id = 1")
    database.commit()
    database.rollback()  # forgets what it knows, as a start does
    assert database.recovery_start() == 10
    assert database.older_generation() == 1
    database.forget_device("pump-1")
    database.save_checkpoints([], generation=1, lsn=30)
    assert database.recovery_start() == 30


def test_forgotten_device_leaves_both_generations_whole(database: Database) -> None:
    """Forgetting is no damage."""
    both = [checkpoint("pump-1", 10), checkpoint("pump-2", 10)]
    for generation, lsn in ((0, 10), (1, 20)):
        database.save_checkpoints(both, generation=generation, lsn=lsn)
    database.forget_device("pump-1")
    assert database.recovery_start() == 20
    assert _lsns(database) == {"pump-2": 10}


def test_checkpoint_taken_back_leaves_the_generation_as_it_was(database: Database) -> None:
    """A rolled back save is not half there, and the next first save takes everything over again."""
    database.save_checkpoints([checkpoint("pump-1", 10), checkpoint("pump-2", 10)], generation=0, lsn=10)
    database.commit()
    database.save_checkpoints([checkpoint("pump-1", 20)], generation=1, lsn=20)
    database.rollback()
    assert (database.recovery_start(), database.older_generation()) == (10, 1)
    database.save_checkpoints([checkpoint("pump-1", 30)], generation=1, lsn=30)
    database._write("DELETE FROM checkpoints_0")
    assert _lsns(database) == {"pump-1": 30, "pump-2": 10}


# --- deliveries ------------------------------------------------------------------------------------------


def test_deliveries_come_back_newest_of_each_packet_id(tmp_path: Path) -> None:
    """Of a packet id that was used again the newest message counts, and what was missing of it is kept."""
    kept = Delivery(7, 3, b"deadbeef", (0, 2, 4_000_000_000))
    with open_database(tmp_path, now_s=NOW_S) as database:
        database.note_deliveries([_delivery(1, 7), _delivery(2, 65_535)])
        database.note_deliveries([kept])
        database.note_deliveries([])
        database.commit()
        database.note_deliveries([_delivery(9, 7)])
    with open_readonly(tmp_path) as reader:
        assert sorted(reader.deliveries(), key=lambda row: row.packet_id) == [kept, _delivery(2, 65_535)]
        assert reader.skipped_rows == 0


def test_deliveries_are_bounded_by_the_packet_ids_there_are(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest of each of 65,535 ids are kept, through restarts of the numbering, and no more."""
    for first in range(0, 140_000, 1000):
        database.note_deliveries([_delivery(number) for number in range(first, first + 1000)])
    found = {row.packet_id: row.ordinal for row in database.deliveries()}
    assert len(found) == 65_535
    assert min(found.values()) == 140_000 - 65_535
    assert database._all("SELECT count(*) FROM deliveries")[0][0] <= 67
    database.rollback()
    database.note_deliveries([_delivery(1)])
    assert list(database.deliveries()) == [_delivery(1)]


def test_forgotten_deliveries_are_gone(database: Database) -> None:
    """A new session of the broker begins with none."""
    database.note_deliveries([_delivery(1), _delivery(2)])
    database.forget_deliveries()
    assert list(database.deliveries()) == []
    database.note_deliveries([_delivery(3)])
    assert list(database.deliveries()) == [_delivery(3)]


def test_forgotten_deliveries_leave_room_for_as_many_new_ones(database: Database) -> None:
    """Of the messages of a new session none is dropped because of the old one's."""
    for first in (0, 60_000):
        database.note_deliveries([_delivery(number) for number in range(first, first + 50_000)])
        database.note_deliveries([_delivery(number) for number in range(first + 50_000, first + 60_000)])
        assert len(list(database.deliveries())) == 60_000
        database.forget_deliveries()
        assert list(database.deliveries()) == []


@pytest.mark.parametrize("body", [b"", b"\0" * 40, b"four", b"text"])
def test_damaged_deliveries_are_harmless(database: Database, body: object) -> None:
    """A group that is not what was written is left out and counted; the others and new ones are there."""
    for number in range(3):
        database.note_deliveries([_delivery(number)])
    database._write("UPDATE deliveries SET body = ? WHERE seq = 2", (body,))
    assert list(database.deliveries()) == [_delivery(0), _delivery(2)]
    assert database.skipped_rows == 1


def test_flipped_bit_in_deliveries_never_makes_another_message(database: Database) -> None:
    """No changed packet id, number or digest comes out as one that was taken."""
    whole = [_delivery(number) for number in range(20)]
    database.note_deliveries(whole)
    ((body,),) = database._all("SELECT body FROM deliveries")
    rng = random.Random(1)
    for _ in range(300):
        broken = bytearray(body)
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        database._write("UPDATE deliveries SET body = ?", (bytes(broken),))
        assert list(database.deliveries()) == []


# --- version 1 -------------------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path) -> tuple[Path, support_damage.Truth, support_damage.Found]:
    """A directory with a database of version 1, what was written to it, and what it holds."""
    with pytest.MonkeyPatch.context() as patch:
        support_damage.shorten(patch)
        truth = support_damage.build(tmp_path / "new", copies={})
        with open_readonly(tmp_path / "new") as reader:
            held = support_damage.read_back(reader, truth)
    support_damage.make_old(tmp_path / "old", tmp_path / "new")
    return tmp_path / "old", truth, held


def test_database_of_version_1_is_lifted_and_keeps_everything(
    old: tuple[Path, support_damage.Truth, support_damage.Found],
) -> None:
    """Readings, packs, checkpoints, alerts, outbox, models, meta are there, under checksums from now on."""
    directory, truth, held = old
    with pytest.raises(StateError, match="older gruard"):
        open_readonly(directory)
    for _ in range(2):
        with open_database(directory, now_s=NOW_S) as database:
            assert database.set_aside is None
            found = support_damage.read_back(database, truth)
            assert database.skipped_rows == 0
            assert database.meta("schema_version") == "3"
            assert database.meta("checkpoint_lsn") is None
    assert (found.journal, found.history, found.sums) == (held.journal, held.history, held.sums)
    assert (found.alerts, found.outbox, found.models) == (held.alerts, held.outbox, held.models)
    with open_readonly(directory) as reader:
        assert support_damage.read_back(reader, truth) == found


def test_database_of_version_1_has_one_generation(
    old: tuple[Path, support_damage.Truth, support_damage.Found],
) -> None:
    """The other is written next, and the journal is kept whole until it is there."""
    directory, _, held = old
    with open_database(directory, now_s=NOW_S) as database:
        assert database.older_generation() == 1
        assert database.recovery_start() > 0
        assert database.keep_from_lsn() == 1
        while database.prune(10, database.keep_from_lsn(), 1000):
            pass
        assert {row.lsn for row in database.readings_after(0)} == held.journal
        lsn = database.next_lsn - 1
        database.save_checkpoints([], generation=1, lsn=lsn)
        assert database.keep_from_lsn() > 1
        database._write("DELETE FROM checkpoints_0")
        assert len(_lsns(database)) == len(support_damage.DEVICES)


def test_empty_database_of_version_1_is_lifted(tmp_path: Path) -> None:
    """One without a checkpoint or a reading too."""
    tmp_path.joinpath("old").mkdir()
    connection = sqlite3.connect(tmp_path / "old" / "gruard.db", isolation_level=None)
    for statement in schema._V1:
        connection.execute(statement)
    connection.execute("INSERT INTO meta VALUES ('schema_version', '1')")
    connection.execute("PRAGMA user_version = 1")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    with open_database(tmp_path / "old", now_s=NOW_S) as database:
        assert database.set_aside is None
        assert (database.older_generation(), database.recovery_start(), database.next_lsn) == (0, 0, 1)


# --- checksums -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("meta", "value = 'other'"),
        ("alerts", "score = 0.5"),
        ("alerts", "resolved_s = 5"),
        ("outbox", "payload = x'00'"),
        ("outbox", "topic = 'other'"),
        ("models", "status = 'live'"),
        ("models", "checksum = NULL"),
    ],
)
def test_damaged_row_of_a_small_table_is_left_out_and_counted(
    database: Database, table: str, change: str
) -> None:
    """A row that is not what was written, by one column, is never given out."""
    database.set_meta("key", "value")
    database.save_alert(alert())
    database.put_outbox("t", b"payload", 1, retain=False, key="k")
    database.add_model(model("m-1"))
    database._write(f"UPDATE {table} SET {change} WHERE rowid = (SELECT max(rowid) FROM {table})")  # noqa: S608
    left = {
        "meta": database.meta("key"),
        "alerts": database.alerts(10),
        "outbox": database.outbox(10),
        "models": database.models(),
    }
    assert not left[table]
    assert all(found for name, found in left.items() if name != table)
    assert database.skipped_rows == 1


@pytest.mark.parametrize(
    "table", ["meta", "generations", "fieldsets", "devices", "models", "alerts", "outbox"]
)
def test_damaged_row_of_a_small_table_is_salvaged_around_at_the_start(tmp_path: Path, table: str) -> None:
    """The start moves everything else into a new file, so that nothing works on with a damaged table."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        database.append([*readings(1, 9), reading(10, fields=("temp",))])
        for number in range(2):
            database.set_meta(f"key-{number}", "value")
            database.save_alert(alert(f"a-{number}"))
            database.put_outbox("t", b"payload", 1, retain=False, key=f"k-{number}")
            database.add_model(model(f"m-{number}"))
            database.save_checkpoints([checkpoint()], generation=number, lsn=7 + number)
        database._write(f"UPDATE {table} SET checksum = 1 WHERE rowid = (SELECT max(rowid) FROM {table})")  # noqa: S608
        database.commit()
    with pytest.raises(StateError, match=f"a row of {table} is damaged"):
        open_readonly(tmp_path)
    with open_database(tmp_path, now_s=NOW_S) as database:
        assert database.set_aside is not None
        assert database.salvaged is not None
        assert database.salvaged.lost == {table: 1}
        assert database.count_readings() == 10
        assert database.history("pump-1", FIELDS, 20).lsn.tolist() == list(range(1, 11))
        assert _lsns(database) == {"pump-1": 7}
        assert database.next_lsn == 11
        kept = [len(database.alerts(9)), len(database.models()), len(database.outbox(9))]
        assert kept == [1 if table == name else 2 for name in ("alerts", "models", "outbox")]
    with open_database(tmp_path, now_s=NOW_S) as database:
        assert database.set_aside is None
        assert database.salvaged is None


def test_checksum_of_what_no_column_holds_is_a_bug() -> None:
    """Rather an error at once than a row that nobody can verify."""
    with pytest.raises(TypeError, match="no column holds"):
        row_checksum("meta", "key", object())


def test_checksums_tell_rows_apart_and_read_numbers_as_their_column_gives_them_back() -> None:
    """A column of floats gives 1 back as 1.0; a text is no blob, and columns do not run into each other."""
    assert row_checksum("t", 1, 2.0) == row_checksum("t", 1.0, 2)
    rows = [("a", "b"), ("ab", ""), ("", "ab"), (b"a", "b"), (None, "b"), (1, "b"), (0.1, "b"), (1, 1), (11,)]
    assert len({row_checksum("t", *row) for row in rows}) == len(rows)


@pytest.mark.parametrize("body", [None, "text", 7])
def test_deliveries_that_are_no_bytes_are_none(body: object) -> None:
    """Whatever a damaged page gives in their place."""
    assert read_deliveries(body) == []
