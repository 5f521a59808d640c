"""Repeated, reordered, displaced and renumbered readings: each applied once or counted, none blocking others.

Every reading carries its identity in its value, so whatever was applied twice is seen. The stream runs
through sources and engine as live messages do.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from support_engine import Bench

from gruard.daemon.core.batcher import waves
from gruard.daemon.core.events import Refused, Scored
from gruard.daemon.core.sources import Sources
from gruard.daemon.errors import DecodeError
from gruard.daemon.records import Message, SourceOptions

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

START_S = 1_750_000_000.0
YEAR_S = 31_557_600.0
_PLACES = ("ts", "n")
EVENT = SourceOptions("plant", "plant/{device}", time="ts", exclude=_PLACES)
COUNTED = SourceOptions("plant", "plant/{device}", time="ts", sequence="n", exclude=_PLACES)
NUMBERED = SourceOptions("plant", "plant/{device}", sequence="n", exclude=_PLACES)


@dataclass(frozen=True, slots=True)
class Sent:
    """One message as its device meant it."""

    device: str
    identity: int  # unique; its value is made from it
    time_s: float
    sequence: int
    received_s: float

    def message(self) -> Message:
        payload = {"f0": 20 + self.identity / 1024, "f1": 1, "ts": self.time_s, "n": self.sequence}
        return Message(f"plant/{self.device}", json.dumps(payload).encode(), self.received_s)


@dataclass(slots=True)
class Account:
    """What became of the messages."""

    sent: int = 0
    applied: list[Sent] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    @property
    def identities(self) -> dict[str, list[int]]:
        """What was applied of each device, in order."""
        return by_device(self.applied)


def run(options: SourceOptions, stream: Iterable[Sent], chunk: int = 500) -> tuple[Account, Bench]:
    """Feed a stream and account for every message of it."""
    sources, bench, account = Sources([options]), Bench(source=options), Account()
    sent = list(stream)
    for start in range(0, len(sent), chunk):
        _feed(sources, bench, account, sent[start : start + chunk])
    assert account.sent == len(account.applied) + account.refused.total()
    for name, device in bench.engine.devices.items():
        assert device.count == sum(one.device == name for one in account.applied)
    return account, bench


def _feed(sources: Sources, bench: Bench, account: Account, sent: Sequence[Sent]) -> None:
    readings, meant = [], {}
    for one in sent:
        account.sent += 1
        try:
            (reading,) = sources.decode(one.message())
        except DecodeError as refusal:
            account.refused[refusal.reason] += 1
            continue
        readings.append(reading)
        meant[id(reading.values)] = (
            one  # the engine may place a reading elsewhere in time, not change its values
        )
    for wave in waves(readings):
        for event in bench.feed_wave(wave):
            if isinstance(event, Scored):
                account.applied.append(meant[id(event.reading.values)])
            elif isinstance(event, Refused):
                account.refused[event.reason or "duplicate"] += 1


def hour(devices: int, seconds: int, start_s: float = START_S) -> list[Sent]:
    """A reading a second of each device, told and received as it should be."""
    return [
        Sent(f"pump-{d}", second * devices + d, start_s + second, second, start_s + second + 0.2)
        for second in range(seconds)
        for d in range(devices)
    ]


def by_device(sent: Iterable[Sent]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for one in sent:
        found.setdefault(one.device, []).append(one.identity)
    return found


def moved(one: Sent, received_s: float) -> Sent:
    return Sent(one.device, one.identity, one.time_s, one.sequence, received_s)


@pytest.mark.parametrize("options", [EVENT, COUNTED, NUMBERED], ids=["time", "both", "sequence"])
def test_every_message_sent_up_to_three_times_is_applied_once(options: SourceOptions) -> None:
    """Repetitions that follow their original are counted as duplicates, whatever tells readings apart."""
    rng = random.Random(1)
    original = hour(10, 600)
    account, _ = run(
        options, [moved(o, o.received_s + k / 8) for o in original for k in range(rng.choice((1, 2, 3)))]
    )
    assert account.identities == by_device(original)
    assert account.refused.keys() == {"duplicate"}


@pytest.mark.parametrize("options", [EVENT, COUNTED, NUMBERED], ids=["time", "both", "sequence"])
def test_a_recorded_hour_that_is_played_again_changes_nothing(options: SourceOptions) -> None:
    """A replay behind the original is counted, and what follows is applied as if it had not been."""
    recorded, fresh = hour(5, 1800), hour(5, 200, START_S + 1800)
    fresh = [Sent(o.device, o.identity + 10**6, o.time_s, o.sequence + 1800, o.received_s) for o in fresh]
    # A count that begins anew at 0 cannot be told from a recording of one, unless times are told as well.
    known = recorded if options.time is not None else recorded[5 * 600 :]
    again = [moved(one, START_S + 1800) for one in known]
    account, _ = run(options, [*recorded, *again, *fresh])
    assert account.identities == by_device((*recorded, *fresh))
    assert account.refused.keys() <= {"duplicate", "late"}
    assert account.refused.total() == len(again)


@pytest.mark.parametrize("options", [EVENT, COUNTED], ids=["time", "both"])
def test_readings_up_to_an_hour_out_of_order_are_applied_once_or_late(options: SourceOptions) -> None:
    """What arrives behind a newer reading is late; what is applied goes forward in time."""
    rng = random.Random(2)
    delayed = sorted(
        (moved(o, o.time_s + rng.choice((0.1, 0.3, 5, 60, 3600 * rng.random()))) for o in hour(5, 2000)),
        key=lambda one: one.received_s,
    )
    account, _ = run(options, delayed)
    assert len({one.identity for one in account.applied}) == len(account.applied) > len(delayed) / 10
    assert account.refused.keys() <= {"late", "duplicate"}
    for device in {one.device for one in delayed}:
        times = [one.time_s for one in account.applied if one.device == device]
        assert times == sorted(times)


@pytest.mark.parametrize("ahead_s", [30, 250, 301, 3600, YEAR_S, 10 * YEAR_S, 1e11 - START_S - 1000])
@pytest.mark.parametrize("options", [EVENT, COUNTED], ids=["time", "both"])
def test_one_stamp_in_the_future_blocks_nothing(options: SourceOptions, ahead_s: float) -> None:
    """However far ahead one reading claims to be, every true reading behind it is applied."""
    stream = hour(2, 400)
    at = 2 * 200
    false = Sent("pump-0", 10**6, START_S + 200 + ahead_s, 200, START_S + 200.1)
    after = [Sent(o.device, o.identity, o.time_s, o.sequence + 1, o.received_s) for o in stream[at:]]
    account, _ = run(options, [*stream[:at], false, *after], chunk=1)
    assert by_device(one for one in account.applied if one.identity != false.identity) == by_device(stream)
    if ahead_s > options.future_tolerance_s:
        assert account.refused == {"future_time": 1}


@pytest.mark.parametrize("years", [1, 10])
def test_a_stamp_in_the_future_that_an_unset_clock_let_in_blocks_nothing(years: float) -> None:
    """Once the machine's clock is set, true readings are applied behind one from ten years ahead."""
    unset = [Sent("pump-0", n, START_S + years * YEAR_S + n, n, 1000.0 + n) for n in range(20)]
    true = [Sent("pump-0", 100 + n, START_S + n, 20 + n, START_S + n + 0.2) for n in range(100)]
    account, _ = run(EVENT, [*unset, *true], chunk=1)
    assert account.identities == by_device((*unset, *true))


def test_stamps_of_the_past_are_late_and_block_nothing() -> None:
    """Readings from 1970 to yesterday in between are counted as late."""
    stream = hour(2, 400)
    mixed = []
    for n, one in enumerate(stream):
        past_s = (0.0, 1.0, one.time_s - 86_400, one.time_s - 10 * YEAR_S)[n % 4]
        mixed += [one, Sent(one.device, 10**6 + n, past_s, one.sequence, one.received_s)]
    account, _ = run(EVENT, mixed)
    assert account.identities == by_device(stream)
    assert account.refused.keys() <= {"late", "duplicate"}


def test_equal_stamps_with_other_values_are_applied_once() -> None:
    """Of several readings for one moment the first is applied, and each other one counted."""
    stream = hour(3, 500)
    mixed = [
        Sent(o.device, o.identity + 10**6 * k, o.time_s, o.sequence, o.received_s)
        for o in stream
        for k in range(3)
    ]
    account, _ = run(EVENT, mixed)
    assert account.identities == by_device(stream)
    assert account.refused == {"late": 2 * len(stream)}


@pytest.mark.parametrize("options", [COUNTED, NUMBERED], ids=["both", "sequence"])
@pytest.mark.parametrize("reset_to", [0, 1, 7])
def test_a_count_that_begins_anew_loses_nothing(options: SourceOptions, reset_to: int) -> None:
    """A device that restarts its count, as after a change of batteries, goes on to be heard."""
    before = hour(2, 300)
    after = [
        Sent(o.device, o.identity + 10**6, o.time_s, o.sequence + reset_to, o.received_s)
        for o in hour(2, 300, START_S + 300)
    ]
    account, _ = run(options, [*before, *after], chunk=1)
    assert account.identities == by_device((*before, *after))


def troubles(count: int, seed: int, *, timed: bool) -> list[Sent]:
    """A stream of fifty devices in which a fifth is repeated, displaced in time or numbered anew.

    Without times only what is recent can be told from a new count, so nothing older is repeated then.
    """
    rng = random.Random(seed)
    now_s, told = START_S, []
    stream: list[Sent] = []
    while len(stream) < count:
        now_s += 0.02
        kind = rng.random()
        if kind < 0.15 and told:
            stream.append(moved(rng.choice(told if timed and kind < 0.05 else told[-300:]), now_s))
            continue
        shift_s = 0.0
        if kind < 0.2:
            far_s = 10 * YEAR_S
            shift_s = rng.choice((-3600 * rng.random(), 300 * rng.random(), far_s, -far_s, -now_s))
        number = int(50 * (now_s - START_S))
        if kind < 0.17:
            number = rng.choice((0, 1, 5, 2**53 if timed else 7))
        one = Sent(f"pump-{rng.randrange(50)}", len(stream), now_s + shift_s - 0.01, number, now_s)
        told.append(one)
        stream.append(one)
    return stream


@pytest.mark.parametrize(
    ("options", "count"),
    [(EVENT, 40_000), (COUNTED, 40_000), (NUMBERED, 20_000)],
    ids=["time", "both", "sequence"],
)
def test_a_hundred_thousand_mixed_troubles_are_applied_once_or_counted(
    options: SourceOptions, count: int
) -> None:
    """All of it at once, drawn from a seed: no identity twice, every message in the account."""
    account, bench = run(options, troubles(count, 7, timed=options.time is not None), chunk=1000)
    assert account.sent == count
    assert len({one.identity for one in account.applied}) == len(account.applied)
    assert len(account.applied) > 0.7 * count
    assert account.refused.keys() <= {"late", "duplicate", "future_time", "bad_time"}
    assert len(bench.engine.devices) == 50
