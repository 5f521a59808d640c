"""The clock as inputs: when it may be used, and what it gives."""

from __future__ import annotations

import numpy as np
import pytest

from gruard.models import clock
from gruard.models.clock import DAY_HARMONICS, DAY_S, WEEK_HARMONICS, WEEK_S

DAILY, ALL = 2 * DAY_HARMONICS, 2 * (DAY_HARMONICS + WEEK_HARMONICS)
NOW_S = 1_764_000_000.0


@pytest.mark.parametrize(
    ("span_s", "gap_s", "columns"),
    [
        (1.9 * DAY_S, 60.0, 0),  # a day that was seen once proves nothing
        (2.0 * DAY_S, 60.0, DAILY),
        (13.9 * DAY_S, 300.0, DAILY),
        (2.0 * WEEK_S, 300.0, ALL),
        (100 * WEEK_S, 3600.0, ALL),
        (100 * WEEK_S, 7 * 3600.0, 0),  # too seldom to show a day
    ],
)
def test_columns_for_need_two_of_what_they_describe(span_s: float, gap_s: float, columns: int) -> None:
    """The day is used from two days on, the week from two weeks on, at readings often enough."""
    assert clock.columns_for(NOW_S + np.linspace(0.0, span_s, 50), gap_s) == columns


def test_columns_for_no_readings_is_none() -> None:
    """Without a history there is no clock."""
    assert clock.columns_for(np.zeros(0), 1.0) == 0
    assert clock.columns_for(np.array([NOW_S]), 1.0) == 0


def test_harmonics_shape_follows_the_times() -> None:
    """Times (...,) give (..., C), all within +-1."""
    for shape in ((), (4,), (5, 3)):
        found = clock.harmonics(np.full(shape, NOW_S), ALL)
        assert found.shape == (*shape, ALL)
        assert found.dtype == np.float32
        assert np.abs(found).max() <= 1.0
    assert clock.harmonics(np.zeros(3), 0).shape == (3, 0)


def test_harmonics_return_after_their_period() -> None:
    """The columns of the day are the same a day later, those of the week a week later and not before."""
    times = NOW_S + np.array([0.0, 1234.0, 55_555.0])
    today, tomorrow, next_week = (clock.harmonics(times + later, ALL) for later in (0.0, DAY_S, WEEK_S))
    np.testing.assert_allclose(today[:, :DAILY], tomorrow[:, :DAILY], atol=1e-5)
    np.testing.assert_allclose(today, next_week, atol=1e-5)
    assert np.abs(today[:, DAILY:] - tomorrow[:, DAILY:]).max() > 0.5


def test_harmonics_are_sine_and_cosine_of_whole_turns() -> None:
    """Column by column what the formula says, at any phase."""
    time_s = np.array([NOW_S + 4321.5])
    found = clock.harmonics(time_s, ALL)[0]
    turns = [k / DAY_S for k in range(1, DAY_HARMONICS + 1)] + [
        k / WEEK_S for k in range(1, WEEK_HARMONICS + 1)
    ]
    for n, per_second in enumerate(turns):
        angle = 2 * np.pi * ((time_s[0] * per_second) % 1.0)
        assert found[2 * n] == pytest.approx(np.sin(angle), abs=1e-5)
        assert found[2 * n + 1] == pytest.approx(np.cos(angle), abs=1e-5)


def test_harmonics_tell_seconds_apart_in_any_year() -> None:
    """A large time loses nothing: the step from one second to the next is that of the early days."""
    for start in (0.0, NOW_S - NOW_S % WEEK_S, 4e9 - 4e9 % WEEK_S):
        step = np.diff(clock.harmonics(start + np.array([100.0, 101.0]), ALL), axis=0)
        first = np.diff(clock.harmonics(np.array([100.0, 101.0]), ALL), axis=0)
        np.testing.assert_allclose(step, first, atol=3e-7)


def test_harmonics_first_columns_are_those_of_fewer() -> None:
    """A clock of the day is the beginning of a clock of day and week."""
    times = NOW_S + np.arange(10.0) * 777
    np.testing.assert_array_equal(clock.harmonics(times, DAILY), clock.harmonics(times, ALL)[:, :DAILY])
