"""The MQTT edge, and the whole daemon, before brokers that break the protocol."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest
from scripted_brokers import BUSY, SCENARIOS, HostileBroker
from support_daemon import Daemon
from support_mqtt import HOST, hurry, wait_until

from gruard.daemon.edges.broker import Broker, BrokerOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from gruard.daemon.edges.reconnect import Protocol
    from gruard.daemon.records import Message

SEED = 20


class Worker:
    """Takes, acknowledges and publishes all the time, as the daemon's worker does."""

    def __init__(self, broker: Broker) -> None:
        self.payloads: set[bytes] = set()
        self._broker = broker
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        broker = self._broker
        while not self._over.is_set():
            taken = broker.take(512, 0.02)
            self.payloads |= {message.payload for message in taken if len(message.payload) < 100}
            broker.ack(taken)
            broker.publish("out", b"alert", qos=1, retain=False)
            broker.publish("state", b"{}", qos=0, retain=True)
            broker.confirmed()
            broker.failed()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(10)
        assert not self._thread.is_alive()


def _cpu_s(broker: Broker) -> float:
    """CPU time of the network thread."""
    assert broker._thread is not None
    assert broker._thread.ident is not None
    return time.clock_gettime(time.pthread_getcpuclockid(broker._thread.ident))


both_protocols = pytest.mark.parametrize("protocol", ["5", "3.1.1"])


@contextmanager
def _facing(name: str, protocol: Protocol, longest_s: float) -> Iterator[tuple[HostileBroker, Broker]]:
    """A started edge before a hostile broker; stopped within 2 s."""
    with HostileBroker(SCENARIOS[name], SEED) as hostile:
        options = BrokerOptions(
            host=HOST,
            port=hostile.port,
            client_id="gruard",
            will_topic="gruard/status",
            will_payload=b"offline",
            protocol=protocol,
        )
        broker = Broker(options, [("a", 1)], time.time, time.monotonic)
        hurry(broker, longest_s)
        broker.start()
        yield hostile, broker
        began_s = time.monotonic()
        assert broker.stop(2.0)
        assert time.monotonic() - began_s < 2.0


@both_protocols
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_broker_can_stop_hang_or_deafen_the_edge(name: str, protocol: Protocol) -> None:
    """Whatever it does: the thread lives, does not spin, ends in time, and hears a good broker afterwards."""
    with _facing(name, protocol, 0.02) as (hostile, broker), Worker(broker) as worker:
        time.sleep(0.6)
        assert hostile.connections > 0
        assert broker.status().thread_alive
        assert time.monotonic() - broker.status().turned_s < 2.0
        if name not in BUSY:
            assert _cpu_s(broker) < 0.45
        hostile.behave()
        assert wait_until(lambda: b"good" in worker.payloads), broker.status()
        assert broker.status().revivals == 0


@both_protocols
@pytest.mark.parametrize("name", SCENARIOS)
def test_stop_is_in_time_amid_the_worst(name: str, protocol: Protocol) -> None:
    """The end does not wait for the broker to become better, nor for the worker to rest."""
    with _facing(name, protocol, 30.0) as (hostile, broker), Worker(broker):
        assert wait_until(lambda: hostile.connections)
        time.sleep(0.2)


@pytest.mark.slow
@both_protocols
@pytest.mark.parametrize(
    ("name", "connections"),
    [
        ("closes at every byte", 120),
        ("disconnects with every code", 260),
        ("refuses with every code", 260),
        ("flips a bit", 300),
        ("sends garbage later", 300),
    ],
)
def test_every_byte_code_and_bit_leaves_the_edge_alive(
    name: str, connections: int, protocol: Protocol
) -> None:
    """Each end of a stream, each reason code, many a broken bit: the same thread survives all of them."""
    with _facing(name, protocol, 0.001) as (hostile, broker), Worker(broker) as worker:
        assert wait_until(lambda: hostile.connections >= connections, 90), hostile.connections
        hostile.behave()
        assert wait_until(lambda: b"good" in worker.payloads), broker.status()
        assert (broker.status().thread_alive, broker.status().revivals) == (True, 0)


@both_protocols
def test_packet_over_the_limit_arrives_cut_short_and_does_not_stop_the_next(protocol: Protocol) -> None:
    """32 MiB cost a quarter of a MiB here, and the message is acknowledged like any other."""
    with _facing("sends a huge packet", protocol, 30.0) as (_, broker):
        taken: list[Message] = []
        assert wait_until(lambda: taken.extend(broker.take(10, 0.05)) or len(taken) == 2)
        huge, following = taken
        assert 200_000 < len(huge.payload) < 262_144
        assert (following.payload, following.packet_id) == (b"1", 2)
        broker.ack(taken)
        assert wait_until(lambda: not broker._mailbox._outgoing)
        assert (broker.status().generation, broker.status().stale_acks) == (1, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_daemon_before_a_hostile_broker_neither_spins_nor_hangs(name: str, tmp_path: Path) -> None:
    """The whole process answers, keeps its CPU time, and ends within 5 s of SIGTERM with status 0."""
    with HostileBroker(SCENARIOS[name], SEED) as hostile:
        daemon = Daemon(tmp_path, hostile.port)
        try:
            daemon.start(ready=False)
            assert wait_until(lambda: hostile.connections)
            began_s, before_s = time.monotonic(), _process_cpu_s(daemon.pid)
            time.sleep(2.0)
            assert daemon.get("/healthz")[0] == 200
            if name not in BUSY:
                assert _process_cpu_s(daemon.pid) - before_s < 0.5 * (time.monotonic() - began_s)
            stopping_s = time.monotonic()
            assert daemon.stop() == 0, daemon.log()
            assert time.monotonic() - stopping_s < 5.0
        finally:
            daemon.__exit__()


def _process_cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
