"""The core: readings in, events out. No I/O, no clock, no threads; the whole product is in here.

    receive(readings) -> events     every reading ends as exactly one Scored or Refused, alerts follow theirs
    enrol(histories)                the answer to EnrolDue: a device is fitted on its recent readings
    adopt(group, package)           new weights; every device of the group becomes due for enrolment
    checkpoint(generation) -> rows  devices that moved; checkpointed(generation) when the rows are durable

Devices with the same source and the same fields form a group and are scored as one batch. A reading is
scored against forecasts made before it was seen, then moves the device's state.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from gruard.daemon.core import alerts, hearing, progress, telling
from gruard.daemon.core.admission import Admission
from gruard.daemon.core.checkpoints import DeviceRow, Marks, loaded, open_state, row_of
from gruard.daemon.core.devices import (
    DISCOVERY,
    Device,
    admit_fields,
    admit_time,
    mark_of,
    take_sequence,
    take_time,
)
from gruard.daemon.core.drifting import follow_drift
from gruard.daemon.core.events import EnrolDue, Event, Noted, Refused, Removed, Scored
from gruard.daemon.core.groups import BASELINE, Group, group_name
from gruard.daemon.errors import DecodeError
from gruard.models.enrolment import fitted_devices
from gruard.models.errors import ModelError
from gruard.models.forecaster import Forecaster
from gruard.models.group import ENROL_AT, GroupScorer, Phase, Scores
from gruard.models.loan import loan_of
from gruard.models.weights import check_network

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from gruard.daemon.core.words import Effect
    from gruard.daemon.records import AlertKind, Reading, SourceOptions
    from gruard.models.calibration import Budget
    from gruard.models.drift import Drift
    from gruard.models.enrolment import Fitted
    from gruard.models.history import History
    from gruard.models.weights import ModelPackage

    Batch = list[tuple[Device, Reading]]

__all__ = ["BASELINE", "DeviceRow", "Engine", "EngineOptions", "Group", "group_name", "open_state"]

#: Readings of history that enrolment wants: enough for quantiles, few enough to replay in milliseconds.
ENROL_ROWS = 1000
#: The same at a change of weights, where every device of the group is replayed.
REWARM_ROWS = 400
#: What a device's phase is called outside.
PHASE_NAMES = {
    Phase.GATHERING: "warming",
    Phase.WARMING: "warming",
    Phase.LEARNING: "learning",
    Phase.READY: "ready",
}
_LEARNING, _READY = int(Phase.LEARNING), int(Phase.READY)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the engine needs to know from the configuration."""

    sources: tuple[SourceOptions, ...]
    budget: Budget  # the false alarms of one device
    update_every_s: float = 60.0
    most_devices: int = 10_000
    idle_limit_s: float = 30 * 86_400.0  # a device that was silent for so long may give up its place
    instance: str = "gruard"


class Engine:
    """All devices, their states and alerts. Deterministic: the same calls give the same events."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.groups: dict[str, Group] = {}
        self.devices: dict[str, Device] = {}
        self.resets = 0  # hidden states that were not finite and start again
        self.heard = 0  # number of the newest operator's word there is
        self.gaps = 0  # sequence numbers that were skipped: lost on the way here, or refused
        self._sources = {source.name: source for source in options.sources}
        self._timed = frozenset(source.name for source in options.sources if source.time is not None)
        self._group_of: dict[str, Group] = {}  # by device
        self._admission = Admission(options.idle_limit_s)
        self._marks = (Marks(), Marks())  # by generation of checkpoints

    # -- readings ------------------------------------------------------------------------------

    def receive(self, readings: Sequence[Reading]) -> list[Event]:
        """Score readings, at most one a device: the caller keeps a device's readings in order."""
        names = {reading.device for reading in readings}
        if len(names) < len(readings):
            raise ValueError("a device stands twice in one batch: see gruard.daemon.core.batcher")
        events: list[Event] = []
        batches: dict[str, Batch] = {}
        for reading in readings:
            try:
                device, placed = self._admit(reading, names, events)
            except DecodeError as refusal:
                events.append(Refused(reading, refusal.reason))
            else:
                batches.setdefault(self._group_of[device.name].name, []).append((device, placed))
        for name, batch in batches.items():
            self._score(self.groups[name], batch, events)
        if readings:
            self._admission.passes(readings[-1].received_s)
        return events

    def knows(self, device: str) -> bool:
        """Whether a device has a place."""
        return device in self.devices

    def _admit(
        self, reading: Reading, spared: Collection[str], events: list[Event]
    ) -> tuple[Device, Reading]:
        device = self.devices.get(reading.device)
        source = self._sources[reading.source]
        if device is None:
            if self._is_full and not self._admission.may_look(reading.received_s):
                raise DecodeError("too_many_devices", f"the limit is {self.options.most_devices}")
            device = Device(reading.device, reading.source, heard=self.heard)
        elif device.source != reading.source:
            raise DecodeError("bad_device_id", f"already known from source {device.source}")
        time_s = admit_time(device, reading, event_time=source.time is not None)
        vouched = reading.growing or bool(source.include)
        fields = admit_fields(device, reading, source.max_fields, vouched=vouched)
        if fields is not None and self._is_foreign(source.name, fields):
            raise DecodeError("unknown_field", "the name of the group is taken")
        if device.name not in self.devices:
            if self._is_full:
                self._make_room(reading.received_s, spared, events)
            self.devices[device.name] = device
        if fields is not None:
            self._move(device, fields, events)
        if time_s != reading.time_s:
            reading = dataclasses.replace(reading, time_s=time_s)
        return device, reading

    def _score(self, group: Group, batch: Batch, events: list[Event]) -> None:
        slots = np.array([group.devices[device.name] for device, _ in batch])  # (B,)
        missing = float("nan")
        rows = np.array(
            [
                [reading.time_s, *[reading.values.get(name, missing) for name in group.fields]]
                for _, reading in batch
            ]
        )  # (B, 1 + F)
        values = rows[:, 1:]
        scores = group.scorer.score(slots, rows[:, 0].copy(), values)
        self.resets += scores.resets
        timed = group.source in self._timed
        found = zip(
            batch,
            rows,
            scores.score.tolist(),
            scores.threshold.tolist(),
            scores.onset.tolist(),
            scores.phase.tolist(),
            scores.alarm.tolist(),
            strict=True,
        )
        for n, ((device, reading), row, score, threshold, onset, phase, alarm) in enumerate(found):
            if reading.sequence is not None:
                self._count(device, reading.sequence, events)
            take_time(device, reading, mark_of(row.tobytes(), reading.sequence, event_time=timed))
            device.count += 1
            device.phase = PHASE_NAMES[phase]
            if device.ready_s is None:
                events += progress.note(device, reading, scored=score == score, ready=phase == _READY)  # noqa: PLR0124 -- NaN while gathering
            events.append(
                Scored(
                    reading,
                    group.name,
                    group.fields,
                    row[1:],
                    score=score,
                    threshold=threshold,
                    onset=onset,
                    phase=device.phase,
                    alarm=alarm or score >= threshold,
                )
            )
            if phase >= _LEARNING and (alarm or device.track.id):
                self._follow(group, device, reading, scores, n, events)
        self._mark(device.name for device, _ in batch)
        due = frozenset(group.scorer.due(slots).tolist())
        if due:
            asked = zip(batch, slots.tolist(), strict=True)
            events += [self._ask(device) for (device, _), slot in asked if slot in due]

    def _count(self, device: Device, sequence: int, events: list[Event]) -> None:
        before = device.last_sequence
        missing = take_sequence(device, sequence)
        if missing is not None:
            self.gaps += missing
        else:
            events.append(Noted(device.name, f"counts anew: sequence number {sequence} after {before}"))

    def _follow(
        self, group: Group, device: Device, reading: Reading, scores: Scores, n: int, events: list[Event]
    ) -> None:
        score, threshold = float(scores.score[n]), float(scores.threshold[n])
        learning = device.phase == "learning"
        severity = alerts.severity_of(score, threshold, learning=learning)
        if reading.replayed:
            severity = "info"  # what is over or told late pages nobody
        before = device.track.id
        state = alerts.follow(
            device.track,
            alarm=bool(scores.alarm[n]),
            time_s=device.last_s,
            update_every_s=self.options.update_every_s,
            severity=severity,
            new_id=alerts.alert_id(self.options.instance, device.name, device.last_s, device.count),
        )
        if state is None:
            return
        model = BASELINE if learning else group.model
        if state == "resolved" and scores.lasted[n]:
            # From here on it is the device's normal: it is fitted anew on the readings of the alarm.
            device.normal_from_s, device.normal_to_s = device.track.opened_s, device.last_s
            events.append(self._ask(device))
        events.append(
            telling.alert_of(
                device,
                group,
                reading,
                scores,
                n,
                alert_id=before or device.track.id,
                state=state,
                severity=severity,
                model=model,
            )
        )

    def place(self, name: str, source: str, fields: tuple[str, ...]) -> list[EnrolDue]:
        """Give a device the fields that the journal says it had: recovery repeats decisions."""
        device = self.devices.get(name)
        if device is None:
            device = self.devices[name] = Device(name, source)
        if device.fields == fields:
            return []
        if not device.settled and not set(device.fields) & set(fields):
            device.count = 0
        device.sightings = {}
        events: list[Event] = []
        self._move(device, fields, events)
        return [event for event in events if isinstance(event, EnrolDue)]

    # -- groups and enrolment ------------------------------------------------------------------

    def enrol(self, histories: Mapping[str, History]) -> None:
        """Fit devices on their recent readings, each history ending with the newest one applied.

        Devices of one group are enrolled together; one whose history is empty is left as it is.
        """
        by_group: dict[str, list[str]] = {}
        for name, history in histories.items():
            device = self.devices[name]
            if len(history.time_s):
                by_group.setdefault(self._group_of[device.name].name, []).append(name)
        for group_id, names in by_group.items():
            group = self.groups[group_id]
            slots = np.array([group.devices[name] for name in names])
            fitted = [self._fitted(group, self.devices[name]) for name in names]
            group.scorer.enrol(slots, [histories[name] for name in names], fitted)
            stands = group.scorer.borrowed(slots).tolist(), group.scorer.heads(slots).tolist()
            for name, share, head in zip(names, *stands, strict=True):
                self.devices[name].borrowed, self.devices[name].head = share, group.head_name(name, head)
            self._mark(names)

    @staticmethod
    def _fitted(group: Group, device: Device) -> Fitted | None:
        """What the trainer fixed for a device, unless the device has a new normal since."""
        return group.fitted.get(device.name) if group.trained_to_s > device.normal_to_s else None

    def adopt(self, group_id: str, package: ModelPackage) -> list[EnrolDue]:
        """Put new weights in charge of a group. Every device with enough readings becomes due.

        Raises:
            ModelError: the package does not fit the group, or its weights cannot be used.
        """
        group = self.groups[group_id]
        if package.manifest.fields != group.fields:
            raise ModelError(f"model {package.manifest.id} is for other fields than group {group_id}")
        forecaster = Forecaster(check_network(package), package.tensors)
        if forecaster.fields != len(group.fields):
            raise ModelError(f"model {package.manifest.id} forecasts {forecaster.fields} fields")
        fitted = fitted_devices(package.manifest.devices, package.tensors)
        group.scorer.adopt(forecaster, package.manifest.id, loan_of(package.tensors))
        group.model, group.fitted = package.manifest.id, fitted
        group.trained_to_s = package.manifest.span_end_s
        return self._all_due(group)

    def _all_due(self, group: Group) -> list[EnrolDue]:
        self._mark(group.devices)
        return [
            self._ask(self.devices[name], REWARM_ROWS)
            for name in group.devices
            if self.devices[name].count >= ENROL_AT[0]
        ]

    def leave_model(self, group_id: str) -> list[EnrolDue]:
        """Put the baseline back in charge of a group. Every device with enough readings becomes due."""
        group = self.groups[group_id]
        group.leave_model()
        return self._all_due(group)

    def open_group(self, source: str, fields: tuple[str, ...]) -> Group:
        """The group of a source and field set, made when it is new."""
        name = group_name(source, fields)
        if name not in self.groups:
            scorer = GroupScorer(len(fields), self.options.budget)
            self.groups[name] = Group(name, source, fields, scorer)
        return self.groups[name]

    def hear(self, word: int, name: str, change: Effect) -> None:
        """Let an operator's word change its device, once; one of nobody changes nothing."""
        self.heard = max(self.heard, word)
        device = self.devices.get(name)
        if device is not None and device.heard < word:
            hearing.hear(device, self._group_of[name], word, change)
            self._mark([name])

    def group_of(self, name: str) -> Group | None:
        """The group of a device that has a place."""
        return self._group_of.get(name)

    def skill(self, group: Group) -> float:
        """Running skill of a group's model against the baseline; NaN while the baseline is in charge."""
        return group.scorer.skill(np.fromiter(group.devices.values(), np.int64, len(group.devices)))

    def phase_counts(self) -> dict[str, int]:
        """Devices by phase."""
        counts = dict.fromkeys(PHASE_NAMES.values(), 0)
        for device in self.devices.values():
            counts[device.phase] += 1
        return counts

    def _ask(self, device: Device, limit: int = ENROL_ROWS) -> EnrolDue:
        rows = min(limit, device.count)
        return EnrolDue(
            device.name, device.source, device.fields, rows, device.normal_from_s, device.normal_to_s
        )

    def _move(self, device: Device, fields: tuple[str, ...], events: list[Event]) -> None:
        """Put a device into the group of its new field set; it is enrolled there on its history."""
        if device.fields:
            self._leave_group(device)
            gone, come = set(device.fields) - set(fields), set(fields) - set(device.fields)
            events.append(Noted(device.name, f"fields changed: new {sorted(come)}, gone {sorted(gone)}"))
        device.fields = fields
        self._join_group(device)
        if device.count >= DISCOVERY:
            events.append(self._ask(device))

    def _is_foreign(self, source: str, fields: tuple[str, ...]) -> bool:
        """Whether the name of a field set, a short hash, belongs to another: by chance, or on purpose."""
        group = self.groups.get(group_name(source, fields))
        return group is not None and group.fields != fields

    def _join_group(self, device: Device) -> int:
        group = self.open_group(device.source, device.fields)
        slot = group.scorer.add(device.count, device.last_s)
        group.devices[device.name], self._group_of[device.name] = slot, group
        hearing.remind(device, group)
        return slot

    def _leave_group(self, device: Device) -> None:
        group = self._group_of.pop(device.name)
        group.scorer.remove(group.devices.pop(device.name))
        if not group.devices and group.model == BASELINE:
            del self.groups[group.name]  # invented field sets must not pile up

    # -- slow drift ----------------------------------------------------------------------------

    def watched(self, names: Iterable[str], drifts: Mapping[str, Drift]) -> list[Event]:
        """What a comparison of devices with their first days has shown: device -> its drift, if any."""
        told = (
            follow_drift(device, self._group_of[name], drifts.get(name), self.options.instance)
            for name in names
            if (device := self.devices.get(name)) is not None
        )
        return [event for event in told if event is not None]

    def drifting(self, open_drifts: Mapping[str, tuple[str, float]]) -> None:
        """Which devices have an open alert of drift: device -> its id and since when (event time)."""
        for device in self.devices.values():
            device.drift_id, device.drift_since_s = open_drifts.get(device.name, ("", 0.0))

    # -- the cap on devices --------------------------------------------------------------------

    def remove(self, name: str, reason: str, now_s: float) -> list[Event]:
        """Forget a device, to make room for others; its open alert is resolved. `now_s`: Unix seconds."""
        device = self.devices.pop(name)
        events: list[Event] = []
        group = self._group_of[name]
        open_alerts: tuple[tuple[str, float, AlertKind], ...] = (
            (device.track.id, device.track.opened_s, "anomaly"),
            (device.drift_id, device.drift_since_s, "drift"),
        )
        time_s = max(now_s, device.last_s)
        events += [
            telling.last_word(device, group, time_s, alert_id=alert_id, since_s=since_s, kind=kind)
            for alert_id, since_s, kind in open_alerts
            if alert_id
        ]
        self._leave_group(device)
        return [*events, Removed(name, device.source, reason)]

    @property
    def _is_full(self) -> bool:
        return len(self.devices) >= self.options.most_devices

    def _make_room(self, now_s: float, spared: Collection[str], events: list[Event]) -> None:
        found = self._admission.leaver(self.devices.values(), spared, now_s)
        if found is None:
            raise DecodeError("too_many_devices", f"the limit is {self.options.most_devices}")
        device, reason = found
        events += self.remove(device.name, reason, now_s)

    # -- checkpoints ---------------------------------------------------------------------------

    def checkpoint(self, generation: int) -> Iterator[DeviceRow]:
        """Every device that moved since the last durable checkpoint of a generation, one at a time.

        Two generations, 0 and 1, are kept apart, so that one can be damaged without loss. Follow it with
        `checkpointed` once the rows are durable: until then the devices count as moved.
        """
        for name in self._marks[generation].take():
            if name in self.devices:  # it may have been removed since
                yield row_of(self.devices[name], self._group_of[name])

    def checkpointed(self, generation: int) -> None:
        """The rows that `checkpoint` gave last are durable. What moved since stays marked."""
        self._marks[generation].settle()

    def _mark(self, names: Iterable[str]) -> None:
        """Devices moved: their rows are behind in both generations."""
        moved = list(names)
        for marks in self._marks:
            marks.moved.update(moved)

    def restore(self, rows: Iterable[DeviceRow]) -> list[EnrolDue]:
        """Put devices back from checkpoints, after the live models were adopted.

        A row written under other weights or another layout keeps its device and becomes due for enrolment.
        """
        due = []
        for row in rows:
            if row.source not in self._sources or self._is_foreign(row.source, row.fields):
                continue  # no longer configured; its rows stay in the database
            device, numeric = open_state(row.state)
            if device.arrived_s == -math.inf:
                device.arrived_s = device.last_s  # written before arrivals were kept
            self.devices[device.name] = device
            slot = self._join_group(device)
            group = self._group_of[device.name]
            if not loaded(group, slot, row.layout, numeric) and device.count >= ENROL_AT[0]:
                due.append(self._ask(device, REWARM_ROWS))
            self._mark([device.name])  # which generation the row is of is not known here
        self._admission = Admission(self.options.idle_limit_s, self.devices.values())
        return due
