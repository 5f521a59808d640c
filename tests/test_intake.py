"""From messages to what is fed: each reading is counted once, whatever comes twice."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from support_database import NOW_S
from support_engine import BUDGET

from gruard.daemon.commands import Commands
from gruard.daemon.core.deliveries import Deliveries
from gruard.daemon.core.engine import Engine, EngineOptions
from gruard.daemon.core.events import Scored
from gruard.daemon.core.sources import Sources
from gruard.daemon.edges.database import open_database
from gruard.daemon.edges.metrics import Metrics
from gruard.daemon.intake import Intake
from gruard.daemon.pipeline import Pipeline, TrainingSettings
from gruard.daemon.records import Message, SourceOptions

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gruard.daemon.core.events import Event
    from gruard.daemon.edges.database import Database

TIMED = SourceOptions("timed", "timed/{device}", time="ts")
DUMB = SourceOptions("dumb", "dumb/{device}")


class Inlet:
    """An intake over a state directory, as one start of the daemon has it."""

    def __init__(
        self, database: Database, folder: Path, most_devices: int = 100, dumb: SourceOptions = DUMB
    ) -> None:
        self.metrics = Metrics(version="test")
        options = EngineOptions((TIMED, dumb), BUDGET, most_devices=most_devices)
        self.pipeline = Pipeline(
            Engine(options),
            database,
            folder,
            TrainingSettings(every_s=None),
            base="gruard",
            wall=time.time,
            monotonic=time.monotonic,
        )
        self.pipeline.recover()
        deliveries = Deliveries(database.deliveries())
        self.commands = Commands(self.pipeline, folder, "gruard", self.metrics)
        sources = Sources(options.sources, (self.commands.filter,))
        self.intake = Intake(sources, deliveries, self.pipeline, self.metrics, self.commands)

    def take(self, *messages: Message, crowded: bool = False, waves: int | None = None) -> list[Event]:
        self.intake.take(deque(messages), crowded=crowded)
        events: list[Event] = []
        while self.pipeline.backlog and waves != 0:
            events += self.pipeline.advance()
            waves = None if waves is None else waves - 1
        return events

    def counts(self) -> dict[str, float]:
        names = ("duplicate", "rejected", "shed")
        page = self.metrics.render().decode().splitlines()
        found = {
            name: float(line.rsplit(" ", 1)[1])
            for name in names
            for line in page
            if line.startswith(f'gruard_readings_total{{result="{name}"}}')
        }
        received = next(line for line in page if line.startswith("gruard_readings_received_total "))
        return {name: n for name, n in found.items() if n} | {"received": float(received.rsplit(" ", 1)[1])}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(tmp_path, now_s=NOW_S) as opened:
        yield opened


def message(packet_id: int, payload: bytes = b'{"x": 1}', topic: str = "dumb/a", **more: object) -> Message:
    return Message(topic, payload, NOW_S, qos=1, packet_id=packet_id, **more)  # type: ignore[arg-type]


def test_take_redelivery_after_a_restart_is_a_duplicate(tmp_path: Path, database: Database) -> None:
    """What was committed and not acknowledged comes again, and changes nothing."""
    before = Inlet(database, tmp_path)
    before.take(message(1), message(2))
    before.pipeline.commit()
    after = Inlet(database, tmp_path)
    after.take(message(1, duplicate=True), message(2, duplicate=True), message(3, duplicate=True))
    assert after.pipeline.engine.devices["a"].count == 3
    assert after.counts() == {"duplicate": 2, "received": 3}


def test_take_uncommitted_message_is_counted_when_it_comes_again(tmp_path: Path, database: Database) -> None:
    """What was scored and not committed when the process died is new at the next start."""
    Inlet(database, tmp_path).take(message(1))
    database.rollback()
    after = Inlet(database, tmp_path)
    after.take(message(1, duplicate=True))
    assert after.pipeline.engine.devices["a"].count == 1
    assert after.counts() == {"received": 1}


def test_take_message_committed_half_is_completed(tmp_path: Path, database: Database) -> None:
    """Two readings of one device in one message, a commit between them and a crash: each counts once."""
    payload = b'[{"x": 1}, {"x": 2}]'
    before = Inlet(database, tmp_path)
    before.take(message(1, payload), waves=1)
    before.pipeline.commit()
    assert database.count_readings() == 1
    after = Inlet(database, tmp_path)
    after.take(message(1, payload, duplicate=True))
    after.pipeline.commit()
    assert after.pipeline.engine.devices["a"].count == 2
    assert after.counts() == {"duplicate": 1, "received": 2}
    assert [r.values.tolist() for r in database.readings_after(0)] == [[1.0], [2.0]]
    third = Inlet(database, tmp_path)
    third.take(message(1, payload, duplicate=True))
    assert third.counts() == {"duplicate": 2, "received": 2}


def test_take_redelivery_while_the_first_waits_is_a_duplicate(tmp_path: Path, database: Database) -> None:
    """The connection broke while the first copy was still to be scored: it is scored, the second is not."""
    inlet = Inlet(database, tmp_path)
    inlet.intake.take(deque([message(1)]), crowded=False)
    inlet.take(message(1, duplicate=True, generation=2))
    assert inlet.pipeline.engine.devices["a"].count == 1
    assert inlet.counts() == {"duplicate": 1, "received": 2}


def test_take_refused_message_again_is_a_duplicate(tmp_path: Path, database: Database) -> None:
    """Refused once, counted once: its redelivery is a duplicate."""
    inlet = Inlet(database, tmp_path)
    inlet.take(message(1, b"nonsense"), message(1, b"nonsense", duplicate=True))
    assert inlet.counts() == {"rejected": 1, "duplicate": 1, "received": 2}


def test_take_new_session_forgets_packet_ids(tmp_path: Path, database: Database) -> None:
    """Once the broker has forgotten us, the same id and content is another message; also after a restart."""
    before = Inlet(database, tmp_path)
    before.take(message(1))
    before.pipeline.commit()
    after = Inlet(database, tmp_path)
    after.take(message(1, duplicate=True, session=1))
    after.pipeline.commit()
    assert after.pipeline.engine.devices["a"].count == 2
    assert [d.packet_id for d in database.deliveries()] == [1]


def test_take_qos_0_is_never_a_duplicate(tmp_path: Path, database: Database) -> None:
    """Without a packet id there is nothing to know a repetition by."""
    inlet = Inlet(database, tmp_path)
    fleeting = Message("dumb/a", b'{"x": 1}', NOW_S)
    inlet.take(fleeting, fleeting)
    assert inlet.pipeline.engine.devices["a"].count == 2
    assert inlet.pipeline.pending.empty is False
    inlet.pipeline.commit()
    assert list(database.deliveries()) == []


@pytest.mark.parametrize(
    ("topic", "payload", "replayed"),
    [
        ("dumb/a", b'{"x": 1}', True),
        ("timed/a", b'{"x": 1, "ts": %d}' % (NOW_S - 3600), True),
        ("timed/a", b'{"x": 1, "ts": %d}' % (NOW_S - 10), False),
    ],
)
def test_take_backlog_is_told_from_what_is_live(
    tmp_path: Path, database: Database, topic: str, payload: bytes, *, replayed: bool
) -> None:
    """What waited at the broker is a backlog, unless its own time says that it did not wait for long."""
    inlet = Inlet(database, tmp_path)
    inlet.take(message(1, payload, topic, backlog=True), message(2, payload, topic.replace("/a", "/b")))
    inlet.pipeline.commit()
    stored = {row.device: row.flags for row in database.readings_after(0)}
    assert bool(stored["a"]) is replayed
    assert not stored["b"]


def test_take_crowded_sheds_unknown_devices_once_room_is_short(tmp_path: Path, database: Database) -> None:
    """While many messages wait and half of the room for devices is taken, only known devices are scored."""
    inlet = Inlet(database, tmp_path, most_devices=4)
    inlet.take(*(message(n, topic=f"dumb/{n}") for n in (1, 2)), crowded=True)
    assert inlet.counts() == {"received": 2}, "half of the room is free"
    inlet.take(message(3, topic="dumb/3"), crowded=True)
    inlet.take(message(4, topic="dumb/4"), message(5, topic="dumb/1"), crowded=True)
    assert inlet.counts() == {"shed": 1, "received": 5}
    inlet.take(message(6, topic="dumb/4"), crowded=False)
    assert set(inlet.pipeline.engine.devices) == {"1", "2", "3", "4"}


def test_take_feeds_a_bounded_number_of_readings_at_a_time(tmp_path: Path, database: Database) -> None:
    """Messages with a thousand readings each are taken off a few at a time: memory stays bounded."""
    inlet = Inlet(database, tmp_path)
    payload = b"[" + b",".join(b'{"x": %d}' % n for n in range(1000)) + b"]"
    waiting = deque(message(n, payload, f"dumb/{n}") for n in range(1, 9))
    taken = inlet.intake.take(waiting, crowded=False)
    assert [m.packet_id for m in taken] == [1, 2, 3]
    assert [m.packet_id for m in waiting] == [4, 5, 6, 7, 8]
    assert inlet.pipeline.backlog == 3000


def test_take_stops_at_the_bound_itself(tmp_path: Path, database: Database) -> None:
    """With 2,048 readings fed nothing more is taken off, with one less another message is."""

    def several(packet_id: int, count: int) -> Message:
        return message(packet_id, b"[" + b",".join([b'{"x": 1}'] * count) + b"]", f"dumb/{packet_id}")

    for last, expected in ((48, [1, 2, 3]), (47, [1, 2, 3, 4])):
        sizes = enumerate((1000, 1000, last, 1, 1), 1)
        waiting = deque(several(packet_id, count) for packet_id, count in sizes)
        taken = Inlet(database, tmp_path).intake.take(waiting, crowded=False)
        assert [m.packet_id for m in taken] == expected


def shown(inlet: Inlet, series: str) -> float:
    page = inlet.metrics.render().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in page if line.startswith(f"{series} "))


def test_take_shows_what_came_and_when(tmp_path: Path, database: Database) -> None:
    """Messages, refusals by reason, what was shed and the newest arrival are metrics of their own."""
    inlet = Inlet(database, tmp_path, most_devices=2)
    inlet.take(message(1), message(2, topic="dumb/b"))
    later = replace(message(4, b"nonsense"), received_s=NOW_S + 5.0)
    pair = b'[{"x": 1}, {"x": 2}]'
    inlet.take(message(3, pair, "dumb/stranger"), later, crowded=True)
    assert shown(inlet, "gruard_messages_received_total") == 4
    assert shown(inlet, "gruard_last_reading_timestamp_seconds") == NOW_S + 5.0
    assert shown(inlet, 'gruard_shed_total{reason="unknown_device"}') == 2
    assert shown(inlet, 'gruard_decode_errors_total{reason="not_json"}') == 1


@pytest.mark.parametrize(
    ("ts", "replayed"),
    [(NOW_S - 60.0, False), (NOW_S - 60.5, True), (NOW_S + 1.0, False), (NOW_S - 59.5, False)],
)
def test_take_backlog_within_a_minute_is_live(
    tmp_path: Path, database: Database, ts: float, *, replayed: bool
) -> None:
    """Up to a minute between event and arrival is a short interruption, and still pages."""
    inlet = Inlet(database, tmp_path)
    events = inlet.take(message(1, b'{"x": 1, "ts": %.1f}' % ts, "timed/a", backlog=True))
    assert [event.reading.replayed for event in events if isinstance(event, Scored)] == [replayed]


def test_take_redelivery_of_a_backlog_is_one_too(tmp_path: Path, database: Database) -> None:
    """What was left undone of a message is replayed as what it is: late with a backlog, live without."""
    payload = b'[{"x": 1}, {"x": 2}]'
    for packet_id, backlog in ((1, True), (2, False)):
        inlet = Inlet(database, tmp_path)
        inlet.take(message(packet_id, payload, f"dumb/{packet_id}"), waves=1)
        inlet.pipeline.commit()
        again = Inlet(database, tmp_path)
        events = again.take(message(packet_id, payload, f"dumb/{packet_id}", duplicate=True, backlog=backlog))
        (event,) = (event for event in events if isinstance(event, Scored))
        assert (event.reading.values, event.reading.replayed) == ({"x": 2.0}, backlog)
        again.pipeline.commit()


def test_take_new_session_is_forgotten_with_its_next_commit(tmp_path: Path, database: Database) -> None:
    """Messages that were taken under an old session are gone from the disk, too."""
    before = Inlet(database, tmp_path)
    before.take(message(1), message(2))
    before.pipeline.commit()
    before.take(message(3, session=1))
    before.pipeline.commit()
    assert [d.packet_id for d in database.deliveries()] == [3]


def test_take_redelivery_that_is_refused_by_now_feeds_nothing(tmp_path: Path, database: Database) -> None:
    """A message whose readings were undone, and which a new configuration refuses, holds nobody up."""
    payload = b'[{"x": 1}, {"x": 2}]'
    before = Inlet(database, tmp_path)
    before.take(message(1, payload), waves=0)
    before.pipeline.commit()
    assert [d.missing for d in database.deliveries()] == [(0, 1)]
    after = Inlet(database, tmp_path, dumb=replace(DUMB, max_payload_bytes=len(payload) - 1))
    after.take(message(1, payload, duplicate=True), message(2, topic="dumb/b"))
    assert {name: device.count for name, device in after.pipeline.engine.devices.items()} == {"b": 1}
