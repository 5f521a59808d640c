"""`gruard simulate`, and what the demo says when its extra packages are missing."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import pytest

from gruard.daemon.demo.children import LOOPBACK, BrokerChild, free_port
from gruard.daemon.demo.runner import simulate
from gruard.daemon.edges.broker import Publisher
from gruard.daemon.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def port() -> Iterator[int]:
    child = BrokerChild()
    try:
        yield child.port
    finally:
        child.stop()


def test_simulate_publishes_a_fleet_whose_event_times_end_now(port: int) -> None:
    """Every reading reaches the broker, and event times never run ahead of the wall clock."""
    received: list[tuple[str, float, float]] = []
    complete = threading.Event()

    def note(topic: str, payload: bytes) -> None:
        received.append((topic, json.loads(payload)["ts"], time.time()))
        if len(received) == 80:
            complete.set()

    with Publisher(LOOPBACK, port, "watch") as watcher:
        watcher.subscribe("demo/pumps/#", note)
        sent = simulate(LOOPBACK, port, pumps=2, speed=20, duration_s=2, faults=False, seed=1)
        assert complete.wait(10)

    assert sent == len(received) == 80
    assert {topic for topic, _, _ in received} == {"demo/pumps/pump-01", "demo/pumps/pump-02"}
    assert all(event_s <= arrival_s for _, event_s, arrival_s in received)
    assert received[-1][2] - received[-1][1] < 30


def test_simulate_tells_when_it_breaks_which_pump(port: int, capsys: pytest.CaptureFixture[str]) -> None:
    """With faults the truth is printed first: one line per kind with device and interval in UTC."""
    simulate(LOOPBACK, port, pumps=4, speed=200, duration_s=0.5, faults=True, seed=1)
    lines = capsys.readouterr().out.splitlines()

    assert [line.split(" on ")[0] for line in lines] == [
        "dry running",
        "bearing wear",
        "stuck sensor",
        "blocked outlet",
    ]
    assert all("pump-0" in line and " from 20" in line and line.endswith("Z") for line in lines)


def test_simulate_says_when_there_is_no_broker() -> None:
    """Without a broker it raises the error that the command line turns into exit 75."""
    with pytest.raises(BrokerError, match="cannot be reached"):
        simulate(LOOPBACK, free_port(), pumps=1, speed=1, duration_s=1, faults=False, seed=1)


@pytest.mark.parametrize("missing", ["iotcore", "psutil"])
def test_demo_names_the_extra_that_is_missing(missing: str) -> None:
    """Without the demo's packages `simulate` imports all the same, and the demo says what to install."""
    program = f"""
import sys
sys.modules[{missing!r}] = None
from gruard.daemon.demo.runner import run_demo, simulate
from gruard.daemon.errors import GruardError
try:
    run_demo(seconds=1)
except GruardError as error:
    print(error)
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert ended.stdout == f"the demo needs {missing}: pip install 'gruard[demo]'\n"
