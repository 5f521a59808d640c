"""What flows through the daemon. Imports nothing of ours: everybody may import this.

    Message --decode--> Reading --engine--> Scored, AlertEvent --service--> database, broker, metrics

Times: `time_s` is event time and `received_s` arrival time, both Unix seconds UTC. Values are physical
units as published. A field that is absent from `values` is missing; missing is never 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Why a whole message or reading was refused. Bounded, because each is a metric label.
REJECT_REASONS = (
    "unknown_topic",  # no source's pattern fits
    "bad_device_id",  # empty, too long, or characters outside the allowed set
    "too_large",  # payload over the source's limit
    "empty",  # no bytes at all (also how a retained message is deleted)
    "not_text",  # not UTF-8
    "not_json",  # not JSON, or JSON with NaN or Infinity in it
    "too_deep",  # nested deeper than the decoder follows
    "not_object",  # JSON, but not an object where an object is needed
    "not_number",  # a plain payload that is no number
    "no_numeric_field",  # decoded, but nothing in it can be scored
    "too_many_fields",  # more numeric fields than a device may have
    "wrong_type",  # a field of the device holds a string, bool, list or object
    "out_of_range",  # a field of the device is infinite or beyond the largest magnitude
    "unknown_field",  # only fields that this device does not have
    "missing_time",  # the source names an event time and it is absent
    "bad_time",  # the event time cannot be read
    "future_time",  # the event time lies too far ahead of arrival
    "missing_sequence",  # the source names a sequence number and it is absent
    "bad_sequence",  # the sequence number cannot be read
    "late",  # the event time lies before the device's newest
    "retained",  # a stored copy, not a fresh reading
    "too_many_devices",  # the cap on devices is reached
)

#: Why a message was dropped on purpose, to keep a limit.
SHED_REASONS = (
    "inbox_full",  # QoS 0, and the inbox is full
    "unknown_device",  # a backlog waits, and known devices go first
)

#: Field-level reasons: the field is left out, the reading may still be scored.
ISSUE_REASONS = ("null", "string", "bool", "object", "out_of_range")


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """One `[[sources]]` block, as the decoders see it."""

    name: str  # unique label; part of the group's name
    topic: str  # pattern with named levels: "plant/{line}/{device}", "{device+}" spans several
    decoder: str = "json"  # name in gruard.daemon.decoders.DECODERS
    time: str | None = None  # dotted path of the event time; None: arrival time
    sequence: str | None = None  # dotted path of a number that rises with each reading of the device
    include: tuple[str, ...] = ()  # only these fields (fnmatch patterns over dotted names); empty: all
    exclude: tuple[str, ...] = ()  # never these (fnmatch patterns); wins over include
    rename: Mapping[str, str] = field(default_factory=dict)  # dotted payload name -> field name
    qos: int = 1  # subscription QoS
    max_payload_bytes: int = 262_144
    max_fields: int = 64
    future_tolerance_s: float = 300.0  # event times further ahead of arrival are refused


@dataclass(frozen=True, slots=True)
class Message:
    """One MQTT message as the broker edge hands it over."""

    topic: str
    payload: bytes
    received_s: float
    qos: int = 0
    retain: bool = False
    duplicate: bool = False  # the DUP flag
    packet_id: int = 0
    generation: int = 0  # connection count: an ack from an older connection must not be sent
    session: int = 0  # how often the broker has forgotten us since we started: packet ids begin anew
    backlog: bool = False  # it waited at the broker while we were away


@dataclass(frozen=True, slots=True)
class Delivery:
    """One QoS 1 message that was taken, so that its redelivery is known for what it is."""

    packet_id: int
    ordinal: int  # how many messages of the session came before it
    digest: bytes  # 8 bytes, of topic and payload
    missing: tuple[int, ...] = ()  # which of its readings were not applied yet at the commit


@dataclass(frozen=True, slots=True)
class Reading:
    """One device at one moment."""

    device: str
    source: str
    time_s: float
    received_s: float
    values: Mapping[str, float]  # finite numbers in physical units
    issues: Mapping[str, str] = field(default_factory=dict)  # field -> ISSUE_REASONS
    growing: bool = False  # the topic names the field, so one message never shows the whole device
    sequence: int | None = None  # rises with each reading of the device, where the payload tells
    replayed: bool = False  # of a backlog: scored and remembered, but nobody is paged for it
    admitted: bool = False  # out of the journal: nothing is decided about it again


AlertState = Literal["opened", "updated", "resolved"]
#: What an alert is about: a device that behaves unusually, one that went on to until that was its normal, and
#: one that has slowly left what it showed in its first days.
AlertKind = Literal["anomaly", "new_normal", "drift"]
Severity = Literal["info", "warning", "critical"]
