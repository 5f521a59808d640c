"""Recordings of several devices through one network, against the one-device detector."""

from __future__ import annotations

import numpy as np
import pytest
from support_engine import plant_rows

from gruard.models import Detector, DetectorConfig
from gruard.models.history import History
from gruard.models.lockstep import SeriesScores, score_series

CONFIG = DetectorConfig(hidden=8)
WARMUP = 220


def history(rows: np.ndarray, start_s: float = 0.0) -> History:
    return History(start_s + np.arange(len(rows), dtype=float), rows, np.ones(len(rows), bool))


def faulty_rows(total: int = 340, seed: int = 0) -> np.ndarray:
    """Rows with a hole, and a fault in field 1 on the last sixty."""
    rows = plant_rows(total, seed)
    rows[5] = np.nan
    rows[100:110, 2] = np.nan
    rows[total - 60 :, 1] += 12.0
    return rows


def assert_same(a: SeriesScores, b: SeriesScores, rows: slice) -> None:
    for name in ("value", "threshold", "onset", "ready", "alarm", "expected", "share"):
        ours, theirs = getattr(a, name)[rows], getattr(b, name)[rows]
        np.testing.assert_allclose(ours.astype(float), theirs.astype(float), atol=1e-5, err_msg=name)


def test_score_series_one_history_equals_the_detector() -> None:
    """Row by row the same score, threshold, alarm and reasons as the library's front door gives."""
    rows = faulty_rows()
    own = score_series([history(rows)], WARMUP, CONFIG)[0]
    detector = Detector(fields=3, warmup=WARMUP, config=CONFIG)
    by_hand = [detector.update(float(t), row) for t, row in enumerate(rows)]
    for name in ("value", "threshold", "onset", "ready", "alarm", "expected", "share"):
        expected = np.array([getattr(score, name) for score in by_hand], float)
        np.testing.assert_allclose(getattr(own, name).astype(float), expected, atol=1e-5, err_msg=name)
    assert own.alarm[-50:].all()
    assert not own.alarm[WARMUP:-60].any()
    assert own.ready[WARMUP:].all()
    assert not own.ready[:WARMUP].any()


def test_score_series_is_causal() -> None:
    """What comes later changes no score: the head of a recording scores alone as it does in the whole."""
    rows = faulty_rows()
    whole = score_series([history(rows)], WARMUP, CONFIG)[0]
    head = score_series([history(rows[:290])], WARMUP, CONFIG)[0]
    np.testing.assert_array_equal(head.value, whole.value[:290])
    np.testing.assert_array_equal(head.alarm, whole.alarm[:290])


def test_score_series_devices_of_different_lengths_share_a_network() -> None:
    """Every device is scored to its own end, one that ends in the warm-up too, whatever the order."""
    histories = [history(faulty_rows(seed=n)[:total], 60.0 * n) for n, total in enumerate((340, 90, 300))]
    scores = score_series(histories, WARMUP, CONFIG)
    assert [len(own.value) for own in scores] == [340, 90, 300]
    assert scores[0].ready[WARMUP:].all()
    assert scores[2].ready[WARMUP:].all()
    assert not scores[1].ready.any()
    assert scores[0].alarm[-50:].all()
    alone = score_series([histories[1]], WARMUP, CONFIG)[0]
    assert_same(scores[1], alone, slice(None))
    own = score_series([histories[0]], WARMUP, CONFIG)[0]
    assert_same(scores[0], own, slice(WARMUP))  # nothing is shared before the training,
    assert np.abs(scores[0].value[WARMUP:] - own.value[WARMUP:]).max() > 1e-4  # and a network is after it


def test_score_series_the_caller_hears_of_every_reading() -> None:
    """Progress grows and ends at the number of readings of all devices."""
    heard: list[int] = []
    score_series([history(plant_rows(130)), history(plant_rows(70))], 130, CONFIG, progress=heard.append)
    assert heard == sorted(heard)
    assert len(heard) > 1
    assert heard[-1] == 200


def test_score_series_stopped_keeps_the_rows_that_are_done() -> None:
    """An interruption cuts every array at the same row; what is kept is what a whole run scores there."""
    asked: list[None] = []

    def stop() -> bool:
        asked.append(None)
        return len(asked) > 80

    cut = score_series([history(plant_rows(130)), history(plant_rows(70))], 130, CONFIG, stop=stop)
    whole = score_series([history(plant_rows(130)), history(plant_rows(70))], 130, CONFIG)
    assert [len(own.value) for own in cut] == [80, 70]
    assert_same(cut[0], whole[0], slice(80))
    assert cut[0].expected.shape == (80, 3)


@pytest.mark.parametrize(
    ("widths", "warmup", "message"),
    [([3], 59, "at least 60"), ([3, 2], 100, "one set of fields"), ([], 100, "one set of fields")],
)
def test_score_series_wrong_arguments_are_refused(widths: list[int], warmup: int, message: str) -> None:
    """A caller's mistake is told before anything is scored."""
    with pytest.raises(ValueError, match=message):
        score_series([history(plant_rows(120, fields=f)) for f in widths], warmup, CONFIG)


@pytest.mark.parametrize(("cell", "causal"), [("mlp", True), ("transformer", True), ("bigru", False)])
def test_score_series_comparators_look_ahead_only_where_it_is_meant(cell: str, *, causal: bool) -> None:
    """Other readings at the end change the scores before them for the two-sided network and no other."""
    rows = plant_rows(260)
    other = rows.copy()
    other[240:] += 5.0
    config = DetectorConfig(cell=cell, hidden=8)
    own, changed = (score_series([history(r)], WARMUP, config)[0] for r in (rows, other))
    assert np.array_equal(own.value[:240], changed.value[:240]) is causal
    np.testing.assert_array_equal(own.value[:WARMUP], changed.value[:WARMUP])
    assert own.ready[WARMUP:].all()
