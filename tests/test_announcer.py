"""The outbox on its way out: at least once, under one id, never before the commit."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from support_engine import BUDGET, SOURCE, plant_rows, readings_of

from gruard.daemon.announcer import Announcer
from gruard.daemon.core.engine import Engine, EngineOptions
from gruard.daemon.core.events import Event, Scored
from gruard.daemon.edges.broker import BrokerStatus
from gruard.daemon.edges.database import open_database
from gruard.daemon.errors import BrokerError
from gruard.daemon.pipeline import Pipeline, TrainingSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Line:
    """A broker edge whose acknowledgements come when the test says so: a real one cannot be told to."""

    def __init__(self) -> None:
        self.connected, self.generation, self.room = True, 1, 20
        self.sent: list[tuple[str, bytes]] = []
        self.open: dict[int, str] = {}
        self.done: list[int] = []
        self.lost: list[int] = []
        self.largest = 10**6

    def status(self) -> BrokerStatus:
        return BrokerStatus(
            self.connected,
            self.generation,
            *("5", True, None, (), 0, 0, 0, 100, len(self.open), None, True),
            turned_s=0.0,
        )

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, **_: object) -> int | None:
        if len(payload) > self.largest and not topic.endswith("/status"):
            raise BrokerError("too large")
        if not self.connected or (qos and len(self.open) >= self.room):
            return None
        self.sent.append((topic, payload))
        if qos:
            self.open[len(self.sent)] = topic
        return len(self.sent)

    def confirm_all(self) -> None:
        self.done += list(self.open)
        self.open.clear()

    def cut(self) -> None:
        """The connection ends and a new one stands."""
        self.lost += list(self.open)
        self.open.clear()
        self.generation += 1

    def confirmed(self) -> list[int]:
        done, self.done = self.done, []
        return done

    def failed(self) -> list[int]:
        lost, self.lost = self.lost, []
        return lost

    def alerts(self) -> list[dict[str, object]]:
        return [json.loads(body) for topic, body in self.sent if "/alerts/" in topic]


@pytest.fixture
def pipeline(tmp_path: Path) -> Iterator[Pipeline]:
    with open_database(tmp_path, now_s=0.0) as database:
        engine = Engine(EngineOptions((SOURCE,), BUDGET, update_every_s=1e9))
        yield Pipeline(
            engine,
            database,
            tmp_path,
            TrainingSettings(every_s=None),
            base="gruard",
            wall=lambda: 0.0,
            monotonic=lambda: 0.0,
        )


def run(pipeline: Pipeline, readings: list[object]) -> list[Event]:
    pipeline.feed(readings)  # type: ignore[arg-type]
    events: list[Event] = []
    while pipeline.backlog:
        events += pipeline.advance()
    return events


def fault(pipeline: Pipeline, device: str = "a") -> list[Event]:
    """A device that has learned, then breaks: one alert opens."""
    rows = plant_rows(420)
    rows[405:] += 30.0
    return run(pipeline, readings_of(device, rows))


def test_send_alert_waits_for_the_commit(pipeline: Pipeline) -> None:
    """An alert whose transaction is not durable is not told."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    fault(pipeline)
    announcer.send(0.0)
    assert line.alerts() == []
    pipeline.commit()
    announcer.send(0.0)
    assert line.alerts()[0]["state"] == "opened"


def test_send_alert_stays_in_the_outbox_until_it_is_acknowledged(pipeline: Pipeline) -> None:
    """Published is not delivered: only the broker's acknowledgement takes it out."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    fault(pipeline)
    pipeline.commit()
    announcer.send(0.0)
    waiting = pipeline.database.outbox_pending()
    assert waiting == len(line.alerts()) > 0
    announcer.send(0.1)
    assert len(line.alerts()) == waiting, "not repeated while it is on its way"
    line.confirm_all()
    announcer.send(0.2)
    assert pipeline.pending.outbox == 0
    pipeline.commit()
    assert pipeline.database.outbox_pending() == 0


def test_send_alert_is_repeated_under_its_id_after_a_cut(pipeline: Pipeline) -> None:
    """P4: what was not acknowledged goes out again on the next connection, the very same."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    fault(pipeline)
    pipeline.commit()
    announcer.send(0.0)
    first = line.alerts()
    line.cut()
    announcer.send(1.0)
    assert line.alerts() == first + first


def test_send_alert_outlives_the_process(pipeline: Pipeline) -> None:
    """A new process finds what the last one could not tell."""
    fault(pipeline)
    pipeline.commit()
    fresh = Line()
    Announcer(fresh, pipeline, "gruard", lambda: 0.0).send(0.0)  # type: ignore[arg-type]
    assert fresh.alerts()[0]["state"] == "opened"


def test_send_more_alerts_than_the_broker_takes_at_once(pipeline: Pipeline) -> None:
    """With little room in flight, alerts go out in order as acknowledgements come in."""
    line = Line()
    line.room = 1
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    for device in ("a", "b", "c"):
        fault(pipeline, device)
    pipeline.commit()
    total = pipeline.database.outbox_pending()
    for turn in range(total + 2):
        announcer.send(float(turn))
        line.confirm_all()
        pipeline.commit()
    assert pipeline.database.outbox_pending() == 0
    assert len(line.alerts()) == total >= 3
    opened = [alert["device"] for alert in line.alerts() if alert["state"] == "opened"]
    assert opened == ["a", "b", "c"]


def test_send_alert_too_large_for_the_broker_does_not_block_the_others(pipeline: Pipeline) -> None:
    """An event that can never be delivered is dropped with a log line, and the queue goes on."""
    line = Line()
    line.largest = 10
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    fault(pipeline)
    pipeline.commit()
    announcer.send(0.0)
    assert pipeline.pending.outbox == 0
    pipeline.commit()
    assert pipeline.database.outbox_pending() == 0


def test_send_states_at_once_on_change_and_seldom_otherwise(pipeline: Pipeline) -> None:
    """A device's retained state is renewed when its phase changes, else only every few seconds."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]

    def states_after(readings: list[object], now: float) -> int:
        before = sum("/state/" in topic for topic, _ in line.sent)
        for event in run(pipeline, readings):
            if isinstance(event, Scored):
                announcer.scored(event)
        announcer.send(now)
        return sum("/state/" in topic for topic, _ in line.sent) - before

    readings = readings_of("a", plant_rows(60))
    assert states_after(readings[:5], 0.0) == 1
    assert states_after(readings[5:20], 1.0) == 0
    assert states_after(readings[20:30], 6.0) == 1
    assert states_after(readings[30:], 7.0) == 1, "learning now"


def test_send_says_who_we_are_once_per_connection(pipeline: Pipeline) -> None:
    """`online` is retained anew on every connection and not in between."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    for turn in range(3):
        announcer.send(float(turn))
    line.cut()
    announcer.send(3.0)
    words = [body for topic, body in line.sent if topic == "gruard/status"]
    assert words == [b"online", b"online"]
    announcer.say_goodbye()
    assert line.sent[-1] == ("gruard/status", b"offline")


def test_send_without_connection_does_nothing(pipeline: Pipeline) -> None:
    """While the broker is away everything waits."""
    line = Line()
    line.connected = False
    fault(pipeline)
    pipeline.commit()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    announcer.send(0.0)
    assert line.sent == []
    assert pipeline.database.outbox_pending() > 0


def test_send_state_that_found_no_room_is_told_later(pipeline: Pipeline) -> None:
    """A retained state that the broker edge did not take stays due; one that is too large stops nothing."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    announcer.send(0.0)
    for event in run(pipeline, readings_of("a", plant_rows(5))):
        if isinstance(event, Scored):
            announcer.scored(event)
    taken, line.publish = line.publish, lambda *_, **__: None  # type: ignore[method-assign, assignment]
    announcer.send(1.0)
    line.publish = taken  # type: ignore[method-assign]
    announcer.send(2.0)
    assert [topic for topic, _ in line.sent if "/state/" in topic] == ["gruard/state/a"]
    line.largest = 10
    announcer.send(100.0)


def test_health_is_told_on_change_and_to_every_new_connection(pipeline: Pipeline) -> None:
    """Why the daemon is not ready stands on a retained topic, and that it is well again."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]

    def told() -> list[list[str]]:
        return [json.loads(body)["reasons"] for topic, body in line.sent if topic == "gruard/health"]

    announcer.send(0.0)
    announcer.health(["disk: no room"])
    announcer.send(1.0)
    announcer.health(["disk: no room"])
    announcer.send(2.0)
    line.cut()
    announcer.send(3.0)
    announcer.health([])
    announcer.send(4.0)
    assert told() == [[], ["disk: no room"], ["disk: no room"], []]


def test_removed_device_takes_its_retained_state_along(pipeline: Pipeline) -> None:
    """An empty retained message deletes what the broker kept of a device that made room for another."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    for event in run(pipeline, readings_of("a", plant_rows(5))):
        if isinstance(event, Scored):
            announcer.scored(event)
    announcer.send(0.0)
    announcer.removed("a")
    announcer.removed("b")
    assert [body for topic, body in line.sent if topic == "gruard/state/a"][1:] == [b""]
    assert not [topic for topic, _ in line.sent if topic == "gruard/state/b"]
