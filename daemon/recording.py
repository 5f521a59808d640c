"""Recordings: CSV files as readings, through the same decoder that the live payloads go through."""

from __future__ import annotations

import csv
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import msgspec

from gruard.daemon.decoders import DECODERS
from gruard.daemon.errors import ConfigError, DecodeError
from gruard.daemon.records import Reading, SourceOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

#: Column names taken for the event time when none is named, in this order.
TIME_COLUMNS = ("time", "timestamp", "ts", "datetime", "date")
#: Column names taken for the device.
DEVICE_COLUMNS = ("device", "device_id")
#: Delimiters that a recording may use.
DELIMITERS = ",;\t|"
#: Seconds between rows of a recording without a time column, and the time of its first row.
STEP_S, START_S = 1.0, 1_000_000_000.0


@dataclass(frozen=True, slots=True)
class Layout:
    """How a file's columns are meant."""

    delimiter: str
    columns: tuple[str, ...]
    time: str | None
    device: str | None


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a file."""

    line: int  # where it ends in the file, from 1
    cells: Mapping[str, str]  # column -> what stands there
    readings: tuple[Reading, ...]
    refusal: DecodeError | None = None  # why there is no reading


@dataclass(slots=True)
class Recording:
    """A CSV file with a header row. Iterating gives readings; what cannot be read is counted by reason."""

    path: Path
    source: SourceOptions
    device: str  # for files without a device column
    refused: dict[str, int]
    layout: Layout

    def __iter__(self) -> Iterator[Reading]:
        for row in self.rows():
            if row.refusal is not None:
                reason = row.refusal.reason
                self.refused[reason] = self.refused.get(reason, 0) + 1
            yield from row.readings

    def rows(self) -> Iterator[Row]:
        """Every row with what came of it; nothing is counted.

        Raises:
            ConfigError: the file is not text to its end.
        """
        layout = self.layout
        sequence = self.source.sequence if self.source.sequence in layout.columns else None
        decode = DECODERS["json"](replace(self.source, time=layout.time, sequence=sequence))
        skipped = {layout.device}
        with self.path.open(newline="", encoding="utf-8-sig") as lines:
            rows = csv.reader(lines, delimiter=layout.delimiter)
            next(rows)
            for number, row in enumerate(_rows(self.path, rows)):
                cells = dict(zip(layout.columns, row, strict=False))
                device = cells.get(layout.device, "") if layout.device else self.device
                shown = {name: _cell(text) for name, text in cells.items() if name not in skipped}
                try:
                    samples = decode(msgspec.json.encode(shown))
                except DecodeError as refusal:
                    yield Row(rows.line_num, cells, (), refusal)
                    continue
                counted_s = START_S + STEP_S * number
                times = [counted_s if sample.time_s is None else sample.time_s for sample in samples]
                readings = [
                    Reading(
                        device,
                        self.source.name,
                        time_s,
                        time_s,
                        sample.values,
                        sample.issues,
                        sequence=sample.sequence,
                    )
                    for time_s, sample in zip(times, samples, strict=True)
                ]
                yield Row(rows.line_num, cells, tuple(readings))


def open_recording(path: Path, source: SourceOptions, device: str | None) -> Recording:
    """A recording ready to be read.

    Raises:
        ConfigError: the file is missing, empty, or lacks the column that the source takes the time from.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            header = lines.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    delimiter = max(DELIMITERS, key=header.count)
    columns = tuple(next(csv.reader([header], delimiter=delimiter), []))
    if len(columns) < 1 or not header.strip():
        raise ConfigError(f"{path}:1: a recording begins with a header row that names its columns")
    time = source.time or next((c for c in columns if c.lower() in TIME_COLUMNS), None)
    if time is not None and time not in columns:
        named = ", ".join(columns[:12])
        raise ConfigError(
            f'{path}:1: no column "{time}", which the source takes the time from (found: {named})'
        )
    device_column = next((c for c in columns if c.lower() in DEVICE_COLUMNS), None)
    layout = Layout(delimiter, columns, time, None if device else device_column)
    # The engine must know that event times are told, also where only the file says so.
    return Recording(path, replace(source, time=time or "time"), device or path.stem, {}, layout)


def _rows(path: Path, rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """The rows; ConfigError where the file is not text after all."""
    try:
        yield from rows
    except (csv.Error, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read to its end: {error}") from None


def _cell(text: str) -> float | int | str | None:
    """A cell as the JSON value that a publisher would send for it."""
    text = text.strip()
    if not text:
        return None
    for number in (int, float):
        try:
            value = number(text)
        except ValueError:
            continue
        # JSON has no NaN; recordings write one for a value that is missing.
        return value if abs(value) < float("inf") else None
    return text
