"""What is wrong is seen within a second, said on every channel, and mended where it can be."""

from __future__ import annotations

import dataclasses
import json
import socket
import time
import urllib.request
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from support_engine import BUDGET, SOURCE, plant_rows, readings_of
from support_mqtt import free_port, wait_until

from gruard.daemon import supervision
from gruard.daemon.announcer import Announcer
from gruard.daemon.commands import Commands
from gruard.daemon.core.engine import Engine, EngineOptions
from gruard.daemon.edges.broker import Broker, BrokerOptions
from gruard.daemon.edges.database import open_database
from gruard.daemon.edges.metrics import Metrics
from gruard.daemon.edges.notify import Notifier
from gruard.daemon.errors import GruardError
from gruard.daemon.pipeline import Pipeline, TrainingSettings
from gruard.daemon.supervision import Supervision

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Ward:
    """Everything that supervision looks at, with a broker that is not there."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        database = stack.enter_context(open_database(folder, now_s=0.0))
        self.pipeline = Pipeline(
            Engine(EngineOptions((SOURCE,), BUDGET)),
            database,
            folder,
            TrainingSettings(every_s=None),
            base="gruard",
            wall=time.time,
            monotonic=time.monotonic,
        )
        options = BrokerOptions("127.0.0.1", free_port(), "gruard", "gruard/status", b"offline")
        self.broker = Broker(options, [("plant/+", 1)], time.time, time.monotonic)
        self.broker.start()
        stack.callback(self.broker.stop, 2.0)
        self.metrics = Metrics(version="test")
        self.heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        stack.callback(self.heard.close)
        self.heard.bind(str(folder / "notify"))
        announcer = Announcer(self.broker, self.pipeline, "gruard", time.time)
        notifier = Notifier({"NOTIFY_SOCKET": str(folder / "notify")})
        commands = Commands(self.pipeline, folder, "gruard", self.metrics)
        self.supervision = Supervision(
            self.pipeline, self.broker, announcer, self.metrics, notifier, commands
        )

    def series(self, name: str) -> float:
        page = self.metrics.render().decode().splitlines()
        return next(float(line.split()[1]) for line in page if line.startswith(f"gruard_{name} "))


@pytest.fixture
def ward(tmp_path: Path) -> Iterator[Ward]:
    with ExitStack() as stack:
        yield Ward(tmp_path, stack)


def test_look_held_disk_shows_everywhere(ward: Ward) -> None:
    """A disk that takes nothing is a reason, a gauge and a status, and goes with its cause."""
    ward.supervision.held = "no room"
    ward.supervision.look()
    assert "disk: no room" in ward.supervision.reasons
    assert ward.series("held") == 1
    assert ward.series("ready") == 0
    assert b"disk: no room" in ward.heard.recv(4096)
    ward.supervision.held = None
    ward.supervision.look()
    assert not any(reason.startswith("disk") for reason in ward.supervision.reasons)
    assert ward.series("held") == 0


def test_look_refused_subscription_is_a_reason_but_for_commands(
    ward: Ward, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may not hear a sensor is not ready; who may only not be told anything by people guards on."""
    known = ward.broker.status()
    for refused, told in ((("gruard/cmd/#",), []), (("gruard/cmd/#", "plant/+"), ["plant/+"])):
        status = dataclasses.replace(known, connected=True, last_error="refused", refused=refused)
        monkeypatch.setattr(ward.broker, "status", lambda status=status: status)
        ward.supervision.look()
        said = [reason for reason in ward.supervision.reasons if "refused" in reason]
        assert said == [f"broker: refused to subscribe us to {name}" for name in told]


def test_look_absent_broker_is_a_reason(ward: Ward) -> None:
    """Who cannot hear the sensors is not ready."""
    assert wait_until(lambda: ward.broker.status().last_error)
    ward.supervision.look()
    assert any(reason.startswith("broker: No connection") for reason in ward.supervision.reasons)


def test_look_counts_each_running_total_once(ward: Ward) -> None:
    """Totals that are kept elsewhere grow on the page by what they have grown, however often it is looked."""
    ward.pipeline.engine.gaps = 7
    ward.supervision.look()
    ward.supervision.look()
    assert ward.series("sequence_gaps_total") == 7
    ward.pipeline.engine.gaps = 9
    ward.supervision.look()
    assert ward.series("sequence_gaps_total") == 9


@pytest.mark.parametrize("step_s", [3600.0, -3600.0, 315_360_000.0])
def test_look_clock_that_is_set_is_noted_for_a_while(
    ward: Ward, monkeypatch: pytest.MonkeyPatch, step_s: float
) -> None:
    """A step of the wall clock is said and counted once, and the note goes by itself."""
    ward.supervision.look()
    assert ward.series("clock_steps_total") == 0
    real = time.time
    monkeypatch.setattr(supervision.time, "time", lambda: real() + step_s)
    ward.supervision.look()
    ward.supervision.look()
    assert f"clock: it was set by {step_s:+.0f} s" in ward.supervision.reasons
    assert ward.series("clock_steps_total") == 1
    monkeypatch.setattr(supervision, "CLOCK_NOTED_S", 0.0)
    ward.supervision.look()
    assert not any(reason.startswith("clock") for reason in ward.supervision.reasons)


def test_look_clock_that_was_never_set_is_a_reason(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """A board without a battery wakes up in 1970: event times cannot be judged there."""
    monkeypatch.setattr(supervision.time, "time", lambda: 1000.0)
    ward.supervision.look()
    assert "clock: it has not been set yet" in ward.supervision.reasons


def test_mend_dead_network_thread_is_replaced(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """F18: whatever ends the thread that reads, another one reads on; until then the daemon is not ready."""

    def die(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(ward.broker, "_pause", die)
        assert wait_until(lambda: not ward.broker.status().thread_alive, 20)
        ward.supervision.look()
        assert "broker: its thread has ended" in ward.supervision.reasons
    ward.supervision.mend()
    assert ward.broker.status().thread_alive
    assert ward.series("thread_restarts_total") == 1


def test_mend_hanging_network_thread_ends_the_process(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """F18: a thread that lives and does not move cannot be replaced: never alive but deaf."""
    real = time.monotonic
    monkeypatch.setattr(supervision.time, "monotonic", lambda: real() + supervision.DEAF_S + 2.0)
    ward.supervision.look()
    assert "broker: its thread hangs" in ward.supervision.reasons
    ward.supervision.mend()
    monkeypatch.setattr(supervision.time, "monotonic", lambda: real() + supervision.HOPELESS_S + 2.0)
    with pytest.raises(GruardError, match="hangs"):
        ward.supervision.mend()


def test_mend_dead_http_thread_is_replaced(ward: Ward) -> None:
    """F18: the port goes on answering."""
    with ExitStack() as stack:
        ward.supervision.serve(("127.0.0.1", 0), stack)
        server = ward.supervision._server
        assert server is not None
        assert server._server is not None
        url = f"http://127.0.0.1:{server.port}/metrics"
        server._server.shutdown()
        assert wait_until(lambda: not server.alive)
        ward.supervision.mend()
        with urllib.request.urlopen(url, timeout=5) as answer:
            assert b"gruard_thread_restarts_total 1.0" in answer.read()


def test_pages_say_what_is_the_matter(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    """/readyz has the reasons, and /healthz knows a loop that does not turn."""
    ward.supervision.held = "no room"
    ward.supervision.look()
    ready = ward.supervision._readiness()
    assert ready.status == 503
    assert "disk: no room" in json.loads(ready.body)["reasons"]
    assert ward.supervision._health().status == 200
    real = time.monotonic
    monkeypatch.setattr(supervision.time, "monotonic", lambda: real() + supervision.STUCK_S + 1.0)
    assert ward.supervision._health().status == 503


def test_look_shows_what_the_pipeline_holds(ward: Ward) -> None:
    """Devices, alerts and the journal's size come from what is, not from what was counted."""
    ward.pipeline.feed(readings_of("a", plant_rows(20)))
    while ward.pipeline.backlog:
        ward.pipeline.advance()
    ward.pipeline.commit()
    ward.supervision.look()
    assert ward.series('devices{state="warming"}') == 1
    assert ward.series("journal_bytes") > 10_000
    assert ward.series("outbox_pending") == 0
