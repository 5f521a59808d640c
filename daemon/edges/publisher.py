"""A small synchronous MQTT client for whoever sends readings: `simulate` and the demo."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from gruard.daemon.edges.link import CONNECT_TIMEOUT_S, cause
from gruard.daemon.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Self

    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

_IN_FLIGHT = 1000


class Publisher:
    """MQTT 3.1.1, no session, no reconnect.

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
            self._wait(lambda: self._under_way < _IN_FLIGHT, self.timeout_s, "took no message")
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
