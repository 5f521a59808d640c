"""A pipeline over a state directory, and readings through it."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from support_engine import BUDGET, SOURCE

from gruard.daemon.core.engine import Engine, EngineOptions
from gruard.daemon.core.events import Event, Scored
from gruard.daemon.edges.database import open_database
from gruard.daemon.pipeline import Pipeline, TrainingSettings
from gruard.daemon.round_conduct import Conduct

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from gruard.daemon.edges.database import Database
    from gruard.daemon.edges.trainer import TrainOutcome
    from gruard.daemon.records import Reading

QUICK = TrainingSettings(hidden=8, warmup_readings=200, every_s=3600.0, max_seconds=60.0, nice=10)
UNTRAINED = TrainingSettings(every_s=None)


class QuietRound(Conduct):
    """A round in this process: it hears nothing."""

    def __init__(self) -> None:
        self._waited_s = 0.0

    def tell(self, stage: str, done: float) -> None:
        pass

    @contextmanager
    def holding(self) -> Iterator[None]:
        yield


def pipeline_over(
    engine: Engine,
    database: Database,
    folder: Path,
    training: TrainingSettings = UNTRAINED,
    *,
    hold: bool = True,
    most_outbox: int = 1000,
    heartbeat: Callable[[], None] = lambda: None,
) -> Pipeline:
    return Pipeline(
        engine,
        database,
        folder,
        training,
        base="gruard",
        wall=lambda: 1_700_000_000.0,
        monotonic=time.monotonic,
        always_hold=hold,
        most_outbox=most_outbox,
        heartbeat=heartbeat,
    )


@contextmanager
def opened(
    folder: Path,
    training: TrainingSettings = QUICK,
    *,
    hold: bool = True,
    most_devices: int = 100,
    most_outbox: int = 1000,
) -> Iterator[Pipeline]:
    """A pipeline over a state directory, recovered."""
    folder.mkdir(exist_ok=True)
    with open_database(folder, now_s=0.0) as database:
        engine = Engine(EngineOptions((SOURCE,), BUDGET, most_devices=most_devices))
        pipeline = pipeline_over(engine, database, folder, training, hold=hold, most_outbox=most_outbox)
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
