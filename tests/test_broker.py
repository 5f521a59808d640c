"""The MQTT edge against a real broker, and against scripted ones for faults that a real one does not show."""

from __future__ import annotations

import random
import signal
import ssl
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from support_mqtt import (
    CONNACK,
    CONNECT,
    DISCONNECT,
    HOST,
    PUBACK,
    PUBLISH,
    SUBACK,
    SUBSCRIBE,
    Certificates,
    Mosquitto,
    ScriptedBroker,
    Subscriber,
    free_port,
    hurry,
    packet,
    publish,
    set_password,
    wait_until,
)

from gruard.daemon.edges import connection as connection_module
from gruard.daemon.edges.broker import Broker, BrokerOptions, Publisher, TlsOptions
from gruard.daemon.edges.connection import Connection
from gruard.daemon.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from gruard.daemon.edges.reconnect import Protocol
    from gruard.daemon.records import Message

both_protocols = pytest.mark.parametrize("protocol", ["5", "3.1.1"])

#: CONNACK (flags, reason 0, no properties) and SUBACK (packet id 1, no properties, QoS 1) that accept.
ACCEPT = packet(CONNACK, b"\0\0\0")
GRANT = packet(SUBACK, b"\0\1\0\1")


def _options(port: int, **changes: Any) -> BrokerOptions:
    base = BrokerOptions(
        host=HOST, port=port, client_id="gruard", will_topic="gruard/status", will_payload=b"offline"
    )
    return replace(base, **changes)


@contextmanager
def _running(
    options: BrokerOptions,
    *subscriptions: str,
    qos: int = 1,
    connected: bool = True,
    patience_s: float = 15.0,
) -> Iterator[Broker]:
    """A started broker edge, with quick retries, stopped afterwards."""
    broker = Broker(options, [(topic, qos) for topic in subscriptions], time.time, time.monotonic)
    hurry(broker)
    broker.start()
    try:
        if connected:
            assert wait_until(lambda: broker.status().connected, patience_s), broker.status()
            if subscriptions:
                _settle(broker)
        yield broker
    finally:
        assert broker.stop(10)


def _settle(broker: Broker) -> None:
    """Wait until the subscription stands: a publish of our own is answered after the SUBACK."""
    token = broker.publish("settled", b"", qos=1, retain=False)
    assert wait_until(lambda: token in broker.confirmed())


def _collect(broker: Broker, count: int, timeout_s: float = 10.0) -> list[Message]:
    """At least `count` messages, or what came in time."""
    messages: list[Message] = []
    wait_until(lambda: messages.extend(broker.take(1000, 0.05)) or len(messages) >= count, timeout_s)
    return messages


def _nothing_more(broker: Broker) -> bool:
    return broker.take(1000, 0.3) == []


def _said_goodbye(mosquitto: Mosquitto) -> bool:
    """Whether the broker has read all that we sent before we left: a quick return would cut that off."""
    return wait_until(lambda: "Client gruard disconnected." in mosquitto.log())


def _payloads(messages: list[Message]) -> list[bytes]:
    return [message.payload for message in messages]


def _numbers(start: int, stop: int) -> list[bytes]:
    return [b"%d" % number for number in range(start, stop)]


# what arrives


@pytest.mark.broker
@both_protocols
def test_messages_arrive_in_order_with_their_fields(
    mosquitto: Mosquitto, topic_prefix: str, protocol: Protocol
) -> None:
    """Topic, payload, arrival time, QoS, packet id and connection number are those of the message."""
    before_s = time.time()
    with _running(_options(mosquitto.port, protocol=protocol), f"{topic_prefix}/+") as broker:
        publish(mosquitto.port, f"{topic_prefix}/pump", *_numbers(0, 50))
        broker.ack(messages := _collect(broker, 10))
        while len(messages) < 50:
            more = _collect(broker, 1)
            assert more
            broker.ack(more)
            messages += more
        assert broker.status().protocol == protocol
    assert _payloads(messages) == _numbers(0, 50)
    assert {(m.topic, m.qos, m.retain, m.duplicate, m.generation) for m in messages} == {
        (f"{topic_prefix}/pump", 1, False, False, 1)
    }
    assert all(before_s <= message.received_s <= time.time() for message in messages)
    assert all(message.packet_id > 0 for message in messages)


@pytest.mark.broker
def test_qos_0_message_has_no_packet_id_and_is_not_acknowledged(
    mosquitto: Mosquitto, topic_prefix: str
) -> None:
    """An acknowledgement of a QoS 0 message is passed over, not counted as out of date."""
    with _running(_options(mosquitto.port), topic_prefix) as broker:
        publish(mosquitto.port, topic_prefix, b"x", qos=0)
        (message,) = _collect(broker, 1)
        broker.ack([message])
        _settle(broker)
        assert (message.qos, message.packet_id) == (0, 0)
        assert broker.status().stale_acks == 0


@pytest.mark.broker
def test_retained_replay_is_flagged_and_comes_once(mosquitto: Mosquitto, topic_prefix: str) -> None:
    """A stored copy is told from a live message, and a resumed session does not bring it again."""
    publish(mosquitto.port, topic_prefix, b"stored", options=["-r"])
    with _running(_options(mosquitto.port), topic_prefix) as broker:
        publish(mosquitto.port, topic_prefix, b"live", options=["-r"])
        messages = _collect(broker, 2)
        broker.ack(messages)
    assert [(m.payload, m.retain) for m in messages] == [(b"stored", True), (b"live", False)]
    assert _said_goodbye(mosquitto)
    with _running(_options(mosquitto.port), topic_prefix) as broker:
        assert _nothing_more(broker)


@pytest.mark.broker
def test_oversized_message_is_withheld_and_its_neighbours_arrive(
    mosquitto: Mosquitto, topic_prefix: str
) -> None:
    """A message over the announced packet limit costs neither memory nor the connection."""
    with _running(_options(mosquitto.port, max_packet_bytes=1024), topic_prefix) as broker:
        publish(mosquitto.port, topic_prefix, b"before", b"x" * 5000, b"after")
        messages = _collect(broker, 2)
        broker.ack(messages)
        assert _payloads(messages) == [b"before", b"after"]
        assert _nothing_more(broker)
        assert broker.status().generation == 1


@pytest.mark.broker
def test_full_inbox_sheds_qos_0_and_counts_it_but_keeps_qos_1(
    mosquitto: Mosquitto, topic_prefix: str
) -> None:
    """The newest QoS 0 messages are dropped at the capacity; QoS 1 goes beyond it."""
    with _running(_options(mosquitto.port, inbox_readings=10), topic_prefix) as broker:
        publish(mosquitto.port, topic_prefix, *_numbers(0, 30), qos=0)
        assert wait_until(lambda: broker.status().shed == 20), broker.status()
        publish(mosquitto.port, topic_prefix, *_numbers(30, 35))
        assert wait_until(lambda: broker.status().inbox == 15), broker.status()
        assert broker.status().inbox_capacity == 10
        assert _payloads(broker.take(100, 0)) == _numbers(0, 10) + _numbers(30, 35)


@pytest.mark.broker
def test_inbox_is_bounded_where_the_broker_sends_without_a_window(tmp_path: Path, topic_prefix: str) -> None:
    """With 3.1.1 and an unlimited window the rest stays with the broker; nothing is lost or turned round."""
    lines = ["max_inflight_messages 0", "max_queued_messages 10000"]
    with (
        Mosquitto(tmp_path, lines) as mosquitto,
        _running(
            _options(mosquitto.port, protocol="3.1.1", inbox_readings=10, keepalive_s=1), topic_prefix
        ) as broker,
    ):
        payloads = [b"%d %s" % (number, b"x" * 1000) for number in range(3000)]
        publish(mosquitto.port, topic_prefix, *payloads)
        assert wait_until(lambda: broker.status().inbox >= 20)
        time.sleep(0.3)
        assert broker.status().inbox < 100
        messages: list[Message] = []
        while more := broker.take(7, 2.0):
            broker.ack(more)
            messages += more
        assert _payloads(messages) == payloads
        assert broker.status().generation == 1


@pytest.mark.broker
def test_qos_2_publishes_come_again_when_not_acknowledged(mosquitto: Mosquitto, topic_prefix: str) -> None:
    """A subscription at QoS 2 is made at QoS 1, since paho's QoS 2 loses what was not yet committed."""
    options = _options(mosquitto.port)
    with _running(options, topic_prefix, qos=2) as broker:
        publish(mosquitto.port, topic_prefix, *_numbers(0, 6), qos=2)
        broker.ack(_collect(broker, 6)[:2])
    assert _said_goodbye(mosquitto)
    with _running(options, topic_prefix, qos=2) as broker:
        messages = _collect(broker, 4)
        assert _payloads(messages) == _numbers(2, 6)
        assert {(message.qos, message.duplicate) for message in messages} == {(1, True)}


# the session


@pytest.mark.broker
@both_protocols
def test_session_keeps_messages_while_the_daemon_is_away(
    mosquitto: Mosquitto, topic_prefix: str, protocol: Protocol
) -> None:
    """Ten messages published between two runs arrive, ten of ten, in order."""
    options = _options(mosquitto.port, protocol=protocol)
    with _running(options, topic_prefix) as broker:
        assert not broker.status().session_present
    publish(mosquitto.port, topic_prefix, *_numbers(0, 10))
    with _running(options, topic_prefix) as broker:
        assert _payloads(_collect(broker, 10)) == _numbers(0, 10)
        assert broker.status().session_present


@pytest.mark.broker
def test_sessions_are_counted_when_packet_ids_begin_anew(tmp_path: Path, topic_prefix: str) -> None:
    """A first connection without a session is number 1; a resumed one keeps it; a wiped one raises it."""
    with Mosquitto(tmp_path, ["persistence true"]) as mosquitto:
        with _running(_options(mosquitto.port), topic_prefix) as broker:

            def session_of_next() -> tuple[int, int]:
                publish(mosquitto.port, topic_prefix, b"x")
                (message,) = taken = _collect(broker, 1)
                broker.ack(taken)
                return message.generation, message.session

            assert session_of_next() == (1, 1)
            mosquitto.stop()
            mosquitto.start()
            assert wait_until(lambda: broker.status().generation == 2)
            assert session_of_next() == (2, 1)
            mosquitto.kill()
            (tmp_path / "mosquitto.db").unlink()
            mosquitto.start()
            assert wait_until(lambda: broker.status().generation == 3)
            _settle(broker)
            assert session_of_next() == (3, 2)
            assert broker.status().session == 2
        with _running(_options(mosquitto.port), topic_prefix) as broker:
            assert broker.status().session == 0


@pytest.mark.broker
@both_protocols
def test_what_waited_while_we_were_away_is_a_backlog_and_what_follows_is_not(
    tmp_path: Path, topic_prefix: str, protocol: Protocol
) -> None:
    """However slow the worker, all that waited is marked, duplicates too; live messages are not."""
    options = _options(0, protocol=protocol, receive_maximum=50)
    with Mosquitto(tmp_path, ["max_queued_messages 0"]) as mosquitto:
        options = replace(options, port=mosquitto.port)
        with _running(options, topic_prefix) as broker:
            publish(mosquitto.port, topic_prefix, *_numbers(0, 10))
            first = _collect(broker, 10)
            assert not any(message.backlog for message in first)
            broker.ack(first[:5])
        assert _said_goodbye(mosquitto)
        publish(mosquitto.port, topic_prefix, *_numbers(10, 600))
        with _running(options, topic_prefix) as broker:
            messages: list[Message] = []
            sizes = random.Random(20)
            while more := broker.take(sizes.randrange(1, 40), 2.0):
                time.sleep(0.005)  # a commit
                broker.ack(more)
                messages += more
            assert _payloads(messages) == _numbers(5, 600)
            assert all(message.backlog for message in messages)
            assert [message.duplicate for message in messages[:5]] == [True] * 5
            publish(mosquitto.port, topic_prefix, b"live")
            (live,) = _collect(broker, 1)
            assert not live.backlog


@pytest.mark.broker
def test_backlog_ends_under_a_steady_stream(tmp_path: Path, topic_prefix: str) -> None:
    """Live messages without a pause do not hide that the broker has caught up."""
    with Mosquitto(tmp_path, ["max_queued_messages 0"]) as mosquitto:
        options = _options(mosquitto.port)
        with _running(options, topic_prefix):
            pass
        assert _said_goodbye(mosquitto)
        publish(mosquitto.port, topic_prefix, *_numbers(0, 1000))
        over = threading.Event()

        def stream() -> None:
            with Publisher(HOST, mosquitto.port, "stream") as sensor:
                while not over.wait(0.001):
                    sensor.publish(topic_prefix, b"live", qos=1)

        streaming = threading.Thread(target=stream)
        streaming.start()
        with _running(options, topic_prefix) as broker:
            messages: list[Message] = []

            def live_at_last() -> bool:
                taken = broker.take(512, 0.01)
                broker.ack(taken)
                messages.extend(taken)
                return bool(messages) and not messages[-1].backlog

            assert wait_until(live_at_last)
            over.set()
            streaming.join(10)
    waited = [message for message in messages if message.payload != b"live"]
    assert _payloads(waited) == _numbers(0, 1000)
    assert all(message.backlog for message in waited)
    flags = [message.backlog for message in messages]
    assert flags == sorted(flags, reverse=True)


@pytest.mark.broker
@both_protocols
def test_unacknowledged_messages_come_again_as_duplicates(
    mosquitto: Mosquitto, topic_prefix: str, protocol: Protocol
) -> None:
    """What was not acknowledged comes again under the same packet ids, marked DUP; the rest does not."""
    options = _options(mosquitto.port, protocol=protocol)
    with _running(options, topic_prefix) as broker:
        publish(mosquitto.port, topic_prefix, *_numbers(0, 10))
        first = _collect(broker, 10)
        broker.ack(first[:4])
    assert _said_goodbye(mosquitto)
    with _running(options, topic_prefix) as broker:
        again = _collect(broker, 6)
        assert [(m.payload, m.packet_id) for m in again] == [(m.payload, m.packet_id) for m in first[4:]]
        assert all(message.duplicate for message in again)
        assert _nothing_more(broker)


@pytest.mark.broker
def test_acknowledgements_given_just_before_stop_reach_the_broker(
    mosquitto: Mosquitto, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stop sends what it was given first, even what came after the network thread last looked."""
    options = _options(mosquitto.port)
    between_turns, stopped = threading.Event(), threading.Event()
    whole_turn = Connection._turn

    def turn_and_wait(connection: Connection, *arguments: Any) -> None:
        whole_turn(connection, *arguments)
        between_turns.set()
        assert stopped.wait(10)

    with _running(options, topic_prefix) as broker:
        publish(mosquitto.port, topic_prefix, *_numbers(0, 15))
        messages = _collect(broker, 15)
        monkeypatch.setattr(Connection, "_turn", turn_and_wait)
        broker.ack(messages[:4])
        assert between_turns.wait(10)
        broker.ack(messages[4:9])
        broker._stopping.set()
        stopped.set()
    monkeypatch.undo()
    assert _said_goodbye(mosquitto)
    with _running(options, topic_prefix) as broker:
        assert _payloads(_collect(broker, 6)) == _numbers(9, 15)
        assert _nothing_more(broker)


@pytest.mark.broker
def test_receive_maximum_holds_messages_back_until_acknowledged(
    mosquitto: Mosquitto, topic_prefix: str
) -> None:
    """Exactly as many as allowed come without an acknowledgement, and those behind them after it."""
    # How many come after it is the broker's affair: mosquitto 2.0.11 then sends more than the maximum.
    with _running(_options(mosquitto.port, receive_maximum=5), topic_prefix) as broker:
        publish(mosquitto.port, topic_prefix, *_numbers(0, 12))
        messages = _collect(broker, 5)
        assert _payloads(messages) == _numbers(0, 5)
        assert _nothing_more(broker)
        while len(messages) < 12:
            broker.ack(messages[-5:])
            more = _collect(broker, 1)
            assert more
            messages += more
        assert _payloads(messages) == _numbers(0, 12)


@pytest.mark.broker
def test_acknowledgements_leave_in_the_order_of_arrival(mosquitto: Mosquitto, topic_prefix: str) -> None:
    """One given early waits for those before it, so that the broker's window never opens too far."""
    with _running(_options(mosquitto.port, receive_maximum=3), topic_prefix) as broker:
        publish(mosquitto.port, topic_prefix, *_numbers(0, 6))
        first, second, third = _collect(broker, 3)
        broker.ack([third, second])
        assert _nothing_more(broker)
        broker.ack([first])
        assert _payloads(_collect(broker, 3)) == _numbers(3, 6)
        assert broker.status().stale_acks == 0


@pytest.mark.broker
def test_second_acknowledgement_of_one_message_is_counted_and_not_sent(
    mosquitto: Mosquitto, topic_prefix: str
) -> None:
    """A packet id that the broker has given to a newer message is not acknowledged through the older one."""
    options = _options(mosquitto.port, receive_maximum=1)
    with _running(options, topic_prefix) as broker:
        publish(mosquitto.port, topic_prefix, *_numbers(0, 2))
        (first,) = _collect(broker, 1)
        broker.ack([first])
        (second,) = _collect(broker, 1)
        broker.ack([replace(first, packet_id=second.packet_id)])
        assert wait_until(lambda: broker.status().stale_acks == 1)
    assert _said_goodbye(mosquitto)
    with _running(options, topic_prefix) as broker:
        assert _payloads(_collect(broker, 1)) == [b"1"]


@pytest.mark.broker
def test_acknowledgements_of_an_ended_connection_are_dropped(mosquitto: Mosquitto, topic_prefix: str) -> None:
    """A broker that lost its sessions gives old packet ids to new messages: late acks must not hit those."""
    options = _options(mosquitto.port)
    with _running(options, topic_prefix) as broker:
        publish(mosquitto.port, topic_prefix, *_numbers(0, 5))
        old = _collect(broker, 5)
        mosquitto.kill()
        mosquitto.start()
        assert wait_until(lambda: broker.status().generation == 2)
        _settle(broker)
        publish(mosquitto.port, topic_prefix, *_numbers(5, 10))
        new = _collect(broker, 5)
        assert [m.packet_id for m in new] == [m.packet_id for m in old]
        broker.ack(old)
        assert wait_until(lambda: broker.status().stale_acks == 5)
        assert not broker.status().session_present
    with _running(options, topic_prefix) as broker:
        assert _payloads(_collect(broker, 5)) == _numbers(5, 10)


# coming and going


@pytest.mark.broker
def test_broker_restart_is_survived(mosquitto: Mosquitto, topic_prefix: str) -> None:
    """The link says what is wrong, comes back by itself, and messages flow again."""
    with _running(_options(mosquitto.port), topic_prefix) as broker:
        mosquitto.stop()
        assert wait_until(lambda: "connection refused" in str(broker.status().last_error))
        assert not broker.status().connected
        mosquitto.start()
        assert wait_until(lambda: broker.status().connected)
        _settle(broker)
        publish(mosquitto.port, topic_prefix, b"again")
        assert _payloads(_collect(broker, 1)) == [b"again"]
        status = broker.status()
        assert (status.last_error, status.reconnects, status.thread_alive) == (None, 1, True)


@pytest.mark.broker
def test_broker_absent_at_start_is_found_later(tmp_path: Path) -> None:
    """Start neither waits nor fails; the connection is made when the broker appears."""
    mosquitto = Mosquitto(tmp_path)
    with _running(_options(mosquitto.port), connected=False) as broker:
        assert wait_until(lambda: broker.status().last_error is not None)
        assert broker.status().last_error == (
            f"No connection to the broker at {HOST}:{mosquitto.port}: connection refused."
        )
        with mosquitto:
            assert wait_until(lambda: broker.status().connected)


@pytest.mark.broker
def test_silent_broker_is_noticed_and_left(mosquitto: Mosquitto) -> None:
    """A broker that hangs with the connection open is given up after the keep-alive, and found again."""
    with _running(_options(mosquitto.port, keepalive_s=1)) as broker:
        mosquitto.signal(signal.SIGSTOP)
        try:
            assert wait_until(lambda: not broker.status().connected, 8)
            assert broker.status().last_error == (
                f"Lost the broker at {HOST}:{mosquitto.port}: it stopped answering."
            )
        finally:
            mosquitto.signal(signal.SIGCONT)
        assert wait_until(lambda: broker.status().connected)
        assert broker._policy.thrown_out == 0, "a dead link is no broker that throws us out"


@pytest.mark.broker
def test_wrong_password_is_named_and_tried_again(tmp_path: Path) -> None:
    """A refused login is a clear sentence without the secret, and heals when the broker learns it."""
    passwords = tmp_path / "passwords"
    set_password(passwords, "gateway", "right")
    lines = ["allow_anonymous false", f"password_file {passwords}"]
    with Mosquitto(tmp_path, lines) as mosquitto:
        typed = "wr0ng"
        options = _options(mosquitto.port, username="gateway", password=typed)
        with _running(options, connected=False) as broker:
            assert wait_until(lambda: mosquitto.log().count("not authorised") >= 2), mosquitto.log()
            status = broker.status()
            assert status.last_error is not None
            assert "refused client 'gruard' (Not authorized)" in status.last_error
            assert typed not in f"{status} {options}"
            mosquitto.stop()
            set_password(passwords, "gateway", typed)
            mosquitto.start()
            assert wait_until(lambda: broker.status().connected)


@pytest.mark.broker
def test_last_will_is_published_and_kept_when_the_process_is_killed(mosquitto: Mosquitto) -> None:
    """A daemon that vanishes is reported offline by the broker, also to those who come later."""
    program = (
        "import sys, time\n"
        "from gruard.daemon.edges.broker import Broker, BrokerOptions\n"
        "options = BrokerOptions('127.0.0.1', int(sys.argv[1]), 'gruard', 'gruard/status', b'offline')\n"
        "broker = Broker(options, [], time.time)\n"
        "broker.start()\n"
        "while not broker.status().connected: time.sleep(0.01)\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    daemon = subprocess.Popen([sys.executable, "-c", program, str(mosquitto.port)], stdout=subprocess.PIPE)
    with daemon, Subscriber(mosquitto.port, "gruard/status", "%p retained %r") as watcher:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == b"up\n"
        daemon.kill()
        assert watcher.wait_for(1) == ["offline retained 0"]
    with Subscriber(mosquitto.port, "gruard/status", "%p retained %r") as late:
        assert late.wait_for(1) == ["offline retained 1"]


@pytest.mark.broker
def test_stop_does_not_set_off_the_last_will(mosquitto: Mosquitto) -> None:
    """A clean stop leaves the last word to the service."""
    with Subscriber(mosquitto.port, "gruard/status") as watcher:
        with _running(_options(mosquitto.port)) as broker:
            broker.publish("gruard/status", b"bye", qos=1, retain=True)
        watcher.wait_for(1)
        time.sleep(0.2)
        assert watcher.lines == ["gruard/status bye"]


def test_fallback_to_the_embedded_broker_that_closes_on_mqtt_5() -> None:
    """A broker that knows only 3.1.1 and closes without a word is used with 3.1.1."""
    iotcore = pytest.importorskip("iotcore", reason="needs the demo extra (iotcore)")
    port = free_port()
    with iotcore.Broker(port=port, listen=HOST), _running(_options(port), "sensors/+") as broker:
        assert broker.status().protocol == "3.1.1"
        with Publisher(HOST, port, "sensor") as sensor:
            sensor.publish("sensors/pump", b"7", qos=1)
            sensor.wait_all(10)
        assert _payloads(_collect(broker, 1)) == [b"7"]


@pytest.mark.parametrize("refusal", [b"\0\x84\0", b"\0\x01"], ids=["as MQTT 5", "as MQTT 3"])
def test_fallback_when_the_version_is_refused_by_name(refusal: bytes) -> None:
    """Both ways of saying that MQTT 5 is not spoken lead to 3.1.1 with a kept session."""

    def reply(kind: int, body: bytes) -> bytes:
        if kind != CONNECT:
            return b""
        return packet(CONNACK, refusal) if body[6] == 5 else packet(CONNACK, b"\0\0")

    with ScriptedBroker(reply) as scripted, _running(_options(scripted.port)) as broker:
        assert broker.status().protocol == "3.1.1"
        connects = [body for kind, body in scripted.packets if kind == CONNECT]
        assert [body[6] for body in connects] == [5, 4]
        assert not any(body[7] & 0x02 for body in connects)  # clean start, clean session


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def _tls_lines(certificates: Certificates, alternative: str) -> list[str]:
    certificate, key = certificates.issue("broker", alternative)
    return [
        f"cafile {certificates.authority}",
        f"certfile {certificate}",
        f"keyfile {key}",
        "require_certificate true",
    ]


@pytest.mark.broker
def test_tls_with_a_client_certificate_carries_messages(
    tmp_path: Path, topic_prefix: str, certificates: Certificates
) -> None:
    """Both sides prove who they are with certificates of one authority, and a burst arrives whole."""
    plain = free_port()
    lines = [*_tls_lines(certificates, f"IP:{HOST}"), f"listener {plain} {HOST}", "max_queued_messages 0"]
    certificate, key = certificates.issue("gateway", "DNS:gateway.test")
    tls = TlsOptions(ca_file=certificates.authority, cert_file=certificate, key_file=key)
    with (
        Mosquitto(tmp_path, lines) as mosquitto,
        _running(_options(mosquitto.port, tls=tls), topic_prefix) as broker,
    ):
        publish(plain, topic_prefix, *_numbers(0, 400), qos=0)
        publish(plain, topic_prefix, b"x" * 200_000)
        messages = _collect(broker, 401)
        assert _payloads(messages) == [*_numbers(0, 400), b"x" * 200_000]


def test_packets_that_share_a_tls_record_are_all_read(certificates: Certificates) -> None:
    """What TLS has already decrypted is seen, although the socket itself has nothing more to read."""
    certificate, key = certificates.issue("broker", f"IP:{HOST}")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificate, key)
    message = packet(PUBLISH, b"\0\1a\0" + b"x")
    replies = {CONNECT: ACCEPT, SUBSCRIBE: GRANT + message}
    options = replace(_options(1), tls=TlsOptions(ca_file=certificates.authority))
    with ScriptedBroker(lambda kind, _: replies.get(kind, b""), server) as scripted:
        broker = Broker(replace(options, port=scripted.port), [("a", 1)], time.time)
        broker.start()
        assert _payloads(_collect(broker, 1, 5)) == [b"x"]
        assert broker.stop(5)


@pytest.mark.broker
@pytest.mark.parametrize(
    ("alternative", "with_client_certificate", "with_authority", "sentence"),
    [
        ("DNS:elsewhere.test", True, True, "its certificate is not accepted, IP address mismatch"),
        (f"IP:{HOST}", True, False, "its certificate is not accepted, self-signed certificate"),
        (f"IP:{HOST}", False, True, "it closed the connection instead of answering"),
    ],
    ids=["other host name", "unknown authority", "no client certificate"],
)
def test_tls_is_refused(
    tmp_path: Path,
    certificates: Certificates,
    alternative: str,
    with_client_certificate: bool,  # noqa: FBT001 - a column of the table
    with_authority: bool,  # noqa: FBT001 - a column of the table
    sentence: str,
) -> None:
    """A certificate for another name or of a strange authority, or none of ours, is the end of it."""
    certificate, key = certificates.issue("gateway", "DNS:gateway.test")
    tls = TlsOptions(
        ca_file=certificates.authority if with_authority else None,
        cert_file=certificate if with_client_certificate else None,
        key_file=key if with_client_certificate else None,
    )
    with (
        Mosquitto(tmp_path, _tls_lines(certificates, alternative)) as mosquitto,
        _running(_options(mosquitto.port, tls=tls), connected=False) as broker,
    ):
        assert wait_until(lambda: sentence in str(broker.status().last_error)), broker.status()
        assert broker.status().generation == 0


@pytest.mark.broker
def test_insecure_tls_takes_a_certificate_for_another_host(
    tmp_path: Path, certificates: Certificates
) -> None:
    """The explicit flag turns off the check of the host name, and nothing else."""
    certificate, key = certificates.issue("gateway", "DNS:gateway.test")
    tls = TlsOptions(certificates.authority, certificate, key, insecure=True)
    with Mosquitto(tmp_path, _tls_lines(certificates, "DNS:elsewhere.test")) as mosquitto:
        with _running(_options(mosquitto.port, tls=tls)):
            pass
        with _running(_options(mosquitto.port, tls=replace(tls, ca_file=None)), connected=False) as broker:
            assert wait_until(lambda: "is not accepted" in str(broker.status().last_error))


def test_missing_certificate_file_is_named(tmp_path: Path) -> None:
    """A path that cannot be read is a sentence with the path in it; the thread goes on."""
    tls = TlsOptions(ca_file=str(tmp_path / "none.crt"))
    with _running(_options(free_port(), tls=tls), connected=False) as broker:
        assert wait_until(lambda: "none.crt" in str(broker.status().last_error))
        assert broker.status().thread_alive


# publishing


@pytest.mark.broker
def test_publish_is_confirmed_and_carries_its_properties(mosquitto: Mosquitto, topic_prefix: str) -> None:
    """A QoS 1 token comes back once, and MQTT 5 readers see content type and schema."""
    form = "%t %p %q %C %P"
    with (
        Subscriber(mosquitto.port, topic_prefix, form, options=["-V", "mqttv5"]) as reader,
        _running(_options(mosquitto.port)) as broker,
    ):
        token = broker.publish(topic_prefix, b"{}", qos=1, retain=False, schema="gruard.alert/1")
        assert wait_until(lambda: broker.status().in_flight == 0)
        assert broker.confirmed() == [token]
        assert (broker.confirmed(), broker.failed()) == ([], [])
        broker.publish(topic_prefix, b"plain", qos=0, retain=False, content_type=None)
        assert reader.wait_for(2) == [
            f"{topic_prefix} {{}} 1 application/json schema:gruard.alert/1",
            f"{topic_prefix} plain 0  ",
        ]


@pytest.mark.broker
def test_many_publishes_and_readings_at_once_all_arrive(mosquitto: Mosquitto, topic_prefix: str) -> None:
    """Publishes go out at the pace of the answers while messages stream in, none lost and none doubled."""
    with (
        Subscriber(mosquitto.port, f"{topic_prefix}/out", "%p") as reader,
        _running(_options(mosquitto.port), f"{topic_prefix}/in") as broker,
    ):
        publish(mosquitto.port, f"{topic_prefix}/in", *_numbers(0, 500))
        messages: list[Message] = []
        waiting = _numbers(0, 300)
        tokens: set[int] = set()
        confirmed: list[int] = []

        def work() -> bool:
            taken = broker.take(64, 0.01)
            messages.extend(taken)
            broker.ack(taken)
            token: int | None = 0
            while waiting and token is not None:
                token = broker.publish(f"{topic_prefix}/out", waiting[0], qos=1, retain=False)
                if token is not None:
                    tokens.add(token)
                    del waiting[0]
            confirmed.extend(broker.confirmed())
            return len(confirmed) >= 300 and len(messages) >= 500

        assert wait_until(work)
        assert sorted(confirmed) == sorted(tokens)
        assert _payloads(messages) == _numbers(0, 500)
        assert [line.encode() for line in reader.wait_for(300)] == _numbers(0, 300)


def test_publish_before_a_connection_is_not_taken() -> None:
    """Nothing is queued for a broker that is not there, so nothing can be sent twice later."""
    with _running(_options(free_port()), connected=False) as broker:
        assert broker.publish("a", b"", qos=1, retain=False) is None
        assert broker.publish("a", b"", qos=0, retain=False) is None


def test_publishes_without_an_answer_are_limited_and_fail_with_the_connection() -> None:
    """The twenty-first is refused, and all twenty fail when the connection ends, unsent on the next."""
    with (
        ScriptedBroker(lambda kind, _: ACCEPT if kind == CONNECT else b"") as scripted,
        _running(_options(scripted.port)) as broker,
    ):

        def published() -> int:
            return sum(kind == PUBLISH for kind, _ in scripted.packets)

        tokens = [broker.publish("a", b"%d" % number, qos=1, retain=False) for number in range(20)]
        assert None not in tokens
        assert broker.publish("a", b"20", qos=1, retain=False) is None
        assert broker.publish("a", b"quick", qos=0, retain=False) is not None
        assert wait_until(lambda: published() == 21)
        scripted.send(packet(DISCONNECT, b"\x8b\0"))
        assert wait_until(lambda: broker.status().generation == 2)
        assert broker.failed() == tokens
        assert broker.publish("a", b"after", qos=0, retain=False) is not None
        assert wait_until(lambda: published() == 22)
        assert broker.confirmed() == []


def test_limits_named_by_the_broker_are_kept() -> None:
    """A broker may allow fewer open publishes and smaller packets; a larger one is an error, not a retry."""
    properties = b"\x21\0\3" + b"\x27\0\0\1\0"  # receive maximum 3, maximum packet size 256
    accept = packet(CONNACK, b"\0\0" + bytes([len(properties)]) + properties)
    with (
        ScriptedBroker(lambda kind, _: accept if kind == CONNECT else b"") as scripted,
        _running(_options(scripted.port)) as broker,
    ):
        assert all(broker.publish("a", b"", qos=1, retain=False) for _ in range(3))
        assert broker.publish("a", b"", qos=1, retain=False) is None
        with pytest.raises(BrokerError, match="takes 256 bytes"):
            broker.publish("a", b"x" * 256, qos=1, retain=False)


def test_refused_publish_is_named_at_once_and_failed_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PUBACK that says no is no confirmation, and whoever tries again does so at a slow pace."""
    monkeypatch.setattr(connection_module, "_REFUSED_S", 1.0)

    def reply(kind: int, body: bytes) -> bytes:
        if kind == PUBLISH:
            return packet(PUBACK, body[3:5] + b"\x87\0")
        return ACCEPT if kind == CONNECT else b""

    with ScriptedBroker(reply) as scripted, _running(_options(scripted.port)) as broker:
        tokens = [broker.publish("a", b"", qos=1, retain=False) for _ in range(20)]
        assert wait_until(lambda: broker.status().last_error is not None)
        assert broker.status().last_error == "The broker refused a message of ours (Not authorized)."
        assert broker.publish("a", b"", qos=1, retain=False) is None
        assert broker.failed() == []
        failed: list[int] = []
        assert wait_until(lambda: failed.extend(broker.failed()) or len(failed) == 20)
        assert failed == tokens
        assert broker.publish("a", b"", qos=1, retain=False) is not None


@pytest.mark.parametrize(("topic", "qos"), [("a/+", 0), ("#", 1), ("", 0), ("a", 2)])
def test_impossible_publish_is_a_mistake_of_the_caller(topic: str, qos: int) -> None:
    """Wildcards, an empty topic and QoS 2 are refused before anything is sent."""
    broker = Broker(_options(1), [], time.time)
    with pytest.raises(ValueError, match="publish"):
        broker.publish(topic, b"", qos=qos, retain=False)


# faults of the broker


@pytest.mark.parametrize(("patience_s", "keepalive_s"), [(0.05, 10), (10.0, 1)], ids=["ours", "keep-alive"])
def test_broker_that_never_answers_is_left_without_falling_back(
    monkeypatch: pytest.MonkeyPatch, patience_s: float, keepalive_s: int
) -> None:
    """Silence is named and tried again, and is not taken for a broker of the older version."""
    monkeypatch.setattr(connection_module, "_CONNACK_TIMEOUT_S", patience_s)
    with ScriptedBroker(lambda _kind, _: b"") as scripted:
        options = _options(scripted.port, keepalive_s=keepalive_s)
        with _running(options, connected=False) as broker:
            assert wait_until(lambda: len(scripted.packets) >= 3)
            assert broker.status().last_error == (
                f"No connection to the broker at {HOST}:{scripted.port}: it does not answer."
            )
            assert {body[6] for _, body in scripted.packets} == {5}


def test_refused_subscription_is_named() -> None:
    """An access rule that forbids a topic is visible, although the connection stands."""
    replies = {CONNECT: ACCEPT, SUBSCRIBE: packet(SUBACK, b"\0\1\0\x01\x87")}
    with ScriptedBroker(lambda kind, _: replies.get(kind, b"")) as scripted:
        broker = Broker(_options(scripted.port), [("open", 1), ("secret/#", 1)], time.time)
        broker.start()
        assert wait_until(lambda: broker.status().refused == ("secret/#",))
        assert broker.status().connected
        assert broker.status().last_error == (
            "The broker refused the subscription to secret/# (Not authorized)."
        )
        assert broker.stop(5)


def test_takeover_by_another_client_is_named() -> None:
    """Two clients under one id is a mistake that the status spells out."""
    replies = iter([ACCEPT, packet(SUBACK, b"\0\1\0\1") + packet(DISCONNECT, b"\x8e\0")])
    with ScriptedBroker(lambda _kind, _: next(replies, b"")) as scripted:
        broker = Broker(_options(scripted.port), [("a", 1)], time.time)
        broker.start()
        assert wait_until(lambda: "Session taken over" in str(broker.status().last_error))
        assert broker.stop(5)


def test_topic_that_is_not_text_is_handed_on_as_empty() -> None:
    """A broken topic cannot stop the stream: it fits no source and can be acknowledged like any other."""
    poison = packet(PUBLISH, b"\0\2\xff\xfe" + b"\0\7" + b"\0" + b"x", flags=2)
    replies = {CONNECT: ACCEPT, SUBSCRIBE: GRANT + poison}
    with ScriptedBroker(lambda kind, _: replies.get(kind, b"")) as scripted:
        broker = Broker(_options(scripted.port), [("a", 1)], time.time)
        broker.start()
        (message,) = _collect(broker, 1)
        assert (message.topic, message.payload, message.packet_id) == ("", b"x", 7)
        broker.ack([message])
        assert wait_until(lambda: (PUBACK, b"\0\7") in scripted.packets)
        assert broker.stop(5)


def test_random_bytes_from_the_broker_do_not_end_the_thread() -> None:
    """Whatever answers CONNECT, the network thread tries again."""
    rng = random.Random(20)

    def reply(_kind: int, _body: bytes) -> None:
        accept = rng.choice([b"", ACCEPT, ACCEPT + GRANT])
        scripted.send(accept + rng.randbytes(rng.randrange(1, 60)))

    with ScriptedBroker(reply) as scripted:
        broker = Broker(_options(scripted.port), [("a", 1)], time.time)
        hurry(broker, 0.001)
        broker.start()
        assert wait_until(lambda: scripted.connections >= 300, 15), broker.status()
        assert broker.status().thread_alive
        assert broker.stop(5)


@pytest.mark.broker
def test_fault_in_a_callback_ends_the_connection_not_the_thread(
    mosquitto: Mosquitto, topic_prefix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception while a message is taken in is logged, and the message comes again afterwards."""
    whole = connection_module.Message
    faults = [RuntimeError("injected")]

    def breaks_once(**fields: Any) -> Message:
        if faults:
            raise faults.pop()
        return whole(**fields)

    with _running(_options(mosquitto.port), topic_prefix) as broker:
        monkeypatch.setattr(connection_module, "Message", breaks_once)
        publish(mosquitto.port, topic_prefix, b"precious")
        (message,) = _collect(broker, 1)
        assert (message.payload, message.duplicate, message.generation) == (b"precious", True, 2)
        assert broker.status().thread_alive
        assert "injected" in caplog.text


# stopping


@pytest.mark.parametrize("answers", [b"", ACCEPT], ids=["never answers", "withholds PUBACK"])
def test_stop_is_quick_whatever_the_broker_withholds(answers: bytes) -> None:
    """A missing CONNACK or PUBACK does not hold up the end of the daemon."""
    with ScriptedBroker(lambda kind, _: answers if kind == CONNECT else b"") as scripted:
        broker = Broker(_options(scripted.port), [], time.time)
        broker.start()
        assert wait_until(lambda: scripted.packets)
        wait_until(lambda: broker.publish("a", b"x", qos=1, retain=False), 0.5)
        began_s = time.monotonic()
        assert broker.stop(8)
        assert time.monotonic() - began_s < 8
        assert not broker.status().connected


def test_broker_that_reads_nothing_costs_publishes_and_no_memory() -> None:
    """A full socket refuses further publishes, and stop gives up on it instead of waiting."""
    over = threading.Event()

    def reply(kind: int, _body: bytes) -> bytes:
        if kind == PUBLISH:
            over.wait(30)
        return ACCEPT if kind == CONNECT else b""

    with ScriptedBroker(reply) as scripted:
        broker = Broker(_options(scripted.port), [], time.time)
        broker.start()
        assert wait_until(lambda: broker.status().connected)
        payload = b"x" * 20_000
        tokens = [broker.publish("a", payload, qos=0, retain=False) for _ in range(5000)]
        assert tokens[0] is not None
        assert tokens[-1] is None
        assert broker.stop(8)
        over.set()


def test_stop_before_start_and_twice_does_nothing() -> None:
    """Stop may be called at any time."""
    broker = Broker(_options(1), [], time.time)
    assert broker.stop(1)
    assert not broker.status().thread_alive


# the small client of simulate and the demo


@pytest.mark.broker
def test_publisher_sends_and_receives(mosquitto: Mosquitto, topic_prefix: str) -> None:
    """Messages of either QoS are written before wait_all returns, and a subscription calls back in order."""
    received: list[tuple[str, bytes]] = []  # fewer than the broker queues (1,000) for a reader that is slow
    with (
        Publisher(HOST, mosquitto.port, "reader") as reader,
        Publisher(HOST, mosquitto.port, "sensor") as sensor,
    ):
        reader.subscribe(f"{topic_prefix}/#", lambda topic, payload: received.append((topic, payload)))
        for payload in _numbers(0, 900):
            sensor.publish(f"{topic_prefix}/a", payload, qos=1)
        sensor.wait_all(20)
        sensor.publish(f"{topic_prefix}/b", b"last", retain=True)
        sensor.wait_all(10)
        assert wait_until(lambda: len(received) == 901)
    assert received == [(f"{topic_prefix}/a", payload) for payload in _numbers(0, 900)] + [
        (f"{topic_prefix}/b", b"last")
    ]
    assert wait_until(lambda: "Client sensor disconnected." in mosquitto.log())
    with Subscriber(mosquitto.port, f"{topic_prefix}/b", "%p %r") as late:
        assert late.wait_for(1) == ["last 1"]


def test_publisher_names_an_unreachable_broker() -> None:
    """Nobody listening is a sentence with the address."""
    port = free_port()
    with (
        pytest.raises(BrokerError, match=f"{HOST}:{port} cannot be reached: connection refused"),
        Publisher(HOST, port, "sensor"),
    ):
        pass


@pytest.mark.broker
def test_publisher_names_a_refusal_and_a_loss(tmp_path: Path) -> None:
    """A refused login and a broker that goes away both end as a BrokerError, not as silence."""
    passwords = tmp_path / "passwords"
    set_password(passwords, "sensor", "right")
    with Mosquitto(tmp_path, ["allow_anonymous false", f"password_file {passwords}"]) as mosquitto:
        with (
            pytest.raises(BrokerError, match="refused the connection"),
            Publisher(HOST, mosquitto.port, "sensor", "sensor", "wrong"),
        ):
            pass
        with Publisher(HOST, mosquitto.port, "sensor", "sensor", "right") as sensor:
            sensor.publish("a", b"1", qos=1)
            sensor.wait_all(10)
            mosquitto.kill()
            assert wait_until(lambda: sensor._error is not None)
            with pytest.raises(BrokerError, match="closed the connection"):
                sensor.publish("a", b"2", qos=1)


def test_publisher_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that never answers ends every step with a sentence, and leaving does not hang."""
    monkeypatch.setattr(Publisher, "timeout_s", 0.2)
    replies = {CONNECT: packet(CONNACK, b"\0\0")}
    with ScriptedBroker(lambda kind, _: replies.get(kind, b"")) as scripted:
        with Publisher(HOST, scripted.port, "sensor") as sensor:
            sensor.publish("a", b"1", qos=1)
            with pytest.raises(BrokerError, match="did not take every message"):
                sensor.wait_all(0.2)
            with pytest.raises(BrokerError, match="did not answer a subscription"):
                sensor.subscribe("a", lambda _topic, _payload: None)
        replies.clear()
        with (
            pytest.raises(BrokerError, match="did not answer within"),
            Publisher(HOST, scripted.port, "sensor"),
        ):
            pass


@pytest.mark.broker
def test_publisher_reports_a_callback_that_fails(mosquitto: Mosquitto, topic_prefix: str) -> None:
    """An exception in the caller's callback comes out at the next call instead of ending a thread unseen."""

    def fails(_topic: str, payload: bytes) -> None:
        raise ValueError(payload.decode())

    with Publisher(HOST, mosquitto.port, "sensor") as sensor:
        sensor.subscribe(topic_prefix, fails)
        sensor.publish(topic_prefix, b"boom", qos=1)
        assert wait_until(lambda: sensor._error is not None)
        with pytest.raises(BrokerError, match="boom"):
            sensor.wait_all(10)


def test_publisher_names_a_refused_subscription() -> None:
    """A SUBACK that says no is an error, not silence."""
    replies = {CONNECT: packet(CONNACK, b"\0\0"), SUBSCRIBE: packet(SUBACK, b"\0\1\x80")}
    with (
        ScriptedBroker(lambda kind, _: replies.get(kind, b"")) as scripted,
        Publisher(HOST, scripted.port, "sensor") as sensor,
        pytest.raises(BrokerError, match="refused the subscription to secret/#"),
    ):
        sensor.subscribe("secret/#", lambda _topic, _payload: None)


def test_publisher_leaves_a_broker_that_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages under way are limited, too long a wait is named, and leaving a full socket does not hang."""
    monkeypatch.setattr(Publisher, "timeout_s", 0.2)
    over = threading.Event()
    sentences: list[str] = []

    def reply(kind: int, _body: bytes) -> bytes:
        if kind == PUBLISH:
            over.wait(30)
        return packet(CONNACK, b"\0\0") if kind == CONNECT else b""

    def flood() -> None:
        try:
            with Publisher(HOST, scripted.port, "sensor") as sensor:
                for _ in range(5000):
                    sensor.publish("a", b"x" * 20_000)
        except BrokerError as error:
            sentences.append(str(error))

    with ScriptedBroker(reply) as scripted:
        flooding = threading.Thread(target=flood, daemon=True)
        flooding.start()
        flooding.join(20)
        over.set()
    assert sentences == [f"The broker at {HOST}:{scripted.port} took no message within 0.2 s."]
