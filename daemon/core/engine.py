"""The core: readings in, events out. No I/O, no clock, no threads; the whole product is in here.

    receive(readings) -> events     every reading ends as exactly one Scored or Refused, alerts follow theirs
    enrol(histories)                the answer to EnrolDue: a device is fitted on its recent readings
    adopt(group, package)           new weights; every device of the group becomes due for enrolment

Devices with the same source and the same fields form a group and are scored as one batch. A reading is
scored against forecasts made before it was seen, then moves the device's state.
"""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from gruard.daemon.core import alerts
from gruard.daemon.core.devices import DISCOVERY, Device, admit_fields, admit_time
from gruard.daemon.core.events import Alert, EnrolDue, Event, Noted, Refused, Scored
from gruard.daemon.errors import DecodeError
from gruard.models.enrolment import fitted_devices
from gruard.models.errors import ModelError
from gruard.models.forecaster import Forecaster
from gruard.models.group import ENROL_AT, GroupScorer, Phase, Scores
from gruard.models.weights import check_network

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from gruard.daemon.records import Reading, SourceOptions
    from gruard.models.calibration import Budget
    from gruard.models.enrolment import Fitted
    from gruard.models.history import History
    from gruard.models.weights import ModelPackage

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
BASELINE = "baseline"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What the engine needs to know from the configuration."""

    sources: tuple[SourceOptions, ...]
    budget: Budget  # the false alarms of one device
    update_every_s: float = 60.0
    most_devices: int = 10_000
    instance: str = "gruard"


@dataclass(slots=True)
class Group:
    """Devices scored together."""

    name: str
    source: str
    fields: tuple[str, ...]
    scorer: GroupScorer
    model: str = BASELINE
    fitted: Mapping[str, Fitted] = field(default_factory=dict)
    devices: dict[str, int] = field(default_factory=dict)  # device -> slot


@dataclass(frozen=True, slots=True)
class DeviceRow:
    """A device's checkpoint."""

    device: str
    source: str
    fields: tuple[str, ...]
    layout: str
    model: str
    state: bytes


@dataclass(slots=True)
class Marks:
    """Devices whose row in one generation of checkpoints is behind."""

    moved: set[str] = field(default_factory=set)
    taken: set[str] = field(default_factory=set)  # given out and not known to be durable yet

    def take(self) -> list[str]:
        """All that are behind, by name; those that a failed write left are among them."""
        self.taken |= self.moved
        self.moved = set()
        return sorted(self.taken)


def group_name(source: str, fields: Sequence[str]) -> str:
    """Stable name of a group: the source and a short hash of the field names."""
    return f"{source}-{hashlib.sha256(chr(0).join(fields).encode()).hexdigest()[:6]}"


class Engine:
    """All devices, their states and alerts. Deterministic: the same calls give the same events."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.groups: dict[str, Group] = {}
        self.devices: dict[str, Device] = {}
        self.resets = 0  # hidden states that were not finite and start again
        self._sources = {source.name: source for source in options.sources}
        self._marks = (Marks(), Marks())  # by generation of checkpoints

    # -- readings ------------------------------------------------------------------------------

    def receive(self, readings: Sequence[Reading]) -> list[Event]:
        """Score readings, at most one a device: the caller keeps a device's readings in order."""
        if len({reading.device for reading in readings}) < len(readings):
            raise ValueError("a device stands twice in one batch: see gruard.daemon.core.batcher")
        events: list[Event] = []
        batches: dict[str, list[tuple[Device, Reading]]] = {}
        for reading in readings:
            try:
                device, placed = self._admit(reading, events)
            except DecodeError as refusal:
                events.append(Refused(reading, refusal.reason))
            else:
                batches.setdefault(group_name(device.source, device.fields), []).append((device, placed))
        for name, batch in batches.items():
            self._score(self.groups[name], batch, events)
        return events

    def _admit(self, reading: Reading, events: list[Event]) -> tuple[Device, Reading]:
        device = self.devices.get(reading.device)
        source = self._sources[reading.source]
        if device is None:
            if len(self.devices) >= self.options.most_devices:
                raise DecodeError("too_many_devices", f"the limit is {self.options.most_devices}")
            device = Device(reading.device, reading.source)
        elif device.source != reading.source:
            raise DecodeError("bad_device_id", f"already known from source {device.source}")
        time_s = admit_time(device, reading, event_time=source.time is not None)
        vouched = reading.growing or bool(source.include)
        fields = admit_fields(device, reading, source.max_fields, vouched=vouched)
        self.devices[device.name] = device
        if fields is not None:
            self._move(device, fields, events)
        if time_s != reading.time_s:
            reading = dataclasses.replace(reading, time_s=time_s)
        return device, reading

    def _score(self, group: Group, batch: list[tuple[Device, Reading]], events: list[Event]) -> None:
        slots = np.array([group.devices[device.name] for device, _ in batch])  # (B,)
        times = np.array([reading.time_s for _, reading in batch])  # (B,)
        missing = float("nan")
        values = np.array(
            [[reading.values.get(name, missing) for name in group.fields] for _, reading in batch]
        )  # (B, F)
        scores = group.scorer.score(slots, times, values)
        self.resets += scores.resets
        for n, (device, reading) in enumerate(batch):
            same_moment = reading.time_s == device.last_s
            told = dict(device.last_values) if same_moment else {}
            device.last_values = told | dict(reading.values)
            device.last_s, device.count = reading.time_s, device.count + 1
            alert = self._follow(group, device, scores, n, values[n])
            device.phase = PHASE_NAMES[Phase(int(scores.phase[n]))]
            events.append(
                Scored(
                    reading,
                    group.name,
                    group.fields,
                    values[n],
                    score=float(scores.score[n]),
                    threshold=float(scores.threshold[n]),
                    onset=float(scores.onset[n]),
                    phase=device.phase,
                    alarm=bool(scores.alarm[n] or scores.score[n] >= scores.threshold[n]),
                )
            )
            if alert is not None:
                events.append(alert)
        self._mark(device.name for device, _ in batch)
        due = frozenset(group.scorer.due(slots).tolist())
        events += [self._ask(device) for (device, _), slot in zip(batch, slots, strict=True) if slot in due]

    def _follow(
        self, group: Group, device: Device, scores: Scores, n: int, values: NDArray[np.float64]
    ) -> Alert | None:
        phase, alarm = scores.phase[n], bool(scores.alarm[n])
        if phase < Phase.LEARNING or not (alarm or device.track.id):
            return None
        score, threshold = float(scores.score[n]), float(scores.threshold[n])
        learning = bool(phase == Phase.LEARNING)
        severity = alerts.severity_of(score, threshold, learning=learning)
        known_id, opened_s = device.track.id, device.track.opened_s
        state = alerts.follow(
            device.track,
            alarm=alarm,
            time_s=device.last_s,
            update_every_s=self.options.update_every_s,
            severity=severity,
            new_id=alerts.alert_id(self.options.instance, device.name, device.last_s),
        )
        if state is None:
            return None
        why = scores.reasons
        shares = sorted(zip(group.fields, why.share[n].tolist(), strict=True), key=lambda s: -s[1])
        return Alert(
            id=device.track.id or known_id,
            state=state,
            severity=severity,
            device=device.name,
            source=group.source,
            group=group.name,
            time_s=device.last_s,
            opened_s=device.track.opened_s if device.track.id else opened_s,
            score=score,
            threshold=threshold,
            value=_by_field(group.fields, values),
            expected=_by_field(group.fields, why.expected[n]),
            deviation=_by_field(group.fields, why.deviation[n]),
            contributions=tuple(shares),
            model=BASELINE if learning else group.model,
        )

    def place(self, name: str, source: str, fields: tuple[str, ...]) -> list[EnrolDue]:
        """Give a device the fields that the journal says it had: recovery repeats decisions."""
        device = self.devices.setdefault(name, Device(name, source))
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
                by_group.setdefault(group_name(device.source, device.fields), []).append(name)
        for group_id, names in by_group.items():
            group = self.groups[group_id]
            slots = np.array([group.devices[name] for name in names])
            fitted = [group.fitted.get(name) for name in names]
            group.scorer.enrol(slots, [histories[name] for name in names], fitted)
            self._mark(names)

    def adopt(self, group_id: str, package: ModelPackage) -> list[EnrolDue]:
        """Put new weights in charge of a group. Every device with enough readings becomes due.

        Raises:
            ModelError: the package does not fit the group, or its weights cannot be used.
        """
        group = self.groups[group_id]
        if package.manifest.fields != group.fields:
            raise ModelError(f"model {package.manifest.id} is for other fields than group {group_id}")
        forecaster = Forecaster(check_network(package), package.tensors)
        fitted = fitted_devices(package.manifest.devices, package.tensors)
        group.scorer.adopt(forecaster, package.manifest.id)
        group.model, group.fitted = package.manifest.id, fitted
        self._mark(group.devices)
        return [
            self._ask(self.devices[name], REWARM_ROWS)
            for name in group.devices
            if self.devices[name].count >= ENROL_AT[0]
        ]

    def open_group(self, source: str, fields: tuple[str, ...]) -> Group:
        """The group of a source and field set, made when it is new."""
        name = group_name(source, fields)
        if name not in self.groups:
            scorer = GroupScorer(len(fields), self.options.budget)
            self.groups[name] = Group(name, source, fields, scorer)
        return self.groups[name]

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
        return EnrolDue(device.name, device.source, device.fields, min(limit, device.count))

    def _move(self, device: Device, fields: tuple[str, ...], events: list[Event]) -> None:
        """Put a device into the group of its new field set; it is enrolled there on its history."""
        if device.fields:
            old = self.groups[group_name(device.source, device.fields)]
            old.scorer.remove(old.devices.pop(device.name))
            gone, come = set(device.fields) - set(fields), set(fields) - set(device.fields)
            events.append(Noted(device.name, f"fields changed: new {sorted(come)}, gone {sorted(gone)}"))
        group = self.open_group(device.source, fields)
        device.fields = fields
        group.devices[device.name] = group.scorer.add(device.count, device.last_s)
        if device.count >= DISCOVERY:
            events.append(self._ask(device))

    # -- checkpoints ---------------------------------------------------------------------------

    def checkpoint(self, generation: int) -> Iterator[DeviceRow]:
        """Every device that moved since the last durable checkpoint of a generation, one at a time.

        Two generations, 0 and 1, are kept apart, so that one can be damaged without loss. Follow it with
        `checkpointed` once the rows are durable: until then the devices count as moved.
        """
        for name in self._marks[generation].take():
            if name in self.devices:
                yield self._row(self.devices[name])

    def checkpointed(self, generation: int) -> None:
        """The rows that `checkpoint` gave last are durable. What moved since stays marked."""
        self._marks[generation].taken.clear()

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
            if row.source not in self._sources:
                continue  # no longer configured; its rows stay in the database
            device, numeric = open_state(row.state)
            group = self.open_group(row.source, row.fields)
            self.devices[device.name] = device
            slot = group.scorer.add(device.count, device.last_s)
            group.devices[device.name] = slot
            if not _loaded(group, slot, row.layout, numeric) and device.count >= ENROL_AT[0]:
                due.append(self._ask(device, REWARM_ROWS))
            self._mark([device.name])  # which generation the row is of is not known here
        return due

    def _row(self, device: Device) -> DeviceRow:
        group = self.groups[group_name(device.source, device.fields)]
        known = msgspec.msgpack.encode(device)
        state = len(known).to_bytes(4, "big") + known + group.scorer.dump(group.devices[device.name])
        layout = group.scorer.layout_id
        return DeviceRow(device.name, device.source, device.fields, layout, group.model, state)


def open_state(state: bytes) -> tuple[Device, bytes]:
    """Take a checkpoint's bytes apart: what the engine knows of the device, and its numeric memory.

    Raises:
        msgspec.DecodeError: the bytes are no checkpoint.
    """
    numeric_at = int.from_bytes(state[:4], "big") + 4
    return msgspec.msgpack.decode(state[4:numeric_at], type=Device), state[numeric_at:]


def _loaded(group: Group, slot: int, layout: str, numeric: bytes) -> bool:
    if layout != group.scorer.layout_id:
        return False
    try:
        group.scorer.load(slot, numeric)
    except ModelError:
        return False
    return True


def _by_field(fields: Sequence[str], values: NDArray[np.float64]) -> dict[str, float | None]:
    """Numbers by field; what is missing or not finite is None, never NaN."""
    return {n: (v if np.isfinite(v) else None) for n, v in zip(fields, values.tolist(), strict=True)}
