"""Readings through engine, database and training: what `gruard run` and `gruard replay` share.

    feed(readings) -> waves;   advance(): score one wave -> journal rows, alerts, outbox in one transaction
    commit()                   makes them durable together; only then may the readings be acknowledged

A group's first model takes charge at a fixed reading where that can be had: when readings arrive faster
than real time (a backlog, a recording) the pipeline holds until the round is done, so that a replay of
the same readings gives the same alerts. At real-time rates it never waits.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import msgspec

from gruard.daemon.core.batcher import MOST_READINGS, waves
from gruard.daemon.core.engine import BASELINE, DeviceRow, Engine, Group
from gruard.daemon.core.events import Alert, EnrolDue, Event, Scored
from gruard.daemon.core.payloads import ModelNote, alert_payload
from gruard.daemon.core.schedule import Schedule
from gruard.daemon.edges.rows import AlertRow, Checkpoint, ModelRow, StoredReading
from gruard.daemon.edges.trainer import IN_ALARM, MODELS, Trainer, TrainOutcome, TrainRequest
from gruard.daemon.records import Reading
from gruard.models import weights
from gruard.models.errors import ModelError
from gruard.models.history import History

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

    from gruard.daemon.edges.database import Database
    from gruard.daemon.edges.rows import History as StoredHistory
    from gruard.models.weights import ModelPackage

T = TypeVar("T")
log = logging.getLogger(__name__)

#: Devices enrolled in one go: bounds the memory that a change of weights takes.
ENROL_CHUNK = 16
#: Event time that passes this much faster than the clock is a backlog or a recording.
FASTER_THAN_REAL = 2.0
#: Longest hold for a first model.
LONGEST_HOLD_S, HOLD_GRACE_S = 120.0, 5.0
#: History rows removed in one step of housekeeping, and how many more for each reading since the last step:
#: the database moves every row once before it removes it.
PRUNE_STEP, PRUNE_PACE = 2000, 2
#: The LSN up to which checkpoints cover every device.
CHECKPOINT_KEY = "checkpoint_lsn"


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """What a training round is asked to do: the [model] and [train] tables of the configuration."""

    cell: str = "gru"
    hidden: int = 32
    layers: int = 1
    dropout: float = 0.0
    warmup_readings: int = 400
    every_s: float | None = 21_600.0  # None: never
    max_seconds: float = 900.0
    max_rows: int = 5000
    max_devices: int = 256
    seed: int = 0
    nice: int = 19


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
    ) -> None:
        self.engine, self.database = engine, database
        self.trainer = Trainer(directory)
        self.models: dict[str, ModelNote] = {}  # group -> the live model
        self._since_prune = 0  # readings journalled since the last step of pruning
        self._directory, self._models = directory, directory / MODELS
        self._settings, self._base = training, base
        self._always_hold = always_hold
        self._heartbeat = heartbeat  # called within long work, so that nobody takes it for a hang
        self._wall, self._monotonic = wall, monotonic
        self._schedule = Schedule(training.every_s, training.warmup_readings)
        self._waves: deque[list[Reading]] = deque()
        self._begun: dict[str, tuple[float, float]] = {}  # group -> event time, arrival: first reading
        self._hold_until: float | None = None

    # -- the way of a reading ------------------------------------------------------------------

    def feed(self, readings: Iterable[Reading]) -> None:
        """Queue readings behind those already here."""
        self._waves.extend(waves(readings))

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
        return self._hold_until is not None

    def advance(self) -> list[Event]:
        """Score the next wave, unless the pipeline holds; journal what came of it, not yet durable."""
        if self._hold_until is not None:
            if self.trainer.group is not None and self._monotonic() < self._hold_until:
                return []
            self._hold_until = None
        if not self._waves:
            return []
        events = self.engine.receive(self._waves.popleft())
        self._journal(events)
        self._enrol(event for event in events if isinstance(event, EnrolDue))
        self._train_if_due(events)
        return events

    def commit(self) -> None:
        """Make everything journalled so far durable."""
        self.database.commit()

    def checkpoint(self) -> None:
        """Save the state of every device that moved, and commit."""
        lsn = self.database.next_lsn - 1
        self.database.save_checkpoints(
            Checkpoint(
                row.device,
                row.source,
                row.fields,
                lsn,
                row.layout,
                None if row.model == BASELINE else row.model,
                row.state,
            )
            for row in self.engine.checkpoint()
        )
        self.database.set_meta(CHECKPOINT_KEY, str(lsn))
        self.commit()

    def prune(self, max_rows_per_device: int) -> None:
        """Drop a few of the oldest history rows beyond the limit, never what recovery needs."""
        keep_from = int(self.database.meta(CHECKPOINT_KEY) or 0) + 1
        limit = PRUNE_STEP + PRUNE_PACE * self._since_prune
        self._since_prune = 0
        if self.database.prune(max_rows_per_device, keep_from, limit):
            self.commit()

    def _journal(self, events: Sequence[Event]) -> None:
        lsn = self.database.next_lsn
        rows: list[StoredReading] = []
        for event in events:
            if isinstance(event, Scored):
                r = event.reading
                rows.append(
                    StoredReading(
                        lsn + len(rows),
                        r.device,
                        r.source,
                        event.fields,
                        r.time_s,
                        r.received_s,
                        event.values,
                        event.score,
                        # What alarms only the baseline may be a part of normal not seen before: it teaches.
                        IN_ALARM if event.alarm and event.phase == "ready" else 0,
                    )
                )
            elif isinstance(event, Alert):
                self._put_alert(event)
        self.database.append(rows)
        self._since_prune += len(rows)

    def _put_alert(self, alert: Alert) -> None:
        note = self.note_of(alert.model, alert.group)
        payload = alert_payload(alert, note, self.engine.options.instance)
        topic = f"{self._base}/alerts/{alert.device}"
        self.database.put_outbox(topic, payload, qos=1, retain=False, key=alert.id)
        resolved_s = alert.time_s if alert.state == "resolved" else None
        self.database.save_alert(
            AlertRow(
                alert.id,
                alert.device,
                alert.source,
                alert.state,
                alert.severity,
                alert.opened_s,
                alert.time_s,
                resolved_s,
                alert.score,
                alert.threshold,
                payload.decode(),
            )
        )

    def note_of(self, model: str, group: str) -> ModelNote:
        """What to say about the model that judged a reading of the group."""
        live = self.models.get(group)
        return live if live is not None and live.id == model else ModelNote(model)

    # -- enrolment and models ------------------------------------------------------------------

    def _enrol(self, due: Iterable[EnrolDue], before_lsn: int | None = None) -> None:
        wanted: dict[tuple[str, ...], list[EnrolDue]] = {}
        for event in due:
            wanted.setdefault(event.fields, []).append(event)
        for fields, events in wanted.items():
            for chunk in chunks(events, ENROL_CHUNK):
                self._heartbeat()
                self.engine.enrol(
                    {
                        e.device: history_of(self.database.history(e.device, fields, e.limit, before_lsn))
                        for e in chunk
                    }
                )

    def poll_training(self) -> TrainOutcome | None:
        """Take the outcome of a round that has ended; promote its candidate."""
        outcome = self.trainer.poll(self._monotonic())
        if outcome is None:
            return None
        if outcome.result == "promoted":
            outcome = self._promote(outcome)
        live = outcome.group in self.models
        now = self._monotonic()
        self._schedule.ended(outcome.group, promoted=outcome.result == "promoted", has_model=live, now=now)
        log.log(
            logging.INFO if outcome.result in {"promoted", "rejected"} else logging.WARNING,
            "training of %s: %s after %.1f s: %s",
            outcome.group,
            outcome.result,
            outcome.seconds,
            outcome.reason,
        )
        return outcome

    def _promote(self, outcome: TrainOutcome) -> TrainOutcome:
        if outcome.model is None:
            return msgspec.structs.replace(outcome, result="failed", reason="the round named no model")
        try:
            self.adopt(weights.read(self._models, outcome.model), outcome.reason)
        except ModelError as error:
            return msgspec.structs.replace(outcome, result="failed", reason=str(error))
        return outcome

    def adopt(self, package: ModelPackage, reason: str) -> None:
        """Put a model in charge of its group: re-warm every device, and record the switch durably.

        Raises:
            ModelError: it does not fit; nothing was changed.
        """
        manifest = package.manifest
        group = self.engine.open_group(manifest.source, manifest.fields)
        self._enrol(self.engine.adopt(group.name, package))
        self.database.add_model(
            ModelRow(
                manifest.id,
                group.name,
                "candidate",
                manifest.created_s,
                manifest.parent,
                manifest.skill,
                msgspec.json.encode(manifest).decode(),
                reason,
            )
        )
        self.database.activate_model(manifest.id, self.database.next_lsn, self._wall())
        self.models[group.name] = ModelNote(manifest.id, manifest.created_s, manifest.skill, manifest.cell)
        # One transaction with the switch: recovery never has to replay across a change of weights.
        self.checkpoint()

    def _train_if_due(self, events: Sequence[Event]) -> None:
        newest: dict[str, Scored] = {}  # group -> its scored reading of the device that has shown most
        for event in events:
            if isinstance(event, Scored):
                self._begun.setdefault(event.group, (event.reading.time_s, event.reading.received_s))
                best = newest.get(event.group)
                if best is None or self._shown(event) > self._shown(best):
                    newest[event.group] = event
        for name, scored in newest.items():
            if self.trainer.group is not None:
                return
            has_model, now = name in self.models, self._monotonic()
            shown = self._shown(scored)
            if self._schedule.is_due(name, has_model=has_model, most_readings=shown, now=now):
                self._start_round(self.engine.groups[name], scored.reading)

    def _shown(self, event: Scored) -> int:
        return self.engine.devices[event.reading.device].count

    def _start_round(self, group: Group, newest: Reading) -> None:
        # What is not committed the child cannot see.
        self.commit()
        s, live = self._settings, self.models.get(group.name)
        request = TrainRequest(
            directory=str(self._directory),
            group=group.name,
            source=group.source,
            fields=group.fields,
            devices=self._teachers(group),
            max_rows=s.max_rows,
            # Readings of one moment arrive in any order: only moments that are complete teach.
            before_s=newest.time_s,
            parent=None if live is None else live.id,
            cell=s.cell,
            hidden=s.hidden,
            layers=s.layers,
            dropout=s.dropout,
            seed=s.seed,
            budget=self.engine.options.budget,
            max_seconds=s.max_seconds,
            nice=s.nice,
            now_s=self._wall(),
        )
        try:
            self.trainer.start(request, self._monotonic())
        except OSError as error:
            # No memory or no process to be had: scoring goes on, the round is tried again later.
            log.warning("training of %s cannot begin: %s", group.name, error)
            self._schedule.ended(
                group.name, promoted=False, has_model=live is not None, now=self._monotonic()
            )
            return
        log.info("training of %s begins on %d devices", group.name, len(request.devices))
        if live is None and (self._always_hold or self._is_faster_than_real(group.name, newest)):
            longest_s = s.max_seconds if self._always_hold else min(LONGEST_HOLD_S, s.max_seconds)
            self._hold_until = self._monotonic() + longest_s + HOLD_GRACE_S

    def _teachers(self, group: Group) -> tuple[str, ...]:
        """The devices of a round: all, or an even pick by name where there are too many."""
        names = sorted(group.devices)
        stride = -(-len(names) // self._settings.max_devices)
        return tuple(names[::stride])

    def _is_faster_than_real(self, group: str, newest: Reading) -> bool:
        event_s, arrival_s = self._begun[group]
        return newest.time_s - event_s > FASTER_THAN_REAL * max(newest.received_s - arrival_s, 0.1)

    # -- recovery ------------------------------------------------------------------------------

    def recover(self) -> int:
        """Bring the engine to where the journal ends: live models, checkpoints, then the rows behind them.

        Nothing is published: alerts were decided, and put in the outbox, when the rows were scored.
        Returns the readings replayed.
        """
        for leftover in self._models.glob("*.tmp"):
            leftover.unlink(missing_ok=True)  # of a training round that was killed while it wrote
        for row in self.database.live_models():
            self._restore_model(row)
        saved = list(self.database.checkpoints())
        lsns = {row.device: row.lsn for row in saved}
        due = self.engine.restore(
            DeviceRow(r.device, r.source, r.fields, r.layout, r.model or BASELINE, r.state) for r in saved
        )
        for asked in due:
            self._enrol([asked], lsns[asked.device] + 1)
        return self._replay_journal(lsns)

    def _replay_journal(self, lsns: dict[str, int]) -> int:
        """Run the rows behind each device's checkpoint (device -> lsn) through the engine again."""
        sources = {source.name for source in self.engine.options.sources}
        replayed = 0
        journal = self.database.readings_after(int(self.database.meta(CHECKPOINT_KEY) or 0))
        for batch in chunks(journal, MOST_READINGS):
            rows = {}  # id of a reading -> its row in the journal
            for stored in batch:
                if stored.source in sources and stored.lsn > lsns.get(stored.device, 0):
                    reading = reading_of(stored)
                    rows[id(reading)] = stored, reading
            for wave in waves(reading for _, reading in rows.values()):
                here = {reading.device: rows[id(reading)][0] for reading in wave}
                for behind in here.values():
                    self._enrol(self.engine.place(behind.device, behind.source, behind.fields), behind.lsn)
                for event in self.engine.receive(wave):
                    if isinstance(event, EnrolDue):
                        self._enrol([event], here[event.device].lsn + 1)
                replayed += len(wave)
        return replayed

    def _restore_model(self, row: ModelRow) -> None:
        try:
            package = weights.read(self._models, row.id)
            group = self.engine.open_group(package.manifest.source, package.manifest.fields)
            self.engine.adopt(group.name, package)
        except ModelError as error:
            log.warning("model %s cannot be used, the baseline takes over: %s", row.id, error)
            return
        self.models[row.group] = ModelNote(row.id, row.created_s, row.skill, package.manifest.cell)


def history_of(stored: StoredHistory) -> History:
    """A device's stored rows as enrolment wants them."""
    return History(stored.time_s, stored.values, (stored.flags & IN_ALARM) == 0)


def reading_of(stored: StoredReading) -> Reading:
    """A journalled reading as it was let in: its fields are known to be the device's."""
    values = zip(stored.fields, stored.values.tolist(), strict=True)
    seen = {name: value for name, value in values if not math.isnan(value)}
    return Reading(stored.device, stored.source, stored.time_s, stored.received_s, seen, growing=True)


def chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Items in lists of at most `size`."""
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
