"""Every payload of the hand list between good readings: sources, then an engine with a model in charge."""

from __future__ import annotations

import copy
import json
from functools import cache

import numpy as np
import pytest
from fuzz.models import sealed, sound_tensors
from support_engine import Bench, plant_rows
from support_payloads import HOSTILE

from gruard.daemon.core.events import Event, Refused, Scored
from gruard.daemon.core.sources import Sources
from gruard.daemon.errors import DecodeError
from gruard.daemon.records import REJECT_REASONS, Message, Reading, SourceOptions

START_S = 1_750_000_000.0
DEVICES = ("pump-1", "pump-2")
WARM, AROUND = 80, 6
SOURCES = {
    "arrival": SourceOptions("plant", "plant/{device}"),
    "event": SourceOptions("plant", "plant/{device}", time="ts"),
    "counted": SourceOptions("plant", "plant/{device}", time="ts", sequence="n"),
}

#: What only the device's own fields can be asked: keys that are absent, foreign, twice or of another type.
OWN = [
    ("own field missing", b'{"f1":20.5,"ts":%.1f,"n":%d}'),
    ("own fields null", b'{"f0":null,"f1":null,"ts":%.1f,"n":%d}'),
    ("a stranger beside", b'{"f0":20.5,"f1":20.5,"x":1e9,"ts":%.1f,"n":%d}'),
    ("strangers alone", b'{"x":1,"y":2,"ts":%.1f,"n":%d}'),
    ("own field twice", b'{"f0":1,"f0":20.5,"f1":20.5,"ts":%.1f,"n":%d}'),
    ("own field twice, of two types", b'{"f0":1,"f0":"x","f1":20.5,"ts":%.1f,"n":%d}'),
    ("own field a string", b'{"f0":"20.5","f1":20.5,"ts":%.1f,"n":%d}'),
    ("own field a bool", b'{"f0":true,"f1":20.5,"ts":%.1f,"n":%d}'),
    ("own field a list", b'{"f0":[20.5],"f1":20.5,"ts":%.1f,"n":%d}'),
    ("own field an object", b'{"f0":{"v":20.5},"f1":20.5,"ts":%.1f,"n":%d}'),
    ("own field NaN", b'{"f0":NaN,"f1":20.5,"ts":%.1f,"n":%d}'),
    ("own field 1e400", b'{"f0":1e400,"f1":20.5,"ts":%.1f,"n":%d}'),
    ("own field 1e308", b'{"f0":1e308,"f1":20.5,"ts":%.1f,"n":%d}'),
    ("own field 1e15", b'{"f0":1e15,"f1":20.5,"ts":%.1f,"n":%d}'),
    ("own field subnormal", b'{"f0":5e-324,"f1":20.5,"ts":%.1f,"n":%d}'),
    ("own field minus zero", b'{"f0":-0.0,"f1":20.5,"ts":%.1f,"n":%d}'),
]


def _cases() -> list[tuple[str, bytes]]:
    """The hand list as it is, and again as if it meant the fields of our device."""
    cases = list(HOSTILE)
    for name, payload in HOSTILE:
        meant = payload.replace(b'"a"', b'"f0"').replace(b'"k"', b'"f1"').replace(b'"b"', b'"f1"')
        if meant != payload:
            cases.append((f"{name}, as an own field", meant))
    between_s = START_S + WARM + AROUND // 2 - 0.5
    return [*cases, *((name, form % (between_s, 10 * between_s)) for name, form in OWN)]


CASES = _cases()


class Plant:
    """Two pumps with a model in charge, fed with messages."""

    def __init__(self, options: SourceOptions) -> None:
        self.options, self.sources = options, Sources([options])
        self.bench = Bench(source=options)
        self.rows = plant_rows(WARM + AROUND, 0, 2)
        self.count = 0
        while self.count < WARM:
            self.good()
        (group,) = [group.name for group in self.bench.engine.groups.values() if group.devices]
        due = self.bench.engine.adopt(group, sealed(sound_tensors()))
        self.bench.engine.enrol({e.device: self.bench.history(e.device, e.fields, e.limit) for e in due})

    def twin(self) -> Plant:
        """Another plant that goes on from here."""
        twin = copy.copy(self)
        twin.bench = copy.deepcopy(self.bench)
        return twin

    def good(self) -> list[Scored]:
        """One good message of each pump; what they came to."""
        at = int(START_S + self.count)
        payload: dict[str, float] = {f"f{k}": value for k, value in enumerate(self.rows[self.count].tolist())}
        if self.options.time is not None:
            payload["ts"] = at
        if self.options.sequence is not None:
            payload["n"] = 10 * at
        self.count += 1
        wave = [self.decoded(device, json.dumps(payload).encode(), at)[0] for device in DEVICES]
        return [event for event in self.bench.feed_wave(wave) if isinstance(event, Scored)]

    def poison(self, payload: bytes) -> list[Event] | str:
        """A message of the first pump: what it came to in the engine, or why it never got there."""
        try:
            readings = self.decoded(DEVICES[0], payload, START_S + self.count - 0.5)
        except DecodeError as refusal:
            return refusal.reason
        return self.bench.feed(readings)

    def decoded(self, device: str, payload: bytes, received_s: float) -> list[Reading]:
        return self.sources.decode(Message(f"plant/{device}", payload, received_s))


@cache
def warm(kind: str) -> Plant:
    return Plant(SOURCES[kind])


@cache
def undisturbed(kind: str) -> list[Scored]:
    plant = warm(kind).twin()
    scored = [event for _ in range(AROUND) for event in plant.good()]
    assert {event.phase for event in scored} == {"ready"}
    return scored


def told(event: Scored) -> tuple[object, ...]:
    return event.reading.device, event.reading.time_s, event.score, event.threshold, event.onset, event.alarm


def test_the_hand_list_with_own_fields_is_long() -> None:
    """The list is longer than the three hundred that the matrix asks for, each case with its name."""
    assert len(CASES) >= 400
    assert len({name for name, _ in CASES}) == len(CASES)


@pytest.mark.parametrize("kind", SOURCES)
def test_each_hostile_payload_leaves_its_neighbours_scores_alone(kind: str) -> None:
    """Every pump scores bit by bit as without it, unless it was a reading of that pump."""
    ends: dict[str, int] = {}
    for name, payload in CASES:
        if name.startswith("1000 samples"):
            continue  # see the last test
        plant = warm(kind).twin()
        scored = [event for _ in range(AROUND // 2) for event in plant.good()]
        end = plant.poison(payload)
        scored += [event for _ in range(AROUND // 2) for event in plant.good()]
        moved = not isinstance(end, str) and any(isinstance(event, Scored) for event in end)
        refused = [end] if isinstance(end, str) else [e.reason for e in end if isinstance(e, Refused)]
        assert {*refused} <= {*REJECT_REASONS, ""}, name
        assert moved or refused, name
        ends["scored" if moved else "refused"] = ends.get("scored" if moved else "refused", 0) + 1
        expected = undisturbed(kind)
        assert len(scored) == len(expected), name
        for found, wanted in zip(scored, expected, strict=True):
            assert np.isfinite(found.score), name
            if not (moved and found.reading.device == DEVICES[0]):
                assert told(found) == told(wanted), name
    assert ends["refused"] > 300
    assert ends["scored"] > 0


def test_one_message_does_not_rename_its_device() -> None:
    """A thousand samples of foreign fields are one message, and a stray message changes no device."""
    plant = warm("arrival").twin()
    plant.poison(json.dumps([{"a": number} for number in range(1000)]).encode())
    assert len(plant.good()) == len(DEVICES)
