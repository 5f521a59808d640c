"""paho's client with what a durable reader needs and paho keeps to itself.

Its own sockets, so that a stop need not wait for a connection; pings on demand, with word of their answers;
and a bound on the size of what arrives, which MQTT 3.1.1 has no words for. The methods overridden here are
paho's private ones, in this file and no other.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from gruard.daemon.edges.dial import Dialler

_READ_BYTES = 65_536  # at a time, however large a packet is announced to be


class Client(mqtt.Client):
    """One connection's client. `on_pong` is called when the newest ping sent has its answer."""

    def __init__(
        self, dialler: Dialler, on_pong: Callable[[], None], largest_bytes: int, **options: Any
    ) -> None:
        super().__init__(CallbackAPIVersion.VERSION2, reconnect_on_failure=False, manual_ack=True, **options)
        self._dialler = dialler
        self._on_pong = on_pong
        self._largest_bytes = largest_bytes
        self._pings = 0  # without an answer
        self._ahead, self._at = b"", 0  # bytes read from the socket, and how many of them are used

    @property
    def reads_ahead(self) -> bool:
        """Whether there are bytes that poll on the socket does not show any more."""
        return self._at < len(self._ahead) or (
            isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0
        )

    def ping(self) -> None:
        """Send PINGREQ behind all that was sent before."""
        self._send_pingreq()

    def keep_alive_within(self, longest_s: int) -> None:
        """Ping after so many seconds of silence, though the broker may ask for fewer pings, or for none."""
        self._keepalive = min(self._keepalive or longest_s, longest_s)

    def ask_for(self, wanted: list[tuple[str, int]]) -> int | None:
        """Subscribe to (topic filter, QoS) pairs; returns the packet id, None when the connection has ended.

        With MQTT 5 retained messages come only for a new subscription, else each connect replays them all.
        """
        if self.protocol == mqtt.MQTTv5:
            new_only = SubscribeOptions.RETAIN_SEND_IF_NEW_SUB
            options = [(topic, SubscribeOptions(qos, retainHandling=new_only)) for topic, qos in wanted]
            return self.subscribe(options)[1]
        return self.subscribe(wanted)[1]

    def _create_socket_connection(self) -> socket.socket:
        return self._dialler.connect(self._host, self._port)

    def _send_pingreq(self) -> MQTTErrorCode:
        self._pings += 1
        return super()._send_pingreq()

    def _handle_pingresp(self) -> MQTTErrorCode:
        code = super()._handle_pingresp()
        self._pings = max(self._pings - 1, 0)
        if self._pings == 0:
            self._on_pong()
        return code

    def _sock_recv(self, bufsize: int) -> bytes:
        """From what was read ahead: paho asks for single bytes, and would cost a system call for each."""
        if self._at == len(self._ahead):
            self._ahead, self._at = self._fetch(), 0
        chunk = self._ahead[self._at : self._at + bufsize]
        self._at += len(chunk)
        return chunk

    def _fetch(self) -> bytes:
        if self._sock is None:
            raise ConnectionError
        try:
            return self._sock.recv(_READ_BYTES)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as not_yet:
            raise BlockingIOError from not_yet

    def _packet_read(self) -> MQTTErrorCode:
        code = super()._packet_read()
        if self._ping_t > 0:  # the answer may stand behind much else: only silence ends the connection
            self._ping_t = max(self._ping_t, self._last_bytes_received)
        packet = self._in_packet
        if packet["remaining_length"] > self._largest_bytes and not isinstance(packet["packet"], _Head):
            packet["packet"] = _Head(packet["packet"][: self._largest_bytes], self._largest_bytes)
        return code


class _Head(bytearray):
    """The body of a packet over the limit: its head is kept, the rest is read and forgotten."""

    def __init__(self, begun: bytearray, largest_bytes: int) -> None:
        super().__init__(begun)
        self._largest_bytes = largest_bytes

    def __iadd__(self, more: Any) -> Self:  # type: ignore[misc]  # the base class takes any buffer
        self.extend(more[: max(self._largest_bytes - len(self), 0)])
        return self


def properties(packet_type: int, **values: Any) -> Properties:
    """MQTT 5 properties; a value of None leaves its property out."""
    made = Properties(packet_type)  # type: ignore[no-untyped-call]  # paho left the constructor untyped
    for name, value in values.items():
        if value is not None:
            setattr(made, name, value)
    return made
