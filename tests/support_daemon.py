"""The real daemon as a child process, for tests that talk to it from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any, Self

from support_mqtt import free_port, wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CONFIG = """
version = 1
[mqtt]
port = {mqtt_port}
client_id = "gruard-test"
[[sources]]
name = "plant"
topic = "plant/{{device}}"
time = "ts"
[[sources]]
name = "raw"
topic = "raw/{{device}}"
[[sources]]
name = "single"
topic = "single/{{device}}/{{field}}"
decoder = "scalar"
[model]
hidden = 8
warmup_readings = {warmup}
[train]
nice = 10
[alerts]
update_every = "30s"
[http]
listen = "127.0.0.1:{http_port}"
[state]
directory = "{state}"
checkpoint_every = "1s"
[log]
format = "json"
"""


class Daemon:
    """`gruard run` with a state directory that outlives it; stopped by pid."""

    def __init__(self, folder: Path, mqtt_port: int, *, warmup: int = 400, config: str = CONFIG) -> None:
        self.state = folder / "state"
        self.http_port = free_port()
        self.config = folder / "gruard.toml"
        self.config.write_text(
            config.format(mqtt_port=mqtt_port, http_port=self.http_port, state=self.state, warmup=warmup)
        )
        self._log = folder / "gruard.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, *, ready: bool = True, environ: Mapping[str, str] | None = None) -> Self:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gruard.daemon", "run", "-c", str(self.config)],
                stdout=log,
                stderr=log,
                env={**os.environ, **(environ or {})},
            )
        answers = (
            (lambda: self.get("/readyz")[0] == 200) if ready else (lambda: self.get("/healthz")[0] == 200)
        )
        try:
            assert wait_until(answers, 30), self.log()
        except BaseException:
            self.__exit__()  # nobody else ends a process that never became ready
            raise
        return self

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the end; returns the exit status."""
        assert self._process is not None
        if self.alive:
            self._process.send_signal(number)
        status = self._process.wait(30)
        self._process = None
        return status

    def get(self, path: str) -> tuple[int, str]:
        url = f"http://127.0.0.1:{self.http_port}{path}"
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def metric(self, name: str) -> float:
        """The value of one series, written as on the page: `name{label="x"}`."""
        for line in self.get("/metrics")[1].splitlines():
            if line.startswith(f"{name} "):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"no series {name}")

    def settled(self, received: int, timeout_s: float = 90.0) -> bool:
        """Wait until so many readings came, not counting those that came again, and each has its result."""

        def done() -> bool:
            again = self.metric('gruard_readings_total{result="duplicate"}')
            heard = self.metric("gruard_readings_received_total")
            return heard - again == received and heard == self.accounted()

        return wait_until(done, timeout_s)

    def accounted(self) -> float:
        results = ("scored", "duplicate", "rejected", "shed")
        return sum(self.metric(f'gruard_readings_total{{result="{result}"}}') for result in results)

    def log(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command with this daemon's configuration."""
        command = [sys.executable, "-m", "gruard.daemon", *arguments, "-c", str(self.config)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    def devices(self) -> dict[str, dict[str, Any]]:
        done = self.run("devices", "list", "--json")
        assert done.returncode == 0, done.stderr
        return {row["device"]: row for row in json.loads(done.stdout)}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
