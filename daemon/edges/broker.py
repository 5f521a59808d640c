"""The MQTT edge: one session that survives restarts, acknowledgements in order, reconnects for ever.

    network thread   connect -> subscribe -> inbox              PUBACKs, publishes -> broker
    worker thread    take() ... commit ... ack()                publish() ... confirmed()

Only the network thread touches the paho client of the session, so no call of ours waits on a lock of paho's.
The other files of this edge: `connection` (one connection), `mailbox` (what the two threads hand each
other), `reconnect` (when to try again), `link` (options, status, TLS).
"""

from __future__ import annotations

import logging
import random
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from gruard.daemon.edges.connection import Connection
from gruard.daemon.edges.link import (
    CONNECT_TIMEOUT_S,
    Bell,
    BrokerOptions,
    BrokerStatus,
    Link,
    TlsOptions,
    cause,
)
from gruard.daemon.edges.mailbox import Mailbox
from gruard.daemon.edges.reconnect import Ending, Reconnect
from gruard.daemon.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import Self

    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

    from gruard.daemon.records import Message

__all__ = ["Broker", "BrokerOptions", "BrokerStatus", "Publisher", "TlsOptions"]

_log = logging.getLogger(__name__)

_HEADER_BYTES = 64  # fixed header, packet id and property headers of a publish, rounded up
_PUBLISHER_IN_FLIGHT = 1000


class Broker:
    """One persistent session on a broker. `start` and `stop` once; the rest is for the worker thread."""

    def __init__(
        self, options: BrokerOptions, subscriptions: Sequence[tuple[str, int]], clock: Callable[[], float]
    ) -> None:
        self._options = options
        self._subscriptions = tuple(subscriptions)
        self._clock = clock
        self._bell: Bell | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._mailbox = Mailbox(options.inbox_readings, self._ring)
        self._link = Link()
        self._policy = Reconnect(options.protocol)

    def start(self) -> None:
        """Begin to connect; returns at once and does not fail because the broker is away."""
        bell = self._bell = Bell()
        self._thread = threading.Thread(target=self._run, args=(bell,), name="gruard-broker", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Send the acknowledgements already given, then DISCONNECT; True when that ended in time."""
        self._stopping.set()
        self._ring()
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def take(self, limit: int, timeout_s: float) -> list[Message]:
        """What has arrived, oldest first, up to `limit`; waits up to `timeout_s` while there is nothing."""
        return self._mailbox.take(limit, timeout_s)

    def ack(self, messages: Sequence[Message]) -> None:
        """Tell the broker that these are safe with us.

        They go out in the order of arrival [MQTT-4.6.0-2]: one given early waits for those before it.
        Messages of an ended connection are counted and not acknowledged: their packet ids may by now
        belong to other messages. QoS 0 is passed over.
        """
        self._mailbox.acknowledge(messages)

    def publish(
        self,
        topic: str,
        payload: bytes,
        *,
        qos: int,
        retain: bool,
        content_type: str | None = "application/json",
        schema: str | None = None,
    ) -> int | None:
        """Hand over one message; with QoS 1 the token comes back by `confirmed` or `failed`.

        None when it was not taken: not connected, or 20 QoS 1 messages (fewer where the broker says so)
        are without an answer. With MQTT 5 it carries `content_type`, and `schema` as a user property.

        Raises:
            BrokerError: larger than the broker takes, so that trying again is of no use.
            ValueError: QoS 2, or a topic that is empty or has wildcards.
        """
        if qos not in {0, 1}:
            raise ValueError(f"publish QoS is 0 or 1, not {qos}")
        if not topic or "+" in topic or "#" in topic:
            raise ValueError(f"cannot publish to the topic {topic!r}")
        texts = (topic, content_type or "", schema or "")
        size = _HEADER_BYTES + len(payload) + sum(len(text.encode()) for text in texts)
        limit = self._link.packet_limit_bytes
        if size > limit:
            raise BrokerError(f"The broker takes {limit} bytes, and the message for {topic} needs {size}.")
        return self._mailbox.offer(
            topic, payload, qos, retain=retain, content_type=content_type, schema=schema
        )

    def confirmed(self) -> list[int]:
        """Tokens of QoS 1 publishes that the broker has taken, since the last call."""
        return self._mailbox.confirmed()

    def failed(self) -> list[int]:
        """Tokens of QoS 1 publishes refused or cut off, since the last call: publish those again later."""
        return self._mailbox.failed()

    def status(self) -> BrokerStatus:
        """A snapshot for metrics and readiness."""
        link = self._link
        return BrokerStatus(
            connected=link.connected,
            generation=link.generation,
            protocol=self._policy.protocol,
            session_present=link.session_present,
            last_error=link.last_error,
            refused=link.refused,
            shed=self._mailbox.shed,
            stale_acks=link.stale_acks,
            inbox=len(self._mailbox),
            inbox_capacity=self._mailbox.capacity,
            in_flight=self._mailbox.in_flight,
            last_packet_s=link.last_packet_s,
            thread_alive=self._thread is not None and self._thread.is_alive(),
            session=link.session,
        )

    def _ring(self) -> None:
        if self._bell is not None:
            self._bell.ring()

    def _run(self, bell: Bell) -> None:
        while not self._stopping.is_set():
            ending, lived_s = self._attempt(bell)
            self._stopping.wait(self._policy.next_delay_s(ending, lived_s, random.random()))
        bell.close()

    def _attempt(self, bell: Bell) -> tuple[Ending, float]:
        """One connection, from CONNECT to whatever ends it: how it ended, and the seconds it was up."""
        link = self._link
        where = f"the broker at {self._options.host}:{self._options.port}"
        connection: Connection | None = None
        try:
            connection = Connection(
                self._options, self._policy.protocol, self._subscriptions, self._mailbox, link, self._clock
            )
            connection.run(self._stopping, bell)
        except BrokerError as error:
            link.last_error = f"No connection to {where}: {error}."
        except Exception as error:  # noqa: BLE001 - a fault of ours or paho's must not end this thread
            _log.exception("the connection to %s:%s met a fault", self._options.host, self._options.port)
            # Not its repr, which for a password that is no text would show it.
            link.last_error = f"Dropped {where} because of a fault ({type(error).__name__}: {error})."
        else:
            if not self._stopping.is_set():
                link.last_error = f"Lost {where}: {connection.reason}."
        finally:
            link.connected = False
            self._mailbox.close()
            if connection is not None:
                connection.close()
        if connection is None:
            return Ending.UNREACHABLE, 0.0
        return connection.ending, self._clock() - connection.accepted_s


class Publisher:
    """A small synchronous client for `simulate` and the demo: MQTT 3.1.1, no session, no reconnect.

    A context manager, safe to share between threads. At most 1000 messages are under way; `publish` waits
    for room. Every method raises BrokerError, with a sentence, once the broker is unreachable or gone.
    """

    timeout_s = 10.0  # how long the broker may take for any one step

    def __init__(
        self, host: str, port: int, client_id: str, username: str | None = None, password: str | None = None
    ) -> None:
        self._where = f"The broker at {host}:{port}"
        self._address = (host, port)
        self._moved = threading.Condition()  # lock of the three below
        self._connected = False
        self._under_way = 0
        self._subscribed: dict[int, bool] = {}  # packet id of a SUBSCRIBE -> granted
        self._error: str | None = None
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        self._client.connect_timeout = CONNECT_TIMEOUT_S
        self._client.username_pw_set(username, password)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        self._client.on_subscribe = self._on_subscribe

    def __enter__(self) -> Self:
        try:
            self._client.connect(*self._address)
        except (OSError, ValueError) as error:
            raise BrokerError(f"{self._where} cannot be reached: {cause(error)}.") from error
        self._client.loop_start()
        try:
            self._wait(lambda: self._connected, self.timeout_s, "did not answer")
        except BrokerError:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def publish(self, topic: str, payload: bytes, qos: int = 0, *, retain: bool = False) -> None:
        """Send one message; waits while 1000 are under way."""
        with self._moved:
            self._wait(lambda: self._under_way < _PUBLISHER_IN_FLIGHT, self.timeout_s, "took no message")
            self._under_way += 1
        self._client.publish(topic, payload, qos, retain)

    def wait_all(self, timeout_s: float) -> None:
        """Wait until QoS 0 messages are written out and all others acknowledged."""
        self._wait(lambda: self._under_way == 0, timeout_s, "did not take every message")

    def subscribe(self, topic_filter: str, callback: Callable[[str, bytes], None]) -> None:
        """Call `callback(topic, payload)` on the network thread for each message; returns once granted."""

        def deliver(_client: mqtt.Client, _: Any, message: mqtt.MQTTMessage) -> None:
            try:
                callback(message.topic, bytes(message.payload))
            except Exception as error:  # noqa: BLE001 - paho's thread would die of it without a word
                self._fail(f"The callback of {topic_filter} failed: {error!r}.")

        self._client.message_callback_add(topic_filter, deliver)
        _, packet_id = self._client.subscribe(topic_filter, qos=1)
        if packet_id is not None:  # else the connection is gone, which the wait tells
            self._wait(lambda: packet_id in self._subscribed, self.timeout_s, "did not answer a subscription")
            if not self._subscribed[packet_id]:
                raise BrokerError(f"{self._where} refused the subscription to {topic_filter}.")

    def _wait(self, done: Callable[[], bool], timeout_s: float, trouble: str) -> None:
        with self._moved:
            self._moved.wait_for(lambda: done() or self._error is not None, timeout_s)
            if self._error is not None:
                raise BrokerError(self._error)
            if not done():
                raise BrokerError(f"{self._where} {trouble} within {timeout_s:g} s.")

    def _fail(self, sentence: str) -> None:
        with self._moved:
            self._error = self._error or sentence
            self._moved.notify_all()

    def _close(self) -> None:
        """Disconnect first: paho's loop_stop alone waits for ever where the broker withholds a PUBACK."""
        self._client.disconnect()
        with self._moved:
            self._moved.wait_for(lambda: not self._connected, 1.0)
        sock = self._client.socket()
        if isinstance(sock, socket.socket):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._client.loop_stop()

    def _on_connect(
        self, _client: mqtt.Client, _: Any, _flags: mqtt.ConnectFlags, code: ReasonCode, _p: Properties | None
    ) -> None:
        if code.is_failure:
            self._fail(f"{self._where} refused the connection ({code.getName()}).")
            return
        with self._moved:
            self._connected = True
            self._moved.notify_all()

    def _on_disconnect(
        self,
        _client: mqtt.Client,
        _: Any,
        _flags: mqtt.DisconnectFlags,
        _code: ReasonCode,
        _p: Properties | None,
    ) -> None:
        with self._moved:
            self._connected = False
        self._fail(f"{self._where} closed the connection.")

    def _on_publish(self, _client: mqtt.Client, _: Any, _mid: int, _code: ReasonCode, _p: Properties) -> None:
        with self._moved:
            self._under_way -= 1
            self._moved.notify_all()

    def _on_subscribe(
        self, _client: mqtt.Client, _: Any, mid: int, codes: list[ReasonCode], _p: Properties | None
    ) -> None:
        with self._moved:
            self._subscribed[mid] = not codes[0].is_failure
            self._moved.notify_all()
