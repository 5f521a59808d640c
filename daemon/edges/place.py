"""Is the database still under its name? An open file goes on taking writes after it was moved away."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from gruard.daemon.errors import LostLogError, StateError

if TYPE_CHECKING:
    from pathlib import Path


class Place:
    """Where the database was when it was opened, and its write-ahead log once there is one."""

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, path.stat()
        self._log_path = path.with_name(path.name + "-wal")
        self._log: os.stat_result | None = None

    def check(self) -> None:
        """Compare with what is there now. A look costs some 5 us.

        Raises:
            LostLogError: the log was taken away; what it holds can still be brought into the database.
            StateError: the database was.
        """
        if not _is(self._path, self._file):
            raise StateError(
                f"The database {self._path} is not where it was: it was moved, replaced or deleted."
            )
        if self._log is not None and not _is(self._log_path, self._log):
            raise LostLogError(f"Somebody has taken the log {self._log_path} away from under its database.")
        if self._log is None and self._log_path.exists():  # made by the first write, kept until the end
            self._log = self._log_path.stat()


def _is(path: Path, known: os.stat_result) -> bool:
    try:
        return os.path.samestat(path.stat(), known)
    except OSError:
        return False
