"""When the broker has handed over all that waited."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from gruard.daemon.edges.backlog import Backlog


def test_fresh_connection_has_no_backlog() -> None:
    """Without a session nothing can wait, and nothing needs to be asked."""
    backlog = Backlog()
    assert not backlog.waits
    assert not backlog.must_ask(0)


def test_empty_queue_is_seen_with_the_first_answer() -> None:
    """A resumed session with nothing in it is caught up as soon as the broker has answered."""
    backlog = Backlog()
    backlog.begin()
    assert backlog.must_ask(0)
    backlog.asked(0)
    assert not backlog.must_ask(0)
    backlog.answered()
    assert not backlog.waits


def test_full_window_is_not_asked_about() -> None:
    """While we hold most of the window ourselves, an answer could show nothing."""
    backlog = Backlog()
    backlog.begin()
    backlog.received(20, 20)
    assert not backlog.must_ask(11)
    assert backlog.must_ask(10)


def test_answer_to_a_ping_of_the_keep_alive_shows_nothing() -> None:
    """Only the answer to our own ping counts."""
    backlog = Backlog()
    backlog.begin()
    backlog.answered()
    assert backlog.waits


@given(
    waiting=st.integers(0, 300),
    window=st.integers(1, 40),
    excess=st.floats(1.0, 1.9),
    schedule=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5)), max_size=60),
)
def test_backlog_never_ends_before_the_last_waiting_message(
    waiting: int, window: int, excess: float, schedule: list[tuple[int, int]]
) -> None:
    """Against any window, pace of acknowledgements and live stream: not early, and over in the end.

    The broker fills its window before it answers. It may have sent up to `excess` windows at first.
    """
    backlog = Backlog()
    backlog.begin()
    queue = deque(range(waiting))
    unacked = 0

    def hand_over(room: int) -> None:
        nonlocal unacked
        sent = min(room, len(queue))
        for _ in range(sent):
            queue.popleft()
        unacked += sent
        backlog.received(sent, unacked)

    hand_over(int(window * excess))
    for acknowledged, live in [*schedule, *[(40, 0)] * (waiting + 300)]:
        unacked -= min(acknowledged, unacked)
        asks = backlog.must_ask(unacked)
        if asks:
            backlog.asked(unacked)
        queue.extend([-1] * live)
        hand_over(max(window - unacked, 0))
        if asks:
            backlog.answered()
            assert backlog.waits or not any(number >= 0 for number in queue)
    assert not backlog.waits
