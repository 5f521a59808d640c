"""When scoring counts as behind."""

from __future__ import annotations

from gruard.daemon.core.overload import GO_ON_AFTER_S, PAUSE_AFTER_S, Overload


def noted(overload: Overload, waiting: int, first_s: float, seconds: float) -> float:
    steps = round(seconds / 0.1)
    for k in range(1, steps + 1):
        overload.note(waiting, first_s + k * 0.1)
    return first_s + steps * 0.1


def test_note_a_queue_that_stays_long_is_an_overload_until_it_is_worked_off() -> None:
    """It is on after a second of it, and off again once the queue was short for as long as it was long."""
    overload = Overload(100)
    now = noted(overload, 101, 0.0, PAUSE_AFTER_S)
    assert not overload.is_on  # the first look only starts the clock
    now = noted(overload, 101, now, 0.2)
    assert overload.is_on
    now = noted(overload, 100, now, 0.9)
    assert overload.is_on
    noted(overload, 100, now, 0.4)
    assert not overload.is_on


def test_note_a_queue_that_fills_for_a_moment_is_none() -> None:
    """Batches come about by readings that wait for a moment."""
    overload, now = Overload(100), 0.0
    for _ in range(50):
        now = noted(overload, 5000, now, 0.4)
        now = noted(overload, 0, now, 0.6)
        assert not overload.is_on


def test_note_a_long_overload_is_over_soon_after_its_end() -> None:
    """An hour of it does not keep a round waiting for another hour."""
    overload = Overload(100)
    now = noted(overload, 101, 0.0, 600.0)
    noted(overload, 0, now, GO_ON_AFTER_S + 0.2)
    assert not overload.is_on
