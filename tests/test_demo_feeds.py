"""The feeds of a demo: pace, event times and what a delay does to them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from gruard.daemon.demo.feeds import publish_fleet, publish_host
from gruard.daemon.demo.fleet import FIELDS, Fleet

if TYPE_CHECKING:
    from collections.abc import Mapping


class Time:
    """A clock that stands still except while somebody waits, or while `slow` messages are published."""

    def __init__(self, stop_after_s: float = 1e9) -> None:
        self.now_s = 50.0
        self._stop_s = self.now_s + stop_after_s

    def clock(self) -> float:
        return self.now_s

    def pause(self, seconds: float) -> bool:
        assert seconds >= 0
        self.now_s += seconds
        return self.now_s > self._stop_s


class Wire:
    def __init__(self, time: Time) -> None:
        self.sent: list[tuple[float, str, dict[str, float]]] = []
        self.time = time

    def publish(self, topic: str, payload: bytes) -> None:
        self.sent.append((self.time.now_s, topic, json.loads(payload)))


def test_publish_fleet_keeps_the_pace() -> None:
    """At ten times real time 3 seconds carry 30 simulated seconds, one reading per pump and second."""
    time = Time()
    wire = Wire(time)
    sent = publish_fleet(
        wire.publish,
        Fleet(2, seed=1),
        speed=10,
        duration_s=3,
        start_time_s=1000.0,
        clock=time.clock,
        pause=time.pause,
    )

    assert sent == len(wire.sent) == 60
    assert wire.sent[-1][0] == pytest.approx(50.0 + 2.9)
    assert [payload["ts"] for _, _, payload in wire.sent[::2]] == [1000.0 + t for t in range(30)]


def test_publish_fleet_sends_flat_json_under_the_pump_topic() -> None:
    """A reading is one flat object with the event time and all fields, on the topic of its pump."""
    time = Time()
    wire = Wire(time)
    seen: dict[str, Mapping[str, float]] = {}
    publish_fleet(
        wire.publish,
        Fleet(2, seed=1),
        speed=1,
        duration_s=1,
        start_time_s=0.0,
        clock=time.clock,
        pause=time.pause,
        seen=lambda device, fields: seen.update({device: fields}),
    )

    assert [topic for _, topic, _ in wire.sent] == ["demo/pumps/pump-01", "demo/pumps/pump-02"]
    assert set(wire.sent[0][2]) == {"ts", *FIELDS}
    assert {**seen["pump-01"], "ts": 0.0} == wire.sent[0][2]


def test_publish_fleet_catches_up_after_a_delay() -> None:
    """A broker that took no message for a second costs no reading and no event time: the feed catches up."""
    time = Time()
    wire = Wire(time)

    def publish(topic: str, payload: bytes) -> None:
        wire.publish(topic, payload)
        if len(wire.sent) == 5:
            time.now_s += 1.0

    sent = publish_fleet(
        publish,
        Fleet(1, seed=1),
        speed=10,
        duration_s=3,
        start_time_s=0.0,
        clock=time.clock,
        pause=time.pause,
    )

    assert sent == 30
    assert wire.sent[-1][0] == pytest.approx(50.0 + 2.9)
    assert [payload["ts"] for _, _, payload in wire.sent] == list(range(30))


def test_publish_fleet_ends_when_asked() -> None:
    """A request to stop ends the feed between two simulated seconds, with the count of what was sent."""
    time = Time(stop_after_s=1.05)
    wire = Wire(time)
    sent = publish_fleet(
        wire.publish,
        Fleet(3, seed=1),
        speed=10,
        duration_s=60,
        start_time_s=0.0,
        clock=time.clock,
        pause=time.pause,
    )

    assert sent == len(wire.sent) == 33


def test_publish_host_sends_what_is_measured_until_asked_to_stop() -> None:
    """Each measurement goes out with the wall clock's time, on the machine's topic, four times a second."""
    time = Time(stop_after_s=1.0)
    wire = Wire(time)
    seen: list[Mapping[str, float]] = []
    sent = publish_host(
        wire.publish,
        "box",
        measure=lambda: {"load1": time.now_s},
        wall=lambda: 1_000_000 + time.now_s,
        pause=time.pause,
        seen=lambda _, fields: seen.append(fields),
    )

    assert sent == 4
    assert wire.sent[0] == (50.25, "demo/hosts/box", {"ts": 1_000_050.25, "load1": 50.25})
    assert seen[-1] == {"load1": 51.0}
