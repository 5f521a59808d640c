"""The engine: build it, feed readings, compare events."""

from __future__ import annotations

import dataclasses
import math
from itertools import zip_longest
from typing import TYPE_CHECKING, TypeVar

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support_engine import BUDGET, SOURCE, Bench, plant_rows, reading, readings_of
from support_models import sealed_model

from gruard.daemon.core.engine import (
    BASELINE,
    ENROL_ROWS,
    DeviceRow,
    Engine,
    EngineOptions,
    group_name,
    open_state,
)
from gruard.daemon.core.events import Alert, EnrolDue, Noted, Refused, Scored
from gruard.daemon.core.payloads import ModelNote, alert_payload, sentence
from gruard.daemon.records import Reading, SourceOptions
from gruard.models.alarm import LONGEST
from gruard.models.drift import Drift
from gruard.models.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gruard.daemon.core.events import Event

T = TypeVar("T")


def scores(events: list[object]) -> list[float]:
    return [e.score for e in events if isinstance(e, Scored)]


def broken(rows: np.ndarray, start: int, length: int) -> np.ndarray:
    rows = rows.copy()
    rows[start : start + length, 0] += 25.0
    return rows


def test_receive_every_reading_ends_as_exactly_one_scored_or_refused() -> None:
    """P5 in the core: nothing in, nothing out goes uncounted."""
    bench = Bench()
    good = readings_of("a", plant_rows(80))
    bad = [reading("a", 1000.5 + n, {"evil": 1.0}) for n in range(80)]
    events = bench.feed([r for pair in zip(good, bad, strict=True) for r in pair])
    assert sum(isinstance(e, Scored) for e in events) == 80
    refused = [e.reason for e in events if isinstance(e, Refused)]
    assert len(refused) == 80
    assert set(refused) == {"unknown_field"}


def test_receive_device_twice_in_one_batch_is_a_programming_error() -> None:
    """A batch with a device twice would corrupt its state, so it is refused loudly."""
    with pytest.raises(ValueError, match="twice"):
        Bench().engine.receive(readings_of("a", plant_rows(2)))


def test_receive_new_device_goes_through_its_phases() -> None:
    """No score at first, then a warming score without alarms, then the baseline is in charge."""
    events = [e for e in Bench().feed(readings_of("a", plant_rows(120))) if isinstance(e, Scored)]
    assert all(math.isnan(e.score) for e in events[:10])
    assert all(0 <= e.score <= 1 for e in events[10:])
    assert {e.phase for e in events[:50]} == {"warming"}
    assert {e.phase for e in events[50:]} == {"learning"}


def test_receive_fault_opens_one_explained_alert_and_resolves() -> None:
    """A broken field raises one alert that names it, with value and expectation, and ends with the fault."""
    rows = broken(plant_rows(500), 300, 40)
    events = Bench().feed(readings_of("a", rows))
    alerts = [e for e in events if isinstance(e, Alert)]
    assert [a.state for a in alerts if a.state != "updated"] == ["opened", "resolved"]
    opened, resolved = alerts[0], alerts[-1]
    assert 1301 <= opened.time_s <= 1315  # not at the first reading, which may be the wire alone
    assert opened.contributions[0][0] == "f0"
    assert sum(share for _, share in opened.contributions) == pytest.approx(1)
    assert opened.value["f0"] == pytest.approx(rows[int(opened.time_s - 1000), 0])
    assert opened.expected["f0"] == pytest.approx(20, abs=6)
    assert opened.model == BASELINE
    assert {a.id for a in alerts} == {opened.id}
    assert 1340 < resolved.time_s < 1400
    assert resolved.sentence == "", "it is as before, and no new normal"


def test_receive_shift_that_stays_ends_as_the_new_normal() -> None:
    """After a thousand readings one alert says that from now on this is normal, and then there is quiet."""
    rows = plant_rows(2300)
    rows[1100:] += 30.0
    alerts = [e for e in Bench().feed(readings_of("a", rows)) if isinstance(e, Alert)]
    ended = alerts[-1]
    assert [a.state for a in alerts if a.state != "updated"] == ["opened", "resolved"]
    assert {sentence(a) for a in alerts if a.sentence} == {
        "a has been unusual for 16 min 39 s: from now on that is its new normal."
    }
    assert ended.sentence
    assert ended.kind == "new_normal"
    assert {a.kind for a in alerts[:-1]} == {"anomaly"}
    assert ended.time_s - ended.opened_s == LONGEST - 1


def test_receive_new_normal_is_fitted_at_once_on_what_it_showed() -> None:
    """A flat line on a new level is scored like the old one from the next reading on, and still guarded."""
    rows = plant_rows(2600)
    rows[1100:] += 30.0
    rows[2450:2500] += 12.0
    bench = Bench()
    events = bench.feed(readings_of("a", rows))
    ended = next(e for e in events if isinstance(e, Alert) and e.kind == "new_normal")
    device = bench.engine.devices["a"]
    assert (device.normal_from_s, device.normal_to_s) == (ended.opened_s, ended.time_s)
    asked = [e for e in events if isinstance(e, EnrolDue) and e.normal_to_s == ended.time_s]
    assert asked[0].limit == ENROL_ROWS
    later = [e for e in events if isinstance(e, Scored) and 1.0 < e.reading.time_s - ended.time_s < 200]
    assert np.median([e.score for e in later]) < 0.2
    found = [e for e in events if isinstance(e, Alert) and e.state == "opened" and e.time_s > ended.time_s]
    assert [3450 <= a.time_s < 3500 for a in found] == [True]


def test_watched_drift_is_one_alert_until_the_device_is_back() -> None:
    """Opened, updated by every comparison that still finds it, resolved by the first that does not."""
    bench = Bench()
    bench.feed(readings_of("a", plant_rows(60)))
    drift = Drift("a", "f1", "level", 31.0, 18.0, 22.0, 2.0)
    told = [bench.engine.watched(["a", "gone"], found) for found in ({"a": drift}, {"a": drift}, {}, {})]
    assert [[e.state for e in events if isinstance(e, Alert)] for events in told] == [
        ["opened"], ["updated"], ["resolved"], [],
    ]  # fmt: skip
    (opened,), (updated,), (resolved,), _ = told
    assert isinstance(opened, Alert)
    assert isinstance(resolved, Alert)
    assert {opened.kind, resolved.kind} == {"drift"}
    assert opened.id == updated.id == resolved.id  # type: ignore[union-attr]
    assert (opened.severity, opened.value["f1"], opened.expected["f1"]) == ("warning", 31.0, 22.0)
    assert opened.contributions[0] == ("f1", 1.0)
    assert sentence(opened) == ("a has drifted: f1 is about 31, and lay between 18 and 22 in its first days.")
    assert sentence(resolved) == "a is back at what it showed in its first days, after 0 s."
    assert msgspec.json.decode(alert_payload(opened, ModelNote("m"), "gw"))["kind"] == "drift"


def test_remove_ends_an_alert_of_drift_too() -> None:
    """A device that is watched no more leaves no alert open, of whatever kind."""
    bench = Bench()
    bench.feed(readings_of("a", plant_rows(60)))
    bench.engine.watched(["a"], {"a": Drift("a", "f1", "spread", 3.0, 0.0, 1.0, 2.0)})
    ended = [e for e in bench.engine.remove("a", "idle", 5000.0) if isinstance(e, Alert)]
    assert [(a.kind, a.state, a.id != "") for a in ended] == [("drift", "resolved", True)]


def test_receive_healthy_devices_raise_no_alert() -> None:
    """Six healthy devices, 3,000 readings, silence."""
    bench = Bench()
    events = [e for n in range(6) for e in bench.feed(readings_of(f"d{n}", plant_rows(500, seed=n)))]
    assert not [e for e in events if isinstance(e, Alert)]


def test_receive_batched_equals_one_at_a_time() -> None:
    """Devices scored in one batch get the scores that they get alone."""
    together, alone = Bench(), Bench()
    series = {f"d{n}": readings_of(f"d{n}", plant_rows(260, seed=n)) for n in range(5)}
    for wave in zip(*series.values(), strict=True):
        together.feed_wave(wave)
    for readings in series.values():
        alone.feed(readings)
    for name in series:
        a, b = scores(together.rows[name]), scores(alone.rows[name])
        np.testing.assert_allclose(a, b, atol=1e-5, equal_nan=True)


def test_receive_order_of_devices_in_a_batch_is_irrelevant() -> None:
    """The same batch in another order gives every device the same score."""
    forward, backward = Bench(), Bench()
    series = [readings_of(f"d{n}", plant_rows(150, seed=n)) for n in range(4)]
    for wave in zip(*series, strict=True):
        forward.feed_wave(wave)
        backward.feed_wave(wave[::-1])
    for name in forward.rows:
        np.testing.assert_allclose(
            scores(forward.rows[name]), scores(backward.rows[name]), atol=1e-6, equal_nan=True
        )


def test_receive_refused_readings_leave_scores_untouched() -> None:
    """Good readings score exactly as if the refused ones had not been there."""
    rows = plant_rows(200)
    clean, dirty = Bench(), Bench()
    clean.feed(readings_of("a", rows))
    for good in readings_of("a", rows):
        dirty.feed([good])
        dirty.feed([reading("a", good.time_s + 0.5, {"x": 1.0}, issues={"f0": "string"})])
        dirty.feed([reading("a", good.time_s - 50, {"f0": 1e9, "f1": 1e9, "f2": 1e9})])
    np.testing.assert_array_equal(scores(clean.rows["a"])[10:], scores(dirty.rows["a"])[10:])


def test_receive_missing_fields_are_scored_without_them() -> None:
    """A reading without some fields is scored by the rest; the missing ones are None, never 0 or NaN."""
    rows = broken(plant_rows(400), 350, 20)
    series = readings_of("a", rows)
    gaps = [
        reading("a", r.time_s, {k: v for k, v in r.values.items() if k != "f1"}) if n % 3 == 0 else r
        for n, r in enumerate(series)
    ]
    events = Bench().feed(gaps)
    assert all(0 <= s <= 1 for s in scores(events)[10:])
    alerts = [e for e in events if isinstance(e, Alert)]
    assert alerts[0].contributions[0][0] == "f0"
    without = [a for a in alerts if a.value["f1"] is None]
    assert all(a.deviation["f1"] is None for a in without)


def test_receive_too_many_devices_are_refused_and_known_ones_go_on() -> None:
    """The cap on devices holds and does not touch those already known."""
    bench = Bench(most_devices=2)
    bench.feed([*readings_of("a", plant_rows(12)), *readings_of("b", plant_rows(12))])
    strangers = bench.feed([reading(f"x{n}", 1.0, {"f0": 1.0}) for n in range(50)])
    assert {e.reason for e in strangers if isinstance(e, Refused)} == {"too_many_devices"}
    assert len(bench.engine.devices) == 2
    assert isinstance(bench.feed(readings_of("a", plant_rows(1), 5000.0))[0], Scored)


def test_receive_source_without_event_time_survives_a_clock_set_back() -> None:
    """Arrival times that jump back an hour refuse nothing."""
    bench = Bench(source=SourceOptions("plant", "plant/{device}"))
    rows = plant_rows(120)
    events = bench.feed([*readings_of("a", rows[:60], 10_000.0), *readings_of("a", rows[60:], 6_400.0)])
    assert sum(isinstance(e, Scored) for e in events) == 120


def test_receive_huge_but_finite_values_never_poison_the_state() -> None:
    """After readings of 1e15 the device comes back to finite, low scores."""
    bench = Bench()
    bench.feed(readings_of("a", plant_rows(300)))
    wild = np.full((5, 3), 1e15)
    wild[::2] *= -1
    bench.feed(readings_of("a", wild, 1300.0))
    after = scores(bench.feed(readings_of("a", plant_rows(500)[305:], 1305.0)))
    assert np.isfinite(after).all()
    assert np.median(after[120:]) < 0.5
    assert bench.engine.resets == 0


def test_receive_new_field_moves_the_device_and_keeps_its_count() -> None:
    """A sensor that gains a field is enrolled anew on its history and goes on scoring."""
    bench = Bench()
    rows = plant_rows(200)
    bench.feed(readings_of("a", rows[:100, :2]))
    events = bench.feed(readings_of("a", rows[100:], 1100.0))
    assert any(isinstance(e, Noted) and "f2" in e.text for e in events)
    assert bench.engine.devices["a"].fields == ("f0", "f1", "f2")
    assert bench.engine.devices["a"].count == 200
    assert np.isfinite(scores(events)[-50:]).all()
    assert list(bench.engine.groups) == [group_name("plant", ("f0", "f1", "f2"))]


def test_receive_field_set_that_bears_the_name_of_another_group_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Group names are short hashes: an id whose invented fields hash to a real group's name stays out."""
    name = "gruard.daemon.core.engine.group_name"
    monkeypatch.setattr(name, lambda source, _fields: source)  # every field set collides
    bench = Bench()
    bench.feed(readings_of("a", plant_rows(20)))
    evil = reading("x", 1.0, {"invented": 1.0})
    assert bench.feed([evil]) == [Refused(evil, "unknown_field")]
    assert not bench.engine.knows("x")
    assert bench.engine.groups["plant"].fields == ("f0", "f1", "f2")
    assert isinstance(bench.feed(readings_of("a", plant_rows(1), 5000.0))[0], Scored)
    other = Bench()
    other.feed([evil])
    assert other.engine.restore(bench.engine.checkpoint(0)) == []
    assert set(other.engine.devices) == {"x"}


def test_receive_same_device_id_from_two_sources_is_refused() -> None:
    """Two sources must not mix their readings into one device."""
    two = (SOURCE, SourceOptions("other", "other/{device}"))
    engine = Engine(EngineOptions(two, BUDGET))
    engine.receive(readings_of("a", plant_rows(1)))
    other = dataclasses.replace(reading("a", 2000.0, {"f0": 1.0}), source="other")
    assert engine.receive([other]) == [Refused(other, "bad_device_id")]


def test_checkpoint_restores_to_identical_scores() -> None:
    """P3 in the core: an engine restored from checkpoints scores on as if it had never stopped."""
    whole, first = Bench(), Bench()
    rows = broken(plant_rows(400), 340, 60)
    whole.feed(readings_of("a", rows))
    first.feed(readings_of("a", rows[:350]))
    second = Bench()
    second.rows = first.rows
    assert second.engine.restore(first.engine.checkpoint(0)) == []
    events = second.feed(readings_of("a", rows[350:], 1350.0))
    np.testing.assert_array_equal(scores(events), scores(whole.rows["a"])[350:])
    assert second.engine.devices["a"].track.id == first.engine.devices["a"].track.id != ""


def names(rows: Iterable[DeviceRow]) -> list[str]:
    return [row.device for row in rows]


def test_checkpoint_only_moved_devices() -> None:
    """A checkpoint holds what changed since the last durable one and nothing else."""
    bench = Bench()
    bench.feed([*readings_of("a", plant_rows(12)), *readings_of("b", plant_rows(12))])
    assert names(bench.engine.checkpoint(0)) == ["a", "b"]
    bench.engine.checkpointed(0)
    assert names(bench.engine.checkpoint(0)) == []
    bench.feed(readings_of("b", plant_rows(1), 5000.0))
    assert names(bench.engine.checkpoint(0)) == ["b"]


def test_checkpoint_generations_keep_their_own_marks() -> None:
    """What one generation has saved is still owed to the other."""
    bench = Bench()
    bench.feed(readings_of("a", plant_rows(2)))
    assert names(bench.engine.checkpoint(0)) == ["a"]
    bench.engine.checkpointed(0)
    bench.feed(readings_of("b", plant_rows(2)))
    assert names(bench.engine.checkpoint(1)) == ["a", "b"]
    bench.engine.checkpointed(1)
    assert names(bench.engine.checkpoint(0)) == ["b"]


def test_checkpoint_that_is_not_written_is_given_again() -> None:
    """A failed write loses no mark, wherever it failed."""
    bench = Bench()
    bench.feed([*readings_of("a", plant_rows(2)), *readings_of("b", plant_rows(2))])
    rows = bench.engine.checkpoint(0)
    assert next(rows).device == "a"
    rows.close()  # type: ignore[attr-defined]
    bench.feed(readings_of("c", plant_rows(2)))
    assert names(bench.engine.checkpoint(0)) == ["a", "b", "c"]


def test_checkpointed_devices_that_moved_meanwhile_stay_marked() -> None:
    """Readings between the writing and its being durable are not taken for saved."""
    bench = Bench()
    bench.feed(readings_of("a", plant_rows(2)))
    assert names(bench.engine.checkpoint(0)) == ["a"]
    bench.feed(readings_of("a", plant_rows(1), 5000.0))
    bench.engine.checkpointed(0)
    assert names(bench.engine.checkpoint(0)) == ["a"]


def test_restore_marks_devices_in_both_generations() -> None:
    """A row's generation is not known to the engine, so both are owed."""
    bench = Bench()
    bench.feed(readings_of("a", plant_rows(2)))
    other = Bench()
    other.engine.restore(bench.engine.checkpoint(0))
    assert names(other.engine.checkpoint(0)) == names(other.engine.checkpoint(1)) == ["a"]


def test_restore_foreign_layout_asks_for_history() -> None:
    """State bytes of another layout are not guessed at: the device is enrolled on its history."""
    bench = Bench()
    bench.feed(readings_of("a", plant_rows(60)))
    (row,) = bench.engine.checkpoint(0)
    foreign = DeviceRow(row.device, row.source, row.fields, "0" * 12, row.model, row.state)
    due = Bench().engine.restore([foreign])
    assert due == [EnrolDue("a", "plant", row.fields, 60)]


def test_adopt_model_takes_charge_without_an_alarm() -> None:
    """New weights re-warm every device by its recent readings; the swap itself alerts nobody."""
    bench = Bench()
    series = [readings_of(f"d{n}", plant_rows(700, seed=n)) for n in range(3)]
    for wave in zip(*(s[:450] for s in series), strict=True):
        bench.feed_wave(wave)
    group = group_name("plant", ("f0", "f1", "f2"))
    package = sealed_model(group, {name: bench.history(name, ("f0", "f1", "f2"), 400) for name in bench.rows})
    due = bench.engine.adopt(group, package)
    assert {e.device for e in due} == {"d0", "d1", "d2"}
    bench.engine.enrol({e.device: bench.history(e.device, e.fields, e.limit) for e in due})
    after = [e for wave in zip(*(s[450:] for s in series), strict=True) for e in bench.feed_wave(wave)]
    assert {e.phase for e in after if isinstance(e, Scored)} == {"ready"}
    assert not [e for e in after if isinstance(e, Alert)]
    assert bench.engine.skill(bench.engine.groups[group]) > -0.25


def test_adopt_foreign_model_is_refused_and_changes_nothing() -> None:
    """A package for other fields never goes live; scoring goes on with what was there."""
    bench = Bench()
    bench.feed(readings_of("a", plant_rows(120)))
    package = sealed_model("other", {"a": bench.history("a", ("f0", "f1"), 100)}, fields=("f0", "f1"))
    name = group_name("plant", ("f0", "f1", "f2"))
    with pytest.raises(ModelError, match="other fields"):
        bench.engine.adopt(name, package)
    assert bench.engine.groups[name].model == BASELINE
    assert isinstance(bench.feed(readings_of("a", plant_rows(1), 5000.0))[0], Scored)


def test_phase_counts_add_up() -> None:
    """Every device is in exactly one phase."""
    bench = Bench()
    bench.feed([*readings_of("a", plant_rows(5)), *readings_of("b", plant_rows(80))])
    assert bench.engine.phase_counts() == {"warming": 1, "learning": 1, "ready": 0}


def fed(bench: Bench, readings: Sequence[Reading], kind: type[T]) -> list[T]:
    return [event for event in bench.feed(readings) if isinstance(event, kind)]


def arriving(readings: Sequence[Reading], after_s: float, **more: object) -> list[Reading]:
    return [dataclasses.replace(r, received_s=r.time_s + after_s, **more) for r in readings]


def test_receive_backlog_pages_nobody_until_it_is_live_again() -> None:
    """Alerts of a backlog are info and say so; a device still in alarm once live tells its real severity."""
    rows = broken(plant_rows(500), 300, 100)
    readings = readings_of("a", rows)
    bench, live = Bench(), Bench()
    bench.feed(arriving(readings[:290], 0.2))
    late = fed(bench, arriving(readings[290:350], 10_800.0, replayed=True), Alert)
    assert late[0].state == "opened"
    assert {a.severity for a in late} == {"info"}
    assert late[0].late_s == 10_800.0
    assert bench.engine.devices["a"].track.severity == "info"
    after = fed(bench, arriving(readings[350:], 0.2), Alert)
    assert (after[0].state, after[0].severity, after[0].late_s) == ("updated", "warning", None)
    assert after[-1].state == "resolved"
    told = fed(live, arriving(readings, 0.2), Alert)
    assert {a.id for a in late + after} == {a.id for a in told}
    np.testing.assert_array_equal(scores(bench.rows["a"]), scores(live.rows["a"]))
    assert all(s.reading.replayed for s in bench.rows["a"][290:350])


def test_receive_backlog_makes_an_open_alert_no_quieter_for_good() -> None:
    """What was told as a warning, then as info in a backlog, is a warning again once live."""
    readings = readings_of("a", broken(plant_rows(600), 300, 250))
    bench = Bench()
    assert fed(bench, arriving(readings[:320], 0.2), Alert)[-1].severity == "warning"
    late = fed(bench, arriving(readings[320:400], 900.0, replayed=True), Alert)
    assert late[-1].state == "updated"
    assert {a.severity for a in late} == {"info"}
    assert fed(bench, arriving(readings[400:402], 0.2), Alert)[0].severity == "warning"


def test_receive_future_stamp_costs_no_later_reading() -> None:
    """A device told one stamp far ahead: all that follow are scored, and no duration is negative."""
    readings = arriving(readings_of("a", broken(plant_rows(600), 300, 200)), 0.2)
    ahead = dataclasses.replace(readings[310], time_s=readings[310].time_s + 280.0)
    bench = Bench()
    events = bench.feed([*readings[:310], ahead, *readings[311:]])
    assert sum(isinstance(e, Scored) for e in events) == 600
    assert all(a.time_s >= a.opened_s for a in events if isinstance(a, Alert))
    assert np.isfinite(scores(events)[10:]).all()


def test_receive_clock_set_back_gives_every_alert_its_own_id() -> None:
    """Two alerts that open at the same moment, because the clock was set back in between, are told apart."""
    rows, start_s = broken(broken(plant_rows(900), 300, 40), 600, 40), 1e9

    def opened(again_s: float) -> list[Alert]:
        bench = Bench(source=SourceOptions("plant", "plant/{device}"))
        events = bench.feed([*readings_of("a", rows[:450], start_s), *readings_of("a", rows[450:], again_s)])
        assert sum(isinstance(e, Scored) for e in events) == 900
        return [a for a in events if isinstance(a, Alert) and a.state == "opened"]

    first, second = opened(start_s + 450)
    one, two = opened(start_s + 450 - (second.opened_s - first.opened_s))
    assert one.opened_s == two.opened_s == first.opened_s
    assert one.id == first.id != two.id
    assert len({a.id for a in opened(1000.0)}) == 2  # set back by decades


@pytest.mark.parametrize("back_s", [3600.0, 1e9])
def test_receive_step_back_weighs_no_more_than_a_reading_that_follows_at_once(back_s: float) -> None:
    """A model is told of a gap of no length where time runs back, however far: never of a negative one."""
    source = SourceOptions("plant", "plant/{device}")
    rows, found = plant_rows(460), []
    start_s = back_s + 1000.0
    for next_s in (start_s + 449.0001, 1000.0):
        bench = Bench(source=source)
        bench.feed(readings_of("a", rows[:450], start_s))
        group = group_name("plant", ("f0", "f1", "f2"))
        package = sealed_model(group, {"a": bench.history("a", ("f0", "f1", "f2"), 400)})
        due = bench.engine.adopt(group, package)
        bench.engine.enrol({e.device: bench.history(e.device, e.fields, e.limit) for e in due})
        events = bench.feed(readings_of("a", rows[450:], next_s))
        assert {e.phase for e in events if isinstance(e, Scored)} == {"ready"}
        found.append(scores(events))
    assert np.isfinite(found[1]).all()
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


def test_receive_gaps_in_the_sequence_are_counted_and_resets_noted() -> None:
    """Numbers that never came count; a counter that begins anew is a note and not a loss."""
    bench = Bench()
    numbers = [*range(100, 110), *range(115, 120), *range(5), 9]
    readings = [
        dataclasses.replace(r, sequence=n)
        for r, n in zip(readings_of("a", plant_rows(len(numbers))), numbers, strict=True)
    ]
    events = bench.feed(readings)
    assert bench.engine.gaps == 5 + 4
    assert [e.text for e in events if isinstance(e, Noted)] == ["counts anew: sequence number 0 after 119"]
    again = bench.feed(readings[-2:])
    assert [e.reason for e in again if isinstance(e, Refused)] == ["", ""]
    assert bench.engine.gaps == 9


def test_receive_refused_reading_moves_no_count() -> None:
    """A reading with a damaged field is no reading: its number may come again, whole."""
    bench = Bench()
    readings = arriving(readings_of("a", plant_rows(30)), 0.2)
    bench.feed([dataclasses.replace(r, sequence=n) for n, r in enumerate(readings[:20])])
    whole = dataclasses.replace(readings[20], sequence=20)
    damaged = dataclasses.replace(whole, issues={"f0": "string"})
    kinds = [type(e) for e in bench.feed([damaged, whole, whole])]
    assert kinds == [Refused, Scored, Refused]


Moment = tuple[str, float, float, int, bool]


def moments(device: str) -> st.SearchStrategy[list[Moment]]:
    """What happens to a device: clock step, skew of its stamp, which reading, whether of a backlog."""
    return st.lists(
        st.tuples(
            st.just(device),
            st.sampled_from([1.0, 1.0, 1.0, 0.0, 30.0, 7200.0, -0.5, -40.0, -7200.0]),
            st.sampled_from([0.0, 0.0, 0.4, -5.0, 250.0, -250.0]),
            st.integers(-6, 3),
            st.booleans(),
        ),
        min_size=5,
        max_size=25,
    )


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(a=moments("a"), b=moments("b"), cut=st.integers(0, 49), timed=st.booleans(), counted=st.booleans())
def test_receive_any_disorder_ends_the_same_way_live_restored_and_recovered(
    a: list[Moment], b: list[Moment], cut: int, *, timed: bool, counted: bool
) -> None:
    """Each reading ends once and is applied at most once; a checkpoint and the journal behind it agree."""
    source = SourceOptions("plant", "plant/{device}", time="ts" if timed else None)
    start = [r for name in "ab" for r in arriving(readings_of(name, plant_rows(52, seed=3)), 0.1)]
    sent = disorder([moment for pair in zip_longest(a, b) for moment in pair if moment], timed, counted)
    live, before = Bench(source=source), Bench(source=source)
    live.feed(start)
    expected = [live.feed([one]) for one in sent]
    before.feed(start)
    answers = [before.feed([one]) for one in sent[:cut]]
    saved = list(before.engine.checkpoint(0))
    restored, recovered = Bench(source=source), Bench(source=source)
    for bench in (restored, recovered):
        bench.rows = {name: list(rows) for name, rows in before.rows.items()}
        assert bench.engine.restore(saved) == []
    answers += [restored.feed([one]) for one in sent[cut:]]
    for one, mine, theirs in zip(sent, answers, expected, strict=True):
        assert [e.reading.device for e in mine if isinstance(e, Scored | Refused)] == [one.device]
        assert [plain(e) for e in mine] == [plain(e) for e in theirs]
    journal = [e for events in expected[cut:] for e in events if isinstance(e, Scored)]
    again = [event for scored in journal for event in replay(recovered, scored)]
    wanted = [e for events in expected[cut:] for e in events if isinstance(e, Scored | Alert)]
    assert [told(e) for e in again] == [told(e) for e in wanted]
    assert state(recovered.engine) == state(live.engine)
    applied = [
        (s.reading.device, s.reading.time_s if timed else 0.0, s.values.tobytes(), s.reading.sequence)
        for events in expected
        for s in events
        if isinstance(s, Scored)
    ]
    if timed or counted:
        assert len(applied) == len(set(applied))
    assert all(e.time_s >= e.opened_s for events in expected for e in events if isinstance(e, Alert))


def disorder(moments: list[Moment], timed: bool, counted: bool) -> list[Reading]:  # noqa: FBT001 - a helper
    """What arrives: new readings with values of their own, and repetitions of some before."""
    now_s, sent = 2000.0, list[Reading]()
    for n, (device, step_s, skew_s, pick, replayed) in enumerate(moments):
        now_s += step_s
        if pick < 0 and len(sent) >= -pick:
            old = sent[pick]
            again = dataclasses.replace(old, received_s=now_s, time_s=old.time_s if timed else now_s)
            sent.append(again)
            continue
        values = {f"f{k}": 20.0 + n / 7 + k for k in range(3)} | ({"stray": 1.0} if pick == 2 else {})
        number = (n if pick < 3 else 0) if counted else None
        stamp = now_s + skew_s if timed else now_s
        sent.append(Reading(device, "plant", stamp, now_s, values, sequence=number, replayed=replayed))
    return sent


def replay(bench: Bench, scored: Scored) -> list[Event]:
    """Bring a reading back from what the journal keeps of it."""
    r = scored.reading
    seen = {f: v for f, v in zip(scored.fields, scored.values.tolist(), strict=True) if not math.isnan(v)}
    kept = Reading(
        r.device,
        r.source,
        r.time_s,
        r.received_s,
        seen,
        {},
        True,
        r.sequence,
        r.replayed,
    )
    assert bench.engine.place(r.device, r.source, scored.fields) == []
    return [event for event in bench.feed([kept]) if isinstance(event, Scored | Alert | Refused)]


def state(engine: Engine) -> list[object]:
    """What decides about the next reading of each device."""
    rows = {row.device: open_state(row.state) for row in engine.checkpoint(1)}
    return [
        (
            name,
            d.count,
            d.last_s,
            d.high_s,
            d.arrived_s,
            d.lead_s,
            d.recent,
            d.last_sequence,
            d.sequences,
            repr(d.track),
            numbers,
        )
        for name, (d, numbers) in sorted(rows.items())
    ]


def told(event: Event) -> object:
    """What the journal and the alert table keep of an event."""
    if isinstance(event, Scored):
        return (
            event.reading.device,
            event.reading.time_s,
            event.values.tobytes(),
            repr(event.score),
            event.alarm,
        )
    return repr(event)


def plain(event: Event) -> object:
    """An event in a form in which NaN equals NaN."""
    if isinstance(event, Scored):
        return repr(dataclasses.replace(event, values=event.values.tolist()))
    return repr(event)
