"""The cap on devices: who may take whose place, how often, and what goes with a device that is removed."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from support_engine import BUDGET, SOURCE, Bench, plant_rows, reading, readings_of

from gruard.daemon.core.admission import ESTABLISHED, JUMP_S, LOOK_EVERY_S, NEWCOMER_LIMIT_S, Admission
from gruard.daemon.core.devices import Device
from gruard.daemon.core.engine import Engine, EngineOptions, group_name
from gruard.daemon.core.events import Alert, Refused, Removed, Scored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gruard.daemon.core.events import Event
    from gruard.daemon.records import Reading

DAY_S = 86_400.0
IDLE_S = 30 * DAY_S


def device(name: str, count: int, arrived_s: float) -> Device:
    return Device(name, "plant", count=count, arrived_s=arrived_s)


def leaver(devices: Sequence[Device], now_s: float, spared: Sequence[str] = ()) -> tuple[str, str] | None:
    """Who leaves where arrivals have been steady so far."""
    found = Admission(IDLE_S, [device("clock", 0, now_s)]).leaver(devices, spared, now_s)
    return found and (found[0].name, found[1])


def offer(bench: Bench, name: str, arrived_s: float) -> list[Event]:
    one = dataclasses.replace(reading(name, arrived_s - 0.1, {"f0": 1.0}), received_s=arrived_s)
    return bench.feed([one])


def arrived(readings: Sequence[Reading], arrived_s: float) -> list[Reading]:
    return [dataclasses.replace(r, received_s=arrived_s + n) for n, r in enumerate(readings)]


def test_leaver_is_the_newcomer_silent_longest() -> None:
    """Of ids that never became a device, the one that has not been heard for longest goes first."""
    now_s = 1e6
    ids = [
        device("old", 1, now_s - 5000.0),
        device("older", ESTABLISHED - 1, now_s - 9000.0),
        device("new", 1, now_s - 700.0),
    ]
    assert leaver(ids, now_s) == ("older", "never_established")
    assert leaver(ids, now_s, spared=["older"]) == ("old", "never_established")


def test_leaver_established_device_stays_until_the_idle_limit() -> None:
    """Fifty readings make a device: it is kept through a month of silence, a newcomer for ten minutes."""
    now_s = 1e8
    assert leaver([device("d", ESTABLISHED, now_s - IDLE_S + 1)], now_s) is None
    assert leaver([device("d", ESTABLISHED, now_s - IDLE_S)], now_s) == ("d", "idle")
    assert leaver([device("d", ESTABLISHED - 1, now_s - NEWCOMER_LIMIT_S + 1)], now_s) is None
    assert leaver([device("d", ESTABLISHED - 1, now_s - NEWCOMER_LIMIT_S)], now_s) is not None


def test_leaver_newcomer_goes_before_an_idle_device() -> None:
    """An established device is the last resort, however long it was silent."""
    now_s = 1e8
    ids = [device("gone", 1000, 0.0), device("stray", 1, now_s - NEWCOMER_LIMIT_S)]
    assert leaver(ids, now_s) == ("stray", "never_established")


@pytest.mark.parametrize("jump_s", [10 * 365 * DAY_S, -10 * 365 * DAY_S, 2 * JUMP_S])
def test_leaver_clock_that_jumps_makes_nobody_idle(jump_s: float) -> None:
    """After the clock was set, or the daemon was off, silence is counted anew."""
    heard_s = 2e9
    known = [device("d", 1000, heard_s), device("stray", 1, heard_s)]
    admission = Admission(IDLE_S, known)
    now_s = heard_s + jump_s
    assert admission.leaver(known, (), now_s) is None
    assert admission.leaver(known[:1], (), now_s + IDLE_S / 2) is None  # this is one more jump
    for day in range(16, 47):
        admission.passes(now_s + day * DAY_S)
    assert admission.leaver(known[:1], (), now_s + 46 * DAY_S) == (known[0], "idle")


def test_may_look_only_a_few_times_a_second() -> None:
    """Looks cost; a clock that is set back does not forbid them."""
    admission = Admission(IDLE_S)
    admission.leaver([], (), 1000.0)
    assert not admission.may_look(1000.0)
    assert not admission.may_look(1000.0 + 0.9 * LOOK_EVERY_S)
    assert admission.may_look(1000.0 + LOOK_EVERY_S)
    assert admission.may_look(999.0)


def test_receive_stray_makes_room_for_a_new_device() -> None:
    """At the cap a new device takes the place of an id that showed one reading, and is told as such."""
    bench = Bench(most_devices=2)
    bench.feed(arrived(readings_of("real", plant_rows(60)), 1000.0))
    offer(bench, "stray", 1060.0)
    assert isinstance(offer(bench, "late", 1061.0)[0], Refused)
    events = offer(bench, "late", 1060.0 + NEWCOMER_LIMIT_S)
    assert events[0] == Removed("stray", "plant", "never_established")
    assert isinstance(events[1], Scored)
    assert set(bench.engine.devices) == {"real", "late"}
    assert bench.engine.knows("late")
    assert not bench.engine.knows("stray")


def test_receive_removed_device_leaves_no_trace_in_the_engine() -> None:
    """Slot, group, marks and track are free again; the id starts afresh when it comes back."""
    bench = Bench(most_devices=1)
    offer(bench, "stray", 1000.0)
    other = dataclasses.replace(reading("b", 2000.0, {"other": 1.0}), received_s=2000.1)
    bench.feed([other])
    assert list(bench.engine.groups) == [group_name("plant", ("other",))]
    assert [row.device for generation in (0, 1) for row in bench.engine.checkpoint(generation)] == ["b", "b"]
    offer(bench, "stray", 3000.0)
    assert bench.engine.devices["stray"].count == 1
    (group,) = bench.engine.groups.values()
    assert len(group.scorer) == len(group.devices) == 1


def test_receive_slots_are_used_again() -> None:
    """A thousand ids one after the other in one place do not grow the arena."""
    bench = Bench(most_devices=3)
    bench.feed(arrived(readings_of("real", plant_rows(60)), 1000.0))
    for n in range(1000):
        offer(bench, f"id-{n}", 2000.0 + 700.0 * n)
    group = bench.engine.groups[group_name("plant", ("f0",))]
    assert len(group.scorer) == 2
    assert max(group.devices.values()) <= 2


def test_receive_removed_device_resolves_its_alert_first() -> None:
    """Nobody is left with an alert that never ends: its end is told, with a sentence that says why."""
    bench = Bench(most_devices=2)
    rows = plant_rows(320)
    rows[300:, 0] += 25.0
    bench.feed(arrived(readings_of("gone", rows), 1000.0))
    track = bench.engine.devices["gone"].track
    assert track.id
    for quarter in range(4 * 31):
        offer(bench, "here", 1400.0 + quarter * DAY_S / 4)
    alert, removed, scored = offer(bench, "new", 1400.0 + 31 * DAY_S)
    assert isinstance(alert, Alert)
    assert (alert.id, alert.state, alert.device) == (track.id, "resolved", "gone")
    assert alert.time_s == 1400.0 + 31 * DAY_S
    assert 0 <= alert.opened_s < alert.time_s
    assert alert.sentence == "gone is watched no more, silent for 31 d: its alert ends after 31 d."
    assert math.isclose(sum(share for _, share in alert.contributions), 1.0)
    assert removed == Removed("gone", "plant", "idle")
    assert isinstance(scored, Scored)


def test_receive_removals_are_few_a_second_whatever_arrives() -> None:
    """Sixty strays could go, and two thousand new ids arrive within two seconds: eight get a place."""
    bench = Bench(most_devices=60)
    for n in range(60):
        offer(bench, f"stray-{n}", 1000.0 + n)
    events = [event for n in range(2000) for event in offer(bench, f"id-{n}", 5000.0 + n * 0.001)]
    removed = [event.device for event in events if isinstance(event, Removed)]
    assert removed == [f"stray-{n}" for n in range(len(removed))]
    assert len(removed) == sum(isinstance(event, Scored) for event in events) == 2.0 / LOOK_EVERY_S
    assert sum(isinstance(event, Refused) for event in events) == 2000 - len(removed)


def test_receive_bad_reading_of_a_new_id_takes_no_place() -> None:
    """An id whose reading is refused anyway removes nobody."""
    small = dataclasses.replace(SOURCE, max_fields=2)
    bench = Bench(most_devices=1, source=small)
    offer(bench, "stray", 1000.0)
    bad = dataclasses.replace(reading("x", 5000.0, {"a": 1.0, "b": 1.0, "c": 1.0}), received_s=5000.0)
    assert [e.reason for e in bench.feed([bad]) if isinstance(e, Refused)] == ["too_many_fields"]
    assert bench.engine.knows("stray")


def test_receive_devices_of_the_same_wave_do_not_push_each_other_out() -> None:
    """A device whose reading is being scored keeps its place, however old it looks."""
    bench = Bench(most_devices=2)
    for name in ("a", "b"):
        offer(bench, name, 1000.0)
    late = [
        dataclasses.replace(reading(name, 9000.0, {"f0": 1.0}), received_s=9000.0) for name in ("a", "b", "c")
    ]
    ends = [type(e) for e in bench.feed_wave(late)]
    assert ends == [Refused, Scored, Scored]
    assert set(bench.engine.devices) == {"a", "b"}


def test_restore_older_checkpoint_without_arrivals_is_not_idle() -> None:
    """Devices saved before arrivals were kept are taken to have arrived with their newest reading."""
    bench = Bench(most_devices=1)
    bench.feed(arrived(readings_of("a", plant_rows(60), 1e9), 1e9))
    bench.engine.devices["a"].arrived_s = -math.inf
    other = Bench(most_devices=1)
    other.engine.restore(bench.engine.checkpoint(0))
    assert isinstance(offer(other, "x", 1e9 + 3600.0)[0], Refused)


@pytest.mark.parametrize("later_s", [40 * DAY_S, 10 * 365 * DAY_S])
def test_receive_long_pause_makes_no_device_idle(later_s: float) -> None:
    """After a pause, or where the clock was set, whoever was there has the whole idle limit to speak."""
    bench = Bench(most_devices=2)
    for name in ("a", "b"):
        bench.feed(arrived(readings_of(name, plant_rows(60), 1e9), 1e9))
    restored = Bench(most_devices=2)
    restored.engine.restore(bench.engine.checkpoint(0))
    assert isinstance(offer(restored, "x", 1e9 + later_s)[0], Refused)
    assert isinstance(offer(bench, "b", 1e9 + later_s)[0], Scored)
    assert isinstance(offer(bench, "x", 1e9 + later_s + 1.0)[0], Refused)
    assert bench.engine.knows("a")


def test_known_devices_score_the_same_beside_a_flood() -> None:
    """A thousand invented ids change no score and no state of a device that was there."""
    clean, flooded = (Bench(most_devices=12) for _ in range(2))
    names = [f"d{n}" for n in range(4)]
    series = {name: readings_of(name, plant_rows(120, seed=n)) for n, name in enumerate(names)}
    for t, wave in enumerate(zip(*series.values(), strict=True)):
        clean.feed_wave(wave)
        strangers = [reading(f"x{t}-{n}", 1000.0 + t, {"f0": 1.0, "f1": 2.0, "f2": 3.0}) for n in range(9)]
        flooded.feed_wave([*strangers[:5], *wave, *strangers[5:]])
    for name in names:
        one, two = ([s.score for s in bench.rows[name]] for bench in (clean, flooded))
        np.testing.assert_allclose(one, two, atol=1e-6, equal_nan=True)
        a, b = (dataclasses.astuple(next_row(bench.engine, name))[:5] for bench in (clean, flooded))
        assert a == b
    assert len(flooded.engine.devices) == 12


def next_row(engine: Engine, name: str) -> object:
    return next(row for row in engine.checkpoint(0) if row.device == name)


def test_options_default_idle_limit_is_a_month() -> None:
    """Thirty days, as the configuration says."""
    assert EngineOptions((SOURCE,), BUDGET).idle_limit_s == IDLE_S
