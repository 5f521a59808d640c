"""Histories brought to one form: sigma, one time axis, and which rows may be learned from."""

from __future__ import annotations

import numpy as np
import pytest

from gruard.models.history import (
    FIT_SHARE,
    WARM_SHARE,
    History,
    align,
    blank,
    mean_error,
    normal_rows,
    rows_to_use,
    usual_gap,
)


def history(rows: int, *, gap_s: float = 60.0, end_s: float = 1e6, seed: int = 0) -> History:
    values = 50.0 + 5.0 * np.random.default_rng(seed).standard_normal((rows, 2))
    return History(end_s - gap_s * np.arange(rows)[::-1], values, np.ones(rows, bool))


def test_usual_gap_is_the_median_and_never_zero() -> None:
    """Pauses and repeated stamps do not spoil the usual gap."""
    assert usual_gap(np.array([0.0, 60, 120, 180, 99999])) == 60
    assert usual_gap(np.array([0.0, 60, 60, 120, 180])) == 60
    assert usual_gap(np.array([5.0])) == 1.0
    assert usual_gap(np.array([5.0, 5.0, 5.0])) == 1.0


def test_blank_scales_each_device_by_its_own_readings() -> None:
    """Location and scale are of the device, the clock too, unless they were fixed before."""
    small, large = history(200), history(200, gap_s=5.0)
    large.values[:] *= 100.0
    rows = blank([small, large], [None, None])
    np.testing.assert_allclose(rows["location"][1] / rows["location"][0], 100.0, rtol=0.05)
    np.testing.assert_allclose(rows["scale"][1] / rows["scale"][0], 100.0, rtol=0.3)
    assert rows["usual_gap_s"].tolist() == [60.0, 5.0]
    fixed = np.array([1.0, 2.0]), np.array([3.0, 4.0])
    known = blank([small, large], [None, fixed])
    np.testing.assert_array_equal(known["location"][1], fixed[0])
    np.testing.assert_array_equal(known["scale"][1], fixed[1])
    np.testing.assert_array_equal(known["scale"][0], rows["scale"][0])


def test_blank_rows_in_alarm_do_not_scale_unless_there_are_no_others() -> None:
    """A fault is not the measure of what is usual; a device that is always in alarm has nothing else."""
    clean, spoilt = history(100), history(100)
    spoilt.values[60:] += 1000.0
    spoilt.normal[60:] = False
    np.testing.assert_allclose(
        blank([spoilt], [None])["location"], blank([clean], [None])["location"], atol=3
    )
    sick = History(spoilt.time_s, spoilt.values, np.zeros(100, bool))
    assert np.isfinite(blank([sick], [None])["scale"]).all()
    assert blank([sick], [None])["scale"].max() > 100


def test_align_puts_the_newest_readings_last() -> None:
    """Shorter histories are padded in front, where nothing is valid and nothing was seen."""
    both = [history(20), history(12, seed=1)]
    rows = blank(both, [None, None])
    readings = align(rows, both)
    assert readings.z.shape == (20, 2, 2)
    assert readings.valid[:, 0].all()
    assert readings.valid[:, 1].tolist() == [False] * 8 + [True] * 12
    assert not readings.mask[:8, 1].any()
    assert (readings.time_s[-1] == 1e6).all()
    expected = (both[1].values - rows["location"][1]) / rows["scale"][1]
    np.testing.assert_allclose(readings.z[8:, 1], expected, atol=1e-4)


def test_align_missing_values_are_the_last_ones_seen() -> None:
    """The mask tells what was seen; the gaps are filled forward, and by the normal before the first value."""
    one = history(6)
    one.values[0, 0] = one.values[2, 1] = one.values[3, 1] = np.nan
    readings = align(blank([one], [None]), [one])
    assert readings.mask[:, 0, 0].tolist() == [False, True, True, True, True, True]
    assert readings.mask[:, 0, 1].tolist() == [True, True, False, False, True, True]
    assert readings.z[0, 0, 0] == 0.0
    assert readings.z[3, 0, 1] == readings.z[2, 0, 1] == readings.z[1, 0, 1]
    assert np.isfinite(readings.z).all()


def test_align_gaps_are_counted_in_usual_ones() -> None:
    """A pause of three usual gaps is 3; the first reading has no gap and counts as usual."""
    one = history(30)
    one.time_s[20:] += 120.0
    ratio = align(blank([one], [None]), [one]).gap_ratio[:, 0]
    assert ratio[20] == pytest.approx(3.0)
    np.testing.assert_allclose(np.delete(ratio, 20), 1.0)


def test_normal_rows_stand_where_the_readings_stand() -> None:
    """What is padding is not normal; what was in alarm is not either."""
    both = [history(10), history(6)]
    both[1].normal[2] = False
    normal = normal_rows(both, 10)
    assert normal[:, 0].all()
    assert normal[:, 1].tolist() == [False] * 4 + [True, True, False, True, True, True]


def test_rows_to_use_leave_out_the_warm_up_and_hold_back_the_end() -> None:
    """The first rows only warm the memory up, the last are held back, and alarms are in neither."""
    normal = np.ones(300, bool)
    normal[[150, 250]] = False
    use, held, cut = rows_to_use(normal)
    assert cut == int(300 * FIT_SHARE)
    assert np.flatnonzero(use)[0] == int(300 * WARM_SHARE)
    assert np.flatnonzero(held)[0] == cut
    for rows in (use, held):
        assert not rows[[150, 250]].any()
    assert use.sum() == 300 - int(300 * WARM_SHARE) - 2
    assert held.sum() == 300 - cut - 1


def test_rows_to_use_device_that_was_always_in_alarm_learns_from_that() -> None:
    """Where hardly a held-back row was normal there is no better normal than what there is."""
    normal = np.ones(300, bool)
    normal[185:] = False
    use, held, cut = rows_to_use(normal)
    assert use[cut:].all()
    assert held[cut:].all()


def test_mean_error_is_bounded_and_of_what_was_seen() -> None:
    """One wild residual counts 5, what is missing counts nothing, and nothing seen is as bad as 1 sigma."""
    r = np.array([[1.0, -3.0], [1e9, 7.0]], np.float32)
    mask = np.array([[True, True], [True, False]])
    assert mean_error(r, mask) == pytest.approx((1 + 3 + 5) / 3)
    assert mean_error(r, np.zeros_like(mask)) == 1.0
