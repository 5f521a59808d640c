"""CSV files as series: read by the same decoder, and in the same order of time, as the daemon reads live.

A column is a field of a device where at least half of what stands in it is numbers. Readings out of order
are left out, as the engine refuses them; a text in a field is a missing value. Both are told in the notes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from glob import escape
from typing import TYPE_CHECKING

import numpy as np

from gruard.daemon.backtest.series import Series
from gruard.daemon.core.devices import Device, admit_time
from gruard.daemon.errors import ConfigError, DecodeError
from gruard.daemon.recording import DEVICE_COLUMNS, open_recording
from gruard.daemon.records import SourceOptions
from gruard.models.history import History

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gruard.daemon.recording import Recording, Row
    from gruard.daemon.records import Reading

#: Columns taken for the labels when none is named, in this order. None of them is ever a field.
LABEL_COLUMNS = ("label", "anomaly", "is_anomaly")
#: As many fields as a configuration may allow at most.
MOST_FIELDS = 1024

_NO = frozenset({"", "0", "false", "no", "n", "f", "normal", "none", "nan", "null"})
_YES = frozenset({"1", "true", "yes", "y", "t", "anomaly", "anomalous", "abnormal"})


@dataclass(slots=True)
class _Rows:
    """What is gathered of one device."""

    device: Device  # where the engine would stand with it
    times: list[float] = field(default_factory=list)
    values: list[dict[str, float]] = field(default_factory=list)
    labels: list[bool] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)  # column -> cells with a number
    texts: dict[str, list[int]] = field(default_factory=dict)  # column -> lines with something else
    left_out: dict[str, list[int]] = field(default_factory=dict)  # reason -> lines


def read_table(path: Path, labels: str | None, exclude: Sequence[str]) -> list[Series]:
    """The devices of a CSV file with a header row.

    `labels` names the label column, "" says that there is none, None looks for one of LABEL_COLUMNS.

    Raises:
        ConfigError: the file cannot be used; one sentence with file and line.
    """
    plain = SourceOptions("recording", "recording/{device}", max_fields=MOST_FIELDS)
    columns = open_recording(path, plain, None).layout.columns
    _check_columns(path, columns, (*exclude, *([labels] if labels else [])))
    label_column = _label_column(columns) if labels is None else labels
    hidden = {*exclude, *([label_column] if label_column else [])}
    if labels is None:
        hidden |= {name for name in columns if name.lower() in LABEL_COLUMNS}
    # Patterns are meant in a configuration, names here.
    source = SourceOptions(
        plain.name,
        plain.topic,
        max_fields=MOST_FIELDS,
        exclude=tuple(escape(name) for name in sorted(hidden)),
    )
    recording = open_recording(path, source, None)
    devices, refused = _gather(recording, label_column)
    if not any(rows.times for rows in devices.values()):
        raise ConfigError(_why_nothing(path, refused))
    common = (_told(path, refused),) if refused else ()
    return [_series(path, recording, rows, label_column, common) for rows in devices.values() if rows.times]


def _check_columns(path: Path, columns: Sequence[str], named: Sequence[str]) -> None:
    for name in named:
        if name not in columns:
            raise ConfigError(f'{path}:1: no column "{name}" (found: {", ".join(columns[:12])})')
    for place, name in enumerate(columns):
        if name and name in columns[:place]:
            raise ConfigError(f'{path}:1: two columns are called "{name}"')


def _label_column(columns: Sequence[str]) -> str:
    lowered = {name.lower(): name for name in reversed(columns)}
    return next((lowered[name] for name in LABEL_COLUMNS if name in lowered), "")


def _gather(
    recording: Recording, label_column: str
) -> tuple[dict[str, _Rows], dict[str, tuple[int, int, DecodeError]]]:
    """Rows by device, and what could not be read: reason -> (how often, first line, refusal)."""
    devices: dict[str, _Rows] = {}
    refused: dict[str, tuple[int, int, DecodeError]] = {}
    for row in recording.rows():
        if row.refusal is not None:
            count, line, first = refused.get(row.refusal.reason, (0, row.line, row.refusal))
            refused[row.refusal.reason] = (count + 1, line, first)
            continue
        if any(not reading.device for reading in row.readings):
            nameless = DecodeError("bad_device_id", "the device column is empty")
            count, line, first = refused.get(nameless.reason, (0, row.line, nameless))
            refused[nameless.reason] = (count + 1, line, first)
            continue
        anomalous = bool(label_column) and _label(recording.path, row, label_column)
        for reading in row.readings:
            rows = devices.get(reading.device)
            if rows is None:
                rows = devices[reading.device] = _Rows(Device(reading.device, reading.source))
            _take(rows, reading, row.line, anomalous=anomalous, timed=recording.layout.time is not None)
    return devices, refused


def _take(rows: _Rows, reading: Reading, line: int, *, anomalous: bool, timed: bool) -> None:
    try:
        rows.device.last_s = admit_time(rows.device, reading, event_time=timed)
    except DecodeError as refusal:
        rows.left_out.setdefault(refusal.reason or "duplicate", []).append(line)
        return
    rows.device.last_values = dict(reading.values)
    rows.times.append(rows.device.last_s)
    rows.values.append(rows.device.last_values)
    rows.labels.append(anomalous)
    for name in reading.values:
        rows.numbers[name] = rows.numbers.get(name, 0) + 1
    for name, reason in reading.issues.items():
        if reason != "null":
            rows.texts.setdefault(name, []).append(line)


def _label(path: Path, row: Row, column: str) -> bool:
    text = row.cells.get(column, "").strip().lower()
    if text in _NO or text in _YES:
        return text in _YES
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    # -1 means an anomaly to some and a normal row to others.
    if not 0 <= number < float("inf"):
        told = row.cells.get(column, "")[:40]
        raise ConfigError(f'{path}:{row.line}: column "{column}": "{told}" is no label: write 0 or 1')
    return number > 0


def _series(
    path: Path, recording: Recording, rows: _Rows, label_column: str, notes: tuple[str, ...]
) -> Series:
    columns = [name for name in recording.layout.columns if name in rows.numbers]
    fields = tuple(name for name in columns if rows.numbers[name] >= len(rows.texts.get(name, ())))
    if not fields:
        raise ConfigError(f'{path}: device "{rows.device.name}" has no column of numbers')
    missing = float("nan")
    values = np.array([[row.get(name, missing) for name in fields] for row in rows.values])  # (T, F)
    times = np.array(rows.times)
    return Series(
        rows.device.name,
        fields,
        History(times, values, np.ones(len(times), bool)),
        timed=recording.layout.time is not None,
        labels=np.array(rows.labels) if label_column else None,
        notes=(*notes, *_notes(path, rows, fields)),
    )


def _notes(path: Path, rows: _Rows, fields: tuple[str, ...]) -> list[str]:
    notes = [
        f"{path.name}: {len(lines)} readings of {rows.device.name} left out: {reason}"
        f" (first: line {lines[0]})"
        for reason, lines in rows.left_out.items()
    ]
    notes += [
        f'{path.name}: {len(lines)} cells of column "{name}" are no numbers and count as missing'
        f" (first: line {lines[0]})"
        if name in fields
        else f'{path.name}: column "{name}" is no field: it holds more text than numbers'
        for name, lines in rows.texts.items()
        if name.lower() not in DEVICE_COLUMNS
    ]
    return notes


def _told(path: Path, refused: dict[str, tuple[int, int, DecodeError]]) -> str:
    told = ", ".join(f"{count} {reason} (first: line {line})" for reason, (count, line, _) in refused.items())
    return f"{path.name}: rows left out: {told}"


def _why_nothing(path: Path, refused: dict[str, tuple[int, int, DecodeError]]) -> str:
    if not refused:
        return f"{path}:2: there is no row below the header"
    count, line, refusal = max(refused.values(), key=lambda found: found[0])
    return f"{path}:{line}: none of the rows can be used: {refusal} ({count} of them)"
