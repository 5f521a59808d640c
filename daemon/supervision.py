"""Is the daemon well? Looked at once a second, told on every channel, mended where that can be done.

A reason not to be ready shows in /readyz, in the metrics, on `<base>/health` and in `systemctl status`.
Threads that died are replaced. A network thread that hangs ends the process: the service manager starts
another.
"""

from __future__ import annotations

import logging
import math
import time
from typing import TYPE_CHECKING

import msgspec

from gruard.daemon.edges.http import HttpServer, Response
from gruard.daemon.edges.metrics import CONTENT_TYPE
from gruard.daemon.errors import GruardError

if TYPE_CHECKING:
    from contextlib import ExitStack

    from gruard.daemon.announcer import Announcer
    from gruard.daemon.commands import Commands
    from gruard.daemon.edges.broker import Broker
    from gruard.daemon.edges.link import BrokerStatus
    from gruard.daemon.edges.metrics import Metrics
    from gruard.daemon.edges.notify import Notifier
    from gruard.daemon.pipeline import Pipeline

log = logging.getLogger(__name__)

#: A loop that has not come round for this long is not alive.
STUCK_S = 10.0
#: A network thread that has not come round is worth a word after the first, and the process after the second.
DEAF_S, HOPELESS_S = 5.0, 30.0
#: The clock of a board without a battery stands at 1970 or at its last shutdown until the network sets it.
CLOCK_UNSET_BEFORE_S = 1_704_067_200.0  # 2024
#: A clock that is set by more than this is worth a word, and for how long.
CLOCK_STEP_S, CLOCK_NOTED_S = 1.0, 10.0
#: Nothing is thrown away for its age by a clock that was set less than a day ago: it may be wrong.
CLOCK_NEW_S = 86_400.0
#: How long the HTTP server may take to end.
HTTP_STOP_S = 0.5


class Supervision:
    """Owned by the worker. The HTTP threads read `looped_s` and `reasons`, each replaced as a whole."""

    def __init__(
        self,
        pipeline: Pipeline,
        broker: Broker,
        announcer: Announcer,
        metrics: Metrics,
        notifier: Notifier,
        commands: Commands,
    ) -> None:
        self._pipeline, self._broker, self._announcer = pipeline, broker, announcer
        self._metrics, self._notifier, self._commands = metrics, notifier, commands
        self._server: HttpServer | None = None
        self.looped_s = time.monotonic()  # newest turn of the loop
        self.reasons: tuple[str, ...] = ("starting",)  # why the daemon is not ready
        self.held: str | None = None  # why the disk takes nothing
        self._clock_s = time.time() - time.monotonic()  # where the clock stands against one that nobody sets
        self._clock_note: tuple[float, str] = (-math.inf, "")  # when it was last set, and by how much
        self._shown: set[str] = set()  # groups whose model is shown
        self._counted: dict[str, int] = {}  # totals kept elsewhere, as far as they are counted

    def look(self) -> None:
        """Bring reasons and gauges up to date.

        Raises:
            GruardError: the network thread hangs for good.
        """
        status, pipeline, metrics = self._broker.status(), self._pipeline, self._metrics
        engine, database = pipeline.engine, pipeline.database
        metrics.set_mqtt_connected(status.connected)
        metrics.set_tls_insecure(status.tls_insecure)
        metrics.reconnected(self._grown("reconnects", status.reconnects))
        metrics.stale_acks(self._grown("stale acks", status.stale_acks))
        # Shed messages were never decoded: each counts as one reading that came and went.
        shed = self._grown("shed", status.shed)
        metrics.messages_received(shed)
        metrics.readings_received(shed)
        metrics.readings("shed", shed)
        metrics.shed("inbox_full", shed)
        metrics.states_reset(self._grown("resets", engine.resets))
        metrics.gaps_seen(self._grown("gaps", engine.gaps))
        metrics.alerts_untold(self._grown("untold", pipeline.storm.suppressed))
        metrics.damaged_rows(self._grown("damaged", database.skipped_rows))
        metrics.set_inbox(status.inbox + pipeline.backlog)
        metrics.set_outbox(pipeline.pending.outbox)
        metrics.set_journal_bytes(database.size_bytes())
        metrics.set_held(self.held is not None)
        metrics.set_devices(**engine.phase_counts())
        drifting = sum(bool(d.drift_id) for d in engine.devices.values())
        metrics.set_alerts_active(drifting + sum(bool(d.track.id) for d in engine.devices.values()))
        metrics.set_drifting(drifting)
        self.show_models()
        self._show_rounds()
        for group, counts in pipeline.feedback.counts.items():
            metrics.show_feedback(group, counts, pipeline.feedback.precision.get(group))
        self._look_at_the_clock()
        self.reasons = tuple(self._reasons(status))
        metrics.set_ready(not self.reasons)
        self._announcer.health(self.reasons)
        self._notifier.status("ready" if not self.reasons else "; ".join(self.reasons))

    def mend(self) -> None:
        """Replace threads that have died.

        Raises:
            GruardError: the network thread lives and does not move; a new process is needed.
        """
        status = self._broker.status()
        if not status.thread_alive:
            log.error("the broker's thread has ended; it is replaced")
            if self._broker.revive():
                self._metrics.thread_restarted()
        elif _quiet_s(status) > HOPELESS_S:
            raise GruardError("The broker's thread hangs; a new process is needed.")
        if self._server is not None and not self._server.alive:
            log.error("the HTTP thread has ended; it is replaced")
            self._server.revive()
            self._metrics.thread_restarted()

    def collect_training(self) -> None:
        """Take the outcome of a training round that has ended; take a model back that is clearly worse."""
        reason = self._pipeline.rounds.review()
        if reason is not None:
            self._metrics.rolled_back(reason)
            self._metrics.model_swapped()
            self._pipeline.commit()
        outcome = self._pipeline.poll_training(self._broker.status().inbox)
        if outcome is None:
            return
        self._metrics.retrained(outcome.result, outcome.seconds)
        self._metrics.retrain_used(outcome.cpu_s, outcome.peak_bytes)
        self._commands.round_ended(outcome)
        if outcome.result == "promoted":
            self._metrics.model_swapped()
            self.show_models()

    def show_models(self) -> None:
        """Show which models are in charge, and how well they do."""
        engine = self._pipeline.engine
        for name in self._shown - set(self._pipeline.models):  # the baseline's again
            self._metrics.forget_group(name)
        self._shown = set(self._pipeline.models)
        for name, note in self._pipeline.models.items():
            skill = engine.skill(engine.groups[name])
            shown = note.skill if math.isnan(skill) else skill
            self._metrics.model_live(name, note.id, note.cell, skill=shown, trained_s=note.trained_s)

    def _show_rounds(self) -> None:
        rounds = self._pipeline.rounds
        for reason, count in rounds.started.items():
            self._metrics.retrain_started(reason, self._grown(f"rounds {reason}", count))
        progress = rounds.trainer.progress
        self._metrics.set_retrain(0.0 if progress is None else progress.done, paused=rounds.trainer.paused)

    def _reasons(self, status: BrokerStatus) -> list[str]:
        reasons = []
        if self.held is not None:
            reasons.append(f"disk: {self.held}")
        if not status.connected:
            reasons.append(f"broker: {status.last_error or 'connecting'}")
        elif status.last_error is not None and not status.refused:
            reasons.append(f"broker: {status.last_error}")  # such as a refused alert
        # Without commands it guards all the same: a broker that grants it nothing but sensors is no fault.
        unheard = [name for name in status.refused if name != self._commands.filter[0]]
        if unheard:
            reasons.append(f"broker: refused to subscribe us to {', '.join(unheard)}")
        if not status.thread_alive:
            reasons.append("broker: its thread has ended")
        elif _quiet_s(status) > DEAF_S:
            reasons.append("broker: its thread hangs")
        if status.inbox > status.inbox_capacity // 2:
            reasons.append(f"backlog: {status.inbox} messages wait")
        if time.time() < CLOCK_UNSET_BEFORE_S:
            reasons.append("clock: it has not been set yet")
        noted_s, sentence = self._clock_note
        if time.monotonic() - noted_s < CLOCK_NOTED_S:
            reasons.append(sentence)
        return reasons

    @property
    def is_clock_new(self) -> bool:
        """Whether the clock was set a short while ago."""
        return time.monotonic() - self._clock_note[0] < CLOCK_NEW_S

    def _look_at_the_clock(self) -> None:
        """Nothing waits by the clock that people set: a step needs no mending, but it explains much."""
        now = time.monotonic()
        stands_s = time.time() - now
        step_s, self._clock_s = stands_s - self._clock_s, stands_s
        if abs(step_s) > CLOCK_STEP_S:
            self._clock_note = now, f"clock: it was set by {step_s:+.0f} s"
            self._metrics.clock_stepped()
            log.warning("the clock was set by %+.0f s", step_s)

    def _grown(self, name: str, total: int) -> int:
        """By how much a running total kept elsewhere has grown since the last look."""
        grown = total - self._counted.get(name, 0)
        self._counted[name] = total
        return grown

    # -- http ----------------------------------------------------------------------------------

    def serve(self, address: tuple[str, int] | None, open_edges: ExitStack) -> None:
        """Answer on `address` until `open_edges` closes; None: nowhere.

        Raises:
            ListenError: the address cannot be had.
        """
        if address is None:
            return
        routes = {"/metrics": self._metrics_page, "/healthz": self._health, "/readyz": self._readiness}
        self._server = HttpServer(*address, routes)
        self._server.start()
        open_edges.callback(self._server.stop, HTTP_STOP_S)
        log.info("http on port %d", self._server.port)

    def _metrics_page(self) -> Response:
        return Response(200, CONTENT_TYPE, self._metrics.render())

    def _health(self) -> Response:
        quiet_s = time.monotonic() - self.looped_s
        if quiet_s > STUCK_S:
            return Response(503, "text/plain", f"the loop has not turned for {quiet_s:.0f} s\n".encode())
        return Response(200, "text/plain", b"ok\n")

    def _readiness(self) -> Response:
        reasons = self.reasons
        body = msgspec.json.encode({"ready": not reasons, "reasons": reasons})
        return Response(503 if reasons else 200, "application/json", body)


def _quiet_s(status: BrokerStatus) -> float:
    """Seconds since the network thread last came round."""
    return time.monotonic() - status.turned_s
