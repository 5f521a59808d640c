"""What is written into a file that nobody can find is not durable."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest
from support_database import NOW_S, readings

from gruard.daemon.edges.database import DATABASE_NAME, open_database
from gruard.daemon.edges.place import Place
from gruard.daemon.errors import LostLogError, StateError

if TYPE_CHECKING:
    from pathlib import Path


def test_check_database_in_its_place_is_quiet(tmp_path: Path) -> None:
    """Writing, reading and a truncated log change no file's identity."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        place = Place(database.path)
        place.check()
        database.append(readings(1, 3))
        database.commit()
        place.check()
        database.fold_log()
        place.check()
        database.append(readings(4, 3))
        database.commit()
        place.check()


@pytest.mark.parametrize("how", ["deleted", "moved", "copied over"])
def test_check_database_taken_away_is_seen(tmp_path: Path, how: str) -> None:
    """Another file under the name is as bad as none."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        place, path = Place(database.path), database.path
        copy = tmp_path / "copy"
        shutil.copy(path, copy)
        path.rename(tmp_path / "elsewhere") if how == "moved" else path.unlink()
        if how == "copied over":
            copy.rename(path)
        with pytest.raises(StateError, match="not where it was") as found:
            place.check()
        assert not isinstance(found.value, LostLogError)


def test_fold_log_saves_what_a_deleted_log_holds(tmp_path: Path) -> None:
    """Readings that are only in a log without a name are brought into the database before the end."""
    with open_database(tmp_path, now_s=NOW_S) as database:
        place = Place(database.path)
        database.append(readings(1, 5))
        database.commit()
        place.check()
        (tmp_path / f"{DATABASE_NAME}-wal").unlink()
        with pytest.raises(LostLogError):
            place.check()
        database.append(readings(6, 1))  # stands in the open transaction, and is not acknowledged
        database.fold_log()
        shutil.copy(database.path, tmp_path / "as it is")
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "as it is", tmp_path / "again" / DATABASE_NAME)
    with open_database(tmp_path / "again", now_s=NOW_S) as again:
        assert [row.lsn for row in again.readings_after(0)] == [1, 2, 3, 4, 5]
