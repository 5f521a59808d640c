"""Which fields a device has, and which readings are of it."""

from __future__ import annotations

import pytest
from support_engine import reading

from gruard.daemon.core.devices import (
    ADOPT_AFTER,
    DISCOVERY,
    MOST_CANDIDATES,
    RENAMED_AFTER,
    Device,
    admit_fields,
    admit_time,
)
from gruard.daemon.errors import DecodeError


def settled(*fields: str) -> Device:
    return Device("d", "plant", tuple(sorted(fields)), count=DISCOVERY, last_s=10.0, last_values={"a": 1.0})


def refusal(device: Device, values: dict[str, float], issues: dict[str, str] | None = None) -> str:
    with pytest.raises(DecodeError) as caught:
        admit_fields(device, reading("d", 11, values, issues=issues or {}), 64, vouched=False)
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
        assert refusal(device, {"x": 1.0, "y": float(n)}) == "unknown_field"
    assert admit_fields(device, reading("d", 11, {"x": 1.0, "y": 1.0}), 64, vouched=False) == ("x", "y")


def test_admit_fields_one_known_reading_ends_the_renaming() -> None:
    """Foreign messages between good ones never take a device over."""
    device = settled("a")
    for _ in range(3):
        for _ in range(RENAMED_AFTER - 1):
            refusal(device, {"x": 1.0})
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
