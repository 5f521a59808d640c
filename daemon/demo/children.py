"""The programs a demo starts beside itself: the embedded broker and the real daemon.

Neither ends by the terminal's Ctrl-C, so that the demo decides when they stop: the broker's own loop never
looks at it, the daemon gets a session of its own. Both are stopped through their process, never by name.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

from iotcore import Broker

from gruard.daemon.errors import GruardError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gruard.daemon.demo.feeds import Pause

LOOPBACK = "127.0.0.1"
_STOP_S = 15.0
_LARGEST_PAYLOAD_BYTES = 262_144
_COUNT = re.compile(r'^gruard_readings_total\{[^}]*?result="([^"]*)"[^}]*\} ([0-9.e+]+)$', re.MULTILINE)

_DAEMON_CONFIG = """\
version = 1
[mqtt]
host = {host}
port = {mqtt_port}
client_id = "gruard-demo"
protocol = "3.1.1"
[[sources]]
name = "pumps"
topic = "demo/pumps/{{device}}"
time = "ts"
[[sources]]
name = "hosts"
topic = "demo/hosts/{{device}}"
time = "ts"
[model]
warmup_readings = {warmup_readings}
[alerts]
base = "gruard"
[http]
listen = "{http_listen}"
[log]
format = "json"
[state]
directory = {state}
"""


def free_port() -> int:
    """A TCP port on loopback that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


class BrokerChild:
    """An MQTT 3.1.1 broker on a free loopback port, from construction until `stop`.

    Its listener for MQTT 5 is left alone: a message with properties that reaches a 3.1.1 subscriber makes
    the broker drop that subscriber without a word (rumqttd 0.20).

    Raises:
        GruardError: it does not come up.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self._broker = Broker(self.port, LOOPBACK, max_payload_size=_LARGEST_PAYLOAD_BYTES)
        try:
            self._broker.start()
        except (OSError, RuntimeError) as error:
            raise GruardError(f"the embedded broker does not start: {error}") from error

    def stop(self) -> None:
        """End it and free its port."""
        self._broker.stop()


class DaemonChild:
    """`gruard run` as its own process, with its state, log and configuration in `directory`.

    Raises:
        GruardError: from `wait_healthy`, when it ends or stays silent.
    """

    def __init__(self, directory: Path, mqtt_port: int, warmup_readings: int) -> None:
        self._listen = f"{LOOPBACK}:{free_port()}"
        self._log = directory / "gruard.log"
        state = directory / "state"
        state.mkdir(exist_ok=True)
        config = directory / "gruard.toml"
        config.write_text(
            _DAEMON_CONFIG.format(
                host=json.dumps(LOOPBACK),
                mqtt_port=mqtt_port,
                warmup_readings=warmup_readings,
                http_listen=self._listen,
                state=json.dumps(str(state)),
            ),
            encoding="utf-8",
        )
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 (our own program, our own file)
                [sys.executable, "-m", "gruard.daemon", "run", "-c", str(config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                # settings of a real daemon on this machine must not reach the demo's
                env={name: value for name, value in os.environ.items() if not name.startswith("GRUARD_")},
            )

    @property
    def exit_status(self) -> int | None:
        """The exit status once the daemon has ended; None while it runs."""
        return self._process.poll()

    def healthy(self) -> bool:
        """Whether `/healthz` answers 200."""
        return self._get("/healthz") is not None

    def wait_healthy(self, timeout_s: float, clock: Callable[[], float], pause: Pause) -> None:
        """Wait until the daemon answers."""
        deadline = clock() + timeout_s
        while not self.healthy():
            if self.exit_status is not None:
                raise GruardError(f"the daemon ended with {self.exit_status}: {self.last_words()}")
            if clock() > deadline:
                raise GruardError(f"the daemon is silent after {timeout_s:.0f} s: {self.last_words()}")
            if pause(0.1):
                raise GruardError("stopped before the daemon was up")

    def counted(self) -> dict[str, int] | None:
        """Readings by result from `/metrics`; None when it does not answer."""
        page = self._get("/metrics")
        if page is None:
            return None
        return readings_by_result(page)

    def last_words(self) -> str:
        """The last lines of the daemon's log."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return " / ".join(lines[-3:]) or "its log is empty"

    def stop(self) -> int | None:
        """Ask it to end, insist after a while; its exit status."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        return self._process.returncode

    def _get(self, path: str) -> str | None:
        try:
            with urllib.request.urlopen(f"http://{self._listen}{path}", timeout=2) as answer:
                text: str = answer.read().decode()
                return text
        except (urllib.error.URLError, OSError, ValueError):
            return None


def readings_by_result(page: str) -> dict[str, int]:
    """Count of readings for each result on a metrics page."""
    return {result: int(float(count)) for result, count in _COUNT.findall(page)}


def decoded_object(payload: bytes) -> dict[str, Any]:
    """A published JSON object; empty when it is none."""
    try:
        document = json.loads(payload)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}
