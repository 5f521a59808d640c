"""From messages to readings that are fed: redeliveries, refusals and shedding, every one of them counted."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from gruard.daemon.errors import DecodeError

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Sequence

    from gruard.daemon.commands import Commands
    from gruard.daemon.core.deliveries import Deliveries
    from gruard.daemon.core.sources import Sources
    from gruard.daemon.edges.metrics import Metrics
    from gruard.daemon.pipeline import Pipeline
    from gruard.daemon.records import Delivery, Message, Reading

log = logging.getLogger(__name__)

#: What waited at the broker is a backlog when its event time is this far behind its arrival.
LIVE_WITHIN_S = 60.0
#: Readings in memory at a time: a message may hold a thousand.
MOST_FED = 2048
#: While a backlog waits and less than this share of the room for devices is free, unknown devices are shed.
FREE_SHARE = 0.5


class Intake:
    """Feeds the pipeline with what messages hold."""

    def __init__(
        self,
        sources: Sources,
        deliveries: Deliveries,
        pipeline: Pipeline,
        metrics: Metrics,
        commands: Commands,
    ) -> None:
        self._sources, self._deliveries, self._commands = sources, deliveries, commands
        self._pipeline, self._metrics = pipeline, metrics

    def take(self, messages: deque[Message], *, crowded: bool) -> list[Message]:
        """Decode the oldest messages and feed their readings; `crowded`: many more wait.

        Returns the messages that were taken off; the rest stays for the next turn once MOST_FED are fed.
        """
        engine = self._pipeline.engine
        closed = crowded and len(engine.devices) > (1.0 - FREE_SHARE) * engine.options.most_devices
        taken: list[Message] = []
        fed: list[Reading] = []
        while messages and len(fed) < MOST_FED:
            message = messages.popleft()
            taken.append(message)
            if self._commands.is_one(message):
                self._command(message)
            else:
                fed += self._admitted(message, closed=closed)
                self._metrics.reading_arrived(message.received_s)
        self._metrics.messages_received(len(taken))
        self._pipeline.feed(fed)
        return taken

    def _admitted(self, message: Message, *, closed: bool) -> Sequence[Reading]:
        """What of a message is to be fed: all of it, nothing, or what its first delivery left undone."""
        delivery, again = self._judged(message)
        if delivery is None:
            return self._decoded(message, closed=closed)
        if not again:
            readings = fed = self._decoded(message, closed=closed)
        else:
            readings = self._decoded_again(message)
            fed = [readings[n] for n in delivery.missing if n < len(readings)]
            self._metrics.readings("duplicate", len(readings) - len(fed))
            if not fed:
                return fed
        delivery = replace(delivery, missing=())
        self._deliveries.note(delivery)
        self._pipeline.took(delivery, readings)
        return fed

    def _command(self, message: Message) -> None:
        delivery, again = self._judged(message)
        if delivery is not None and not again:
            self._deliveries.note(delivery)
        self._commands.take(message, delivery, again=again)

    def _judged(self, message: Message) -> tuple[Delivery | None, bool]:
        """What to note of a message, None with QoS 0, and whether it was taken before."""
        if not message.qos:
            return None, False
        if self._deliveries.forgotten(message.session):
            self._pipeline.pending.forget_session()
        return self._deliveries.judge(message)

    def _decoded(self, message: Message, *, closed: bool) -> Sequence[Reading]:
        try:
            readings = self._sources.decode(message)
        except DecodeError as refusal:
            self._metrics.readings_received()
            self.refused(refusal.reason, message.topic, refusal.detail)
            return ()
        self._metrics.readings_received(len(readings))
        if closed and readings and readings[0].device not in self._pipeline.engine.devices:
            self._metrics.readings("shed", len(readings))
            self._metrics.shed("unknown_device", len(readings))
            return ()
        return [_late(reading) for reading in readings] if message.backlog else readings

    def _decoded_again(self, message: Message) -> Sequence[Reading]:
        """The readings of a redelivered message; one that was refused then is a duplicate now."""
        try:
            readings = self._sources.decode(message)
        except DecodeError:
            self._metrics.readings_received()
            self._metrics.readings("duplicate")
            return ()
        self._metrics.readings_received(len(readings))
        return [_late(reading) for reading in readings] if message.backlog else readings

    def refused(self, reason: str, where: str, detail: str) -> None:
        """Count a reading that is refused."""
        self._metrics.readings("rejected")
        self._metrics.decode_error(reason)
        log.debug("refused a reading of %a: %s", where, detail, extra={"fields": {"reason": reason}})


def _late(reading: Reading) -> Reading:
    """A reading that waited at the broker, as what it is: live all the same when it did not wait for long."""
    told = reading.time_s != reading.received_s
    if told and reading.received_s - reading.time_s <= LIVE_WITHIN_S:
        return reading
    return replace(reading, replayed=True)
