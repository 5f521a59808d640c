"""Engine, database and training together, without a broker."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from fuzz.models import sealed, sound_tensors
from support_engine import plant_rows, reading, readings_of
from support_pipeline import QUICK, UNTRAINED, finish_round, opened, play, scores

from gruard.daemon.core.events import Alert, Event, Removed, Scored
from gruard.daemon.core.payloads import ModelNote
from gruard.daemon.core.storm import Storm
from gruard.daemon.edges import failpoints
from gruard.daemon.edges.trainer import MODELS
from gruard.daemon.pipeline import Pipeline, TrainingSettings
from gruard.daemon.records import Delivery

if TYPE_CHECKING:
    from pathlib import Path


def test_advance_first_model_takes_charge_at_a_fixed_reading(tmp_path: Path) -> None:
    """While it holds, the pipeline scores nothing; the model is live from the next reading on."""
    with opened(tmp_path) as pipeline:
        events = [e for e in play(pipeline, readings_of("a", plant_rows(260))) if isinstance(e, Scored)]
    phases = [e.phase for e in events]
    assert phases.index("ready") == QUICK.warmup_readings
    assert set(phases[QUICK.warmup_readings :]) == {"ready"}


def test_advance_real_time_feed_does_not_hold(tmp_path: Path) -> None:
    """Readings that arrive as fast as they happen never wait for training."""
    with opened(tmp_path, hold=False) as pipeline:
        events = play(pipeline, readings_of("a", plant_rows(230)))
        assert len(scores(events)) == 230
        assert not pipeline.holding
        assert finish_round(pipeline).result == "promoted"


def test_advance_backlog_faster_than_real_time_holds(tmp_path: Path) -> None:
    """Hours of event time within seconds of arrival are a backlog: it can wait for the model."""
    backlog = [replace(r, received_s=5000.0) for r in readings_of("a", plant_rows(230))]
    with opened(tmp_path, hold=False) as pipeline:
        events = [e for e in play(pipeline, backlog) if isinstance(e, Scored)]
    assert events[QUICK.warmup_readings].phase == "ready"


def test_poll_training_promotion_is_recorded_and_survives_a_restart(tmp_path: Path) -> None:
    """The registry knows the live model, and a new process scores with it."""
    with opened(tmp_path) as pipeline:
        play(pipeline, readings_of("a", plant_rows(220)))
        (live,) = pipeline.database.live_models()
        assert (tmp_path / MODELS / f"{live.id}.safetensors").exists()
        assert json.loads(live.manifest)["id"] == live.id
        pipeline.checkpoint()
    with opened(tmp_path) as pipeline:
        assert pipeline.models[live.group].id == live.id
        events = play(pipeline, readings_of("a", plant_rows(230)[220:], 1220.0))
        assert {e.phase for e in events if isinstance(e, Scored)} == {"ready"}


def test_poll_training_later_round_keeps_scoring_quiet(tmp_path: Path) -> None:
    """A second round, due by time, swaps weights under a healthy device without an alert."""
    hourly = TrainingSettings(hidden=8, warmup_readings=200, every_s=0.01, max_seconds=60.0)
    with opened(tmp_path, hourly) as pipeline:
        events = play(pipeline, readings_of("a", plant_rows(420)))
        assert finish_round(pipeline).result in {"promoted", "rejected"}
        rounds = pipeline.database.models()
        events += play(pipeline, readings_of("a", plant_rows(520)[420:], 1420.0))
    assert sum(row.status == "live" for row in rounds) == 1
    assert not [e for e in events if isinstance(e, Alert)]


def test_journal_marks_rows_in_alarm(tmp_path: Path) -> None:
    """Rows that the model judged abnormal are stored as such and never teach; the baseline's alarms do."""
    rows = plant_rows(400)
    rows[360:390] += 30.0
    for folder, training, marked in (("model", QUICK, True), ("base", UNTRAINED, False)):
        with opened(tmp_path / folder, training) as pipeline:
            events = play(pipeline, readings_of("a", rows))
            flags = pipeline.database.history("a", ("f0", "f1", "f2"), 400).flags
        assert any(isinstance(e, Alert) for e in events)
        assert flags[:355].mean() < 0.02  # a score may touch the threshold for a moment
        assert flags[362:390].any() == marked
        assert flags[362:390].all() == marked


def test_prune_keeps_what_recovery_needs(tmp_path: Path) -> None:
    """Old history goes, rows behind the last checkpoint stay."""
    with opened(tmp_path, UNTRAINED) as pipeline:
        play(pipeline, readings_of("a", plant_rows(300)))
        for _ in range(5):
            pipeline.prune(100)
        assert pipeline.database.count_readings() == 300, "nothing is checkpointed yet"
        pipeline.checkpoint()
        pipeline.prune(100)
        assert pipeline.database.count_readings() == 300, "one generation of checkpoints is not enough"
        pipeline.checkpoint()
        for _ in range(20):
            pipeline.prune(100)
        pipeline.database.rollback()  # what was dropped is dropped for good
        kept = len(pipeline.database.history("a", ("f0", "f1", "f2"), 1000).lsn)
    assert 100 <= kept < 300


def raised(pipeline: Pipeline, device: str) -> list[Event]:
    """A device that has learned, then breaks."""
    rows = plant_rows(420)
    rows[405:] += 30.0
    return play(pipeline, readings_of(device, rows))


def test_tell_storm_keeps_one_alert_for_those_held_back(tmp_path: Path) -> None:
    """What a storm holds back is decided and kept, and published is one alert that speaks for all of it."""
    with opened(tmp_path, UNTRAINED) as pipeline:
        pipeline.tell_storm()
        assert pipeline.pending.empty
        pipeline.storm = Storm("gruard", 1.0)
        for device in ("a", "b"):
            raised(pipeline, device)
        before = [row.topic for row in pipeline.database.outbox(10)]
        pipeline.tell_storm()
        pipeline.commit()
        (summary,) = pipeline.database.outbox(10)[len(before) :]
        told = json.loads(summary.payload)
        assert {row.device for row in pipeline.database.alerts(10)} == {"a", "b", "gruard"}
    assert set(before) == {"gruard/alerts/a"}
    assert summary.topic == "gruard/alerts/gruard"
    assert (told["state"], told["device"], told["id"]) == ("opened", "gruard", summary.key)


@pytest.mark.parametrize(("most", "told"), [(-1, 0), (0, 0), (1, 1)])
def test_decide_full_outbox_takes_no_more(tmp_path: Path, most: int, told: int) -> None:
    """With no room in the outbox an alert is kept for whoever asks, and not published."""
    with opened(tmp_path, UNTRAINED, most_outbox=most) as pipeline:
        raised(pipeline, "a")
        assert len(pipeline.database.alerts(10)) == 1
        assert [row.topic for row in pipeline.database.outbox(10)] == ["gruard/alerts/a"] * told
        assert pipeline.storm.suppressed == (not told)


def test_decide_keeps_what_is_told(tmp_path: Path) -> None:
    """The row of an alert and its message say the same; it has an end only when it is resolved."""
    rows = plant_rows(560)
    rows[405:415] += 30.0
    with opened(tmp_path, UNTRAINED) as pipeline:
        events = [e for e in play(pipeline, readings_of("a", rows)) if isinstance(e, Alert)]
        (row,) = pipeline.database.alerts(10)
        told = [json.loads(entry.payload) for entry in pipeline.database.outbox(10)]
    assert [one["state"] for one in told] == [event.state for event in events]
    first, last = events[0], events[-1]
    assert last.state == "resolved"
    assert (row.id, row.device, row.source, row.state) == (first.id, "a", "plant", "resolved")
    assert (row.opened_s, row.updated_s, row.resolved_s) == (first.opened_s, last.time_s, last.time_s)
    assert (row.severity, row.score, row.threshold) == (last.severity, last.score, last.threshold)
    assert json.loads(row.payload) == told[-1]


def test_decide_open_alert_has_no_end(tmp_path: Path) -> None:
    """Neither an alert that has just been opened nor one that was updated has an end."""
    rows = plant_rows(490)
    rows[405:] += 30.0
    with opened(tmp_path, UNTRAINED) as pipeline:
        for part, state in ((slice(0, 420), "opened"), (slice(420, 490), "updated")):
            play(pipeline, readings_of("a", rows[part], 1000.0 + part.start))
            (row,) = pipeline.database.alerts(10)
            assert (row.state, row.resolved_s) == (state, None)


def test_advance_device_that_made_room_is_forgotten(tmp_path: Path) -> None:
    """A device that gives up its place leaves nothing in the database, with the next commit."""
    with opened(tmp_path, UNTRAINED, most_devices=1) as pipeline:
        play(pipeline, [reading("idle", 1000.0, {"f0": 1.0})])
        later = 1000.0 + 3600.0  # and it never became a device
        events = play(pipeline, [reading("new", later, {"f0": 1.0})])
        assert [e.device for e in events if isinstance(e, Removed)] == ["idle"]
        assert [row.device for row in pipeline.database.devices()] == ["new"]


def test_feed_queue_is_shown_as_it_is(tmp_path: Path) -> None:
    """How much waits, who is next, and that nothing is left when all of it is scored."""
    with opened(tmp_path, UNTRAINED) as pipeline:
        assert (pipeline.backlog, pipeline.next_devices) == (0, [])
        pipeline.feed([reading(name, 1000.0 + n, {"f0": 1.0}) for n, name in enumerate("abaa")])
        assert (pipeline.backlog, pipeline.next_devices) == (4, ["a", "b"])
        assert [e.reading.device for e in pipeline.advance() if isinstance(e, Scored)] == ["a", "b"]
        assert (pipeline.backlog, pipeline.next_devices) == (2, ["a"])
        pipeline.advance()
        pipeline.advance()
        assert (pipeline.backlog, pipeline.next_devices, pipeline.advance()) == (0, [], [])


def test_took_message_is_noted_with_what_waits(tmp_path: Path) -> None:
    """A message half of whose readings are scored at the commit is noted with the other half."""
    pair = [reading("a", 1000.0 + n, {"f0": 1.0}) for n in range(2)]
    with opened(tmp_path, UNTRAINED) as pipeline:
        pipeline.feed(pair)
        pipeline.took(Delivery(5, 1, b"12345678"), pair)
        pipeline.advance()
        pipeline.commit()
        assert list(pipeline.database.deliveries()) == [Delivery(5, 1, b"12345678", (1,))]
        pipeline.advance()
        pipeline.commit()
        assert list(pipeline.database.deliveries()) == [Delivery(5, 1, b"12345678")]


def test_adopt_model_is_in_charge_and_recorded_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model put in charge by hand is live, named in alerts, and in the registry with both checkpoints."""
    reached: list[str] = []
    model = sealed(sound_tensors())
    with opened(tmp_path, UNTRAINED) as pipeline:
        play(pipeline, readings_of("a", plant_rows(60, fields=2)))
        monkeypatch.setattr(failpoints, "reach", reached.append)
        pipeline.checkpoint()
        assert [row.model for row in pipeline.database.checkpoints()] == [None], "the baseline has no id"
        reached.clear()
        pipeline.adopt(model, "by hand")
        assert [row.model for row in pipeline.database.checkpoints()] == [model.manifest.id]
        (live,) = pipeline.database.live_models()
        assert (live.id, live.reason) == (model.manifest.id, "by hand")
        assert pipeline.models[live.group].id == live.id
        assert {group.model for group in pipeline.engine.groups.values()} == {live.id}
        assert pipeline.database.keep_from_lsn() == 61, "both generations stand at the switch"
        assert pipeline.note_of(live.id, live.group) == pipeline.models[live.group]
        assert pipeline.note_of("another", live.group) == ModelNote("another")
    switch = [name for name in reached if name.startswith(("model", "commit", "checkpoint"))]
    saved = ["checkpoint.after", "checkpoint.after"]
    assert switch == ["model.before", "model.after", *saved, "commit.before", "commit.after"]


def test_pipeline_passes_its_failpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring, a checkpoint and pruning may each be killed before and after they are durable."""
    with opened(tmp_path, UNTRAINED) as pipeline:
        pipeline.feed([reading("a", 1000.0, {"f0": 1.0})])
        reached: list[str] = []
        monkeypatch.setattr(failpoints, "reach", reached.append)
        pipeline.advance()
        pipeline.checkpoint()
        pipeline.prune(100)
    commit = ["journal.before", "journal.after", "checkpoint.after", "commit.before", "commit.after"]
    assert reached == ["score.after", "checkpoint.before", *commit, "prune.before", "prune.after"]


def test_settle_enrols_on_readings_that_are_not_committed_yet(tmp_path: Path) -> None:
    """A device that came with one burst is fitted on all of it, and scored from its eleventh reading on."""
    with opened(tmp_path, UNTRAINED) as pipeline:
        pipeline.feed(readings_of("a", plant_rows(12)))
        events = [event for _ in range(12) for event in pipeline.advance()]
        assert pipeline.database.next_lsn == 11, "ten are written, and none is durable"
    assert [math.isfinite(score) for score in scores(events)] == [False] * 10 + [True] * 2


def test_prune_drops_in_step_with_what_comes(tmp_path: Path) -> None:
    """One turn of housekeeping moves two thousand rows, and two more for each reading since the last."""
    with opened(tmp_path, UNTRAINED) as pipeline:
        asked: list[int] = []
        pipeline.database.prune = lambda *limits, **_: asked.append(limits[2]) or 0  # type: ignore[assignment, func-returns-value, method-assign]
        pipeline.prune(100)
        pipeline.feed(readings_of("a", plant_rows(5)))
        while pipeline.backlog:
            pipeline.advance()
        pipeline.prune(100)
        pipeline.prune(100)
    assert asked == [2000, 2010, 2000]
