"""When a training round is due."""

from __future__ import annotations

from gruard.daemon.core.schedule import (
    FALLEN_LOOKS,
    LOOK_READINGS,
    RETRY_S,
    SETTLE_LOOKS,
    SKIP_LOOKS,
    Schedule,
)


def test_why_first_round_waits_for_the_warm_up() -> None:
    """A group without a model is due as soon as one device has shown enough, not before."""
    schedule = Schedule(3600, 400)
    assert not schedule.why("g", has_model=False, most_readings=399, now=0)
    assert schedule.why("g", has_model=False, most_readings=400, now=0)


def test_why_after_promotion_waits_for_the_interval() -> None:
    """The next round comes after the configured interval."""
    schedule = Schedule(3600, 400)
    schedule.ended("g", promoted=True, has_model=True, now=100)
    assert not schedule.why("g", has_model=True, most_readings=9999, now=3699)
    assert schedule.why("g", has_model=True, most_readings=9999, now=3700)


def test_why_failed_first_round_is_tried_again_soon() -> None:
    """A first round that failed does not wait for the whole interval."""
    schedule = Schedule(21_600, 400)
    schedule.ended("g", promoted=False, has_model=False, now=0)
    assert not schedule.why("g", has_model=False, most_readings=500, now=RETRY_S - 1)
    assert schedule.why("g", has_model=False, most_readings=500, now=RETRY_S)


def test_why_restart_with_a_live_model_does_not_train_at_once() -> None:
    """A restart costs no training round."""
    schedule = Schedule(3600, 400)
    assert not schedule.why("g", has_model=True, most_readings=9999, now=50)
    assert schedule.why("g", has_model=True, most_readings=9999, now=50 + 3600)


def test_why_training_off_is_never() -> None:
    """`every = "off"` means no rounds, not even the first."""
    assert not Schedule(None, 400).why("g", has_model=False, most_readings=10**6, now=10**6)


def test_why_groups_are_independent() -> None:
    """One group's round says nothing about another's."""
    schedule = Schedule(3600, 400)
    schedule.ended("a", promoted=True, has_model=True, now=0)
    assert schedule.why("b", has_model=False, most_readings=400, now=1)


def watched(**options: object) -> Schedule:
    """A schedule whose group has a live model since 0 and has shown 1000 readings then."""
    schedule = Schedule(21_600, 400, **options)  # type: ignore[arg-type]
    schedule.began("g", 1000)
    schedule.ended("g", promoted=True, has_model=True, now=0)
    return schedule


def test_why_enough_new_readings_are_a_reason() -> None:
    """A round begins early once the leading device has shown so many more since the round before began."""
    schedule = watched(after_readings=500)
    assert schedule.why("g", has_model=True, most_readings=1499, now=10) is None
    assert schedule.why("g", has_model=True, most_readings=1500, now=10) == "readings"


def test_why_after_a_restart_readings_count_from_there() -> None:
    """What was shown before the start is no reason for a round at the start."""
    schedule = Schedule(21_600, 400, after_readings=500)
    assert schedule.why("g", has_model=True, most_readings=90_000, now=0) is None
    assert schedule.why("g", has_model=True, most_readings=90_499, now=1) is None
    assert schedule.why("g", has_model=True, most_readings=90_500, now=2) == "readings"


def test_why_early_round_waits_for_the_least_pause() -> None:
    """However fast readings come, the pause between rounds holds; the interval of time is not moved by it."""
    schedule = watched(after_readings=500, least_pause_s=600)
    assert schedule.why("g", has_model=True, most_readings=9000, now=599) is None
    assert schedule.why("g", has_model=True, most_readings=9000, now=600) == "readings"
    shorter = Schedule(60, 400, after_readings=500, least_pause_s=600)
    shorter.ended("g", promoted=True, has_model=True, now=0)
    assert shorter.why("g", has_model=True, most_readings=500, now=60) == "time"


def looks(schedule: Schedule, skills: list[float], shown: int) -> int:
    for skill in skills:
        shown += LOOK_READINGS
        assert schedule.must_look("g", shown)
        schedule.note_skill("g", skill, shown)
    return shown


def settled() -> tuple[Schedule, int]:
    schedule = watched(on_drift=True)
    assert not schedule.must_look("g", 1000)  # the watch begins here
    return schedule, looks(schedule, [0.0] * SKIP_LOOKS + [0.6, 0.5] * (SETTLE_LOOKS // 2), 1000)


def test_why_skill_that_has_fallen_for_long_is_drift() -> None:
    """An error a quarter above the worst that was usual, look after look, is a reason; not before."""
    schedule, shown = settled()
    for _ in range(FALLEN_LOOKS):
        assert schedule.why("g", has_model=True, most_readings=shown, now=10) is None
        shown = looks(schedule, [0.36], shown)
    assert schedule.why("g", has_model=True, most_readings=shown, now=10) == "drift"


def test_why_skill_that_falls_for_a_moment_or_a_little_is_no_drift() -> None:
    """One bad stretch, a small loss, or a device that is not with the model yet begins no round."""
    schedule, shown = settled()
    for skills in ([0.1, 0.1, 0.55], [0.4] * 5, [float("nan")] * 5):
        shown = looks(schedule, skills, shown)
        assert schedule.why("g", has_model=True, most_readings=shown, now=10) is None


def test_why_after_a_rejected_round_the_fallen_skill_is_the_usual_one() -> None:
    """A model that cannot be bettered is not tried to be bettered again and again."""
    schedule, shown = settled()
    shown = looks(schedule, [0.1] * FALLEN_LOOKS, shown)
    assert schedule.why("g", has_model=True, most_readings=shown, now=10) == "drift"
    schedule.ended("g", promoted=False, has_model=True, now=10)
    schedule.must_look("g", shown)
    shown = looks(schedule, [0.1] * 20, shown)
    assert schedule.why("g", has_model=True, most_readings=shown, now=20) is None


def test_must_look_is_never_where_drift_is_no_reason() -> None:
    """Nothing is looked at that nobody asks for."""
    assert not watched().must_look("g", 10**6)
