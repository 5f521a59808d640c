"""The MQTT edge over links that break: cut, half open, lossy, slow."""

from __future__ import annotations

import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support_links import Cable, Relay
from support_mqtt import HOST, Mosquitto, wait_until

from gruard.daemon.edges.broker import Broker, BrokerOptions, Publisher

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gruard.daemon.records import Message

pytestmark = pytest.mark.alone

KEEPALIVE_S = 2
NOTICED_S = 2 * KEEPALIVE_S + 1.0
BACK_S = 5.0


@contextmanager
def _running(host: str, port: int, **changes: Any) -> Iterator[Broker]:
    """A broker edge with the waits it has in earnest."""
    options = BrokerOptions(
        host=host,
        port=port,
        client_id="gruard",
        will_topic="gruard/status",
        will_payload=b"offline",
        keepalive_s=KEEPALIVE_S,
        **changes,
    )
    broker = Broker(options, [("plant/#", 1)], time.time, time.monotonic)
    broker.start()
    try:
        assert wait_until(lambda: broker.status().connected), broker.status()
        token = broker.publish("settled", b"", qos=1, retain=False)
        assert wait_until(lambda: token in broker.confirmed())
        yield broker
    finally:
        assert broker.stop(2.0)


def _take(broker: Broker, count: int, timeout_s: float) -> list[Message]:
    messages: list[Message] = []

    def take() -> bool:
        taken = broker.take(100, 0.02)
        broker.ack(taken)
        messages.extend(taken)
        return len(messages) >= count

    wait_until(take, timeout_s)
    return messages


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.parametrize("cut_s", [1.0, 3.0, 7.0, 12.0])
@pytest.mark.parametrize("way", ["unplug", "swallow"])
def test_cut_is_noticed_and_the_link_used_again_in_time(tmp_path: Path, way: str, cut_s: float) -> None:
    """However the cable fails: noticed within two keep-alives, back 5 s after it, and nothing is missing."""
    with Cable() as cable:
        mosquitto = Mosquitto(tmp_path, host=cable.far, within=cable.far_end)
        with mosquitto, _running(cable.far, mosquitto.port) as broker:

            def publish(*payloads: bytes) -> None:
                target = ["-h", cable.far, "-p", str(mosquitto.port), "-t", "plant/pump", "-q", "1", "-l"]
                command = [*cable.far_end, "mosquitto_pub", *target]
                subprocess.run(command, input=b"\n".join(payloads) + b"\n", check=True, timeout=30)

            publish(b"before")
            assert [message.payload for message in _take(broker, 1, 10)] == [b"before"]
            cut = time.monotonic()
            cable.unplug() if way == "unplug" else cable.swallow()
            publish(b"1", b"2", b"3")
            if cut_s > NOTICED_S:
                assert wait_until(lambda: not broker.status().connected, NOTICED_S)
            time.sleep(max(0.0, cut + cut_s - time.monotonic()))
            cable.plug() if way == "unplug" else cable.deliver()
            whole_again = time.monotonic()
            waiting = [b"1", b"2", b"3"]

            def all_came() -> bool:
                for message in _take(broker, 1, 0.05):
                    if (
                        message.payload in waiting
                    ):  # `before` may come again, were its acknowledgement cut off
                        assert message.payload == waiting.pop(0)
                return not waiting

            assert wait_until(all_came, 2 * BACK_S)
            assert time.monotonic() - whole_again <= BACK_S


@pytest.mark.broker
@pytest.mark.slow
def test_half_open_connection_is_given_up_and_made_anew(mosquitto: Mosquitto) -> None:
    """A connection that passes nothing and never ends is left in time; what was open comes again."""
    with Relay(mosquitto.port) as relay, _running(HOST, relay.port) as broker:
        with Publisher(HOST, mosquitto.port, "sensor") as sensor:
            sensor.publish("plant/pump", b"1", qos=1)
            sensor.wait_all(10)
            assert wait_until(lambda: broker.status().inbox == 1)
            relay.hold.set()
            sensor.publish("plant/pump", b"2", qos=1)
            sensor.wait_all(10)
        assert wait_until(lambda: not broker.status().connected, NOTICED_S)
        assert "it stopped answering" in str(broker.status().last_error)
        relay.hold.clear()
        messages = _take(broker, 3, BACK_S + 2)
        fresh = [message for message in messages if message.generation == 2]
        assert [message.payload for message in fresh] == [b"1", b"2"]
        assert fresh[0].duplicate


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.parametrize(("delay_s", "loss"), [(0.0, 0.05), (0.5, 0.0), (0.5, 0.05)])
def test_slow_and_lossy_link_carries_everything_once(
    mosquitto: Mosquitto, delay_s: float, loss: float
) -> None:
    """Half a second of delay and 5 % of loss cost time, and no reading, connection or confirmation."""
    with (
        Relay(mosquitto.port, delay_s=delay_s, loss=loss, seed=20) as relay,
        _running(HOST, relay.port) as broker,
        Publisher(HOST, mosquitto.port, "sensor") as sensor,
    ):
        for number in range(300):
            sensor.publish("plant/pump", b"%d" % number, qos=1)
            time.sleep(0.01)
        sensor.wait_all(10)
        tokens = [broker.publish("alerts", b"x", qos=1, retain=False) for _ in range(20)]
        messages = _take(broker, 300, 20)
        assert [message.payload for message in messages] == [b"%d" % number for number in range(300)]
        assert not any(message.duplicate or message.backlog for message in messages)
        confirmed: list[int] = []
        assert wait_until(lambda: confirmed.extend(broker.confirmed()) or len(confirmed) == 20)
        assert confirmed == tokens
        assert broker.status().generation == 1


@pytest.mark.broker
@pytest.mark.slow
def test_backlog_over_a_slow_link_is_told_apart(tmp_path: Path) -> None:
    """A round trip of a second between windows of messages is not taken for the end of what waited."""
    with Mosquitto(tmp_path, ["max_queued_messages 0"]) as mosquitto:
        with _running(HOST, mosquitto.port):
            pass
        with Publisher(HOST, mosquitto.port, "sensor") as sensor:
            for number in range(200):
                sensor.publish("plant/pump", b"%d" % number, qos=1)
            sensor.wait_all(10)
            with (
                Relay(mosquitto.port, delay_s=0.5) as relay,
                _running(HOST, relay.port, receive_maximum=40) as broker,
            ):
                messages = _take(broker, 200, 30)
                assert len(messages) == 200
                assert all(message.backlog for message in messages)
                time.sleep(2.5)
                sensor.publish("plant/pump", b"live", qos=1)
                (live,) = _take(broker, 1, 10)
                assert not live.backlog
