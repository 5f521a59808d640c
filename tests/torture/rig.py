"""Broker, daemon, publisher and listener together, and the verdict at the end of what was done to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Self

from support_daemon import Daemon
from support_mqtt import Mosquitto, wait_until
from torture import checker
from torture.checker import Verdict
from torture.ear import Ear
from torture.netns import OUTSIDE
from torture.outcome import recovered, uninterrupted
from torture.sender import Sender
from torture.tap import Tap
from torture.truth import LEVELS, LIFE, Fleet, Truth, size_of, topic_of

from gruard.daemon.edges.database import open_readonly
from gruard.daemon.errors import StateError
from gruard.daemon.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from torture.netns import Namespace
    from torture.truth import Mode

#: As deploy/mosquitto.conf has it: what a broker needs so that nothing is lost on its side.
BROKER = ("persistence true", "autosave_interval 1", "max_queued_messages 1000000")
#: Shorter than the daemon's own defaults where a fault would otherwise take minutes to come about.
CONFIG = """
version = 1
[mqtt]
host = "127.0.0.1"
port = {mqtt_port}
client_id = "gruard-torture"
keepalive_s = 5
[[sources]]
name = "plant"
topic = "plant/{{device}}"
time = "ts"
[[sources]]
name = "counted"
topic = "counted/{{device}}"
sequence = "seq"
[[sources]]
name = "raw"
topic = "raw/{{device}}"
[model]
hidden = 8
warmup_readings = {warmup}
[train]
every = "EVERY"
[alerts]
update_every = "10s"
most_per_minute = 100000
[http]
listen = "127.0.0.1:{http_port}"
[state]
directory = "{state}"
checkpoint_every = "CHECKPOINT"
max_rows_per_device = 1000000
[log]
format = "json"
"""
#: Readings of a device before a model may be in charge of it.
WARM_UP = 200
ALERTS = "gruard/alerts/"
_ONCE = "999h"  # a first round, and none after it
#: A stop takes at most this long, and a start until it is ready.
STOP_S, READY_S = 5.0, 5.0


class Victim(Daemon):
    """The daemon, started and killed without asking how it is."""

    inside: AbstractContextManager[object] = nullcontext()  # where it lives and is talked to

    def launch(self, failpoint: str = "") -> None:
        """Start it and do not wait; `failpoint` is NAME:COUNT."""
        with self._log.open("ab") as log, self.inside:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gruard.daemon", "run", "-c", str(self.config)],
                stdout=log,
                stderr=log,
                env={**os.environ, **({"GRUARD_FAILPOINT": failpoint} if failpoint else {})},
            )

    def get(self, path: str) -> tuple[int, str]:
        """Ask it over HTTP."""
        with self.inside:
            return super().get(path)

    def kill(self) -> None:
        """End it at once (SIGKILL)."""
        self.stop(signal.SIGKILL)

    def signal(self, number: int) -> None:
        """Send it a signal and do not wait."""
        assert self._process is not None
        self._process.send_signal(number)

    def died(self, timeout_s: float) -> int | None:
        """Its exit status once it has ended by itself; None when it did not in time."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def ready(self, timeout_s: float = 30.0) -> bool:
        """Wait until it says that it is ready."""
        return wait_until(lambda: not self.alive or self.get("/readyz")[0] == 200, timeout_s) and self.alive

    def why(self) -> str:
        """What it says about itself, for a test that fails."""
        return f"{self.get('/readyz')}\n{self.log()}"

    def resident_bytes(self) -> int:
        """Its resident memory."""
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    def descriptors(self) -> int:
        """Its open file descriptors."""
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


class Rig:
    """A broker, a daemon, a publisher that is at it, and somebody who listens."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        *,
        modes: tuple[Mode, ...] = ("ts",),
        places: int = 20,
        life: int = LIFE,
        rate: float = 1000.0,
        every: str = "off",
        checkpoint: str = "1s",
        trained: bool = False,
        armed: str = "",
        begun: int = 0,
        tapped: bool = False,
        namespace: Namespace | None = None,
        broker: Iterable[str] = BROKER,
    ) -> None:
        self.truth = Truth(Fleet(places, seed, modes, life))
        self.broker = Mosquitto(folder, broker)
        if namespace is not None:
            self.broker.configure([*broker, f"listener {self.broker.port} {OUTSIDE}"])
        self.tap = Tap(self.broker.port) if tapped else None
        self._every, self._trained, self._armed = every, trained, armed
        port = self.broker.port if self.tap is None else self.tap.port
        config = CONFIG.replace("EVERY", _ONCE if trained else every).replace("CHECKPOINT", checkpoint)
        if namespace is not None:
            config = config.replace('host = "127.0.0.1"', f'host = "{OUTSIDE}"')
        self.daemon = Victim(folder, port, warmup=WARM_UP, config=config)
        self.daemon.inside = nullcontext() if namespace is None else namespace
        self.sender = Sender(self.broker.port, self.truth, rate, begun=begun)
        self.ear = Ear(self.broker.port, f"{ALERTS}#")
        self.verdict = Verdict()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.broker)
            if self.tap is not None:
                stack.enter_context(self.tap)
            stack.callback(self.daemon.__exit__)
            self.daemon.launch(self._armed)
            stack.enter_context(self.ear)
            assert self.daemon.ready(), self.daemon.why()
            stack.enter_context(self.sender)
            if self._trained:
                self._train()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _train(self) -> None:
        """Let the daemon's own training put a model in charge of every group, then train no more."""
        promoted, groups = (
            'gruard_retrain_total{result="promoted"}',
            len({LEVELS[mode] for mode in self.truth.fleet.modes}),
        )
        assert wait_until(lambda: self.daemon.metric(promoted) == groups, 180), self.daemon.log()
        assert self.daemon.stop() == 0, self.daemon.log()
        text = self.daemon.config.read_text(encoding="utf-8")
        self.daemon.config.write_text(text.replace(f'"{_ONCE}"', f'"{self._every}"'), encoding="utf-8")
        self.daemon.launch()
        assert self.daemon.ready(), self.daemon.why()

    def counted(self) -> int:
        """Readings that the state directory has, over all devices."""
        try:
            with open_readonly(self.daemon.state) as reader:
                return sum(row.readings for row in reader.devices())
        except StateError:
            return 0  # not made yet

    def settle(self, quiet_s: float = 6.0) -> None:
        """Wait until everything acknowledged was counted, or nothing moves any more, and alerts are told."""
        assert self.sender.drain(), "the broker does not take what was sent"
        assert self.daemon.ready(60), self.daemon.why()
        seen, since_s = -1, time.monotonic()
        while time.monotonic() - since_s < quiet_s:
            now = self.counted()
            if now != seen:
                seen, since_s = now, time.monotonic()
            if now >= self.truth.total:
                break
            time.sleep(0.1)
        assert wait_until(self._told, 30), "alerts stay in the outbox"

    def _told(self) -> bool:
        with open_readonly(self.daemon.state) as reader:
            return reader.outbox_pending() == 0

    def finish(self) -> Verdict:
        """Come to rest, stop, and judge."""
        self.settle()
        wait_until(lambda: not checker.unaccounted(self.daemon.get("/metrics")[1]))
        if missing := checker.unaccounted(self.daemon.get("/metrics")[1]):
            self.verdict.add("P5", "all", missing)
        self.stop()
        heard = self.ear.payloads
        if self.tap is not None:  # a broker that dies forgets what it was told
            heard += [payload for topic, payload in self.tap.told if topic.startswith(ALERTS)]
        settings = load(self.daemon.config, {})
        tortured = recovered(self.daemon.state, settings, self.truth.names)
        lost = self._broker_lost()
        self.verdict.broker_lost = sum(map(len, lost.values()))
        should = checker.resolve(self.truth, tortured.counted, self.verdict, lost)
        reference = uninterrupted(should, settings, self.daemon.state)
        checker.compare(tortured, reference, heard, self.verdict)
        if "Traceback" in self.daemon.log():
            self.verdict.add("P6", "all", "the log has a traceback")
        return self.verdict

    def stop(self) -> None:
        """Stop the daemon the clean way, in time."""
        began_s = time.monotonic()
        status = self.daemon.stop()
        if status != 0 or time.monotonic() - began_s > STOP_S:
            took_s = time.monotonic() - began_s
            self.verdict.add("P1", "all", f"SIGTERM ended with status {status} after {took_s:.1f} s")

    def _broker_lost(self) -> dict[str, set[int]]:
        """Readings that the daemon never acknowledged on the wire: what a killed broker took with it."""
        if self.tap is None:
            return {}
        lost = {}
        for name in self.truth.names:
            topic, payload = topic_of(name), self.truth.fleet.payload
            first = range(0, len(self.truth.copies(name)), size_of(name))
            lost[name] = {
                n
                for k in first
                if (topic, payload(name, k)) not in self.tap.acked
                for n in range(k, k + size_of(name))
            }
        return lost
