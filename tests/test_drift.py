"""Slow drift against the first days: what is seen, what is not taken for it."""

from __future__ import annotations

import numpy as np
import pytest

from gruard.models.drift import BLOCK_ROWS, NEWEST, Blocks, Drift, Reference, blocks_of, drifts, learn

NAMES = ("flow", "heat")


def blocks(rows: np.ndarray, *, error: float = 0.1, normal: np.ndarray | None = None) -> Blocks:
    off = np.abs(np.random.default_rng(1).normal(0.0, error, rows.shape))
    trusted = np.ones(len(rows), bool) if normal is None else normal
    return blocks_of(np.arange(float(len(rows))), rows, off, trusted)


def calm(n: int = 2000, seed: int = 0) -> np.ndarray:
    """Two fields that wander a little: rows (n, 2)."""
    rng = np.random.default_rng(seed)
    slow = np.sin(2 * np.pi * np.arange(n) / 1000)
    return np.stack([50 + slow + 0.5 * rng.normal(size=n), 20 + 0.2 * rng.normal(size=n)], axis=1)


@pytest.fixture
def reference() -> Reference:
    found = learn(None, blocks(calm()), 0.0)
    assert found is not None
    return found


def told(reference: Reference, newest: Blocks) -> list[tuple[str, str]]:
    return [(one.field, one.kind) for one in drifts("pump", NAMES, reference, newest)]


def test_drifts_same_course_again_is_none(reference: Reference) -> None:
    """Another stretch of the same process lies within its first days."""
    for seed in range(1, 6):
        assert told(reference, blocks(calm(seed=seed))) == []


def test_drifts_fouling_is_seen_with_its_field_and_place(reference: Reference) -> None:
    """A level that has crept out of its range is told in physical units."""
    rows = calm(seed=1)
    rows[:, 1] += np.linspace(0.0, 0.6, len(rows))
    (found,) = drifts("pump", NAMES, reference, blocks(rows))
    assert (found.device, found.field, found.kind) == ("pump", "heat", "level")
    assert found.now == pytest.approx(20.55, abs=0.1)
    assert found.low < 20.0 < found.high < found.now
    assert found.excess > 1.0


def test_drifts_wider_readings_and_worse_forecasts_are_seen(reference: Reference) -> None:
    """Noise that grows, and a first model that foresees less than it did."""
    rows = calm(seed=1)
    rows[:, 1] += np.random.default_rng(5).normal(0.0, 0.5, len(rows))
    assert ("heat", "spread") in told(reference, blocks(rows))
    assert set(told(reference, blocks(calm(seed=1), error=0.3))) == {
        ("flow", "forecast"),
        ("heat", "forecast"),
    }


def test_drifts_short_excursion_is_for_the_alarm(reference: Reference) -> None:
    """One block far out is no drift: the newest blocks must agree."""
    rows = calm(seed=1)
    rows[-BLOCK_ROWS:] += 30.0
    assert told(reference, blocks(rows)) == []


def test_blocks_of_rows_in_alarm_are_left_out() -> None:
    """A block of which most rows were in alarm says nothing."""
    rows, normal = calm(), np.ones(2000, bool)
    rows[-300:], normal[-300:] = 99.0, False
    found = blocks(rows, normal=normal)
    assert len(found.end_s) == 20
    assert np.isnan(found.median[-NEWEST:]).all()
    assert np.isfinite(found.median[:-NEWEST]).all()


def test_learn_passes_over_what_it_has_learned(reference: Reference) -> None:
    """Rounds overlap: a block counts once, and later ones widen the range."""
    assert learn(reference, blocks(calm() + 5.0), 0.0) is reference
    later = blocks_of(np.arange(2000.0, 4000.0), calm() + 5.0, np.full((2000, 2), 0.1), np.ones(2000, bool))
    wider = learn(reference, later, 0.0)
    assert wider is not None
    assert (wider.from_s, wider.until_s) == (0.0, 3999.0)
    assert wider.fields[1] is not None
    assert reference.fields[1] is not None
    assert wider.fields[1].low == reference.fields[1].low
    assert wider.fields[1].high == pytest.approx(25.0, abs=0.2)


def test_learn_field_that_was_never_seen_is_watched_no_more(reference: Reference) -> None:
    """There is nothing to compare a new sensor with."""
    rows = calm()
    rows[:, 1] = np.nan
    found = learn(None, blocks(rows), 0.0)
    assert found is not None
    assert found.fields[1] is None
    assert told(found, blocks(calm(seed=1) + np.array([0.0, 40.0]))) == []


def test_drifts_field_that_never_moved_may_move_a_little() -> None:
    """A constant has no width: its range gets a floor, a thousandth of its value."""
    rows = np.full((2000, 2), 40.0)
    found = learn(None, blocks(rows), 0.0)
    assert found is not None
    assert told(found, blocks(rows + 0.03)) == []
    assert told(found, blocks(rows + 0.1))[0] == ("flow", "level")
    assert isinstance(drifts("pump", NAMES, found, blocks(rows + 0.1))[0], Drift)
