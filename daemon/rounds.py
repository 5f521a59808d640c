"""Training rounds and the models they bring: when one begins, what it asks for, how its model takes charge.

A group's first model takes charge at a fixed reading where that can be had: when readings arrive faster
than real time (a backlog, a recording) the pipeline holds until the round is done, so that a replay of
the same readings gives the same alerts. At real-time rates it never waits.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import math
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from gruard.daemon.core.commands import CommandError
from gruard.daemon.core.payloads import ModelNote
from gruard.daemon.core.schedule import RoundReason, Schedule
from gruard.daemon.edges import failpoints
from gruard.daemon.edges.kept_round import CutOff, KeptRound
from gruard.daemon.edges.rows import ModelRow
from gruard.daemon.edges.trainer import MODELS, Trainer, TrainOutcome, TrainRequest
from gruard.daemon.enrolment import enrol
from gruard.daemon.errors import StateError
from gruard.daemon.promotions import Promotions
from gruard.daemon.round_pace import PAUSE_AT, Pace
from gruard.models import weights
from gruard.models.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from gruard.daemon.core.engine import Group
    from gruard.daemon.core.events import EnrolDue, Scored
    from gruard.daemon.core.probation import Probation, Reason
    from gruard.daemon.pipeline import Pipeline
    from gruard.daemon.records import Reading
    from gruard.models.weights import ModelPackage

log = logging.getLogger(__name__)

#: Event time that passes this much faster than the clock is a backlog or a recording.
FASTER_THAN_REAL = 2.0
#: First readings are remembered of twice the groups there are, and of so many more.
SPARE_GROUPS = 64
#: Why a round begins, in the log.
WORDS: dict[RoundReason, str] = {
    "first": "the group has no model",
    "time": "its time has come",
    "readings": "there are enough new readings",
    "drift": "the live model forecasts worse than it did",
    "command": "asked for",
    "resumed": "it was cut off",
}
#: Longest hold for a first model.
LONGEST_HOLD_S, HOLD_GRACE_S = 120.0, 5.0
#: Weights that are kept of each group beside the live ones.
KEPT = 8
ROLLED_BACK = "rolled back"
#: The meta key that says that training is paused.
PAUSED = "training_paused"


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """What a training round is asked to do: the [model] and [train] tables of the configuration."""

    cell: str = "gru"
    hidden: int = 32
    layers: int = 1
    dropout: float = 0.0
    warmup_readings: int = 400
    every_s: float | None = 21_600.0  # None: never
    after_readings: int | None = None  # None: rounds do not begin early for new readings
    on_drift: bool = False
    least_pause_s: float = 1800.0
    max_seconds: float = 900.0
    max_cpu_s: float | None = None
    max_memory_bytes: int | None = None
    pause_at: int = PAUSE_AT
    max_rows: int = 5000
    max_devices: int = 256
    seed: int = 0
    nice: int = 19
    first_days_s: float | None = 7 * 86_400.0  # None: slow drift is not watched


class Rounds:
    """The training side of one pipeline."""

    def __init__(
        self,
        pipeline: Pipeline,
        directory: Path,
        training: TrainingSettings,
        wall: Callable[[], float],
        monotonic: Callable[[], float],
        *,
        always_hold: bool,
    ) -> None:
        self._pipeline = pipeline
        self.trainer = Trainer(directory)
        self.models: dict[str, ModelNote] = {}  # group -> the live model
        self._directory, self._models = directory, directory / MODELS
        self._settings, self._always_hold = training, always_hold
        self._wall, self._monotonic = wall, monotonic
        self._schedule = Schedule(
            training.every_s,
            training.warmup_readings,
            training.after_readings,
            training.on_drift,
            training.least_pause_s,
        )
        self._kept = KeptRound(directory)
        self.pace = Pace(self.trainer, training.pause_at)
        self.started: Counter[RoundReason] = Counter()  # rounds that began since the start
        self._asked: dict[str, None] = {}  # groups, in the order in which they were asked for
        self._begun: dict[str, tuple[float, float]] = {}  # group -> event time, arrival: first reading
        self._hold_until: float | None = None
        self._outcome: TrainOutcome | None = None  # of a round that has ended and is not dealt with yet
        self.promotions = Promotions(pipeline.engine, pipeline.database)

    @property
    def holding(self) -> bool:
        """Whether scoring waits for a group's first model."""
        return self._hold_until is not None

    def must_wait(self) -> bool:
        """Whether it waits still; a hold that is over ends here."""
        if self._hold_until is None:
            return False
        busy = self.trainer.group is not None or self._outcome is not None
        if busy and self._monotonic() < self._hold_until:
            return True
        self._hold_until = None
        return False

    # -- a round -------------------------------------------------------------------------------

    def begin_if_due(self, scored: Sequence[Scored]) -> None:
        """Begin a round for one group that the newest readings have made due.

        Raises:
            StateError: what the round learns from cannot be made durable; it may be called again.
        """
        groups = self._pipeline.engine.groups
        if len(self._begun) > 2 * len(groups) + SPARE_GROUPS:  # of groups that are no more
            self._begun = {name: begun for name, begun in self._begun.items() if name in groups}
        newest: dict[str, Scored] = {}  # group -> its reading of the device that has shown most
        for event in scored:
            self._begun.setdefault(event.group, (event.reading.time_s, event.reading.received_s))
            best = newest.get(event.group)
            if best is None or self._shown(event) > self._shown(best):
                newest[event.group] = event
        self._watch_skill(newest)
        if self.paused or self.trainer.group is not None or self._outcome is not None:
            return
        asked = next((name for name in self._asked if name in groups), None)
        if asked is not None:
            del self._asked[asked]
            self._begin(groups[asked], newest.get(asked), "command")
            return
        self._asked.clear()  # of groups that are no more
        for name, event in newest.items():
            has_model, now = name in self.models, self._monotonic()
            why = self._schedule.why(name, has_model=has_model, most_readings=self._shown(event), now=now)
            if why is not None:
                self._begin(groups[name], event, why)
                return

    def _watch_skill(self, newest: Mapping[str, Scored]) -> None:
        engine = self._pipeline.engine
        for name, event in newest.items():
            shown = self._shown(event)
            if name in self.models and self._schedule.must_look(name, shown):
                self._schedule.note_skill(name, engine.skill(engine.groups[name]), shown)

    @property
    def paused(self) -> bool:
        """Whether rounds rest by command: none begins, and one that runs waits."""
        return self.pace.paused

    @paused.setter
    def paused(self, paused: bool) -> None:
        self.pace.paused = paused

    def ask(self, group: str) -> bool:
        """Ask for a round of a group, to begin as soon as none runs; False: there is no such group."""
        if group not in self._pipeline.engine.groups:
            return False
        self._asked[group] = None
        return True

    @property
    def is_asked(self) -> bool:
        """Whether a round that was asked for has not begun yet."""
        return bool(self._asked)

    def _shown(self, event: Scored) -> int:
        device = self._pipeline.engine.devices.get(event.reading.device)
        return 0 if device is None else device.count

    def _begin(self, group: Group, event: Scored | None, why: RoundReason) -> None:
        self._pipeline.commit_pending()  # what is not committed the child cannot see
        newest = None if event is None else event.reading
        hold = (
            newest is not None
            and group.name not in self.models
            and (self._always_hold or self._is_faster_than_real(group.name, newest))
        )
        # Readings of one moment arrive in any order: only moments that are complete teach.
        request = self._request(group, None if newest is None else newest.time_s)
        self._start(CutOff(request, hold), why)

    def _request(self, group: Group, before_s: float | None) -> TrainRequest:
        s, live, options = self._settings, self.models.get(group.name), self._pipeline.engine.options
        return TrainRequest(
            directory=str(self._directory),
            group=group.name,
            source=group.source,
            fields=group.fields,
            devices=self._teachers(group),
            max_rows=s.max_rows,
            before_s=before_s,
            parent=None if live is None else live.id,
            anchor=self._pipeline.database.anchors().get(group.name),
            cell=s.cell,
            hidden=s.hidden,
            layers=s.layers,
            dropout=s.dropout,
            seed=s.seed,
            budget=options.budget,
            max_seconds=s.max_seconds,
            nice=s.nice,
            now_s=self._wall(),
            first_days_s=s.first_days_s,
            new_normals=self._new_normals(group),
            before_lsn=self._pipeline.database.next_lsn,
            is_timed=any(o.time is not None for o in options.sources if o.name == group.source),
            max_cpu_s=s.max_cpu_s,
            max_memory_bytes=s.max_memory_bytes,
        )

    def _start(self, begun: CutOff, why: RoundReason) -> None:
        request, now, engine = begun.request, self._monotonic(), self._pipeline.engine
        name, has_model = request.group, request.group in self.models
        try:
            self._kept.begin(begun)
            self.trainer.start(request, now)
        except OSError as error:
            # No memory or no process to be had: scoring goes on, the round is tried again later.
            log.warning("training of %s cannot begin: %s", name, error)
            self._schedule.ended(name, promoted=False, has_model=has_model, now=now)
            return
        self.started[why] += 1
        shown = (engine.devices[device].count for device in engine.groups[name].devices)
        self._schedule.began(name, max(shown, default=0))
        log.info("training of %s begins on %d devices: %s", name, len(request.devices), WORDS[why])
        if begun.held:
            longest_s = self._settings.max_seconds
            if not self._always_hold:
                longest_s = min(LONGEST_HOLD_S, longest_s)
            self._hold_until = now + longest_s + HOLD_GRACE_S

    def resume(self) -> None:
        """Begin the round once more that an end of the daemon cut off, if it would be asked the same today.

        Its child goes on with the fit where that was saved, on the same rows.
        """
        cut_off, groups = self._kept.find(), self._pipeline.engine.groups
        if cut_off is None:
            return
        then = cut_off.request
        if then.group in groups and self._settings.every_s is not None:
            today = self._request(groups[then.group], then.before_s)
            today = msgspec.structs.replace(
                today, devices=then.devices, before_lsn=then.before_lsn, now_s=then.now_s
            )
            if today == then:
                self._start(cut_off, "resumed")
                return
        self._kept.forget()

    def _teachers(self, group: Group) -> tuple[str, ...]:
        """The devices of a round: all, or an even pick by name where there are too many."""
        names = sorted(group.devices)
        stride = -(-len(names) // self._settings.max_devices)
        return tuple(names[::stride])

    def _new_normals(self, group: Group) -> dict[str, tuple[float, float]]:
        known = self._pipeline.engine.devices
        spans = {name: (known[name].normal_from_s, known[name].normal_to_s) for name in group.devices}
        return {name: span for name, span in spans.items() if math.isfinite(span[0])}

    def _is_faster_than_real(self, group: str, newest: Reading) -> bool:
        event_s, arrival_s = self._begun[group]
        return newest.time_s - event_s > FASTER_THAN_REAL * max(newest.received_s - arrival_s, 0.1)

    def poll(self, waiting: int = 0) -> TrainOutcome | None:
        """Take the outcome of a round that has ended; promote its candidate. `waiting` are not scored yet.

        Raises:
            StateError: the switch cannot be made durable; the outcome comes with a later call.
        """
        if self._outcome is None and self.trainer.group is not None:
            now = self._monotonic()
            # Where scoring waits for the round, the round must not wait for scoring.
            self.pace.keep(0 if self.holding else waiting, now)
            self._outcome = self.trainer.poll(now)
            self.pace.tell(now)
        if self._outcome is None:
            return None
        outcome = self._promoted(self._outcome) if self._outcome.result == "promoted" else self._outcome
        self._outcome = None
        if outcome.watched and outcome.group in self._pipeline.engine.groups:
            watched = self._teachers(self._pipeline.engine.groups[outcome.group])
            self._pipeline.watched(watched, outcome.drifts)
        if outcome.result == "rejected":
            self._reject(outcome)
        self._kept.forget()
        self._schedule.ended(
            outcome.group,
            promoted=outcome.result == "promoted",
            has_model=outcome.group in self.models,
            now=self._monotonic(),
        )
        log.log(
            logging.INFO if outcome.result in {"promoted", "rejected"} else logging.WARNING,
            "training of %s: %s after %.1f s: %s",
            outcome.group,
            outcome.result,
            outcome.seconds,
            outcome.reason,
        )
        return outcome

    def _promoted(self, outcome: TrainOutcome) -> TrainOutcome:
        if outcome.model is None:
            return msgspec.structs.replace(outcome, result="failed", reason="the round named no model")
        if outcome.model in {row.id for row in self._pipeline.database.models()}:
            return msgspec.structs.replace(outcome, result="failed", reason="the round brought an old model")
        try:
            self.adopt(weights.read(self._models, outcome.model), outcome.reason)
        except ModelError as error:
            return msgspec.structs.replace(outcome, result="failed", reason=str(error))
        return outcome

    def _reject(self, outcome: TrainOutcome) -> None:
        """Enter a candidate that was refused in the registry, with the next commit."""
        now_s, live = self._wall(), self.models.get(outcome.group)
        known = f"{outcome.group} {now_s} {outcome.reason}".encode()
        identity = outcome.model or hashlib.sha256(known).hexdigest()[: weights.ID_DIGITS]
        parent = None if live is None else live.id
        row = ModelRow(identity, outcome.group, "rejected", now_s, parent, None, "{}", outcome.reason)
        keep = partial(self._pipeline.database.add_model, row)
        self._pipeline.pending.also(keep, partial(self._tidy, outcome.group))

    def review(self) -> Reason | None:
        """Roll a promoted model back that has turned out clearly worse, recorded with the next commit.

        Returns why, if one was. Raises StateError: nothing was recorded.
        """
        found = self.promotions.worse()
        if found is None:
            return None
        name, reason, sentence = found
        log.warning("%s", f"{self.models[name].id} is {ROLLED_BACK} {sentence}")
        self.roll_back(name, sentence)
        return reason

    # -- by command ----------------------------------------------------------------------------

    def begin_now(self, name: str | None) -> str:
        """Begin a round for one group, due or not; a sentence on it.

        Raises:
            CommandError: there is no such group, or a round runs.
            StateError: as `begin_if_due`.
        """
        engine = self._pipeline.engine
        name = _named(name, [group.name for group in engine.groups.values() if group.devices])
        if self.trainer.runs() or self._outcome is not None:
            raise CommandError("busy", f"a training round for {self.trainer.group or 'a group'} is running")
        self._begin(engine.groups[name], None, "command")
        if not self.trainer.runs():
            raise CommandError("busy", f"training of {name} cannot begin now: no memory or no process")
        return f"training of {name} begins"

    def pause(self, *, paused: bool) -> str:
        """Let no round begin by itself, over restarts too; or let them again. A sentence on it."""
        self.paused = paused
        keep = partial(self._pipeline.database.set_meta, PAUSED, "yes" if paused else "no")
        self._pipeline.pending.also(keep, lambda: None)
        return "training is paused" if paused else "training goes on"

    def activate(self, identity: str) -> str:
        """Put the one model whose id is, or begins with, `identity` in charge; a sentence on it.

        Recorded with the next commit.

        Raises:
            CommandError: there is not exactly one, or it cannot be used; nothing was changed.
            StateError: nothing was recorded.
        """
        rows = [row for row in self._pipeline.database.models() if identity and row.id.startswith(identity)]
        if len(rows) != 1:
            found = ", ".join(row.id for row in rows) or "none"
            raise CommandError("no_such_model", f'an id that begins with "{identity[:64]}": {found}')
        row = rows[0]
        if row.status == "live":
            return f"{row.id} is in charge of {row.group} already"
        try:
            self._take_charge(weights.read(self._models, row.id), "activated by command")
        except ModelError as error:
            raise CommandError("unusable", str(error)) from None
        return f"{row.id} is in charge of {row.group}"

    def roll_back(self, name: str | None, reason: str) -> str:
        """Put the model before the live one of a group in charge, or else the baseline; a sentence on it.

        Recorded with the next commit. A model whose weights cannot be used is passed over.

        Raises:
            CommandError: no such group has a model; nothing was changed.
            StateError: nothing was recorded.
        """
        name = _named(name, list(self.models))
        rows = self._pipeline.database.models()
        live = self.models[name].id
        why = f"{ROLLED_BACK} {reason}"
        before = [row for row in rows if row.group == name and row.status == "retired" and row.id != live]
        for row in sorted(before, key=lambda row: row.activated_lsn or 0, reverse=True):
            try:
                package = weights.read(self._models, row.id)
                self._take_charge(
                    package, f"in charge again: {live} was {why}", leaving="rolled_back", why=why
                )
            except ModelError as error:
                log.warning("model %s cannot be used, the one before it is tried: %s", row.id, error)
                continue
            return f"{row.id} is in charge of {name} again"
        self._to_baseline(name, why)
        return f"the baseline is in charge of {name}"

    # -- models --------------------------------------------------------------------------------

    def adopt(self, package: ModelPackage, reason: str) -> None:
        """Put a model in charge of its group: re-warm every device, and record the switch durably.

        Raises:
            ModelError: it does not fit; nothing was changed.
            StateError: it is in charge, and the switch is recorded with the next commit that succeeds.
        """
        self._take_charge(package, reason, watched=True)
        self._pipeline.commit()

    def _take_charge(
        self,
        package: ModelPackage,
        reason: str,
        *,
        leaving: str = "retired",
        why: str | None = None,
        watched: bool = False,
    ) -> None:
        """`adopt` up to the commit; the model before it is then `leaving`, because of `why`."""
        manifest = package.manifest
        self._settle()
        engine = self._pipeline.engine
        group = engine.open_group(manifest.source, manifest.fields)
        probation = self.promotions.held_against(group.name, manifest.id) if watched else None
        self._rewarm(engine.adopt(group.name, package))
        self.models[group.name] = ModelNote(manifest.id, manifest.created_s, manifest.skill, manifest.cell)
        row = ModelRow(
            manifest.id,
            group.name,
            "candidate",
            manifest.created_s,
            manifest.parent,
            manifest.skill,
            msgspec.json.encode(manifest).decode(),
            reason,
        )
        self._switched(
            group.name, partial(self._record, group.name, row, leaving, why, self._wall()), probation
        )

    def _to_baseline(self, name: str, why: str) -> None:
        """Put the baseline in charge of a group, recorded with the next commit."""
        self._settle()
        self._rewarm(self._pipeline.engine.leave_model(name))
        del self.models[name]
        now = self._monotonic()
        # Not at once: whoever goes back to the baseline wants to see it work.
        self._schedule.ended(name, promoted=False, has_model=True, now=now)
        self._switched(name, partial(self._record, name, None, "rolled_back", why, self._wall()), None)

    def _settle(self) -> None:
        failpoints.reach("model.before")
        self._pipeline.settle()
        self._pipeline.pending.write()  # a part of the history that the devices are re-warmed on

    def _rewarm(self, due: list[EnrolDue]) -> None:
        enrol(self._pipeline.engine, self._pipeline.database, due, self._pipeline.heartbeat)

    def _switched(self, name: str, record: Callable[[], None], probation: Probation | None) -> None:
        self.promotions.begin(name, probation)
        self._pipeline.pending.also(record, partial(self._tidy, name))
        self._pipeline.pending.also(partial(self.promotions.keep, name, probation), lambda: None)
        # In one transaction with the switch: recovery never has to replay across a change of weights.
        self._pipeline.save_every_generation()
        failpoints.reach("model.after")

    def _record(self, group: str, row: ModelRow | None, leaving: str, why: str | None, now_s: float) -> None:
        database = self._pipeline.database
        for old in database.live_models():
            if old.group == group and (row is None or old.id != row.id):
                database.add_model(replace(old, status=leaving, reason=why or old.reason))
        if row is not None:
            database.add_model(row)
            database.activate_model(row.id, database.next_lsn, now_s)

    def _tidy(self, group: str) -> None:
        """Remove the weights of a group beyond the newest KEPT, but for those in charge and the anchor."""
        with contextlib.suppress(StateError):  # what cannot be read now is tidied up after the next switch
            self._remove_old_weights(group)

    def _remove_old_weights(self, group: str) -> None:
        database = self._pipeline.database
        anchor = database.anchors().get(group)
        rows = [row for row in database.models() if row.group == group and row.status != "live"]
        rows.sort(key=lambda row: row.activated_s or row.created_s, reverse=True)
        for row in [row for row in rows if row.status != "rejected" and row.id != anchor][KEPT:]:
            for suffix in (".safetensors", ".json"):
                with contextlib.suppress(OSError):  # it takes room and does no other harm
                    (self._models / f"{row.id}{suffix}").unlink(missing_ok=True)

    def restore(self, rows: Sequence[ModelRow]) -> None:
        """Put the models in charge that the registry calls live, before any device is restored."""
        self.paused = self._pipeline.database.meta(PAUSED) == "yes"
        for leftover in self._models.glob("*.tmp"):
            leftover.unlink(missing_ok=True)  # of a training round that was killed while it wrote
        for row in rows:
            try:
                package = weights.read(self._models, row.id)
                engine = self._pipeline.engine
                group = engine.open_group(package.manifest.source, package.manifest.fields)
                engine.adopt(group.name, package)
            except ModelError as error:
                log.warning("model %s cannot be used, the baseline takes over: %s", row.id, error)
                continue
            self.models[row.group] = ModelNote(row.id, row.created_s, row.skill, package.manifest.cell)
            self.promotions.restore(row.group, row.id)


def _named(name: str | None, known: Sequence[str]) -> str:
    """The group that is meant: by its name or how that begins, or the only one. Raises CommandError."""
    found = [other for other in known if name is None or other.startswith(name)]
    if name in found:
        found = [name]
    if len(found) != 1:
        listing = ", ".join(sorted(found or known)[:10]) or "none"
        raise CommandError("no_such_group", f"name one group of these: {listing}")
    return found[0]
