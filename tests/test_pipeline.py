"""Engine, database and training together, without a broker."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

from support_engine import plant_rows, readings_of
from support_pipeline import QUICK, finish_round, opened, play, scores

from gruard.daemon.core.events import Alert, Scored
from gruard.daemon.edges.trainer import MODELS
from gruard.daemon.pipeline import TrainingSettings

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
    for folder, training, marked in (("model", QUICK, True), ("base", TrainingSettings(every_s=None), False)):
        with opened(tmp_path / folder, training) as pipeline:
            events = play(pipeline, readings_of("a", rows))
            flags = pipeline.database.history("a", ("f0", "f1", "f2"), 400).flags
        assert any(isinstance(e, Alert) for e in events)
        assert flags[:355].mean() < 0.02  # a score may touch the threshold for a moment
        assert flags[362:390].any() == marked
        assert flags[362:390].all() == marked


def test_prune_keeps_what_recovery_needs(tmp_path: Path) -> None:
    """Old history goes, rows behind the last checkpoint stay."""
    with opened(tmp_path, TrainingSettings(every_s=None)) as pipeline:
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
        kept = len(pipeline.database.history("a", ("f0", "f1", "f2"), 1000).lsn)
    assert 100 <= kept < 300
