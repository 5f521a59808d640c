"""Series, scores and reports for the backtest's tests, made without any training."""

from __future__ import annotations

import csv
from html.parser import HTMLParser
from typing import TYPE_CHECKING

import numpy as np
from support_engine import plant_rows

from gruard.daemon.backtest.alerts import raise_alerts
from gruard.daemon.backtest.envelope import draw
from gruard.daemon.backtest.measures import measure, total
from gruard.daemon.backtest.report import Report
from gruard.daemon.backtest.run import Finished
from gruard.daemon.backtest.series import Series, StoredAlert
from gruard.models.history import History
from gruard.models.lockstep import SeriesScores

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

START_S = 1_700_000_000.0  # 2023-11-14T22:13:20Z
FIELDS = ("flow", "pressure")


def series(
    rows: int = 400,
    *,
    name: str = "pump-1",
    labels: Sequence[tuple[int, int]] | None = None,
    timed: bool = True,
    stored: tuple[StoredAlert, ...] = (),
) -> Series:
    """A device with a reading every ten seconds; `labels` are pairs of rows, both inclusive."""
    values = plant_rows(rows, fields=2)
    flags = None
    if labels is not None:
        flags = np.zeros(rows, bool)
        for first, last in labels:
            flags[first : last + 1] = True
    history = History(START_S + 10.0 * np.arange(rows), values, np.ones(rows, bool))
    return Series(name, FIELDS, history, timed=timed, labels=flags, stored=stored)


def scores(one: Series, high: Sequence[tuple[int, int]], warmup: int = 100) -> SeriesScores:
    """Scores of 0.9 and an alarm in the given rows (both inclusive), 0.2 and none elsewhere."""
    rows = one.rows
    value = np.full(rows, 0.2, np.float32)
    for first, last in high:
        value[first : last + 1] = 0.9
    return SeriesScores(
        value=value,
        threshold=np.full(rows, 0.6, np.float32),
        onset=np.zeros(rows, np.float32),
        ready=np.arange(rows) >= warmup,
        alarm=value >= 0.6,
        expected=np.full((rows, 2), 20.0, np.float32),
        share=np.tile(np.array([0.25, 0.75], np.float32), (rows, 1)),
    )


def finished(
    one: Series, high: Sequence[tuple[int, int]], *, warmup: int = 100, left: int = 0, most: int = 100
) -> Finished:
    """A series as a backtest leaves it."""
    own = scores(one, high, warmup)
    raised = raise_alerts(one, own, update_every_s=60.0)
    measured = measure(one, warmup, own, raised, own.value[:warmup])
    return Finished(one, left, warmup, tuple(raised), measured, draw(one, own, most))


def report(
    *done: Finished,
    causal: bool = True,
    skipped: tuple[tuple[str, str], ...] = (),
    unfinished: tuple[str, ...] = (),
    notes: tuple[str, ...] = (),
) -> Report:
    """A report of what is done."""
    return Report(
        recording="plant.csv",
        version="1.2.3",
        made_s=START_S,
        options={"model": "gru", "shared": False, "warmup": None, "seed": 0},
        causal=causal,
        finished=done,
        total=total([(one.series, one.measured) for one in done]),
        skipped=skipped,
        unfinished=unfinished,
        notes=notes,
    )


def write_plant(path: Path, rows: int = 340, *, seed: int = 0, fault: tuple[int, int] | None = None) -> Path:
    """A labelled CSV of a device with three fields; field c is off by far in the rows of the fault."""
    values = plant_rows(rows, seed)
    flags = np.zeros(rows, int)
    if fault is not None:
        flags[fault[0] : fault[1] + 1] = 1
        values[flags == 1, 2] += 12.0
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(["time", "a", "b", "c", "label"])
        writer.writerows(
            [START_S + 10 * t, *row, flag]
            for t, (row, flag) in enumerate(zip(values.tolist(), flags.tolist(), strict=True))
        )
    return path


def usual() -> Report:
    """Two devices, one with labels and one with an alert that the daemon had raised."""
    stored = (StoredAlert(START_S + 2000, None, "warning", "too hot"),)
    return report(
        finished(series(400, labels=[(150, 170), (300, 320)]), [(153, 160), (240, 250)]),
        finished(series(400, name="pump-2", stored=stored), [(395, 399)], left=7),
        skipped=(("pump-9", "has 3 readings"),),
        unfinished=("pump-10",),
        notes=("plant.csv: 2 rows left out",),
    )


class Dom(HTMLParser):
    """Start tags with their attributes, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "link"}:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, tag: str, kind: str | None = None) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and kind in {None, a.get("class")}]
