"""What the daemon tells the broker: who it is, alerts from the outbox, the retained state of each device."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any

import msgspec

from gruard.daemon import __version__
from gruard.daemon.core.engine import BASELINE
from gruard.daemon.core.payloads import ALERT_SCHEMA, info_payload, rfc3339, state_payload
from gruard.daemon.edges import failpoints
from gruard.daemon.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gruard.daemon.core.events import Scored
    from gruard.daemon.edges.broker import Broker
    from gruard.daemon.pipeline import Pipeline

log = logging.getLogger(__name__)

#: The retained state of a device is renewed this often at most, and all devices together this fast.
STATE_EVERY_S, STATES_PER_S = 5.0, 50.0
INFO_EVERY_S = 60.0
HEALTH_SCHEMA = "gruard.health/1"
#: Alerts read from the outbox at a time; the broker edge keeps at most 20 in flight.
OUTBOX_ROWS = 64


class Announcer:
    """Publishes what is due. Called by the worker; never blocks."""

    def __init__(self, broker: Broker, pipeline: Pipeline, base: str, wall: Callable[[], float]) -> None:
        self._broker, self._pipeline, self._base, self._wall = broker, pipeline, base, wall
        self._generation = 0  # connection that has been told who we are
        self._in_flight: dict[int, int] = {}  # token of a publish -> seq in the outbox
        self._changed: dict[str, Scored] = {}  # device -> newest reading not told yet
        self._told: dict[str, tuple[float, str, bool]] = {}  # device -> when, phase and alarm as told
        self._info_due_s = 0.0
        self._reasons: tuple[str, ...] = ()  # why the daemon is not ready
        self._word_waits = self._health_waits = True  # not taken yet: that we are here, and how we are

    def scored(self, scored: Scored) -> None:
        """Note a device's newest reading, to be told as its state."""
        self._changed[scored.reading.device] = scored

    def removed(self, device: str) -> None:
        """Take back the retained state of a device that is no more."""
        self._changed.pop(device, None)
        if self._told.pop(device, None) is not None:
            self._publish_retained(f"{self._base}/state/{device}", b"")

    def health(self, reasons: Sequence[str]) -> None:
        """Note why the daemon is not ready; nothing: it is."""
        if tuple(reasons) != self._reasons:
            self._reasons, self._health_waits = tuple(reasons), True

    def send(self, now: float) -> None:
        """Publish what is due; of alerts only what is durable.

        Raises:
            StateError: the outbox cannot be read.
        """
        status = self._broker.status()
        if not status.connected:
            return
        if status.generation != self._generation:
            self._generation = status.generation
            self._in_flight.clear()
            self._told.clear()
            self._word_waits = self._health_waits = True
            self._info_due_s = now
        if self._word_waits:
            self._word_waits = not self._publish_status(b"online")
        if now >= self._info_due_s and self._publish_info():
            self._info_due_s = now + INFO_EVERY_S
        if self._health_waits:
            self._health_waits = not self._publish_health()
        self._take_confirmed()
        pending = self._pipeline.pending
        # What stands in the open transaction can be read too, and is not durable.
        if pending.outbox > len(self._in_flight) and not pending.is_written:
            self._send_outbox()
        self._send_states(now)

    def say_goodbye(self) -> None:
        """The word of a clean stop; the last will says the same after any other."""
        self._publish_status(b"offline")

    def _publish_status(self, word: bytes) -> bool:
        return self._publish_retained(f"{self._base}/status", word, qos=1, content_type="text/plain")

    def _take_confirmed(self) -> None:
        done = [self._in_flight.pop(token) for token in self._broker.confirmed() if token in self._in_flight]
        for token in self._broker.failed():
            self._in_flight.pop(token, None)  # it is sent again
        if done:
            failpoints.reach("outbox.done")
            self._pipeline.pending.delivered(done)

    def _send_outbox(self) -> None:
        """Hand over alerts in order until there is no more room."""
        under_way = frozenset(self._in_flight.values())
        pending = self._pipeline.pending
        for row in self._pipeline.database.outbox(OUTBOX_ROWS + pending.undone):
            if row.seq in under_way or pending.is_delivered(row.seq):
                continue
            failpoints.reach("publish.before")
            try:
                token = self._broker.publish(
                    row.topic, row.payload, qos=row.qos, retain=row.retain, schema=ALERT_SCHEMA
                )
            except BrokerError as error:
                log.error("an event of alert %s is not published: %s", row.key, error)  # noqa: TRY400 - no bug
                pending.delivered([row.seq])
                continue
            if token is None:
                break
            self._in_flight[token] = row.seq
            failpoints.reach("publish.after")

    def _send_states(self, now: float) -> None:
        engine = self._pipeline.engine
        every_s = max(STATE_EVERY_S, len(engine.devices) / STATES_PER_S)
        for name, scored in list(self._changed.items()):
            alert_id = engine.devices[name].track.id
            told_s, phase, alarm = self._told.get(name, (-math.inf, "", False))
            if (phase, alarm) == (scored.phase, bool(alert_id)) and now - told_s < every_s:
                continue
            model = engine.groups[scored.group].model if scored.phase == "ready" else BASELINE
            payload = state_payload(scored, alert_id=alert_id, model=model)
            if not self._publish_retained(f"{self._base}/state/{name}", payload):
                return  # no room now; the rest is told with the next turn
            del self._changed[name]
            self._told[name] = now, scored.phase, bool(alert_id)

    def _publish_info(self) -> bool:
        engine = self._pipeline.engine
        groups = {
            name: {"fields": group.fields, "devices": len(group.devices), "model": group.model}
            for name, group in engine.groups.items()
            if group.devices
        }
        facts: dict[str, Any] = {
            "version": __version__,
            "instance": engine.options.instance,
            "time": rfc3339(self._wall()),
            "devices": engine.phase_counts(),
            "groups": groups,
        }
        return self._publish_retained(f"{self._base}/info", info_payload(facts))

    def _publish_health(self) -> bool:
        facts = {
            "schema": HEALTH_SCHEMA,
            "ready": not self._reasons,
            "reasons": self._reasons,
            "time": rfc3339(self._wall()),
            "instance": self._pipeline.engine.options.instance,
        }
        return self._publish_retained(f"{self._base}/health", msgspec.json.encode(facts))

    def _publish_retained(
        self, topic: str, payload: bytes, *, qos: int = 0, content_type: str = "application/json"
    ) -> bool:
        """Publish and let it be retained; False when it was not taken and may be tried again."""
        try:
            token = self._broker.publish(topic, payload, qos=qos, retain=True, content_type=content_type)
        except BrokerError as error:
            log.error("%s is not published: %s", topic, error)  # noqa: TRY400 - no bug
            return True  # trying again is of no use
        return token is not None
