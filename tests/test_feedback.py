"""Operators' feedback: what a word does at once, what stays of it, and what it leaves alone."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from support_engine import BUDGET, plant_rows, reading, readings_of
from support_pipeline import QUICK, UNTRAINED, QuietRound, opened, play

from gruard.daemon import cli_commands, training_round
from gruard.daemon.cli import main
from gruard.daemon.commands import Commands
from gruard.daemon.core.commands import Expected, Fault, Missed, Mute, Undo, decode, encode
from gruard.daemon.core.engine import open_state
from gruard.daemon.core.events import Alert, Event, Removed
from gruard.daemon.edges import command_files
from gruard.daemon.edges.metrics import Metrics
from gruard.daemon.edges.trainer import TrainRequest
from gruard.daemon.feedback import REASONS, FeedbackError
from gruard.daemon.inspection import ALL_ROWS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from gruard.daemon.core.commands import Said
    from gruard.daemon.pipeline import Pipeline
    from gruard.daemon.records import Reading

ROWS, EVERY, LONG = 1400, 200, 40
#: Where the harmless event begins; the first time in the rows that are played before a word is said.
TIMES = range(420, ROWS - LONG, EVERY)
SAID = TIMES[0] + 100


def harmless(rows: np.ndarray, begin: int, size: float = 1.0) -> None:
    """Put the event in: two fields move, one after the other."""
    shape = np.minimum(np.arange(LONG) / 8, 1.0)
    rows[begin : begin + LONG, 0] += 14.0 * size * shape
    rows[begin + 10 : begin + LONG, 1] -= 10.0 * size


def plant(device: str, seed: int, *, eventful: bool) -> np.ndarray:
    rows = plant_rows(ROWS, seed)
    if eventful:
        for n, begin in enumerate(TIMES):
            harmless(rows, begin, 1.0 + 0.05 * (n % 3 - 1))
    return rows


def readings(rows_of: dict[str, np.ndarray], first: int, last: int) -> list[Reading]:
    """Rows `first` to `last` of all devices, in the order of time."""
    every = [readings_of(device, rows[first:last], 1000.0 + first) for device, rows in rows_of.items()]
    return sorted((one for many in every for one in many), key=lambda one: one.time_s)


def opens(events: Sequence[Event], device: str = "a") -> list[float]:
    """Event times at which alerts of a device were opened, as rows."""
    return [
        event.time_s - 1000.0
        for event in events
        if isinstance(event, Alert) and event.state == "opened" and event.device == device
    ]


def of_the_event(events: Sequence[Event]) -> list[float]:
    return [t for t in opens(events) if any(begin <= t < begin + LONG + 20 for begin in TIMES)]


def first_alert(pipeline: Pipeline, device: str = "a") -> str:
    return next(row.id for row in pipeline.database.alerts(ALL_ROWS) if row.device == device)


@pytest.fixture(scope="module")
def fleet() -> dict[str, np.ndarray]:
    return {"a": plant("a", 0, eventful=True), "b": plant("b", 1, eventful=True)}


@contextmanager
def trained(folder: Path, fleet: dict[str, np.ndarray]) -> Iterator[Pipeline]:
    """A pipeline with a model in charge, and one alert of the event behind each device."""
    with opened(folder, QUICK) as pipeline:
        play(pipeline, readings(fleet, 0, SAID))
        assert pipeline.models
        yield pipeline


def test_expected_silences_the_recurrence_and_no_other_device(
    tmp_path: Path, fleet: dict[str, np.ndarray]
) -> None:
    """One word on the first alert ends them all for that device; the other goes on as it would have."""
    with trained(tmp_path / "spoken", fleet) as pipeline:
        answer = pipeline.feedback.take({"do": "expected", "alert": first_alert(pipeline)})
        after = play(pipeline, readings(fleet, SAID, ROWS))
    with trained(tmp_path / "silent", fleet) as pipeline:
        before = play(pipeline, readings(fleet, SAID, ROWS))
    assert answer["pattern"]
    assert len(of_the_event(before)) >= 2
    assert of_the_event(after) == []
    told = [e for e in before if isinstance(e, Alert) and e.device == "b"]
    assert [e for e in after if isinstance(e, Alert) and e.device == "b"] == told
    assert told


@pytest.mark.parametrize("fault", ["another field", "clearly larger", "the other way"])
def test_expected_leaves_other_faults_of_the_device_alone(
    tmp_path: Path, fleet: dict[str, np.ndarray], fault: str
) -> None:
    """Another field, the same fields by far more, or the other way still open an alert."""
    rows = fleet["a"].copy()
    where = slice(550, 590)
    rows[where] = plant_rows(ROWS, 0)[where]
    if fault == "another field":
        rows[where, 2] += 14.0
    else:
        harmless(rows, where.start, 4.0 if fault == "clearly larger" else -1.0)
    fleet = fleet | {"a": rows}
    with trained(tmp_path, fleet) as pipeline:
        pipeline.feedback.take({"do": "expected", "alert": first_alert(pipeline)})
        after = play(pipeline, readings(fleet, SAID, 610))
    assert [t for t in opens(after) if where.start <= t < where.stop + 10]


@pytest.mark.parametrize("checkpoint", [None, "before the word", "behind the word"])
def test_word_is_heard_again_by_recovery_where_it_was_said(
    tmp_path: Path, fleet: dict[str, np.ndarray], checkpoint: str | None
) -> None:
    """The run that is killed behind a word goes on like the one that was not: neither sooner nor never."""
    told = []
    for folder, is_killed in ((tmp_path / "whole", False), (tmp_path / "killed", True)):
        with trained(folder, fleet) as pipeline:
            if is_killed and checkpoint == "before the word":
                pipeline.checkpoint()
            pipeline.feedback.take({"do": "expected", "alert": first_alert(pipeline)})
            if is_killed and checkpoint == "behind the word":
                pipeline.checkpoint()
            events = play(pipeline, readings(fleet, SAID, SAID + 150))
            if not is_killed:
                events += play(pipeline, readings(fleet, SAID + 150, 1100))
        if is_killed:
            with opened(folder, QUICK) as pipeline:
                events += play(pipeline, readings(fleet, SAID + 150, 1100))
        told.append([(e.id, e.state, e.time_s) for e in events if isinstance(e, Alert)])
    assert told[0] == told[1]


def test_word_of_a_device_that_was_removed_is_not_heard_by_its_successor(tmp_path: Path) -> None:
    """A pattern goes with its device; another one of the same name begins with nothing, recovered or not."""
    with opened(tmp_path, UNTRAINED) as pipeline:
        play(pipeline, readings_of("a", alarming()))
        pipeline.feedback.take({"do": "expected", "alert": first_alert(pipeline)})
        assert pipeline.engine.devices["a"].patterns
        for event in pipeline.engine.remove("a", "idle", 2000.0):
            if isinstance(event, Removed):
                pipeline.pending.add(event)
        play(pipeline, readings_of("a", plant_rows(60), 3000.0))
        assert pipeline.engine.devices["a"].patterns == ()
    with opened(tmp_path, UNTRAINED) as pipeline:
        assert pipeline.engine.devices["a"].count == 60
        assert pipeline.engine.devices["a"].patterns == ()
        pipeline.feedback.take({"do": "missed", "device": "a", "from": 3010, "to": 3020})
        assert pipeline.engine.devices["a"].heard == 2


def alarming() -> np.ndarray:
    rows = plant_rows(300)
    rows[200:230, 0] += 25.0
    return rows


@pytest.fixture
def spoken(tmp_path: Path) -> Iterator[Pipeline]:
    """A pipeline over one device that has had an alert."""
    with opened(tmp_path, UNTRAINED) as pipeline:
        play(pipeline, readings_of("a", alarming()))
        yield pipeline


def test_pattern_survives_another_scaling_and_is_part_of_the_checkpoint(spoken: Pipeline) -> None:
    """It stands in the device's row, in units that a new fit does not touch."""
    spoken.feedback.take({"do": "expected", "alert": first_alert(spoken)})
    spoken.checkpoint()
    (row,) = spoken.database.checkpoints()
    (pattern,) = open_state(row.state)[0].patterns
    assert pattern.fields == ("f0", "f1", "f2")
    largest = np.abs(pattern.directions()[:, :3]).max()
    assert 15.0 < largest < 40.0  # of a step of 25


def test_same_word_twice_is_one_word(spoken: Pipeline) -> None:
    """A message that comes again, or an operator who presses twice, changes and counts nothing."""
    alert = first_alert(spoken)
    first = spoken.feedback.take({"do": "fault", "alert": alert})
    again = spoken.feedback.take({"do": "fault", "alert": alert})
    assert (first["repeated"], again["repeated"], again["id"]) == (False, True, first["id"])
    span = {"do": "missed", "device": "a", "from": 1100, "to": "1970-01-01T00:20:00Z"}
    assert spoken.feedback.take(span)["id"] == spoken.feedback.take(span)["id"]
    mute = {"do": "mute", "device": "a", "for": "1h"}
    assert spoken.feedback.take(mute, "k")["id"] == spoken.feedback.take(mute, "k")["id"]
    assert len(spoken.database.words()) == 3
    assert spoken.feedback.counts[first_group(spoken)] == {"fault": 1, "missed": 1, "mute": 1}


def first_group(pipeline: Pipeline) -> str:
    return next(iter(pipeline.engine.groups))


def test_last_word_on_an_alert_wins_and_undo_brings_the_one_before_back(spoken: Pipeline) -> None:
    """Pattern and precision follow whatever stands."""
    alert, group, device = first_alert(spoken), first_group(spoken), spoken.engine.devices["a"]
    seen = []
    for said in (
        {"do": "expected", "alert": alert},
        {"do": "fault", "alert": alert},
        {"do": "undo", "word": 2},
        {"do": "undo", "word": 1},
    ):
        spoken.feedback.take(said)
        seen.append((len(device.patterns), spoken.feedback.precision.get(group)))
    assert seen == [(1, 0.0), (0, 1.0), (1, 0.0), (0, None)]
    assert spoken.feedback.take({"do": "undo", "word": 1})["repeated"]


def test_alert_is_found_by_device_and_time(spoken: Pipeline) -> None:
    """Who has no id at hand names the device and a moment within the alert."""
    answer = spoken.feedback.take({"do": "fault", "device": "a", "time": 1000.0 + 215})
    assert answer["alert"] == first_alert(spoken)


def test_missed_brings_the_threshold_down_a_bounded_bit(spoken: Pipeline) -> None:
    """Each word lowers it, ten of them no further than half, and undo takes a step back."""
    play(spoken, readings_of("a", plant_rows(60), 2000.0))

    def threshold() -> float:
        spoken.feed([reading("a", threshold.time_s, {"f0": 20.0, "f1": 20.0, "f2": 20.0})])  # type: ignore[attr-defined]
        threshold.time_s += 1.0  # type: ignore[attr-defined]
        (scored,) = [e for e in spoken.advance() if hasattr(e, "threshold")]
        return float(np.sqrt(scored.threshold / (1 - scored.threshold)))

    threshold.time_s = 2100.0  # type: ignore[attr-defined]
    before = threshold()
    spoken.feedback.take({"do": "missed", "device": "a", "from": 1010, "to": 1020})
    once = threshold()
    for n in range(10):
        spoken.feedback.take({"do": "missed", "device": "a", "from": 1030 + n, "to": 1040 + n})
    assert once == pytest.approx(0.8 * before, rel=0.01)
    assert 0.25 * before < threshold() < 0.6 * once
    assert spoken.database.words()[-1].change.lowers == 1


@pytest.mark.parametrize(("verdict", "teaches"), [("expected", True), ("fault", False), ("missed", False)])
def test_round_and_enrolment_follow_the_verdict(spoken: Pipeline, verdict: str, *, teaches: bool) -> None:
    """Rows of a fault never teach, flagged or not; those that are expected do, whatever the alarm said."""
    said = {"do": verdict, "alert": first_alert(spoken)}
    if verdict == "missed":
        said = {"do": verdict, "device": "a", "from": 1000.0 + 201, "to": 1000.0 + 229}
    spoken.feedback.take(said)
    request = round_request(spoken)
    history = training_round._histories(request, QuietRound())["a"]
    inside = slice(205, 225)
    assert (history.normal[inside] == teaches).all()
    assert history.normal[:150].all()
    assert history.vouched is not None
    assert history.vouched[inside].all() == teaches


def round_request(pipeline: Pipeline) -> TrainRequest:
    group = next(iter(pipeline.engine.groups.values()))
    return TrainRequest(
        str(pipeline.database.path.parent), group.name, group.source, group.fields, ("a",), 5000, None, None,
        "gru", 8, 1, 0.0, 0, BUDGET, 60.0, 0, 0.0,
    )  # fmt: skip


BAD = {
    "no such verdict": ({"do": "nonsense"}, "unknown_command"),
    "no verdict": ({"alert": "x"}, "unknown_command"),
    "a verdict of another kind": ({"do": ["expected"]}, "unknown_command"),
    "no such alert": ({"do": "expected", "alert": "0123"}, "unknown_alert"),
    "an alert of another kind": ({"do": "fault", "alert": 7}, "unknown_alert"),
    "no alert then": ({"do": "fault", "device": "a", "time": 1000.0}, "unknown_alert"),
    "no such device": ({"do": "missed", "device": "z", "from": 1, "to": 2}, "unknown_device"),
    "no device": ({"do": "mute", "for": "1h"}, "unknown_device"),
    "a span of nothing": ({"do": "missed", "device": "a", "from": 5, "to": 5}, "bad_span"),
    "a span of years": ({"do": "missed", "device": "a", "from": 5, "to": 5e7}, "bad_span"),
    "no time": ({"do": "missed", "device": "a", "from": "soon", "to": 5}, "bad_span"),
    "a time without a zone": ({"do": "fault", "device": "a", "time": "2026-01-01T00:00:00"}, "bad_span"),
    "an endless time": ({"do": "fault", "device": "a", "time": float("inf")}, "bad_span"),
    "no duration": ({"do": "mute", "device": "a", "for": 60}, "bad_span"),
    "a key that is not of it": ({"do": "mute", "device": "a", "for": "1h", "alert": "x"}, "bad_fields"),
    "no such word": ({"do": "undo", "word": 9}, "unknown_word"),
    "a word of another kind": ({"do": "undo", "word": None}, "unknown_word"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_feedback_is_refused_with_a_reason_and_changes_nothing(spoken: Pipeline, name: str) -> None:
    """One sentence and one of the known reasons."""
    said, reason = BAD[name]
    with pytest.raises(FeedbackError) as refusal:
        spoken.feedback.take(said)
    assert refusal.value.reason == reason
    assert reason in REASONS
    assert str(refusal.value).endswith(".")
    assert spoken.database.words() == []


def test_mute_keeps_alerts_back_and_ends_by_itself(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What is decided meanwhile is kept and marked; an alert that was told before still ends."""
    rows = plant_rows(398)
    for begin, size in ((210, 60.0), (290, 60.0), (370, 600.0)):
        rows[begin : begin + 20, 0] += size
    clock = [1.7e9]
    with opened(tmp_path, UNTRAINED) as pipeline:
        pipeline.wall = lambda: clock[0]
        play(pipeline, readings_of("a", rows[:216]))
        assert told(pipeline) == ["opened"]
        pipeline.feedback.take({"do": "mute", "device": "a", "for": "1h"})
        play(pipeline, readings_of("a", rows[216:365], 1216.0))
        assert told(pipeline) == ["opened", "resolved"]
        clock[0] += 3601.0
        with caplog.at_level("INFO"):
            pipeline.feedback.end_mutes()
            pipeline.feedback.end_mutes()
        play(pipeline, readings_of("a", rows[365:], 1365.0))
        assert [record.message for record in caplog.records] == ["a is muted no more"]
        assert len(told(pipeline)) > 2
        kept = [msgspec.json.decode(row.payload).get("muted", False) for row in pipeline.database.alerts(9)]
        assert len(kept) >= 3
        assert any(kept)


def test_mute_goes_on_behind_a_restart(tmp_path: Path) -> None:
    """An alert that opened under a mute is not told its end by the run behind it."""
    rows = plant_rows(300)
    rows[200:230, 0] += 60.0
    with opened(tmp_path, UNTRAINED) as pipeline:
        play(pipeline, readings_of("a", rows[:150]))
        pipeline.feedback.take({"do": "mute", "device": "a", "for": "1h"})
        play(pipeline, readings_of("a", rows[150:215], 1150.0))
    with opened(tmp_path, UNTRAINED) as pipeline:
        play(pipeline, readings_of("a", rows[215:], 1215.0))
        assert pipeline.database.alerts(9)
        assert told(pipeline) == []


def told(pipeline: Pipeline) -> list[str]:
    """States of the alert events that were published."""
    return [msgspec.json.decode(row.payload)["state"] for row in pipeline.database.outbox(100)]


def test_feedback_by_command_is_taken_once_and_answered(spoken: Pipeline, tmp_path: Path) -> None:
    """By file or by MQTT it is the same word; what cannot be taken is refused with its reason."""
    queue = Commands(spoken, tmp_path, "gruard", Metrics(version="1", labelled_devices=1))
    alert = first_alert(spoken)
    names = [
        command_files.put(tmp_path, encode(said), float(n))
        for n, said in enumerate(
            [
                Expected(alert=alert),
                Expected(alert=alert),
                Missed(device="a", from_=1010.0, to=1020.0),
                Mute(device="a", for_="1h"),
                Undo(word=1),
                Fault(alert="no such alert"),
            ]
        )
    ]
    queue.look()
    queue.apply()
    answers = [command_files.reply(tmp_path, name, command_files.ANSWER) for name in names]
    assert [msgspec.json.decode(answer or "{}") for answer in answers] == [
        {"result": "done", "answer": f"feedback 1: expected of {alert}"},
        {"result": "done", "answer": f"feedback 1: expected of {alert}, as was said before"},
        {"result": "done", "answer": "feedback 2: missed of a"},
        {"result": "done", "answer": "feedback 3: mute of a"},
        {"result": "done", "answer": "feedback 4: undo of a"},
        {"result": "unknown_alert", "answer": 'There is no alert "no such alert".'},
    ]
    assert [word.verdict for word in spoken.database.words()] == ["expected", "missed", "mute", "undo"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["expected", "0123"], Expected(alert="0123")),
        (["fault", "0123"], Fault(alert="0123")),
        (["missed", "a", "--from", "1000", "--to", "2026-01-01T00:00:00Z"],
         Missed(device="a", from_=1000.0, to="2026-01-01T00:00:00Z")),
        (["mute", "a", "--for", "2h"], Mute(device="a", for_="2h")),
        (["--undo", "3"], Undo(word=3)),
    ],
)  # fmt: skip
def test_alerts_feedback_command_says_what_was_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    asked: list[str], said: Said,
) -> None:  # fmt: skip
    """Without a daemon the word waits as a file for its next start."""
    monkeypatch.setattr(cli_commands, "ANSWER_S", 0.1)
    file = tmp_path / "gruard.toml"
    file.write_text(f'version = 1\n[state]\ndirectory = "{tmp_path}"\n')
    assert main(["alerts", "feedback", *asked, "-c", str(file)]) == 0
    assert "waits in" in capsys.readouterr().out
    (left,) = (tmp_path / command_files.FOLDER).glob("*.json")
    assert decode(left.read_bytes()) == said


@pytest.mark.parametrize(
    ("asked", "what"),
    [
        ([], "expected|fault ALERT"),
        (["expected"], "expected|fault ALERT"),
        (["missed", "a", "--from", "1"], "missed needs --to"),
        (["mute", "a"], "mute needs --for"),
    ],
)
def test_alerts_feedback_asked_wrongly_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], asked: list[str], what: str
) -> None:
    """One sentence, no traceback, and nothing is left behind."""
    file = tmp_path / "gruard.toml"
    file.write_text(f'version = 1\n[state]\ndirectory = "{tmp_path}"\n')
    assert main(["alerts", "feedback", *asked, "-c", str(file)]) == 70
    assert what in capsys.readouterr().err
