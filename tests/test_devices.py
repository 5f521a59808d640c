"""Which fields a device has, and which readings are of it."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support_engine import reading

from gruard.daemon.core.devices import (
    ADOPT_AFTER,
    DISCOVERY,
    LATENCY_S,
    LOWER_AFTER,
    MOST_CANDIDATES,
    MOST_MISSING,
    REMEMBERED,
    RENAMED_AFTER,
    SLACK_S,
    Device,
    admit_fields,
    admit_time,
    mark_of,
    take_sequence,
    take_time,
)
from gruard.daemon.errors import DecodeError
from gruard.daemon.records import Reading


def settled(*fields: str) -> Device:
    return Device("d", "plant", tuple(sorted(fields)), count=DISCOVERY, last_s=10.0, last_values={"a": 1.0})


def refusal(
    device: Device, values: dict[str, float], issues: dict[str, str] | None = None, time_s: float = 11.0
) -> str:
    with pytest.raises(DecodeError) as caught:
        admit_fields(device, reading("d", time_s, values, issues=issues or {}), 64, vouched=False)
    return caught.value.reason


def test_admit_fields_first_readings_gather_the_field_set() -> None:
    """While a device is new, every reading may add fields."""
    device = Device("d", "plant")
    assert admit_fields(device, reading("d", 0, {"b": 1.0}), 64, vouched=False) == ("b",)
    device.fields, device.count = ("b",), 1
    assert admit_fields(device, reading("d", 1, {"a": 1.0, "b": 1.0}), 64, vouched=False) == ("a", "b")


def test_admit_fields_stray_field_among_the_first_is_dropped_when_settling() -> None:
    """A field that one message alone showed is not part of the device."""
    device = Device("d", "plant")
    for n in range(DISCOVERY):
        values = {"a": 1.0} | ({"stray": 1.0} if n == 3 else {})
        changed = admit_fields(device, reading("d", n, values), 64, vouched=False)
        device.fields = changed or device.fields
        device.count += 1
    assert device.fields == ("a",)


def test_admit_fields_topic_that_names_the_field_keeps_rare_fields() -> None:
    """Where each message shows one field, one sighting is enough."""
    device = Device("d", "plant")
    for n in range(DISCOVERY):
        changed = admit_fields(device, reading("d", n, {f"f{min(n, 5)}": 1.0}), 64, vouched=True)
        device.fields = changed or device.fields
        device.count += 1
    assert device.fields == ("f0", "f1", "f2", "f3", "f4", "f5")


def test_admit_fields_known_field_with_wrong_type_refuses_the_reading() -> None:
    """A string, bool or object where the device has a number is a damaged reading."""
    for issue in ("string", "bool", "object"):
        assert refusal(settled("a", "b"), {"a": 1.0}, {"b": issue}) == "wrong_type"
    assert refusal(settled("a", "b"), {"a": 1.0}, {"b": "out_of_range"}) == "out_of_range"


def test_admit_fields_null_is_missing_and_foreign_strings_are_ignored() -> None:
    """A null is a missing value, and text in a field the device does not have says nothing."""
    issues = {"b": "null", "mode": "string"}
    assert (
        admit_fields(settled("a", "b"), reading("d", 11, {"a": 1.0}, issues=issues), 64, vouched=False)
        is None
    )


def test_admit_fields_only_foreign_fields_are_refused() -> None:
    """A message with none of the device's fields is not a reading of it."""
    assert refusal(settled("a"), {"evil": 1.0}) == "unknown_field"


def test_admit_fields_new_field_is_adopted_after_enough_sightings() -> None:
    """A new sensor is taken in once it has proved to be there to stay."""
    device = settled("a")
    for n in range(ADOPT_AFTER - 1):
        assert admit_fields(device, reading("d", 11 + n, {"a": 1.0, "new": 1.0}), 64, vouched=False) is None
    assert admit_fields(device, reading("d", 99, {"a": 1.0, "new": 1.0}), 64, vouched=False) == ("a", "new")
    assert not device.sightings


def test_admit_fields_flood_of_new_names_stays_bounded() -> None:
    """Ever new field names occupy a fixed amount of memory and change nothing."""
    device = settled("a")
    for n in range(1000):
        assert admit_fields(device, reading("d", 11 + n, {"a": 1.0, f"x{n}": 1.0}), 64, vouched=False) is None
    assert len(device.sightings) <= MOST_CANDIDATES


def test_admit_fields_limit_of_fields_holds() -> None:
    """A device never gets more fields than its source allows."""
    device = Device("d", "plant")
    with pytest.raises(DecodeError, match="too_many_fields"):
        admit_fields(device, reading("d", 0, {f"f{n}": 1.0 for n in range(5)}), 4, vouched=False)
    full = settled("a", "b")
    for n in range(3 * ADOPT_AFTER):
        assert admit_fields(full, reading("d", 11 + n, {"a": 1.0, "c": 1.0}), 2, vouched=False) is None


def test_admit_fields_renamed_device_starts_again() -> None:
    """A device whose maker renamed everything is learned anew, but only when nothing else comes."""
    device = settled("a")
    for n in range(RENAMED_AFTER - 1):
        assert refusal(device, {"x": 1.0, "y": float(n)}, time_s=11.0 + n) == "unknown_field"
    assert admit_fields(device, reading("d", 5000, {"x": 1.0, "y": 1.0}), 64, vouched=False) == ("x", "y")


def test_admit_fields_one_known_reading_ends_the_renaming() -> None:
    """Foreign messages between good ones never take a device over."""
    device = settled("a")
    for _ in range(3):
        for n in range(RENAMED_AFTER - 1):
            refusal(device, {"x": 1.0}, time_s=11.0 + n)
        assert admit_fields(device, reading("d", 11, {"a": 1.0}), 64, vouched=False) is None


def test_admit_time_older_reading_is_late() -> None:
    """Event time never runs back."""
    with pytest.raises(DecodeError, match="late"):
        admit_time(settled("a"), reading("d", 9.5, {"a": 1.0}), event_time=True)


def test_admit_time_same_reading_again_is_a_duplicate() -> None:
    """The same time and values are the same reading; the reason is empty because nothing is wrong."""
    with pytest.raises(DecodeError) as caught:
        admit_time(settled("a"), reading("d", 10.0, {"a": 1.0}), event_time=True)
    assert caught.value.reason == ""


def test_admit_time_same_time_other_values_is_late() -> None:
    """Two different truths for one moment: the first one stands."""
    with pytest.raises(DecodeError, match="late"):
        admit_time(settled("a"), reading("d", 10.0, {"a": 2.0}), event_time=True)


def test_admit_time_same_time_other_field_is_welcome() -> None:
    """Fields of one moment may arrive in several messages."""
    assert admit_time(settled("a", "b"), reading("d", 10.0, {"b": 2.0}), event_time=True) == 10.0


def test_admit_time_arrival_times_never_run_back_by_a_moment() -> None:
    """Without event times, arrivals that jitter keep their order."""
    assert admit_time(settled("a"), reading("d", 9.2, {"a": 1.0}), event_time=False) == 10.0


def test_admit_time_arrival_times_follow_a_clock_that_is_set_back() -> None:
    """Without event times, a clock that is set back takes the device's time along."""
    assert admit_time(settled("a"), reading("d", 4.0, {"a": 1.0}), event_time=False) == 4.0


def test_admit_fields_new_device_does_not_take_foreign_messages_in() -> None:
    """While a device is new, a message that shares nothing with it is not of it."""
    device = Device("d", "plant", ("a", "b"), count=3, sightings={"a": 3, "b": 3})
    assert refusal(device, {"evil": 1.0}) == "unknown_field"


def test_admit_fields_richer_device_replaces_a_stray_first_message() -> None:
    """When the very first message was the stray one, the real device takes the place."""
    device = Device("d", "plant", ("evil",), count=2, sightings={"evil": 2})
    assert admit_fields(device, reading("d", 11, {"a": 1.0, "b": 1.0}), 64, vouched=False) == ("a", "b")
    assert device.count == 0


def test_admit_fields_strays_cannot_keep_a_new_field_out() -> None:
    """Names seen once make room for one that keeps coming."""
    device = settled("a")
    for n in range(MOST_CANDIDATES):
        admit_fields(device, reading("d", 11 + n, {"a": 1.0, f"stray{n}": 1.0}), 64, vouched=False)
    shown = [
        admit_fields(device, reading("d", 99 + n, {"a": 1.0, "b": 1.0}), 64, vouched=False)
        for n in range(ADOPT_AFTER)
    ]
    assert shown[-1] == ("a", "b")


def test_admit_fields_foreign_messages_between_do_not_stop_an_adoption() -> None:
    """A device that also sends something else still gets its new field."""
    device = settled("a")
    shown = None
    for n in range(ADOPT_AFTER):
        shown = admit_fields(device, reading("d", 11 + n, {"a": 1.0, "hum": 1.0}), 64, vouched=False)
        if shown is None:
            refusal(device, {"rssi": 1.0})
    assert shown == ("a", "hum")


def told(device: Device, one: Reading, *, event_time: bool = True) -> str:
    """Offer a reading the way the engine does: "taken", "late", or "" for a duplicate."""
    try:
        time_s = admit_time(device, one, event_time=event_time)
    except DecodeError as refused:
        return refused.reason
    one = dataclasses.replace(one, time_s=time_s)
    row = np.array([time_s, *(one.values.get(name, math.nan) for name in device.fields)])
    if one.sequence is not None:
        take_sequence(device, one.sequence)
    take_time(device, one, mark_of(row.tobytes(), one.sequence, event_time=event_time))
    return "taken"


def at(time_s: float, arrived_s: float, value: float = 1.0, sequence: int | None = None) -> Reading:
    return Reading("d", "plant", time_s, arrived_s, {"a": value}, sequence=sequence)


def new() -> Device:
    return Device("d", "plant", ("a",), count=DISCOVERY)


def test_admit_time_future_stamp_does_not_block_what_comes_after_it() -> None:
    """One stamp 290 s ahead: every later true reading is taken, and none of them twice."""
    device = new()
    assert told(device, at(100.0, 100.1)) == "taken"
    assert told(device, at(391.0, 101.1)) == "taken"
    later = [at(102.0 + n, 102.1 + n, float(n)) for n in range(400)]
    assert [told(device, one) for one in later] == ["taken"] * 400
    assert device.last_s == 501.0


def test_admit_time_after_a_step_back_repetitions_are_known() -> None:
    """The reading that was ahead, and those before it, are duplicates or late when they come again."""
    device, ahead, before = new(), at(391.0, 101.1, 7.0), at(100.0, 100.1)
    assert [told(device, one) for one in (before, ahead, at(102.0, 102.1))] == ["taken"] * 3
    assert told(device, dataclasses.replace(ahead, received_s=103.0)) == ""
    assert told(device, dataclasses.replace(before, received_s=103.0)) == "late"
    assert told(device, at(391.0, 391.2, 8.0)) == "taken"  # the moment itself, when it comes


def test_admit_time_clock_of_device_and_gateway_set_back_an_hour() -> None:
    """Where arrivals step back too, the device's time follows at once; repetitions are still known."""
    device = new()
    before = [at(10_000.0 + n, 10_000.2 + n, float(n)) for n in range(30)]
    after = [at(6_450.0 + n, 6_450.2 + n, 100.0 + n) for n in range(30)]
    assert {told(device, one) for one in before + after} == {"taken"}
    assert {told(device, dataclasses.replace(one, received_s=6_500.0)) for one in before} == {""}


def test_admit_time_device_that_is_always_ahead_keeps_its_order() -> None:
    """A clock that is 200 s fast makes no old reading young again, but for those that fit the arrival."""
    device = new()
    sent = [at(1200.0 + n, 1000.0 + n, float(n)) for n in range(500)]
    assert {told(device, one) for one in sent} == {"taken"}
    again = [dataclasses.replace(one, received_s=1500.0) for one in sent]
    words = [told(device, one) for one in again]
    assert set(words) <= {"late", "", "taken"}
    assert words.count("taken") <= LATENCY_S + SLACK_S + 2


@pytest.mark.parametrize("ahead_s", [290.0, 3e8])
def test_admit_time_future_stamp_of_a_fast_device_does_not_block_it(ahead_s: float) -> None:
    """A device that is always 3 s ahead, but for delays: one wild stamp costs no reading after it."""
    device = new()
    for n in range(60):
        assert told(device, at(103.0 + n, 100.0 + n + 2.9 * (n % 5 == 0))) == "taken"
    assert told(device, at(160.0 + ahead_s, 160.0)) == "taken"
    later = [at(164.0 + n, 161.0 + n, float(n)) for n in range(400)]
    assert [told(device, one) for one in later] == ["taken"] * 400


def test_admit_time_fast_device_has_late_readings_too() -> None:
    """A device that is always 10 s ahead: what it sends out of order is late, its lead excuses it not."""
    device = new()
    for n in range(150):
        assert told(device, at(110.0 + n, 100.0 + n)) == "taken"
    assert told(device, at(257.5, 249.5)) == "late"


def test_admit_time_backlog_behind_a_future_stamp_is_taken() -> None:
    """What was told right after a stamp in the future may arrive hours later."""
    device = new()
    assert told(device, at(391.0, 101.1)) == "taken"
    assert {told(device, at(102.0 + n, 9000.0)) for n in range(100)} == {"taken"}


def test_admit_time_recording_knows_no_arrival() -> None:
    """Where arrival is the event time itself, an earlier row is late however far it lies back."""
    device = new()
    assert told(device, at(5000.0, 5000.0)) == "taken"
    assert told(device, at(100.0, 100.0)) == "late"


def test_admit_time_fields_of_no_device_do_not_decide() -> None:
    """A repetition is known by the device's fields: the journal has no others to decide by again."""
    device = new()
    one = Reading("d", "plant", 10.0, 10.5, {"a": 1.0, "stray": 1.0})
    assert told(device, one) == "taken"
    assert told(device, dataclasses.replace(one, values={"a": 1.0, "stray": 2.0})) == ""


@pytest.mark.parametrize("event_time", [True, False])
def test_admit_time_sequence_number_again_is_a_duplicate(*, event_time: bool) -> None:
    """A number that was applied among the last 64 is known, whatever stands beside it."""
    device = new()
    for n in range(200):
        assert told(device, at(n, n + 0.5, 1.0, 1000 + n), event_time=event_time) == "taken"
    assert told(device, at(199.0, 300.0, 1.0, 1199), event_time=event_time) == ""
    assert told(device, at(136.0, 300.0, 5.0, 1136), event_time=event_time) == ""
    assert told(device, at(135.0, 300.0, 5.0, 1135), event_time=event_time) == "late"


def test_admit_time_sequence_number_that_was_skipped_is_late() -> None:
    """An unseen lower number comes too late to be applied, and is not called a duplicate."""
    device = new()
    for n in (1, 2, 4):
        told(device, at(n, n + 0.5, 1.0, 100 + n))
    assert told(device, at(3.0, 5.0, 1.0, 103)) == "late"


def test_admit_time_sequence_decides_about_repetitions_of_a_moment() -> None:
    """With numbers, the same values at the same time are another reading."""
    device = new()
    assert told(device, at(10.0, 10.5, 1.0, 1)) == "taken"
    assert told(device, at(10.0, 10.6, 1.0, 2)) == "taken"
    assert told(device, at(10.0, 10.6, 2.0, 3)) == "taken"
    assert told(device, at(9.0, 10.7, 1.0, 4)) == "late"  # time decides where it stands


@pytest.mark.parametrize(("last", "first"), [(9_000, 0), (70, 0), (255, 3)])
def test_admit_time_sequence_that_begins_anew_is_taken(last: int, first: int) -> None:
    """A counter that falls far, or to its beginning, was reset: readings are taken with and without times."""
    for event_time in (True, False):
        device = new()
        for n in range(20):
            told(device, at(n, n + 0.5, 1.0, last - 19 + n), event_time=event_time)
        later = [at(100.0 + n, 100.5 + n, 2.0, first + n) for n in range(300)]
        assert {told(device, one, event_time=event_time) for one in later} == {"taken"}


def test_admit_time_sequence_with_a_later_event_time_is_a_new_count() -> None:
    """Event times tell a device that was restarted after three readings from a repetition."""
    device = new()
    assert [told(device, at(n, n + 0.5, 1.0, n)) for n in (1, 2, 3)] == ["taken"] * 3
    assert [told(device, at(10.0 + n, 10.5 + n, 1.0, n)) for n in (1, 2, 3)] == ["taken"] * 3
    assert [told(device, at(n, 20.0, 1.0, n)) for n in (1, 2, 3)] == [""] * 3


def test_admit_time_repetition_from_before_a_new_count_is_known() -> None:
    """Without event times, a number of the old count that comes again is not a leap of the new one."""
    device = new()
    old = [at(n, n, float(n), 5000 + n) for n in range(5)]
    fresh = [at(10.0 + n, 10.0 + n, 50.0 + n, n) for n in range(5)]
    assert {told(device, one, event_time=False) for one in old + fresh} == {"taken"}
    again = [dataclasses.replace(one, time_s=20.0, received_s=20.0) for one in old]
    assert [told(device, one, event_time=False) for one in again] == [""] * 5
    assert device.last_sequence == 4


def test_admit_time_beginning_of_a_count_that_comes_again_is_known() -> None:
    """What a broker that was killed delivers again may begin with the first numbers, however long ago."""
    device = new()
    sent = [at(n, n, 20.0 + n % 7, n) for n in range(500)]
    assert {told(device, one, event_time=False) for one in sent} == {"taken"}
    again = [dataclasses.replace(one, time_s=900.0, received_s=900.0) for one in sent]
    assert [told(device, one, event_time=False) for one in again[:16]] == [""] * 16
    assert [told(device, one, event_time=False) for one in again[16:436]] == ["late"] * 420
    assert [told(device, one, event_time=False) for one in again[436:]] == [""] * 64
    assert told(device, at(901.0, 901.0, 1.0, 500), event_time=False) == "taken"


def test_admit_time_sensor_that_always_shows_the_same_may_begin_anew() -> None:
    """Equal values under equal numbers are no repetition where the sensor never showed others."""
    device = new()
    for turn in range(3):
        for n in range(100):
            one = at(200.0 * turn + n, 200.0 * turn + n, 1.0, n)
            known = n == 0 and turn > 0  # known: it showed something new, as nothing had come before it
            assert told(device, one, event_time=False) == ("" if known else "taken")


@pytest.mark.parametrize(("apart_s", "taken"), [(1.0, 1000 - 600), (60.0, 1000 - LOWER_AFTER), (0.5, 0)])
def test_admit_time_lower_count_that_goes_on_alone_is_the_devices(apart_s: float, taken: int) -> None:
    """A device that restarted while nobody listened is not refused until it has counted as far as before."""
    device = new()
    for n in range(20):
        told(device, at(n, n, 1.0, 1_000_000 + n), event_time=False)
    later = [at(100.0 + apart_s * n, 100.0 + apart_s * n, 2.0, 100 + n) for n in range(1000)]
    answers = [told(device, one, event_time=False) for one in later]
    assert answers == ["late"] * (1000 - taken) + ["taken"] * taken


def test_admit_time_lower_numbers_between_true_ones_stay_late() -> None:
    """A recording played again beside the live device never becomes the device, nor do numbers that fall."""
    device = new()
    for n in range(2000):
        told(device, at(10.0 * n, 10.0 * n, 1.0, 5000 + n // 50), event_time=False)
        assert told(device, at(10.0 * n, 10.0 * n, 2.0, 100 + n), event_time=False) == "late"
    for n in range(1000):
        assert told(device, at(1e5 + 10.0 * n, 1e5 + 10.0 * n, 2.0, 2000 - n), event_time=False) == "late"


def test_admit_time_of_the_journal_is_never_refused() -> None:
    """Recovery repeats what was decided, also where what it was decided by is not in the journal."""
    device = new()
    for n in range(20):
        told(device, at(n, n, 1.0, 1000 + n), event_time=False)
    one = dataclasses.replace(at(30.0, 30.0, 1.0, 500), admitted=True)
    assert told(device, one, event_time=False) == "taken"
    assert device.last_sequence == 500


def test_admit_time_marks_are_compared_whole() -> None:
    """Four bytes that happen to stand across two marks are no reading that was seen."""
    device, ahead = new(), at(391.0, 101.1)
    for one in (at(100.0, 100.1), ahead, at(102.0, 102.1)):
        assert told(device, one) == "taken"
    mark = device.recent[4:8]
    device.recent = b"\0" + mark + b"\0\0\0"
    assert told(device, dataclasses.replace(ahead, received_s=391.0 + 0.5)) == "taken"
    assert device.recent.endswith(mark)


def test_take_sequence_counts_what_is_missing() -> None:
    """Each number that was skipped counts once; a new count misses nothing."""
    device = new()
    assert [take_sequence(device, n) for n in (5, 6, 9, 10, 0, 3)] == [0, 0, 2, 0, None, 2]
    assert take_sequence(device, 3 + MOST_MISSING) == MOST_MISSING - 1
    assert take_sequence(device, 2**53) is None  # one wild number is another count, not a loss


STEPS = st.sampled_from([0.0, 0.25, 1.0, 5.0, 100.0, 3600.0, -0.5, -2.0, -100.0, -3600.0])


@given(
    steps=st.lists(
        st.tuples(STEPS, st.sampled_from([0.0, 0.5, 3.0, 200.0, -2.0, -200.0]), st.integers(-70, 40)),
        min_size=1,
        max_size=40,
    ),
    event_time=st.booleans(),
    counted=st.booleans(),
)
def test_admit_time_no_interleaving_applies_a_reading_twice(
    steps: list[tuple[float, float, int]], *, event_time: bool, counted: bool
) -> None:
    """Clock steps, future and past stamps, counter resets, repetitions of any age: at most once each."""
    device, now_s, number = new(), 1e6, 6000
    sent: list[Reading] = []
    taken: list[tuple[float, float, int | None]] = []
    for step_s, skew_s, pick in steps:
        now_s += step_s
        if sent and pick < 0:
            one = dataclasses.replace(sent[pick % len(sent)], received_s=now_s)
        else:
            number = 0 if pick == 40 else number + 1 + max(pick - 35, 0)
            stamp = now_s + skew_s if event_time else now_s
            one = at(stamp, now_s, float(len(sent)), number if counted else None)
            sent.append(one)
        if not event_time:
            one = dataclasses.replace(one, time_s=now_s)
        if told(device, one, event_time=event_time) == "taken":
            taken.append(((one.time_s if event_time else 0.0), one.values["a"], one.sequence))
    if event_time or counted:
        assert len(taken) == len(set(taken))
    assert device.last_s > -math.inf
    assert len(device.recent) <= 4 * REMEMBERED
