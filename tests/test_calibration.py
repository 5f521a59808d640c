"""Scores with one meaning, thresholds from a budget."""

from __future__ import annotations

import numpy as np
import pytest

from gruard.models import calibration


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
    np.testing.assert_allclose(calibration.exceedance(q, med, q), 1.0, atol=0.2)
    np.testing.assert_array_equal(calibration.exceedance(med, med, q), 0.0)


def test_exceedance_constant_evidence_does_not_divide_by_zero() -> None:
    """A signal without any variation still has a finite scale."""
    med, q = calibration.fit(np.zeros((100, 1)))
    assert np.isfinite(calibration.exceedance(np.array([[5.0]]), med, q)).all()


def test_combine_one_loud_stream_is_heard_among_many() -> None:
    """Eight streams, one of them at 4: the combination is well above 1."""
    u = np.zeros((1, 8))
    u[0, 3] = 4.0
    assert calibration.combine(u)[0] == pytest.approx(4 / 8**0.25)
    assert calibration.combine(np.full((1, 8), 1.5))[0] == pytest.approx(1.5)


def test_to_score_is_monotone_between_zero_and_one() -> None:
    """0 stays 0, u = 1 is one half, and more is always more."""
    u = np.array([0, 0.5, 1, 2, 10, 1e6])
    score = calibration.to_score(u)
    assert score[0] == 0
    assert score[2] == 0.5
    assert (np.diff(score) > 0).all()
    assert score[-1] <= 1


def test_alarm_level_rises_with_a_smaller_budget() -> None:
    """Fewer allowed alarms mean a higher threshold."""
    u = np.random.default_rng(0).exponential(0.25, 3000)
    levels = [calibration.alarm_level(u, rate) for rate in (1e-2, 1e-4, 1e-6)]
    assert levels == sorted(levels)
    assert levels[0] < levels[2]


def test_alarm_level_keeps_the_budget_on_normal_rows() -> None:
    """On rows like those it was fitted on, alarms stay within the budget asked for."""
    rng = np.random.default_rng(1)
    level = calibration.alarm_level(rng.exponential(0.3, 2000), 1e-3 / calibration.RUN_LENGTH)
    assert (rng.exponential(0.3, 200_000) > level).mean() < 2e-3


@pytest.mark.parametrize("u", [[], [0.5], [0.0] * 50, [1e9] * 50])
def test_alarm_level_stays_within_its_bounds(u: list[float]) -> None:
    """Too few or senseless rows never give a threshold that alarms always or never."""
    level = calibration.alarm_level(np.array(u), 1e-6)
    assert calibration.LEVEL_LOW <= level <= calibration.LEVEL_HIGH
