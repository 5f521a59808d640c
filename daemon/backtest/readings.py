"""From FILE or DIR to series: recordings (CSV), archives (npz), or the daemon's own database."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from gruard.daemon.backtest.archives import read_archive
from gruard.daemon.backtest.stored import read_database
from gruard.daemon.backtest.tables import read_table
from gruard.daemon.config_errors import closest
from gruard.daemon.edges.database import DATABASE_NAME
from gruard.daemon.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gruard.daemon.backtest.series import Series

#: Files that a directory of recordings is searched for.
SUFFIXES = (".csv", ".npz")
_SQLITE, _ZIP = b"SQLite format 3\0", b"PK\x03\x04"


def load(path: Path, labels: str | None = None, exclude: Sequence[str] = ()) -> list[Series]:
    """The devices in a file, in a directory of recordings, or in a state directory.

    `labels` names the label column of CSV files ("": there is none, None: look for one), `exclude` columns
    to leave out of them.

    Raises:
        ConfigError: nothing can be read there; one sentence.
    """
    if not path.is_dir():
        return _load_file(path, labels, exclude)
    if (path / DATABASE_NAME).exists():
        return read_database(path / DATABASE_NAME)
    try:
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    if not files:
        raise ConfigError(f"{path}: holds no .csv or .npz file and no {DATABASE_NAME}")
    return _distinct([(file, _load_file(file, labels, exclude)) for file in files])


def chosen(path: Path, names: Sequence[str], series: Sequence[Series]) -> list[Series]:
    """The series that were asked for with --device; all of them when none was named.

    Raises:
        ConfigError: there is no such device; one sentence.
    """
    known = [one.name for one in series]
    for name in names:
        if name not in known:
            guess = closest(name, known)
            meant = f', did you mean "{guess}"?' if guess else f" (found: {', '.join(known[:12])})"
            raise ConfigError(f'--device: {path} has no device "{name}"{meant}')
    return [one for one in series if not names or one.name in names]


def _load_file(path: Path, labels: str | None, exclude: Sequence[str]) -> list[Series]:
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    is_database = head == _SQLITE
    is_archive = path.suffix.lower() == ".npz" or head.startswith(_ZIP)
    if (is_database or is_archive) and (labels or exclude):
        option, name = ("--label", labels) if labels else ("--exclude", exclude[0])
        raise ConfigError(f'{option}: {path} is no CSV file: it has no column "{name}"')
    if is_database:
        return read_database(path)
    if is_archive:
        return read_archive(path)
    return read_table(path, labels, exclude)


def _distinct(found: list[tuple[Path, list[Series]]]) -> list[Series]:
    """All series, with the file's name before a device that another file has too."""
    times = Counter(series.name for _, group in found for series in group)
    return [
        replace(series, name=f"{path.name}/{series.name}") if times[series.name] > 1 else series
        for path, group in found
        for series in group
    ]
