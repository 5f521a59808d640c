"""When the broker is tried again, and with which protocol version."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gruard.daemon.edges.reconnect import Ending, Reconnect


def test_first_retry_after_a_settled_connection_is_fast() -> None:
    """A broker that restarts is back at once, so the first retry waits a fifth of a second at most."""
    policy = Reconnect("5")
    for _ in range(6):
        policy.next_delay_s(Ending.UNREACHABLE, 0.0, 0.5)
    assert policy.next_delay_s(Ending.LOST, 10.0, 0.999) < 0.2


def test_ceiling_doubles_up_to_the_cap_while_attempts_fail() -> None:
    """Failures in a row spread the retries ever wider, up to half a minute."""
    policy = Reconnect("5")
    delays = [policy.next_delay_s(Ending.UNREACHABLE, 0.0, 1.0) for _ in range(9)]
    assert delays == [0.2, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_jitter_spans_the_whole_ceiling() -> None:
    """Many gateways that lose one broker do not come back in step: the wait is anywhere below the ceiling."""
    low, high = Reconnect("5"), Reconnect("5")
    low.failures = high.failures = 4
    assert low.next_delay_s(Ending.UNREACHABLE, 0.0, 0.0) == 0.0
    assert high.next_delay_s(Ending.UNREACHABLE, 0.0, 0.75) == 6.0


def test_connection_that_ends_before_it_settles_counts_as_a_failure() -> None:
    """Two clients with one id throw each other out ever more slowly instead of several times a second."""
    policy = Reconnect("5")
    delays = [policy.next_delay_s(Ending.LOST, 0.5, 1.0) for _ in range(8)]
    assert delays[-1] == 30.0


def test_delay_stays_finite_after_months_of_failures() -> None:
    """The power of two never overflows."""
    policy = Reconnect("5")
    policy.failures = 10**9
    assert policy.next_delay_s(Ending.REFUSED, 0.0, 1.0) == 30.0


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
