"""The start: what was durable is there again, once, and goes on as if nothing had happened."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support_engine import BUDGET, SOURCE, plant_rows, reading, readings_of
from support_pipeline import QUICK, UNTRAINED, opened, pipeline_over, play, scores

from gruard.daemon.core.batcher import MOST_READINGS
from gruard.daemon.core.engine import BASELINE, Engine, EngineOptions, open_state
from gruard.daemon.core.events import Alert, Event, Scored
from gruard.daemon.core.flags import flags_of
from gruard.daemon.edges import failpoints
from gruard.daemon.edges.database import open_database
from gruard.daemon.edges.rows import StoredReading
from gruard.daemon.edges.trainer import MODELS
from gruard.daemon.pipeline import Pipeline
from gruard.daemon.records import Reading
from gruard.daemon.recovery import reading_of
from gruard.models.drift import Drift

if TYPE_CHECKING:
    from pathlib import Path

    from gruard.daemon.edges.database import Database
    from gruard.daemon.edges.rows import History


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
    with opened(tmp_path, UNTRAINED) as pipeline:
        play(pipeline, [*old, *other])
        pipeline.checkpoint()
        play(pipeline, [*wider, *renamed])
        before = {name: (d.fields, d.count) for name, d in pipeline.engine.devices.items()}
    with opened(tmp_path, UNTRAINED) as pipeline:
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
    with opened(tmp_path, UNTRAINED) as pipeline:
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


def test_recover_passes_its_failpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start may be killed before it begins, after each batch of the journal, and at its end."""
    with opened(tmp_path, UNTRAINED) as pipeline:
        play(pipeline, readings_of("a", plant_rows(3)))
    reached: list[str] = []
    monkeypatch.setattr(failpoints, "reach", reached.append)
    with opened(tmp_path, UNTRAINED):
        assert reached == ["recover.before", "recover.replayed", "recover.after"]


def test_recover_counts_what_it_replays_and_is_heard_at_each_batch(tmp_path: Path) -> None:
    """Long recovery is no hang: the heart beats at each batch of rows, and every row counts."""
    names = [f"pump-{number}" for number in range(MOST_READINGS)]
    wave = [reading(name, 1000.0 + turn, {"f0": 1.0}) for turn in range(2) for name in names]
    last = reading("pump-0", 2000.0, {"f0": 1.0})
    with opened(tmp_path, UNTRAINED, most_devices=MOST_READINGS) as pipeline:
        play(pipeline, [*wave, last])
    beats: list[None] = []
    with open_database(tmp_path, now_s=0.0) as database:
        engine = Engine(EngineOptions((SOURCE,), BUDGET))
        pipeline = pipeline_over(engine, database, tmp_path, heartbeat=lambda: beats.append(None))
        assert pipeline.recover() == 2 * MOST_READINGS + 1
    assert len(beats) == 3, "no device has readings enough to be enrolled"
    assert engine.devices["pump-0"].count == 3


class Asked:
    """A database's `history`, which also keeps for which device, and up to which LSN, it was asked."""

    def __init__(self, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, int | None]] = []
        self._history = database.history
        monkeypatch.setattr(database, "history", self._call)

    def _call(
        self, device: str, fields: tuple[str, ...], limit: int, before_lsn: int | None = None
    ) -> History:
        self.calls.append((device, before_lsn))
        return self._history(device, fields, limit, before_lsn)


def test_recover_device_behind_a_damaged_row_alone_goes_back(tmp_path: Path) -> None:
    """Each device is replayed from behind its own checkpoint: none counts a reading twice or misses one."""
    with opened(tmp_path, UNTRAINED) as pipeline:
        for start in (0, 30, 60):
            rows = plant_rows(90)[start : start + 30]
            both = zip(
                readings_of("a", rows, 1000.0 + start), readings_of("b", rows, 1000.0 + start), strict=True
            )
            play(pipeline, [each for pair in both for each in pair])
            if start < 60:
                pipeline.checkpoint()
        before = memories(pipeline.engine)
        pipeline.database._write("UPDATE checkpoints_1 SET state = x'00' WHERE device = 1")
        pipeline.database.commit()
    with opened(tmp_path, UNTRAINED) as pipeline:
        assert {row.device: row.lsn for row in pipeline.database.checkpoints()} == {"a": 60, "b": 120}
        assert_equal_memories(memories(pipeline.engine), before)
    with open_database(tmp_path, now_s=0.0) as database:
        assert (
            pipeline_over(Engine(EngineOptions((SOURCE,), BUDGET)), database, tmp_path).recover() == 60 + 30
        )


def memories(engine: Engine) -> dict[str, np.ndarray]:
    """All numbers that a checkpoint keeps of each device, and how many readings they come from."""
    found = {}
    for name, device in engine.devices.items():
        group = engine._group_of[name]
        rows = [matrix[group.devices[name]] for _, matrix in group.scorer._arena._matrices()]
        found[name] = np.concatenate([[device.count, device.last_s], *rows]).astype(np.float64)
    return found


def assert_equal_memories(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, memory in found.items():
        np.testing.assert_allclose(memory, wanted[name], atol=1e-5, rtol=1e-5)


def test_recover_row_of_another_layout_is_enrolled_on_what_was_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A state that cannot be loaded is made again from the readings up to its checkpoint, then replayed."""
    with opened(tmp_path, UNTRAINED) as pipeline:
        play(pipeline, readings_of("a", plant_rows(60)))
        pipeline.checkpoint()
        (row,) = pipeline.database.checkpoints()
        older = replace(row, layout="of a release before")
        for generation in (0, 1):
            pipeline.database.save_checkpoints([older], generation=generation, lsn=60)
        play(pipeline, readings_of("a", plant_rows(70)[60:], 1060.0))
    with open_database(tmp_path, now_s=0.0) as database:
        asked = Asked(database, monkeypatch)
        engine = Engine(EngineOptions((SOURCE,), BUDGET))
        assert pipeline_over(engine, database, tmp_path).recover() == 10
        assert asked.calls == [("a", 61)]
        assert engine.devices["a"].count == 70
        known, _ = open_state(row.state)
        assert (known.count, known.phase) == (60, "learning")
        assert engine.devices["a"].phase == "learning"


@pytest.mark.parametrize(
    ("names", "count", "enrolled_at"),
    [(("f0", "late"), 110, [10, 50, 70]), (("other",), 400, [10, 41, 50])],
    ids=["a field more", "renamed"],
)
def test_recover_enrols_where_the_run_did(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    names: tuple[str, ...],
    count: int,
    enrolled_at: list[int],
) -> None:
    """A device that changed its fields has the memory it had: fitted at the same reading on the same rows."""
    rows = plant_rows(count)
    before = [reading("a", 1000.0 + t, {"f0": float(row[0])}) for t, row in enumerate(rows[:40])]
    after = [
        reading("a", 1040.0 + t, dict(zip(names, map(float, row), strict=False)))
        for t, row in enumerate(rows[40:])
    ]
    with opened(tmp_path, UNTRAINED) as pipeline:
        asked = Asked(pipeline.database, monkeypatch)
        newest: list[int] = []  # LSN of the newest reading at each enrolment of the run
        for each in [*before, *after]:
            calls = len(asked.calls)
            play(pipeline, [each])
            newest += [pipeline.database.next_lsn - 1] * (len(asked.calls) - calls)
        uninterrupted = memories(pipeline.engine)
        known = pipeline.engine.devices["a"]
    assert newest == enrolled_at
    with open_database(tmp_path, now_s=0.0) as database:
        again = Asked(database, monkeypatch)
        engine = Engine(EngineOptions((SOURCE,), BUDGET))
        pipeline_over(engine, database, tmp_path).recover()
        assert_equal_memories(memories(engine), uninterrupted)
        found = engine.devices["a"]
        assert (found.fields, found.count, found.phase) == (known.fields, known.count, known.phase)
        assert found.track == known.track
    assert again.calls == [("a", lsn + 1) for lsn in newest]


def test_reading_of_a_row_is_what_was_let_in() -> None:
    """Missing fields are missing again, not NaN; the flags say whether it came late, and its number."""
    flags = flags_of(in_alarm=True, replayed=True, sequence=7)
    stored = StoredReading(5, "a", "plant", ("f0", "f1"), 10.0, 12.0, np.array([1.5, np.nan]), 0.5, flags)
    assert reading_of(stored) == Reading(
        "a", "plant", 10.0, 12.0, {"f0": 1.5}, growing=True, sequence=7, replayed=True, admitted=True
    )
    fresh = reading_of(replace(stored, flags=0))
    assert (fresh.sequence, fresh.replayed) == (None, False)


def shifted_for_good() -> list[Reading]:
    rows = plant_rows(2300)
    rows[1100:] += 30.0
    return readings_of("a", rows)


@pytest.mark.parametrize(("stop_at", "checkpoint"), [(2050, True), (2099, False), (2150, False)])
def test_recover_around_a_new_normal_equals_an_uninterrupted_run(
    tmp_path: Path, stop_at: int, *, checkpoint: bool
) -> None:
    """What a device was fitted on when its alarm became its normal is what it is fitted on again."""
    readings = shifted_for_good()
    with opened(tmp_path / "whole", UNTRAINED) as pipeline:
        whole = play(pipeline, readings)
        kept = pipeline.engine.devices["a"]
    assert [e.time_s for e in whole if isinstance(e, Alert) and e.kind == "new_normal"] == [kept.normal_to_s]
    with opened(tmp_path / "cut", UNTRAINED) as pipeline:
        first = play(pipeline, readings[:stop_at])
        if checkpoint:
            pipeline.checkpoint()
    with opened(tmp_path / "cut", UNTRAINED) as pipeline:
        second = play(pipeline, readings[stop_at:])
        again = pipeline.engine.devices["a"]
    assert (again.normal_from_s, again.normal_to_s) == (kept.normal_from_s, kept.normal_to_s)
    np.testing.assert_allclose(scores(first + second), scores(whole), atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("checkpoint", [True, False])
def test_recover_knows_an_open_alert_of_drift_again(tmp_path: Path, *, checkpoint: bool) -> None:
    """No reading tells of it, so the journal cannot: the alert itself does, and ends under its id."""
    drift = Drift("a", "f1", "level", 31.0, 18.0, 22.0, 2.0)
    with opened(tmp_path, UNTRAINED) as pipeline:
        play(pipeline, readings_of("a", plant_rows(60)))
        if checkpoint:
            pipeline.checkpoint()
        pipeline.watched(["a"], [drift])
        (told,) = pipeline.advance()
        pipeline.commit()
    assert isinstance(told, Alert)
    with opened(tmp_path, UNTRAINED) as pipeline:
        assert pipeline.engine.devices["a"].drift_id == told.id
        pipeline.watched(["a"], [])
        (ended,) = pipeline.advance()
        pipeline.commit()
        assert [(row.id, row.state) for row in pipeline.database.alerts(9)] == [(told.id, "resolved")]
        assert len(pipeline.database.outbox(9)) == 2
    assert isinstance(ended, Alert)
    assert (ended.id, ended.opened_s, ended.state) == (told.id, told.opened_s, "resolved")
    with opened(tmp_path, UNTRAINED) as pipeline:
        assert pipeline.engine.devices["a"].drift_id == ""
