"""Engine, database and training together, without a broker."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support_engine import BUDGET, SOURCE, plant_rows, reading, readings_of

from gruard.daemon.core.engine import BASELINE, Engine, EngineOptions
from gruard.daemon.core.events import Alert, Event, Scored
from gruard.daemon.edges.database import open_database
from gruard.daemon.edges.trainer import MODELS
from gruard.daemon.pipeline import Pipeline, TrainingSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from gruard.daemon.edges.trainer import TrainOutcome
    from gruard.daemon.records import Reading

QUICK = TrainingSettings(hidden=8, warmup_readings=200, every_s=3600.0, max_seconds=60.0)


@contextmanager
def opened(folder: Path, training: TrainingSettings = QUICK, *, hold: bool = True) -> Iterator[Pipeline]:
    """A pipeline over a state directory."""
    folder.mkdir(exist_ok=True)
    with open_database(folder, now_s=0.0) as database:
        pipeline = Pipeline(
            Engine(EngineOptions((SOURCE,), BUDGET)),
            database,
            folder,
            training,
            base="gruard",
            wall=lambda: 1_700_000_000.0,
            monotonic=time.monotonic,
            always_hold=hold,
        )
        pipeline.recover()
        try:
            yield pipeline
        finally:
            pipeline.rounds.trainer.stop()


def play(pipeline: Pipeline, readings: Sequence[Reading]) -> list[Event]:
    pipeline.feed(readings)
    events: list[Event] = []
    while pipeline.backlog:
        events += pipeline.advance()
        if pipeline.holding and pipeline.poll_training() is None:
            time.sleep(0.02)
    pipeline.commit()
    return events


def finish_round(pipeline: Pipeline) -> TrainOutcome:
    while (outcome := pipeline.poll_training()) is None:
        time.sleep(0.02)
    return outcome


def scores(events: Sequence[Event]) -> list[float]:
    return [e.score for e in events if isinstance(e, Scored)]


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


def faulty_readings() -> list[Reading]:
    rows = plant_rows(300)
    rows[270:290, 0] += 25.0
    return readings_of("a", rows)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[Event]:
    with opened(tmp_path_factory.mktemp("state") / "whole") as pipeline:
        return play(pipeline, faulty_readings())


@pytest.mark.parametrize(
    ("stop_at", "checkpoint"), [(150, True), (199, False), (201, False), (260, True), (280, False)]
)
def test_recover_equals_an_uninterrupted_run(
    tmp_path: Path, uninterrupted: list[Event], stop_at: int, *, checkpoint: bool
) -> None:
    """P3: with or without a last checkpoint, before or after a swap, the run goes on with equal scores."""
    readings = faulty_readings()
    with opened(tmp_path) as pipeline:
        first = play(pipeline, readings[:stop_at])
        if checkpoint:
            pipeline.checkpoint()
    with opened(tmp_path) as pipeline:
        second = play(pipeline, readings[stop_at:])
        assert pipeline.database.count_readings() == 300
    np.testing.assert_allclose(scores(first + second), scores(uninterrupted), atol=1e-5, equal_nan=True)
    told = [(a.id, a.state) for a in first + second if isinstance(a, Alert)]
    assert told == [(a.id, a.state) for a in uninterrupted if isinstance(a, Alert)]
    assert told


def test_recover_repeats_changes_of_fields(tmp_path: Path) -> None:
    """A field adopted, or a whole device renamed, since the last checkpoint is so after recovery too."""
    rows = plant_rows(500)
    old = readings_of("a", rows[:60, :1])
    wider = [
        reading("a", 1060.0 + t, {"f0": float(row[0]), "late": float(row[1])})
        for t, row in enumerate(rows[60:110])
    ]
    other = [reading("b", 1000.0 + t, {"x": float(row[0])}) for t, row in enumerate(rows[:60])]
    renamed = [reading("b", 1060.0 + t, {"z": float(row[0])}) for t, row in enumerate(rows[60:400])]
    off = TrainingSettings(every_s=None)
    with opened(tmp_path, off) as pipeline:
        play(pipeline, [*old, *other])
        pipeline.checkpoint()
        play(pipeline, [*wider, *renamed])
        before = {name: (d.fields, d.count) for name, d in pipeline.engine.devices.items()}
    with opened(tmp_path, off) as pipeline:
        assert {name: (d.fields, d.count) for name, d in pipeline.engine.devices.items()} == before
    assert before["a"] == (("f0", "late"), 110)
    assert before["b"][0] == ("z",)


def test_recover_uncommitted_readings_are_not_there(tmp_path: Path) -> None:
    """What was never committed was never acknowledged: it comes again and counts once."""
    readings = readings_of("a", plant_rows(80))
    with opened(tmp_path) as pipeline:
        play(pipeline, readings[:60])
        pipeline.feed(readings[60:])
        while pipeline.backlog:
            pipeline.advance()
        pipeline.database.rollback()
    with opened(tmp_path) as pipeline:
        assert pipeline.engine.devices["a"].count == 60
        play(pipeline, readings[60:])
        assert pipeline.engine.devices["a"].count == 80


def test_recover_damaged_weights_never_go_live(tmp_path: Path) -> None:
    """P8: a flipped byte in the weights means the baseline takes over, and start-up goes on."""
    with opened(tmp_path) as pipeline:
        play(pipeline, readings_of("a", plant_rows(220)))
        (live,) = pipeline.database.live_models()
        pipeline.checkpoint()
    weights = tmp_path / MODELS / f"{live.id}.safetensors"
    content = bytearray(weights.read_bytes())
    content[-20] ^= 0x40
    weights.write_bytes(content)
    with opened(tmp_path, TrainingSettings(every_s=None)) as pipeline:
        assert pipeline.models == {}
        assert {g.model for g in pipeline.engine.groups.values()} == {BASELINE}
        events = play(pipeline, readings_of("a", plant_rows(240)[220:], 1220.0))
        assert {e.phase for e in events if isinstance(e, Scored)} == {"learning"}
        assert np.isfinite(scores(events)).all()


def test_recover_leftovers_of_a_killed_round_are_removed(tmp_path: Path) -> None:
    """Half-written weights do not pile up."""
    (tmp_path / MODELS).mkdir(parents=True)
    leftover = tmp_path / MODELS / "abc.safetensors.tmp"
    leftover.write_bytes(b"half")
    with opened(tmp_path):
        assert not leftover.exists()


def test_recover_source_no_longer_configured_is_left_alone(tmp_path: Path) -> None:
    """Devices of a removed source keep their rows and disturb nobody."""
    with opened(tmp_path) as pipeline:
        play(pipeline, readings_of("a", plant_rows(60)))
        pipeline.checkpoint()
    with open_database(tmp_path, now_s=0.0) as database:
        other = Engine(EngineOptions((), BUDGET))
        pipeline = Pipeline(
            other, database, tmp_path, QUICK, base="g", wall=lambda: 0.0, monotonic=lambda: 0.0
        )
        assert pipeline.recover() == 0
        assert other.devices == {}
        assert database.count_readings() == 60


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
