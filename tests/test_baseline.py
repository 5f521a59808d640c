"""The adaptive baseline from the first readings on."""

from __future__ import annotations

import numpy as np
import pytest

from gruard.models import baseline, linear
from gruard.models.baseline_lines import columns


def run(z: np.ndarray, mask: np.ndarray | None = None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Forecasts of a series z (T, F) by one device, each made before its row."""
    fields = z.shape[1]
    rows = {n: np.full((1, *c.shape), c.fill, c.dtype) for n, c in columns(fields).items()}
    z = z.astype(np.float32)
    baseline.start(rows, z[:1])
    lags = np.repeat(z[None, :1], linear.LAGS, axis=1)
    out = np.zeros_like(z)
    for t in range(len(z)):
        seen = np.ones((1, fields), bool) if mask is None else mask[t : t + 1]
        value = np.where(seen, z[t : t + 1], lags[:, 0])
        experts = baseline.forecasts(rows, lags)
        out[t] = baseline.mix(rows, experts)[0]
        baseline.learn(rows, lags, experts, value, seen)
        lags = np.concatenate([value[:, None], lags[:, :-1]], axis=1)
    return out, rows


def mean_error(z: np.ndarray, forecasts: np.ndarray, start: int = 30) -> float:
    return float(np.abs(z - forecasts)[start:].mean())


def test_mix_random_walk_is_as_good_as_the_last_value() -> None:
    """Where nothing better exists, the mix follows the best expert."""
    z = np.cumsum(np.random.default_rng(0).standard_normal((400, 1)) * 0.3, axis=0)
    last = np.abs(np.diff(z, axis=0))[29:].mean()
    assert mean_error(z, run(z)[0]) < 1.05 * last


def test_mix_white_noise_is_as_good_as_the_mean() -> None:
    """On noise around a level the mean wins, and the mix finds that out."""
    z = np.random.default_rng(1).standard_normal((400, 1))
    assert mean_error(z, run(z)[0]) < 1.15 * np.abs(z - z.mean())[30:].mean()


def test_mix_oscillation_is_better_than_every_trivial_expert() -> None:
    """The recursive AR takes over where the signal has structure."""
    t = np.arange(600)
    z = np.sin(t / 3)[:, None] + 0.02 * np.random.default_rng(2).standard_normal((600, 1))
    last = np.abs(np.diff(z, axis=0))[199:].mean()
    assert mean_error(z, run(z)[0], 200) < 0.4 * last


def test_mix_forecasts_usefully_from_the_tenth_reading() -> None:
    """Ten readings of a slow signal are enough to be near it."""
    z = 5 + np.sin(np.arange(60) / 10)[:, None]
    assert np.abs(z - run(z)[0])[10:].max() < 0.3


def test_learn_missing_values_move_nothing() -> None:
    """A field that is missing keeps its means, errors and weights."""
    z = np.random.default_rng(3).standard_normal((100, 2))
    mask = np.ones((100, 2), bool)
    mask[50:, 1] = False
    _, rows = run(z, mask)
    _, half = run(z[:50])
    np.testing.assert_array_equal(rows["means"][0, :, 1], half["means"][0, :, 1])
    np.testing.assert_array_equal(rows["rls_weights"][0, 1], half["rls_weights"][0, 1])
    np.testing.assert_array_equal(rows["errors"][0, :, 1], half["errors"][0, :, 1])


@pytest.mark.parametrize("level", [0.0, 3.0, 50.0])
def test_learn_constant_signal_never_blows_up(level: float) -> None:
    """Forgetting without excitation is caught: 20,000 equal readings leave all numbers finite and small."""
    z = np.full((20_000, 1), level)
    forecasts, rows = run(z)
    assert all(np.isfinite(a).all() for a in rows.values())
    assert np.trace(rows["rls_cov"][0, 0]) < 2 * baseline.RLS_LIMIT
    assert abs(forecasts[-1, 0] - level) < 0.05 * max(level, 1)


def test_learn_wild_values_recover() -> None:
    """After a burst of extreme readings the forecast is useful again within a hundred rows."""
    z = np.sin(np.arange(600) / 5)[:, None]
    z[300:310] = 40.0
    forecasts, _ = run(z)
    assert mean_error(z[420:], forecasts[420:], 0) < 0.25
