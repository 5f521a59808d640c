"""The daemon: edges wired to the pipeline. Reads as start-up, main loop, shutdown.

One worker thread does everything in order; the broker's thread only fills an inbox and the HTTP threads
only read what the worker has published for them. Signals set a flag. The watchdog is fed from the loop's
own progress, so a stuck loop is noticed and not hidden.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from contextlib import ExitStack
from dataclasses import dataclass
from types import FrameType  # noqa: TC003 - part of a signal handler's signature
from typing import TYPE_CHECKING, Any

import msgspec

from gruard.daemon import __version__
from gruard.daemon.announcer import Announcer
from gruard.daemon.core.engine import Engine
from gruard.daemon.core.events import Alert, Event, Noted, Refused, Scored
from gruard.daemon.core.sources import Sources
from gruard.daemon.edges.broker import Broker
from gruard.daemon.edges.database import open_database
from gruard.daemon.edges.http import HttpServer, Response
from gruard.daemon.edges.memory import give_back
from gruard.daemon.edges.metrics import CONTENT_TYPE, Metrics
from gruard.daemon.edges.notify import Notifier
from gruard.daemon.errors import DecodeError
from gruard.daemon.pipeline import Pipeline
from gruard.daemon.settings import source_options
from gruard.daemon.wiring import broker_options, engine_options, training_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gruard.daemon.records import Message, Reading
    from gruard.daemon.settings import Settings

log = logging.getLogger("gruard")

#: Messages taken from the inbox at a time.
TAKE = 512
#: Longest wait for messages when there are none: the loop still ticks this often.
IDLE_S = 0.1
#: How often slow things are looked after: metrics of size, readiness, pruning.
TICK_S = 1.0
#: A loop that has not come round for this long is not alive.
STUCK_S = 10.0
#: Shutdown: what each part may take.
STOP_S = 2.0


@dataclass(slots=True)
class Snapshot:
    """What the HTTP threads may read. Replaced field by field by the worker."""

    looped_s: float  # monotonic time of the newest turn of the loop
    reasons: tuple[str, ...] = ("starting",)  # why the daemon is not ready


class Service:
    """One running daemon."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._base = settings.alerts.base
        self._notifier = Notifier(environ)
        self._sources = Sources(source_options(settings))
        self._metrics = Metrics(version=__version__, labelled_devices=settings.limits.labelled_devices)
        self._snapshot = Snapshot(time.monotonic())
        self._stopping = False
        self._unacked: list[Message] = []  # scored or refused, waiting for the commit
        self._commit_due_s: float | None = None  # None: nothing waits for a commit
        # With half of its window unacknowledged, the broker is about to wait for us: do not wait for more.
        self._commit_at = min(settings.state.commit_readings, -(-settings.mqtt.receive_maximum // 2))
        self._resets = self._shed = 0  # totals already counted
        self._watched_s = time.monotonic()  # when the watchdog was last fed

    # -- start-up ------------------------------------------------------------------------------

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; returns the exit status."""
        with ExitStack() as open_edges:
            database = open_edges.enter_context(
                open_database(self._settings.state.directory, now_s=time.time())
            )
            if database.set_aside is not None:
                log.error("the database was damaged; it was set aside as %s", database.set_aside.name)
            engine = Engine(engine_options(self._settings))
            self._pipeline = Pipeline(
                engine,
                database,
                self._settings.state.directory,
                training_settings(self._settings),
                base=self._base,
                wall=time.time,
                monotonic=time.monotonic,
                heartbeat=self._beat,
            )
            replayed = self._pipeline.recover()
            log.info("%d devices, %d readings replayed", len(engine.devices), replayed)
            self._show_models()
            self._broker = Broker(broker_options(self._settings), self._sources.filters, time.time)
            self._announcer = Announcer(self._broker, self._pipeline, self._base, time.time)
            if self._settings.http.address is not None:
                server = HttpServer(*self._settings.http.address, self._routes())
                server.start()
                open_edges.callback(server.stop, STOP_S)
                log.info("http on port %d", server.port)
            handlers = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
            self._broker.start()
            self._notifier.ready("running")
            try:
                self._loop()
                self._finish()
            finally:
                # After an error nothing is saved or acknowledged: what was not committed comes again.
                self._notifier.stopping()
                self._pipeline.trainer.stop()
                if not self._broker.stop(STOP_S):
                    log.warning("the broker connection did not close in time")
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        return 0

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._stopping:
            # A second Ctrl-C means now: unacknowledged readings come again at the next start.
            os._exit(128 + number)
        self._stopping = True

    # -- main loop -----------------------------------------------------------------------------

    def _loop(self) -> None:
        ticked_s = checkpointed_s = time.monotonic()
        while not self._stopping:
            self._beat()
            now = time.monotonic()
            self._turn(now)
            if now - ticked_s >= TICK_S:
                ticked_s = now
                self._tick()
            if now - checkpointed_s >= self._settings.state.checkpoint_every_s:
                checkpointed_s = now
                self._pipeline.checkpoint()
                give_back()

    def _beat(self) -> None:
        """Say that the worker moves: once a turn, and between the steps of long work within one."""
        now = self._snapshot.looped_s = time.monotonic()
        interval_s = self._notifier.watchdog_interval_s
        if interval_s is not None and now - self._watched_s >= interval_s:
            self._watched_s = now
            self._notifier.watchdog()

    def _turn(self, now: float) -> None:
        """Take, score, commit, acknowledge, publish: one turn."""
        pipeline = self._pipeline
        if not pipeline.backlog:
            self._take(now)
        elif pipeline.holding:
            time.sleep(IDLE_S)
        began = time.perf_counter()
        events = pipeline.advance()
        if events:
            readings = sum(isinstance(event, Scored | Refused) for event in events)
            self._metrics.observe_batch(readings, time.perf_counter() - began)
            self._count(events)
        if self._must_commit(now):
            self._commit()
        self._collect_training()
        if self._announcer.send(now, committed=self._commit_due_s is None):
            self._want_commit(now)

    def _must_commit(self, now: float) -> bool:
        if self._commit_due_s is None or self._pipeline.backlog:
            return False
        return len(self._unacked) >= self._commit_at or now >= self._commit_due_s

    def _want_commit(self, now: float) -> None:
        if self._commit_due_s is None:
            self._commit_due_s = now + self._settings.state.commit_every_ms / 1000

    def _take(self, now: float) -> None:
        wait_s = IDLE_S if self._commit_due_s is None else min(max(self._commit_due_s - now, 0.0), IDLE_S)
        messages = self._broker.take(TAKE, wait_s)
        if not messages:
            return
        self._metrics.messages_received(len(messages))
        self._metrics.reading_arrived(messages[-1].received_s)
        self._want_commit(now)
        self._unacked += messages
        readings: list[Reading] = []
        for message in messages:
            try:
                decoded = self._sources.decode(message)
            except DecodeError as refusal:
                self._metrics.readings_received()
                self._refuse(refusal.reason, message.topic, refusal.detail)
            else:
                self._metrics.readings_received(len(decoded))
                readings += decoded
        self._pipeline.feed(readings)

    def _commit(self) -> None:
        """Make what was scored durable; only now may the broker forget it."""
        began = time.perf_counter()
        self._pipeline.commit()
        self._metrics.observe_commit(time.perf_counter() - began)
        committed_s = time.time()
        for message in self._unacked:
            self._metrics.observe_end_to_end(max(committed_s - message.received_s, 0.0))
        self._broker.ack(self._unacked)
        self._unacked, self._commit_due_s = [], None

    def _count(self, events: Sequence[Event]) -> None:
        scored = 0
        for event in events:
            match event:
                case Scored():
                    scored += 1
                    self._announcer.scored(event)
                    for reason in event.reading.issues.values():
                        self._metrics.field_issue(reason)
                    if not math.isnan(event.score):
                        self._metrics.device_score(event.reading.device, event.score)
                case Refused(reading=reading, reason=""):
                    self._metrics.readings("duplicate")
                case Refused(reading=reading, reason=reason):
                    self._refuse(reason, reading.device, "")
                case Alert():
                    self._tell_alert(event)
                case Noted():
                    log.info("%s: %s", event.device, event.text)
                case _:
                    pass  # EnrolDue was served by the pipeline
        self._metrics.readings("scored", scored)
        fresh = self._pipeline.engine.resets - self._resets
        if fresh:
            self._resets += fresh
            self._metrics.states_reset(fresh)

    def _refuse(self, reason: str, where: str, detail: str) -> None:
        self._metrics.readings("rejected")
        self._metrics.decode_error(reason)
        log.debug("refused a reading of %s: %s %s", where, reason, detail)

    def _tell_alert(self, alert: Alert) -> None:
        self._announcer.alert_waits()
        if alert.state == "opened":
            self._metrics.alert_opened(alert.severity)
        log.warning(
            "alert %s %s (%s): %s score %.2f",
            alert.id,
            alert.state,
            alert.severity,
            alert.device,
            alert.score,
        )

    # -- slow things ---------------------------------------------------------------------------

    def _collect_training(self) -> None:
        outcome = self._pipeline.poll_training()
        if outcome is None:
            return
        self._metrics.retrained(outcome.result, outcome.seconds)
        if outcome.result == "promoted":
            self._metrics.model_swapped()
            self._show_models()

    def _show_models(self) -> None:
        engine = self._pipeline.engine
        for name, note in self._pipeline.models.items():
            skill = engine.skill(engine.groups[name])
            shown = note.skill if math.isnan(skill) else skill
            self._metrics.model_live(name, note.id, note.cell, skill=shown, trained_s=note.trained_s)

    def _tick(self) -> None:
        status, engine, metrics = self._broker.status(), self._pipeline.engine, self._metrics
        database = self._pipeline.database
        metrics.set_mqtt_connected(status.connected)
        metrics.reconnects_seen(status.reconnects)
        # Shed messages were never decoded: each counts as one reading that came and went.
        metrics.messages_received(status.shed - self._shed)
        metrics.readings_received(status.shed - self._shed)
        metrics.readings("shed", status.shed - self._shed)
        metrics.shed_seen("inbox_full", status.shed)
        self._shed = status.shed
        metrics.set_inbox(status.inbox + self._pipeline.backlog)
        metrics.set_outbox(database.outbox_pending())
        metrics.set_journal_bytes(database.size_bytes())
        metrics.set_devices(**engine.phase_counts())
        metrics.set_alerts_active(sum(bool(d.track.id) for d in engine.devices.values()))
        self._show_models()
        self._pipeline.prune(self._settings.state.max_rows_per_device)
        reasons = []
        if not status.connected:
            reasons.append(f"broker: {status.last_error or 'connecting'}")
        if status.refused:
            reasons.append(f"broker: refused to subscribe us to {', '.join(status.refused)}")
        if not status.thread_alive:
            reasons.append("broker: its thread has ended")
        if status.inbox > status.inbox_capacity // 2:
            reasons.append(f"backlog: {status.inbox} messages wait")
        self._snapshot.reasons = tuple(reasons)
        metrics.set_ready(not reasons)
        self._notifier.status("ready" if not reasons else "; ".join(reasons))

    def _routes(self) -> dict[str, Any]:
        return {"/metrics": self._serve_metrics, "/healthz": self._serve_health, "/readyz": self._serve_ready}

    def _serve_metrics(self) -> Response:
        return Response(200, CONTENT_TYPE, self._metrics.render())

    def _serve_health(self) -> Response:
        quiet_s = time.monotonic() - self._snapshot.looped_s
        if quiet_s > STUCK_S:
            return Response(503, "text/plain", f"the loop has not turned for {quiet_s:.0f} s\n".encode())
        return Response(200, "text/plain", b"ok\n")

    def _serve_ready(self) -> Response:
        reasons = self._snapshot.reasons
        body = msgspec.json.encode({"ready": not reasons, "reasons": reasons})
        return Response(503 if reasons else 200, "application/json", body)

    # -- shutdown ------------------------------------------------------------------------------

    def _finish(self) -> None:
        """The clean end: score what was taken, save all state, acknowledge, say goodbye."""
        log.info("stopping")
        deadline_s = time.monotonic() + STOP_S
        while self._pipeline.backlog and not self._pipeline.holding and time.monotonic() < deadline_s:
            self._count(self._pipeline.advance())
        self._pipeline.checkpoint()
        if not self._pipeline.backlog:
            self._broker.ack(self._unacked)
        self._announcer.say_goodbye()


_SIGNALS = (signal.SIGTERM, signal.SIGINT)
