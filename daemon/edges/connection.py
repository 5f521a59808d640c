"""One connection to the broker over paho: CONNECT, subscriptions, acknowledgements, publishes, its end.

Only the network thread comes here. Each connection has its own paho client, so nothing that paho queued for
an ended connection can be sent on the next one, and its own number, the generation.

Readings at QoS 2 are asked for at QoS 1. paho answers PUBREC before it hands a message over, so a crash
before our commit loses that message and its packet id for good; at QoS 1 it comes again, marked DUP.
With MQTT 3.1.1 the broker's own limits on message size and open messages are the only ones.
"""

from __future__ import annotations

import math
import select
import socket
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Any

import paho.mqtt.client as mqtt
from paho.mqtt.enums import LogLevel
from paho.mqtt.packettypes import PacketTypes

from gruard.daemon.edges.backlog import Backlog
from gruard.daemon.edges.client import Client, properties
from gruard.daemon.edges.dial import Dialler, tls_context
from gruard.daemon.edges.link import MAX_PACKET_BYTES, Bell, BrokerOptions, Link, cause
from gruard.daemon.edges.mailbox import MAX_IN_FLIGHT, Mailbox, Outgoing
from gruard.daemon.edges.reconnect import Ending, Protocol
from gruard.daemon.edges.subscriptions import Subscriptions
from gruard.daemon.errors import BrokerError
from gruard.daemon.records import Message

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

_CONNACK_TIMEOUT_S = 10.0  # for the answer to CONNECT
_ANSWER_TIMEOUT_S = 60.0  # for SUBACK and PUBACK: without them we would be deaf, or dumb, for ever
_REFUSED_S = (
    5.0  # a publish that was refused keeps its place so long: it will be tried again, and not at once
)
_HELD_S = 5.0  # after so long without an acknowledgement of ours, messages may wait at the broker
_SETTLED_S = 10.0  # a connection that old was not made only to be taken over
_TURN_MS = 500  # the network thread looks at keep-alive at least this often
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
        dialler: Dialler,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
    ) -> None:
        self._options = options
        self._v5 = protocol == "5"
        self._mailbox = mailbox
        self._link = link
        self._dialler = dialler
        self._clock = clock
        self._monotonic = monotonic
        self._unacked: OrderedDict[int, Message] = OrderedDict()  # packet id -> message, in order of arrival
        self._ready: set[int] = set()  # packet ids the worker has given back
        self._moved_s = 0.0  # when an acknowledgement last left, or the first message came that needs one
        self._tokens: dict[int, tuple[int, float]] = {}  # packet id of a publish -> its token, when it left
        self._refused: deque[tuple[int, float]] = deque()  # tokens of refused publishes, and when to say so
        self._paused_s = -math.inf  # when the inbox last kept us from reading
        self._shown_s = -math.inf  # when we last showed a sign of life without reading
        self._arrived: list[Message] = []  # in the present burst
        self._backlog = Backlog()
        self._log_line = ""  # paho's last low-level error before the broker answered
        self._silent = False  # the broker let the keep-alive or our patience run out
        self.accepted = False
        self.unexplained = True  # no reason is known why it ended
        self.ending = Ending.UNREACHABLE
        self.accepted_s = monotonic()
        self.reason = "it closed the connection"
        self._client = self._build_client()
        self._subscriptions = Subscriptions(subscriptions, self._client.ask_for)

    def run(self, stopping: threading.Event, bell: Bell) -> None:
        """Connect and serve until the connection ends or `stopping` is set.

        Raises:
            BrokerError: the broker is out of reach, silent or refuses us; the text says why.
        """
        link = self._link
        link.turned_s = self._monotonic()
        try:
            self._connect()
        except (OSError, ValueError) as error:  # ValueError: a host name that is none
            raise BrokerError(cause(error)) from error
        self.ending = Ending.SILENT
        deadline_s = self._monotonic() + _CONNACK_TIMEOUT_S
        while (sock := self._client.socket()) is not None:
            if stopping.is_set():
                self._leave()
                return
            now = link.turned_s = self._monotonic()
            self._turn(sock, bell, now)
            if self.accepted:
                self._look_after(now)
            else:
                self._silent |= now > deadline_s
            if self._silent:
                break
        if self.ending is Ending.SILENT:
            if self._silent:
                raise BrokerError("it does not answer")
            self.ending = Ending.CLOSED_EARLY
            raise BrokerError(f"it closed the connection instead of answering{self._log_line}")
        if not self.accepted:
            raise BrokerError(self.reason)

    def close(self) -> None:
        """Let go of the socket, however the connection ended."""
        sock = self._client.socket()
        if sock is not None:
            sock.close()

    def _build_client(self) -> Client:
        options = self._options
        client = Client(
            self._dialler,
            self._backlog.answered,
            options.max_packet_bytes,
            client_id=options.client_id,
            clean_session=None if self._v5 else False,
            protocol=mqtt.MQTTv5 if self._v5 else mqtt.MQTTv311,
        )
        client.username_pw_set(options.username, options.password)
        client.will_set(options.will_topic, options.will_payload, qos=1, retain=True)
        if options.tls is not None:
            client.tls_set_context(tls_context(options.tls, self._dialler))
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
        asked = properties(
            PacketTypes.CONNECT,
            SessionExpiryInterval=options.session_expiry_s,  # without it the session ends with the connection
            ReceiveMaximum=options.receive_maximum,
            MaximumPacketSize=options.max_packet_bytes,
        )
        self._client.connect(
            options.host, options.port, options.keepalive_s, clean_start=False, properties=asked
        )

    def _turn(self, sock: mqtt.SocketLike, bell: Bell, now: float) -> None:
        """Wait for bytes, room or the bell, and serve what there is."""
        client = self._client
        paused = self.accepted and self._mailbox.paused
        wanted = 0 if paused else select.POLLIN
        if client.want_write():
            wanted |= select.POLLOUT
        poller = select.poll()  # not select(), which fails from descriptor 1024 on
        poller.register(bell.fileno(), select.POLLIN)
        if wanted:  # a socket registered for nothing still reports a hang-up, again and again
            poller.register(sock.fileno(), wanted)
        left_over = bool(wanted & select.POLLIN) and client.reads_ahead
        ready = dict(poller.poll(0 if left_over else _TURN_MS))
        bell.silence()
        if left_over or ready.get(sock.fileno(), 0) & ~select.POLLOUT:
            self._link.last_packet_s = now
            self._read(now)
        if client.want_write():
            client.loop_write()
        if self._link.connected:
            self._send(now)
            self._ask_for_end_of_backlog()
        if paused:
            self._show_life(now)
        else:
            client.loop_misc()

    def _show_life(self, now: float) -> None:
        """Keep the connection while we leave what the broker sends unread, its answers to pings too."""
        self._paused_s = now
        if now - self._shown_s >= self._client.keepalive / 2:
            self._shown_s = now
            self._client.ping()

    def _look_after(self, now: float) -> None:
        """What is due by the clock on an accepted connection.

        Raises:
            BrokerError: the broker owes an answer for too long.
        """
        overdue_s = now - _ANSWER_TIMEOUT_S
        if self._paused_s < overdue_s:  # else the answer may be among what we have not read
            if self._subscriptions.unanswered_since(overdue_s):
                raise BrokerError("it does not answer a subscription")
            oldest = next(iter(self._tokens.values()), None)
            if oldest is not None and oldest[1] < overdue_s:
                raise BrokerError("it does not acknowledge what we publish")
        self._subscriptions.ask_again(now)
        while self._refused and self._refused[0][1] <= now:
            self._mailbox.settle(self._refused.popleft()[0], accepted=False)
        if self._link.rival is not None and now - self.accepted_s >= _SETTLED_S:
            self._link.rival = None

    def _read(self, now: float) -> None:
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
                if opened == len(self._unacked):  # none was open before
                    self._moved_s = now
                self._backlog.received(opened, len(self._unacked))
                self._mailbox.deliver(self._arrived)
                self._arrived = []

    def _ask_for_end_of_backlog(self) -> None:
        """Ping when the answer may show that the broker has caught up; behind SUBSCRIBE and every PUBACK."""
        still_open = len(self._unacked)
        if self._subscriptions.answered and self._backlog.must_ask(still_open):
            self._backlog.asked(still_open)
            self._client.ping()

    def _send(self, now: float) -> None:
        """Pass on what the worker has queued, while the socket takes it."""
        while not self._client.want_write() and (item := self._mailbox.next_outgoing()) is not None:
            if isinstance(item, Outgoing):
                self._publish(item, now)
            else:
                self._acknowledge(item, now)

    def _acknowledge(self, messages: Sequence[Message], now: float) -> None:
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
            if now - self._moved_s > _HELD_S:
                self._backlog.begin()
            self._moved_s = now

    def _publish(self, item: Outgoing, now: float) -> None:
        carried = None
        if self._v5:
            schema = None if item.schema is None else ("schema", item.schema)
            carried = properties(PacketTypes.PUBLISH, ContentType=item.content_type, UserProperty=schema)
        sent = self._client.publish(item.topic, item.payload, item.qos, item.retain, carried)
        if item.qos:
            self._tokens[sent.mid] = item.token, now

    def _leave(self) -> None:
        """Send what the worker has given, then DISCONNECT, so that the broker does not publish the will."""
        if not self._link.connected:
            return
        self._send(self._monotonic())
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
        if self.accepted:
            raise BrokerError("it answered CONNECT twice")
        if code.is_failure:
            refused_version = code.getName() == "Unsupported protocol version"
            self.ending = Ending.VERSION_REFUSED if refused_version else Ending.REFUSED
            self.reason = f"it refused client {self._options.client_id!r} ({code.getName()})"
            return
        client.on_log = None  # it costs time on every packet
        self._client.keep_alive_within(self._options.keepalive_s)
        self.accepted = True
        self.ending = Ending.LOST
        self.accepted_s = self._monotonic()
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
        # Open before it is said: whoever sees us connected may publish.
        self._mailbox.open(getattr(granted, "ReceiveMaximum", MAX_IN_FLIGHT))
        link.connected = True
        self._subscriptions.ask_for_all(self.accepted_s)

    def _on_subscribe(
        self,
        _client: mqtt.Client,
        _: Any,
        packet_id: int,
        codes: list[ReasonCode],
        _granted: Properties | None,
    ) -> None:
        reasons = [code.getName() if code.is_failure else None for code in codes]
        self._subscriptions.answer(packet_id, reasons, self._monotonic())
        self._link.refused = tuple(self._subscriptions.refused)
        self._link.last_error = self._subscriptions.trouble

    def _on_message(self, _client: mqtt.Client, _: Any, arrived: mqtt.MQTTMessage) -> None:
        if not self.accepted:
            raise BrokerError("it sends messages before it has answered CONNECT")
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
        token, _sent_s = self._tokens.pop(mid, (None, 0.0))
        if token is None:  # QoS 0
            return
        if not code.is_failure:
            self._mailbox.settle(token, accepted=True)
        else:
            self._refused.append((token, self._monotonic() + _REFUSED_S))
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
            self.unexplained = False
            if code.getName() == "Session taken over" and self.accepted:
                self.ending = Ending.TAKEN_OVER
        elif code.getName() == "Protocol error" and self.accepted:
            self.reason = "it sent what is not MQTT"
            self.unexplained = False
        elif code.getName() == "Keep alive timeout":
            self.reason = "it stopped answering"
            self.unexplained = False
            self._silent = True
            if self.accepted:
                self.ending = Ending.DEAD

    def _on_log(self, _client: mqtt.Client, _: Any, level: int, line: str) -> None:
        if level == LogLevel.MQTT_LOG_ERR:
            self._log_line = f" ({line})"
