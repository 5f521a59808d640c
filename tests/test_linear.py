"""Closed-form linear forecasters."""

from __future__ import annotations

import numpy as np

from gruard.models import linear
from gruard.models.linear import LAGS, RidgeSums


def var_series(n: int = 2000, seed: int = 0) -> np.ndarray:
    """Two fields; the second follows the first one step later."""
    rng = np.random.default_rng(seed)
    z = np.zeros((n, 2), np.float32)
    for t in range(1, n):
        z[t, 0] = 0.8 * z[t - 1, 0] + 0.3 * rng.standard_normal()
        z[t, 1] = 0.9 * z[t - 1, 0] + 0.05 * rng.standard_normal()
    return z


def test_lagged_holds_the_past_newest_first() -> None:
    """Row t of the lags is what was known before row t."""
    z = np.arange(6, dtype=np.float32).reshape(6, 1)
    lags = linear.lagged(z, 3)[:, :, 0]
    np.testing.assert_array_equal(lags[4], [3, 2, 1])
    np.testing.assert_array_equal(lags[1], [0, 0, 0])


def test_ridge_finds_the_lagged_link_between_fields() -> None:
    """The vector form predicts a field from another one."""
    z = var_series()
    sums = RidgeSums(2)
    sums.add(z, np.ones(z.shape, bool))
    weights = sums.solve()
    error = np.abs(sums.residuals(z, weights))[LAGS:].mean(axis=0)
    assert error[1] < 0.1
    assert weights[0, 1] > 0.8  # newest lag of field 0 -> field 1


def test_ridge_horizon_forecasts_from_what_was_known_then() -> None:
    """Sixteen readings ahead of a sine is still a sine; its weights see nothing newer."""
    z = np.sin(np.arange(600) / 5)[:, None].astype(np.float32)
    sums = RidgeSums(1, ahead=16)
    sums.add(z[:500], np.ones((500, 1), bool))
    weights = sums.solve()
    r = sums.residuals(z, weights)
    assert np.abs(r[520:]).mean() < 0.1
    np.testing.assert_array_equal(r[: 16 + sums.order - 1], 0)
    other = z.copy()
    other[585:] = 9.0  # what came after row 584 says nothing of rows up to 584 + 15
    late = sums.residuals(other, weights)
    np.testing.assert_allclose((other - late)[585:600], (z - r)[585:600], atol=1e-6)


def test_ridge_clock_explains_what_the_past_does_not() -> None:
    """A jump that only the clock announces is in the residuals without it and not with it."""
    t = np.arange(2000)
    known = (t % 50 == 0).astype(np.float32)[:, None]
    z = (4 * known + 0.1 * np.random.default_rng(0).standard_normal((2000, 1))).astype(np.float32)
    mask = np.ones(z.shape, bool)
    plain, timed = RidgeSums(1), RidgeSums(1, clock_columns=1)
    plain.add(z, mask)
    timed.add(z, mask, clock=known)
    jumps = known[:, 0] > 0
    assert np.abs(plain.residuals(z, plain.solve()))[jumps][2:].mean() > 3
    assert np.abs(timed.residuals(z, timed.solve(), known))[jumps][2:].mean() < 1.5


def test_ridge_rows_that_are_not_normal_and_those_that_look_back_on_them_teach_nothing() -> None:
    """A marked fault leaves the weights as they would be without those rows."""
    z = var_series()
    normal = np.ones(len(z), bool)
    normal[500:520] = False
    spoilt = z.copy()
    spoilt[500:520] += 40
    mask = np.ones(z.shape, bool)
    clean, marked, unmarked = RidgeSums(2), RidgeSums(2), RidgeSums(2)
    clean.add(z, mask, normal)
    marked.add(spoilt, mask, normal)
    unmarked.add(spoilt, mask)
    np.testing.assert_array_equal(clean.solve(), marked.solve())
    assert np.abs(unmarked.solve() - clean.solve()).max() > 0.1


def test_ridge_sums_over_devices_equal_one_long_series() -> None:
    """Adding devices one by one is the regression over all of them."""
    z = var_series()
    mask = np.ones(z.shape, bool)
    together, apart = RidgeSums(2), RidgeSums(2)
    together.add(z, mask)
    for part in (z[:1000], z[1000 - together.order :]):
        apart.add(part, np.ones(part.shape, bool))
    np.testing.assert_allclose(together.solve(), apart.solve(), atol=1e-4)


def test_ridge_field_never_seen_has_zero_weights() -> None:
    """No data, no opinion."""
    z = var_series(300)
    mask = np.ones(z.shape, bool)
    mask[:, 1] = False
    sums = RidgeSums(2)
    sums.add(z, mask)
    np.testing.assert_array_equal(sums.solve()[:, 1], 0)


def test_fit_ar_needs_few_rows_and_beats_the_last_value() -> None:
    """Fifty readings of an oscillation are enough for a useful per-field forecast."""
    t = np.arange(150)
    z = np.stack([np.sin(t / 3), np.cos(t / 5)], axis=1).astype(np.float32)  # (T, 2)
    weights = linear.fit_ar(z[:50], np.ones((50, 2), bool))
    lags = linear.lagged(z, LAGS)
    ar = linear.forecast_ar(lags, np.broadcast_to(weights, (150, 2, LAGS + 1)))
    ar_error = np.abs(z - ar)[60:].mean()
    last_error = np.abs(np.diff(z, axis=0))[60:].mean()
    assert ar_error < 0.3 * last_error


def test_fit_ar_fields_are_independent() -> None:
    """Each field's weights depend on its own rows only."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((80, 3)).astype(np.float32)
    mask = np.ones(z.shape, bool)
    many = linear.fit_ar(z, mask)
    np.testing.assert_allclose(many[1:2], linear.fit_ar(z[:, 1:2], mask[:, 1:2]), atol=1e-6)


def test_fit_ar_masked_rows_teach_nothing() -> None:
    """Rows where a field was missing do not change its weights."""
    z = var_series(200)
    mask = np.ones(z.shape, bool)
    mask[100:110, 0] = False
    spoilt = z.copy()
    clean = linear.fit_ar(z, mask)
    # only the target of the masked rows differs: the rows that look back on them are masked as well
    mask[100 : 110 + LAGS, 0] = False
    spoilt[100:110, 0] = 40.0
    np.testing.assert_allclose(linear.fit_ar(spoilt, mask)[1], linear.fit_ar(z, mask)[1], atol=1e-6)
    assert np.abs(linear.fit_ar(spoilt, mask)[0] - clean[0]).max() < 0.3
