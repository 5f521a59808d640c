"""Who listens to the alerts: a subscriber whose session survives the broker, so nothing told is missed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from support_mqtt import HOST

if TYPE_CHECKING:
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode


class Ear:
    """Keeps every payload that comes on a topic filter, repetitions too, in order."""

    def __init__(self, port: int, topic_filter: str, name: str = "torture-ear") -> None:
        self._address = (HOST, port)
        self._filter = topic_filter
        self._subscribed = threading.Event()
        self._lock = threading.Lock()
        self._payloads: list[bytes] = []
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=name, clean_session=False, protocol=mqtt.MQTTv311
        )
        self._client.reconnect_delay_set(0.2, 1.0)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message

    @property
    def payloads(self) -> list[bytes]:
        """What was heard so far."""
        with self._lock:
            return list(self._payloads)

    def __enter__(self) -> Self:
        self._client.connect(*self._address)
        self._client.loop_start()
        if not self._subscribed.wait(10):
            self.__exit__()
            raise ConnectionError("nobody can listen to the alerts")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_connect(
        self, client: mqtt.Client, _: Any, _flags: mqtt.ConnectFlags, code: ReasonCode, _p: Properties | None
    ) -> None:
        # Each time: a broker that was killed may have forgotten the session.
        if not code.is_failure:
            client.subscribe(self._filter, qos=1)

    def _on_subscribe(self, *_: object) -> None:
        self._subscribed.set()

    def _on_message(self, _client: mqtt.Client, _: Any, message: mqtt.MQTTMessage) -> None:
        with self._lock:
            self._payloads.append(bytes(message.payload))
