"""When a training round is due."""

from __future__ import annotations

from gruard.daemon.core.schedule import RETRY_S, Schedule


def test_is_due_first_round_waits_for_the_warm_up() -> None:
    """A group without a model is due as soon as one device has shown enough, not before."""
    schedule = Schedule(3600, 400)
    assert not schedule.is_due("g", has_model=False, most_readings=399, now=0)
    assert schedule.is_due("g", has_model=False, most_readings=400, now=0)


def test_is_due_after_promotion_waits_for_the_interval() -> None:
    """The next round comes after the configured interval."""
    schedule = Schedule(3600, 400)
    schedule.ended("g", promoted=True, has_model=True, now=100)
    assert not schedule.is_due("g", has_model=True, most_readings=9999, now=3699)
    assert schedule.is_due("g", has_model=True, most_readings=9999, now=3700)


def test_is_due_failed_first_round_is_tried_again_soon() -> None:
    """A first round that failed does not wait for the whole interval."""
    schedule = Schedule(21_600, 400)
    schedule.ended("g", promoted=False, has_model=False, now=0)
    assert not schedule.is_due("g", has_model=False, most_readings=500, now=RETRY_S - 1)
    assert schedule.is_due("g", has_model=False, most_readings=500, now=RETRY_S)


def test_is_due_restart_with_a_live_model_does_not_train_at_once() -> None:
    """A restart costs no training round."""
    schedule = Schedule(3600, 400)
    assert not schedule.is_due("g", has_model=True, most_readings=9999, now=50)
    assert schedule.is_due("g", has_model=True, most_readings=9999, now=50 + 3600)


def test_is_due_training_off_is_never() -> None:
    """`every = "off"` means no rounds, not even the first."""
    assert not Schedule(None, 400).is_due("g", has_model=False, most_readings=10**6, now=10**6)


def test_is_due_groups_are_independent() -> None:
    """One group's round says nothing about another's."""
    schedule = Schedule(3600, 400)
    schedule.ended("a", promoted=True, has_model=True, now=0)
    assert schedule.is_due("b", has_model=False, most_readings=400, now=1)
