"""Onset marks: one for each thing that begins, by what the device itself does often."""

from __future__ import annotations

import numpy as np
import pytest

from gruard.models import onset
from gruard.models.onset import AGE, BINS, HALF_LIFE, HIGH, LOW, MEDIAN, MEMORY, RATIO, WIDTH


def fresh(devices: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Counts (B, BINS) and states (B, 5) of devices with a calm past."""
    counts, state = np.zeros((devices, BINS), np.float32), np.zeros((devices, 5), np.float32)
    for n in range(devices):
        onset.settle(counts[n], state[n], calm(1000, 100 + n))
    return counts, state


def calm(rows: int, seed: int = 0) -> np.ndarray:
    """Evidence (T,) of a device at rest."""
    return np.random.default_rng(seed).gamma(4.0, 0.08, rows).astype(np.float32)


def play(u: np.ndarray, known: tuple[np.ndarray, np.ndarray] | None = None) -> np.ndarray:
    """Marks (T,) of one device."""
    counts, state = fresh() if known is None else known
    return np.array([onset.follow(counts, state, u[t : t + 1])[0] for t in range(len(u))])


def test_follow_lasting_fault_is_marked_at_its_first_moment_only() -> None:
    """A fault of a hundred readings is one mark: the state score is there for the rest."""
    u = calm(600)
    u[300:400] += 3.0
    marks = play(u)
    loud = np.flatnonzero(marks > 2.0)
    assert loud[0] == 300
    assert len(loud) == 1
    assert not marks[301:400].any()


def test_follow_calm_device_is_never_marked_loudly() -> None:
    """What a device does all the time begins nothing."""
    assert play(calm(5000)).max() < 2.5  # in widths of the 99.5 % of itself


def test_follow_what_goes_well_beyond_the_last_mark_is_marked_again() -> None:
    """A fault that grows to twice what it began with is news; one that grows by half is not."""
    for factor, again in ((RATIO * 1.2, True), (RATIO * 0.8, False)):
        u = calm(600)
        u[300:303] = 3.0
        u[303:340] = 3.0 * factor
        assert bool(play(u)[303] > 0) is again


def test_follow_mark_is_forgotten_after_a_while() -> None:
    """The same event again is marked when the last mark lies MEMORY readings back, and not before."""
    for gap, again in ((MEMORY // 2, False), (MEMORY + 20, True)):
        u = calm(800)
        u[300:302] = 3.0  # short: what takes more than 0.5 % of the time is usual soon
        u[302 + gap : 304 + gap] = 3.0
        marks = play(u)
        assert marks[300] > 2.0
        assert bool(marks[302 + gap] > 2.0) is again


def test_follow_adapts_to_what_a_device_does_often() -> None:
    """Events that come every few minutes are marked less and less; one beyond them is marked again."""
    u = calm(12_000)
    starts = np.arange(200, 11_800, 170)  # further apart than MEMORY
    for start in starts:
        u[start : start + 10] = 3.0
    u[11_900:] = 30.0
    marks = play(u)
    first, last = marks[starts[0]], marks[starts[-1]]
    assert first > 4.0
    assert last < 0.3 * first
    assert marks[11_900] > first


def test_follow_judges_by_what_came_before() -> None:
    """A reading does not enter the histogram by which it is itself judged."""
    known = fresh()
    median, width = known[1][0, [MEDIAN, WIDTH]]
    mark = onset.follow(*known, np.full(1, 50.0, np.float32))[0]
    assert mark == pytest.approx((50.0 - median) / (width + onset.LEAST_WIDTH), rel=1e-5)


def test_follow_batch_equals_each_device_alone() -> None:
    """Devices share nothing: any batch gives the same bits as one device at a time."""
    rng = np.random.default_rng(2)
    devices, rows = 16, 500
    u = np.stack([calm(rows, n) for n in range(devices)], axis=1)
    for n in range(devices):
        start = int(rng.integers(50, 400))
        u[start : start + 40, n] += rng.uniform(1, 9)
    counts, state = fresh(devices)
    own_counts, own_state = counts.copy(), state.copy()
    together = np.array([onset.follow(counts, state, row) for row in u])
    for n in range(devices):
        known = own_counts[n : n + 1], own_state[n : n + 1]
        np.testing.assert_array_equal(together[:, n], play(u[:, n], known))
        np.testing.assert_array_equal(counts[n], known[0][0])
        np.testing.assert_array_equal(state[n], known[1][0])
    assert (together > 2.0).sum() >= devices / 2


def test_settle_counts_as_following_the_past_does() -> None:
    """A histogram filled from a history is that of a device that lived through it."""
    u = calm(3000, 7)
    counts, state = np.zeros((1, BINS), np.float32), np.zeros((1, 5), np.float32)
    for value in u:
        onset.follow(counts, state, np.full(1, value))
    settled, start = np.zeros(BINS, np.float32), np.zeros(5, np.float32)
    onset.settle(settled, start, u)
    np.testing.assert_allclose(settled, counts[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(start[[MEDIAN, WIDTH]], state[0, [MEDIAN, WIDTH]], rtol=0.1)
    assert start[AGE] >= MEMORY  # nothing is remembered: the first event is marked


def test_settle_forgets_by_half_over_its_half_life() -> None:
    """What lies HALF_LIFE readings back counts half."""
    old, new = np.full(1, 5.0, np.float32), calm(HALF_LIFE)
    counts, state = np.zeros(BINS, np.float32), np.zeros(5, np.float32)
    onset.settle(counts, state, np.concatenate([old, new]))
    assert counts[onset.bins(old)[0]] == pytest.approx(0.5, rel=0.01)


def test_settle_constant_evidence_has_no_width_and_no_trouble() -> None:
    """A device without any variation is marked by the least width, with a finite number."""
    counts, state = np.zeros((1, BINS), np.float32), np.zeros((1, 5), np.float32)
    onset.settle(counts[0], state[0], np.zeros(200, np.float32))
    assert state[0, WIDTH] == 0.0
    mark = onset.follow(counts, state, np.ones(1, np.float32))[0]
    assert np.isfinite(mark)
    assert mark > 10


def test_bins_cover_every_number() -> None:
    """Nothing and everything have a bin; the bins rise with u, evenly in its logarithm."""
    u = np.array([0.0, LOW, 1.0, HIGH * 0.999, HIGH, 1e6, 1e30], np.float32)
    found = onset.bins(u)
    assert found[0] == found[1] == 0
    assert (np.diff(found) >= 0).all()
    assert found[-1] == found[-2] == BINS - 1
    middle = onset.bins(np.full(1, np.sqrt(LOW * HIGH), np.float32))[0]
    assert middle in {BINS // 2 - 1, BINS // 2}
