"""The tables, their version, and whether a file is a sound database of ours.

`readings` is the journal: append-only, in LSN order, with no second index, because an index by device
makes every reading of a busy fleet dirty a page of its own (about 10 KB written per reading, measured with
10,000 devices). A device's readings move in runs into `packs`, where history is read from; see packs.py.
`readings`, `packs` and the checkpoints have no constraints: the file check at start refuses a whole file for
one broken constraint, while a broken checksum costs one row.
"""

from __future__ import annotations

import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from gruard.daemon.edges.checksums import SEALED, is_sound, keeping, reading, row_checksum
from gruard.daemon.edges.pages import log_of
from gruard.daemon.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

#: Marks the file as ours in its header: "grua".
APPLICATION_ID: Final = 0x67727561

_V1: Final = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT",
    """CREATE TABLE fieldsets (
        id INTEGER PRIMARY KEY AUTOINCREMENT, source TEXT NOT NULL, fields TEXT NOT NULL,
        UNIQUE (source, fields)) STRICT""",
    # device is NULL once the device is forgotten and its packs wait for pruning. An id is never used twice.
    """CREATE TABLE devices (
        id INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT UNIQUE, fieldset INTEGER NOT NULL,
        first_s REAL, last_s REAL, readings INTEGER NOT NULL DEFAULT 0,
        packed_rows INTEGER NOT NULL DEFAULT 0, packed_lsn INTEGER NOT NULL DEFAULT 0,
        next_pack INTEGER NOT NULL DEFAULT 0) STRICT""",
    "CREATE TABLE readings (lsn INTEGER PRIMARY KEY, device INTEGER, fieldset INTEGER, record BLOB)",
    # id = device << 32 | number: one device's packs lie side by side without a second index.
    """CREATE TABLE packs (
        id INTEGER PRIMARY KEY, fieldset INTEGER, first_lsn INTEGER, last_lsn INTEGER, body BLOB)""",
    """CREATE TABLE device_state (
        device INTEGER PRIMARY KEY, fieldset INTEGER, lsn INTEGER, layout TEXT, model TEXT, state BLOB,
        checksum INTEGER)""",
    """CREATE TABLE outbox (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, payload BLOB NOT NULL,
        qos INTEGER NOT NULL, retain INTEGER NOT NULL, key TEXT NOT NULL) STRICT""",
    "CREATE INDEX outbox_topic ON outbox (topic)",
    """CREATE TABLE alerts (
        id TEXT PRIMARY KEY, device TEXT NOT NULL, source TEXT NOT NULL, state TEXT NOT NULL,
        severity TEXT NOT NULL, opened_s REAL NOT NULL, updated_s REAL NOT NULL, resolved_s REAL,
        score REAL NOT NULL, threshold REAL NOT NULL, payload TEXT NOT NULL) STRICT""",
    """CREATE TABLE models (
        id TEXT PRIMARY KEY, group_name TEXT NOT NULL, status TEXT NOT NULL, created_s REAL NOT NULL,
        parent TEXT, skill REAL, manifest TEXT NOT NULL, reason TEXT NOT NULL, activated_lsn INTEGER,
        activated_s REAL) STRICT""",
    f"PRAGMA application_id = {APPLICATION_ID}",
)

#: Two generations of checkpoints, deliveries, and a checksum in every row.
_V2: Final = (
    "ALTER TABLE device_state RENAME TO checkpoints_0",
    """CREATE TABLE checkpoints_1 (
        device INTEGER PRIMARY KEY, fieldset INTEGER, lsn INTEGER, layout TEXT, model TEXT, state BLOB,
        checksum INTEGER)""",
    """CREATE TABLE generations (
        id INTEGER PRIMARY KEY, lsn INTEGER NOT NULL, states INTEGER NOT NULL, checksum INTEGER) STRICT""",
    """INSERT INTO generations (id, lsn, states) SELECT
        0, coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'checkpoint_lsn'), 0), count(*)
        FROM checkpoints_0""",
    "INSERT INTO generations (id, lsn, states) VALUES (1, 0, 0)",
    "DELETE FROM meta WHERE key = 'checkpoint_lsn'",
    # One row a group, because a row a message costs half as much again as the readings themselves.
    "CREATE TABLE deliveries (seq INTEGER PRIMARY KEY, count INTEGER NOT NULL, body BLOB NOT NULL) STRICT",
    *(
        f"ALTER TABLE {table} ADD COLUMN checksum INTEGER"
        for table in ("meta", "fieldsets", "devices", "outbox", "alerts", "models")
    ),
    *(
        f"UPDATE {table} SET checksum = row_checksum('{table}', {', '.join(columns)})"  # noqa: S608
        for table, columns in SEALED.items()
        if table != "feedback"  # which came later
    ),
)

#: What operators have said of alerts and devices, in the order in which it was said.
_V3: Final = (
    """CREATE TABLE feedback (
        id INTEGER PRIMARY KEY, key TEXT NOT NULL, device TEXT NOT NULL, group_name TEXT NOT NULL,
        verdict TEXT NOT NULL, alert TEXT, from_s REAL NOT NULL, to_s REAL NOT NULL, given_s REAL NOT NULL,
        lsn INTEGER NOT NULL, effect TEXT NOT NULL, checksum INTEGER) STRICT""",
)

#: Entry i lifts version i to i + 1; a new file is version 0. Released entries are never edited.
MIGRATIONS: tuple[tuple[str, ...], ...] = (_V1, _V2, _V3)

#: The tables that take anything, and what their columns hold.
_UNCONSTRAINED: Final = {
    "readings": {"device": "integer", "fieldset": "integer", "record": "blob"},
    "packs": {"fieldset": "integer", "first_lsn": "integer", "last_lsn": "integer", "body": "blob"},
    "checkpoints_0": {"lsn": "integer", "layout": "text", "state": "blob", "checksum": "integer"},
    "checkpoints_1": {"lsn": "integer", "layout": "text", "state": "blob", "checksum": "integer"},
}

#: A start checks every page of a file up to this size, which takes a few seconds. Of a larger one it leaves
#: the packs out: their records have checksums, and a damaged page fails in use and is found next time.
WHOLE_CHECK_BYTES: Final = 1_000_000_000

#: How long a statement waits for another process's lock.
BUSY_MS: Final = 5000
#: A full disk, missing rights or a busy file say nothing against the file's contents.
_NOT_DAMAGE: Final = frozenset({
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_NOLFS, sqlite3.SQLITE_AUTH,
})  # fmt: skip
#: An unreadable sector is an I/O error by name and damage in effect.
_UNREADABLE: Final = frozenset({
    sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS,
})  # fmt: skip


class DamagedError(Exception):
    """The file is no sound database of ours. It is set aside, never mended in place."""


def is_damage(error: Exception) -> bool:
    """Whether the file's contents are to blame, not the disk's room, rights or load."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    return code in _UNREADABLE or code & 0xFF not in _NOT_DAMAGE


def connect(path: Path, *, readonly: bool = False) -> sqlite3.Connection:
    """A connection in autocommit mode that trusts nothing in the file. Raises sqlite3.Error."""
    mode = "ro" if readonly else "rw"
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None)
    # A damaged name must not make a whole query fail.
    connection.text_factory = lambda text: text.decode("utf-8", "replace")
    for pragma in (
        "trusted_schema = OFF",
        "cell_size_check = ON",
        "cache_size = -1024",
        f"busy_timeout = {BUSY_MS}",
        "synchronous = FULL",
        "secure_delete = OFF",  # some builds overwrite what is deleted, which doubles the writing
        "wal_autocheckpoint = 1000",
        "journal_size_limit = 16777216",  # a WAL that a slow reader let grow shrinks again
    ):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def create(path: Path) -> None:
    """Make an empty database at `path`, whole or not at all. Raises sqlite3.Error, OSError."""
    fresh = path.with_name(path.name + ".new")
    for suffix in ("", "-journal", "-wal", "-shm"):
        fresh.with_name(fresh.name + suffix).unlink(missing_ok=True)
    fresh.touch(mode=0o600)
    connection = connect(fresh)
    try:
        migrate(connection)
        # It does not raise when its write fails: it answers with the mode that stays.
        if connection.execute("PRAGMA journal_mode = WAL").fetchone() != ("wal",):
            raise sqlite3.OperationalError("the disk takes no write-ahead log")
    finally:
        connection.close()
    fresh.rename(path)


def open_sound(path: Path, *, thorough: bool = False) -> sqlite3.Connection:
    """Open for writing what passes every check, lifted to the newest version.

    `thorough` reads more than the pages' structure; it is meant for a file that has failed in use.
    Raises DamagedError, StateError (written by a newer gruard), sqlite3.Error (the disk, not the file).
    """
    _check_header(path)
    with _opening(path) as connection:
        _check_identity(connection)
        if thorough:
            _check(connection, "integrity_check(1)")
        elif path.stat().st_size <= WHOLE_CHECK_BYTES:
            _check(connection, "quick_check(1)")
        else:
            for table in {*SEALED, *_UNCONSTRAINED, "deliveries"} - {"packs"}:
                _check(connection, f"quick_check({table})")
        migrate(connection)
        _check_columns(connection)
        _check_sealed(connection)
        _check_samples(connection)
    return connection


def open_existing(path: Path) -> sqlite3.Connection:
    """Open for reading, beside a writer or alone. Raises as `open_sound`, StateError for an older version.

    The header is left to SQLite: where the writer is of the same process, closing the file after a look
    would take the writer's POSIX locks away.
    """
    with _opening(path, readonly=True) as connection:
        if _check_identity(connection) < len(MIGRATIONS):
            raise StateError(
                f"The database {path} is of an older gruard: start the daemon once to bring it up to date."
            )
        _check_columns(connection)
        _check_sealed(connection)
    return connection


@contextmanager
def _opening(path: Path, *, readonly: bool = False) -> Iterator[sqlite3.Connection]:
    """A connection that is closed again if a check of it fails, with damage raised as DamagedError."""
    connection = None
    try:
        connection = connect(path, readonly=readonly)
        yield connection
    except BaseException as error:
        if connection is not None:
            connection.close()
        # The latter: a damaged name in SQLite's own message.
        if isinstance(error, (sqlite3.Error, UnicodeDecodeError)) and is_damage(error):
            raise DamagedError(str(error)) from error
        raise


def _check(connection: sqlite3.Connection, pragma: str) -> None:
    (verdict,) = connection.execute(f"PRAGMA {pragma}").fetchone()
    if verdict != "ok":
        raise DamagedError(verdict)


def _check_sealed(connection: sqlite3.Connection) -> None:
    """Refuse a file with a row, or an entry of an index, that is not what was written.

    These tables are small and everything hangs on them. Readings, packs and checkpoints are not looked at:
    that takes seconds, and a damaged row of theirs costs only itself.
    """
    for table in SEALED:
        _check(connection, f"integrity_check({table})")
        if not all(is_sound(table, row) for row in connection.execute(reading(table))):
            raise DamagedError(f"a row of {table} is damaged")
    # A number near the highest there is would refuse every further row.
    if any(not 0 <= number < 1 << 31 for (number,) in connection.execute("SELECT seq FROM sqlite_sequence")):
        raise DamagedError("a counter of rows is damaged")


def _check_samples(connection: sqlite3.Connection) -> None:
    """Refuse a file in which a table without constraints holds another's rows: their pages were exchanged."""
    for table, kinds in _UNCONSTRAINED.items():
        columns = ", ".join(f"typeof({column})" for column in kinds)
        sql = f"SELECT {columns} FROM {table} ORDER BY rowid DESC LIMIT 8"  # noqa: S608 - names from above
        rows = connection.execute(sql).fetchall()
        if rows and tuple(kinds.values()) not in rows:
            raise DamagedError(f"what {table} holds are no {table}")
    for generation, lsn in connection.execute("SELECT id, lsn FROM generations"):
        sql = (
            f"SELECT 1 FROM (SELECT lsn FROM checkpoints_{generation} ORDER BY rowid DESC LIMIT 8)"  # noqa: S608
            " WHERE lsn > ?"
        )
        if connection.execute(sql, (lsn,)).fetchone():
            raise DamagedError("its generations of checkpoints are exchanged")


def _check_columns(connection: sqlite3.Connection) -> None:
    if _columns(connection) != _expected_columns():
        raise DamagedError("its tables are not gruard's")


def _check_header(path: Path) -> None:
    """Refuse what SQLite would quietly take for an empty or a non-WAL database, and lose the WAL over."""
    companions = (path.with_name(path.name + suffix) for suffix in ("-wal", "-shm"))
    if not path.is_file() or any(file.exists() and not file.is_file() for file in companions):
        raise DamagedError("it is no file")
    if path.with_name(
        path.name + "-journal"
    ).exists():  # nobody of ours writes one, and SQLite would apply it
        raise DamagedError("a rollback journal lies beside it")
    with path.open("rb") as file:
        head = file.read(20)
    # SQLite's file format, section 1.3: at 18 and 19 the write and the read version; 2 is WAL.
    if head[18:20] != b"\2\2":
        raise DamagedError("its header is not that of a WAL database")
    # SQLite would take the sound beginning of a log for all of it.
    if log_of(path).is_damaged:
        raise DamagedError("its log is damaged in the middle")


def _check_identity(connection: sqlite3.Connection) -> int:
    """The schema version. Raises DamagedError if the file is not ours, StateError if it is too new."""
    if connection.execute("PRAGMA application_id").fetchone() != (APPLICATION_ID,):
        raise DamagedError("it is not one of gruard's")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    # Kept twice, so that one flipped bit cannot pass for a newer version and stop every start.
    recorded = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
    if recorded != (str(version),):
        raise DamagedError("its two version numbers disagree")
    if version > len(MIGRATIONS):
        raise StateError(
            f"The database has schema version {version} and this gruard knows up to {len(MIGRATIONS)}: "
            "install the newer gruard again, or give it another state directory."
        )
    return int(version)


def migrate(connection: sqlite3.Connection) -> None:
    """Lift the schema to the newest version in one transaction. Raises sqlite3.Error, nothing changed."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == len(MIGRATIONS):
        return
    connection.create_function("row_checksum", -1, row_checksum, deterministic=True)
    connection.execute("BEGIN IMMEDIATE")
    try:
        for statements in MIGRATIONS[version:]:
            for statement in statements:
                connection.execute(statement)
        row = ("schema_version", str(len(MIGRATIONS)))
        connection.execute(keeping("meta"), (*row, row_checksum("meta", *row)))
        connection.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
        connection.execute("COMMIT")
    except BaseException:
        connection.rollback()  # of nothing, where the failure itself has ended the transaction
        raise


def _columns(connection: sqlite3.Connection) -> set[tuple[object, ...]]:
    return set(
        connection.execute(
            "SELECT m.type, m.name, c.name, c.type, c.pk FROM sqlite_schema AS m"
            " LEFT JOIN pragma_table_info(m.name) AS c"
        )
    )


def _expected_columns() -> set[tuple[object, ...]]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        migrate(connection)
        return _columns(connection)
    finally:
        connection.close()
