"""One connection to the broker over paho: CONNECT, subscriptions, acknowledgements, publishes, its end.

Only the network thread comes here. Each connection has its own paho client, so nothing that paho queued for
an ended connection can be sent on the next one, and its own number, the generation.

Readings at QoS 2 are asked for at QoS 1. paho answers PUBREC before it hands a message over, so a crash
before our commit loses that message and its packet id for good; at QoS 1 it comes again, marked DUP.
With MQTT 3.1.1 the broker's own limits on message size and open messages are the only ones.
"""

from __future__ import annotations

import select
import socket
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion, LogLevel, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from gruard.daemon.edges.backlog import Backlog
from gruard.daemon.edges.link import (
    CONNECT_TIMEOUT_S,
    MAX_PACKET_BYTES,
    Bell,
    BrokerOptions,
    Link,
    cause,
    has_decrypted_bytes,
    tls_context,
)
from gruard.daemon.edges.mailbox import MAX_IN_FLIGHT, Mailbox, Outgoing
from gruard.daemon.edges.reconnect import Ending, Protocol
from gruard.daemon.errors import BrokerError
from gruard.daemon.records import Message

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from paho.mqtt.reasoncodes import ReasonCode

_CONNACK_TIMEOUT_S = 10.0  # for the answer to CONNECT
_TURN_MS = 1000  # the network thread looks at keep-alive at least this often
_LEAVE_TURNS = 10  # tenths of a second that DISCONNECT may wait for a socket that takes no bytes
_READ_BURST = 64  # messages read between two looks at what is to be sent


class Connection:
    """One connection; lives in the network thread only."""

    def __init__(
        self,
        options: BrokerOptions,
        protocol: Protocol,
        subscriptions: Sequence[tuple[str, int]],
        mailbox: Mailbox,
        link: Link,
        clock: Callable[[], float],
    ) -> None:
        self._options = options
        self._v5 = protocol == "5"
        self._subscriptions = [(topic, min(qos, 1)) for topic, qos in subscriptions]
        self._mailbox = mailbox
        self._link = link
        self._clock = clock
        self._unacked: OrderedDict[int, Message] = OrderedDict()  # packet id -> message, in order of arrival
        self._ready: set[int] = set()  # packet ids the worker has given back
        self._tokens: dict[int, int] = {}  # packet id of a publish -> its token
        self._arrived: list[Message] = []  # in the present burst
        self._backlog = Backlog()
        self._subscribed = False  # the broker has answered SUBSCRIBE
        self._log_line = ""  # paho's last low-level error before the broker answered
        self._silent = False  # the broker let the keep-alive or our patience run out
        self.ending = Ending.UNREACHABLE
        self.accepted_s = clock()
        self.reason = "it closed the connection"
        self._client = self._build_client()

    def run(self, stopping: threading.Event, bell: Bell) -> None:
        """Connect and serve until the connection ends or `stopping` is set.

        Raises:
            BrokerError: the broker is out of reach, silent or refuses us; the text says why.
        """
        try:
            self._connect()
        except (OSError, ValueError) as error:  # ValueError: a host name that is none
            raise BrokerError(cause(error)) from error
        deadline_s = self._clock() + _CONNACK_TIMEOUT_S
        while (sock := self._client.socket()) is not None:
            if stopping.is_set():
                self._leave()
                return
            self._turn(sock, bell)
            self._silent |= self.ending is Ending.UNREACHABLE and self._clock() > deadline_s
            if self._silent:
                break
        if self.ending is Ending.UNREACHABLE:
            if self._silent:
                raise BrokerError("it does not answer")
            self.ending = Ending.CLOSED_EARLY
            raise BrokerError(f"it closed the connection instead of answering{self._log_line}")
        if self.ending is not Ending.LOST:
            raise BrokerError(self.reason)

    def close(self) -> None:
        """Let go of the socket, however the connection ended."""
        sock = self._client.socket()
        if sock is not None:
            sock.close()

    def _build_client(self) -> _Client:
        options = self._options
        client = _Client(
            self._backlog.answered,
            CallbackAPIVersion.VERSION2,
            client_id=options.client_id,
            clean_session=None if self._v5 else False,
            protocol=mqtt.MQTTv5 if self._v5 else mqtt.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connect_timeout = CONNECT_TIMEOUT_S
        client.username_pw_set(options.username, options.password)
        client.will_set(options.will_topic, options.will_payload, qos=1, retain=True)
        if options.tls is not None:
            client.tls_set_context(tls_context(options.tls))
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_log = self._on_log
        client.on_socket_open = self._on_socket_open
        return client

    def _connect(self) -> None:
        options = self._options
        if not self._v5:
            self._client.connect(options.host, options.port, options.keepalive_s)
            return
        properties = _properties(
            PacketTypes.CONNECT,
            SessionExpiryInterval=options.session_expiry_s,  # without it the session ends with the connection
            ReceiveMaximum=options.receive_maximum,
            MaximumPacketSize=options.max_packet_bytes,
        )
        self._client.connect(
            options.host, options.port, options.keepalive_s, clean_start=False, properties=properties
        )

    def _turn(self, sock: mqtt.SocketLike, bell: Bell) -> None:
        """Wait for bytes, room or the bell, and serve what there is."""
        client = self._client
        wanted = 0 if self._mailbox.paused else select.POLLIN
        if client.want_write():
            wanted |= select.POLLOUT
        poller = select.poll()  # not select(), which fails from descriptor 1024 on
        poller.register(bell.fileno(), select.POLLIN)
        if wanted:  # a socket registered for nothing still reports a hang-up, again and again
            poller.register(sock.fileno(), wanted)
        left_over = bool(wanted & select.POLLIN) and has_decrypted_bytes(sock)
        ready = dict(poller.poll(0 if left_over else _TURN_MS))
        bell.silence()
        if left_over or ready.get(sock.fileno(), 0) & ~select.POLLOUT:
            self._link.last_packet_s = self._clock()
            self._read()
        if client.want_write():
            client.loop_write()
        if self._link.connected:
            self._send()
            self._ask()
        client.loop_misc()

    def _read(self) -> None:
        """Read while each call brings a message: loop_read takes one packet, if there is one.

        A burst is delivered at once, because waking the worker costs as much as reading a message.
        """
        try:
            for count in range(1, _READ_BURST + 1):
                self._client.loop_read()
                if len(self._arrived) < count:
                    return
        finally:
            if self._arrived:
                opened = sum(message.qos > 0 for message in self._arrived)
                self._backlog.received(opened, len(self._unacked))
                self._mailbox.deliver(self._arrived)
                self._arrived = []

    def _ask(self) -> None:
        """Ping when the answer may show that the broker has caught up; behind SUBSCRIBE and every PUBACK."""
        client, still_open = self._client, len(self._unacked)
        if self._subscribed and self._backlog.must_ask(still_open) and not client.awaits_ping:
            self._backlog.asked(still_open)
            client.ping()

    def _send(self) -> None:
        """Pass on what the worker has queued, while the socket takes it."""
        while not self._client.want_write() and (item := self._mailbox.next_outgoing()) is not None:
            if isinstance(item, Outgoing):
                self._publish(item)
            else:
                self._acknowledge(item)

    def _acknowledge(self, messages: Sequence[Message]) -> None:
        for message in messages:
            if message.qos == 0:
                continue
            # Compared whole: packet ids come again on the next connection, and on this one once acknowledged.
            if self._unacked.get(message.packet_id) == message:
                self._ready.add(message.packet_id)
            else:
                self._link.stale_acks += 1
        while self._unacked:
            packet_id, message = next(iter(self._unacked.items()))
            if packet_id not in self._ready:
                return
            self._ready.remove(packet_id)
            del self._unacked[packet_id]
            self._client.ack(packet_id, message.qos)

    def _publish(self, item: Outgoing) -> None:
        properties = None
        if self._v5:
            schema = None if item.schema is None else ("schema", item.schema)
            properties = _properties(PacketTypes.PUBLISH, ContentType=item.content_type, UserProperty=schema)
        sent = self._client.publish(item.topic, item.payload, item.qos, item.retain, properties)
        if item.qos:
            self._tokens[sent.mid] = item.token

    def _leave(self) -> None:
        """Send what the worker has given, then DISCONNECT, so that the broker does not publish the will."""
        if not self._link.connected:
            return
        self._send()
        self._client.disconnect()
        for _ in range(_LEAVE_TURNS):
            sock = self._client.socket()
            if sock is None:
                return
            poller = select.poll()
            poller.register(sock.fileno(), select.POLLOUT)
            poller.poll(100)
            self._client.loop_write()

    # paho's callbacks, called inside loop_read, loop_write and loop_misc: their exceptions come out of run

    def _on_socket_open(self, _client: mqtt.Client, _: Any, sock: mqtt.SocketLike) -> None:
        if isinstance(sock, socket.socket):  # else an alert behind acknowledgements waits 40 ms (Nagle)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def _on_connect(
        self,
        client: mqtt.Client,
        _: Any,
        flags: mqtt.ConnectFlags,
        code: ReasonCode,
        granted: Properties | None,
    ) -> None:
        if code.is_failure:
            refused_version = code.getName() == "Unsupported protocol version"
            self.ending = Ending.VERSION_REFUSED if refused_version else Ending.REFUSED
            self.reason = f"it refused client {self._options.client_id!r} ({code.getName()})"
            return
        client.on_log = None  # it costs time on every packet
        self.ending = Ending.LOST
        self.accepted_s = self._clock()
        link = self._link
        link.generation += 1
        link.session_present = flags.session_present
        if flags.session_present:
            self._backlog.begin()
        else:
            link.session += 1
        link.packet_limit_bytes = getattr(granted, "MaximumPacketSize", MAX_PACKET_BYTES)
        link.refused = ()
        link.last_error = None
        link.connected = True
        self._mailbox.open(getattr(granted, "ReceiveMaximum", MAX_IN_FLIGHT))
        if self._subscriptions:
            self._subscribe(client)

    def _subscribe(self, client: mqtt.Client) -> None:
        """In a resumed session too: the filters it holds are those of the configuration back then."""
        if not self._v5:
            client.subscribe(self._subscriptions)
            return
        new_only = SubscribeOptions.RETAIN_SEND_IF_NEW_SUB  # else each connect replays all retained messages
        client.subscribe(
            [(topic, SubscribeOptions(qos, retainHandling=new_only)) for topic, qos in self._subscriptions]
        )

    def _on_subscribe(
        self, _client: mqtt.Client, _: Any, _mid: int, codes: list[ReasonCode], _granted: Properties | None
    ) -> None:
        refused = {
            topic: code.getName()
            for (topic, _), code in zip(self._subscriptions, codes, strict=True)
            if code.is_failure
        }
        self._subscribed = True
        self._link.refused = tuple(refused)
        if refused:
            listing = ", ".join(f"{topic} ({name})" for topic, name in refused.items())
            self._link.last_error = f"The broker refused the subscription to {listing}."

    def _on_message(self, _client: mqtt.Client, _: Any, arrived: mqtt.MQTTMessage) -> None:
        try:
            topic = arrived.topic
        except UnicodeDecodeError:
            topic = ""  # fits no source, so it is counted as unknown, acknowledged and gone
        message = Message(
            topic=topic,
            payload=bytes(arrived.payload),
            received_s=self._clock(),
            qos=arrived.qos,
            retain=arrived.retain,
            duplicate=arrived.dup,
            packet_id=arrived.mid,
            generation=self._link.generation,
            session=self._link.session,
            backlog=self._backlog.waits,
        )
        if message.qos:
            self._unacked[message.packet_id] = message
        self._arrived.append(message)

    def _on_publish(
        self, _client: mqtt.Client, _: Any, mid: int, code: ReasonCode, _granted: Properties
    ) -> None:
        token = self._tokens.pop(mid, None)
        if token is None:  # QoS 0
            return
        self._mailbox.settle(token, accepted=not code.is_failure)
        if code.is_failure:
            self._link.last_error = f"The broker refused a message of ours ({code.getName()})."

    def _on_disconnect(
        self,
        _client: mqtt.Client,
        _: Any,
        flags: mqtt.DisconnectFlags,
        code: ReasonCode,
        _p: Properties | None,
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self.reason = f"it closed the connection ({code.getName()})"
        elif code.getName() == "Keep alive timeout":
            self.reason = "it stopped answering"
            self._silent = True

    def _on_log(self, _client: mqtt.Client, _: Any, level: int, line: str) -> None:
        if level == LogLevel.MQTT_LOG_ERR:
            self._log_line = f" ({line})"


class _Client(mqtt.Client):
    """paho, with pings of our own and word of their answers."""

    def __init__(self, on_pong: Callable[[], None], version: CallbackAPIVersion, **options: Any) -> None:
        super().__init__(version, **options)
        self._on_pong = on_pong

    @property
    def awaits_ping(self) -> bool:
        """Whether a ping is without its answer."""
        return self._ping_t > 0

    def ping(self) -> None:
        """Send PINGREQ behind all that was sent before."""
        self._send_pingreq()

    def _handle_pingresp(self) -> MQTTErrorCode:
        code = super()._handle_pingresp()
        self._on_pong()
        return code


def _properties(packet_type: int, **values: Any) -> Properties:
    """MQTT 5 properties; a value of None leaves its property out."""
    properties = Properties(packet_type)  # type: ignore[no-untyped-call]  # paho left the constructor untyped
    for name, value in values.items():
        if value is not None:
            setattr(properties, name, value)
    return properties
