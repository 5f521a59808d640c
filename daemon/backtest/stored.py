"""The daemon's own database as series: what it has of each device, and the alerts it raised."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from gruard.daemon.backtest.series import Series, StoredAlert
from gruard.daemon.edges import schema
from gruard.daemon.edges.history import Reader
from gruard.daemon.errors import ConfigError, StateError
from gruard.models.history import History

if TYPE_CHECKING:
    from pathlib import Path

    from gruard.daemon.edges.rows import AlertRow, DeviceRow

#: More rows than a database has.
ALL_ROWS = 2**31


class _Payload(msgspec.Struct):
    message: str = ""


def read_database(path: Path) -> list[Series]:
    """The devices of a database file, which may be in use; it is opened for reading only.

    Raises:
        ConfigError: the file is no sound database of ours, or holds no reading yet; one sentence.
    """
    try:
        with Reader(path, schema.open_existing(path)) as reader:
            found = _found(reader)
    except (OSError, sqlite3.Error, schema.DamagedError, StateError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if not found:
        raise ConfigError(f"{path}: holds no reading yet")
    return found


def _found(reader: Reader) -> list[Series]:
    alerts: dict[str, list[StoredAlert]] = {}
    for row in reversed(reader.alerts(ALL_ROWS)):
        alerts.setdefault(row.device, []).append(_alert(row))
    found = [_series(reader, row, tuple(alerts.get(row.device, ()))) for row in reader.devices()]
    return [series for series in found if series.rows]


def _series(reader: Reader, row: DeviceRow, alerts: tuple[StoredAlert, ...]) -> Series:
    kept = reader.history(row.device, row.fields, ALL_ROWS)
    history = History(kept.time_s, kept.values, np.ones(len(kept.time_s), bool))
    return Series(row.device, row.fields, history, timed=True, stored=alerts)


def _alert(row: AlertRow) -> StoredAlert:
    try:
        message = msgspec.json.decode(row.payload, type=_Payload).message
    except msgspec.DecodeError:
        message = ""  # the row itself still says when
    return StoredAlert(row.opened_s, row.resolved_s, row.severity, message)
