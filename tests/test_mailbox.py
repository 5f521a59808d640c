"""What the network thread and the worker thread hand each other."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from gruard.daemon.edges import mailbox as mailbox_module
from gruard.daemon.edges.mailbox import MAX_IN_FLIGHT, MAX_WAITING, Mailbox, Outgoing
from gruard.daemon.records import Message


class _Rings:
    """Counts how often the network thread was woken."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def rings() -> _Rings:
    return _Rings()


def _message(number: int, qos: int) -> Message:
    return Message(topic="t", payload=b"%d" % number, received_s=0.0, qos=qos, packet_id=number)


def _offer(mailbox: Mailbox, qos: int) -> int | None:
    return mailbox.offer("t", b"", qos, retain=False, content_type=None, schema=None)


def test_qos_0_is_shed_at_the_capacity_and_qos_1_is_not(rings: _Rings) -> None:
    """A full inbox costs QoS 0 messages, newest first and counted, and never one of QoS 1."""
    mailbox = Mailbox(2, rings)
    mailbox.deliver([_message(number, qos=0) for number in (1, 2, 3)])
    mailbox.deliver([_message(4, qos=1)])
    assert [message.packet_id for message in mailbox.take(10, 0.0)] == [1, 2, 4]
    assert mailbox.shed == 1


def test_reading_pauses_at_twice_the_capacity_and_resumes_by_a_ring(rings: _Rings) -> None:
    """The network thread stops reading at the bound and is woken by the take that makes room."""
    mailbox = Mailbox(2, rings)
    mailbox.deliver([_message(number, qos=1) for number in (1, 2, 3)])
    assert not mailbox.paused
    mailbox.deliver([_message(4, qos=1)])
    assert mailbox.paused
    mailbox.take(1, 0.0)
    assert not mailbox.paused
    assert rings.count == 1


def test_inbox_is_bounded_in_bytes_too(rings: _Rings, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few large messages fill it like many small ones, and each that is taken makes room."""
    monkeypatch.setattr(mailbox_module, "CAPACITY_BYTES", 100)
    mailbox = Mailbox(1000, rings)
    large = [replace(_message(number, qos=1), payload=bytes(60)) for number in range(4)]
    mailbox.deliver(large[:2])
    mailbox.deliver([_message(7, qos=0)])
    assert (mailbox.shed, mailbox.paused, len(mailbox)) == (1, False, 2)
    mailbox.deliver(large[2:])
    assert mailbox.paused
    assert mailbox.take(1, 0.0) == large[:1]
    assert (mailbox.paused, rings.count) == (False, 1)
    mailbox.take(2, 0.0)
    mailbox.deliver([_message(8, qos=0)])
    assert (mailbox.shed, len(mailbox)) == (1, 2)


def test_take_wakes_for_the_first_message(rings: _Rings) -> None:
    """An empty inbox is waited on, and the wait ends with the message rather than with the timeout."""
    mailbox = Mailbox(2, rings)
    taken: list[Message] = []
    worker = threading.Thread(target=lambda: taken.extend(mailbox.take(10, 60.0)))
    worker.start()
    mailbox.deliver([_message(1, qos=1)])
    worker.join(10)
    assert [message.packet_id for message in taken] == [1]


def test_take_of_an_empty_inbox_ends_with_the_timeout(rings: _Rings) -> None:
    """Nothing arrived is an empty list."""
    assert Mailbox(2, rings).take(10, 0.01) == []


def test_publish_is_refused_while_not_connected(rings: _Rings) -> None:
    """Nothing queues up for a broker that is away: that queue is on disk."""
    mailbox = Mailbox(2, rings)
    assert _offer(mailbox, 0) is None
    assert _offer(mailbox, 1) is None
    mailbox.open(MAX_IN_FLIGHT)
    mailbox.close()
    assert _offer(mailbox, 1) is None


def test_qos_1_publishes_stop_at_the_limit_until_one_is_settled(rings: _Rings) -> None:
    """Twenty are open at most, however many the broker would take, and each answer makes room for one."""
    mailbox = Mailbox(2, rings)
    mailbox.open(60_000)
    tokens = [_offer(mailbox, 1) for _ in range(MAX_IN_FLIGHT)]
    assert None not in tokens
    assert len(set(tokens)) == MAX_IN_FLIGHT
    assert _offer(mailbox, 1) is None
    assert _offer(mailbox, 0) is not None
    assert tokens[0] is not None
    mailbox.settle(tokens[0], accepted=True)
    assert mailbox.confirmed() == [tokens[0]]
    assert mailbox.confirmed() == []
    assert _offer(mailbox, 1) is not None


def test_open_publishes_fail_with_the_connection_and_are_not_sent_on_the_next(rings: _Rings) -> None:
    """The end of a connection hands every unanswered token back once, and clears what had not gone out."""
    mailbox = Mailbox(2, rings)
    mailbox.open(20)
    tokens = [_offer(mailbox, 1) for _ in range(3)]
    acknowledged = [_message(1, qos=1)]
    mailbox.acknowledge(acknowledged)
    mailbox.close()
    assert mailbox.failed() == tokens
    assert mailbox.failed() == []
    mailbox.open(20)
    assert mailbox.next_outgoing() == tuple(acknowledged)  # kept: the connection counts it as out of date
    assert mailbox.next_outgoing() is None


def test_refused_publish_comes_back_as_failed(rings: _Rings) -> None:
    """A broker's no is told apart from its yes."""
    mailbox = Mailbox(2, rings)
    mailbox.open(20)
    token = _offer(mailbox, 1)
    assert token is not None
    mailbox.settle(token, accepted=False)
    assert (mailbox.confirmed(), mailbox.failed()) == ([], [token])


def test_waiting_publishes_are_bounded(rings: _Rings) -> None:
    """A connected broker that reads nothing costs QoS 0 publishes, not memory."""
    mailbox = Mailbox(2, rings)
    mailbox.open(20)
    assert all(_offer(mailbox, 0) is not None for _ in range(MAX_WAITING))
    assert _offer(mailbox, 0) is None
    assert isinstance(mailbox.next_outgoing(), Outgoing)
    assert _offer(mailbox, 0) is not None


def test_inbox_holds_64_mib_and_reads_on_up_to_twice_as_much(rings: _Rings) -> None:
    """From the bound on QoS 0 is shed, from twice the bound on nothing more is read."""
    mailbox = Mailbox(1000, rings)
    quarter = bytes(16 * 2**20)
    large = [replace(_message(number, qos=1), payload=quarter) for number in range(8)]
    mailbox.deliver(large[:3])
    mailbox.deliver([replace(_message(10, qos=0), payload=bytes(2**24 - 1))])
    mailbox.deliver([replace(_message(11, qos=0), payload=b"1")])
    assert mailbox.shed == 0, "one byte is free until now"
    mailbox.deliver([_message(12, qos=0)])
    assert mailbox.shed == 1
    mailbox.deliver(large[3:6])
    mailbox.deliver([replace(_message(13, qos=1), payload=bytes(2**24 - 1))])
    assert not mailbox.paused
    mailbox.deliver([replace(_message(14, qos=1), payload=b"1")])
    assert mailbox.paused


def test_reading_pauses_beyond_the_bound_too_and_while_nothing_more_is_wanted(rings: _Rings) -> None:
    """More than twice the capacity may have come with one read; at rest nothing is read at all."""
    mailbox = Mailbox(2, rings)
    mailbox.deliver([_message(number, qos=1) for number in range(7)])
    assert mailbox.paused
    mailbox.deliver([_message(8, qos=0)])
    assert mailbox.shed == 1
    mailbox.take(7, 0.0)
    assert not mailbox.paused
    mailbox.resting = True
    assert mailbox.paused


def test_network_thread_is_woken_only_for_a_reason(rings: _Rings) -> None:
    """Acknowledgements and publishes wake it, and a take only where it had stopped reading."""
    mailbox = Mailbox(2, rings)
    mailbox.deliver([_message(1, qos=1)])
    taken = mailbox.take(1, 0.0)
    mailbox.acknowledge([])
    assert rings.count == 0
    mailbox.acknowledge(taken)
    assert rings.count == 1
    mailbox.open(20)
    _offer(mailbox, 0)
    assert rings.count == 2
    mailbox.deliver([_message(number, qos=1) for number in range(9)])
    mailbox.take(3, 0.0)
    assert mailbox.paused
    assert rings.count == 2, "still too much"


def test_end_of_a_connection_is_told_once(rings: _Rings) -> None:
    """What failed with one connection is neither open nor failing again with the next."""
    mailbox = Mailbox(2, rings)
    mailbox.open(3)
    tokens = [_offer(mailbox, 1) for _ in range(3)]
    assert tokens == sorted({token for token in tokens if token is not None})
    mailbox.close()
    assert (mailbox.in_flight, mailbox.failed()) == (0, tokens)
    mailbox.open(3)
    assert _offer(mailbox, 1) not in tokens
    mailbox.close()
    assert len(mailbox.failed()) == 1


@pytest.mark.parametrize(("wanted", "open_at_most"), [(0, 0), (3, 3), (20, 20), (60_000, 20)])
def test_publishes_open_at_a_time_are_what_both_sides_allow(
    rings: _Rings, wanted: int, open_at_most: int
) -> None:
    """A broker may take fewer than twenty, and even none."""
    mailbox = Mailbox(2, rings)
    mailbox.open(wanted)
    assert sum(_offer(mailbox, 1) is not None for _ in range(30)) == open_at_most
    assert mailbox.in_flight == open_at_most


def test_acknowledgements_are_never_refused_and_count_as_waiting(rings: _Rings) -> None:
    """A thousand groups of acknowledgements that wait leave no room for a publish, but for more of them."""
    mailbox = Mailbox(2, rings)
    mailbox.open(20)
    for number in range(1002):
        mailbox.acknowledge([_message(number, qos=1)])
    assert _offer(mailbox, 1) is None
    for _ in range(2):
        mailbox.next_outgoing()
    assert _offer(mailbox, 1) is None
    mailbox.next_outgoing()
    assert _offer(mailbox, 1) is not None


def test_offer_after_the_connection_ended_is_refused_whatever_its_qos(rings: _Rings) -> None:
    """Until the next connection nothing is accepted, waits or wakes anyone: not a QoS 0 publish either."""
    mailbox = Mailbox(2, rings)
    mailbox.open(20)
    mailbox.close()
    assert [_offer(mailbox, qos) for qos in (0, 1)] == [None, None]
    assert (mailbox.next_outgoing(), mailbox.in_flight, rings.count) == (None, 0, 0)
    mailbox.open(20)
    assert None not in [_offer(mailbox, qos) for qos in (0, 1)]
