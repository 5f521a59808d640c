"""The processes of a demo: the embedded broker, the burn, and how the daemon's page is read."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import paho.mqtt.client as mqtt
import psutil
import pytest
from paho.mqtt.enums import CallbackAPIVersion
from prometheus_client import CollectorRegistry

from gruard.daemon.demo.burn import Burn
from gruard.daemon.demo.children import LOOPBACK, BrokerChild, decoded_object, readings_by_result
from gruard.daemon.edges.broker import Publisher
from gruard.daemon.edges.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def broker() -> Iterator[BrokerChild]:
    child = BrokerChild()
    try:
        yield child
    finally:
        child.stop()


@contextmanager
def session(port: int, received: list[bytes]) -> Iterator[None]:
    """A persistent session that stands in for the daemon's, subscribed to the feeds."""
    ready, gone = threading.Event(), threading.Event()
    client = mqtt.Client(CallbackAPIVersion.VERSION2, "daemon", clean_session=False, protocol=mqtt.MQTTv311)
    client.on_message = lambda _client, _, message: received.append(message.payload)
    client.on_subscribe = lambda *_: ready.set()
    client.on_disconnect = lambda *_: gone.set()
    client.on_connect = lambda *_: client.subscribe("demo/#", qos=1)
    client.connect(LOOPBACK, port)
    client.loop_start()
    try:
        assert ready.wait(10)
        yield
    finally:
        client.disconnect()
        gone.wait(10)
        client.loop_stop()


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children()}


def test_broker_keeps_readings_for_a_session_that_is_away(broker: BrokerChild) -> None:
    """What is published while the daemon is away or pauses waits in its session, in order and complete."""
    received: list[bytes] = []
    with session(broker.port, received):
        pass
    with Publisher(LOOPBACK, broker.port, "feed") as publisher:
        for number in range(500):
            publisher.publish("demo/pumps/pump-01", str(number).encode(), qos=1)
        publisher.wait_all(10)
    assert received == []

    with session(broker.port, received):
        deadline = time.monotonic() + 10
        while len(received) < 500 and time.monotonic() < deadline:
            time.sleep(0.02)

    assert received == [str(number).encode() for number in range(500)]


def test_broker_keeps_retained_messages(broker: BrokerChild) -> None:
    """Status and device states are retained, so a watcher that comes later sees them."""
    seen = threading.Event()
    with Publisher(LOOPBACK, broker.port, "early") as early:
        early.publish("gruard/status", b"online", qos=1, retain=True)
        early.wait_all(10)
    with Publisher(LOOPBACK, broker.port, "later") as later:
        later.subscribe("gruard/status", lambda topic, payload: seen.set() if payload == b"online" else None)
        assert seen.wait(10)


def test_broker_listens_on_loopback_only(broker: BrokerChild) -> None:
    """Nobody on the network can reach a demo."""
    listening = {
        connection.laddr
        for child in psutil.Process().children()
        for connection in child.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }

    assert listening == {("127.0.0.1", broker.port)}


def test_broker_outlives_ctrl_c_and_ends_when_stopped() -> None:
    """Ctrl-C reaches every process of the terminal; the broker stays until the demo stops it."""
    before = children()
    child = BrokerChild()
    (pid,) = children() - before
    try:
        os.kill(pid, signal.SIGINT)
        time.sleep(0.3)
        with Publisher(LOOPBACK, child.port, "probe") as probe:
            probe.publish("demo/x", b"1", qos=1)
            probe.wait_all(10)
    finally:
        child.stop()

    assert not psutil.pid_exists(pid)


@pytest.mark.alone
def test_burn_keeps_its_cores_busy_and_ends_by_itself() -> None:
    """Each child spends CPU time and fills its memory while it lives, and nothing is left afterwards."""
    before = children()
    burn = Burn(1.5, processes=1, filled_bytes=100 * 2**20)
    try:
        (pid,) = children() - before
        time.sleep(1.2)
        spent = psutil.Process(pid).cpu_times()
        assert psutil.Process(pid).memory_info().rss > 100 * 2**20
        assert burn.alive
        assert spent.user + spent.system > 0.3
        deadline = time.monotonic() + 20
        while burn.alive and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not burn.alive
    finally:
        burn.stop()

    assert children() == before


def test_burn_stops_at_once_when_told() -> None:
    """A demo that ends early leaves no burning core behind."""
    before = children()
    burn = Burn(60, 2, 2)
    assert len(children() - before) == 2
    burn.stop()

    assert not burn.alive
    assert children() == before


def test_burn_ends_with_the_process_that_started_it() -> None:
    """If the demo is killed its burning children notice and end, long before their time."""
    program = """
import psutil, time
from gruard.daemon.demo.burn import Burn
burn = Burn(60, 1, 1)
time.sleep(1)
print(psutil.Process().children()[0].pid, flush=True)
time.sleep(60)
"""
    starter = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert starter.stdout is not None
    pid = int(starter.stdout.readline())
    starter.kill()
    starter.wait()
    starter.stdout.close()
    deadline = time.monotonic() + 20
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)

    assert not _runs(pid)


def _runs(pid: int) -> bool:
    """Whether a process runs; an orphan that nobody has collected yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_readings_by_result_reads_the_daemons_own_page() -> None:
    """The counts come out of the page that the metrics edge renders, result by result."""
    metrics = Metrics(CollectorRegistry(), version="1")
    metrics.readings("scored", 1_234_567)
    metrics.readings("rejected", 3)

    assert readings_by_result(metrics.render().decode()) == {
        "scored": 1_234_567,
        "duplicate": 0,
        "rejected": 3,
        "shed": 0,
    }


@pytest.mark.parametrize("payload", [b"", b"online", b"[1]", b"\xff\xfe", b"3"])
def test_decoded_object_is_empty_for_anything_else(payload: bytes) -> None:
    """What is no JSON object is taken as an empty one and raises nothing."""
    assert decoded_object(payload) == {}
    assert decoded_object(json.dumps({"device": "x"}).encode()) == {"device": "x"}
