"""Lines of evidence and their scales."""

from __future__ import annotations

import numpy as np

from gruard.models import evidence


def normal_rows(n: int = 4000, fields: int = 3) -> np.ndarray:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((fields, fields)) * 0.5 + np.eye(fields)
    return (rng.standard_normal((n, fields)) @ mixing).astype(np.float32)


def test_distances_breaks_of_the_usual_link_weigh_more() -> None:
    """Two fields that always move together: moving apart is further than moving together."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((4000, 1))
    rows = (shared + 0.1 * rng.standard_normal((4000, 2))).astype(np.float32)
    P = evidence.precision(rows, 0.05)
    mask = np.ones((2, 2), bool)
    d, _ = evidence.distances(np.array([[[1, 1], [1, -1]]], np.float32), mask, P[None])
    assert d[0, 1] > 2 * d[0, 0]


def test_distances_are_about_one_on_normal_rows() -> None:
    """Whitening gives the evidence a unit, about one sigma per field; the floor takes some of it away."""
    rows = normal_rows()
    little, usual = evidence.precision(rows, 0.1), evidence.precision(rows, evidence.FLOOR)
    r = np.stack([rows, rows])  # two lines of evidence, each with a whitener of its own
    d, _ = evidence.distances(r, np.ones(rows.shape, bool), np.stack([little, usual]))
    assert 0.6 < np.median(d[0]) < 1.2
    assert np.median(d[1]) < np.median(d[0]) < 2 * np.median(d[1])


def test_distances_missing_fields_are_left_out_and_rescaled() -> None:
    """A missing field adds nothing, and the rest counts as if it were all."""
    P = np.eye(4, dtype=np.float32)
    r = np.full((1, 4), 2.0, np.float32)
    full, _ = evidence.distances(r[None], np.ones((1, 4), bool), P[None])
    half, parts = evidence.distances(r[None], np.array([[True, True, False, False]]), P[None])
    assert full[0, 0] == half[0, 0] == 2.0
    np.testing.assert_array_equal(parts[0, 0, 2:], 0)


def test_distances_nothing_seen_is_zero() -> None:
    """No value, no evidence, no division by zero."""
    d, parts = evidence.distances(
        np.ones((2, 1, 3), np.float32), np.zeros((1, 3), bool), np.stack([np.eye(3, dtype=np.float32)] * 2)
    )
    np.testing.assert_array_equal(d, [[0], [0]])
    assert parts.sum() == 0


def test_distances_one_wild_residual_is_bounded() -> None:
    """A residual of any size counts as CLIP sigma at most."""
    d, _ = evidence.distances(
        np.array([[[1e30]]], np.float32), np.ones((1, 1), bool), np.eye(1, dtype=np.float32)[None]
    )
    assert d[0, 0] == evidence.CLIP


def test_distances_of_a_line_do_not_depend_on_the_others() -> None:
    """Several lines at once are each line alone."""
    rows = normal_rows(20)
    r, P = np.stack([rows, 3 * rows]), np.stack([evidence.precision(rows, 1.0), np.eye(3, dtype=np.float32)])
    mask = np.random.default_rng(1).random(rows.shape) < 0.7
    d, parts = evidence.distances(r, mask, P)
    for line in range(2):
        alone, own = evidence.distances(r[line : line + 1], mask, P[line : line + 1])
        np.testing.assert_allclose(d[line], alone[0], rtol=1e-6)
        np.testing.assert_allclose(parts[line], own[0], rtol=1e-6)


def test_precision_constant_rows_are_invertible() -> None:
    """Rows without any variance give a finite matrix."""
    assert np.isfinite(evidence.precision(np.zeros((50, 4), np.float32), 0.3)).all()


def test_tail_grows_slowly_with_one_field() -> None:
    """One field a hundred sigma off does not outweigh everything for ever."""
    mask = np.ones((1, 4), bool)
    small, _ = evidence.tail(np.array([[3, 0, 0, 0]], np.float32), mask)
    large, parts = evidence.tail(np.array([[300, 0, 0, 0]], np.float32), mask)
    assert small[0] < large[0] < 8 * small[0]
    assert parts[0].argmax() == 0


def test_smooth_series_equals_smoothing_row_by_row() -> None:
    """The series form is the live form, applied in order."""
    d = np.abs(normal_rows(50, 4))[:, None]  # (T, 1, E)
    series = evidence.smooth_series(d, np.ones((50, 1), bool))
    means = np.repeat(d[0, :, :, None], len(evidence.SCALES), axis=2)
    for t in range(50):
        means = evidence.smooth(means, d[t])
        np.testing.assert_allclose(series[t], means, atol=1e-6)


def test_smooth_series_skips_padding() -> None:
    """Rows before a device's first reading do not count."""
    d = np.ones((10, 2, 1), np.float32)
    d[:5, 1] = 99.0
    valid = np.ones((10, 2), bool)
    valid[:5, 1] = False
    out = evidence.smooth_series(d, valid)
    np.testing.assert_allclose(out[-1], 1.0)


def test_smooth_short_scale_sees_a_jolt_long_scale_a_departure() -> None:
    """A one-row spike shows most at scale 1, a lasting small shift most at the longest."""
    spike = np.zeros((100, 1, 1), np.float32)
    spike[50] = 10.0
    out = evidence.smooth_series(spike, np.ones((100, 1), bool))[50, 0, 0]
    assert list(out) == sorted(out, reverse=True)
    assert out[0] == 10.0
