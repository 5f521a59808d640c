"""The wall clock of a running daemon is set: seconds, hours and decades away, and back again.

GRUARD_TORTURE_EVERY=1 sets it by every amount instead of some.
"""

from __future__ import annotations

import json
import shutil
import time
from typing import TYPE_CHECKING

import pytest
from support_daemon import CONFIG, Daemon
from support_engine import plant_rows
from support_mqtt import Mosquitto, ScriptedBroker, Subscriber, wait_until
from support_shim import EVERY, Shim, running

from gruard.daemon.edges.broker import Publisher
from gruard.daemon.edges.database import open_readonly

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np

pytestmark = [pytest.mark.broker, pytest.mark.slow, pytest.mark.alone]

HOUR_S, YEAR_S = 3600.0, 365.25 * 86_400
#: Known to the source of the same name: one device tells its time, the other one leaves that to the daemon.
DEVICES = {"pump-1": "plant", "fan-1": "raw"}
FIELDS = ("f0", "f1", "f2")
GAP_S = 0.02
WARMUP = 100
AGEING = CONFIG.replace("[state]", '[state]\nmax_age = "1d"')
RECONNECTING = CONFIG.replace("[mqtt]", "[mqtt]\nkeepalive_s = 5")


def shift_to(year: int) -> float:
    """How far from now the first moment of a year is."""
    return (year - 1970) * YEAR_S - time.time()


JUMPS = {
    "+1s": 1.0,
    "-1s": -1.0,
    "+1h": HOUR_S,
    "-1h": -HOUR_S,
    "+10y": 10 * YEAR_S,
    "-10y": -10 * YEAR_S,
    "1970": shift_to(1970),
    "2038": shift_to(2038),
}
decades = pytest.mark.parametrize("name", ["+10y", "-10y"] if EVERY else ["-10y"])


class Feed:
    """Both devices, row after row at a steady pace; event times are true whatever the daemon's clock says."""

    def __init__(self, port: int, rows: np.ndarray) -> None:
        self._port, self._rows = port, iter(rows)
        self.sent = 0

    def send(self, count: int, ahead_s: float = 0.0) -> None:
        """Publish so many rows of each device, stamped `ahead_s` ahead of now."""
        with Publisher("127.0.0.1", self._port, "feed") as publisher:
            for _ in range(count):
                values = {f"f{k}": float(v) for k, v in enumerate(next(self._rows))}
                for device, source in DEVICES.items():
                    stamped = {"ts": time.time() + ahead_s, **values} if source == "plant" else values
                    publisher.publish(f"{source}/{device}", json.dumps(stamped).encode(), qos=1)
                self.sent += len(DEVICES)
                time.sleep(GAP_S)
            publisher.wait_all(10)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state directory of a daemon whose models are in charge of both devices."""
    folder = tmp_path_factory.mktemp("trained")
    with Mosquitto(folder) as broker, Daemon(folder, broker.port, warmup=WARMUP) as daemon:
        feed = Feed(broker.port, plant_rows(1000))
        feed.send(WARMUP + 50)
        for _ in range(240):
            if ready_devices(daemon) == len(DEVICES):
                break
            feed.send(2)  # a round begins with a reading
            time.sleep(0.5)
        assert ready_devices(daemon) == len(DEVICES), daemon.log()
        daemon.stop()
    return folder / "state"


def ready_devices(daemon: Daemon) -> float:
    return daemon.metric('gruard_devices{state="ready"}')


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    with Shim(tmp_path) as made:
        yield made


@pytest.fixture
def daemon(tmp_path: Path, mosquitto: Mosquitto, trained: Path, shim: Shim) -> Iterator[Daemon]:
    """A daemon with trained devices, whose clock the shim can move."""
    clocked = Daemon(tmp_path, mosquitto.port, warmup=WARMUP)
    shutil.copytree(trained, clocked.state)
    with running(clocked, shim.environ):
        yield clocked


def checkpoint_lsn(daemon: Daemon) -> int:
    """The oldest place in the journal at which a device's saved state stands."""
    with open_readonly(daemon.state) as reader:
        return min(row.lsn for row in reader.checkpoints())


def stored(daemon: Daemon) -> int:
    """Readings of which the history can still be read."""
    with open_readonly(daemon.state) as reader:
        return sum(len(reader.history(device, FIELDS, 1_000_000).time_s) for device in DEVICES)


def opened(lines: list[str]) -> dict[str, int]:
    """Alerts opened, by device."""
    found = [json.loads(line.split(" ", 1)[1]) for line in lines]
    names = [alert["device"] for alert in found if alert["state"] == "opened"]
    return {name: names.count(name) for name in names}


def scored(daemon: Daemon) -> float:
    return daemon.metric('gruard_readings_total{result="scored"}')


@pytest.mark.parametrize("name", JUMPS if EVERY else ["+1s", "-1h", "+10y", "1970"])
def test_clock_set_while_running_disturbs_nothing(
    daemon: Daemon, mosquitto: Mosquitto, shim: Shim, name: str
) -> None:
    """Scores, states, commits and checkpoints go on, no device alerts twice, and so it is when set right."""
    feed = Feed(mosquitto.port, plant_rows(1400)[1000:])
    counts = {name: row["readings"] for name, row in daemon.devices().items()}
    with Subscriber(mosquitto.port, "gruard/alerts/#") as heard:
        feed.send(30)
        assert daemon.settled(feed.sent), daemon.log()
        before = opened(heard.lines)
        for offset in (JUMPS[name], 0.0):
            shim.clock_offset_s = offset
            lsn = checkpoint_lsn(daemon)
            feed.send(60)
            assert daemon.settled(feed.sent), daemon.log()
            assert wait_until(lambda lsn=lsn: checkpoint_lsn(daemon) > lsn + 60, 5), "no checkpoint"  # type: ignore[misc]
            assert ready_devices(daemon) == len(DEVICES)
        rejected = daemon.metric('gruard_readings_total{result="rejected"}')
        time.sleep(0.5)
        after = opened(heard.lines)
    # Event times more than `future_tolerance_s` ahead of a clock that has been set are refused by contract.
    assert rejected == (60 if name == "-1h" else 0), daemon.log()
    assert all(after.get(name, 0) - before.get(name, 0) <= 1 for name in DEVICES), after
    assert daemon.metric("gruard_mqtt_connected") == 1
    assert daemon.metric("gruard_mqtt_reconnects_total") == 0
    now = {name: row["readings"] for name, row in daemon.devices().items()}
    assert now["fan-1"] - counts["fan-1"] == 150
    assert now["pump-1"] - counts["pump-1"] == 150 - rejected
    assert daemon.stop() == 0
    assert "Traceback" not in daemon.log()


@pytest.mark.parametrize("names", [("-10y",), ("+10y", None)] if EVERY else [("+10y", None)])
def test_clock_put_back_arrival_times_tell_one_fault_from_the_next(
    daemon: Daemon, mosquitto: Mosquitto, shim: Shim, names: tuple[str | None, ...]
) -> None:
    """A device without event times is not only counted then: its faults still alert, each as its own."""
    rows = plant_rows(1700)[1000:]
    for start in (90, 390):
        rows[start : start + 30, 1] += 25.0
    feed = Feed(mosquitto.port, rows)
    with Subscriber(mosquitto.port, "gruard/alerts/fan-1") as heard:
        feed.send(30)
        for name in names:
            shim.clock_offset_s = 0.0 if name is None else JUMPS[name]
            feed.send(60 // len(names))
        feed.send(600)
        assert daemon.settled(feed.sent), daemon.log()
        time.sleep(0.5)
        alerts = [json.loads(line.split(" ", 1)[1]) for line in heard.lines]
    told = [(alert["id"], alert["state"]) for alert in alerts if alert["state"] != "updated"]
    assert [state for _, state in told] == ["opened", "resolved"] * (len(told) // 2)
    assert len(told) >= 4, told
    assert len({identity for identity, _ in told}) == len(told) // 2, told


@pytest.mark.parametrize("offset_s", [0.0, shift_to(1970)], ids=["clock set", "clock not set yet"])
def test_reading_stamped_in_the_future_does_not_block_those_after_it(
    daemon: Daemon, mosquitto: Mosquitto, shim: Shim, offset_s: float
) -> None:
    """One stamp ten years ahead costs that reading at most: the device goes on being scored."""
    feed = Feed(mosquitto.port, plant_rows(1400)[1000:])
    shim.clock_offset_s = offset_s
    feed.send(30)
    feed.send(1, ahead_s=10 * YEAR_S)
    shim.clock_offset_s = 0.0
    feed.send(30)
    assert daemon.settled(feed.sent), daemon.log()
    assert scored(daemon) >= feed.sent - 1, daemon.get("/metrics")[1]


def test_clock_put_forward_history_does_not_expire_at_once(
    tmp_path: Path, mosquitto: Mosquitto, trained: Path, shim: Shim
) -> None:
    """A clock that is wrong for a moment must not cost the history that `max_age` would keep."""
    daemon = Daemon(tmp_path, mosquitto.port, config=AGEING, warmup=WARMUP)
    shutil.copytree(trained, daemon.state)
    with running(daemon, shim.environ):
        kept = stored(daemon)
        feed = Feed(mosquitto.port, plant_rows(1400)[1000:])
        shim.clock_offset_s = JUMPS["+10y"]
        for _ in range(5):
            feed.send(20)
            time.sleep(1.0)
        shim.clock_offset_s = 0.0
        feed.send(20)
        assert daemon.settled(feed.sent), daemon.log()
        assert stored(daemon) == kept + feed.sent


@decades
def test_clock_set_connection_lives_on_and_comes_back(
    tmp_path: Path, mosquitto: Mosquitto, shim: Shim, name: str
) -> None:
    """The keep-alive goes on through two of its periods, and a broker that restarts is found again."""
    daemon = Daemon(tmp_path, mosquitto.port, config=RECONNECTING)
    with running(daemon, shim.environ):
        shim.clock_offset_s = JUMPS[name]
        time.sleep(8)
        assert daemon.metric("gruard_mqtt_reconnects_total") == 0, daemon.log()
        assert daemon.metric("gruard_mqtt_connected") == 1
        mosquitto.stop()
        assert wait_until(lambda: daemon.metric("gruard_mqtt_connected") == 0, 5)
        shim.clock_offset_s = 0.0
        mosquitto.start()
        assert wait_until(lambda: daemon.metric("gruard_mqtt_connected") == 1, 5), daemon.log()


@decades
def test_clock_set_silent_broker_is_given_up_after_the_usual_time(
    tmp_path: Path, shim: Shim, name: str
) -> None:
    """A broker that never answers CONNECT gets its ten seconds, however the clock is set meanwhile."""
    with ScriptedBroker(lambda _kind, _body: b"") as silent:
        daemon = Daemon(tmp_path, silent.port)
        with running(daemon, shim.environ, ready=False):
            assert wait_until(lambda: len(silent.packets) > 0)
            began = time.monotonic()
            shim.clock_offset_s = JUMPS[name]
            assert wait_until(lambda: silent.connections > 1, 20), daemon.get("/readyz")
            assert time.monotonic() - began > 5
