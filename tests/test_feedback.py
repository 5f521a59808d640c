"""Operators' feedback: what a word does at once, what stays of it, and what it leaves alone."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support_engine import plant_rows, readings_of
from support_pipeline import QUICK, opened, play

from gruard.daemon.core.events import Alert, Event
from gruard.daemon.inspection import ALL_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from gruard.daemon.pipeline import Pipeline
    from gruard.daemon.records import Reading

ROWS, EVERY, LONG = 1400, 200, 40
#: Where the harmless event begins; the first time in the rows that are played before a word is said.
TIMES = range(420, ROWS - LONG, EVERY)
SAID = TIMES[0] + 100


def harmless(rows: np.ndarray, begin: int, size: float = 1.0) -> None:
    """Put the event in: two fields move, one after the other."""
    shape = np.minimum(np.arange(LONG) / 8, 1.0)
    rows[begin : begin + LONG, 0] += 14.0 * size * shape
    rows[begin + 10 : begin + LONG, 1] -= 10.0 * size


def plant(device: str, seed: int, *, eventful: bool) -> np.ndarray:
    rows = plant_rows(ROWS, seed)
    if eventful:
        for n, begin in enumerate(TIMES):
            harmless(rows, begin, 1.0 + 0.05 * (n % 3 - 1))
    return rows


def readings(rows_of: dict[str, np.ndarray], first: int, last: int) -> list[Reading]:
    """Rows `first` to `last` of all devices, in the order of time."""
    every = [readings_of(device, rows[first:last], 1000.0 + first) for device, rows in rows_of.items()]
    return sorted((one for many in every for one in many), key=lambda one: one.time_s)


def opens(events: Sequence[Event], device: str = "a") -> list[float]:
    """Event times at which alerts of a device were opened, as rows."""
    return [
        event.time_s - 1000.0
        for event in events
        if isinstance(event, Alert) and event.state == "opened" and event.device == device
    ]


def of_the_event(events: Sequence[Event]) -> list[float]:
    return [t for t in opens(events) if any(begin <= t < begin + LONG + 20 for begin in TIMES)]


def first_alert(pipeline: Pipeline, device: str = "a") -> str:
    return next(row.id for row in pipeline.database.alerts(ALL_ROWS) if row.device == device)


@pytest.fixture(scope="module")
def fleet() -> dict[str, np.ndarray]:
    return {"a": plant("a", 0, eventful=True), "b": plant("b", 1, eventful=True)}


@contextmanager
def trained(folder: Path, fleet: dict[str, np.ndarray]) -> Iterator[Pipeline]:
    """A pipeline with a model in charge, and one alert of the event behind each device."""
    with opened(folder, QUICK) as pipeline:
        play(pipeline, readings(fleet, 0, SAID))
        assert pipeline.models
        yield pipeline


def test_expected_silences_the_recurrence_and_no_other_device(
    tmp_path: Path, fleet: dict[str, np.ndarray]
) -> None:
    """One word on the first alert ends them all for that device; the other goes on as it would have."""
    with trained(tmp_path / "spoken", fleet) as pipeline:
        answer = pipeline.feedback.take({"do": "expected", "alert": first_alert(pipeline)})
        after = play(pipeline, readings(fleet, SAID, ROWS))
    with trained(tmp_path / "silent", fleet) as pipeline:
        before = play(pipeline, readings(fleet, SAID, ROWS))
    assert answer["pattern"]
    assert len(of_the_event(before)) >= 2
    assert of_the_event(after) == []
    told = [e for e in before if isinstance(e, Alert) and e.device == "b"]
    assert [e for e in after if isinstance(e, Alert) and e.device == "b"] == told
    assert told


@pytest.mark.parametrize("fault", ["another field", "clearly larger", "the other way"])
def test_expected_leaves_other_faults_of_the_device_alone(
    tmp_path: Path, fleet: dict[str, np.ndarray], fault: str
) -> None:
    """Another field, the same fields by far more, or the other way still open an alert."""
    rows = fleet["a"].copy()
    where = slice(550, 590)
    rows[where] = plant_rows(ROWS, 0)[where]
    if fault == "another field":
        rows[where, 2] += 14.0
    else:
        harmless(rows, where.start, 4.0 if fault == "clearly larger" else -1.0)
    fleet = fleet | {"a": rows}
    with trained(tmp_path, fleet) as pipeline:
        pipeline.feedback.take({"do": "expected", "alert": first_alert(pipeline)})
        after = play(pipeline, readings(fleet, SAID, 610))
    assert [t for t in opens(after) if where.start <= t < where.stop + 10]
