"""What is pending becomes durable together, whichever write fails first."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from support_database import NOW_S, alert, checkpoint
from support_engine import Bench, plant_rows, reading, readings_of

from gruard.daemon.core.events import Removed, Scored
from gruard.daemon.core.flags import flags_of
from gruard.daemon.edges import failpoints
from gruard.daemon.edges.database import Database, open_database
from gruard.daemon.errors import StateError
from gruard.daemon.pending import Pending, Told
from gruard.daemon.records import Delivery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WRITES = (
    "append",
    "put_outbox",
    "save_alert",
    "forget_device",
    "forget_deliveries",
    "note_deliveries",
    "outbox_done",
    "save_checkpoints",
    "commit",
)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(tmp_path, now_s=NOW_S) as opened:
        yield opened


def scored(device: str, count: int) -> list[Scored]:
    events = Bench().feed(readings_of(device, plant_rows(count)))
    return [event for event in events if isinstance(event, Scored)]


def fill(pending: Pending, database: Database, settled: list[str]) -> None:
    """One of everything that can be pending."""
    seq = database.put_outbox("gruard/alerts/old", b"{}", qos=1, retain=False, key="old")
    database.append([])
    database.commit()
    for event in scored("gone", 3):
        pending.add(event)
    pending.add(Removed("gone", "plant", "idle"))
    for event in scored("a", 5):
        pending.add(event)
    pending.add(Told(alert("told"), "gruard/alerts/a"))
    pending.add(Told(alert("untold"), None))
    pending.took(Delivery(9, 1, b"12345678"), [])
    pending.forget_session()
    pending.took(Delivery(7, 2, b"12345678"), [])
    pending.delivered([seq])
    pending.also(
        lambda: database.save_checkpoints([checkpoint("a", 8)], generation=0, lsn=8),
        lambda: settled.append("then"),
    )


def refuse_once(database: Database) -> None:
    """What a write does that the disk refuses."""
    database.rollback()
    raise StateError("no room")


def content(database: Database) -> dict[str, object]:
    return {
        "readings": [(r.lsn, r.device) for r in database.readings_after(0)],
        "outbox": [row.key for row in database.outbox(10)],
        "alerts": sorted(row.id for row in database.alerts(10)),
        "deliveries": [d.packet_id for d in database.deliveries()],
        "checkpoints": [c.device for c in database.checkpoints()],
    }


WHOLE = {
    "readings": [(n, "a") for n in range(4, 9)],
    "outbox": ["told"],
    "alerts": ["told", "untold"],
    "deliveries": [7],
    "checkpoints": ["a"],
}


def test_commit_makes_everything_durable_at_once(tmp_path: Path, database: Database) -> None:
    """Readings, removals, decisions, deliveries and what joined them are there after a restart."""
    pending, settled = Pending(database), []
    fill(pending, database, settled)
    assert not pending.empty
    pending.commit()
    assert pending.empty
    assert settled == ["then"]
    database.close()
    with open_database(tmp_path, now_s=NOW_S) as again:
        assert content(again) == WHOLE


@pytest.mark.parametrize("failing", WRITES)
def test_commit_that_failed_is_whole_the_next_time(
    database: Database, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Whichever write the disk refuses, nothing is half there, and the next commit has all of it, once."""
    pending, settled = Pending(database), []
    fill(pending, database, settled)
    before = content(database)

    def refuse(*_: object, **__: object) -> None:
        refuse_once(database)

    with monkeypatch.context() as patched:
        patched.setattr(database, failing, refuse)
        for _ in range(2):
            with pytest.raises(StateError):
                pending.commit()
            assert content(database) == before
            assert not settled
            assert not pending.empty
            assert not pending.is_written
    pending.commit()
    assert content(database) == WHOLE
    assert settled == ["then"]


def test_commit_after_write_and_a_foreign_rollback_is_whole(database: Database) -> None:
    """Facts that stood in a transaction which another write took back are written again."""
    pending = Pending(database)
    for event in scored("a", 3):
        pending.add(event)
    pending.write()
    assert pending.is_written
    with pytest.raises(StateError), pending.transaction():
        refuse_once(database)
    for event in scored("b", 2):
        pending.add(event)
    pending.commit()
    assert [(r.lsn, r.device) for r in database.readings_after(0)] == [
        *((n, "a") for n in (1, 2, 3)),
        *((n, "b") for n in (4, 5)),
    ]


def test_write_twice_writes_once(database: Database) -> None:
    """What stands in the open transaction is not written again."""
    pending = Pending(database)
    for event in scored("a", 3):
        pending.add(event)
    pending.write()
    pending.write()
    pending.commit()
    assert database.count_readings() == 3


def test_commit_notes_which_readings_of_a_message_wait(database: Database) -> None:
    """A message that is half applied is noted with the rest, and anew once that is done."""
    pending = Pending(database)
    first, second = reading("a", 1.0, {"x": 1.0}), reading("b", 1.0, {"x": 2.0})
    pending.took(Delivery(3, 1, b"12345678"), [first, second])
    pending.took(Delivery(4, 2, b"12345678"), [first])
    pending.commit({id(second)})
    assert {d.packet_id: d.missing for d in database.deliveries()} == {3: (1,), 4: ()}
    assert not pending.empty
    pending.commit()
    assert {d.packet_id: d.missing for d in database.deliveries()} == {3: (), 4: ()}
    assert pending.empty


def test_commit_moved_directory_takes_nothing(tmp_path: Path, database: Database) -> None:
    """A database that is not to be found under its name any more makes nothing durable; put back, it does."""
    pending = Pending(database)
    for event in scored("a", 3):
        pending.add(event)
    away = tmp_path.with_name(tmp_path.name + "-away")
    tmp_path.rename(away)
    with pytest.raises(StateError, match="not where it was"):
        pending.commit()
    tmp_path.mkdir()
    with pytest.raises(StateError, match="not where it was"):
        pending.commit()
    tmp_path.rmdir()
    away.rename(tmp_path)
    pending.commit()
    assert database.count_readings() == 3


def test_commit_moved_away_at_the_last_moment_is_not_called_durable(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look is taken before the writing and again behind the commit: nothing may go on in between."""
    pending = Pending(database)
    pending.add(scored("a", 1)[0])
    pending.commit()
    committed = database.commit

    def commit_and_lose() -> None:
        committed()
        database.path.rename(tmp_path / "elsewhere")

    monkeypatch.setattr(database, "commit", commit_and_lose)
    pending.add(scored("b", 1)[0])
    with pytest.raises(StateError, match="is not where it was"):
        pending.commit()
    pending.add(scored("c", 1)[0])
    with pytest.raises(StateError, match="is not where it was"):
        pending.write()
    assert not pending.is_written


def test_commit_passes_its_failpoints(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit may be killed before and after it is written, and before and after it is durable."""
    pending = Pending(database)
    fill(pending, database, [])
    reached: list[str] = []
    monkeypatch.setattr(failpoints, "reach", reached.append)
    pending.commit()
    assert reached == ["journal.before", "journal.after", "commit.before", "commit.after"]


def test_write_that_is_refused_takes_back_what_stood_in_the_transaction(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left half there: facts written earlier are written again with the later ones."""
    pending = Pending(database)
    (first, second) = scored("a", 2)
    pending.add(first)
    pending.write()
    assert pending.is_written
    pending.add(second)
    with monkeypatch.context() as patched:
        patched.setattr(database, "append", lambda _: refuse_once(database))
        with pytest.raises(StateError):
            pending.write()
    assert not pending.is_written
    pending.commit()
    assert [r.lsn for r in database.readings_after(0)] == [1, 2]


def test_commit_after_commit_has_what_came_between(database: Database) -> None:
    """Each fact becomes durable in the commit that follows it, once, whatever an earlier commit held."""
    pending = Pending(database)
    events = scored("a", 7)
    for upto, event in enumerate(events, 1):
        pending.add(event)
        if upto in {3, 5, 7}:
            pending.commit()
            assert [r.time_s for r in database.readings_after(0)] == [e.reading.time_s for e in events[:upto]]
            assert not pending.is_written


@pytest.mark.parametrize(
    "fill_one",
    [
        lambda pending: pending.add(Told(alert("a"), None)),
        lambda pending: pending.took(Delivery(1, 1, b"12345678"), []),
        lambda pending: pending.delivered([1]),
        lambda pending: pending.forget_session(),
        lambda pending: pending.also(lambda: None, lambda: None),
    ],
    ids=["fact", "message", "delivered", "session", "joined"],
)
def test_anything_is_enough_to_be_committed(database: Database, fill_one: Callable[[Pending], None]) -> None:
    """Nothing that becomes durable is passed over because it stands alone; a commit leaves nothing."""
    pending = Pending(database)
    assert pending.empty
    fill_one(pending)
    assert not pending.empty
    pending.commit()
    assert pending.empty


def test_commit_forgets_the_session_once(database: Database) -> None:
    """What was taken after the session began anew is kept by later commits."""
    pending = Pending(database)
    pending.took(Delivery(1, 1, b"12345678"), [])
    pending.commit()
    pending.forget_session()
    pending.took(Delivery(2, 2, b"12345678"), [])
    pending.commit()
    pending.took(Delivery(3, 3, b"12345678"), [])
    pending.commit()
    assert [d.packet_id for d in database.deliveries()] == [2, 3]


def test_outbox_counts_alerts_that_are_published(database: Database) -> None:
    """Alerts that wait for the broker are counted before they are durable; suppressed ones never wait."""
    pending = Pending(database)
    pending.add(Told(alert("told"), "gruard/alerts/a"))
    pending.add(Told(alert("untold"), None))
    for event in scored("a", 1):
        pending.add(event)
    assert pending.outbox == 1
    pending.add(Told(alert("another"), "gruard/alerts/a"))
    assert pending.outbox == 2
    pending.commit()
    (first, second) = database.outbox(10)
    assert (first.key, first.topic, first.payload) == ("told", "gruard/alerts/a", b"{}")
    assert (first.qos, first.retain, second.key) == (1, False, "another")


@pytest.mark.parametrize(
    ("alarm", "phase", "marked"),
    [(True, "ready", True), (True, "learning", False), (True, "warming", False), (False, "ready", False)],
)
def test_commit_marks_what_a_model_found_abnormal(
    database: Database, phase: str, *, alarm: bool, marked: bool
) -> None:
    """Only readings in alarm under a model must not teach; a backlog and a sequence number are kept too."""
    (event,) = scored("a", 1)
    told = replace(event.reading, replayed=True, sequence=41)
    pending = Pending(database)
    pending.add(replace(event, reading=told, alarm=alarm, phase=phase))
    pending.commit()
    (row,) = database.readings_after(0)
    assert row.flags == flags_of(in_alarm=marked, replayed=True, sequence=41)


def test_delivered_alert_is_not_taken_for_waiting(database: Database) -> None:
    """What the broker has is known as done before the outbox forgets it, and counted once."""
    seq = database.put_outbox("gruard/alerts/a", b"{}", qos=1, retain=False, key="k")
    database.commit()
    pending = Pending(database)
    assert pending.outbox == 1
    pending.delivered([seq])
    pending.delivered([seq])
    assert pending.outbox == 0
    assert pending.is_delivered(seq)
    assert pending.undone == 1
    pending.commit()
    assert not pending.is_delivered(seq)
    assert database.outbox(10) == []
