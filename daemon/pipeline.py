"""Readings through engine and database: what `gruard run` and `gruard replay` share.

    feed(readings) -> waves;   advance(): score one wave; what came of it is pending
    settle()                   enrol the devices that are due, start a training round that is due
    commit()                   makes what is pending durable together; only then may messages be acknowledged

A StateError out of any call means that the disk refuses. Nothing is lost by it: the same call, or `commit`,
may be made again as often as it takes, and `advance` goes no further before. `daemon/rounds.py` has the
training, `daemon/recovery.py` the start.
"""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import TYPE_CHECKING

from gruard.daemon import recovery
from gruard.daemon.core.batcher import waves
from gruard.daemon.core.engine import BASELINE
from gruard.daemon.core.events import Alert, EnrolDue, Event, Removed, Scored
from gruard.daemon.core.payloads import ModelNote, alert_payload
from gruard.daemon.core.storm import Storm
from gruard.daemon.edges import failpoints
from gruard.daemon.edges.rows import AlertRow, Checkpoint
from gruard.daemon.enrolment import enrol
from gruard.daemon.feedback import Feedback
from gruard.daemon.pending import Pending, Told
from gruard.daemon.rounds import Rounds, TrainingSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    from gruard.daemon.core.engine import Engine
    from gruard.daemon.edges.database import Database
    from gruard.daemon.edges.trainer import TrainOutcome
    from gruard.daemon.records import Delivery, Reading
    from gruard.models.drift import Drift
    from gruard.models.weights import ModelPackage

__all__ = ["Pipeline", "TrainingSettings"]

#: History rows removed in one step of housekeeping, and how many more for each reading since the last step:
#: the database moves every row once before it removes it.
PRUNE_STEP, PRUNE_PACE = 2000, 2
#: Checkpoints are written in turns into two generations, so that one damaged row has another behind it.
GENERATIONS = (0, 1)


class Pipeline:
    """Owns the order of things. Single-threaded: every call is made by the worker."""

    def __init__(
        self,
        engine: Engine,
        database: Database,
        directory: Path,
        training: TrainingSettings,
        *,
        base: str,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
        always_hold: bool = False,
        heartbeat: Callable[[], None] = lambda: None,
        storm: Storm | None = None,
        most_outbox: int = 10_000,
    ) -> None:
        self.engine, self.database = engine, database
        self.pending = Pending(database)
        self.rounds = Rounds(self, directory, training, wall, monotonic, always_hold=always_hold)
        self.storm = storm or Storm(engine.options.instance)
        self.feedback = Feedback(self)
        self.wall = wall
        self.heartbeat = heartbeat  # called within long work, so that nobody takes it for a hang
        self._base, self._monotonic, self._most_outbox = base, monotonic, most_outbox
        self._since_prune = 0  # readings since the last step of pruning
        self._waves: deque[list[Reading]] = deque()
        self._due: list[EnrolDue] = []  # devices that must be enrolled before the next wave
        self._raised: list[Event] = []  # alerts that no reading raised, for the next call of `advance`
        self._newest: list[Scored] = []  # of the last wave, until it is known whether they make a round due

    # -- the way of a reading ------------------------------------------------------------------

    def feed(self, readings: Iterable[Reading]) -> None:
        """Queue readings behind those already here."""
        self._waves.extend(waves(readings))

    def took(self, delivery: Delivery, readings: Sequence[Reading]) -> None:
        """Remember a message with the readings that are fed for it: its redelivery is to be known."""
        self.pending.took(delivery, readings)

    @property
    def backlog(self) -> int:
        """Readings queued and not scored yet."""
        return sum(len(wave) for wave in self._waves)

    @property
    def next_devices(self) -> list[str]:
        """The devices of the next wave."""
        return [reading.device for reading in self._waves[0]] if self._waves else []

    @property
    def holding(self) -> bool:
        """Whether the next wave waits for a group's first model."""
        return self.rounds.holding

    @property
    def models(self) -> dict[str, ModelNote]:
        """The live model of each group that has one."""
        return self.rounds.models

    def advance(self) -> list[Event]:
        """Score the next wave, unless the pipeline holds; what came of it is pending.

        The caller counts the events, those that came up between two waves first, and then calls `settle`.
        """
        self.settle()
        raised, self._raised = self._raised, []
        if not self._waves or self.rounds.must_wait():
            return raised
        events = self.engine.receive(self._waves.popleft())
        failpoints.reach("score.after")
        for event in events:
            match event:
                case Scored():
                    self.pending.add(event)
                    self._newest.append(event)
                case Removed():
                    self.pending.add(event)
                case Alert():
                    self._decide(event)
                case EnrolDue():
                    self._due.append(event)
                case _:
                    pass
        self._since_prune += len(self._newest)
        self.rounds.promotions.count(events)
        return raised + events

    def settle(self) -> None:
        """Enrol the devices that have become due, then begin a training round if one is."""
        if self._due:
            self.pending.write()  # the newest readings are a part of the history that enrolment reads
            enrol(self.engine, self.database, self._due, self.heartbeat)
        if self._newest or self.rounds.is_asked:
            self.rounds.begin_if_due(self._newest)
            self._newest.clear()

    def commit(self) -> None:
        """Make everything that is pending durable."""
        self.settle()
        self.commit_pending()

    def commit_pending(self) -> None:
        """The same, also while devices are due or a round begins."""
        backlog = {id(reading) for wave in self._waves for reading in wave}
        self.pending.commit(backlog)

    def checkpoint(self) -> None:
        """Save the state of every device that moved, and commit."""
        self.save_generation(self.database.older_generation())
        failpoints.reach("checkpoint.before")
        self.commit()

    def save_generation(self, generation: int) -> None:
        """Let the next commit save the devices that moved since this generation was last saved."""
        self.pending.also(
            partial(self._write_generation, generation), partial(self.engine.checkpointed, generation)
        )

    def save_every_generation(self) -> None:
        """Let the next commit save both generations: neither may need the journal before it."""
        for generation in GENERATIONS:
            self.save_generation(generation)

    def prune(self, most_rows: int, most_bytes: int | None = None, oldest_s: float | None = None) -> None:
        """Drop a few of the oldest history rows beyond the limits, never what recovery needs."""
        limit = PRUNE_STEP + PRUNE_PACE * self._since_prune
        keep_from = self.database.keep_from_lsn()
        failpoints.reach("prune.before")
        with self.pending.transaction():
            removed = self.database.prune(
                most_rows, keep_from, limit, max_bytes=most_bytes, oldest_s=oldest_s
            )
        self._since_prune = 0
        failpoints.reach("prune.after")
        if removed:
            self.commit()

    def _write_generation(self, generation: int) -> None:
        lsn = self.database.next_lsn - 1
        self.database.save_checkpoints(
            (
                Checkpoint(
                    row.device,
                    row.source,
                    row.fields,
                    lsn,
                    row.layout,
                    None if row.model == BASELINE else row.model,
                    row.state,
                )
                for row in self.engine.checkpoint(generation)
            ),
            generation=generation,
            lsn=lsn,
        )
        failpoints.reach("checkpoint.after")

    # -- alerts --------------------------------------------------------------------------------

    def watched(self, devices: Iterable[str], drifts: Iterable[Drift]) -> None:
        """Take what a comparison of devices with their first days has shown."""
        for event in self.engine.watched(devices, {drift.device: drift for drift in drifts}):
            self._raised.append(event)
            if isinstance(event, Alert):
                self._decide(event)

    def _decide(self, alert: Alert) -> None:
        """Keep an alert decision; published is what neither a storm nor a full outbox forbids."""
        if not self.feedback.may_tell(alert):
            self._keep(alert, told=False, muted=True)
            return
        room = self.pending.outbox < self._most_outbox
        told = self.storm.decide(alert, self._monotonic(), room=room)
        self._keep(alert, told=told)

    def tell_storm(self) -> None:
        """Keep the one alert that stands for those that a storm keeps back, when it has something new."""
        summary = self.storm.summary(self._monotonic())
        if summary is not None:
            self._keep(summary, told=True)

    def _keep(self, alert: Alert, *, told: bool, muted: bool = False) -> None:
        note, instance = self.note_of(alert.model, alert.group), self.engine.options.instance
        payload = alert_payload(alert, note, instance, muted=muted)
        row = AlertRow(
            alert.id,
            alert.device,
            alert.source,
            alert.state,
            alert.severity,
            alert.opened_s,
            alert.time_s,
            alert.time_s if alert.state == "resolved" else None,
            alert.score,
            alert.threshold,
            payload.decode(),
        )
        self.pending.add(Told(row, f"{self._base}/alerts/{alert.device}" if told else None))

    def note_of(self, model: str, group: str) -> ModelNote:
        """What to say about the model that judged a reading of the group."""
        live = self.models.get(group)
        return live if live is not None and live.id == model else ModelNote(model)

    # -- models and start ----------------------------------------------------------------------

    def poll_training(self, waiting: int = 0) -> TrainOutcome | None:
        """Take the outcome of a round that has ended; promote its candidate. `waiting` more are not fed."""
        return self.rounds.poll(waiting + self.backlog)

    def adopt(self, package: ModelPackage, reason: str) -> None:
        """Put a model in charge of its group.

        Raises:
            ModelError: it does not fit; nothing was changed.
        """
        self.rounds.adopt(package, reason)

    def recover(self) -> int:
        """Bring the engine to where the journal ends; returns the readings replayed."""
        replayed = recovery.recover(self.engine, self.database, self.rounds, self.heartbeat)
        self.feedback.restore()
        return replayed
