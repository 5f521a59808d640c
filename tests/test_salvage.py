"""What is saved of a damaged database: everything but what the damage itself hit."""

from __future__ import annotations

import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import textwrap
import time
from dataclasses import astuple, replace
from itertools import chain
from typing import TYPE_CHECKING

import pytest
import support_damage
from support_damage import DEVICES, GROUP, GROUPS, PAGE, Found, Truth, read_back
from support_database import FIELDS, NOW_S, alert, checkpoint, model, reading, readings

from gruard.daemon.edges import database as database_module
from gruard.daemon.edges import pages as pages_module
from gruard.daemon.edges import salvage as salvage_module
from gruard.daemon.edges import schema
from gruard.daemon.edges.checksums import row_checksum
from gruard.daemon.edges.database import open_database
from gruard.daemon.edges.packs import checkpoint_checksum, read_fieldset
from gruard.daemon.edges.pages import Cell, Log, Pages, log_of, varint
from gruard.daemon.edges.rows import Salvaged
from gruard.daemon.edges.salvage import Salvage
from gruard.daemon.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

FRAME = PAGE + 24


class History:
    """A database that was closed, the same as a kill left it, and what both hold."""

    def __init__(self, directory: Path) -> None:
        self.closed, self.crashed = directory / "closed", directory / "crashed"
        self.truth: Truth = support_damage.build(self.closed, copies={GROUPS: self.crashed})
        shutil.copytree(self.closed, directory / "copy")
        with open_database(directory / "copy", now_s=NOW_S) as database:
            self.whole: Found = read_back(database, self.truth)
            sql = "SELECT name, rootpage FROM sqlite_schema"
            self.roots: dict[str, int] = dict(database._all(sql))


@pytest.fixture(scope="module")
def past(tmp_path_factory: pytest.TempPathFactory) -> History:
    with pytest.MonkeyPatch.context() as patch:
        support_damage.shorten(patch)
        return History(tmp_path_factory.mktemp("past"))


@pytest.fixture
def closed(past: History, tmp_path: Path) -> Path:
    shutil.copytree(past.closed, tmp_path / "state")
    return tmp_path / "state"


@pytest.fixture
def crashed(past: History, tmp_path: Path) -> Path:
    shutil.copytree(past.crashed, tmp_path / "state")
    return tmp_path / "state"


def _change(file: Path, change: Callable[[bytearray], object]) -> None:
    content = bytearray(file.read_bytes())
    change(content)
    file.write_bytes(content)


def _zero(number: int) -> Callable[[bytearray], None]:
    """Damage that fills a page with zeros."""

    def change(content: bytearray) -> None:
        content[PAGE * (number - 1) : PAGE * number] = bytes(PAGE)

    return change


def _salvage(directory: Path, past: History) -> tuple[Found, Salvaged]:
    """What a start finds, and what it says it saved; the start after it finds the same in a sound file."""
    with open_database(directory, now_s=NOW_S) as database:
        assert database.set_aside is not None
        assert database.salvaged is not None
        found = read_back(database, past.truth)
        assert database.next_lsn > max(found.journal | found.history, default=0)
        salvaged = database.salvaged
    with open_database(directory, now_s=NOW_S) as database:
        assert database.set_aside is None
        assert read_back(database, past.truth) == found
    return found, salvaged


# --- the file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["closed", "crashed"])
def test_first_page_gone_costs_nothing_but_itself(
    past: History, request: pytest.FixtureRequest, form: str
) -> None:
    """A file that SQLite cannot even open gives every row back, counters and numbering included."""
    directory = request.getfixturevalue(form)
    _change(directory / "gruard.db", lambda content: content.__setitem__(slice(0, 100), bytes(100)))
    with open_database(past.closed.parent / "copy", now_s=NOW_S) as database:
        names, next_lsn = [row.device for row in database.devices()], database.next_lsn
    with open_database(directory, now_s=NOW_S) as database:
        found = read_back(database, past.truth)
        assert [row.device for row in database.devices()] == names
        assert database.next_lsn == next_lsn
        assert database.salvaged is not None
        assert database.salvaged.lost == {}
        assert database.salvaged.rows["devices"] == len(DEVICES)
        database.put_outbox("t", b"", 1, retain=False, key="k")
        assert database.outbox(10**6)[-1].seq == 3 * GROUPS + 1
    # The list of free pages is gone too: packs that were pruned come back, and will be pruned again.
    assert found.history >= past.whole.history
    assert replace(found, history=past.whole.history) == past.whole


@pytest.mark.parametrize(
    "table", ["readings", "packs", "deliveries", "alerts", "outbox", "sqlite_autoindex_devices_1"]
)
def test_root_of_a_table_gone_leaves_its_other_pages(past: History, closed: Path, table: str) -> None:
    """Pages below an inner page that is gone are found by themselves."""
    _change(closed / "gruard.db", _zero(past.roots[table]))
    found, salvaged = _salvage(closed, past)
    if table in {"readings", "packs", "deliveries"}:  # their roots are inner pages
        assert found == past.whole
        assert salvaged.lost == {}
    elif table == "sqlite_autoindex_devices_1":
        assert found == past.whole
    assert found.sums == past.whole.sums


def test_page_of_the_journal_gone_costs_its_readings_and_counts_them(past: History, closed: Path) -> None:
    """The missing LSNs are counted exactly, and everything else is there."""
    content = (closed / "gruard.db").read_bytes()
    newest = max(past.whole.journal)
    with sqlite3.connect(closed / "gruard.db") as connection:
        ((record,),) = connection.execute("SELECT record FROM readings WHERE lsn = ?", (newest - 3,))
    connection.close()
    page = content.index(record) // PAGE + 1
    _change(closed / "gruard.db", _zero(page))
    found, salvaged = _salvage(closed, past)
    missing = past.whole.journal - found.journal
    assert newest - 3 in missing
    # The newest reading went with the page: what stood behind it is told by nothing but deliveries.
    known = {lsn for lsn in missing if lsn <= max(found.journal)}
    assert salvaged.lost.get("readings", 0) >= len(known)
    assert found.alerts == past.whole.alerts
    assert found.checkpoints == past.whole.checkpoints


@pytest.mark.parametrize("copy", [0, 1])
def test_name_damaged_in_table_or_index_is_taken_from_the_other(
    past: History, closed: Path, copy: int
) -> None:
    """The name of a device, or a set of fields, may be lost once without a row being lost by it."""
    for name in (b"pump-2", b'["temp","load"]'):
        content = (closed / "gruard.db").read_bytes()
        roots = {"pump-2": "devices", '["temp","load"]': "fieldsets"}
        table = roots[name.decode()]
        number = past.roots[(table, f"sqlite_autoindex_{table}_1")[copy]]
        place = content.index(name, PAGE * (number - 1))
        assert place < PAGE * number
        _change(
            closed / "gruard.db", lambda content, at=place: content.__setitem__(at + 1, content[at + 1] ^ 1)
        )
    found, _ = _salvage(closed, past)
    assert found == past.whole


def test_device_whose_row_is_lost_gets_its_counters_from_its_packs(past: History, closed: Path) -> None:
    """First and last time, number of rows and next pack are worked out anew; packing goes on behind."""
    _change(closed / "gruard.db", _zero(past.roots["devices"]))
    with open_database(past.closed.parent / "copy", now_s=NOW_S) as database:
        before = {row.device: row for row in database.devices()}
    with open_database(closed, now_s=NOW_S) as database:
        assert read_back(database, past.truth) == past.whole
        for row in database.devices():
            told = before[row.device]
            assert (row.source, row.fields, row.last_s) == (told.source, told.fields, told.last_s)
            assert row.readings <= told.readings  # those pruned before are not known any more
        first = database.next_lsn
        database.append(readings(first, 600, DEVICES))
        assert database.count_readings() == len(past.whole.history) + 600
        assert database.skipped_rows == 0


def test_lost_packs_leave_their_readings_to_the_journal_where_it_has_them(tmp_path: Path) -> None:
    """A reading that was packed and not yet trimmed is history again, and is counted once."""
    with pytest.MonkeyPatch.context() as patch:
        support_damage.shorten(patch)
        with open_database(tmp_path, now_s=NOW_S) as database:
            database.append(readings(1, 600, ["pump-1", "pump-2"]))
            database.commit()
            (root,) = database._all("SELECT rootpage FROM sqlite_schema WHERE name = 'packs'")[0]
            lost = database._all("SELECT max(id) FROM packs")[0][0]
            database._write("UPDATE packs SET body = zeroblob(length(body)) WHERE id = ?", (lost,))
            database.commit()
        _change(tmp_path / "gruard.db", _zero(1))
        assert root
        with open_database(tmp_path, now_s=NOW_S) as database:
            assert database.salvaged is not None
            assert database.salvaged.lost == {"packs": 16}
            assert database.count_readings() == 600
            assert [row.readings for row in database.devices()] == [300, 300]
            for name, first in (("pump-1", 2), ("pump-2", 1)):
                assert database.history(name, FIELDS, 1000).lsn.tolist() == list(range(first, 601, 2))


def test_packs_under_wrong_numbers_come_into_order(tmp_path: Path) -> None:
    """A pack's number has no checksum: its readings tell where it belongs, and count once."""
    with pytest.MonkeyPatch.context() as patch:
        support_damage.shorten(patch)
        with open_database(tmp_path, now_s=NOW_S) as database:
            database.append(readings(1, 400))
            base = 1 << 32
            database._write("UPDATE packs SET id = ? WHERE id = ?", (base + 700, base + 3))
            database._write(
                "INSERT INTO packs SELECT id + 800, fieldset, 1, 1, body FROM packs WHERE id = ?", (base,)
            )
            database.commit()
        _change(tmp_path / "gruard.db", _zero(1))
        with open_database(tmp_path, now_s=NOW_S) as database:
            assert database.salvaged is not None
            assert database.salvaged.lost == {}
            assert database.history("pump-1", FIELDS, 1000).lsn.tolist() == list(range(1, 401))
            database.append(readings(401, 200))
            assert database.history("pump-1", FIELDS, 1000).lsn.tolist() == list(range(1, 601))
            assert database.count_readings() == 600


def test_forgotten_device_is_not_salvaged(tmp_path: Path) -> None:
    """What was forgotten stays forgotten, and is no loss."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        database.append(readings(1, 40, ["pump-1", "pump-2"]))
        for generation in (0, 1):
            database.save_checkpoints(
                [checkpoint("pump-1"), checkpoint("pump-2")], generation=generation, lsn=7
            )
        database.forget_device("pump-1")
        database.commit()
    _change(tmp_path / "gruard.db", _zero(1))
    with open_database(tmp_path, now_s=NOW_S) as database:
        assert database.salvaged is not None
        assert database.salvaged.lost == {}
        assert [row.device for row in database.devices()] == ["pump-2"]
        assert database.recovery_start() == 7
        assert database.next_lsn == 41
        # Its number is not given again.
        database.append([reading(41, "pump-1")])
        assert max(row[0] for row in database._all("SELECT id FROM devices")) == 3


def test_numbering_goes_on_above_a_lost_end_of_the_journal(tmp_path: Path) -> None:
    """With the newest readings lost, what checkpoints and damaged rows tell still bounds the next LSN."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        database.append(readings(1, 50))
        for generation in (0, 1):
            database.save_checkpoints(
                [checkpoint(lsn=40 + generation)], generation=generation, lsn=40 + generation
            )
        database._write("UPDATE readings SET record = zeroblob(60) WHERE lsn = 50")
        database._write("DELETE FROM readings WHERE lsn BETWEEN 30 AND 49")
        database.commit()
    _change(tmp_path / "gruard.db", _zero(1))
    for _ in range(2):
        with open_database(tmp_path, now_s=NOW_S) as database:
            assert database.next_lsn == 51
    with open_database(tmp_path, now_s=NOW_S) as database:
        database.append([reading(51)])
        database.commit()
        assert database.next_lsn == 52


def test_newest_generation_gone_comes_back_from_the_older_and_the_journal(
    past: History, closed: Path
) -> None:
    """With every page of the newest checkpoints damaged no memory is lost."""
    with open_database(past.closed.parent / "copy", now_s=NOW_S) as database:
        newest = 1 - database.older_generation()
        states = database._all(f"SELECT state FROM checkpoints_{newest}")  # noqa: S608 - 0 or 1
    content = (closed / "gruard.db").read_bytes()
    for (state,) in states:
        place = content.index(state, PAGE * (past.roots[f"checkpoints_{newest}"] - 1))
        _change(closed / "gruard.db", lambda content, at=place: content.__setitem__(at + 25, 1))
    with open_database(closed, now_s=NOW_S) as database:
        assert database.set_aside is None
        found = read_back(database, past.truth)
        assert database.recovery_start() == database.keep_from_lsn() - 1
        assert database.skipped_rows > 0
    assert found.sums == past.whole.sums


# --- the log ---------------------------------------------------------------------------------------------


def _frames(directory: Path) -> int:
    return ((directory / "gruard.db-wal").stat().st_size - 32) // FRAME


@pytest.mark.parametrize("part", range(4))
def test_bad_frame_costs_what_is_on_it_and_not_what_is_behind(
    past: History, crashed: Path, part: int
) -> None:
    """SQLite would drop every group behind a flipped bit in the log; it costs the newest rows of a page."""
    rng = random.Random(part)
    lost_groups = 0
    for _ in range(6):
        directory = crashed.with_name("copy")
        shutil.copytree(crashed, directory)
        log = log_of(directory / "gruard.db")
        frame = rng.randrange(max(log.pages.values()) * 9 // 10)
        place = 32 + FRAME * frame + rng.randrange(24, FRAME)
        _change(
            directory / "gruard.db-wal", lambda content, at=place: content.__setitem__(at, content[at] ^ 16)
        )
        found, salvaged = _salvage(directory, past)
        assert max(found.journal) == max(past.whole.journal)
        missing = (past.whole.journal | past.whole.history) - (found.journal | found.history)
        assert len(missing) <= salvaged.lost.get("readings", 0) + salvaged.lost.get("packs", 0) <= 80
        lost_groups += len(missing) > GROUP
        if past.whole.journal <= found.journal:
            assert found.sums == past.whole.sums
        shutil.rmtree(directory)
    assert lost_groups <= 1


@pytest.mark.parametrize("place", [0, 3, 5, 10, 17, 26])
def test_damaged_head_of_the_log_costs_nothing(past: History, crashed: Path, place: int) -> None:
    """SQLite would drop the whole log over its head; its frames prove each other."""
    _change(crashed / "gruard.db-wal", lambda content: content.__setitem__(place, content[place] ^ 1))
    found, _ = _salvage(crashed, past)
    assert max(found.journal) == max(past.whole.journal)
    assert found.sums == past.whole.sums
    assert len(past.whole.history - found.history) <= 80


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 56, 32 + FRAME - 1])
def test_log_cut_before_its_first_frame_is_an_empty_log(past: History, crashed: Path, size: int) -> None:
    """What the file itself holds is there, without damage being claimed."""
    _change(crashed / "gruard.db-wal", lambda content: content.__delitem__(slice(size, None)))
    with open_database(crashed, now_s=NOW_S) as database:
        assert database.set_aside is None
        assert not database.torn_group
        found = read_back(database, past.truth)
    assert max(found.journal) == GROUP * GROUPS // 2


def test_log_cut_inside_its_last_group_gives_the_group_before(past: History, crashed: Path) -> None:
    """A group that a power cut left half written was never acknowledged, and is not there by half."""
    _change(
        crashed / "gruard.db-wal", lambda content: content.__delitem__(slice(len(content) - FRAME - 9, None))
    )
    with open_database(crashed, now_s=NOW_S) as database:
        assert database.set_aside is None
        found = read_back(database, past.truth)
        assert database.meta("key") == f"value-{GROUPS - 1}"
    assert max(found.journal) == GROUP * (GROUPS - 1)


def test_bad_frame_in_the_last_group_leaves_the_group_out_and_says_so(past: History, crashed: Path) -> None:
    """Nothing tells it from a power cut, which may write a group's frames in any order."""
    log = log_of(crashed / "gruard.db")
    place = 32 + FRAME * (max(log.pages.values()) - 1) + 2000
    _change(crashed / "gruard.db-wal", lambda content: content.__setitem__(place, content[place] ^ 1))
    with open_database(crashed, now_s=NOW_S) as database:
        assert database.set_aside is None
        assert database.torn_group
        found = read_back(database, past.truth)
    assert max(found.journal) == GROUP * (GROUPS - 1)
    with open_database(crashed, now_s=NOW_S) as database:
        assert not database.torn_group


def test_log_that_was_begun_anew_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    """Frames of an earlier round behind the newest are no part of it."""
    with open_database(tmp_path / "state", now_s=NOW_S) as database:
        for first in range(1, 2001, 100):
            database.append(readings(first, 100))
            database.commit()
            if first % 500 == 1:
                database._all("PRAGMA wal_checkpoint")
            shutil.copytree(tmp_path / "state", tmp_path / "copy")
            with open_database(tmp_path / "copy", now_s=NOW_S) as copy:
                assert copy.set_aside is None
                assert copy.next_lsn == first + 100
            shutil.rmtree(tmp_path / "copy")


def test_frames_of_a_failed_commit_do_not_outlive_the_next(tmp_path: Path) -> None:
    """What a refused commit left in the log must not look like groups behind a bad frame."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        database.append(readings(1, 300))
        database.commit()
        assert (tmp_path / "gruard.db-wal").stat().st_size > 0
        with pytest.raises(StateError, match="cannot be written"):
            database.append(readings(1, 1))
        with open_database_reader(tmp_path) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM meta").fetchone()
            database.append(readings(301, 1))
            database.commit()  # a reader stands in the way, and the commit does not wait for it
            assert (tmp_path / "gruard.db-wal").stat().st_size > 0
            reader.execute("ROLLBACK")
        database.append(readings(302, 1))
        database.commit()
        assert (tmp_path / "gruard.db-wal").stat().st_size == 0
        assert database._all("PRAGMA busy_timeout") == [(schema.BUSY_MS,)]


def open_database_reader(directory: Path) -> sqlite3.Connection:
    return schema.connect(directory / "gruard.db", readonly=True)


# --- the way there ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", ["", "-wal"])
def test_start_killed_between_the_renames_is_finished_by_the_next(
    past: History, closed: Path, left: str
) -> None:
    """A salvaged database that waits for its name gets it; what was left behind is set aside."""
    (closed / "gruard.db").rename(closed / "gruard.db.salvaged")
    if left:
        (closed / "gruard.db-wal").write_bytes(b"left behind")
    with open_database(closed, now_s=NOW_S) as database:
        assert (database.set_aside is not None) == bool(left)
        assert read_back(database, past.truth) == past.whole
    assert not (closed / "gruard.db.salvaged").exists()


def test_start_killed_amid_salvaging_begins_it_anew(past: History, closed: Path) -> None:
    """A half-made copy beside a damaged database is no hindrance."""
    _change(closed / "gruard.db", _zero(1))
    for suffix in ("", "-wal", "-shm", "-journal"):
        (closed / f"gruard.db.salvaged{suffix}").write_bytes(b"half")
    _salvage(closed, past)
    assert sorted(file.name for file in closed.iterdir()) == [
        "gruard.db", "gruard.db.damaged-20260101T000000Z", "gruard.lock",
    ]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_starts_killed_at_any_moment_of_salvaging_lose_nothing(
    past: History, closed: Path, seed: int
) -> None:
    """However often a start is killed between finding the damage and the renames, the last one has it all."""
    program = """
        import sys
        from pathlib import Path
        from gruard.daemon.edges.database import open_database
        print("begins", flush=True)
        open_database(Path(sys.argv[1]), now_s=0.0)
        print("open", flush=True)
    """
    _change(closed / "gruard.db", lambda content: content.__setitem__(slice(0, 32), bytes(32)))
    rng = random.Random(seed)
    run = [sys.executable, "-c", textwrap.dedent(program), str(closed)]
    for _ in range(6):
        with subprocess.Popen(run, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "begins\n"
            time.sleep(rng.random() * 0.1)
            child.kill()
    with open_database(closed, now_s=NOW_S) as database:
        assert read_back(database, past.truth) == past.whole


def test_disk_without_room_for_the_copy_leaves_the_damaged_database_where_it_is(
    past: History, closed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The start is refused for the disk's sake; once there is room everything is salvaged."""
    _change(closed / "gruard.db", _zero(1))

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(database_module, "salvage", full)
        with pytest.raises(StateError, match="disk is full"):
            open_database(closed, now_s=NOW_S)
    assert not list(closed.glob("*.damaged*"))
    found, _ = _salvage(closed, past)
    assert found.sums == past.whole.sums


def test_copy_that_does_not_fit_together_does_not_stop_the_start(
    past: History, closed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If what was salvaged fails the checks itself, an empty database is begun and both are kept."""
    _change(closed / "gruard.db", _zero(1))

    def nonsense(_: Path, target: sqlite3.Connection) -> Salvaged:
        target.execute("INSERT INTO meta VALUES ('key', 'value', 0)")
        return Salvaged({}, {})

    monkeypatch.setattr(database_module, "salvage", nonsense)
    with open_database(closed, now_s=NOW_S) as database:
        assert database.set_aside is not None
        assert database.salvaged is None
        assert database.next_lsn == 1
    assert len(list(closed.glob("gruard.db.damaged*"))) == 2


@pytest.mark.parametrize("error", [TypeError, ValueError, KeyError, OverflowError])
def test_bytes_that_nobody_thought_of_do_not_stop_the_start(
    closed: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """If salvaging trips over them an empty database is begun, and the damaged one is kept for a look."""
    _change(closed / "gruard.db", _zero(1))

    def trip(_: Path, target: sqlite3.Connection) -> Salvaged:
        target.execute("BEGIN")
        target.execute("INSERT INTO meta VALUES ('key', 'value', 0)")
        raise error

    monkeypatch.setattr(database_module, "salvage", trip)
    with open_database(closed, now_s=NOW_S) as database:
        assert database.set_aside is not None
        assert database.salvaged is None
        assert (database.next_lsn, database.meta("key")) == (1, None)


def test_new_database_that_fails_its_checks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that does not give back what was just written is no place to work on."""

    def create(path: Path) -> None:
        path.write_bytes(b"not what was written")

    monkeypatch.setattr(schema, "create", create)
    with pytest.raises(StateError, match="cannot be opened"):
        open_database(tmp_path, now_s=NOW_S)


def test_rollback_journal_beside_the_database_is_not_applied(past: History, closed: Path) -> None:
    """Nobody of ours writes one; SQLite would write its pages into the file."""
    (closed / "gruard.db-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(4096))
    found, salvaged = _salvage(closed, past)
    assert found == past.whole
    assert salvaged.lost == {}


@pytest.mark.parametrize("one", ["readings", "packs", "checkpoints_0"])
@pytest.mark.parametrize("other", ["deliveries", "checkpoints_1"])
def test_exchanged_tables_are_found_at_the_start(past: History, closed: Path, one: str, other: str) -> None:
    """A table whose root page was exchanged for another's is not taken for sound, and no row is lost."""

    def exchange(content: bytearray) -> None:
        first, second = (
            slice(PAGE * (past.roots[name] - 1), PAGE * past.roots[name]) for name in (one, other)
        )
        content[first], content[second] = content[second], content[first]

    _change(closed / "gruard.db", exchange)
    found, _ = _salvage(closed, past)
    assert found == past.whole


@pytest.mark.parametrize("number", [-1, 1 << 31, 1 << 62])
def test_damaged_counter_of_rows_does_not_stop_new_ones(tmp_path: Path, number: int) -> None:
    """A number near the highest there is would refuse every further row; it is put right at the start."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        database.put_outbox("t", b"", 1, retain=False, key="k")
        database._write("UPDATE sqlite_sequence SET seq = ? WHERE name = 'outbox'", (number,))
        database.commit()
    with open_database(tmp_path, now_s=NOW_S) as database:
        assert database.set_aside is not None
        assert database.put_outbox("t", b"", 1, retain=False, key="k") == 2


# --- rows and pages --------------------------------------------------------------------------------------


@pytest.fixture
def target(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A new and empty database to salvage into."""
    schema.create(tmp_path / "target.db")
    connection = schema.connect(tmp_path / "target.db")
    yield connection
    connection.close()


def test_left_over_rows_lose_against_newer_ones(past: History, closed: Path) -> None:
    """With the list of free pages lost, a row that was deleted or written anew hides no newer one."""
    with open_database(closed, now_s=NOW_S) as database:
        for number in range(400):
            database.save_alert(alert(f"b-{number:03}", NOW_S + number))
        database.commit()
        for number in range(400):
            database.save_alert(alert(f"b-{number:03}", NOW_S + number, NOW_S + 1000 + number))
        database._write("DELETE FROM alerts WHERE id LIKE 'b-%' AND CAST(substr(id, 3) AS INTEGER) < 300")
        database.commit()
        for number in range(300, 400):
            database.save_alert(alert(f"b-{number:03}", NOW_S + number, NOW_S + 2000 + number))
        database.commit()
    _change(closed / "gruard.db", _zero(1))
    with open_database(closed, now_s=NOW_S) as database:
        newest = {row.id: row.updated_s for row in database.alerts(10**6) if row.id >= "b-300"}
        assert {name: at for name, at in newest.items() if name.startswith("b-")} == {
            f"b-{number}": NOW_S + number for number in range(300, 400)
        }


def test_every_kind_of_column_is_read_as_sqlite_reads_it(tmp_path: Path) -> None:
    """Integers of every width, floats, texts, blobs, long and short, come out as they went in."""
    rows = [
        (number, value)
        for number, value in enumerate(
            [
                None, 0, 1, -1, 127, -128, 32_767, -32_768, 8_388_607, -8_388_608, 2**31 - 1, -(2**31),
                2**47 - 1, -(2**47), 2**63 - 1, -(2**63), 0.5, -1e300, float("inf"), "", "text", "Ünïcode",
                "x" * 5000, b"", b"\0\1", b"y" * 100_000, "z" * 4000, b"w" * 4061, b"v" * 4062,
            ],
            1,
        )
    ]  # fmt: skip
    connection = sqlite3.connect(tmp_path / "any.db")
    connection.execute("CREATE TABLE any (id INTEGER PRIMARY KEY, value)")
    connection.executemany("INSERT INTO any VALUES (?, ?)", rows)
    connection.execute("INSERT INTO any VALUES (-5, 'below zero')")
    connection.commit()
    connection.close()
    with Pages(tmp_path / "any.db") as pages:
        cells = [cell for cell in chain.from_iterable(pages.leaves()) if cell and len(cell.kinds) == 2]
        found = {cell.rowid: cell.values()[1] for cell in cells}
    assert found == {**dict(rows), -5: "below zero"}


def _cell(rowid: int, *values: object) -> Cell:
    """A row of a table as it lies in a page."""
    kinds, body = [], b""
    for value in values:
        match value:
            case None:
                kinds.append(0)
            case int():
                kinds.append(6)
                body += value.to_bytes(8, "big", signed=True)
            case float():
                kinds.append(7)
                body += struct.pack(">d", value)
            case str():
                kinds.append(13 + 2 * len(value.encode()))
                body += value.encode()
            case bytes():
                kinds.append(12 + 2 * len(value))
                body += value
    return Cell(rowid, tuple(kinds), body)


def _sealed_cell(table: str, rowid: int, *row: object) -> Cell:
    """A sound row of a table with checksums."""
    stored = (None, *row[1:]) if row[0] == rowid else row
    return _cell(rowid, *stored, row_checksum(table, *row))


class _Rows:
    """Pages that hold given rows, one after another."""

    def __init__(self, *cells: Cell | None) -> None:
        self._cells = cells

    def leaves(self) -> Iterator[Iterator[Cell | None]]:
        return (iter([cell]) for cell in self._cells)


def _run(target: sqlite3.Connection, *cells: Cell | None) -> Salvaged:
    return Salvage(_Rows(*cells), target).run()  # type: ignore[arg-type]


@pytest.mark.parametrize("order", [1, -1])
def test_of_two_rows_under_one_key_the_newer_is_taken(target: sqlite3.Connection, order: int) -> None:
    """Whichever lies first in the file, the later word on an alert counts; a model's later activation too."""
    alerts = [astuple(alert("a", NOW_S, resolved)) for resolved in (None, NOW_S + 5)]
    alerts[1] = (*alerts[1][:6], NOW_S + 5, *alerts[1][7:])
    models = [astuple(replace(model("m"), activated_s=at)) for at in (None, NOW_S)]
    generations = [(0, lsn, 0) for lsn in (10, 20)]
    cells = [
        *(_sealed_cell("alerts", 3, *row) for row in alerts),
        *(_sealed_cell("models", 1, *row) for row in models),
        *(_sealed_cell("generations", 0, *row) for row in generations),
    ]
    assert _run(target, *cells[::order]).lost == {}
    assert target.execute("SELECT updated_s FROM alerts").fetchall() == [(NOW_S + 5,)]
    assert target.execute("SELECT activated_s FROM models").fetchall() == [(NOW_S,)]
    assert target.execute("SELECT id, lsn FROM generations").fetchall() == [(0, 20)]


def test_one_live_model_is_left_in_each_group(target: sqlite3.Connection) -> None:
    """An entry from before a model was replaced does not put it in charge again."""
    rows = [("m-1", "a", 10.0), ("m-2", "a", 30.0), ("m-3", "a", 20.0), ("m-4", "b", 5.0), ("m-5", "b", None)]
    live = [replace(model(name, group, "live"), activated_s=at) for name, group, at in rows]
    _run(target, *(_sealed_cell("models", place, *astuple(row)) for place, row in enumerate(live)))
    found = target.execute("SELECT id FROM models WHERE status = 'live' ORDER BY id").fetchall()
    assert found == [("m-2",), ("m-4",)]
    assert target.execute("SELECT count(*) FROM models WHERE status = 'retired'").fetchone() == (3,)


def test_two_alerts_under_one_row_number_are_both_taken(target: sqlite3.Connection) -> None:
    """A deleted alert's number is given again; should the deleted one come back, it hides nothing."""
    cells = [
        _sealed_cell("alerts", 5, *astuple(alert(name, NOW_S, at))) for name, at in (("a", None), ("b", 5.0))
    ]
    assert _run(target, *cells).rows["alerts"] == 2


def test_entry_of_a_generation_behind_its_rows_is_not_taken(target: sqlite3.Connection) -> None:
    """It was left over from before: the rows tell how far the generation goes."""
    fieldset = read_fieldset("plant", '["temp"]')
    assert fieldset is not None
    content = (20, "layout", None, b"state")
    checksum = checkpoint_checksum(0, "pump-1", fieldset, *content)
    saved = _run(
        target,
        _sealed_cell("fieldsets", 1, 1, "plant", '["temp"]'),
        _sealed_cell("devices", 1, 1, "pump-1", 1, None, None, 0, 0, 0, 0),
        _sealed_cell("generations", 0, 0, 10, 1),
        _cell(1, None, 1, *content, checksum),
    )
    assert saved.rows["devices"] == 1
    assert target.execute("SELECT lsn FROM checkpoints_0").fetchall() == [(20,)]
    assert target.execute("SELECT count(*) FROM generations").fetchall() == [(0,)]


def test_what_cannot_be_proven_is_counted(target: sqlite3.Connection) -> None:
    """Unreadable entries, damaged deliveries, rows without an owner, names that are none."""
    saved = _run(
        target,
        None,
        _cell(1, None, 2, b"no deliveries"),
        _cell(7, None, 1, 1, b"no reading"),
        _cell(1 << 32, None, 1, 1, 1, b"no pack"),
        _cell(1, None, 1, 1, "layout", None, b"no state", 5),
        _cell(2, None, "plant", "no fields", 1),
        _cell(3, "key", "value", 1),
        Cell(4, (1, 1, 1, 1, 1, 1), b"of no table"),
        Cell(None, (13 + 2 * 4, 1), b"\xff\xff\xff\xff\1"),
    )
    assert saved.lost == {"unreadable": 1, "deliveries": 1, "fieldsets": 1, "meta": 1, "readings": 1}
    assert sum(saved.rows.values()) == 0
    floor = target.execute("SELECT value FROM meta WHERE key = 'lsn_floor'").fetchall()
    assert floor == [("8",)]


@pytest.mark.parametrize("kind", [10, 11])
def test_column_of_no_kind_is_no_value(kind: int) -> None:
    """SQLite keeps two kinds for itself."""
    with pytest.raises(ValueError, match="no such kind"):
        Cell(1, (kind,), b"").values()


def test_pages_of_nothing_are_none(tmp_path: Path) -> None:
    """No file, no log: no rows."""
    with Pages(tmp_path / "missing.db") as pages:
        assert pages.count == 0
        assert list(pages.leaves()) == []
    assert not Log(b"").is_damaged


@pytest.mark.parametrize("place", [*range(32, 40), 0])
def test_damaged_list_of_free_pages_hides_nothing_that_is_in_use(
    past: History, closed: Path, place: int
) -> None:
    """It is believed as a whole or not at all; an entry that names another page costs that page."""
    free = int.from_bytes((closed / "gruard.db").read_bytes()[32:36], "big")
    assert free > 0
    _change(closed / "gruard.db", lambda content: content.__setitem__(0, 0))  # SQLite cannot open it
    at = place or PAGE * (free - 1) + 11  # in the head, or an entry of the list itself
    _change(closed / "gruard.db", lambda content: content.__setitem__(at, content[at] ^ 4))
    with open_database(closed, now_s=NOW_S) as database:
        found = read_back(database, past.truth)
        assert database.salvaged is not None
        lost = sum(database.salvaged.lost.values())
    assert len(past.whole.history - found.history) <= lost <= (0 if place else 80)
    assert found.sums == past.whole.sums


def test_page_that_the_disk_cannot_read_is_taken_for_empty(
    past: History, closed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bad sector costs its page."""
    real = pages_module.os.pread
    bad = PAGE * (past.roots["models"] - 1)

    def pread(file: int, size: int, at: int) -> bytes:
        if at == bad:
            raise OSError("bad sector")
        return real(file, size, at)

    _change(closed / "gruard.db", _zero(1))
    monkeypatch.setattr(pages_module.os, "pread", pread)
    found, _ = _salvage(closed, past)
    assert found.sums == past.whole.sums
    assert found.history >= past.whole.history
    assert found.models == 0
    assert found.alerts == past.whole.alerts


@pytest.mark.parametrize("seed", range(40))
def test_pages_of_noise_never_raise(tmp_path: Path, seed: int) -> None:
    """Whatever lies in a file, reading its pages ends, and every cell is one or none."""
    rng = random.Random(seed)
    content = bytearray(rng.randbytes(PAGE * 6))
    for number in range(6):
        content[PAGE * number] = rng.choice([0x0D, 0x0A, 0x02, 0x05])
        content[PAGE * number + 3 : PAGE * number + 5] = rng.randrange(2000).to_bytes(2, "big")
    content[100] = 0x0D
    content[32:36] = rng.randrange(8).to_bytes(4, "big")
    (tmp_path / "noise.db").write_bytes(content)
    with Pages(tmp_path / "noise.db") as pages:
        for cell in chain.from_iterable(pages.leaves()):
            if cell is not None:
                try:
                    assert len(cell.values()) == len(cell.kinds)
                except ValueError:
                    continue


@pytest.mark.parametrize("value", [0, 1, 127, 128, 16_383, 16_384, 2**56 - 1, 2**56, 2**64 - 1])
def test_varint_is_read_to_its_end(value: int) -> None:
    """One to nine bytes, the ninth of eight bits."""
    if value < 1 << 56:
        groups = [value & 0x7F]
        while value >> 7 * len(groups):
            groups.append(value >> 7 * len(groups) & 0x7F)
        content = bytes([*(group | 0x80 for group in groups[:0:-1]), groups[0]])
    else:
        head = value >> 8
        content = bytes([*((head >> 7 * place & 0x7F) | 0x80 for place in range(7, -1, -1)), value & 0xFF])
    assert varint(content + b"behind", 0) == (value, len(content))
    with pytest.raises(IndexError):
        varint(content[:-1], 0)


def test_database_of_version_1_gives_its_readings_and_checkpoints(past: History, tmp_path: Path) -> None:
    """They had checksums, which prove the names in its indexes too; its small tables had none."""
    support_damage.make_old(tmp_path / "old", past.closed)
    _change(tmp_path / "old" / "gruard.db", _zero(1))
    with open_database(tmp_path / "old", now_s=NOW_S) as database:
        assert database.set_aside is not None
        found = read_back(database, past.truth)
        assert database.next_lsn == max(past.whole.journal) + 1
    assert (found.journal, found.sums) == (past.whole.journal, past.whole.sums)
    assert found.history >= past.whole.history
    assert (found.alerts, found.outbox, found.models) == (0, 0, 0)


def test_row_that_is_no_text_is_counted_as_lost(target: sqlite3.Connection, closed: Path) -> None:
    """A column whose bytes are no UTF-8 makes its row a lost one."""
    content = (closed / "gruard.db").read_bytes()
    place = content.index(b"a-60" + b"pump-1")
    _change(closed / "gruard.db", lambda content: content.__setitem__(place, 0xFF))
    saved = salvage_module.salvage(closed / "gruard.db", target)
    assert saved.lost["alerts"] == 1
