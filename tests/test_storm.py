"""Too many alerts at once: what is told, what is counted, and the one alert that speaks for the rest."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support_engine import Bench, plant_rows, reading

from gruard.daemon.core.events import Alert
from gruard.daemon.core.payloads import ModelNote, alert_payload
from gruard.daemon.core.storm import OVER_AFTER_S, UPDATE_EVERY_S, Storm

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gruard.daemon.records import AlertState, Severity


def alert(
    device: str, state: AlertState, time_s: float = 5000.0, severity: Severity = "warning", **more: object
) -> Alert:
    return Alert(
        id=f"id-{device}",
        state=state,
        severity=severity,
        device=device,
        source="plant",
        group="plant-abc",
        time_s=time_s,
        opened_s=5000.0,
        score=0.9,
        threshold=0.8,
        value={"a": 1.0},
        expected={"a": 0.0},
        deviation={"a": 9.0},
        contributions=(("a", 1.0),),
        model="baseline",
        **more,  # type: ignore[arg-type]
    )


def opened(storm: Storm, devices: Sequence[str], now: float, **more: object) -> list[bool]:
    return [storm.decide(alert(name, "opened", **more), now) for name in devices]  # type: ignore[arg-type]


def test_decide_few_alerts_are_all_told() -> None:
    """Up to the limit nothing is held back, and there is no summary."""
    storm = Storm("gate", 10)
    assert all(opened(storm, [f"d{n}" for n in range(10)], 0.0))
    assert all(
        storm.decide(alert(f"d{n}", state), 1.0) for n in range(10) for state in ("updated", "resolved")
    )
    assert storm.suppressed == 0
    assert storm.summary(1.0) is None


def test_decide_more_than_the_limit_are_counted() -> None:
    """Above the limit openings are held back; the bucket refills with time."""
    storm = Storm("gate", 60)
    assert sum(opened(storm, [f"a{n}" for n in range(100)], 0.0)) == 60
    assert storm.suppressed == storm.untold == 40
    assert sum(opened(storm, [f"b{n}" for n in range(100)], 10.0)) == 10
    assert sum(opened(storm, [f"c{n}" for n in range(100)], 1e6)) == 60


def test_decide_what_was_not_told_has_no_updates_and_no_end() -> None:
    """Nobody hears the middle or the end of an alert whose beginning was held back; each is counted."""
    storm = Storm("gate", 1)
    assert opened(storm, ["told", "held"], 0.0) == [True, False]
    assert storm.decide(alert("told", "updated"), 1.0)
    assert not storm.decide(alert("held", "updated"), 1.0)
    assert storm.decide(alert("told", "resolved"), 2.0)
    assert not storm.decide(alert("held", "resolved"), 2.0)
    assert storm.suppressed == 3
    assert storm.untold == 0


def test_decide_alert_that_is_still_open_is_told_when_there_is_room() -> None:
    """The next update of an alert that was held back pays for itself; then it is one like any other."""
    storm = Storm("gate", 60)
    opened(storm, [f"d{n}" for n in range(60)], 0.0)
    assert opened(storm, ["late"], 0.0) == [False]
    assert storm.decide(alert("late", "updated"), 5.0)
    assert storm.decide(alert("late", "resolved"), 5.0)
    assert storm.untold == 0


def test_decide_without_room_only_ends_are_told() -> None:
    """A full outbox takes nothing more but the end of what was told."""
    storm = Storm("gate", 60)
    assert storm.decide(alert("a", "opened"), 0.0)
    assert not storm.decide(alert("a", "updated"), 1.0, room=False)
    assert not storm.decide(alert("b", "opened"), 1.0, room=False)
    assert storm.decide(alert("a", "resolved"), 2.0, room=False)
    assert not storm.decide(alert("b", "resolved"), 2.0, room=False)
    assert storm.suppressed == 3


def test_decide_limiter_begun_anew_takes_open_alerts_for_told() -> None:
    """After a restart nothing is known to be held back, so no end of a told alert is kept from anybody."""
    storm = Storm("gate", 1)
    assert storm.decide(alert("from-before", "updated"), 0.0)
    assert storm.decide(alert("from-before", "resolved"), 0.0)


def test_summary_opens_updates_and_resolves() -> None:
    """One alert for the whole storm: at most one word a minute, and its end when nothing is held back."""
    storm = Storm("gate", 1)
    opened(storm, ["a", "b", "c"], 0.0, severity="critical")
    first = storm.summary(0.5)
    assert first is not None
    assert (first.state, first.severity, first.device) == ("opened", "critical", "gate")
    assert first.value == {"suppressed": 2.0}
    opened(storm, ["d"], 1.0)
    assert storm.summary(UPDATE_EVERY_S) is None
    second = storm.summary(UPDATE_EVERY_S + 1.0)
    assert second is not None
    assert (second.state, second.value, second.id) == ("updated", {"suppressed": 3.0}, first.id)
    assert storm.summary(OVER_AFTER_S) is None
    last = storm.summary(1.0 + OVER_AFTER_S)
    assert last is not None
    assert (last.state, last.id) == ("resolved", first.id)
    assert last.time_s - last.opened_s == OVER_AFTER_S
    assert storm.summary(1e6) is None
    opened(storm, ["e", "f"], 1e6)
    again = storm.summary(1e6)
    assert again is not None
    assert again.id != first.id


def test_summary_nothing_new_says_nothing() -> None:
    """A storm that holds nothing more back is not repeated before its end."""
    storm = Storm("gate", 1)
    opened(storm, ["a", "b"], 0.0)
    assert storm.summary(0.0) is not None
    assert [storm.summary(t) for t in (60.0, 90.0, 119.0)] == [None] * 3


def test_summary_of_a_backlog_pages_nobody() -> None:
    """Where all that is held back is info, so is the summary; it stands at the time of arrival."""
    storm = Storm("gate", 0)
    opened(storm, ["a", "b"], 0.0, severity="info", late_s=7200.0)
    told = storm.summary(0.0)
    assert told is not None
    assert (told.severity, told.time_s) == ("info", 5000.0 + 7200.0)


def test_summary_left_open_by_the_run_before_finds_its_end() -> None:
    """A restart in a storm leaves no alert open for ever."""
    storm = Storm("gate", 60, open_id="0123456789abcdef", opened_s=4000.0)
    assert storm.summary(100.0) is None
    last = storm.summary(100.0 + OVER_AFTER_S)
    assert last is not None
    assert (last.id, last.state, last.opened_s) == ("0123456789abcdef", "resolved", 4000.0)
    assert last.time_s >= last.opened_s
    assert storm.summary(1e6) is None


@pytest.mark.parametrize("state", ["opened", "resolved"])
def test_summary_is_a_valid_alert(state: str) -> None:
    """Its JSON has the keys of every alert, no NaN, and one sentence."""
    storm = Storm("gate", 1)
    opened(storm, ["a", "b"], 0.0)
    told = {a.state: a for a in (storm.summary(0.0), storm.summary(OVER_AFTER_S)) if a}[state]
    body = json.loads(alert_payload(told, ModelNote(told.model), "gate"))
    usual = json.loads(alert_payload(alert("a", "opened"), ModelNote("baseline"), "gate"))
    assert body.keys() == usual.keys()
    assert body["contributions"] == [{"field": "suppressed", "share": 1.0}]
    assert 0.0 <= body["score"] <= 1.0
    assert body["message"].startswith("gate ")
    assert body["message"].count(". ") == 0
    assert "1 alert event" in body["message"]


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 7), st.booleans(), st.floats(0.0, 30.0), st.booleans()), max_size=200
    ),
    most=st.integers(0, 5),
)
def test_decide_any_order_tells_whole_stories(steps: list[tuple[int, bool, float, bool]], most: int) -> None:
    """Of each alert either nothing is told, or a first word and its end; told and held back add up to all."""
    storm, now = Storm("gate", most), 0.0
    open_: dict[int, bool] = {}  # device -> whether it was told
    told, all_ = 0, 0
    openings: list[float] = []
    for device, alarm, wait_s, room in steps:
        now += wait_s
        state: AlertState = "opened" if device not in open_ else "updated" if alarm else "resolved"
        publish = storm.decide(alert(f"d{device}", state), now, room=room)
        told, all_ = told + publish, all_ + 1
        if state == "resolved":
            assert publish == open_.pop(device)
            continue
        if publish and not open_.get(device, False):
            openings.append(now)
        assert room or not publish
        open_[device] = open_.get(device, False) or publish
    assert told + storm.suppressed == all_
    assert storm.untold == sum(not was_told for was_told in open_.values())
    assert all(sum(t - 60.0 < o <= t for o in openings) <= 2 * most for t in openings)


def test_storm_of_ten_thousand_devices_is_bounded_and_counted() -> None:
    """Every device anomalous at once: sixty alerts and a summary are told, every other event is counted."""
    devices, told = 10_000, Counter[str]()
    storm = Storm("gate", 60)
    all_ = 0
    for minute in range(3):
        state: AlertState = ("opened", "updated", "resolved")[minute]  # type: ignore[assignment]
        for n in range(devices):
            now = 60.0 * minute + 60.0 * n / devices
            all_ += 1
            told[state] += storm.decide(alert(f"d{n}", state, 5000.0 + now), now)
            if n % 100 == 0 and storm.summary(now) is not None:
                told["summary"] += 1
    assert sum(told[s] for s in ("opened", "updated", "resolved")) + storm.suppressed == all_
    assert told["opened"] <= 2 * 60
    assert told["resolved"] <= 4 * 60
    assert told["summary"] <= 4
    assert storm.untold == 0


def test_storm_through_the_engine_is_bounded_and_counted() -> None:
    """A fleet that breaks at one moment: its alerts come from the engine, and most are held back."""
    devices = 200
    bench, storm = Bench(most_devices=devices), Storm("gate", 20)
    series = plant_rows(330)
    series[300:, 0] += 25.0
    events = []
    for t, row in enumerate(series):
        values = {f"f{k}": float(v) for k, v in enumerate(row)}
        events += bench.feed_wave([reading(f"d{n}", 1000.0 + t, values) for n in range(devices)])
    alerts = [e for e in events if isinstance(e, Alert)]
    assert len({a.id for a in alerts}) == devices
    told = [storm.decide(a, a.time_s) for a in alerts]
    assert 20 <= sum(told) <= 21
    assert sum(told) + storm.suppressed == len(alerts)
    assert np.isfinite([a.score for a in alerts]).all()
