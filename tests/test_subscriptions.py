"""What is asked to be sent, and what the broker answers."""

from __future__ import annotations

import pytest

from gruard.daemon.edges.subscriptions import ASK_AGAIN_S, Subscriptions
from gruard.daemon.errors import BrokerError


class Asked:
    """Keeps each SUBSCRIBE, numbered from 1; None as its packet id while `gone`."""

    def __init__(self) -> None:
        self.sent: list[list[tuple[str, int]]] = []
        self.gone = False

    def __call__(self, wanted: list[tuple[str, int]]) -> int | None:
        self.sent.append(wanted)
        return None if self.gone else len(self.sent)


@pytest.fixture
def asked() -> Asked:
    return Asked()


def test_all_is_asked_for_in_one_packet_at_qos_1_at_most(asked: Asked) -> None:
    """QoS 2 becomes QoS 1, the others stay."""
    Subscriptions([("a", 0), ("b", 1), ("c", 2)], asked).ask_for_all(0.0)
    assert asked.sent == [[("a", 0), ("b", 1), ("c", 1)]]


def test_nothing_wanted_asks_for_nothing(asked: Asked) -> None:
    """A SUBSCRIBE without filters would be a breach of the protocol."""
    subscriptions = Subscriptions([], asked)
    subscriptions.ask_for_all(0.0)
    subscriptions.ask_again(1e9)
    assert asked.sent == []
    assert not subscriptions.unanswered_since(1e9)


def test_refused_filters_alone_are_asked_for_again_later(asked: Asked) -> None:
    """What was refused is named, asked for every half minute, and forgotten once granted."""
    subscriptions = Subscriptions([("a", 1), ("b", 1), ("c", 1)], asked)
    subscriptions.ask_for_all(0.0)
    subscriptions.answer(1, [None, "Not authorized", "Quota exceeded"], 1.0)
    assert subscriptions.answered
    assert subscriptions.trouble == (
        "The broker refused the subscription to b (Not authorized), c (Quota exceeded)."
    )
    subscriptions.ask_again(ASK_AGAIN_S)
    assert len(asked.sent) == 1
    subscriptions.ask_again(1.0 + ASK_AGAIN_S)
    subscriptions.ask_again(2.0 + ASK_AGAIN_S)  # the question is still open
    assert asked.sent[1:] == [[("b", 1), ("c", 1)]]
    subscriptions.answer(2, [None, "Not authorized"], 50.0)
    assert list(subscriptions.refused) == ["c"]
    subscriptions.ask_again(50.0 + ASK_AGAIN_S)
    subscriptions.answer(3, [None], 90.0)
    assert (subscriptions.refused, subscriptions.trouble) == ({}, None)


def test_answer_that_nobody_waits_for_changes_nothing(asked: Asked) -> None:
    """A stray SUBACK is no answer to our question."""
    subscriptions = Subscriptions([("a", 1)], asked)
    subscriptions.ask_for_all(5.0)
    subscriptions.answer(7, ["Not authorized"], 6.0)
    assert not subscriptions.answered
    assert subscriptions.refused == {}
    assert subscriptions.unanswered_since(5.1)
    assert not subscriptions.unanswered_since(5.0)


def test_answer_of_another_length_is_a_breach(asked: Asked) -> None:
    """Who grants more or less than was asked for cannot be understood."""
    subscriptions = Subscriptions([("a", 1), ("b", 1)], asked)
    subscriptions.ask_for_all(0.0)
    with pytest.raises(BrokerError, match="does not fit"):
        subscriptions.answer(1, [None], 1.0)


def test_question_on_an_ended_connection_is_not_waited_for(asked: Asked) -> None:
    """Without a packet id no answer can come, and the next connection asks anew."""
    asked.gone = True
    subscriptions = Subscriptions([("a", 1)], asked)
    subscriptions.ask_for_all(0.0)
    assert not subscriptions.unanswered_since(1e9)
