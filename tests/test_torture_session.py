"""The MQTT edge when its thread dies, its session or its rights vanish, or nobody takes what it reads."""

from __future__ import annotations

import logging
import random
import signal
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
    PINGREQ,
    PINGRESP,
    PUBLISH,
    SUBACK,
    SUBSCRIBE,
    Mosquitto,
    ScriptedBroker,
    hurry,
    packet,
    publish,
    set_password,
    wait_until,
)

from gruard.daemon.edges import broker as broker_module
from gruard.daemon.edges import connection as connection_module
from gruard.daemon.edges import subscriptions as subscriptions_module
from gruard.daemon.edges.broker import Broker, BrokerOptions, Publisher
from gruard.daemon.edges.connection import Connection
from gruard.daemon.edges.mailbox import Mailbox
from gruard.daemon.edges.reconnect import Reconnect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from gruard.daemon.edges.reconnect import Protocol
    from gruard.daemon.records import Message

both_protocols = pytest.mark.parametrize("protocol", ["5", "3.1.1"])
ACCEPT = packet(CONNACK, b"\0\0\0")


def _options(port: int, **changes: Any) -> BrokerOptions:
    base = BrokerOptions(
        host=HOST, port=port, client_id="gruard", will_topic="gruard/status", will_payload=b"offline"
    )
    return replace(base, **changes)


@contextmanager
def _running(options: BrokerOptions, *, hurried: bool = True) -> Iterator[Broker]:
    broker = Broker(options, [("plant/#", 1)], time.time, time.monotonic)
    if hurried:
        hurry(broker)
    broker.start()
    try:
        yield broker
    finally:
        assert broker.stop(2.0)


def _settled(broker: Broker) -> bool:
    """Wait until the newest connection is subscribed."""
    token: int | None = None

    def answered() -> bool:
        nonlocal token
        token = token or broker.publish("settled", b"", qos=1, retain=False)
        if token in broker.failed():
            token = None
        return token is not None and token in broker.confirmed()

    return wait_until(answered)


def _collect(broker: Broker, count: int, timeout_s: float = 10.0) -> list[Message]:
    messages: list[Message] = []
    wait_until(lambda: messages.extend(broker.take(1000, 0.05)) or len(messages) >= count, timeout_s)
    return messages


def _numbers(start: int, stop: int) -> list[bytes]:
    return [b"%d" % number for number in range(start, stop)]


# the network thread


PLACES = [
    (Connection, "__init__"),
    (Connection, "_connect"),
    (Connection, "_turn"),
    (Connection, "_read"),
    (Connection, "_send"),
    (Connection, "_on_message"),
    (Mailbox, "deliver"),
    (Mailbox, "close"),
    (Reconnect, "next_delay_s"),
    (Broker, "_pause"),
]


@pytest.mark.broker
@pytest.mark.parametrize("fault", [SystemExit, KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize(("owner", "name"), PLACES, ids=[name for _, name in PLACES])
def test_dead_network_thread_is_seen_and_replaced(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    name: str,
    fault: type[BaseException],
) -> None:
    """Wherever it dies, it shows within 5 s; the new one keeps session and counters and hears all."""
    whole: Callable[..., Any] = getattr(owner, name)
    armed = threading.Event()

    def dies(*arguments: Any, **named: Any) -> Any:
        if armed.is_set() and threading.current_thread().name == "gruard-broker":
            armed.clear()
            raise fault("injected")
        return whole(*arguments, **named)

    def no_log(*_: object) -> None:
        raise MemoryError  # else the loop logs a MemoryError and goes on, as it may

    monkeypatch.setattr(owner, name, dies)
    monkeypatch.setattr(broker_module._log, "exception", no_log)
    with (
        Mosquitto(tmp_path, ["persistence true"]) as mosquitto,
        _running(_options(mosquitto.port)) as broker,
    ):
        assert _settled(broker)
        publish(mosquitto.port, "plant/pump", *_numbers(0, 5))
        first = _collect(broker, 5)
        broker.ack(first[:2])
        wait_until(lambda: broker.status().in_flight == 0)
        armed.set()
        publish(mosquitto.port, "plant/pump", *_numbers(5, 10))
        broker.publish("alerts", b"x", qos=1, retain=False)
        if not wait_until(lambda: not armed.is_set(), 1.0):  # a place on the way out or in
            mosquitto.stop()
            mosquitto.start()
        assert wait_until(lambda: not broker.status().thread_alive, 5.0)
        dead = broker.status()
        assert not dead.connected
        assert "injected" in str(dead.last_error) or "MemoryError" in str(dead.last_error)
        offered = broker.publish("alerts", b"x", qos=1, retain=False)
        assert broker.revive()
        assert offered is None or offered in broker.failed()
        assert wait_until(lambda: broker.status().connected)
        assert _settled(broker)
        again = _collect(broker, 5)
        status = broker.status()
        assert (status.revivals, status.in_flight, status.session) == (1, 0, 1)
        assert status.generation >= 2
        assert set(_numbers(5, 10)) <= {message.payload for message in again}
        broker.ack(first[2:])
        assert wait_until(lambda: broker.status().stale_acks >= 3)


def test_network_thread_that_lives_or_is_to_end_is_not_replaced() -> None:
    """There is never a second one, and none after the stop."""
    with ScriptedBroker(lambda kind, _: ACCEPT if kind == CONNECT else b"") as scripted:
        broker = Broker(_options(scripted.port), [], time.time, time.monotonic)
        assert not broker.revive()
        broker.start()
        assert wait_until(lambda: broker.status().connected)
        assert not broker.revive()
        assert broker.stop(2.0)
        assert not broker.revive()
        assert broker.status().revivals == 0


def test_thread_that_cannot_be_replaced_now_is_replaced_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without threads or descriptors left the status says so, and the next call tries again."""
    with ScriptedBroker(lambda kind, _: ACCEPT if kind == CONNECT else b"") as scripted:
        with monkeypatch.context() as patch:
            patch.setattr(Broker, "_attempt", lambda *_: (_ for _ in ()).throw(SystemExit))
            broker = Broker(_options(scripted.port), [], time.time, time.monotonic)
            broker.start()
            assert wait_until(lambda: not broker.status().thread_alive)
        with monkeypatch.context() as patch:
            patch.setattr(
                broker_module, "Bell", lambda: (_ for _ in ()).throw(OSError(24, "Too many open files"))
            )
            assert not broker.revive()
            assert "cannot be started again" in str(broker.status().last_error)
        assert broker.revive()
        assert wait_until(lambda: broker.status().connected)
        assert broker.stop(2.0)


def test_network_thread_that_hangs_shows_by_its_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is alive and comes round no more: the age of its last turn tells, and stop does not wait for it."""
    hang = threading.Event()
    whole = Connection._read

    def hangs(connection: Connection, now: float) -> None:
        whole(connection, now)
        hang.wait(30)

    monkeypatch.setattr(Connection, "_read", hangs)
    with ScriptedBroker(lambda kind, _: ACCEPT if kind == CONNECT else b"") as scripted:
        broker = Broker(_options(scripted.port), [], time.time, time.monotonic)
        assert broker.status().turned_s > time.monotonic()
        broker.start()
        assert wait_until(lambda: time.monotonic() - broker.status().turned_s > 1.0, 5)
        assert broker.status().thread_alive
        assert not broker.stop(0.2)
        hang.set()
        assert broker.stop(5.0)


def test_idle_and_waiting_thread_comes_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quiet connection and a long wait between two attempts are no reason to take the thread for stuck."""
    monkeypatch.setattr(connection_module, "_CONNACK_TIMEOUT_S", 0.1)
    ages: list[float] = []

    def watch(broker: Broker) -> None:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            ages.append(time.monotonic() - broker.status().turned_s)
            time.sleep(0.05)

    with ScriptedBroker(lambda kind, _: ACCEPT if kind == CONNECT else b"") as scripted:
        broker = Broker(_options(scripted.port), [], time.time, time.monotonic)
        broker.start()
        watch(broker)
        assert broker.stop(2.0)
    with ScriptedBroker(lambda _kind, _: packet(CONNACK, b"\0\x87\0")) as refusing:
        broker = Broker(_options(refusing.port), [], time.time, time.monotonic)
        broker.start()
        watch(broker)
        assert refusing.connections == 1
        assert broker.stop(2.0)
    assert max(ages) < 1.2


# the session


@pytest.mark.broker
def test_wiped_session_costs_no_message_that_was_not_acknowledged(tmp_path: Path) -> None:
    """The broker forgets us amid acknowledgements and counts anew: no old one hits a new message."""
    rng = random.Random(20)
    for _ in range(6):
        with Mosquitto(tmp_path) as mosquitto:
            options = _options(mosquitto.port)
            with _running(options) as broker:
                assert _settled(broker)
                publish(mosquitto.port, "plant/pump", *_numbers(0, 20))
                old = _collect(broker, 20)
                killer = threading.Timer(rng.random() * 0.002, mosquitto.kill)
                killer.start()
                for message in old[: rng.randrange(20)]:
                    broker.ack([message])
                killer.join(10)
                assert wait_until(lambda link=broker: not link.status().connected)
                broker.ack(old[-5:])  # given while there is no connection
                mosquitto.start()
                assert wait_until(lambda link=broker: link.status().generation == 2)
                assert _settled(broker)
                assert broker.status().session == 2
                publish(mosquitto.port, "plant/pump", *_numbers(20, 40))
                new = _collect(broker, 20)
                assert {message.packet_id for message in new} <= {message.packet_id for message in old}
                before = broker.status().stale_acks
                broker.ack(old)
                assert wait_until(lambda link=broker, less=before: link.status().stale_acks == less + 20)
            assert wait_until(lambda server=mosquitto: "Client gruard disconnected." in server.log())
            with _running(options) as broker:
                again = _collect(broker, 20)
                assert [message.payload for message in again] == _numbers(20, 40)
                assert all(message.duplicate for message in again)


@pytest.mark.broker
@pytest.mark.slow
@both_protocols
def test_two_clients_with_one_id_do_not_storm(tmp_path: Path, protocol: Protocol) -> None:
    """Against a client that comes back at once: one reconnect in 5 s at most, and a plain word."""
    with Mosquitto(tmp_path) as mosquitto, _running(_options(mosquitto.port), hurried=True) as rival:
        assert wait_until(lambda: rival.status().connected)
        with _running(_options(mosquitto.port, protocol=protocol), hurried=False) as broker:
            assert wait_until(lambda: broker.status().generation == 1)
            began_s = time.monotonic()
            sentences = set()
            while time.monotonic() - began_s < 16:
                sentences.add(broker.status().last_error)
                time.sleep(0.05)
            assert 2 <= broker.status().generation <= 1 + 16 / 5
            assert any("nother client uses the id 'gruard'" in str(sentence) for sentence in sentences)
            assert "nother client uses the id 'gruard'" in str(broker.status().last_error)


def test_word_about_a_rival_stays_until_a_connection_has_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that has just begun proves nothing; one that stays does."""
    monkeypatch.setattr(connection_module, "_SETTLED_S", 1.0)
    takeover = packet(SUBACK, b"\0\1\0\1") + packet(DISCONNECT, b"\x8e\0")
    replies = iter([ACCEPT, takeover, ACCEPT, packet(SUBACK, b"\0\1\0\1")])
    with (
        ScriptedBroker(lambda _kind, _: next(replies, b"")) as scripted,
        _running(_options(scripted.port)) as broker,
    ):
        assert wait_until(lambda: broker.status().generation == 2)
        assert broker.status().last_error == (
            f"Another client uses the id 'gruard'. Lost the broker at {HOST}:{scripted.port}: "
            "it closed the connection (Session taken over)."
        )
        assert wait_until(lambda: broker.status().last_error is None, 5)
        assert broker.status().generation == 2


@pytest.mark.broker
@pytest.mark.slow
def test_revoked_login_is_named_tried_slowly_and_heals(tmp_path: Path) -> None:
    """Thrown out and refused: the status says so, one attempt in 5 s at most, and back when it is granted."""
    passwords = tmp_path / "passwords"
    set_password(passwords, "gateway", "right")
    set_password(passwords, "other", "right")
    lines = ["allow_anonymous false", f"password_file {passwords}"]
    with Mosquitto(tmp_path, lines) as mosquitto:
        options = _options(mosquitto.port, username="gateway", password="right")  # noqa: S106 - the test's own
        with _running(options, hurried=False) as broker:
            assert _settled(broker)
            passwords.unlink()
            set_password(passwords, "other", "right")
            mosquitto.signal(signal.SIGHUP)
            assert wait_until(lambda: "Not authorized" in str(broker.status().last_error)), broker.status()
            began_s, before = time.monotonic(), mosquitto.log().count("not authorised")
            time.sleep(6)
            tries = mosquitto.log().count("not authorised") - before
            assert tries <= (time.monotonic() - began_s) / 5 + 1
            set_password(passwords, "gateway", "right")
            mosquitto.signal(signal.SIGHUP)
            assert wait_until(lambda: broker.status().connected, 31)
            assert _settled(broker)


def test_refused_subscription_is_asked_for_again_and_heals(monkeypatch: pytest.MonkeyPatch) -> None:
    """A right that is granted later is used without a new connection."""
    monkeypatch.setattr(subscriptions_module, "ASK_AGAIN_S", 0.2)
    answers = iter([b"\x87", b"\x87", b"\1"])
    message = packet(PUBLISH, b"\0\1a\0" + b"x")

    def reply(kind: int, body: bytes) -> bytes:
        if kind == CONNECT:
            return ACCEPT
        if kind == SUBSCRIBE:
            answer = next(answers)
            return packet(SUBACK, body[:2] + b"\0" + answer) + (message if answer == b"\1" else b"")
        return b""

    with ScriptedBroker(reply) as scripted, _running(_options(scripted.port)) as broker:
        assert wait_until(lambda: broker.status().refused == ("plant/#",))
        assert [m.payload for m in _collect(broker, 1)] == [b"x"]
        status = broker.status()
        assert (status.refused, status.last_error, status.generation) == ((), None, 1)


@pytest.mark.parametrize(
    ("missing", "sentence"),
    [(SUBSCRIBE, "it does not answer a subscription"), (PUBLISH, "it does not acknowledge what we publish")],
)
def test_answer_that_never_comes_ends_the_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, missing: int, sentence: str
) -> None:
    """Connected and deaf, or dumb, is not connected: the next connection may be better."""
    monkeypatch.setattr(connection_module, "_ANSWER_TIMEOUT_S", 0.3)

    def reply(kind: int, body: bytes) -> bytes:
        if kind == CONNECT:
            return ACCEPT
        return packet(SUBACK, body[:2] + b"\0\1") if kind == SUBSCRIBE != missing else b""

    with ScriptedBroker(reply) as scripted, _running(_options(scripted.port)) as broker:
        assert wait_until(lambda: broker.status().connected)
        token = broker.publish("alerts", b"x", qos=1, retain=False)
        # In the log: the next connection, which may come at once, clears the error from the status.
        assert wait_until(lambda: sentence in caplog.text)
        assert wait_until(lambda: broker.failed() == [token])
        assert wait_until(lambda: broker.status().generation >= 2)


# nobody takes what is read


def test_edge_at_rest_reads_nothing_more_and_still_ends_cleanly() -> None:
    """A flood that goes on during a stop takes no time from the last commit."""
    flood = packet(PUBLISH, b"\0\1a" + b"\0" + b"1") * 50

    def reply(kind: int, body: bytes) -> bytes:
        if kind == CONNECT:
            return ACCEPT
        return packet(SUBACK, body[:2] + b"\0\1") if kind == SUBSCRIBE else flood

    with ScriptedBroker(reply) as scripted, _running(_options(scripted.port)) as broker:
        assert wait_until(lambda: broker.status().connected)
        broker.publish("alerts", b"x", qos=1, retain=False)
        assert wait_until(lambda: broker.status().inbox == 50)
        broker.rest()
        broker.publish("alerts", b"x", qos=1, retain=False)  # is answered by as many again
        time.sleep(0.3)
        assert broker.status().inbox == 50
        assert broker.stop(2.0)


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.parametrize(
    ("protocol", "lines"),
    [("5", []), ("3.1.1", []), ("3.1.1", ["max_inflight_messages 0"])],
    ids=["5", "3.1.1", "3.1.1 without a window"],
)
def test_held_commit_holds_the_broker_and_keeps_the_connection(
    tmp_path: Path, protocol: Protocol, lines: list[str]
) -> None:
    """While nothing is taken for many keep-alives little is held here, and nothing is lost."""
    with Mosquitto(tmp_path, [*lines, "max_queued_messages 0"]) as mosquitto:
        options = _options(mosquitto.port, protocol=protocol, keepalive_s=1, inbox_readings=50)
        with _running(options) as broker:
            assert _settled(broker)
            payloads = [b"%d %s" % (number, b"x" * 1000) for number in range(3000)]
            publish(mosquitto.port, "plant/pump", *payloads)
            held_until = time.monotonic() + 7
            while time.monotonic() < held_until:
                assert broker.status().inbox < max(2 * 50 + 64, 512 + 1)
                assert broker.status().connected
                time.sleep(0.1)
            messages: list[Message] = []
            while more := broker.take(40, 3.0):
                broker.ack(more)
                messages += more
            assert [message.payload for message in messages] == payloads
            assert not any(message.duplicate for message in messages)
            assert broker.status().generation == 1
            late = messages[600:]
            assert all(message.backlog for message in late)  # what waited at the broker is no live reading
            publish(mosquitto.port, "plant/pump", b"live")
            assert [message.backlog for message in _collect(broker, 1)] == [False]


@pytest.mark.broker
@both_protocols
def test_what_waits_behind_a_held_commit_is_a_backlog(
    mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch, protocol: Protocol
) -> None:
    """We were not away, but the broker had to keep it as if we were; what comes after it is live again."""
    monkeypatch.setattr(connection_module, "_HELD_S", 0.3)
    with _running(_options(mosquitto.port, protocol=protocol, receive_maximum=20)) as broker:
        assert _settled(broker)
        publish(mosquitto.port, "plant/pump", *_numbers(0, 100))
        held = _collect(broker, 20)
        time.sleep(0.5)
        broker.ack(held)
        late: list[Message] = []
        while more := broker.take(100, 1.0):
            broker.ack(more)
            late += more
        assert [message.payload for message in held + late] == _numbers(0, 100)
        assert not any(message.backlog for message in held)
        assert all(message.backlog for message in late)
        publish(mosquitto.port, "plant/pump", b"live")
        assert [message.backlog for message in _collect(broker, 1)] == [False]


@pytest.mark.broker
@both_protocols
def test_qos_0_is_shed_and_counted_while_nothing_is_taken(mosquitto: Mosquitto, protocol: Protocol) -> None:
    """A flood of QoS 0 costs as many messages as do not fit, each of them counted, and no connection."""
    options = _options(mosquitto.port, protocol=protocol, keepalive_s=1, inbox_readings=50)
    with _running(options) as broker:
        assert _settled(broker)
        with Publisher(HOST, mosquitto.port, "sensor") as sensor:
            for number in range(500):
                sensor.publish("plant/pump", b"%d" % number)
                if number % 50 == 49:
                    sensor.wait_all(10)
        assert wait_until(lambda: broker.status().shed == 450), broker.status()
        time.sleep(2.5)
        assert (broker.status().inbox, broker.status().generation) == (50, 1)
        assert [message.payload for message in broker.take(100, 0)] == _numbers(0, 50)


def test_connection_is_made_while_the_inbox_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for the worker is no reason to leave the answer to CONNECT unread."""
    monkeypatch.setattr(Mailbox, "paused", True)

    def reply(kind: int, _body: bytes) -> bytes:
        return ACCEPT if kind == CONNECT else b""

    with ScriptedBroker(reply) as scripted, _running(_options(scripted.port, keepalive_s=1)) as broker:
        assert wait_until(lambda: broker.status().connected)
        assert wait_until(lambda: sum(kind == PINGREQ for kind, _ in scripted.packets) >= 4)
        assert broker.status().generation == 1


def test_answer_to_a_ping_may_stand_behind_much_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that sends is alive, however long its answer takes: after a pause, or over a slow link."""
    paused = True
    monkeypatch.setattr(Mailbox, "paused", property(lambda _: paused))

    def reply(kind: int, body: bytes) -> bytes:
        if kind == CONNECT:
            return ACCEPT
        return packet(SUBACK, body[:2] + b"\0\1") if kind == SUBSCRIBE else b""

    def pings() -> int:
        return sum(kind == PINGREQ for kind, _ in scripted.packets)

    with ScriptedBroker(reply) as scripted, _running(_options(scripted.port, keepalive_s=2)) as broker:
        assert wait_until(lambda: pings() == 2)
        paused = False
        until = time.monotonic() + 3.0
        while time.monotonic() < until:
            scripted.send(packet(PUBLISH, b"\0\1a\0" + b"x"))
            time.sleep(0.1)
        assert broker.status().generation == 1
        began_s = time.monotonic()
        assert wait_until(lambda: not broker.status().connected)
        assert 1.0 < time.monotonic() - began_s <= 5.0
        assert "it stopped answering" in str(broker.status().last_error)


@pytest.mark.parametrize("seconds", [0, 65_535])
def test_broker_that_wants_fewer_pings_does_not_blind_us(seconds: int) -> None:
    """A server keep-alive of none, or of 18 hours, leaves ours in force."""
    longer = packet(CONNACK, b"\1\0\3\x13" + seconds.to_bytes(2, "big"))

    def reply(kind: int, body: bytes) -> bytes:
        if kind == CONNECT:
            return longer
        if kind == SUBSCRIBE:
            return packet(SUBACK, body[:2] + b"\0\1")
        return packet(PINGRESP) if kind == PINGREQ else b""

    with ScriptedBroker(reply) as scripted, _running(_options(scripted.port, keepalive_s=1)) as broker:
        assert wait_until(lambda: sum(kind == PINGREQ for kind, _ in scripted.packets) >= 3)
        assert broker.status().generation == 1


# what is told


def test_way_a_connection_ended_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """An outage is one line, not one for each attempt."""
    with (
        caplog.at_level(logging.WARNING),
        ScriptedBroker(lambda _kind, _: packet(CONNACK, b"\0\x87\0")) as scripted,
        _running(_options(scripted.port)),
    ):
        assert wait_until(lambda: scripted.connections >= 5)
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        f"No connection to the broker at {HOST}:{scripted.port}: it refused client 'gruard' (Not authorized)."
    ]
