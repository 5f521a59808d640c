"""Invented device ids at full rate: what is there keeps its place, its state and its scores.

GRUARD_FLOOD_IDS=1000000 runs the floods at the size that the promise names; without it they are smaller.
"""

from __future__ import annotations

import os
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support_engine import Bench, plant_rows

from gruard.daemon.core.admission import LOOK_EVERY_S
from gruard.daemon.core.events import Refused, Removed, Scored
from gruard.daemon.records import Reading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gruard.daemon.core.events import Event

IDS = int(os.environ.get("GRUARD_FLOOD_IDS", "30000"))
#: Ids in a wave, beside the readings of the real devices.
WAVE = 500
REAL, CAP = 40, 100
START_S, DAY_S = 1_700_000_000.0, 86_400.0


def stranger(n: int, now_s: float, values: dict[str, float]) -> Reading:
    return Reading(f"id-{n:07d}", "plant", now_s - 0.1, now_s, values)


def same_fields(n: int) -> dict[str, float]:
    return {"f0": float(n), "f1": 1.0, "f2": 2.0}


def own_fields(n: int) -> dict[str, float]:
    return {f"x{n}": 1.0}


class Fleet:
    """Real devices with a reading each whenever asked."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.rows, self.told = bench, plant_rows(400), 0
        self.names = [f"pump-{n}" for n in range(REAL)]
        for n in range(60):
            bench.feed_wave(self.wave(START_S + n))

    def wave(self, now_s: float) -> list[Reading]:
        row = self.rows[self.told % len(self.rows)]
        self.told += 1
        return [
            Reading(
                name, "plant", now_s - 0.1, now_s, {f"f{k}": float(v) + n for k, v in enumerate(row.tolist())}
            )
            for n, name in enumerate(self.names)
        ]

    def state(self) -> list[tuple[object, ...]]:
        """Everything that a checkpoint holds of the real devices, but for the rounding of their numbers."""
        devices = [self.bench.engine.devices[name] for name in self.names]
        return [(d.name, d.count, d.last_s, d.fields, d.phase, d.recent, d.track.id) for d in devices]


def flood(rate: float, fields: Callable[[int], dict[str, float]]) -> Iterator[tuple[float, list[Reading]]]:
    """Waves of new ids at so many a second of arrival time, from the 100th second on."""
    for first in range(0, IDS, WAVE):
        now_s = START_S + 100.0 + first / rate
        yield now_s, [stranger(n, now_s, fields(n)) for n in range(first, first + WAVE)]


@pytest.mark.parametrize("fields", [same_fields, own_fields])
@pytest.mark.parametrize("rate", [10_000.0, 1.0, 0.02], ids=["full", "slow", "for-weeks"])
def test_flood_of_ids_touches_no_device_that_is_there(
    rate: float, fields: Callable[[int], dict[str, float]]
) -> None:
    """At any rate: none removed, same states, same scores, and the cap and all that hangs on it hold."""
    clean, flooded = Bench(most_devices=CAP), Bench(most_devices=CAP)
    one, two = Fleet(clean), Fleet(flooded)
    engine, count = flooded.engine, Counter[str]()
    begin_s = now_s = START_S + 100.0
    for now_s, strangers in flood(rate, fields):
        wave = two.wave(now_s)
        clean.feed_wave(one.wave(now_s))
        note(flooded.feed_wave([*strangers[: WAVE // 2], *wave, *strangers[WAVE // 2 :]]), count)
        assert len(engine.devices) <= CAP
        assert len(engine.groups) <= len(engine.devices)
        assert sum(len(group.scorer) for group in engine.groups.values()) == len(engine.devices)
    assert not [name for name in two.names if not engine.knows(name)]
    assert one.state() == two.state()
    for name in one.names:
        a, b = ([s.score for s in bench.rows[name]] for bench in (clean, flooded))
        np.testing.assert_allclose(a, b, atol=1e-6, equal_nan=True)
    assert count["scored"] + count["too_many_devices"] == IDS
    assert count["removed"] == count["never_established"]
    assert count["removed"] <= (now_s - begin_s) / LOOK_EVERY_S + 1
    assert count["removed"] == count["scored"] - (CAP - REAL)
    # What a generation of checkpoints owes is bounded too.
    assert len(list(engine.checkpoint(0))) <= CAP


def note(events: list[Event], count: Counter[str]) -> None:
    """Count what became of the strangers, and which devices were removed."""
    for event in events:
        match event:
            case Scored():
                count["scored"] += event.reading.device.startswith("id-")
            case Refused():
                count[event.reason] += 1
            case Removed():
                count["removed"] += 1
                count[event.reason] += 1
            case _:
                pass


def test_flood_removes_no_silent_device_before_the_idle_limit() -> None:
    """Devices that say nothing keep their places for 30 days; then they give them up, not all at once."""
    bench, count = Bench(most_devices=REAL), Counter[str]()
    fleet = Fleet(bench)
    heard_s = START_S + 59.0
    for now_s, strangers in flood(IDS / (29.9 * DAY_S), same_fields):
        note(bench.feed_wave(strangers), count)
        assert now_s - heard_s < 30 * DAY_S
    assert count == {"too_many_devices": IDS}
    for n in range(20 * REAL):
        now_s = heard_s + 30 * DAY_S + n * LOOK_EVERY_S / 10
        note(bench.feed_wave([stranger(IDS + n, now_s, same_fields(n))]), count)
    assert count["removed"] == count["idle"] == REAL
    assert not any(bench.engine.knows(name) for name in fleet.names)


def test_flood_leaves_room_for_a_new_device_that_goes_on_speaking() -> None:
    """A device that begins before a flood of a week becomes one; one that begins in it gets its turn."""
    bench = Bench(most_devices=CAP)
    Fleet(bench)
    first, second = "new-first", "new-second"
    bench.feed_wave([stranger(-1, START_S + 99.0, same_fields(0)), named(first, START_S + 99.0)])
    refused = 0
    for n in range(3000):
        now_s = START_S + 100.0 + n * 200.0
        bench.engine.receive([stranger(9 * n + k, now_s, same_fields(k)) for k in range(9)])
        newcomers = [named(first, now_s + 1.0)] + (
            [named(second, now_s + 1.0)] if now_s > START_S + DAY_S else []
        )
        events = bench.feed_wave(newcomers)
        refused += sum(isinstance(e, Refused) for e in events)
    assert bench.engine.devices[first].count == 3001
    assert bench.engine.devices[second].count > 2000
    assert refused < 600


def named(name: str, now_s: float) -> Reading:
    return Reading(name, "plant", now_s - 0.1, now_s, same_fields(1))
