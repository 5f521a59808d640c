"""The table of deliveries: a redelivery is known by DUP, packet id and content, and nothing else is one."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from gruard.daemon.core.deliveries import MOST_AGE, Deliveries
from gruard.daemon.records import Delivery, Message


def message(packet_id: int, payload: bytes = b"1", topic: str = "plant/a", *, dup: bool = False) -> Message:
    return Message(topic, payload, 0.0, qos=1, duplicate=dup, packet_id=packet_id)


def take(table: Deliveries, *messages: Message) -> list[bool]:
    """Judge and note; whether each was taken before."""
    found = []
    for one in messages:
        delivery, again = table.judge(one)
        found.append(again)
        if not again:
            table.note(delivery)
    return found


def test_judge_redelivery_of_a_taken_message_is_known() -> None:
    """DUP, the same id, topic and payload: taken before."""
    assert take(Deliveries(), message(1), message(1, dup=True)) == [False, True]


def test_judge_first_delivery_flagged_dup_is_new() -> None:
    """What was sent and never taken comes as DUP and is new."""
    assert take(Deliveries(), message(1), message(2, dup=True)) == [False, False]


def test_judge_used_again_id_without_dup_is_new() -> None:
    """A sensor that repeats its value under an id that is free again is counted each time."""
    assert take(Deliveries(), message(1), message(1), message(1)) == [False, False, False]


def test_judge_other_content_under_the_id_is_new() -> None:
    """Another payload or topic is another message, DUP or not."""
    table = Deliveries()
    take(table, message(1))
    assert take(table, message(1, b"2", dup=True)) == [False]
    assert take(table, message(1, b"2", topic="plant/b", dup=True)) == [False]
    assert take(table, message(2, b"bc", topic="a"), message(2, b"c", topic="ab", dup=True)) == [False, False]


def test_judge_entry_of_an_earlier_round_of_ids_counts_for_nothing() -> None:
    """After 65,535 messages the broker is at the same id: an equal message then is a new one."""
    table = Deliveries([Delivery(1, 1, Deliveries().judge(message(1))[0].digest)])
    assert table.judge(message(1, dup=True))[1]
    table.note(Delivery(2, MOST_AGE, b"12345678"))
    assert table.judge(message(1, dup=True))[1]
    table.note(Delivery(3, MOST_AGE + 1, b"12345678"))
    assert not table.judge(message(1, dup=True))[1]


def test_judge_what_was_left_undone_is_told() -> None:
    """Of a message that was committed half applied, the rest is still to be fed; once."""
    table = Deliveries()
    delivery, _ = table.judge(message(7))
    table.note(replace(delivery, missing=(1, 2)))
    found, again = table.judge(message(7, dup=True))
    assert (again, found.missing) == (True, (1, 2))
    table.note(replace(found, missing=()))
    assert table.judge(message(7, dup=True))[0].missing == ()


def test_judge_numbers_messages_from_one_on() -> None:
    """The order in which messages were taken is what ages them; a table that is loaded goes on counting."""
    table = Deliveries()
    assert table.judge(message(1))[0].ordinal == 1
    take(table, message(1), message(2))
    assert table.judge(message(3))[0].ordinal == 3
    assert Deliveries([table.judge(message(9))[0]]).judge(message(3))[0].ordinal == 4


def test_judge_age_leaves_room_for_what_is_in_flight() -> None:
    """An id that is counted through comes again after 65,535 messages; its old entry is void well before."""
    assert MOST_AGE == 60_000


def test_judge_every_packet_id() -> None:
    """The ids of a session are 1 to 65,535."""
    assert take(Deliveries(), message(65_535), message(65_535, dup=True)) == [False, True]


def test_judge_digest_is_stored_in_eight_bytes() -> None:
    """Long enough that no two messages meet, and what the database has room for."""
    assert len(Deliveries().judge(message(1))[0].digest) == 8


def test_forgotten_session_begins_anew() -> None:
    """A broker that has forgotten us gives the ids to other messages."""
    table = Deliveries()
    take(table, message(1))
    assert not table.forgotten(0)
    assert table.forgotten(1)
    assert not table.forgotten(1)
    assert take(table, message(1, dup=True)) == [False]


@given(st.lists(st.tuples(st.integers(1, 8), st.binary(max_size=2)), max_size=60), st.data())
def test_deliveries_stored_and_loaded_judge_alike(sent: list[tuple[int, bytes]], data: st.DataObject) -> None:
    """A table made from what was noted, in any order, answers like the one that noted it."""
    table, stored = Deliveries(), {}
    for packet_id, payload in sent:
        delivery, _ = table.judge(message(packet_id, payload))
        table.note(delivery)
        stored[packet_id] = delivery
    loaded = Deliveries(data.draw(st.permutations(list(stored.values()))))
    for packet_id in range(1, 9):
        for payload in (b"", b"a", *(p for _, p in sent)):
            again = message(packet_id, payload, dup=True)
            assert loaded.judge(again) == table.judge(again)
