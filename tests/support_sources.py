"""One source for each way in which a payload can be looked at, and what must hold of whatever comes out."""

from __future__ import annotations

import math

from gruard.daemon.core.sources import MAX_DEVICE_CHARS, Sources
from gruard.daemon.decoders import MAX_MAGNITUDE, NAMELESS, usable_name
from gruard.daemon.decoders.sequence import LARGEST_SEQUENCE
from gruard.daemon.errors import DecodeError
from gruard.daemon.records import ISSUE_REASONS, REJECT_REASONS, Message, Reading, SourceOptions

RECEIVED_S = 1_750_000_000.0
GOOD = b'{"temperature":21.5,"motor":{"rpm":1500},"phase":[1,2,3],"state":"on"}'

#: By the first level of the topic.
OPTIONS = {
    "plain": SourceOptions("plain", "plain/{device+}"),
    "timed": SourceOptions("timed", "timed/{device+}", time="a"),
    "counted": SourceOptions("counted", "counted/{device+}", sequence="a"),
    "picked": SourceOptions(
        "picked", "picked/{device+}", include=("a*", "k*"), exclude=("*b",), rename={"a": "b"}
    ),
    "grown": SourceOptions("grown", "grown/{device}/{field}"),
    "scalar": SourceOptions("scalar", "scalar/{device+}", decoder="scalar"),
    "scalargrown": SourceOptions("scalargrown", "scalargrown/{device}/{field}", decoder="scalar"),
}
# Shared by all examples on purpose: what a decoder remembers of one payload must not spoil the next.
SOURCES = Sources(list(OPTIONS.values()))


def outcome(topic: str, payload: bytes, sources: Sources = SOURCES) -> list[Reading] | str:
    """Return sound readings or the bounded reason of the refusal; anything else fails the test."""
    try:
        readings = sources.decode(Message(topic, payload, RECEIVED_S))
    except DecodeError as error:
        check_refusal(error)
        return error.reason
    assert readings
    for reading in readings:
        check_reading(reading)
    return readings


def check_refusal(refusal: DecodeError) -> None:
    assert refusal.reason in REJECT_REASONS
    assert str(refusal).isprintable()
    assert len(str(refusal)) < 2000


def check_reading(reading: Reading) -> None:
    options = OPTIONS[reading.source]
    assert 0 < len(reading.device) <= MAX_DEVICE_CHARS
    assert reading.device.isprintable()
    assert not set(reading.device) & set("+#\0")
    assert 0 <= reading.time_s <= RECEIVED_S + options.future_tolerance_s
    assert 0 < len(reading.values) <= options.max_fields
    assert (reading.sequence is None) == (options.sequence is None)
    assert reading.sequence is None or 0 <= reading.sequence <= LARGEST_SEQUENCE
    for name, value in reading.values.items():
        assert usable_name(name)
        name.encode()
        assert type(value) is float
        assert math.isfinite(value)
        assert abs(value) <= MAX_MAGNITUDE
    for name, issue in reading.issues.items():
        assert name == NAMELESS or usable_name(name)
        assert issue in ISSUE_REASONS
        assert name not in reading.values
