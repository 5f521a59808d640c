"""When the broker is tried again, and with which protocol version."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gruard.daemon.edges.reconnect import Ending, Reconnect


def test_first_retry_after_a_settled_connection_is_fast() -> None:
    """A broker that restarts is back at once, so the first retry waits a fifth of a second at most."""
    policy = Reconnect("5")
    for _ in range(6):
        policy.next_delay_s(Ending.UNREACHABLE, 0.0, 0.5)
    assert policy.next_delay_s(Ending.LOST, 10.0, 0.999) < 0.2


def test_ceiling_doubles_up_to_the_cap_while_the_broker_does_not_answer() -> None:
    """Failures at a broker that takes connections spread the retries ever wider, up to half a minute."""
    policy = Reconnect("5")
    delays = [policy.next_delay_s(Ending.SILENT, 0.0, 1.0) for _ in range(9)]
    assert delays == [0.2, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_absent_broker_is_tried_often() -> None:
    """While there is nobody to burden the wait stays short: a link that is back is used within 5 s."""
    policy = Reconnect("5")
    delays = [policy.next_delay_s(Ending.UNREACHABLE, 0.0, 1.0) for _ in range(6)]
    assert delays == [0.2, 1.0, 2.0, 3.0, 3.0, 3.0]


def test_absence_does_not_count_against_a_broker_that_is_back() -> None:
    """Hours without a link do not make the first hitch after it a long one; old refusals stay known."""
    policy = Reconnect("5")
    for _ in range(1000):
        policy.next_delay_s(Ending.UNREACHABLE, 0.0, 1.0)
    assert policy.next_delay_s(Ending.SILENT, 0.0, 1.0) == 0.2
    policy.next_delay_s(Ending.UNREACHABLE, 0.0, 1.0)
    assert policy.next_delay_s(Ending.SILENT, 0.0, 1.0) == 1.0


def test_link_that_dies_again_and_again_is_used_again_in_time() -> None:
    """A connection on which the broker falls silent says nothing against it, however short it was."""
    policy = Reconnect("5")
    for _ in range(20):
        assert policy.next_delay_s(Ending.DEAD, 2.0, 1.0) <= 3.0
        assert policy.next_delay_s(Ending.UNREACHABLE, 0.0, 1.0) <= 3.0
    assert policy.failures == policy.thrown_out == 0


def test_jitter_spans_the_whole_ceiling() -> None:
    """Many gateways that lose one broker do not come back in step: the wait is anywhere below the ceiling."""
    low, high = Reconnect("5"), Reconnect("5")
    low.failures = high.failures = 4
    assert low.next_delay_s(Ending.SILENT, 0.0, 0.0) == 0.0
    assert high.next_delay_s(Ending.SILENT, 0.0, 0.75) == 6.0


@pytest.mark.parametrize("ending", [Ending.REFUSED, Ending.TAKEN_OVER])
def test_refusal_and_takeover_wait_five_seconds_at_least(ending: Ending) -> None:
    """Whoever sends us away is left alone for a while, even after a settled connection."""
    policy = Reconnect("5")
    assert policy.next_delay_s(ending, 3600.0, 0.0) == 5.0
    for _ in range(50):
        assert 5.0 <= policy.next_delay_s(ending, 1.0, 0.5) < 30.0


@given(
    lives=st.lists(st.tuples(st.floats(0, 9.99), st.sampled_from([Ending.LOST, Ending.TAKEN_OVER]))),
    jitter=st.floats(0, 1, exclude_max=True),
)
def test_connections_that_end_unsettled_are_five_seconds_apart(
    lives: list[tuple[float, Ending]], jitter: float
) -> None:
    """However short each lives and whoever ends it, the next one is not accepted within 5 s of it."""
    policy = Reconnect("5")
    for lived_s, ending in lives:
        assert lived_s + policy.next_delay_s(ending, lived_s, jitter) >= 5.0


def test_connections_thrown_out_in_a_row_are_counted() -> None:
    """The count grows while the broker stays, and begins anew with a settled connection or its absence."""
    policy = Reconnect("5")
    for ending, lived_s, count in [
        (Ending.LOST, 1.0, 1),
        (Ending.LOST, 2.0, 2),
        (Ending.SILENT, 0.0, 2),
        (Ending.TAKEN_OVER, 2.0, 3),
        (Ending.UNREACHABLE, 0.0, 0),
        (Ending.LOST, 1.0, 1),
        (Ending.LOST, 10.0, 0),
    ]:
        policy.next_delay_s(ending, lived_s, 0.5)
        assert policy.thrown_out == count


def test_connection_that_ends_before_it_settles_counts_as_a_failure() -> None:
    """Two clients with one id throw each other out ever more slowly instead of several times a second."""
    policy = Reconnect("5")
    delays = [policy.next_delay_s(Ending.LOST, 0.5, 1.0) for _ in range(8)]
    assert delays[-1] == 30.0


def test_delay_stays_finite_after_months_of_failures() -> None:
    """The power of two never overflows."""
    policy = Reconnect("5")
    policy.failures = 10**9
    assert policy.next_delay_s(Ending.SILENT, 0.0, 1.0) == 30.0
    policy.absences = 10**9
    assert policy.next_delay_s(Ending.UNREACHABLE, 0.0, 1.0) == 3.0


def test_version_refused_by_name_falls_back_at_once() -> None:
    """A broker that names MQTT 5 as the trouble is asked again with 3.1.1 without a wait."""
    policy = Reconnect("5")
    assert policy.next_delay_s(Ending.VERSION_REFUSED, 0.0, 1.0) == 0.0
    assert policy.protocol == "3.1.1"


def test_one_early_close_keeps_mqtt_5() -> None:
    """A broker that is just going down also closes without an answer: once is no reason to fall back."""
    policy = Reconnect("5")
    policy.next_delay_s(Ending.CLOSED_EARLY, 0.0, 1.0)
    policy.next_delay_s(Ending.UNREACHABLE, 0.0, 1.0)
    policy.next_delay_s(Ending.CLOSED_EARLY, 0.0, 1.0)
    assert policy.protocol == "5"


def test_second_early_close_in_a_row_falls_back() -> None:
    """A broker that only ever closes on MQTT 5 is asked with 3.1.1."""
    policy = Reconnect("5")
    policy.next_delay_s(Ending.CLOSED_EARLY, 0.0, 1.0)
    assert policy.next_delay_s(Ending.CLOSED_EARLY, 0.0, 1.0) == 0.0
    assert policy.protocol == "3.1.1"


def test_next_outage_starts_with_mqtt_5_again() -> None:
    """A fallback holds for one connection, because a broker may have been updated meanwhile."""
    policy = Reconnect("5")
    policy.next_delay_s(Ending.VERSION_REFUSED, 0.0, 1.0)
    policy.next_delay_s(Ending.LOST, 3600.0, 1.0)
    assert policy.protocol == "5"


def test_chosen_older_version_is_kept() -> None:
    """Who asks for 3.1.1 gets 3.1.1, whatever the broker answers."""
    policy = Reconnect("3.1.1")
    for ending in Ending:
        policy.next_delay_s(ending, 0.0, 1.0)
        assert policy.protocol == "3.1.1"


@given(st.lists(st.tuples(st.sampled_from(Ending), st.floats(0, 1e9), st.floats(0, 1, exclude_max=True))))
def test_any_history_keeps_the_bounds(history: list[tuple[Ending, float, float]]) -> None:
    """The wait lies within [0, 30) seconds, and no fallback follows directly on another."""
    policy = Reconnect("5")
    fell_back = False
    for ending, lived_s, jitter in history:
        before = policy.protocol
        delay_s = policy.next_delay_s(ending, lived_s, jitter)
        assert 0.0 <= delay_s < 30.0
        falls_back = before == "5" and policy.protocol == "3.1.1"
        assert not (falls_back and fell_back)
        fell_back = falls_back
