"""What an operator sees: episodes, hits, delays and rates, by hand and beside the yardstick."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support_yardstick import scored_series, yardstick

from gruard.models.quality.episodes import Outcome, binary, judge, openings, pooled, recall_at_budget

if TYPE_CHECKING:
    from numpy.typing import NDArray


def rows(length: int, *spans: tuple[int, int]) -> NDArray[np.bool_]:
    """True in the given rows, both ends included."""
    found = np.zeros(length, np.bool_)
    for first, last in spans:
        found[first : last + 1] = True
    return found


@pytest.mark.parametrize(
    ("alarm", "gap", "expected"),
    [
        (rows(10), 3, []),
        (rows(10, (0, 0)), 3, [0]),
        (rows(10, (2, 4)), 3, [2]),
        (rows(10, (1, 1), (5, 5)), 3, [1, 5]),  # three silent rows between: apart 4, more than the gap
        (rows(10, (1, 1), (4, 4)), 3, [1]),
        (rows(10, (1, 1), (2, 2), (4, 4)), 0, [1, 2, 4]),
    ],
)
def test_openings_are_alarms_after_a_pause(alarm: NDArray[np.bool_], gap: int, expected: list[int]) -> None:
    """An alarm less than `gap` + 1 rows after another goes on with its episode."""
    assert openings(alarm, gap).tolist() == expected


def test_judge_counts_events_hits_false_episodes_and_delays() -> None:
    """By hand: one event hit late, one hit in its grace, one missed, one false episode that pauses."""
    labels = rows(1000, (100, 149), (300, 309), (500, 519))
    alarm = rows(1000, (112, 113), (315, 316), (700, 702), (720, 721))
    outcome = judge(labels, alarm, start=50, gap=30, grace=10)
    assert outcome == Outcome(
        events=3,
        hit=2,
        false_episodes=1,
        quiet_rows=950 - (50 + 10 + 20) - 3 * 10,
        delays=(12, 15),
    )
    assert outcome.recall == pytest.approx(2 / 3)
    assert outcome.false_per_10k == pytest.approx(10_000 / 840)
    assert outcome.median_delay == pytest.approx(13.5)


@pytest.mark.parametrize(
    ("alarm", "false_episodes", "hit"),
    [
        (rows(200, (99, 99)), 1, 0),  # one row before the event
        (rows(200, (100, 100)), 0, 1),
        (rows(200, (119, 119)), 0, 1),  # the last row of the grace
        (rows(200, (120, 120)), 1, 0),
        (rows(200, (90, 105)), 1, 1),  # began before the event: false there, a hit within
        (rows(200, (105, 125)), 1, 1),  # outlasts the grace: the rest is one false episode
    ],
)
def test_judge_draws_the_line_at_event_and_grace(
    alarm: NDArray[np.bool_], false_episodes: int, hit: int
) -> None:
    """Each row of an alarm is false or not by where it lies itself."""
    outcome = judge(rows(200, (100, 109)), alarm, start=0, gap=5, grace=10)
    assert (outcome.false_episodes, outcome.hit) == (false_episodes, hit)


def test_judge_ignores_alarms_and_finished_events_before_the_start() -> None:
    """An event that is still on at the start counts, and its delay is counted from its own first row."""
    labels = rows(300, (10, 20), (90, 130))
    outcome = judge(labels, rows(300, (5, 95), (120, 120)), start=100, gap=5, grace=10)
    assert outcome == Outcome(1, 1, 0, 200 - 31 - 10, (30,))


def test_outcomes_without_events_hits_or_quiet_rows_are_no_numbers() -> None:
    """A rate of nothing is NaN, never 0 or 1."""
    nothing = judge(rows(50), rows(50), start=50)
    assert np.isnan([nothing.recall, nothing.false_per_10k, nothing.median_delay]).all()


def test_pooled_series_are_one() -> None:
    """Counts add up and delays are those of all."""
    parts = [Outcome(2, 1, 3, 400, (7,)), Outcome(1, 1, 0, 600, (9,))]
    assert pooled(parts) == Outcome(3, 2, 3, 1000, (7, 9))
    assert pooled([]) == Outcome(0, 0, 0, 0, ())


def test_binary_rates_by_hand() -> None:
    """Ten rows: 3 found, 1 missed, 2 of 6 normal ones called anomalous."""
    rates = binary(rows(10, (0, 3)), rows(10, (1, 5)))
    assert rates.f1 == pytest.approx(2 * 3 / (2 * 3 + 2 + 1))
    assert rates.far == pytest.approx(100 * 2 / 6)
    assert rates.mar == pytest.approx(100 * 1 / 4)
    assert binary(rows(4), rows(4)) == (0.0, 0.0, 0.0)


def test_recall_at_budget_by_hand() -> None:
    """A false burst scores between two events: with no false episode allowed, only the louder one counts."""
    labels, scores = rows(1000, (200, 209), (600, 609)), np.zeros(1000)
    scores[205], scores[400], scores[603] = 3.0, 2.0, 1.0
    strict = recall_at_budget([(labels, scores, 0)], 0.0)
    assert (strict.outcome.hit, strict.outcome.false_episodes) == (1, 0)
    assert 2.0 < strict.threshold <= 3.0
    loose = recall_at_budget([(labels, scores, 0)], 11.0)  # one in 920 quiet rows is 10.9 per 10,000
    assert (loose.outcome.hit, loose.outcome.false_episodes) == (2, 1)
    assert 0.0 < loose.threshold <= 1.0


def test_recall_at_budget_out_of_reach_is_silence() -> None:
    """Where every threshold breaks the budget nothing is raised, and the threshold is infinite."""
    found = recall_at_budget([(rows(500, (100, 110)), np.zeros(500), 0)], 0.0)
    assert (found.outcome.hit, found.outcome.false_episodes, found.threshold) == (0, 0, np.inf)


@settings(max_examples=60, deadline=None)
@given(
    labels=st.lists(st.booleans(), min_size=1, max_size=120),
    seed=st.integers(0, 99),
    start=st.integers(0, 130),
)
def test_judge_keeps_its_counts_consistent(labels: list[bool], seed: int, start: int) -> None:
    """Whatever the series: no more hits than events, a delay for each hit, no more quiet rows than rows."""
    y = np.array(labels)
    outcome = judge(y, np.random.default_rng(seed).random(len(y)) < 0.3, start=start, gap=2, grace=3)
    assert len(outcome.delays) == outcome.hit <= outcome.events
    assert 0 <= outcome.quiet_rows <= max(len(y) - start, 0)
    assert all(delay >= 0 for delay in outcome.delays)


@pytest.mark.parametrize("refused", [judge, binary])
def test_episodes_of_other_lengths_are_refused(refused: object) -> None:
    """Labels and alarms that do not belong together are no question."""
    arguments = {"start": 0} if refused is judge else {}
    with pytest.raises(ValueError, match="one length"):
        refused(np.zeros(3), np.zeros(4), **arguments)  # type: ignore[operator]
    with pytest.raises(ValueError, match="no series"):
        recall_at_budget([], 1.0)


@pytest.mark.parametrize("seed", range(12))
def test_operator_metrics_agree_with_the_yardstick(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Events, hits, false episodes, quiet rows, delays, rates and the recall at a budget are the same."""
    theirs = yardstick(monkeypatch)
    labels, scores = scored_series(seed)
    alarm = scores > 1.5
    for start, gap, grace in ((0, 30, 30), (150, 5, 0), (300, 0, 12)):
        expected = theirs.operator(labels, alarm, gap, grace, start)
        ours = judge(labels, alarm, start=start, gap=gap, grace=grace)
        assert ours == Outcome(
            expected["events"],
            expected["hit"],
            expected["false"],
            expected["quiet_rows"],
            tuple(expected["delays"]),
        )
    rates = theirs.binary(labels, alarm)
    assert binary(labels, alarm) == pytest.approx((rates["F1"], rates["FAR"], rates["MAR"]))
    streams = [(*scored_series(seed + k), 100) for k in range(3)]
    for budget in (20.0, 100.0, 400.0):
        found = recall_at_budget(streams, budget).outcome
        expected = theirs.recall_at_budget(streams, budget)
        assert found.recall == pytest.approx(expected["recall"])
        assert found.false_per_10k == pytest.approx(expected["fa"])
        np.testing.assert_allclose(found.median_delay, expected["delay"])
