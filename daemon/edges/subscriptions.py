"""What one connection asks to be sent, and what the broker answers. No paho, no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gruard.daemon.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Between two tries to subscribe to what was refused: rights may be granted at any time.
ASK_AGAIN_S = 30.0


class Subscriptions:
    """`ask` sends one SUBSCRIBE for (topic filter, QoS) pairs and returns its packet id, if it was sent.

    QoS 2 is asked for as QoS 1, see `connection`.
    """

    def __init__(
        self, wanted: Sequence[tuple[str, int]], ask: Callable[[list[tuple[str, int]]], int | None]
    ) -> None:
        self.answered = False  # the broker has answered once
        self.refused: dict[str, str] = {}  # topic filter -> why the broker does not let us have it
        self._wanted = {topic: min(qos, 1) for topic, qos in wanted}
        self._ask = ask
        self._asked: dict[int, tuple[list[str], float]] = {}  # packet id of a SUBSCRIBE -> topics, when
        self._again_s = 0.0

    @property
    def trouble(self) -> str | None:
        """What was refused, as a sentence."""
        listing = ", ".join(f"{topic} ({reason})" for topic, reason in self.refused.items())
        return f"The broker refused the subscription to {listing}." if listing else None

    def ask_for_all(self, now: float) -> None:
        """Subscribe; in a resumed session too, whose filters are those of the configuration back then."""
        if self._wanted:
            self._send(list(self._wanted), now)

    def ask_again(self, now: float) -> None:
        """Ask for what was refused, when it is time to."""
        if self.refused and not self._asked and now >= self._again_s:
            self._send(list(self.refused), now)

    def answer(self, packet_id: int, reasons: Sequence[str | None], now: float) -> None:
        """Note a SUBACK: for each filter None, or why it was refused.

        Raises:
            BrokerError: the answer has another number of filters than the question.
        """
        topics, _ = self._asked.pop(packet_id, ([], now))
        if not topics:  # nobody asked
            return
        if len(topics) != len(reasons):
            raise BrokerError("its answer does not fit our subscription")
        self.refused = {topic: reason for topic, reason in self.refused.items() if topic not in topics}
        self.refused |= {topic: why for topic, why in zip(topics, reasons, strict=True) if why is not None}
        self.answered = True
        self._again_s = now + ASK_AGAIN_S

    def unanswered_since(self, before_s: float) -> bool:
        """Whether a question sent before `before_s` has no answer."""
        return any(sent_s < before_s for _, sent_s in self._asked.values())

    def _send(self, topics: list[str], now: float) -> None:
        packet_id = self._ask([(topic, self._wanted[topic]) for topic in topics])
        if packet_id is not None:
            self._asked[packet_id] = topics, now
