"""One run of the demo: broker, daemon, feeds, faults, a burn, and what came of it.

The order of a run is in `Session.run`. The clock, the wall clock and the waiting come from the caller.
"""

from __future__ import annotations

import os
import platform
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event
from typing import TYPE_CHECKING

from gruard.daemon.demo.burn import Burn
from gruard.daemon.demo.children import LOOPBACK, BrokerChild, DaemonChild, decoded_object
from gruard.daemon.demo.feeds import publish_fleet, publish_host
from gruard.daemon.demo.fleet import Fault, Fleet, planned_faults
from gruard.daemon.demo.summary import Alarm, Summary, alarm_from, judge_burn, judge_faults
from gruard.daemon.demo.telemetry import HostTelemetry, host_device, spare_bytes
from gruard.daemon.edges.broker import Publisher
from gruard.daemon.errors import GruardError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from gruard.daemon.demo.screen import Board, Screen

_WARMUP_READINGS = 300
_HEALTHY_WITHIN_S = 30.0
_DRAIN_S = 12.0  # how long the daemon may take to work off what was sent last
_QUIET_S = 60.0  # scores of this long before the burn are its comparison
_FRAME_S = 0.25
_ASK_EVERY_S = 2.0  # between two looks at the daemon's own count


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens when. Faults are in simulated seconds, the rest in real ones."""

    total_s: float
    speed: float
    pumps: int
    seed: int
    faults: tuple[Fault, ...]
    burn_at_s: float
    burn_s: float


def make_plan(seconds: float, speed: float, pumps: int, seed: int) -> Plan:
    """Spread a demo over `seconds`: 44 % to learn, then four faults that overlap a little, then the burn."""
    simulated_s = seconds * speed
    faults = planned_faults(pumps, 0.44 * simulated_s, 0.0875 * simulated_s, 0.15 * simulated_s)
    return Plan(
        total_s=seconds,
        speed=speed,
        pumps=pumps,
        seed=seed,
        faults=tuple(faults),
        burn_at_s=0.885 * seconds,
        burn_s=0.075 * seconds,
    )


class Session:
    """A demo run from the first process to the last."""

    def __init__(
        self,
        plan: Plan,
        directory: Path,
        board: Board,
        screen: Screen,
        *,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._plan, self._directory, self._board, self._screen = plan, directory, board, screen
        self._clock, self._wall = clock, wall
        self._fleet = Fleet(plan.pumps, plan.seed, plan.faults)
        self._host = host_device(platform.node())
        self._stop = Event()
        self._inbox: SimpleQueue[tuple[str, bytes]] = SimpleQueue()
        self._sent = {"pumps": 0, "hosts": 0}  # one writer each
        self._looks: deque[tuple[float, int]] = deque(maxlen=20)
        self._alarms: list[Alarm] = []
        self._host_scores: list[tuple[float, float]] = []  # wall time, score
        self._models_seen: set[str] = set()
        self._announced: dict[Fault, str] = {}
        self._feeds: list[Future[int]] = []
        self._burn: Burn | None = None
        self._burn_at: float | None = None  # wall time
        self._counted: dict[str, int] | None = None
        self._ask_at_s = 0.0
        self._started = self._clock()
        self._start_time_s = 0.0
        for device in (*self._fleet.devices, self._host):
            board.row(device)

    def run(self) -> Summary:
        """Start everything, play the plan, stop everything in reverse; what is known goes into the summary.

        A fault of the run itself or an interruption ends it early, with a summary that says so.
        """
        problem: str | None = None
        try:
            with ExitStack() as stack:
                daemon = self._start(stack)
                self._play(daemon)
                self._drain(daemon)
                if not daemon.healthy():
                    problem = f"the daemon is not healthy: {daemon.last_words()}"
                elif not self._board.online:
                    problem = "the daemon has not said that it is online"
        except KeyboardInterrupt:
            problem = "interrupted"
        except GruardError as error:
            problem = str(error)
        return self._summary(problem)

    def _start(self, stack: ExitStack) -> DaemonChild:
        self._screen.event("starting the embedded MQTT broker")
        broker = BrokerChild()
        stack.callback(broker.stop)
        self._screen.event(f"starting the daemon against {LOOPBACK}:{broker.port}")
        daemon = DaemonChild(self._directory, broker.port, _WARMUP_READINGS)
        stack.callback(daemon.stop)
        daemon.wait_healthy(_HEALTHY_WITHIN_S, self._clock, self._stop.wait)
        watcher = stack.enter_context(Publisher(LOOPBACK, broker.port, "gruard-demo-watch"))
        for topic in ("gruard/alerts/#", "gruard/state/#", "gruard/status"):
            watcher.subscribe(topic, lambda topic, payload: self._inbox.put((topic, payload)))
        publisher = stack.enter_context(Publisher(LOOPBACK, broker.port, "gruard-demo-feed"))
        stack.callback(publisher.wait_all, _DRAIN_S)
        pool = stack.enter_context(ThreadPoolExecutor(2, "demo-feed"))
        stack.callback(self._stop_feeds)
        self._start_feeds(publisher, pool)
        return daemon

    def _start_feeds(self, publisher: Publisher, pool: ThreadPoolExecutor) -> None:
        plan = self._plan
        self._started = self._clock()
        # Simulated time catches up with the wall clock at the end of the run and never overtakes it.
        self._start_time_s = self._wall() - plan.total_s * (plan.speed - 1)

        def publish(kind: str) -> Callable[[str, bytes], None]:
            def send(topic: str, payload: bytes) -> None:
                publisher.publish(topic, payload, qos=1)
                self._sent[kind] += 1

            return send

        def seen(device: str, fields: Mapping[str, float]) -> None:
            self._board.rows[device].values = fields

        self._feeds = [
            pool.submit(
                publish_fleet,
                publish("pumps"),
                self._fleet,
                speed=plan.speed,
                duration_s=plan.total_s,
                start_time_s=self._start_time_s,
                clock=self._clock,
                pause=self._stop.wait,
                seen=seen,
            ),
            pool.submit(
                publish_host,
                publish("hosts"),
                self._host,
                measure=HostTelemetry().measure,
                wall=self._wall,
                pause=self._stop.wait,
                seen=seen,
            ),
        ]

    def _play(self, daemon: DaemonChild) -> None:
        """Draw, watch and inject until the plan's time is over."""
        while self._elapsed_s() < self._plan.total_s:
            self._frame(daemon)
            if self._elapsed_s() >= self._ask_at_s:
                self._ask_at_s = self._elapsed_s() + _ASK_EVERY_S
                self._ask(daemon)
            if self._burn is None and self._elapsed_s() >= self._plan.burn_at_s:
                self._ignite()
            self._stop.wait(_FRAME_S)

    def _ask(self, daemon: DaemonChild) -> None:
        """Take over the daemon's own count of readings."""
        counted = daemon.counted()
        if counted is not None:
            self._counted = counted
            self._board.counted = sum(counted.values())

    def _ignite(self) -> None:
        cores, filled = os.cpu_count() or 1, spare_bytes()
        burning = f"{cores} cores and {filled / 2**20:.0f} MiB"
        self._screen.event(f"burning {burning} of this machine for {self._plan.burn_s:.0f} s, for real")
        self._burn_at = self._wall()
        self._burn = Burn(self._plan.burn_s, cores, filled)

    def _drain(self, daemon: DaemonChild) -> None:
        """Stop the feeds, then give the daemon a bounded time to work off what it has received."""
        self._stop.set()
        for feed in self._feeds:
            feed.result()
        deadline = self._clock() + _DRAIN_S
        unhurried = Event()
        while True:
            self._frame(daemon)
            self._ask(daemon)
            # What a broker sends twice is counted twice, but scored once: every reading sent is a good one.
            if self._counted is not None and self._counted.get("scored", 0) >= sum(self._sent.values()):
                break
            if self._clock() > deadline:
                break
            unhurried.wait(_FRAME_S)
        unhurried.wait(_FRAME_S)  # what the last readings caused is still on its way back
        self._take_messages()

    def _stop_feeds(self) -> None:
        self._stop.set()
        if self._burn is not None:
            self._burn.stop()

    def _frame(self, daemon: DaemonChild) -> None:
        """Look after everything once.

        Raises:
            GruardError: a feed has broken or the daemon has ended.
        """
        board = self._board
        board.elapsed_s = self._elapsed_s()
        board.sent = sum(self._sent.values())
        self._looks.append((board.elapsed_s, board.sent))
        (earlier_s, earlier), (now_s, now) = self._looks[0], self._looks[-1]
        board.rate = (now - earlier) / (now_s - earlier_s) if now_s > earlier_s else 0.0
        board.phase = self._phase()
        self._announce_faults()
        self._take_messages()
        self._screen.refresh()
        for feed in self._feeds:
            if feed.done() and (error := feed.exception()) is not None:
                raise GruardError(f"publishing has stopped: {error}") from error
        if daemon.exit_status is not None:
            raise GruardError(f"the daemon ended with {daemon.exit_status}: {daemon.last_words()}")

    def _phase(self) -> str:
        if self._stop.is_set():
            return "finishing"
        if self._burn is not None:
            return "burn on this machine" if self._burn.alive else "after the burn"
        if self._simulated_s() >= min(fault.start_s for fault in self._plan.faults):
            return "faults"
        return "learning what is normal"

    def _announce_faults(self) -> None:
        t = self._simulated_s()
        for fault in self._plan.faults:
            news = "over" if t >= fault.end_s else "on" if t >= fault.start_s else ""
            if news and self._announced.get(fault) != news:
                self._announced[fault] = news
                self._board.row(fault.device).injected = fault.kind if news == "on" else ""
                verb = "injected" if news == "on" else "repaired"
                self._screen.event(f"{verb}: {fault.kind} on {fault.device}")

    def _take_messages(self) -> None:
        """Take in all that the daemon has published since the last look."""
        while True:
            try:
                topic, payload = self._inbox.get_nowait()
            except Empty:
                return
            if topic == "gruard/status":
                self._board.online = payload == b"online"
            elif topic.startswith("gruard/state/"):
                self._take_state(decoded_object(payload))
            else:
                self._take_alert(decoded_object(payload))

    def _take_state(self, state: Mapping[str, object]) -> None:
        self._board.take_state(state)
        model, score = state.get("model"), state.get("score")
        if isinstance(model, str) and model not in self._models_seen:
            self._models_seen.add(model)
            self._screen.event(f"model {model} takes charge of {state.get('device')}")
        of_host = state.get("device") == self._host
        if of_host and state.get("state") != "warming" and isinstance(score, int | float):
            self._host_scores.append((self._wall(), float(score)))

    def _take_alert(self, alert: Mapping[str, object]) -> None:
        alarm = alarm_from(alert)
        if alarm is not None:
            self._alarms.append(alarm)
            self._screen.event(f"ALERT {alarm.severity} {alarm.device}: {alarm.message}")
        elif alert.get("state") == "resolved":
            self._screen.event(f"resolved {alert.get('device')}")

    def _elapsed_s(self) -> float:
        return self._clock() - self._started

    def _simulated_s(self) -> float:
        return self._elapsed_s() * self._plan.speed

    def _summary(self, problem: str | None) -> Summary:
        plan = self._plan
        verdicts, false_alarms, aftermath = judge_faults(
            plan.faults,
            self._alarms,
            self._fleet.devices,
            self._start_time_s,
            self._sent["pumps"] / plan.pumps,
        )
        burn = None
        if self._burn_at is not None:
            burnt = (self._burn_at, self._burn_at + plan.burn_s)
            burn = judge_burn(self._host_scores, self._alarms, self._host, burnt, _QUIET_S)
        return Summary(
            verdicts=tuple(verdicts),
            false_alarms=tuple(false_alarms),
            aftermath=tuple(aftermath),
            burn=burn,
            sent=sum(self._sent.values()),
            counted=self._counted,
            start_s=self._start_time_s,
            models=self._board.models(),
            problem=problem,
        )
