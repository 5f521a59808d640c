"""The outbox on its way out: at least once, under one id, never before the commit."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

import pytest
from support_engine import BUDGET, SOURCE, plant_rows, reading, readings_of

from gruard.daemon.announcer import Announcer
from gruard.daemon.core.engine import Engine, EngineOptions
from gruard.daemon.core.events import Event, Scored
from gruard.daemon.core.payloads import ALERT_SCHEMA
from gruard.daemon.edges import failpoints
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
        self.manner: list[tuple[object, ...]] = []  # of each: topic, QoS, retained, content type, schema
        self.asked = 0  # how often something was to be published, taken or not
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

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool,
        content_type: str | None = "application/json",
        schema: str | None = None,
    ) -> int | None:
        self.asked += 1
        if len(payload) > self.largest and not topic.endswith("/status"):
            raise BrokerError("too large")
        if not self.connected or (qos and len(self.open) >= self.room):
            return None
        self.sent.append((topic, payload))
        self.manner.append((topic, qos, retain, content_type, schema))
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

    def on(self, topic: str) -> list[bytes]:
        """What was sent on a topic."""
        return [body for name, body in self.sent if name == topic]

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


def test_send_word_and_info_that_found_no_room_are_told_with_the_next_turn(pipeline: Pipeline) -> None:
    """That we are here is not lost for a connection because the edge could not take it at that moment."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    taken, line.publish = line.publish, lambda *_, **__: None  # type: ignore[method-assign, assignment]
    announcer.send(0.0)
    line.publish = taken  # type: ignore[method-assign]
    for now in (0.1, 0.2):
        announcer.send(now)
    for topic in ("gruard/status", "gruard/info", "gruard/health"):
        assert len(line.on(topic)) == 1


def test_send_without_connection_does_nothing(pipeline: Pipeline) -> None:
    """While the broker is away everything waits, who we are too, and none of it is tried in vain."""
    line = Line()
    line.connected = False
    fault(pipeline)
    pipeline.commit()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    announcer.send(0.0)
    assert line.asked == 0
    waiting = pipeline.database.outbox_pending()
    assert waiting > 0
    line.connected = True
    announcer.send(1.0)
    assert line.on("gruard/status") == [b"online"]
    assert len(line.alerts()) == waiting


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


def scored_by(announcer: Announcer, pipeline: Pipeline, readings: list[object]) -> list[Scored]:
    events = [event for event in run(pipeline, readings) if isinstance(event, Scored)]
    for event in events:
        announcer.scored(event)
    return events


def test_send_each_kind_of_message_in_its_manner(pipeline: Pipeline) -> None:
    """The word on us and alerts are acknowledged; what replaces itself is retained, an alert is not."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    for event in fault(pipeline):
        if isinstance(event, Scored):
            announcer.scored(event)
    pipeline.commit()
    announcer.send(0.0)
    assert set(line.manner) == {
        ("gruard/status", 1, True, "text/plain", None),
        ("gruard/info", 0, True, "application/json", None),
        ("gruard/health", 0, True, "application/json", None),
        ("gruard/alerts/a", 1, False, "application/json", ALERT_SCHEMA),
        ("gruard/state/a", 0, True, "application/json", None),
    }
    assert line.manner[0][0] == "gruard/status"


def test_send_info_once_a_minute_and_on_every_connection(pipeline: Pipeline) -> None:
    """What runs here, and over whom, is renewed each minute, and for a broker that may have forgotten it."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 1.7e9)  # type: ignore[arg-type]
    run(pipeline, readings_of("a", plant_rows(3)))
    pipeline.engine.open_group("plant", ("other",))
    told = []
    for now in (100.0, 159.9, 160.0, 219.9, 220.5):
        announcer.send(now)
        told.append(len(line.on("gruard/info")))
    assert told == [1, 1, 2, 2, 3]
    line.cut()
    for now in (221.0, 280.9, 281.0):
        announcer.send(now)
        told.append(len(line.on("gruard/info")))
    assert told[-3:] == [4, 4, 5]
    facts = json.loads(line.on("gruard/info")[-1])
    assert facts["devices"]["warming"] == 1
    assert [(g["fields"], g["devices"], g["model"]) for g in facts["groups"].values()] == [
        (["f0", "f1", "f2"], 1, "baseline")
    ]
    assert facts["time"].startswith("2023-11-14T")


def test_send_passes_its_failpoints(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Telling an alert may be killed before and after it is handed over, and before it is forgotten."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    fault(pipeline)
    pipeline.commit()
    reached: list[tuple[str, int, int]] = []

    def reach(name: str) -> None:
        reached.append((name, len(line.alerts()), pipeline.pending.undone))

    monkeypatch.setattr(failpoints, "reach", reach)
    announcer.send(0.0)
    count = len(line.alerts())
    expected = [
        passed for n in range(count) for passed in (("publish.before", n, 0), ("publish.after", n + 1, 0))
    ]
    assert reached == expected != []
    line.confirm_all()
    announcer.send(1.0)
    announcer.send(2.0)
    assert reached == [*expected, ("outbox.done", count, 0)]
    assert pipeline.pending.undone == count


def alert_rows(pipeline: Pipeline, count: int) -> list[int]:
    """Entries of the outbox, committed."""
    database = pipeline.database
    made = [
        database.put_outbox("gruard/alerts/a", json.dumps({"n": n}).encode(), 1, retain=False, key=f"k{n}")
        for n in range(count)
    ]
    database.commit()
    pipeline.pending.outbox = database.outbox_pending()
    return made


def test_send_more_alerts_than_are_read_at_a_time(pipeline: Pipeline) -> None:
    """Those that are done with and not gone yet do not hide those behind them."""
    line = Line()
    line.room = 1000
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    alert_rows(pipeline, 100)
    for turn in range(3):
        announcer.send(float(turn))
        line.confirm_all()
    assert [alert["n"] for alert in line.alerts()] == list(range(100))


def test_send_one_alert_that_is_refused_costs_no_other(pipeline: Pipeline) -> None:
    """Behind an alert that the broker can never take, the next one goes out with the same turn."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    alert_rows(pipeline, 3)
    taken = line.publish

    def refuse_first(topic: str, payload: bytes, **more: Any) -> int | None:
        if payload == b'{"n": 0}':
            raise BrokerError("too large")
        return taken(topic, payload, **more)

    line.publish = refuse_first  # type: ignore[method-assign, assignment]
    announcer.send(0.0)
    assert [alert["n"] for alert in line.alerts()] == [1, 2]
    assert pipeline.pending.undone == 1


def test_send_without_room_stops_at_the_first(pipeline: Pipeline) -> None:
    """Alerts of a device keep their order: none overtakes one that found no room."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    alert_rows(pipeline, 3)
    taken = line.publish

    def no_room_once(topic: str, payload: bytes, **more: Any) -> int | None:
        return None if payload == b'{"n": 0}' else taken(topic, payload, **more)

    line.publish = no_room_once  # type: ignore[method-assign, assignment]
    announcer.send(0.0)
    assert line.alerts() == []
    line.publish = taken  # type: ignore[method-assign]
    announcer.send(1.0)
    assert [alert["n"] for alert in line.alerts()] == [0, 1, 2]


def test_send_publish_that_failed_is_repeated_on_the_same_connection(pipeline: Pipeline) -> None:
    """The broker edge gives back what it could not send: that stays in the outbox and goes out again."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    alert_rows(pipeline, 1)
    announcer.send(0.0)
    line.lost += list(line.open)
    line.open.clear()
    announcer.send(1.0)
    assert [alert["n"] for alert in line.alerts()] == [0, 0]
    line.lost.append(10_000)  # of nobody here
    announcer.send(2.0)
    assert len(line.alerts()) == 2


@pytest.mark.parametrize("written", [True, False])
def test_send_outbox_is_read_only_when_something_waits(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, *, written: bool
) -> None:
    """A turn with nothing new to tell costs no look into the database, nor one that could see too much."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    looks: list[int] = []
    read = pipeline.database.outbox

    def look(limit: int) -> object:
        looks.append(limit)
        return read(limit)

    monkeypatch.setattr(pipeline.database, "outbox", look)
    announcer.send(0.0)
    assert looks == []
    alert_rows(pipeline, 1)
    if written:
        run(pipeline, readings_of("a", plant_rows(1)))
        pipeline.pending.write()
    announcer.send(1.0)
    announcer.send(2.0)
    assert looks == ([] if written else [64])


def test_send_state_that_is_not_due_holds_up_no_other_device(pipeline: Pipeline) -> None:
    """Each device's state is renewed by itself, five seconds after the last word on it."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    rows = plant_rows(9)
    scored_by(announcer, pipeline, readings_of("a", rows[:3]))  # type: ignore[arg-type]
    announcer.send(100.0)
    scored_by(announcer, pipeline, readings_of("a", rows[3:6], 1003.0))  # type: ignore[arg-type]
    scored_by(announcer, pipeline, readings_of("b", rows[:3]))  # type: ignore[arg-type]
    told = []
    for now in (104.0, 104.999, 105.0, 111.0):
        announcer.send(now)
        told.append((len(line.on("gruard/state/a")), len(line.on("gruard/state/b"))))
    assert told == [(1, 1), (1, 1), (2, 1), (2, 1)]


def test_send_states_of_many_devices_are_spread(pipeline: Pipeline) -> None:
    """Fifty states a second at most: with three hundred devices, each is renewed every six seconds."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    pipeline.engine.options = dataclasses.replace(pipeline.engine.options, most_devices=300)
    names = [f"d{n}" for n in range(300)]
    for turn in range(2):
        wave = [reading(name, 1000.0 + turn, {"f0": 1.0}) for name in names]
        scored_by(announcer, pipeline, wave)  # type: ignore[arg-type]
        announcer.send(0.0)
    told = []
    for now in (5.9, 6.0):
        announcer.send(now)
        told.append(len(line.on("gruard/state/d7")))
    assert told == [1, 2]


def test_send_state_names_who_judges_and_what_is_open(pipeline: Pipeline) -> None:
    """While a device learns the baseline judges it, whatever model its group has; then the model does."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    newest = [event for event in fault(pipeline) if isinstance(event, Scored)][-1]
    pipeline.engine.groups[newest.group].model = "m-1"
    for now, phase in enumerate(("warming", "learning", "ready", "learning")):
        announcer.scored(dataclasses.replace(newest, phase=phase))
        announcer.send(float(now))
    told = [json.loads(body) for body in line.on("gruard/state/a")]
    assert [(state["state"], state["model"]) for state in told] == [
        ("warming", "baseline"),
        ("learning", "baseline"),
        ("ready", "m-1"),
        ("learning", "baseline"),
    ]
    assert {state["alert"] for state in told} == {pipeline.engine.devices["a"].track.id}


def test_send_state_again_on_a_new_connection(pipeline: Pipeline) -> None:
    """A broker that lost what it retained is told every device anew, however recent the last word."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    line.generation = 5
    events = scored_by(announcer, pipeline, readings_of("a", plant_rows(2)))  # type: ignore[arg-type]
    announcer.send(0.0)
    for generation in (6, 2):  # another process may count from the beginning
        line.generation = generation
        announcer.scored(events[-1])
        announcer.send(1.0)
    assert len(line.on("gruard/state/a")) == len(line.on("gruard/status")) == 3


def test_removed_device_that_changed_is_not_told(pipeline: Pipeline) -> None:
    """A device that made room before its state was told leaves nothing to tell, and stops nothing."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    scored_by(announcer, pipeline, readings_of("a", plant_rows(3)))  # type: ignore[arg-type]
    pipeline.engine.remove("a", "idle", 2000.0)
    announcer.removed("a")
    announcer.send(0.0)
    assert line.on("gruard/state/a") == []


def test_send_first_state_of_a_device_is_told_whatever_it_says(pipeline: Pipeline) -> None:
    """The first word on a device needs neither a change nor a wait, even where it says next to nothing."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    newest = [event for event in fault(pipeline) if isinstance(event, Scored)][-1]
    announcer.scored(dataclasses.replace(newest, phase=""))
    pipeline.engine.devices["a"].track.id = ""
    announcer.send(1.0)
    assert len(line.on("gruard/state/a")) == 1


def test_health_says_whether_we_are_ready(pipeline: Pipeline) -> None:
    """The retained word says yes or no, why, and who says it."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 1.7e9)  # type: ignore[arg-type]
    announcer.send(0.0)
    announcer.health(["disk: no room"])
    announcer.send(1.0)
    told = [json.loads(body) for body in line.on("gruard/health")]
    assert [(one["ready"], one["reasons"]) for one in told] == [(True, []), (False, ["disk: no room"])]
    assert {(one["schema"], one["instance"]) for one in told} == {("gruard.health/1", "gruard")}


def test_health_that_found_no_room_is_told_later_and_a_refused_one_is_not(pipeline: Pipeline) -> None:
    """What was not taken is tried with the next turn; what can never be is not tried again and again."""
    line = Line()
    announcer = Announcer(line, pipeline, "gruard", lambda: 0.0)  # type: ignore[arg-type]
    taken, tries = line.publish, 0

    def answer(topic: str, payload: bytes, **more: Any) -> int | None:
        nonlocal tries
        if topic == "gruard/health":
            tries += 1
            if tries == 1:
                return None
            raise BrokerError("too large")
        return taken(topic, payload, **more)

    line.publish = answer  # type: ignore[method-assign, assignment]
    for now in range(4):
        announcer.send(float(now))
    assert tries == 2
