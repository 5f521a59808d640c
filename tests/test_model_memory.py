"""What a device remembers for the model: forecasts that wait until they come due, live and in a replay."""

from __future__ import annotations

import numpy as np
import pytest
from support_engine import plant_rows
from support_models import random_forecaster, random_tensors

from gruard.models import clock, memory
from gruard.models.arena import fresh
from gruard.models.enrolment import replay
from gruard.models.forecaster import Forecaster, cell_inputs
from gruard.models.history import Aligned, History, align, blank
from gruard.models.linear import RidgeSums

ROWS = 60
LONG = 16  # readings ahead of the second line


def series(rows: int = ROWS, seed: int = 0, fields: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, fields)).astype(np.float32)


def run(
    forecaster: Forecaster, z: np.ndarray, mask: np.ndarray | None = None
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """One device through the readings z (T, F): lines (E, T, F), and its memory after the last."""
    rows = fresh(memory.columns(forecaster), 1)
    memory.begin(rows, z[:1])
    seen = np.ones(z.shape, bool) if mask is None else mask
    lines = [
        memory.advance(
            rows, z[t : t + 1], seen[t : t + 1], np.ones(1), np.array([86_400.0 + 60.0 * t]), forecaster
        )[0][:, 0]
        for t in range(len(z))
    ]
    return np.stack(lines, axis=1), rows


def aligned(histories: list[History]) -> Aligned:
    """Readings taken as they are: location 0, scale 1."""
    fields = histories[0].values.shape[1]
    return align(blank(histories, [(np.zeros(fields), np.ones(fields))] * len(histories)), histories)


def test_advance_last_line_is_the_reading_itself() -> None:
    """The distance from the learned normal is the reading in sigma."""
    z = series()
    lines, _ = run(random_forecaster(), z)
    assert lines.shape == (3, ROWS, 3)
    np.testing.assert_array_equal(lines[-1], z)


def test_advance_a_residual_is_of_a_forecast_made_before_the_reading_was_seen() -> None:
    """Another reading changes its residuals by exactly as much: no forecast of it knew what it would be."""
    forecaster, z = random_forecaster(), series()
    other = z.copy()
    other[40] += [3.0, -1.0, 0.5]
    (a, _), (b, _) = run(forecaster, z), run(forecaster, other)
    np.testing.assert_array_equal(a[:, :40], b[:, :40])
    np.testing.assert_allclose(b[:, 40] - a[:, 40], np.tile(other[40] - z[40], (3, 1)), atol=1e-6)


def test_advance_what_a_reading_teaches_comes_due_at_each_horizon() -> None:
    """A reading is in the next forecast at once, and in the long one after sixteen readings and no sooner."""
    forecaster, z = random_forecaster(), series()
    other = z.copy()
    other[30] += 2.0
    difference = np.abs(run(forecaster, z)[0] - run(forecaster, other)[0]).max(axis=2)  # (E, T)
    assert difference[0, 31] > 1e-3
    assert not difference[1, 31 : 30 + LONG].any()
    assert difference[1, 30 + LONG] > 1e-3


def test_advance_forecasts_are_those_made_so_many_readings_ago() -> None:
    """Each line is the reading less what was said of it from the lags and the hidden state of then."""
    forecaster, z = random_forecaster(), series()
    lines, _ = run(forecaster, z)
    hidden = np.zeros((1, forecaster.state_width), np.float32)
    lags = np.repeat(z[None, :1], 8, axis=1)  # before its first reading a device was always there
    said = np.zeros((ROWS, 2, 3), np.float32)
    for t in range(ROWS):
        lags = np.concatenate([z[None, t : t + 1], lags[:, :-1]], axis=1)
        inputs = cell_inputs(z[t : t + 1], np.ones((1, 3), bool), np.ones(1))
        correction, hidden, _ = forecaster.remember(inputs, hidden)
        said[t] = (forecaster.forecast(lags) + correction)[0]
    for x, h in enumerate(forecaster.horizons):
        np.testing.assert_allclose(lines[x, h:], z[h:] - said[:-h, x], atol=1e-5)


def test_advance_before_anything_is_due_the_same_again_is_expected() -> None:
    """The first forecasts of a device say its first reading."""
    z = series()
    lines, _ = run(random_forecaster(), z)
    np.testing.assert_allclose(lines[0, 0], 0.0, atol=1e-7)
    np.testing.assert_allclose(lines[1, :LONG], z[:LONG] - z[0], atol=1e-6)


def test_advance_clock_is_that_of_the_reading_and_not_of_the_forecast() -> None:
    """What the time of day adds is known beforehand, so it is added for the moment that is forecast."""
    config, tensors = random_tensors(clock_columns=16)
    timed = Forecaster(config, tensors)
    plain = Forecaster(config, {name: t for name, t in tensors.items() if name != "var.clock"})
    z = series()
    difference = run(plain, z)[0] - run(timed, z)[0]  # (E, T, F)
    times = 86_400.0 + 60.0 * np.arange(ROWS)
    added = (clock.harmonics(times, 16) @ tensors["var.clock"]).reshape(ROWS, 2, 3)
    np.testing.assert_allclose(difference[:2], np.moveaxis(added, 1, 0), atol=1e-5)
    assert not difference[2].any()


def test_advance_poisoned_state_is_counted_and_starts_again() -> None:
    """A number that is not finite in the memory of one device is told and spoils no forecast for long."""
    forecaster, z = random_forecaster(), series(3)
    rows = fresh(memory.columns(forecaster), 3)
    memory.begin(rows, z)
    rows["hidden"][1, 0] = np.nan
    _, resets = memory.advance(rows, z, np.ones(z.shape, bool), np.ones(3), np.zeros(3), forecaster)
    assert resets == 1
    assert all(np.isfinite(values).all() for values in rows.values())


@pytest.mark.parametrize("clock_columns", [0, 24])
def test_replay_equals_live(clock_columns: int) -> None:
    """Devices of other lengths, with holes and odd times, replayed together are each device lived alone."""
    forecaster = random_forecaster(clock_columns=clock_columns)
    rng = np.random.default_rng(3)
    histories = []
    for rows in (80, 33, 50):
        values = series(rows, seed=rows).astype(np.float64)
        values[rng.random(values.shape) < 0.1] = np.nan
        values[0, 0], values[0, 1] = np.nan, 1.0
        times = 1e9 + np.cumsum(rng.exponential(60.0, rows))
        histories.append(History(times, values, np.ones(rows, bool)))
    readings = aligned(histories)
    together = fresh(memory.columns(forecaster), 3)
    lines = replay(together, readings, forecaster)
    for n, history in enumerate(histories):
        first = 80 - len(history.time_s)
        own = fresh(memory.columns(forecaster), 1)
        memory.begin(own, readings.z[first : first + 1, n])
        for t in range(first, 80):
            here = slice(n, n + 1)
            line, _ = memory.advance(
                own,
                readings.z[t, here],
                readings.mask[t, here],
                readings.gap_ratio[t, here],
                readings.time_s[t, here],
                forecaster,
            )
            for x, h in enumerate((*forecaster.horizons, 0)):
                made_from_readings = x == 2 or t - first + 1 >= h + forecaster.order
                expected = line[x, 0] if made_from_readings else np.zeros(3)
                np.testing.assert_allclose(lines[x, t, n], expected, atol=1e-5)
        for name, values in own.items():
            np.testing.assert_allclose(together[name][n], values[0], atol=1e-5, err_msg=name)


@pytest.mark.parametrize("clock_columns", [0, 24])
@pytest.mark.parametrize("fields", [1, 3])
def test_replay_without_a_net_is_the_trainers_linear_forecaster(fields: int, clock_columns: int) -> None:
    """Live lines are, to rounding, the residuals that the trainer computes over the whole series at once."""
    config, tensors = random_tensors(fields, clock_columns=clock_columns, gate=0.0)
    forecaster = Forecaster(config, tensors)
    values = plant_rows(120, fields=fields)
    history = History(1e9 + 3600.0 * np.arange(120), values, np.ones(120, bool))
    readings = align(blank([history], [None]), [history])
    lines = replay(fresh(memory.columns(forecaster), 1), readings, forecaster)[:, :, 0]
    known = clock.harmonics(readings.time_s[:, 0], clock_columns) if clock_columns else None
    for x, h in enumerate(forecaster.horizons):
        own = slice(x * fields, (x + 1) * fields)
        parts = [tensors["var.weights"][:-1, own], tensors["var.weights"][-1:, own]]
        if clock_columns:
            parts.insert(1, tensors["var.clock"][:, own])
        sums = RidgeSums(fields, h, clock_columns)
        residual = sums.residuals(readings.z[:, 0], np.concatenate(parts), known)
        np.testing.assert_allclose(lines[x], residual, atol=1e-5)
        assert np.abs(residual[h + sums.order :]).min() > 0.0
