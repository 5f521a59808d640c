"""Enrolment: each device is fitted on its own recent readings, and taken off the list once that is done."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from support_database import NOW_S, reading

from gruard.daemon.core.events import EnrolDue
from gruard.daemon.core.flags import IN_ALARM, REPLAYED
from gruard.daemon.edges.database import Database, open_database
from gruard.daemon.enrolment import at_a_time, chunks, enrol, history_of
from gruard.daemon.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from gruard.models.history import History

FIELDS = ("temp", "load")
ENROL_CHUNK = at_a_time(len(FIELDS))


class Fitting:
    """Stands where the engine does and keeps what it was given."""

    def __init__(self, *devices: str) -> None:
        self.devices = dict.fromkeys(devices)
        self.given: list[dict[str, History]] = []

    def enrol(self, histories: Mapping[str, History]) -> None:
        self.given.append(dict(histories))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(tmp_path, now_s=NOW_S) as opened:
        yield opened


def due(device: str, fields: tuple[str, ...] = FIELDS, limit: int = 10) -> EnrolDue:
    return EnrolDue(device, "plant", fields, limit)


def enrolled(database: Database, asked: list[EnrolDue], engine: Fitting, **more: Any) -> int:
    """Enrol; the heartbeats that this took."""
    beats: list[None] = []
    enrol(engine, database, asked, lambda: beats.append(None), **more)  # type: ignore[arg-type]
    return len(beats)


def test_enrol_gives_each_device_its_newest_readings_before_the_lsn(database: Database) -> None:
    """At most as many as were asked for, in the order asked for, none from the LSN on."""
    database.append([reading(lsn, "ab"[lsn % 2]) for lsn in range(1, 13)])
    asked, engine = [due("a", limit=2), due("b", ("load",), limit=3)], Fitting("a", "b")
    assert enrolled(database, asked, engine, before_lsn=10) == 2
    assert asked == []
    a, b = engine.given
    assert (list(a), list(b)) == (["a"], ["b"])
    assert a["a"].time_s.tolist() == [NOW_S + 6, NOW_S + 8]
    assert a["a"].values.tolist() == [[6.0, 6.5], [8.0, 8.5]]
    assert b["b"].values.tolist() == [[5.5], [7.5], [9.5]]


def test_enrol_without_an_lsn_takes_all_readings(database: Database) -> None:
    """The newest one included, also while it stands in the open group."""
    database.append([reading(1), reading(2)])
    engine = Fitting("pump-1")
    enrolled(database, [due("pump-1")], engine)
    assert engine.given[0]["pump-1"].time_s.tolist() == [NOW_S + 1, NOW_S + 2]


def test_enrol_leaves_out_a_device_that_was_removed_meanwhile(database: Database) -> None:
    """It is on the list no longer, and the others of its turn are enrolled."""
    database.append([reading(1, "a"), reading(2, "gone")])
    asked, engine = [due("gone"), due("a")], Fitting("a")
    enrolled(database, asked, engine)
    assert [list(given) for given in engine.given] == [["a"]]
    assert asked == []


def test_enrol_that_fails_keeps_who_is_still_due(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices already enrolled are not enrolled again, and nobody is forgotten."""
    asked = [due(f"d{n}") for n in range(ENROL_CHUNK + 3)]
    engine, read = Fitting(*(event.device for event in asked)), database.history

    def fail_late(device: str, *rest: Any) -> Any:
        if device == f"d{ENROL_CHUNK + 1}":
            raise StateError("unreadable")
        return read(device, *rest)

    monkeypatch.setattr(database, "history", fail_late)
    left = asked[ENROL_CHUNK:]
    with pytest.raises(StateError):
        enrolled(database, asked, engine)
    assert asked == left
    monkeypatch.undo()
    enrolled(database, asked, engine)
    assert [len(given) for given in engine.given] == [ENROL_CHUNK, 3]


def test_enrol_works_in_turns_that_are_heard(database: Database) -> None:
    """A change of weights for a great many devices takes bounded memory, and the watchdog hears of it."""
    asked = [due(f"d{n}") for n in range(2 * ENROL_CHUNK + 8)]
    engine = Fitting(*(event.device for event in asked))
    assert enrolled(database, asked, engine) == 3
    assert [len(given) for given in engine.given] == [ENROL_CHUNK, ENROL_CHUNK, 8]


def test_devices_of_many_fields_are_enrolled_fewer_at_a_time() -> None:
    """The memory of a step is bounded by devices and fields together."""
    assert [at_a_time(fields) for fields in (0, 1, 16, 32, 64, 1000)] == [64, 64, 64, 32, 16, 16]


def test_history_of_leaves_readings_in_alarm_out_of_teaching(database: Database) -> None:
    """What a model found abnormal must not become normal; what came late may teach."""
    marks = (0, IN_ALARM, REPLAYED, IN_ALARM | REPLAYED | 5 << 8)
    database.append([replace(reading(n), flags=flags) for n, flags in enumerate(marks, 1)])
    history = history_of(database.history("pump-1", FIELDS, 10))
    assert history.normal.tolist() == [True, False, True, False]
    assert history.time_s.tolist() == [NOW_S + n for n in (1, 2, 3, 4)]
    assert history.values.shape == (4, 2)


def test_chunks_hold_everything_once() -> None:
    """In order, full but for the last; of nothing there are none."""
    assert list(chunks(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(chunks([], 2)) == []
