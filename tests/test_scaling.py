"""Physical units and sigma."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gruard.models import scaling


def test_fit_ignores_outliers() -> None:
    """A few wild readings move neither centre nor scale."""
    rng = np.random.default_rng(0)
    x = rng.normal(50, 2, (500, 1))
    m, s = scaling.fit(x)
    for n, few in ((500, 4), (50, 1), (12, 1)):
        wild = x[:n].copy()
        wild[:few] = 1e12
        wild_m, wild_s = scaling.fit(wild)
        assert abs(wild_m - m) < 1.5
        assert 0.5 < wild_s / s < 4


def test_fit_mostly_resting_field_uses_the_standard_deviation() -> None:
    """A command that is nearly always 0 still has a usable scale."""
    x = np.zeros((200, 1))
    x[::10] = 1.0
    assert 0.2 < scaling.fit(x)[1][0] < 0.5


def test_fit_constant_field_has_a_floor() -> None:
    """The first change of a constant field must not be astronomically many sigma."""
    m, s = scaling.fit(np.full((100, 1), 230.0))
    z = scaling.to_sigma(np.array([231.0]), m, s)
    assert s[0] > 0
    assert 0.1 < z[0] < 1


def test_fit_never_seen_field_is_neutral() -> None:
    """A field without a single value gets centre 0 and scale 1, and no warning."""
    m, s = scaling.fit(np.full((20, 2), np.nan))
    np.testing.assert_array_equal(m, [0, 0])
    np.testing.assert_array_equal(s, [1, 1])


def test_to_sigma_missing_stays_missing() -> None:
    """NaN is not 0."""
    assert np.isnan(scaling.to_sigma(np.array([np.nan]), np.zeros(1), np.ones(1)))[0]


def test_to_sigma_linear_near_and_logarithmic_far() -> None:
    """Within five sigma nothing is bent; beyond, growth is slow but never stops."""
    x = np.array([-5.0, -1, 0, 3, 5, 50, 1e15])
    z = scaling.to_sigma(x, np.zeros(7), np.ones(7))
    np.testing.assert_allclose(z[:5], x[:5])
    assert 8 < z[5] < 9 < z[6] < 45
    assert z[6] > z[5]


@given(st.floats(-1e9, 1e9), st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_to_units_inverts_to_sigma(x: float, m: float, s: float) -> None:
    """What went in comes out again, to float32 accuracy of z."""
    z = scaling.to_sigma(np.array([x]), np.array([m]), np.array([s]))
    back = scaling.to_units(z, np.array([m]), np.array([s]))[0]
    assert abs(back - x) <= 1e-4 * max(abs(x - m), s) + 1e-6 * abs(m)


def test_to_units_hostile_forecast_stays_finite() -> None:
    """A forecast of any size has a finite expected value."""
    z = np.array([1e30, -1e30], np.float32)
    assert np.isfinite(scaling.to_units(z, np.zeros(2), np.ones(2))).all()
