"""The daemon: edges wired to the pipeline. Reads as start-up, main loop, shutdown.

One worker thread does everything in order; the broker's thread only fills an inbox and the HTTP threads
only read what the worker has published for them. Signals set a flag. The watchdog is fed from the loop's
own progress, so a stuck loop is noticed and not hidden.

When the disk refuses, the loop is held: what was scored waits in memory, nothing more is taken and nothing is
acknowledged, so the broker keeps the rest. Every second the commit is tried again.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections import deque
from contextlib import ExitStack
from types import FrameType  # noqa: TC003 - part of a signal handler's signature
from typing import TYPE_CHECKING

from gruard.daemon import __version__
from gruard.daemon.announcer import Announcer
from gruard.daemon.commands import Commands
from gruard.daemon.core.deliveries import Deliveries
from gruard.daemon.core.engine import Engine
from gruard.daemon.core.events import Alert, Event, Noted, Reached, Refused, Removed, Scored
from gruard.daemon.core.sources import Sources
from gruard.daemon.core.storm import Storm
from gruard.daemon.edges import failpoints
from gruard.daemon.edges.broker import Broker
from gruard.daemon.edges.database import open_database
from gruard.daemon.edges.journal import suspect_path
from gruard.daemon.edges.memory import give_back
from gruard.daemon.edges.metrics import Metrics
from gruard.daemon.edges.notify import Notifier
from gruard.daemon.errors import LostLogError, StateError
from gruard.daemon.intake import Intake
from gruard.daemon.pipeline import Pipeline
from gruard.daemon.settings import source_options
from gruard.daemon.supervision import Supervision
from gruard.daemon.wiring import broker_options, engine_options, training_settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from gruard.daemon.edges.database import Database
    from gruard.daemon.records import Message
    from gruard.daemon.settings import Settings

log = logging.getLogger("gruard")

#: Messages taken from the inbox at a time.
TAKE = 512
#: Longest wait for messages when there are none: the loop still ticks this often.
IDLE_S = 0.1
#: How often slow things are looked after: metrics of size, readiness, pruning.
TICK_S = 1.0
#: How often a commit that the disk did not take is tried again.
RETRY_S = 1.0
#: How often a start that takes long says that it moves: salvage and replay of a large database.
START_BEAT_S = 10.0
#: Open alerts looked through at start-up for a summary of our own.
MOST_OPEN = 100_000
#: Shutdown: what may be spent on scoring what was taken, and on the end of each part.
DRAIN_S, STOP_S = 1.5, 1.0


class Service:
    """One running daemon."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        self._settings = settings
        self._base = settings.alerts.base
        self._notifier = Notifier(environ)
        self._metrics = Metrics(version=__version__, labelled_devices=settings.limits.labelled_devices)
        self._stopping = False
        self._taken: deque[Message] = deque()  # out of the inbox, not decoded yet
        self._unacked: list[Message] = []  # scored or refused, waiting for the commit
        self._commit_due_s: float | None = None  # None: nothing waits for a commit
        self._retry_s: float | None = None  # when the disk is asked again; None: it takes what it is given
        # With half of its window unacknowledged, the broker is about to wait for us: do not wait for more.
        self._commit_at = min(settings.state.commit_readings, -(-settings.mqtt.receive_maximum // 2))
        self._starting = True
        self._watched_s = time.monotonic()  # when the watchdog was last fed

    # -- start-up ------------------------------------------------------------------------------

    def run(self) -> int:
        """Run until SIGTERM or SIGINT; returns the exit status."""
        with ExitStack() as open_edges:
            database = open_edges.enter_context(
                open_database(self._settings.state.directory, now_s=time.time())
            )
            self._wire(database)
            self._supervision.serve(self._settings.http.address, open_edges)
            handlers = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
            self._broker.start()
            self._starting = False
            self._notifier.ready("running")
            try:
                self._loop()
                self._finish()
            finally:
                # After an error nothing is saved or acknowledged: what was not committed comes again.
                self._notifier.stopping()
                self._pipeline.rounds.trainer.stop()
                if not self._broker.stop(STOP_S):
                    log.warning("the broker connection did not close in time")
                for number, handler in handlers.items():
                    signal.signal(number, handler)
        return 0

    def _wire(self, database: Database) -> None:
        """Bring the state back, and connect what moves it; nothing is subscribed to before."""
        settings = self._settings
        if database.set_aside is not None:
            log.error("the database was damaged; it was set aside as %s", database.set_aside.name)
        if database.salvaged is not None:
            log.error("from the damaged database: %s", database.salvaged)
            self._metrics.damaged_rows(sum(database.salvaged.lost.values()))
        if database.torn_group:
            log.warning("the last group of the log was not whole and was left out")
        engine = Engine(engine_options(settings))
        self._pipeline = Pipeline(
            engine,
            database,
            settings.state.directory,
            training_settings(settings),
            base=self._base,
            wall=time.time,
            monotonic=time.monotonic,
            heartbeat=self._beat,
            storm=self._storm(database, engine.options.instance),
            most_outbox=settings.limits.outbox_events,
        )
        self._commands = Commands(self._pipeline, settings.state.directory, self._base, self._metrics)
        sources = Sources(source_options(settings), (self._commands.filter,))
        self._broker = Broker(broker_options(settings), sources.filters, time.time, time.monotonic)
        self._announcer = Announcer(self._broker, self._pipeline, self._base, time.time)
        self._supervision = Supervision(
            self._pipeline, self._broker, self._announcer, self._metrics, self._notifier, self._commands
        )
        replayed = self._pipeline.recover()
        log.info("%d devices, %d readings replayed", len(engine.devices), replayed)
        deliveries = Deliveries(database.deliveries())
        self._intake = Intake(sources, deliveries, self._pipeline, self._metrics, self._commands)

    def _storm(self, database: Database, instance: str) -> Storm:
        """The limiter; a summary that the run before left open is found again, so that it ends."""
        most = self._settings.alerts.most_per_minute
        for row in database.alerts(MOST_OPEN, open_only=True):
            if row.device == instance and not row.source:
                return Storm(instance, most, open_id=row.id, opened_s=row.opened_s)
        return Storm(instance, most)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._stopping:
            # A second Ctrl-C means now: unacknowledged readings come again at the next start.
            os._exit(128 + number)
        self._stopping = True

    # -- main loop -----------------------------------------------------------------------------

    def _loop(self) -> None:
        ticked_s, checkpointed_s = -math.inf, time.monotonic()
        while not self._stopping:
            self._beat()
            now = time.monotonic()
            try:
                if now - ticked_s >= TICK_S:
                    ticked_s = now
                    self._tick()
                if self._retry_s is not None:
                    self._try_again(now)
                    continue
                self._turn(now)
                if now - checkpointed_s >= self._settings.state.checkpoint_every_s:
                    checkpointed_s = now
                    self._pipeline.checkpoint()
                    give_back()
            except StateError as error:
                self._hold(error)

    def _beat(self) -> None:
        """Say that the worker moves: once a turn, and between the steps of long work within one."""
        now = self._supervision.looped_s = time.monotonic()
        if self._starting and now - self._watched_s >= START_BEAT_S:
            self._watched_s = now
            self._notifier.starting(3 * START_BEAT_S)
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
            if readings:
                self._metrics.observe_batch(readings, time.perf_counter() - began)
            self._count(events)
            pipeline.settle()
        if self._commands.waiting:
            self._commands.apply()
        if self._must_commit(now):
            self._commit()
        self._supervision.collect_training()
        self._announcer.send(now)
        if self._commit_due_s is None and not pipeline.pending.empty:
            self._commit_due_s = now + self._settings.state.commit_every_ms / 1000

    def _must_commit(self, now: float) -> bool:
        if self._commit_due_s is None or self._pipeline.backlog:
            return False
        return len(self._unacked) >= self._commit_at or now >= self._commit_due_s

    def _take(self, now: float) -> None:
        wait_s = IDLE_S if self._commit_due_s is None else min(max(self._commit_due_s - now, 0.0), IDLE_S)
        if not self._taken:
            self._taken.extend(self._broker.take(TAKE, wait_s))
        if not self._taken:
            return
        failpoints.reach("take.after")
        if self._commit_due_s is None:
            self._commit_due_s = now + self._settings.state.commit_every_ms / 1000
        crowded = self._broker.status().inbox > self._settings.limits.inbox_readings // 2
        self._unacked += self._intake.take(self._taken, crowded=crowded)

    def _commit(self) -> None:
        """Make what was scored durable; only now may the broker forget it."""
        began = time.perf_counter()
        self._pipeline.commit()
        self._metrics.observe_commit(time.perf_counter() - began)
        if self._pipeline.backlog or self._commands.waiting:
            return  # of some messages a reading is not scored yet, or a command not carried out
        committed_s = time.time()
        for message in self._unacked:
            self._metrics.observe_end_to_end(max(committed_s - message.received_s, 0.0))
        self._broker.ack(self._unacked)
        self._unacked, self._commit_due_s = [], None
        failpoints.reach("ack.after")

    # -- a disk that refuses -------------------------------------------------------------------

    def _hold(self, error: StateError) -> None:
        """Take nothing more until the disk takes what was scored.

        Raises:
            StateError: the next start can mend it. Of a damaged database it saves what is sound, and a log
                that was taken away is made anew, once what it held is in the database.
        """
        if isinstance(error, LostLogError):
            self._pipeline.database.fold_log()
            raise error
        if suspect_path(self._pipeline.database.path).exists():
            raise error
        if self._retry_s is None:
            log.error("held: %s", error)
        self._metrics.commit_failed()
        self._retry_s = time.monotonic() + RETRY_S
        self._supervision.held = str(error)
        self._supervision.look()

    def _try_again(self, now: float) -> None:
        self._announcer.send(now)
        if self._retry_s is None or now < self._retry_s:
            time.sleep(IDLE_S)
            return
        self._commit()
        self._retry_s = self._supervision.held = None
        self._supervision.look()
        log.warning("the disk takes readings again")

    # -- what the events mean outside ----------------------------------------------------------

    def _count(self, events: Sequence[Event]) -> None:
        scored = 0
        for event in events:
            match event:
                case Scored():
                    scored += 1
                    self._show(event)
                case Refused(reading=reading, reason=""):
                    self._metrics.readings("duplicate")
                case Refused(reading=reading, reason=reason):
                    self._intake.refused(reason, reading.device, "")
                case Alert():
                    self._tell_alert(event)
                case Removed(device=device, reason=reason):
                    log.info("%s made room for another device: %s", device, reason)
                    self._announcer.removed(device)
                    self._metrics.forget_device(device)
                    self._metrics.device_removed()
                case Reached(device=device, what=what, seconds=seconds, readings=readings):
                    self._metrics.device_reached(what, seconds)
                    log.debug("%s: %s after %.0f s and %d readings", device, what, seconds, readings)
                case Noted():
                    log.info("%s: %s", event.device, event.text)
                case _:
                    pass  # EnrolDue was served by the pipeline
        self._metrics.readings("scored", scored)

    def _show(self, scored: Scored) -> None:
        self._announcer.scored(scored)
        for reason in scored.reading.issues.values():
            self._metrics.field_issue(reason)
        if not math.isnan(scored.score):
            self._metrics.device_score(scored.reading.device, scored.score)

    def _tell_alert(self, alert: Alert) -> None:
        if alert.state == "opened":
            self._metrics.alert_opened(alert.severity)
        if alert.kind == "new_normal":
            self._metrics.new_normal()
        log.warning(
            "alert %s %s (%s): %s score %.2f",
            alert.id,
            alert.state,
            alert.severity,
            alert.device,
            alert.score,
        )

    def _tick(self) -> None:
        self._supervision.look()
        self._supervision.mend()
        if self._retry_s is not None:
            return
        state = self._settings.state
        max_age_s = None if self._supervision.is_clock_new else state.max_age_s
        oldest_s = None if max_age_s is None else time.time() - max_age_s
        self._pipeline.prune(state.max_rows_per_device, state.max_megabytes * 1_000_000, oldest_s)
        self._pipeline.tell_storm()
        self._commands.look()
        self._pipeline.feedback.end_mutes()

    # -- shutdown ------------------------------------------------------------------------------

    def _finish(self) -> None:
        """The clean end: score what was taken, save all state, acknowledge, say goodbye."""
        log.info("stopping")
        self._broker.rest()
        failpoints.reach("stop.before")
        pipeline = self._pipeline
        pipeline.rounds.trainer.stop()
        deadline_s = time.monotonic() + DRAIN_S
        try:
            while pipeline.backlog and not pipeline.holding and time.monotonic() < deadline_s:
                self._count(pipeline.advance())
            pipeline.checkpoint()
        except StateError as error:
            log.error("stopped without saving, and what is not saved comes again: %s", error)  # noqa: TRY400 - no bug
        else:
            if not pipeline.backlog and not self._commands.waiting:
                self._broker.ack(self._unacked)
        self._announcer.say_goodbye()


_SIGNALS = (signal.SIGTERM, signal.SIGINT)
