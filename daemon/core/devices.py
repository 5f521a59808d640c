"""Who the devices are and which fields they have.

A device's first DISCOVERY readings may add fields; then its field set is settled. A later new field
is taken in after ADOPT_AFTER readings have shown it beside known ones, so that a stray message cannot
change what a device is. A device that shows only foreign fields for RENAMED_AFTER readings in a row,
always the same ones, has been renamed by its maker and starts again with those.

A message that shares no field with the device is not of it, unless its fields are vouched for: by a topic
that names the field, or by the source's `include`. Where a device shows its fields in turns, name them there.

A device's event times rise. An earlier one is late, except where the newest was ahead of the clock, or where
the clock was set back: the time axis then steps back with it, so that no stamp blocks what comes after it. Of
the last REMEMBERED readings each is known again, so none is applied twice. Where the payload carries a
sequence number, that decides what is a repetition, and time only where a reading stands. A number among the
first ones begins a new count, unless the very reading is known from the count before. Any lower count is the
device's at last when nothing else comes for LOWER_AFTER readings in a row and LOWER_AFTER_S.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping  # noqa: TC003 - msgspec reads the type of a field
from typing import TYPE_CHECKING

import msgspec

from gruard.daemon.core.alerts import Track
from gruard.daemon.errors import DecodeError
from gruard.models.patterns import Pattern  # noqa: TC001 - likewise

if TYPE_CHECKING:
    from gruard.daemon.records import Reading

DISCOVERY = 10
ADOPT_AFTER = 30
RENAMED_AFTER = 300
#: Fields on probation that a device may have at a time: an attacker's field names must not pile up.
MOST_CANDIDATES = 16

#: A clock this far off is told from jitter; how long a reading may be on its way when a clock is judged.
SLACK_S, LATENCY_S = 1.0, 5.0
#: A device's usual lead follows its readings by so much each, so that no wild one decides what is usual.
LEAD_STEP_S = 0.1
#: Readings that are known again when they are repeated: the width of the map of sequence numbers.
REMEMBERED = 64
#: A number this far behind, or among these first ones and not remembered, begins a new count. A jump of more
#: than MOST_MISSING is another count too: one hostile number must not make the count of losses useless.
FAR_BEHIND, FIRST_NUMBERS, MOST_MISSING = 4096, 16, 1_000_000
#: A broker's leftovers, or a recording played again, are sooner at an end, or true readings come between.
LOWER_AFTER, LOWER_AFTER_S = 100, 600.0


class Device(msgspec.Struct):
    """What the engine knows of one device beside its numeric state. Part of its checkpoint."""

    name: str
    source: str
    fields: tuple[str, ...] = ()  # sorted
    count: int = 0  # readings applied to the state
    phase: str = "warming"  # "learning": the baseline is in charge, "ready": the model is
    last_s: float = float("-inf")  # event time of the newest
    last_values: Mapping[str, float] = msgspec.field(default_factory=dict)  # told at that time
    high_s: float = float("-inf")  # latest event time so far: above the newest, the clock went back
    arrived_s: float = float("-inf")  # when the newest arrived
    lead_s: float = 0.0  # by how much its event times are usually ahead of their arrival
    recent: bytes = b""  # checksums of the last REMEMBERED readings that told their time
    last_sequence: int | None = None  # of the newest, where the payload tells
    sequences: int = 0  # bit n: the sequence number n before it was applied
    firsts: bytes = b""  # as `recent`, of readings with first numbers, however long ago
    lower: int = 0  # refused readings in a row whose numbers rise, but are too low;
    lower_last: int = 0  # the newest of those numbers;
    lower_s: float = 0.0  # arrival of the first of them
    sightings: dict[str, int] = msgspec.field(default_factory=dict)  # field -> readings that showed it
    foreign: int = 0  # readings in a row that showed none of the fields, but these:
    foreign_s: float = float("-inf")  # arrival of the newest of them
    strangers: tuple[str, ...] = ()
    first_s: float | None = None  # arrival of its first reading; the seconds from there
    first_score_s: float | None = None  # until it was first scored,
    ready_s: float | None = None  # and until a model first took charge
    borrowed: float = 0.0  # share of its thresholds that its group has lent it
    head: str = "shared"  # whose linear weights forecast it: "shared", "cluster <n>" or "own"
    track: Track = msgspec.field(default_factory=Track)
    drift_id: str = ""  # of the open alert of slow drift; empty: none
    drift_since_s: float = 0.0
    # Event times of the newest alarm that lasted until it was taken for normal: its readings are normal, and
    # what was before them is the device's normal no more.
    normal_from_s: float = float("-inf")
    normal_to_s: float = float("-inf")
    heard: int = 0  # number of the newest operator's word that is applied
    patterns: tuple[Pattern, ...] = ()  # what operators called normal, oldest first

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
        return _renamed(device, shown, reading.received_s)
    device.foreign = 0
    if reading.received_s == device.arrived_s:
        return None  # of one message: a thousand samples in it are one sighting
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


def _renamed(device: Device, shown: frozenset[str], received_s: float) -> tuple[str, ...]:
    names = tuple(sorted(shown))
    if device.strangers != names:
        device.foreign = 1
    elif received_s != device.foreign_s:  # a thousand samples in one message are one sighting
        device.foreign += 1
    device.strangers, device.foreign_s = names, received_s
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

    What the journal holds was admitted, and stands where it was placed then.

    Raises:
        DecodeError: "late", or "" for a reading that was applied before.
    """
    time_s, last_s = reading.time_s, device.last_s
    if reading.admitted:
        return time_s
    counted = reading.sequence is not None and device.last_sequence is not None
    if counted:
        _admit_sequence(device, reading, event_time=event_time)
    if not event_time:
        # Arrival times jitter by a moment; a longer way back is a clock that somebody set.
        return time_s if last_s - time_s > SLACK_S else max(time_s, last_s)
    if time_s == last_s and not counted:
        _admit_same_moment(device, reading)
        return time_s
    if time_s < last_s and not _clock_went_back(device, reading):
        raise DecodeError("late", f"{last_s - time_s:.3f} s behind")
    if time_s <= device.high_s:
        # Behind a clock that went back, times come round again that may have been told before.
        if _seen(device, reading, event_time=True):
            raise DecodeError("", "seen before the device's clock went back")
        if time_s > last_s and time_s > reading.received_s + max(device.lead_s, 0.0) + SLACK_S:
            raise DecodeError("late", "of the time before the device's clock went back")
    return time_s


def _admit_same_moment(device: Device, reading: Reading) -> None:
    # Only fields of the device count: of others the journal, and so recovery, knows nothing.
    known = device.fields or reading.values
    told = {name: device.last_values[name] for name in known if name in device.last_values}
    shown = {name: reading.values[name] for name in known if name in reading.values}
    if shown.items() <= told.items():
        raise DecodeError("", "seen before")
    if shown.keys() & told.keys():
        raise DecodeError("late", "the same time with other values")


def _clock_went_back(device: Device, reading: Reading) -> bool:
    """Whether an earlier event time is the true one: the newest was ahead, or the arrival clock was set back.

    The reading must be no later than its arrival, and no earlier than the newest reading arrived: older ones
    are late, also those of a device whose clock is always fast. Such a device is allowed its usual lead.
    """
    time_s, arrived_s, usual_s = reading.time_s, reading.received_s, max(device.lead_s, 0.0)
    was_ahead = device.last_s > device.arrived_s + usual_s + SLACK_S
    if time_s == arrived_s or time_s > arrived_s + SLACK_S + (usual_s if was_ahead else 0.0):
        return False  # to the last bit: a recording, which knows of no arrival
    set_back = device.last_s > arrived_s + SLACK_S
    if set_back and device.arrived_s > arrived_s + SLACK_S:
        return True
    return (set_back or was_ahead) and time_s >= device.arrived_s - LATENCY_S


def _admit_sequence(device: Device, reading: Reading, *, event_time: bool) -> None:
    behind = (device.last_sequence or 0) - (reading.sequence or 0)
    # Where a count began anew, numbers come round again; event times tell those apart below.
    if not event_time and _seen(device, reading, event_time=False):
        raise DecodeError("", "seen before")
    if behind < 0 or (behind and _counts_anew(device, reading, behind, event_time=event_time)):
        return
    if behind < REMEMBERED and device.sequences >> behind & 1:
        raise DecodeError("", "sequence number seen before")
    if not _goes_on(device, reading):
        raise DecodeError("late", f"sequence number {behind} behind")


def _goes_on(device: Device, reading: Reading) -> bool:
    """Note a reading whose number is too low: whether such numbers have come alone, and risen, for long."""
    number = reading.sequence or 0
    if device.lower and number > device.lower_last:
        device.lower += 1
    else:
        device.lower, device.lower_s = 1, reading.received_s
    device.lower_last = number
    return device.lower > LOWER_AFTER and reading.received_s - device.lower_s >= LOWER_AFTER_S


def _counts_anew(device: Device, reading: Reading, behind: int, *, event_time: bool) -> bool:
    """Whether a lower number is the beginning of a new count, and not an old reading."""
    if event_time and reading.time_s > device.last_s:
        return True
    # Without times a number far behind may be of a recording that is played again: only a low one begins.
    far = event_time and behind > FAR_BEHIND
    return far or (behind >= REMEMBERED and (reading.sequence or 0) < FIRST_NUMBERS)


def _seen(device: Device, reading: Reading, *, event_time: bool) -> bool:
    missing = float("nan")
    row = [reading.time_s, *(reading.values.get(name, missing) for name in device.fields)]
    mark = mark_of(struct.pack(f"={len(row)}d", *row), reading.sequence, event_time=event_time)
    return _holds(device.recent, mark) or _holds(device.firsts, mark)


def _holds(marks: bytes, mark: bytes) -> bool:
    at = marks.find(mark)
    while at > 0 and at % len(mark):  # found across two places
        at = marks.find(mark, at + 1)
    return at >= 0


def mark_of(row: bytes, sequence: int | None, *, event_time: bool) -> bytes:
    """Four bytes by which a reading is known again; none where nothing tells it from another.

    `row`: its time, then its values in the order of the fields (NaN = missing), float64.
    """
    if not event_time:
        if sequence is None:
            return b""
        row = row[8:]  # a repetition arrives at another time
    start = 0 if sequence is None else sequence + 1
    return zlib.crc32(row, start & 0xFFFFFFFF).to_bytes(4, "big")


def take_time(device: Device, reading: Reading, mark: bytes) -> None:
    """Move a device's time axis to a reading that was admitted; `mark` is that of `mark_of`."""
    time_s = reading.time_s
    lead_s = min(time_s - reading.received_s, device.lead_s + LEAD_STEP_S)
    if time_s >= device.last_s:  # a step back decides at once: the clock is another one
        lead_s = max(lead_s, device.lead_s - LEAD_STEP_S)
    if reading.sequence is not None and reading.sequence < FIRST_NUMBERS and _differs(device, reading):
        device.firsts = (device.firsts + mark)[-4 * REMEMBERED :]
    if time_s == device.last_s:
        device.last_values = {**device.last_values, **reading.values}
    else:
        device.last_values = reading.values
    device.last_s, device.arrived_s = time_s, reading.received_s
    device.high_s = max(device.high_s, time_s)
    device.lead_s = lead_s
    if mark:
        device.recent = (device.recent + mark)[-4 * REMEMBERED :]


def _differs(device: Device, reading: Reading) -> bool:
    """Whether a reading shows something new: one that shows the same all day is no sign of a repetition."""
    return any(reading.values.get(name) != device.last_values.get(name) for name in device.fields)


def take_sequence(device: Device, sequence: int) -> int | None:
    """Move a device's count to a number that was admitted. Returns how many miss; None: a new count."""
    last, device.last_sequence, device.lower = device.last_sequence, sequence, 0
    step = 1 if last is None else sequence - last
    if not 0 < step <= MOST_MISSING:
        device.sequences = 1
        return None
    device.sequences = (device.sequences << min(step, REMEMBERED) | 1) & (1 << REMEMBERED) - 1
    return step - 1
