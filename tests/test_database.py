"""Opening the database, whatever lies in the directory, and the small tables."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from support_database import FIELDS, NOW_S, alert, checkpoint, model, reading, readings

from gruard.daemon.edges import bounds as bounds_module
from gruard.daemon.edges import journal as journal_module
from gruard.daemon.edges import schema
from gruard.daemon.edges import tables as tables_module
from gruard.daemon.edges.database import Database, open_database, open_readonly
from gruard.daemon.edges.rows import OutboxRow
from gruard.daemon.edges.tables import Tables
from gruard.daemon.errors import StateError
from gruard.daemon.records import Delivery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from gruard.daemon.edges.history import Reader

DEVICES = ("pump-1", "pump-2", "pump-3")


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(tmp_path, now_s=NOW_S) as opened:
        yield opened


@pytest.fixture
def used(tmp_path: Path) -> Path:
    """A directory with a database that holds ten readings."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        database.append(readings(1, 10))
        database.commit()
    return tmp_path


# --- directories and locks -------------------------------------------------------------------------------


def test_open_makes_directory_and_files_for_their_owner_only(tmp_path: Path) -> None:
    """Missing directories are made; nobody else may read what is in them."""
    directory = tmp_path / "lib" / "gruard"
    with open_database(directory, now_s=NOW_S) as database:
        database.append(readings(1, 1))
        database.commit()
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        for file in directory.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
        assert database.set_aside is None
    assert sorted(file.name for file in directory.iterdir()) == ["gruard.db", "gruard.lock"]


def test_database_writes_ahead_and_flushes_each_commit(database: Database) -> None:
    """The settings that durability rests on are in force."""
    assert database._all("PRAGMA journal_mode") == [("wal",)]
    assert database._all("PRAGMA synchronous") == [(2,)]


def test_open_of_a_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """A file in the directory's place, or in its way, is a StateError in one sentence."""
    (tmp_path / "file").write_text("x")
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StateError, match="cannot be used"):
            open_database(directory, now_s=NOW_S)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_open_of_a_directory_without_rights_is_refused(used: Path) -> None:
    """A directory or a file that may not be written is a StateError, and nothing is set aside."""
    (used / "gruard.db").chmod(0o400)
    with pytest.raises(StateError, match="Permission denied"):
        open_database(used, now_s=NOW_S)
    (used / "gruard.db").chmod(0o600)
    used.chmod(0o500)
    with pytest.raises(StateError, match="cannot be used: Permission denied"):
        open_database(used, now_s=NOW_S)
    used.chmod(0o000)
    with pytest.raises(StateError, match="Permission denied"):
        open_readonly(used)
    used.chmod(0o700)
    with open_database(used, now_s=NOW_S) as database:
        assert database.count_readings() == 10


def test_directory_or_file_that_the_system_denies_is_refused(
    used: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may not be read or written is a StateError, whoever asks, and nothing is set aside."""
    may = os.access
    for denied, told in ((used, "cannot be used"), (used / "gruard.db", "cannot be opened")):
        monkeypatch.setattr(
            os, "access", lambda path, mode, denied=denied: path != denied and may(path, mode)
        )
        with pytest.raises(StateError, match=f"{told}.*Permission denied"):
            open_database(used, now_s=NOW_S)
    assert sorted(file.name for file in used.iterdir()) == ["gruard.db", "gruard.lock"]


def test_second_writer_is_refused_until_the_first_closes(used: Path) -> None:
    """Two daemons never write one directory, in one process or in two."""
    program = """
        import sys
        from pathlib import Path
        from gruard.daemon.edges.database import open_database
        from gruard.daemon.errors import StateError
        try:
            open_database(Path(sys.argv[1]), now_s=0.0).close()
        except StateError as error:
            print(error)
    """
    run = [sys.executable, "-c", textwrap.dedent(program), str(used)]
    with open_database(used, now_s=NOW_S):
        with pytest.raises(StateError, match="Another gruard is writing"):
            open_database(used, now_s=NOW_S)
        assert "Another gruard is writing" in subprocess.check_output(run, text=True)
    assert subprocess.check_output(run, text=True) == ""


def test_disk_that_takes_no_log_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite says only by its answer that it stays without a write-ahead log; that is no database of ours."""

    class Without(sqlite3.Connection):
        def execute(self, sql: str, *parameters: object) -> sqlite3.Cursor:
            return super().execute(sql.replace("journal_mode = WAL", "journal_mode = DELETE"), *parameters)  # type: ignore[arg-type]

    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda *args, **named: real(*args, factory=Without, **named))
    with pytest.raises(StateError, match="takes no write-ahead log"):
        open_database(tmp_path, now_s=NOW_S)
    monkeypatch.undo()
    open_database(tmp_path, now_s=NOW_S).close()


def test_failed_open_lets_go_of_the_lock(used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a refused start the next one is not told of another writer."""
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ("nonsense",)))
    for _ in range(2):
        with pytest.raises(StateError, match="nonsense"):
            open_database(used, now_s=NOW_S)


# --- versions --------------------------------------------------------------------------------------------


def _with_step(monkeypatch: pytest.MonkeyPatch, *statements: str) -> None:
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, statements))


def test_older_database_is_migrated_and_keeps_its_rows(used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each missing step is run once, in order, and recorded."""
    with monkeypatch.context() as patch:
        _with_step(patch, "ALTER TABLE alerts ADD COLUMN note TEXT")
        _with_step(patch, "UPDATE meta SET value = value", "CREATE INDEX alerts_note ON alerts (note)")
        for _ in range(2):
            with open_database(used, now_s=NOW_S) as database:
                assert database.set_aside is None
                assert database._all("PRAGMA user_version") == [(len(schema.MIGRATIONS),)]
                assert database.meta("schema_version") == str(len(schema.MIGRATIONS))
                assert database._all("SELECT note FROM alerts") == []
                assert database.count_readings() == 10
        with open_readonly(used) as reader:
            assert reader.count_readings() == 10


def test_failed_migration_changes_nothing(used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that fails leaves the file at its version, where the older gruard still reads it."""
    with monkeypatch.context() as patch:
        _with_step(patch, "ALTER TABLE alerts ADD COLUMN note TEXT", "INSERT INTO meta VALUES ('a', NULL, 0)")
        with pytest.raises(StateError, match="NOT NULL"):
            open_database(used, now_s=NOW_S)
    with open_database(used, now_s=NOW_S) as database:
        assert database.set_aside is None
        assert database.count_readings() == 10


def test_newer_database_is_refused_and_left_alone(used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A downgraded gruard says what to do instead of touching what it does not understand."""
    with monkeypatch.context() as patch:
        _with_step(patch, "ALTER TABLE alerts ADD COLUMN note TEXT")
        open_database(used, now_s=NOW_S).close()
    content, known = (used / "gruard.db").read_bytes(), len(schema.MIGRATIONS)
    for opening in (lambda: open_database(used, now_s=NOW_S), lambda: open_readonly(used)):
        with pytest.raises(
            StateError, match=f"schema version {known + 1} and this gruard knows up to {known}"
        ):
            opening()
    assert (used / "gruard.db").read_bytes() == content
    assert not list(used.glob("*damaged*"))


def test_reader_of_an_older_database_says_so(used: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the writer migrates; a reader before it asks for a start of the daemon."""
    _with_step(monkeypatch, "ALTER TABLE alerts ADD COLUMN note TEXT")
    with pytest.raises(StateError, match="older gruard"):
        open_readonly(used)


# --- damage ----------------------------------------------------------------------------------------------


def _rewrite(change: Callable[[bytearray], bytes | None]) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        content = bytearray((directory / "gruard.db").read_bytes())
        changed = change(content)
        (directory / "gruard.db").write_bytes(content if changed is None else changed)

    return damage


def _replace_by_foreign(directory: Path) -> None:
    (directory / "gruard.db").unlink()
    connection = sqlite3.connect(directory / "gruard.db")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE t (a)")
    connection.close()


def _replace_by_folder(directory: Path) -> None:
    (directory / "gruard.db").unlink()
    (directory / "gruard.db").mkdir()


def _leave_only_the_log(directory: Path) -> None:
    (directory / "gruard.db").unlink()
    (directory / "gruard.db-wal").write_bytes(b"what was committed")


def _put_a_folder_for_the_log(directory: Path) -> None:
    (directory / "gruard.db-wal").mkdir()


def _execute(*statements: str) -> Callable[[Path], None]:
    def damage(directory: Path) -> None:
        connection = sqlite3.connect(directory / "gruard.db", isolation_level=None)
        for statement in statements:
            connection.execute(statement)
        connection.close()

    return damage


DAMAGES = {
    "empty": _rewrite(lambda _: b""),
    "text": _rewrite(lambda _: b"this is no database\n" * 300),
    "zeros": _rewrite(lambda content: bytes(len(content))),
    "header only": _rewrite(lambda content: bytes(content[:100])),
    "cut in the middle": _rewrite(lambda content: bytes(content[: len(content) // 2])),
    "cut inside a page": _rewrite(lambda content: bytes(content[:-5000])),
    "magic": _rewrite(lambda content: content.__setitem__(3, 0)),
    "no longer a WAL database": _rewrite(lambda content: content.__setitem__(slice(18, 20), b"\1\1")),
    "unknown write version": _rewrite(lambda content: content.__setitem__(18, 9)),
    "application id": _rewrite(lambda content: content.__setitem__(70, 0)),
    "one version number": _rewrite(lambda content: content.__setitem__(63, 77)),
    "version number below zero": _rewrite(lambda content: content.__setitem__(60, 0xFF)),
    "schema table": _rewrite(lambda content: content.__setitem__(slice(100, 300), bytes(200))),
    "all but the first page": _rewrite(lambda content: content.__setitem__(slice(4096, None), bytes(8192))),
    "foreign database": _replace_by_foreign,
    "a folder": _replace_by_folder,
    "log without database": _leave_only_the_log,
    "folder for the log": _put_a_folder_for_the_log,
    "table missing": _execute("DROP TABLE outbox"),
    "column missing": _execute("ALTER TABLE alerts DROP COLUMN payload"),
    "index missing": _execute("DROP INDEX outbox_topic"),
    "trigger added": _execute("CREATE TRIGGER t AFTER INSERT ON readings BEGIN DELETE FROM readings; END"),
    "schema text": _execute(
        "PRAGMA writable_schema = ON",
        "UPDATE sqlite_schema SET sql = replace(sql, 'severity', 'sevErity') WHERE name = 'alerts'",
    ),
}


#: Damage that leaves none of the readings. All other leaves them all.
NOTHING_LEFT = {
    "empty", "text", "zeros", "header only", "all but the first page", "foreign database", "a folder",
    "log without database",
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_database_is_set_aside_and_the_start_goes_on(used: Path, kind: str) -> None:
    """Whatever lies in the database's place is kept under another name, and what is sound in it goes on."""
    DAMAGES[kind](used)
    with open_database(used, now_s=NOW_S) as database:
        assert database.set_aside is not None
        assert database.set_aside.name.startswith("gruard.db.damaged-20260101T000000Z")
        assert database.set_aside.exists()
        first = database.next_lsn
        kept = database.count_readings()
        assert kept == (0 if kind in NOTHING_LEFT else 10), database.salvaged
        database.append(readings(first, 5))
        database.commit()
    with open_database(used, now_s=NOW_S) as database:
        assert database.set_aside is None
        assert database.count_readings() == kept + 5


def test_set_aside_takes_the_log_along_and_never_overwrites(used: Path) -> None:
    """The file and its log keep belonging together, and two in one second get two names."""
    names = []
    for number in range(3):
        (used / "gruard.db").write_bytes(b"broken %d" % number)
        (used / "gruard.db-wal").write_bytes(b"log %d" % number)
        with open_database(used, now_s=NOW_S) as database:
            assert database.set_aside is not None
            names.append(database.set_aside.name)
    first = "gruard.db.damaged-20260101T000000Z"
    assert names == [first, f"{first}-2", f"{first}-3"]
    for number, name in enumerate(names):
        assert (used / name).read_bytes() == b"broken %d" % number
        assert (used / f"{name}-wal").read_bytes() == b"log %d" % number


def test_remains_of_a_broken_off_creation_are_no_hindrance(tmp_path: Path) -> None:
    """A half-made new file from a start that was killed is made again."""
    for suffix in ("", "-journal", "-wal"):
        (tmp_path / f"gruard.db.new{suffix}").write_bytes(b"half")
    with open_database(tmp_path, now_s=NOW_S) as database:
        assert database.set_aside is None
        database.append(readings(1, 1))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["gruard.db", "gruard.lock"]


def test_damaged_index_is_found_at_the_start(used: Path) -> None:
    """An index that names other rows than its table is no ground to work on: the rows move to a new file."""
    with open_database(used, now_s=NOW_S) as database:
        for number in range(2000):
            database.put_outbox(f"topic-{number:04}", b"x", 1, retain=False, key="k")
        database.commit()
    broken = bytearray((used / "gruard.db").read_bytes())
    # In the index alone a topic stands before its row's number.
    place = broken.index(b"topic-1000" + (1001).to_bytes(2, "big"))
    broken[place + 10 : place + 12] = b"\x7f\xff"
    (used / "gruard.db").write_bytes(broken)
    with pytest.raises(StateError, match="cannot be read"):
        open_readonly(used)
    with open_database(used, now_s=NOW_S) as database:
        assert database.set_aside is not None
        assert [row.topic for row in database.outbox(3000)] == [
            f"topic-{number:04}" for number in range(2000)
        ]
        database.put_outbox("topic-1000", b"x", 1, retain=False, key="k", replace=True)
        assert database.outbox_pending() == 2000
        database.commit()
    with open_database(used, now_s=NOW_S) as database:
        assert database.set_aside is None


def test_large_database_starts_without_a_check_of_its_packs(
    used: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond a size the start leaves out the packs; a damaged page of theirs costs one run, not all."""
    monkeypatch.setattr(schema, "WHOLE_CHECK_BYTES", 10_000)
    monkeypatch.setattr(journal_module, "TAIL_RECORDS", 10)
    with open_database(used, now_s=NOW_S) as database:
        database.append(readings(11, 6000))
        database.commit()
        pages = dict(database._all("SELECT name, rootpage FROM sqlite_schema"))
        ((pack,),) = database._all("SELECT body FROM packs ORDER BY id LIMIT 1 OFFSET 1")
    whole = (used / "gruard.db").read_bytes()
    pages["packs"] = whole.index(pack[:100]) // 4096 + 1

    def zero(table: str) -> None:
        broken = bytearray(whole)
        broken[4096 * (pages[table] - 1) : 4096 * pages[table]] = bytes(4096)
        (used / "gruard.db").write_bytes(broken)

    for table in ("packs", "readings", "devices"):
        zero(table)
        with open_database(used, now_s=NOW_S) as database:
            assert (database.set_aside is None) == (table == "packs")
            if table == "packs":
                with pytest.raises(StateError, match="malformed"):
                    database.history("pump-1", FIELDS, 10_000)
        if table == "packs":
            with open_database(used, now_s=NOW_S) as database:
                assert database.set_aside is not None


def test_suspected_database_that_proves_sound_is_kept(used: Path) -> None:
    """The mark of a failure in use is taken away by a thorough check that finds nothing."""
    (used / "gruard.db.suspect").touch()
    with open_database(used, now_s=NOW_S) as database:
        assert database.set_aside is None
        assert database.count_readings() == 10
    assert not (used / "gruard.db.suspect").exists()


@pytest.mark.parametrize(
    ("code", "damaged"),
    [
        (sqlite3.SQLITE_CORRUPT, True),
        (sqlite3.SQLITE_NOTADB, True),
        (sqlite3.SQLITE_IOERR_READ, True),
        (sqlite3.SQLITE_FULL, False),
        (sqlite3.SQLITE_IOERR_WRITE, False),
        (sqlite3.SQLITE_IOERR_FSYNC, False),
        (sqlite3.SQLITE_BUSY, False),
        (sqlite3.SQLITE_CANTOPEN, False),
        (sqlite3.SQLITE_CONSTRAINT_UNIQUE, False),
    ],
)
def test_only_damage_counts_as_damage(code: int, damaged: bool) -> None:  # noqa: FBT001 - a table's column
    """A full disk, a busy file or missing rights are no damage; an unreadable sector is."""
    error = sqlite3.OperationalError("x")
    error.sqlite_errorcode = code
    assert schema.is_damage(error) is damaged


def test_disk_without_room_at_start_keeps_the_database(used: Path) -> None:
    """When no byte can be written the start is refused, and the database is there once it can."""
    program = """
        import resource, sys
        from pathlib import Path
        from gruard.daemon.edges.database import open_database
        from gruard.daemon.errors import StateError
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        try:
            open_database(Path(sys.argv[1]), now_s=0.0)
        except StateError as error:
            print(error)
    """
    run = [sys.executable, "-c", textwrap.dedent(program), str(used)]
    assert "cannot be opened" in subprocess.check_output(run, text=True)
    with open_database(used, now_s=NOW_S) as database:
        assert database.set_aside is None
        assert database.count_readings() == 10


def _fill(database: Database) -> None:
    for first in range(1, 400, 20):
        database.append(readings(first, 20, DEVICES))
    database.append([reading(401, "pump-1", fields=("temp",))])
    for generation in (0, 1):
        saved = [checkpoint(name, state=os.urandom(300)) for name in DEVICES]
        database.save_checkpoints(saved, generation=generation, lsn=7)
    for number in range(20):
        database.put_outbox(f"topic-{number}", b"payload", 1, retain=False, key=f"k-{number}")
        database.save_alert(alert(f"a-{number}", resolved_s=None if number % 2 else NOW_S))
        database.add_model(model(f"m-{number}"))
    database.activate_model("m-3", 100, NOW_S)
    database.set_meta("key", "value")
    database.commit()


def _read_everything(reader: Reader) -> None:
    for name in DEVICES:
        for found in (reader.history(name, FIELDS, 300), reader.history_many(DEVICES, FIELDS, 20)[name]):
            for lsn, time_s, values in zip(found.lsn, found.time_s, found.values, strict=True):
                assert DEVICES[lsn % 3] == name or lsn == 401
                assert time_s == NOW_S + lsn
                assert values[0] == lsn
    for row in reader.readings_after(0, batch=50):
        assert row.device == "pump-1" or DEVICES[row.lsn % 3] == row.device
        assert row.values[0] == row.lsn
        assert (row.source, row.flags, row.score) == ("plant", row.lsn % 3, 0.25)
    for kept in reader.checkpoints():
        assert kept.lsn == 7
        assert len(kept.state) == 300
    reader.devices()
    reader.count_readings()
    reader.outbox(100)
    reader.outbox_pending()
    reader.alerts(100)
    reader.models()
    reader.live_models()
    reader.meta("key")


def _exercise(database: Database) -> None:
    _read_everything(database)
    database.append(readings(database.next_lsn + database.next_lsn % 3, 300, DEVICES))
    database.save_checkpoints([checkpoint("pump-2", state=bytes(300))], generation=1, lsn=8)
    database.put_outbox("topic-3", b"payload", 1, retain=True, key="k", replace=True)
    database.outbox_done([1, 2, 3])
    database.save_alert(alert("a-3"))
    database.forget_device("pump-3")
    while database.prune(30, database.next_lsn, 500):
        pass
    database.commit()


@pytest.mark.parametrize("first_seed", range(0, 120, 20))
def test_random_damage_never_stops_a_start_nor_changes_a_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_seed: int
) -> None:
    """With file or log damaged at random, every start works and what is read is right or left out."""
    monkeypatch.setattr(journal_module, "TAIL_RECORDS", 100)
    with open_database(tmp_path / "whole", now_s=NOW_S) as database:
        _fill(database)
        shutil.copytree(tmp_path / "whole", tmp_path / "crashed")
    outcomes = set()
    for seed in range(first_seed, first_seed + 20):
        rng = random.Random(seed)
        directory = tmp_path / f"flipped-{seed}"
        shutil.copytree(tmp_path / rng.choice(["whole", "crashed"]), directory)
        victims = [file for name in ("", "-wal") if (file := directory / f"gruard.db{name}").exists()]
        victim = rng.choice(victims)
        victim.write_bytes(_damaged(bytearray(victim.read_bytes()), rng))
        outcomes.add(_survives(directory))
    assert "sound" in outcomes
    assert len(outcomes) > 1


def _damaged(content: bytearray, rng: random.Random) -> bytearray:
    """The content with one to 64 bytes changed, a sector zeroed, the end cut off, or two pages swapped."""
    kind, place = rng.randrange(8), rng.randrange(len(content))
    if kind == 0:
        content[place : place + 512] = bytes(len(content[place : place + 512]))
    elif kind == 1:
        del content[place:]
    elif kind == 2:
        one, other = slice(8192, 12288), slice(place // 4096 * 4096, place // 4096 * 4096 + 4096)
        content[one], content[other] = content[other], content[one]
    else:
        for _ in range(rng.choice([1, 1, 1, 4, 64])):
            content[rng.randrange(len(content))] = rng.randrange(256)
    return content


def _survives(directory: Path) -> str:
    try:
        with open_readonly(directory) as reader:
            _read_everything(reader)
    except StateError:
        pass
    outcome = "sound"
    for _ in range(3):
        with open_database(directory, now_s=NOW_S) as database:
            if database.set_aside is not None:
                outcome = "set aside"
            try:
                _exercise(database)
            except StateError:
                outcome = "failed in use"
                continue
            if database.skipped_rows:
                outcome = "rows left out"
            return outcome
    raise AssertionError("it fails at every start")


# --- outbox, alerts, models, meta ------------------------------------------------------------------------


def test_outbox_keeps_order_and_drops_what_is_done(tmp_path: Path) -> None:
    """Messages come out as they were put in, survive a restart, and go when they are done."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        seqs = [database.put_outbox("t", b"\x00%d" % n, 1, retain=n == 2, key=f"k{n}") for n in range(5)]
        database.commit()
    with open_database(tmp_path, now_s=NOW_S) as database:
        assert [row.seq for row in database.outbox(10)] == seqs
        assert database.outbox(3)[2] == OutboxRow(seqs[2], "t", b"\x002", 1, retain=True, key="k2")
        database.outbox_done([seqs[0], seqs[3], 999])
        assert [row.key for row in database.outbox(10)] == ["k1", "k2", "k4"]
        assert database.outbox_pending() == 3


def test_outbox_replaces_an_unsent_row_of_the_same_topic(database: Database) -> None:
    """Of a retained topic only the newest waits, under a new number that a late receipt cannot drop."""
    old = database.put_outbox("state/pump-1", b"old", 1, retain=True, key="pump-1", replace=True)
    database.put_outbox("state/pump-2", b"other", 1, retain=True, key="pump-2", replace=True)
    new = database.put_outbox("state/pump-1", b"new", 1, retain=True, key="pump-1", replace=True)
    assert new > old
    database.outbox_done([old])
    assert [(row.seq, row.payload) for row in database.outbox(10)][-1] == (new, b"new")
    assert database.outbox_pending() == 2


def test_outbox_never_uses_a_number_twice(tmp_path: Path) -> None:
    """A number stays used after its message is gone, through a restart too."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        seq = database.put_outbox("t", b"", 1, retain=False, key="k")
        database.outbox_done([seq])
        database.commit()
    with open_database(tmp_path, now_s=NOW_S) as database:
        assert database.put_outbox("t", b"", 1, retain=False, key="k") > seq


def test_alerts_are_kept_by_id_newest_first(database: Database) -> None:
    """A later word on an alert replaces the earlier; open ones can be asked for alone."""
    database.save_alert(alert("a-1", opened_s=NOW_S))
    database.save_alert(alert("a-2", opened_s=NOW_S + 60))
    database.save_alert(alert("a-1", opened_s=NOW_S, resolved_s=NOW_S + 90))
    assert database.alerts(10) == [alert("a-2", NOW_S + 60), alert("a-1", NOW_S, NOW_S + 90)]
    assert [row.id for row in database.alerts(1)] == ["a-2"]
    assert [row.id for row in database.alerts(10, open_only=True)] == ["a-2"]


def test_activated_model_retires_the_one_before_it_in_its_group(database: Database) -> None:
    """One model is live per group, it knows its first reading, and other groups are left alone."""
    for identity, group in [("m-1", "a"), ("m-2", "a"), ("m-3", "b")]:
        database.add_model(model(identity, group))
    database.activate_model("m-1", 10, NOW_S)
    database.activate_model("m-3", 11, NOW_S)
    database.activate_model("m-2", 500, NOW_S + 9)
    database.add_model(model("m-4", "a", status="rejected"))
    assert {row.id: row.status for row in database.models()} == {
        "m-1": "retired", "m-2": "live", "m-3": "live", "m-4": "rejected",
    }  # fmt: skip
    live = {row.group: row for row in database.live_models()}
    assert (live["a"].id, live["a"].activated_lsn, live["a"].activated_s) == ("m-2", 500, NOW_S + 9)
    assert database.models()[0].activated_lsn == 10
    database.activate_model("m-1", 900, NOW_S + 20)
    assert {row.id for row in database.live_models()} == {"m-1", "m-3"}


def test_model_entry_is_written_anew(database: Database) -> None:
    """A candidate that is judged keeps one entry."""
    database.add_model(model("m-1"))
    database.add_model(model("m-1", status="rejected"))
    assert database.models() == [model("m-1", status="rejected")]


def test_ended_alerts_and_models_are_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruning keeps the newest alerts and models up to a number, and every open or live one."""
    bounds = [(counting, 5, deleting) for counting, _, deleting in bounds_module._ENDED]
    monkeypatch.setattr(bounds_module, "_ENDED", bounds)
    for number in range(12):
        ended = number not in {0, 4}
        database.save_alert(alert(f"a-{number:02}", NOW_S + number, NOW_S + 50 if ended else None))
        database.add_model(model(f"m-{number:02}", "a"))
        database.activate_model(f"m-{number:02}", number, NOW_S + number)
    assert database.prune(100, 10**9, 8) == 8
    assert database.prune(100, 10**9, 8) == 6
    assert database.prune(100, 10**9, 8) == 0
    assert sorted(row.id for row in database.alerts(100)) == ["a-00", "a-04", "a-09", "a-10", "a-11"]
    assert [row.id for row in database.models()] == ["m-07", "m-08", "m-09", "m-10", "m-11"]


def test_unknown_model_cannot_be_activated(database: Database) -> None:
    """A model without an entry is refused and the live one stays."""
    database.add_model(model("m-1"))
    database.activate_model("m-1", 1, NOW_S)
    database.commit()
    with pytest.raises(StateError, match="not in the registry"):
        database.activate_model("m-2", 2, NOW_S)
    assert [row.id for row in database.live_models()] == ["m-1"]


def test_meta_keeps_named_values(tmp_path: Path) -> None:
    """A value is kept until the next one of its name."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        assert database.meta("checkpoint") is None
        database.set_meta("checkpoint", "1")
        database.set_meta("checkpoint", "2")
        database.commit()
    with open_readonly(tmp_path) as reader:
        assert reader.meta("checkpoint") == "2"


def test_group_of_all_kinds_is_one_whole(tmp_path: Path) -> None:
    """Readings, alert, outbox and checkpoint of one group are there together or not at all."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        _fill(database)
    with open_database(tmp_path, now_s=NOW_S) as database:
        assert database.count_readings() == 401
        database.append(readings(402, 5))
        database.save_alert(alert("late"))
        database.put_outbox("late", b"", 1, retain=False, key="late")
        database.save_checkpoints([checkpoint("late")], generation=0, lsn=407)
        database.set_meta("late", "1")
    with open_database(tmp_path, now_s=NOW_S) as database:
        assert database.count_readings() == 401
        assert database.outbox_pending() == 20
        assert "late" not in {row.id for row in database.alerts(100)}
        assert "late" not in {row.device for row in database.checkpoints()}
        assert database.meta("late") is None


def test_live_models_are_neither_candidates_nor_rejected_nor_retired(database: Database) -> None:
    """Only what was activated scores: a candidate waits for its judgement."""
    database.add_model(model("m-1"))
    assert database.live_models() == []
    for identity in ("m-1", "m-2"):
        database.add_model(model(identity))
        database.activate_model(identity, 1, NOW_S)
    database.add_model(model("m-3"))
    database.add_model(model("m-4", status="rejected"))
    statuses = {row.status for row in database.models()}
    assert statuses == {"candidate", "live", "rejected", "retired"}
    assert [row.id for row in database.live_models()] == ["m-2"]


# --- damage in the tables --------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 3])
def test_deliveries_whose_number_is_damaged_are_counted(database: Database, count: int) -> None:
    """A group that says it holds more or fewer than it does is damaged, and what is sound in it is used."""
    noted = [Delivery(packet_id, packet_id, bytes(8)) for packet_id in (1, 2)]
    database.note_deliveries(noted)
    assert (list(database.deliveries()), database.skipped_rows) == (noted, 0)
    database._write("UPDATE deliveries SET count = ?", (count,))
    assert (list(database.deliveries()), database.skipped_rows) == (noted, 1)


def _forget(database: Database) -> None:
    """Commit, and forget what is known, as a start does."""
    database.commit()
    database.rollback()


def test_damaged_entries_of_empty_generations_keep_the_whole_journal(database: Database) -> None:
    """Where nothing says that a reading is covered, recovery begins at the first and prune leaves it."""
    database._write("UPDATE generations SET lsn = 99")
    _forget(database)
    assert (database.recovery_start(), database.keep_from_lsn()) == (0, 1)


def test_damaged_entry_of_an_empty_generation_is_written_before_rows_that_are_left(
    database: Database,
) -> None:
    """Without an entry and without rows a generation is not whole: the sound rows of the other stay."""
    database.save_checkpoints([checkpoint(name) for name in DEVICES], generation=1, lsn=7)
    database._write("UPDATE checkpoints_1 SET state = x'00' WHERE device = 1")
    database._write("UPDATE generations SET lsn = 99 WHERE id = 0")
    _forget(database)
    assert database.older_generation() == 0
    assert (database.recovery_start(), database.keep_from_lsn()) == (0, 1)


def test_rows_that_damage_has_put_in_a_circle_end_the_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page whose third row says it is the first would be read for ever: it is an error instead."""
    monkeypatch.setattr(tables_module, "_PAGE", 1)
    with open_database(tmp_path, now_s=NOW_S) as database:
        database.save_checkpoints([checkpoint(name) for name in DEVICES], generation=0, lsn=7)
        database.commit()
        pages = dict(database._all("SELECT name, rootpage FROM sqlite_schema"))
    content = bytearray((tmp_path / "gruard.db").read_bytes())
    page = 4096 * (pages["checkpoints_0"] - 1)
    third = page + int.from_bytes(content[page + 12 : page + 14], "big")
    assert content[third + 1] == 3, "the row's number, behind its size"
    content[third + 1] = 1
    (tmp_path / "gruard.db").write_bytes(content)
    with Tables(tmp_path / "gruard.db", sqlite3.connect(tmp_path / "gruard.db")) as tables:
        found = islice(tables._states(0), 20)
        assert [identity for identity, _ in (next(found), next(found))] == [1, 2]
        with pytest.raises(StateError, match="out of order"):
            list(found)


# --- how the tables are read -----------------------------------------------------------------------------


def test_set_of_fields_is_read_once_for_all_its_devices(tmp_path: Path) -> None:
    """Thousands of checkpoints with the same fields cost one look at them."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        for generation in (0, 1):
            saved = [checkpoint(name) for name in DEVICES]
            database.save_checkpoints(saved, generation=generation, lsn=7)
        database.commit()
    with open_readonly(tmp_path) as reader:
        asked: list[str] = []
        reader._connection.set_trace_callback(asked.append)
        assert {found.device for found in reader.checkpoints()} == set(DEVICES)
        assert sum("FROM fieldsets" in sql for sql in asked) == 1


def test_reading_after_the_close_is_a_bug_and_not_an_empty_table(used: Path) -> None:
    """A mistake of ours is raised as what it is: it says nothing against the file."""
    reader = open_readonly(used)
    reader.close()
    with pytest.raises(sqlite3.ProgrammingError):
        reader.models()
