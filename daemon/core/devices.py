"""Who the devices are and which fields they have.

A device's first DISCOVERY readings may add fields; then its field set is settled. A later new field
is taken in after ADOPT_AFTER readings have shown it beside known ones, so that a stray message cannot
change what a device is. A device that shows only foreign fields for RENAMED_AFTER readings in a row,
always the same ones, has been renamed by its maker and starts again with those.

A message that shares no field with the device is not of it, unless its fields are vouched for: by a topic
that names the field, or by the source's `include`. Where a device shows its fields in turns, name them there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gruard.daemon.core.alerts import Track
from gruard.daemon.errors import DecodeError

if TYPE_CHECKING:
    from gruard.daemon.records import Reading

DISCOVERY = 10
ADOPT_AFTER = 30
RENAMED_AFTER = 300
#: Fields on probation that a device may have at a time: an attacker's field names must not pile up.
MOST_CANDIDATES = 16


class Device(msgspec.Struct):
    """What the engine knows of one device beside its numeric state. Part of its checkpoint."""

    name: str
    source: str
    fields: tuple[str, ...] = ()  # sorted
    count: int = 0  # readings applied to the state
    phase: str = "warming"  # "learning": the baseline is in charge, "ready": the model is
    last_s: float = float("-inf")  # event time of the newest
    last_values: dict[str, float] = msgspec.field(default_factory=dict)
    sightings: dict[str, int] = msgspec.field(default_factory=dict)  # field -> readings that showed it
    foreign: int = 0  # readings in a row that showed none of the fields, but these:
    strangers: tuple[str, ...] = ()
    track: Track = msgspec.field(default_factory=Track)

    @property
    def settled(self) -> bool:
        """Whether the field set is known."""
        return self.count >= DISCOVERY


def admit_fields(device: Device, reading: Reading, most: int, *, vouched: bool) -> tuple[str, ...] | None:
    """Judge a reading's fields. Returns the device's new field set if the reading changes it.

    `vouched`: the fields are known to be the device's. Changes the device's sightings, never its fields:
    the caller moves it.

    Raises:
        DecodeError: a field of the device holds something that is no number, or nothing here is of it.
    """
    known = frozenset(device.fields)
    for name, reason in reading.issues.items():
        # A null is a sensor with nothing to say; anything else in a numeric field is a damaged reading.
        if name in known and reason != "null":
            raise DecodeError("out_of_range" if reason == "out_of_range" else "wrong_type", name)
    shown = frozenset(reading.values)
    if not device.settled:
        return _discover(device, known, shown, vouched=vouched, most=most)
    if shown <= known:
        device.foreign = 0
        return None
    if not (shown & known or vouched):
        return _renamed(device, shown)
    device.foreign = 0
    return _adopt(device, known, shown - known, most)


def _discover(
    device: Device, known: frozenset[str], shown: frozenset[str], *, vouched: bool, most: int
) -> tuple[str, ...] | None:
    if known and not (shown & known or vouched):
        if len(shown) <= len(known):
            raise DecodeError("unknown_field", ", ".join(sorted(shown)[:4]))
        # The first message was the stray one: of two strangers the richer is the device.
        device.sightings, device.count, known = {}, 0, frozenset()
    fields = known | shown
    if len(fields) > most:
        raise DecodeError("too_many_fields", f"{len(fields)}, at most {most}")
    for name in shown:
        device.sightings[name] = device.sightings.get(name, 0) + 1
    if device.count + 1 == DISCOVERY:
        # What only one of the first readings showed is not part of the device.
        usual = frozenset(n for n in fields if device.sightings[n] > 1)
        fields = fields if vouched or not usual else usual
        device.sightings = {}
    return tuple(sorted(fields)) if fields != frozenset(device.fields) else None


def _renamed(device: Device, shown: frozenset[str]) -> tuple[str, ...]:
    names = tuple(sorted(shown))
    device.foreign = device.foreign + 1 if device.strangers == names else 1
    device.strangers = names
    if device.foreign < RENAMED_AFTER:
        raise DecodeError("unknown_field", ", ".join(sorted(shown)[:4]))
    device.sightings, device.foreign, device.strangers = {}, 0, ()
    return names


def _adopt(device: Device, known: frozenset[str], new: frozenset[str], most: int) -> tuple[str, ...] | None:
    for name in new:
        if name not in device.sightings and len(device.sightings) >= MOST_CANDIDATES:
            # The one seen least makes room, so that strays cannot keep a real new field out.
            del device.sightings[min(device.sightings, key=lambda seen: device.sightings[seen])]
        device.sightings[name] = device.sightings.get(name, 0) + 1
    ripe = frozenset(name for name in new if device.sightings.get(name, 0) >= ADOPT_AFTER)
    if not ripe or len(known | ripe) > most:
        return None
    device.sightings = {name: n for name, n in device.sightings.items() if name not in ripe}
    return tuple(sorted(known | ripe))


def admit_time(device: Device, reading: Reading, *, event_time: bool) -> float:
    """The reading's place on the device's time axis, or a refusal.

    Raises:
        DecodeError: "late", or "" for a repetition of the newest reading.
    """
    if not event_time:
        # Arrival times jump back when somebody sets the clock; the device's own time does not.
        return max(reading.time_s, device.last_s)
    if reading.time_s < device.last_s:
        raise DecodeError("late", f"{device.last_s - reading.time_s:.3f} s behind")
    if reading.time_s == device.last_s:
        told = device.last_values.items()
        if reading.values.items() <= told:
            raise DecodeError("", "seen before")
        if reading.values.keys() & device.last_values.keys():
            raise DecodeError("late", "the same time with other values")
    return reading.time_s
