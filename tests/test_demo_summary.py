"""The verdict at the end of a demo: what counts as found, missed, false and raised."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from gruard.daemon.demo.fleet import Fault
from gruard.daemon.demo.summary import (
    Alarm,
    BurnVerdict,
    Summary,
    Verdict,
    alarm_from,
    judge_burn,
    judge_faults,
)

START_S = 1_700_000_000.0
PUMPS = ("pump-01", "pump-02", "pump-03")
DRY = Fault("dry running", "pump-01", 100, 50)
STUCK = Fault("stuck sensor", "pump-02", 200, 50)


def opened(device: str, t: float, message: str = "it broke") -> Alarm:
    return Alarm(device, START_S + t, "warning", message, "m-1")


def judge(*alarms: Alarm, played_s: float = 1000) -> tuple[list[Verdict], list[Alarm], list[Alarm]]:
    return judge_faults((DRY, STUCK), alarms, PUMPS, START_S, played_s)


def summary(
    found: int, *, false_alarms: int = 0, problem: str | None = None, burn: BurnVerdict | None = None
) -> Summary:
    verdicts = tuple(
        Verdict(DRY, 3.0, "flow fell") if number < found else Verdict(STUCK, None) for number in range(4)
    )
    return Summary(
        verdicts=verdicts,
        false_alarms=tuple(opened("pump-03", 5) for _ in range(false_alarms)),
        aftermath=(),
        burn=burn,
        sent=120,
        counted={"scored": 118, "duplicate": 0, "rejected": 2},
        start_s=START_S,
        models={"m-1": 12},
        problem=problem,
    )


def test_judge_faults_finds_an_alert_inside_the_fault() -> None:
    """The first alert between onset and end finds the fault; its delay is event time after the onset."""
    verdicts, false_alarms, aftermath = judge(opened("pump-01", 112, "flow fell"), opened("pump-01", 130))

    assert verdicts[0] == Verdict(DRY, 12.0, "flow fell")
    assert verdicts[1].delay_s is None
    assert (false_alarms, aftermath) == ([], [])


def test_judge_faults_does_not_count_an_alert_before_the_onset_as_found() -> None:
    """An alert one second early is a false alarm, also on the pump that breaks later."""
    early = opened("pump-01", 99)
    verdicts, false_alarms, _ = judge(early)

    assert verdicts[0].delay_s is None
    assert false_alarms == [early]


def test_judge_faults_takes_the_onset_into_the_fault_and_the_end_out_of_it() -> None:
    """The interval is half open: at its start an alert finds the fault, at its end it is aftermath."""
    at_end = opened("pump-02", 250)
    verdicts, false_alarms, aftermath = judge(opened("pump-01", 100), at_end)

    assert verdicts[0].delay_s == 0.0
    assert verdicts[1].delay_s is None
    assert (false_alarms, aftermath) == ([], [at_end])


def test_judge_faults_counts_every_alert_of_a_healthy_pump_as_false() -> None:
    """A pump without a fault may not alert, not even while another one is broken."""
    alarms = [opened("pump-03", 120), opened("pump-03", 400)]
    _, false_alarms, _ = judge(*alarms)

    assert false_alarms == alarms


def test_judge_faults_passes_over_devices_that_are_no_pumps() -> None:
    """Alerts of this machine are real and nobody knows their truth, so they are not judged as pumps."""
    assert judge(opened("my-laptop", 120))[1:] == ([], [])


def test_judge_faults_tells_missed_from_not_reached() -> None:
    """A fault that the run never came to is not held against the detector as missed."""
    verdicts, _, _ = judge(played_s=150)
    lines = summary(0).lines() + Summary(tuple(verdicts), (), (), None, 0, None).lines()

    assert [verdict.reached for verdict in verdicts] == [True, False]
    assert "fault: dry running on pump-01: MISSED" in lines
    assert "fault: stuck sensor on pump-02: NOT REACHED" in lines


def test_alarm_from_reads_an_opened_alert() -> None:
    """The contract's opened alert becomes an alarm at its opening, in Unix seconds."""
    alert = {
        "schema": "gruard.alert/1",
        "state": "opened",
        "device": "pump-01",
        "severity": "critical",
        "time": "2026-01-02T03:04:09Z",
        "opened_at": "2026-01-02T03:04:05.500Z",
        "message": "flow fell",
        "model": {"id": "m-1", "trained_at": None, "skill": None},
        "contributions": [
            {"field": "cpu_percent", "share": 0.5},
            {"field": "net_kb_s", "share": 0.3},
            {"field": "load1", "share": 0.2},
        ],
    }
    moment = datetime(2026, 1, 2, 3, 4, 5, 500_000, tzinfo=UTC).timestamp()

    assert alarm_from(alert) == Alarm("pump-01", moment, "critical", "flow fell", "m-1", 0.7)


@pytest.mark.parametrize(
    "alert",
    [
        {},
        {"state": "updated", "device": "a", "time": "2026-01-02T03:04:05Z"},
        {"state": "resolved", "device": "a", "time": "2026-01-02T03:04:05Z"},
        {"state": "opened", "device": "a", "time": "yesterday"},
        {"state": "opened", "device": "a"},
        {"state": "opened", "device": "a", "time": "2026-01-02T03:04:05Z", "contributions": [7]},
        {"state": "opened", "time": "2026-01-02T03:04:05Z"},
    ],
)
def test_alarm_from_passes_over_everything_else(alert: dict[str, object]) -> None:
    """Updates, endings and payloads that are no alerts open nothing and raise nothing."""
    assert alarm_from(alert) is None


def burn(*scores: tuple[float, float], alarms: tuple[Alarm, ...] = ()) -> BurnVerdict:
    return judge_burn(scores, alarms, "host", (START_S, START_S + 12), quiet_s=60)


def burn_alarm(t: float, device: str = "host", share: float = 0.8) -> Alarm:
    return Alarm(device, START_S + t, "warning", "cpu is high", "m-1", share)


def test_judge_burn_sees_a_score_that_rose_and_stayed() -> None:
    """A median during the burn well above the median of the minute before shows it."""
    verdict = burn((START_S - 20, 0.1), (START_S - 10, 0.2), (START_S - 5, 0.9), (START_S + 6, 0.4))

    assert verdict == BurnVerdict((0.2, 0.9), (0.4, 0.4), None)
    assert verdict.raised


def test_judge_burn_sees_a_peak_beyond_all_that_was_usual() -> None:
    """A score that adapts to the burn shows it by a peak clearly above every score of the minute before."""
    usual = [(START_S - t, 0.05 if t % 2 else 0.3) for t in range(1, 60)]
    fading = [(START_S + 1, 0.7), *((START_S + t, 0.1) for t in range(2, 12))]

    assert burn(*usual, *fading).raised
    assert not burn(*usual, (START_S - 3, 0.65), *fading).raised


@pytest.mark.parametrize(
    "scores",
    [
        ((START_S - 10, 0.1), (START_S + 6, 0.29)),
        (
            (START_S - 20, 0.1),
            (START_S - 15, 0.1),
            (START_S - 10, 0.85),
            (START_S + 5, 0.1),
            (START_S + 6, 0.1),
            (START_S + 7, 0.9),
        ),
        ((START_S + 6, 0.9),),
        ((START_S - 10, 0.1), (START_S + 13, 0.9)),
        ((START_S - 70, 0.1), (START_S + 6, 0.9)),
        (),
    ],
    ids=["too little", "seen before", "nothing before", "too late", "too long ago", "no scores"],
)
def test_judge_burn_is_not_taken_in(scores: tuple[tuple[float, float], ...]) -> None:
    """A small rise, a height seen shortly before, or nothing to compare with does not count as raised."""
    assert not burn(*scores).raised


@pytest.mark.parametrize(
    ("alarm", "raised"),
    [
        (burn_alarm(4), True),
        (burn_alarm(-4), False),
        (burn_alarm(13), False),
        (burn_alarm(4, share=0.2), False),
        (burn_alarm(4, device="pump-01"), False),
    ],
    ids=["during", "before", "after", "about the network", "of a pump"],
)
def test_judge_burn_counts_an_alert_only_if_it_is_about_the_burn(alarm: Alarm, *, raised: bool) -> None:
    """It must be this machine's, open while cores burn, and be mostly about CPU and memory."""
    assert burn(alarms=(alarm,)).raised is raised


@pytest.mark.parametrize(
    ("found", "false_alarms", "problem", "good"),
    [
        (4, 0, None, True),
        (3, 1, None, True),
        (2, 0, None, False),
        (4, 2, None, False),
        (4, 0, "it ended", False),
    ],
)
def test_summary_is_good_only_within_its_limits(
    found: int, false_alarms: int, problem: str | None, *, good: bool
) -> None:
    """Three of four found, one false alarm at most and no problem make a good run; nothing less does."""
    outcome = summary(found, false_alarms=false_alarms, problem=problem)

    assert outcome.good is good
    assert outcome.lines()[-1] == f"result: {'ok' if good else 'not ok'}"


def test_summary_lines_name_every_fault_and_every_number() -> None:
    """The text says for each fault whether it was found, how soon and why, then counts everything."""
    lines = summary(1, false_alarms=1, problem="interrupted").lines()

    assert "fault: dry running on pump-01: FOUND 3 s after onset: flow fell" in lines
    assert lines.count("fault: stuck sensor on pump-02: MISSED") == 3
    assert "faults found: 1 of 4" in lines
    assert "false alarms: 1 (alerts on healthy pumps or before the fault)" in lines
    assert "  second 5, by m-1: it broke" in lines
    assert "burn on this machine: not reached" in lines
    assert "readings: 120 sent, 120 counted by the daemon (scored 118, rejected 2)" in lines
    assert "model m-1: in charge of 12 devices" in lines
    assert "problem: interrupted" in lines


def test_summary_lines_show_the_numbers_behind_the_burn() -> None:
    """Raised or not, the scores that decided it and the rule are printed."""
    raised = "\n".join(summary(4, burn=BurnVerdict((0.05, 0.21), (0.4, 0.9), "cpu is high")).lines())
    silent = "\n".join(summary(4, burn=BurnVerdict(None, None, None)).lines())

    assert "score before: median 0.05, highest 0.21; during: median 0.40, highest 0.90: RAISED" in raised
    assert "  alert: cpu is high" in raised
    assert "score before: not scored; during: not scored: NOT RAISED" in silent
