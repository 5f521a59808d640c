"""Scores with one meaning, thresholds from a budget."""

from __future__ import annotations

import numpy as np
import pytest

from gruard.models import calibration
from gruard.models.calibration import Budget


def test_fit_larger_of_final_and_held_back_wins() -> None:
    """Rows that were trained on look too good; the honest rows set the width."""
    final, held = np.full((200, 1), 1.0), np.full((100, 1), 3.0)
    med, q = calibration.fit(final, held)
    assert med[0] == 1.0
    assert q[0] == 3.0
    assert calibration.fit(final)[1][0] == 1.0


def test_exceedance_is_one_at_the_most_normal_rows_show() -> None:
    """The u of the upper quantile is about 1, of the median 0."""
    rng = np.random.default_rng(0)
    e = rng.gamma(20, 0.1, (5000, 2))
    med, q = calibration.fit(e)
    inverse = calibration.inverse_width(med, q)
    np.testing.assert_allclose(calibration.exceedance(q, med, inverse), 1.0, atol=0.2)
    np.testing.assert_array_equal(calibration.exceedance(med, med, inverse), 0.0)


def test_exceedance_constant_evidence_does_not_divide_by_zero() -> None:
    """A signal without any variation still has a finite scale."""
    med, q = calibration.fit(np.zeros((100, 1)))
    inverse = calibration.inverse_width(med, q)
    assert 0 < inverse[0] <= 1 / calibration.FLOOR
    assert np.isfinite(calibration.exceedance(np.array([[5.0]]), med, inverse)).all()


def test_combine_one_loud_stream_is_heard_among_many() -> None:
    """Eight streams, one of them at 4: the combination is well above 1."""
    u = np.zeros((1, 8))
    u[0, 3] = 4.0
    every = calibration.equal_weights(np.ones(8, bool))
    assert calibration.combine(u, every)[0, 0] == pytest.approx(4 / 8**0.25)
    assert calibration.combine(np.full((1, 8), 1.5), every)[0, 0] == pytest.approx(1.5)


def test_combine_streams_that_were_not_chosen_say_nothing() -> None:
    """Each mean listens to its own choice of streams, however loud the others are."""
    chosen = np.array([True, True, False, False])
    weights = calibration.equal_weights(chosen, ~chosen)
    np.testing.assert_allclose(weights.sum(axis=0), 1.0)
    u = np.array([[2.0, 2.0, 50.0, 50.0]])
    np.testing.assert_allclose(calibration.combine(u, weights), [[2.0, 50.0]], rtol=1e-6)


def test_to_score_is_monotone_between_zero_and_one() -> None:
    """0 stays 0, u = 1 is one half, and more is always more."""
    u = np.array([0, 0.5, 1, 2, 10, 1e6])
    score = calibration.to_score(u)
    assert score[0] == 0
    assert score[2] == 0.5
    assert (np.diff(score) > 0).all()
    assert score[-1] <= 1


def test_alarm_level_rises_with_a_smaller_budget() -> None:
    """Fewer allowed alarms mean a higher level."""
    m = np.random.default_rng(0).exponential(0.1, 3000)
    levels = [calibration.alarm_level(m, rate, 0.0) for rate in (1e-2, 1e-4, 1e-6)]
    assert levels == sorted(levels)
    assert len(set(levels)) == 3


@pytest.mark.parametrize("rate", [1e-3, 1e-4])
def test_alarm_level_extrapolates_an_exponential_tail(rate: float) -> None:
    """Of an exponential tail the share above the level is the one asked for, within a factor of two."""
    tail = np.random.default_rng(1).exponential(0.1, 3000)
    level = calibration.alarm_level(tail, rate / calibration.RUN_LENGTH, 0.0)
    assert rate / 2 < np.exp(-level / 0.1) < 2 * rate


@pytest.mark.parametrize("u", [[], [0.5], [0.0] * 50, [1e9] * 50])
def test_alarm_level_stays_within_its_bounds(u: list[float]) -> None:
    """Too few or senseless rows never give a threshold that alarms always or never."""
    for budget in (Budget(), Budget(per_reading=1e-4)):
        level = calibration.alarm_level(np.array(u), 1e-6, budget.least_level)
        assert budget.least_level <= level <= calibration.LEVEL_HIGH


def test_budget_in_time_depends_on_how_often_a_device_reports() -> None:
    """One alarm a week is a smaller share of the readings of a device that reports more often."""
    weekly = Budget(1 / 604_800)
    assert weekly.rate(1.0) == pytest.approx(1 / 604_800)
    assert weekly.rate(60.0) == pytest.approx(60 / 604_800)


def test_budget_per_reading_is_the_same_for_every_device() -> None:
    """Alarms per reading are a rate that is wanted, so their level may lie lower."""
    budget = Budget(per_reading=1e-3)
    assert budget.rate(1.0) == budget.rate(3600.0) == 1e-3
    assert budget.least_level < Budget().least_level
