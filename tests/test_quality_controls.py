"""The controls: each sees what it is there to see, none looks ahead, and bad rows spoil nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support_yardstick import valve_recordings

from gruard.models.linear import LAGS
from gruard.models.plants.plants import simulate
from gruard.models.quality.controls import CONTROLS, score, smoothed
from gruard.models.quality.ranking import period, vus_pr

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS, WARMUP = 1500, 600
every_control = pytest.mark.parametrize("name", CONTROLS)
learning = pytest.mark.parametrize("name", [n for n in CONTROLS if n not in {"random", "always"}])


def coupled(seed: int = 0) -> NDArray[np.float64]:
    """Readings (T, 2): a slow wave, and a second field that follows it two readings later; in odd units."""
    random = np.random.default_rng(seed)
    wave = np.sin(2 * np.pi * np.arange(ROWS + 2) / 50.0)
    fields = np.column_stack([wave[2:], wave[:-2]]) + 0.05 * random.standard_normal((ROWS, 2))
    return fields * np.array([0.02, 300.0]) + np.array([-5.0, 4000.0])


def above_warm_up(scores: NDArray[np.float64], rows: slice) -> float:
    """How the mean score of these rows compares with that of the rows before them, warm-up apart."""
    return float(scores[rows].mean() / scores[WARMUP : rows.start].mean())


@every_control
def test_control_gives_one_finite_score_per_row_and_leaves_the_readings_alone(name: str) -> None:
    """(T, F) in, (T,) out, also with gaps, a field never seen and infinities; nothing is written."""
    values = coupled()
    values[700:740] = np.nan
    values[:, 1][np.random.default_rng(1).random(ROWS) < 0.1] = np.nan
    values[800, 0] = np.inf
    values = np.column_stack([values, np.full(ROWS, np.nan)])
    values.setflags(write=False)
    scores = score(name, values, WARMUP)
    assert scores.shape == (ROWS,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()


@every_control
def test_control_never_looks_ahead(name: str) -> None:
    """What comes after row 900 changes no score up to it."""
    values = coupled()
    other = values.copy()
    other[900:] = 17.0
    np.testing.assert_array_equal(score(name, other, WARMUP)[:900], score(name, values, WARMUP)[:900])


@every_control
def test_control_does_not_depend_on_units(name: str) -> None:
    """Metres or millimetres, kilowatts or watts: the scores are the same up to rounding."""
    values = coupled()
    ours, theirs = score(name, values, WARMUP), score(name, values * np.array([1000.0, 0.5]), WARMUP)
    np.testing.assert_allclose(theirs, ours, rtol=1e-3, atol=1e-3 * ours.max())


@pytest.mark.parametrize(("name", "times"), [("level", 3.0), ("linear", 1.5), ("ewma", 1.5)])
def test_control_sees_a_shift(name: str, times: float) -> None:
    """A field that is off by four spreads for 40 readings stands out from the readings before it."""
    values = coupled()
    fault = slice(1000, 1040)
    values[fault, 0] += 4 * values[:, 0].std()
    assert above_warm_up(score(name, values, WARMUP), fault) > times


def test_linear_sees_a_broken_link_that_the_level_does_not() -> None:
    """Each field keeps its own course but not its company: only a forecast from the other one tells."""
    values = coupled()
    fault = slice(1000, 1060)
    values[fault, 1] = values[1006:1066, 1]
    assert above_warm_up(score("linear", values, WARMUP), fault) > 1.5
    assert above_warm_up(score("level", values, WARMUP), fault) < 1.5


def test_last_value_sees_a_jump_at_once_and_forgets_it() -> None:
    """The row of the jump has the highest score after warm-up, and ten rows later it is over."""
    values = coupled()
    values[1000:, 0] += 3 * values[:, 0].std()
    scores = score("last_value", values, WARMUP)
    assert WARMUP + scores[WARMUP:].argmax() == 1000
    assert scores[1010:1050].max() < 0.5 * scores[1000]


def test_ewma_and_last_value_by_hand() -> None:
    """0, 1, 0, 1, .. then 10: the running mean is near 1/2 and the running deviation near 1/2."""
    x = np.array([[float(row % 2)] for row in range(40)] + [[10.0]])
    assert score("ewma", x, LAGS + 1)[-1] == pytest.approx(9.5 / 0.5, rel=0.05)
    assert score("last_value", x, LAGS + 1)[-1] == pytest.approx(9.0 / 1.0, rel=0.05)
    assert score("ewma", x, LAGS + 1)[:9].tolist() == [0.0] * 9  # too few readings for a deviation


def test_level_of_one_field_is_its_smoothed_distance_from_the_median() -> None:
    """White noise: proportional to the exponential mean of |x - median|."""
    x = np.random.default_rng(3).standard_normal((ROWS, 1))
    by_hand = smoothed(np.abs(x[:, 0] - np.median(x[:WARMUP])))
    scores = score("level", x, WARMUP)
    np.testing.assert_allclose(scores / scores.mean(), by_hand / by_hand.mean(), rtol=2e-3)


def test_smoothed_scores_by_hand() -> None:
    """A span of 3 is a weight of 1/2, and the first score stands for itself."""
    assert smoothed(np.array([1.0, 0.0, 0.0, 4.0]), 3).tolist() == [1.0, 0.5, 0.25, 2.125]
    assert smoothed(np.array([])).tolist() == []


def test_random_follows_its_seed_and_always_is_one_score() -> None:
    """The floors: the same seed gives the same noise, another one other noise; the other floor is flat."""
    values = coupled()
    first = score("random", values, WARMUP, seed=1)
    np.testing.assert_array_equal(score("random", values, WARMUP, seed=1), first)
    assert (score("random", values, WARMUP, seed=2) != first).mean() > 0.99
    assert len(np.unique(score("always", values, WARMUP))) == 1


@learning
def test_control_learns_nothing_from_chance(name: str) -> None:
    """Only `random` knows a seed."""
    values = simulate("thermostat", ROWS, seed=2).values
    np.testing.assert_array_equal(score(name, values, WARMUP, seed=1), score(name, values, WARMUP, seed=2))


def test_control_refuses_what_it_cannot_score() -> None:
    """Unknown names, tables of another shape and a warm-up too short for the lags are told apart."""
    values = coupled()
    with pytest.raises(ValueError, match="no control named 'best'"):
        score("best", values, WARMUP)
    with pytest.raises(ValueError, match=r"\(rows, fields\)"):
        score("level", values[:, 0], WARMUP)
    with pytest.raises(ValueError, match="warmup"):
        score("linear", values, LAGS)


@pytest.mark.recordings
def test_controls_stand_where_they_were_measured_on_the_rig() -> None:
    """On the rig's valve recordings a ridge forecast reaches a VUS-PR of .96 and the level .84, as published.

    Measured apart from this code, with warm-up rows scored 0: ridge .965, level .841. Noise is at .58.
    """
    warmup = 400
    found: dict[str, list[float]] = {"level": [], "linear": [], "random": []}
    for values, labels in valve_recordings():
        window = period(values[:, 0])
        for name, volumes in found.items():
            scores = score(name, values, warmup)
            scores[:warmup] = 0.0
            volumes.append(vus_pr(labels, scores, window))
    means = {name: float(np.mean(volumes)) for name, volumes in found.items()}
    assert means["linear"] == pytest.approx(0.965, abs=0.02)
    assert means["level"] == pytest.approx(0.841, abs=0.02)
    assert means["random"] == pytest.approx(0.58, abs=0.02)
