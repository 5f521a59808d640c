"""The database of the state directory: journal, history, device states, outbox, alerts, model registry.

    with open_database(directory, now_s=clock()) as database:   # the daemon: one writer, one thread
        database.append(rows)
        database.save_alert(alert)
        database.commit()                                       # now the broker may be told

    with open_readonly(directory) as reader:                    # trainer, command line: any number
        reader.history("pump-3", ("temp",), limit=1000)

A file that is damaged, foreign or half there is set aside under another name, what is sound in it is copied
into a new one, and it never stops the start.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
from collections import deque
from dataclasses import astuple, replace
from datetime import UTC, datetime
from itertools import count
from typing import IO, TYPE_CHECKING, Final

from gruard.daemon.edges import schema
from gruard.daemon.edges.bounds import Bounded
from gruard.daemon.edges.checksums import MOST_PACKET_ID, write_deliveries
from gruard.daemon.edges.history import Reader
from gruard.daemon.edges.journal import suspect_path
from gruard.daemon.edges.packs import checkpoint_checksum
from gruard.daemon.edges.pages import log_of
from gruard.daemon.edges.salvage import salvage
from gruard.daemon.edges.tables import CHECKPOINTS, GENERATIONS, Generation
from gruard.daemon.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from gruard.daemon.core.words import Word
    from gruard.daemon.edges.rows import AlertRow, Checkpoint, ModelRow, Salvaged
    from gruard.daemon.records import Delivery

DATABASE_NAME: Final = "gruard.db"
LOCK_NAME: Final = "gruard.lock"
_FAMILY: Final = ("", "-wal", "-shm", "-journal")  # the file and what SQLite keeps beside it


class Database(Bounded):
    """The writer's opening, made by `open_database`. Belongs to one thread."""

    def __init__(
        self,
        path: Path,
        connection: sqlite3.Connection,
        lock: IO[bytes],
        set_aside: Path | None = None,
        salvaged: Salvaged | None = None,
        *,
        torn_group: bool = False,
    ) -> None:
        super().__init__(path, connection)
        #: Whether the last group of the log was left out: one never acknowledged, or a damaged one.
        self.torn_group = torn_group
        self.set_aside = set_aside  # where an unusable database went at this start
        self.salvaged = salvaged  # what was copied out of it, and what is lost
        self._lock = lock

    def close(self) -> None:
        """Take back what is not committed and let go of file and lock."""
        super().close()
        self._lock.close()

    def _start_over(self) -> None:
        super()._start_over()
        # Group and size of each row of deliveries, and their sum.
        self._noted = deque(
            self._all("SELECT seq, max(CAST(count AS INTEGER), 0) FROM deliveries ORDER BY seq")
        )
        self._kept = sum(count for _, count in self._noted)

    def older_generation(self) -> int:
        """The generation to save next. What was saved since the opening counts as whole."""
        _, older = self._generations()
        unsaved = {*GENERATIONS} - self._settled
        return super().older_generation() if len(unsaved) > 1 else min(unsaved, default=older.id)

    def save_checkpoints(self, rows: Iterable[Checkpoint], *, generation: int, lsn: int) -> None:
        """Bring one generation up to `lsn`, which it then covers for every device.

        `rows` are the devices that moved since this generation was last saved. At its first save after the
        opening it also takes over what the other generation knows better, so that it is whole by itself.
        """
        with self._whole():
            saved = {row.device: row for row in rows}
            if generation not in self._settled:
                for row in self.checkpoints():
                    saved.setdefault(row.device, row)
            stored = [self._checkpoint_row(generation, row) for row in saved.values()]
            table = CHECKPOINTS[generation]
            self._write_many(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?, ?, ?, ?)", stored)  # noqa: S608
            ((states,),) = self._all(f"SELECT count(*) FROM {table}")  # noqa: S608 - one of two names
            self._keep("generations", Generation(generation, int(lsn), states))
            self._settled.add(generation)

    def _checkpoint_row(self, generation: int, row: Checkpoint) -> tuple[object, ...]:
        device, fieldset, _ = self._owner(row.device, row.source, row.fields)
        content = (int(row.lsn), row.layout, row.model, row.state)
        names = self._fieldset(fieldset)
        checksum = names and checkpoint_checksum(generation, row.device, names, *content)
        return device, fieldset, *content, checksum

    # --- deliveries -----------------------------------------------------------------------------------------

    def note_deliveries(self, rows: Sequence[Delivery]) -> None:
        """Remember messages as taken, each in place of what its packet id stood for before.

        The newest 65,535 are kept, one for every packet id there is.
        """
        with self._whole():
            self._noted.append((self._noted[-1][0] + 1 if self._noted else 1, len(rows)))
            self._write("INSERT INTO deliveries VALUES (?, ?, ?)", (*self._noted[-1], write_deliveries(rows)))
            self._kept += len(rows)
            while self._kept - self._noted[0][1] >= MOST_PACKET_ID:
                seq, count = self._noted.popleft()
                self._write("DELETE FROM deliveries WHERE seq = ?", (seq,))
                self._kept -= count

    def forget_deliveries(self) -> None:
        """Drop them all: the broker has begun another session, whose packet ids begin anew."""
        with self._whole():
            self._write("DELETE FROM deliveries")
            self._noted.clear()
            self._kept = 0

    # --- outbox, alerts -------------------------------------------------------------------------------------

    def put_outbox(
        self,
        topic: str,
        payload: bytes,
        qos: int,
        retain: bool,  # noqa: FBT001 - the order in which MQTT itself names them
        key: str,
        *,
        replace: bool = False,
    ) -> int:
        """Queue a message for the broker; its sequence number, never used twice once committed.

        `replace` drops what still waits for the same topic: for retained topics only the newest counts.
        """
        if replace:
            self._write("DELETE FROM outbox WHERE topic = ?", (topic,))
        return self._enter("outbox", (topic, payload, int(qos), int(retain), key))

    def outbox_done(self, seqs: Iterable[int]) -> None:
        """Drop what the broker has taken."""
        self._write_many("DELETE FROM outbox WHERE seq = ?", [(seq,) for seq in seqs])

    def save_alert(self, row: AlertRow) -> None:
        """Keep the newest word on the alert with this id."""
        self._keep("alerts", astuple(row))

    def keep_word(self, word: Word) -> None:
        """Keep what an operator said, behind the readings journalled so far."""
        self._keep("feedback", astuple(replace(word, lsn=self.next_lsn - 1)))

    # --- models, meta ---------------------------------------------------------------------------------------

    def add_model(self, row: ModelRow) -> None:
        """Enter a model in the registry, or write its entry anew."""
        self._keep("models", astuple(row))

    def activate_model(self, model: str, lsn: int, now_s: float) -> None:
        """Make a model the live one of its group from the reading `lsn` on; the one before it is retired.

        Raises StateError if the registry does not know the model.
        """
        with self._whole():
            known = {row.id: row for row in self.models()}
            if model not in known:
                raise StateError(f"The model {model} is not in the registry.")
            for row in known.values():
                if row.status == "live" and row.group == known[model].group:
                    self._keep("models", astuple(replace(row, status="retired")))
            live = replace(known[model], status="live", activated_lsn=int(lsn), activated_s=float(now_s))
            self._keep("models", astuple(live))

    def set_meta(self, key: str, value: str) -> None:
        """Keep one named value."""
        self._keep("meta", (key, value))


def open_database(directory: Path, *, now_s: float) -> Database:
    """The writer's opening; directory and file are made where they are missing.

    What cannot be used is set aside (`Database.set_aside`) and an empty database begun; `now_s`, Unix
    seconds, goes into its name. Raises StateError if the directory cannot be used, if another daemon writes
    there, or if the file is of a newer gruard.
    """
    path = directory / DATABASE_NAME
    lock = _claim(directory)
    try:
        torn = log_of(path).is_torn
        connection, set_aside, salvaged = _open_or_begin(path, now_s)
        return Database(path, connection, lock, set_aside, salvaged, torn_group=torn)
    except (OSError, sqlite3.Error, schema.DamagedError) as error:
        lock.close()
        raise StateError(f"The database {path} cannot be opened: {error}.") from error
    except BaseException:
        lock.close()
        raise


def open_readonly(directory: Path) -> Reader:
    """An opening for another process, whether or not the daemon runs. Raises StateError."""
    path = directory / DATABASE_NAME
    try:
        path.lstat()
        return Reader(path, schema.open_existing(path))
    except FileNotFoundError as error:
        raise StateError(
            f"There is no database in {directory} yet: the daemon makes it at its first start."
        ) from error
    except (OSError, sqlite3.Error, schema.DamagedError) as error:
        raise StateError(f"The database {path} cannot be read: {error}.") from error


def _claim(directory: Path) -> IO[bytes]:
    """The lock that makes this the only writer; held until the file is closed."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(directory, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        lock = os.fdopen(os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600), "rb+")
    except OSError as error:
        raise StateError(f"The state directory {directory} cannot be used: {error.strerror}.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise StateError(f"Another gruard is writing in {directory}: each daemon needs its own.") from error
    return lock


def _open_or_begin(path: Path, now_s: float) -> tuple[sqlite3.Connection, Path | None, Salvaged | None]:
    saved = path.with_name(path.name + ".salvaged")
    set_aside = salvaged = None
    if not os.path.lexists(path) and saved.exists():  # a start was killed between two renames
        set_aside = _put_in_place(path, saved, now_s)
    suspect = suspect_path(path)
    if any(os.path.lexists(member) for member in _family(path)):
        try:
            if path.is_file() and not os.access(path, os.R_OK | os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            connection = schema.open_sound(path, thorough=suspect.exists())
        except schema.DamagedError:
            salvaged = _salvage(path, saved)
            set_aside = _put_in_place(path, saved, now_s)
        else:
            suspect.unlink(missing_ok=True)
            return connection, set_aside, None
    else:
        schema.create(path)
    suspect.unlink(missing_ok=True)
    _sync_directory(path.parent)
    try:
        return schema.open_sound(path), set_aside, salvaged
    except schema.DamagedError:
        if salvaged is None:
            raise
    # Rows that were proven one by one do not fit together: nothing may stop a start.
    _set_aside(path, now_s)
    schema.create(path)
    return schema.open_sound(path), set_aside, None


def _salvage(path: Path, saved: Path) -> Salvaged | None:
    """Make a new database at `saved` of what is sound in the one at `path`, or an empty one."""
    for member in _family(saved):
        member.unlink(missing_ok=True)
    schema.create(saved)
    connection = schema.connect(saved)
    try:
        return salvage(path, connection)
    except (ArithmeticError, LookupError, TypeError, ValueError):
        # Bytes that nobody thought of. The file is kept, so they can be looked into; a start is not the time.
        return None
    finally:
        connection.close()  # which takes back what is not committed and brings the log into the file


def _put_in_place(path: Path, saved: Path, now_s: float) -> Path | None:
    """Set what lies at `path` aside, if anything does, and let `saved` take its place."""
    set_aside = _set_aside(path, now_s)
    saved.rename(path)
    _sync_directory(path.parent)
    return set_aside


def _set_aside(path: Path, now_s: float) -> Path | None:
    """Give the file and its companions another name; the name of the first that was there."""
    stamp = datetime.fromtimestamp(now_s, UTC).strftime("%Y%m%dT%H%M%SZ")
    target, numbers = path.with_name(f"{path.name}.damaged-{stamp}"), count(2)
    while any(os.path.lexists(member) for member in _family(target)):
        target = path.with_name(f"{path.name}.damaged-{stamp}-{next(numbers)}")
    moved = [
        member.rename(other)
        for member, other in zip(_family(path), _family(target), strict=True)
        if os.path.lexists(member)
    ]
    _sync_directory(path.parent)
    return moved[0] if moved else None


def _family(path: Path) -> list[Path]:
    return [path.with_name(path.name + suffix) for suffix in _FAMILY]


def _sync_directory(directory: Path) -> None:
    """Make renames in it durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
