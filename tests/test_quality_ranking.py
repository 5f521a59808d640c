"""Ranking measures: small cases by hand, what no series may break, and agreement with the yardstick."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support_yardstick import scored_series, yardstick

from gruard.models.quality.ranking import NO_PERIOD, auc_pr, checked, period, segments, vus_pr

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

MEASURES = {"auc_pr": auc_pr, "vus_pr": lambda y, s: vus_pr(y, s, 20)}
both = pytest.mark.parametrize("measure", MEASURES.values(), ids=MEASURES)


def flags(text: str) -> NDArray[np.bool_]:
    """Labels from a drawing: # is an anomalous row."""
    return np.array([sign == "#" for sign in text])


@pytest.mark.parametrize(
    ("drawing", "runs"),
    [
        ("", []),
        ("...", []),
        ("###", [(0, 2)]),
        (".##.#", [(1, 2), (4, 4)]),
        ("#..##", [(0, 0), (3, 4)]),
    ],
)
def test_segments_are_first_and_last_row_of_every_run(drawing: str, runs: list[tuple[int, int]]) -> None:
    """Both ends belong to a run, also where it touches an end of the series."""
    assert segments(flags(drawing)) == runs


@pytest.mark.parametrize(
    ("drawing", "scores", "expected"),
    [
        ("#.#.", [4, 3, 2, 1], 1 / 2 * 1 + 1 / 2 * 2 / 3),
        ("##..", [4, 3, 2, 1], 1.0),
        ("..##", [4, 3, 2, 1], 1 / 2 * 1 / 3 + 1 / 2 * 2 / 4),
        ("#...", [7, 7, 7, 7], 1 / 4),
        ("#.#.", [2, 2, 1, 0], 1 / 2 * 1 / 2 + 1 / 2 * 2 / 3),
    ],
)
def test_auc_pr_of_four_rows_is_the_sum_by_hand(drawing: str, scores: list[int], expected: float) -> None:
    """Recall gained at each distinct score times precision there; rows that tie are taken together."""
    assert auc_pr(flags(drawing), np.array(scores)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("drawing", "scores", "expected"),
    [
        # One event, touched by its first row already: average precision, 1/2 + 1/2 * 2/3.
        (".##.", [1, 4, 2, 3], 5 / 6),
        # Two events: the first row found recalls 1/2 of the rows in 1/2 of the events, a quarter.
        ("#.#.", [4, 3, 2, 1], 1 / 4 * 1 + 3 / 4 * 2 / 3),
    ],
)
def test_vus_pr_without_shoulders_counts_rows_and_events(
    drawing: str, scores: list[int], expected: float
) -> None:
    """With a window of 0 recall is the share of anomalous rows times the share of events touched."""
    assert vus_pr(flags(drawing), np.array(scores), 0) == pytest.approx(expected)


def test_vus_pr_with_shoulders_is_the_mean_over_their_widths() -> None:
    """A score one row early earns nothing at widths 0 and 1, and sqrt(1/2) of a row at width 2."""
    early, soft = np.array([0, 5, 1, 0, 0]), np.sqrt(1 / 2)
    narrow = 1 / 2  # both rows predicted before the event is touched, half of them rightly
    first = soft / ((1 + 1 + soft) / 2)  # recall of the early row, alone
    wide = first * soft + (1 - first) * (1 + soft) / 2
    assert vus_pr(flags("..#.."), early, 2) == pytest.approx((narrow + narrow + wide) / 3)


@both
@pytest.mark.parametrize("seed", range(4))
def test_ranking_depends_on_the_order_of_scores_alone(
    measure: Callable[[NDArray[np.bool_], NDArray[np.float64]], float], seed: int
) -> None:
    """A rising function of the scores changes nothing."""
    labels, scores = scored_series(seed)
    assert measure(labels, np.exp(scores) - 7.0) == pytest.approx(measure(labels, scores), abs=1e-12)


@both
def test_ranking_of_perfect_scores_is_near_one_and_of_reversed_ones_below_noise(
    measure: Callable[[NDArray[np.bool_], NDArray[np.float64]], float],
) -> None:
    """The measure tells good scores from noise and noise from scores that are always wrong."""
    labels = np.zeros(4000, np.bool_)
    labels[1000:1200] = labels[3000:3100] = True
    noise = np.random.default_rng(0).random(4000)
    assert measure(labels, labels + 0.1 * noise) > 0.95
    assert 0.05 < measure(labels, noise) < 0.15
    assert measure(labels, 0.1 * noise - labels) < 0.05


@both
def test_ranking_without_an_anomaly_is_no_number(
    measure: Callable[[NDArray[np.bool_], NDArray[np.float64]], float],
) -> None:
    """There is nothing to rank, and 0 or 1 would drag a mean."""
    assert np.isnan(measure(np.zeros(30, np.bool_), np.arange(30.0)))


@both
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_ranking_of_any_series_lies_between_zero_and_one(
    measure: Callable[[NDArray[np.bool_], NDArray[np.float64]], float], data: st.DataObject
) -> None:
    """Also with one row, with ties, with events that meet and with no normal row at all."""
    rows = data.draw(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=1, max_size=60))
    labels, scores = np.array([y for y, _ in rows]), np.array([float(s) for _, s in rows])
    found = measure(labels, scores)
    assert (0.0 <= found <= 1.0 + 1e-12) if labels.any() else np.isnan(found)


def test_checked_refuses_what_cannot_be_judged() -> None:
    """Other lengths, tables and scores that are not finite are refused by name."""
    with pytest.raises(ValueError, match="one length"):
        checked(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="one length"):
        checked(np.zeros((3, 1)), np.zeros((3, 1)))
    with pytest.raises(ValueError, match="not finite"):
        checked(np.zeros(3), np.array([0.0, np.nan, 1.0]))
    with pytest.raises(ValueError, match="window"):
        vus_pr(np.ones(3), np.ones(3), -1)
    with pytest.raises(ValueError, match="thresholds"):
        vus_pr(np.ones(3), np.ones(3), 2, thresholds=1)


@pytest.mark.parametrize("rows", [7, 24, 60, 200])
def test_period_of_a_wave_is_its_length(rows: int) -> None:
    """A sine with noise on an offset, a few values missing, has the period that it was made with."""
    random = np.random.default_rng(0)
    x = 50.0 + np.sin(2 * np.pi * np.arange(4000) / rows) + 0.1 * random.standard_normal(4000)
    x[random.random(4000) < 0.02] = np.nan
    assert abs(period(x) - rows) <= 1


@pytest.mark.parametrize(
    "x", [np.ones(500), np.full(500, np.nan), np.arange(9.0), np.arange(2000.0)], ids=str
)
def test_period_of_a_series_without_one_is_the_usual_one(x: NDArray[np.float64]) -> None:
    """A constant, nothing seen, too few rows and a ramp have no peak of autocorrelation."""
    assert period(x) == NO_PERIOD


@pytest.mark.parametrize("seed", range(12))
def test_ranking_agrees_with_the_yardstick(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """VUS-PR, AUC-PR, the period and the runs are those of an implementation tied to TSB-AD's."""
    theirs = yardstick(monkeypatch)
    labels, scores = scored_series(seed)
    assert segments(labels) == theirs.segments(labels)
    assert auc_pr(labels, scores) == pytest.approx(theirs.auc_pr(labels, scores), abs=1e-9)
    for window in (0, 1, 2, 17, 100, 300):
        expected = theirs.vus_pr(labels, scores, window)
        assert vus_pr(labels, scores, window) == pytest.approx(expected, abs=1e-9), window
    wave = np.sin(np.arange(900) / (seed + 1.0)) + 0.3 * scores.repeat(2)[:900]
    assert period(wave) == theirs.period(wave)
