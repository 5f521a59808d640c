"""The history checker must be able to fail: a history broken in any one way is found out, and named."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from torture import checker
from torture.checker import Verdict
from torture.outcome import Counted, Outcome, uninterrupted
from torture.rig import CONFIG
from torture.truth import START_S, Fleet, Truth, mode_of

from gruard.daemon.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable

COUNT = 260
PLACES = 4


@dataclass
class Run:
    """A run without faults: what was sent, what came of it, what was told."""

    truth: Truth
    outcome: Outcome
    heard: list[bytes]

    def judge(self, reference: Outcome) -> Verdict:
        verdict = Verdict()
        checker.resolve(self.truth, self.outcome.counted, verdict)
        checker.compare(self.outcome, reference, self.heard, verdict)
        return verdict


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("sound")
    config = folder / "gruard.toml"
    text = CONFIG.replace("EVERY", "off").replace("CHECKPOINT", "1s")
    config.write_text(text.format(mqtt_port=1883, http_port=0, warmup=200, state=folder))
    truth = Truth(Fleet(PLACES, 5, ("ts", "dumb")))
    sent = {}
    for place in range(PLACES):
        for before in range(COUNT):
            name, n = truth.fleet.device(place, before)
            truth.sent(name, n)
            truth.acknowledged(name, n)
        rows = truth.fleet.rows(name, COUNT)
        nan, none = np.full(COUNT, np.nan), np.zeros(COUNT, np.int64)
        time_s = START_S + np.arange(COUNT)
        sent[name] = Counted(time_s, time_s + 0.25, rows, nan, none)
    outcome = uninterrupted(sent, load(config, {}), None)
    return Run(truth, outcome, [json.dumps(event).encode() for event in outcome.events])


@pytest.fixture
def run(sound: Run) -> Run:
    return Run(sound.truth, copy.deepcopy(sound.outcome), list(sound.heard))


def first(run: Run, mode: str) -> str:
    return next(name for name in run.truth.names if mode_of(name) == mode)


def without(rows: Counted, at: int) -> Counted:
    return Counted(*(np.delete(column, at, axis=0) for column in columns(rows)))


def repeated(rows: Counted, at: int) -> Counted:
    return Counted(*(np.insert(column, at, column[at], axis=0) for column in columns(rows)))


def swapped(rows: Counted, at: int) -> Counted:
    order = np.arange(len(rows))
    order[[at, at + 1]] = order[[at + 1, at]]
    return Counted(*(column[order] for column in columns(rows)))


def columns(rows: Counted) -> tuple[np.ndarray, ...]:
    return rows.time_s, rows.received_s, rows.values, rows.score, rows.flags


def test_judge_history_without_faults_has_no_finding(sound: Run) -> None:
    """And it is no empty history: alerts opened, and were resolved."""
    verdict = sound.judge(sound.outcome)
    assert verdict.findings == []
    assert verdict.readings == PLACES * COUNT
    assert verdict.alerts > PLACES
    assert {event["state"] for event in sound.outcome.events} == {"opened", "updated", "resolved"}


@pytest.mark.parametrize("mode", ["ts", "dumb"])
@pytest.mark.parametrize(
    ("change", "promise", "said"),
    [
        (without, "P1", "reading 150 was acknowledged and is not in the journal"),
        (repeated, "P2", "reading 150 was counted 2 times"),
        (swapped, "P2", "reading 150 was counted behind reading 151"),
    ],
)
def test_judge_reading_lost_doubled_or_swapped_is_named(
    run: Run, sound: Run, mode: str, change: Callable[[Counted, int], Counted], promise: str, said: str
) -> None:
    """One reading of thousands is enough, and it is named by device and number."""
    name = first(run, mode)
    run.outcome.counted[name] = change(run.outcome.counted[name], 150)
    verdict = run.judge(sound.outcome)
    assert (verdict.lost, verdict.double, verdict.inverted).count(1) == 1
    named = [f for f in verdict.findings if f.promise == promise]
    assert [f.device for f in named] == [name]
    assert named[0].what.startswith(said)


def test_judge_last_reading_lost_is_named(run: Run, sound: Run) -> None:
    """The end of a history is no excuse."""
    name = first(run, "ts")
    run.outcome.counted[name] = without(run.outcome.counted[name], COUNT - 1)
    assert run.judge(sound.outcome).lost == 1


def test_judge_row_that_nobody_sent_is_named(run: Run, sound: Run) -> None:
    """Values that differ in the last bit are other values."""
    name = first(run, "ts")
    run.outcome.counted[name].values[7, 0] = np.nextafter(run.outcome.counted[name].values[7, 0], np.inf)
    said = [str(f) for f in run.judge(sound.outcome).findings]
    assert f"P2 {name}: row 7 of the journal was never sent" in said
    assert any(line.startswith(f"P1 {name}: reading 7 was acknowledged") for line in said)


def test_judge_doubt_of_the_publisher_is_no_fault_of_the_daemon(run: Run, sound: Run) -> None:
    """A dumb sensor's reading that was sent twice may count twice; one that says its time may not."""
    truth = copy.copy(run.truth)
    truth._copies = copy.deepcopy(run.truth._copies)
    for mode, double in (("dumb", 0), ("ts", 1)):
        name = first(run, mode)
        truth._copies[name][150] = 2
        counted = {**run.outcome.counted, name: repeated(run.outcome.counted[name], 150)}
        verdict = Verdict()
        should = checker.resolve(truth, counted, verdict)
        assert verdict.double == double
        assert len(should[name]) == COUNT + 1 - double


@pytest.mark.parametrize("column", ["lags", "level", "count", "location"])
def test_judge_memory_nudged_is_named(run: Run, sound: Run, column: str) -> None:
    """A thousandth in one number of one device's memory."""
    name = first(run, "ts")
    side = "base_lags" if column == "lags" else column
    row = run.outcome.memory[name][side]
    run.outcome.memory[name][side] = row + row.dtype.type(
        1e-3 * max(1.0, np.abs(row).max()) + (column == "count")
    )
    verdict = run.judge(sound.outcome)
    assert verdict.worst >= 9e-4
    assert [str(f).startswith(f"P3 {name}: its {side} is off by ") for f in verdict.findings] == [True]


def test_judge_memory_within_the_tolerance_is_let_pass(run: Run, sound: Run) -> None:
    """What rounding does is no finding, and is told as a number."""
    name = first(run, "ts")
    run.outcome.memory[name]["location"] = run.outcome.memory[name]["location"] * (1 + 1e-7)
    verdict = run.judge(sound.outcome)
    assert verdict.findings == []
    assert 5e-8 < verdict.worst < 2e-7


def test_judge_memory_missing_or_of_another_side_is_named(run: Run, sound: Run) -> None:
    """A device that nobody remembers, one that should not be there, and one judged by the model instead."""
    name, other = run.truth.names[:2]
    run.outcome.memory["ghost"] = run.outcome.memory.pop(name)
    run.outcome.memory[other] = {"hidden": np.zeros(8)}
    said = [str(f) for f in run.judge(sound.outcome).findings]
    assert said[0] == f"P3 {name}: is not remembered at all"
    assert said[1].startswith(f"P3 {other}: is judged by another side")
    assert said[2] == "P3 ghost: is remembered and should not be known"


def test_judge_score_time_or_flags_off_are_named(run: Run, sound: Run) -> None:
    """The journal's own columns."""
    name = first(run, "dumb")
    rows = run.outcome.counted[name]
    rows.score[200] += 1e-3
    rows.time_s[100] += 0.5
    rows.flags[90] ^= 1
    said = [str(f) for f in run.judge(sound.outcome).findings]
    assert [line.removeprefix(f"P3 {name}: row ").split()[0] for line in said] == ["100", "200", "90"]


def test_judge_score_that_became_none_is_named(run: Run, sound: Run) -> None:
    """NaN equals nothing but NaN."""
    run.outcome.counted[first(run, "ts")].score[200] = np.nan
    assert run.judge(sound.outcome).worst == np.inf


def test_judge_known_facts_off_are_named(run: Run, sound: Run) -> None:
    """What the engine knows of a device beside its numbers."""
    name = first(run, "ts")
    run.outcome.known[name]["last_s"] += 1.0
    run.outcome.known[name]["track"]["severity"] = "critical"
    said = [str(f) for f in run.judge(sound.outcome).findings]
    assert [line.split()[3] for line in said] == ["last_s", "track"]


def test_judge_alert_missing_changed_or_told_under_another_id_is_named(run: Run, sound: Run) -> None:
    """Each event once at least, the same each time, and no other."""

    def findings(heard: list[bytes]) -> list[str]:
        verdict = Run(run.truth, run.outcome, heard).judge(sound.outcome)
        assert verdict.alert_differences == len(verdict.findings)
        return [str(f) for f in verdict.findings]

    told = json.loads(run.heard[0])
    name, key, time = told["device"], told["id"], told["time"]

    def altered(**more: Any) -> bytes:
        return json.dumps({**told, **more}).encode()

    assert findings([*run.heard, *run.heard[:5]]) == []
    assert findings(run.heard[1:]) == [f"P4 {name}: alert {key} opened at {time} was never told"]
    assert findings([altered(score=0.123), *run.heard[1:]]) == [
        f"P4 {name}: alert {key} opened at {time} was told otherwise: ['score']"
    ]
    assert findings([*run.heard, altered(severity="info")]) == [
        f"P4 {name}: alert {key} opened at {time} was told with content that nothing explains"
    ]
    assert findings([*run.heard, altered(id="0" * 16)]) == [
        f"P4 {name}: alert {'0' * 16} opened at {time} was told with content that nothing explains"
    ]


def test_judge_two_updates_of_one_moment_are_two_events(run: Run, sound: Run) -> None:
    """Two readings of one message may both be news of an alert: each is told, none stands for the other."""
    event = sound.outcome.events[0]
    higher = {**event, "severity": "critical", "score": 0.999}
    both = replace(sound.outcome, events=[*sound.outcome.events, higher])
    second = json.dumps(higher).encode()
    assert not Run(run.truth, run.outcome, [*run.heard, second]).judge(both).findings
    (missing,) = Run(run.truth, run.outcome, run.heard).judge(both).findings
    assert str(missing).endswith("was never told")


def test_judge_alert_decided_otherwise_is_named(run: Run, sound: Run) -> None:
    """The table of alerts: one too few, one too many, one with another newest word."""
    lost, altered = list(run.outcome.alerts)[:2]
    run.outcome.alerts["0" * 16] = run.outcome.alerts.pop(lost)
    run.outcome.alerts[altered] = {**run.outcome.alerts[altered], "state": "opened"}
    verdict = run.judge(sound.outcome)
    said = [str(f) for f in verdict.findings]
    assert said[0].endswith(f"alert {lost} was never decided")
    assert said[1].endswith(f"alert {'0' * 16} should not have been decided")
    assert said[2].endswith(f"the newest word on alert {altered} differs: ['state']")
    assert verdict.alert_differences == 3


@pytest.mark.parametrize(
    ("scored", "said"), [(7, ""), (6, "received 10, and accounted for are"), (8, "received 10")]
)
def test_unaccounted_is_empty_only_where_the_sums_agree(scored: int, said: str) -> None:
    """received = scored + duplicate + rejected + shed, on the page as it is served."""
    page = "\n".join(
        [
            "# TYPE gruard_readings_received_total counter",
            "gruard_readings_received_total 10.0",
            f'gruard_readings_total{{result="scored"}} {scored}.0',
            'gruard_readings_total{result="duplicate"} 1.0',
            'gruard_readings_total{result="rejected"} 2.0',
            'gruard_readings_total{result="shed"} 0.0',
        ]
    )
    assert checker.unaccounted(page).startswith(said)
    assert bool(checker.unaccounted(page)) == bool(said)
    assert checker.unaccounted("") != ""
