"""The MQTT edge against brokers that break the protocol, and links that break."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Self

import pytest
from scripted_brokers import BUSY, SCENARIOS, HostileBroker
from support_mqtt import HOST, hurry, wait_until

from gruard.daemon.edges.broker import Broker, BrokerOptions

if TYPE_CHECKING:
    from gruard.daemon.edges.reconnect import Protocol

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


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_no_broker_can_stop_hang_or_deafen_the_edge(name: str, protocol: Protocol) -> None:
    """Whatever it does, the thread lives, does not spin, hears a good broker afterwards and stops in time."""
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
        hurry(broker, 0.02)
        broker.start()
        with Worker(broker) as worker:
            time.sleep(0.6)
            assert hostile.connections > 0
            assert broker.status().thread_alive
            assert time.monotonic() - broker.status().turned_s < 2.0
            if name not in BUSY:
                assert _cpu_s(broker) < 0.45
            hostile.behave()
            assert wait_until(lambda: b"good" in worker.payloads), broker.status()
            assert broker.status().revivals == 0
        began_s = time.monotonic()
        assert broker.stop(2.0)
        assert time.monotonic() - began_s < 2.0


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_stop_is_in_time_amid_the_worst(name: str, protocol: Protocol) -> None:
    """The end does not wait for the broker to become better."""
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
        broker.start()
        with Worker(broker):
            assert wait_until(lambda: hostile.connections)
            time.sleep(0.2)
            began_s = time.monotonic()
            assert broker.stop(2.0)
            assert time.monotonic() - began_s < 2.0
