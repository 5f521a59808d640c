"""Brokers that break the protocol in every way we could think of, one function each.

A scenario serves one connection after the other; `rng` is seeded, so a failure can be run again. `behave`
turns the server into a good broker, to see who comes back.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Self

from support_mqtt import (
    CONNACK,
    CONNECT,
    DISCONNECT,
    HOST,
    PINGREQ,
    PINGRESP,
    PUBACK,
    PUBLISH,
    SUBACK,
    SUBSCRIBE,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PUBREC, PUBREL, PUBCOMP, AUTH = 5, 6, 7, 15

#: Scenarios that keep the network thread busy with bytes: its CPU time shows nothing there.
BUSY = frozenset({"floods with qos 0", "floods with qos 1", "floods with pings", "sends a huge packet"})


def whole(kind: int, body: bytes = b"", flags: int = 0) -> bytes:
    """One packet of any length."""
    length, coded = len(body), b""
    while True:
        length, digit = divmod(length, 128)
        coded += bytes([digit | (128 if length else 0)])
        if not length:
            return bytes([kind << 4 | flags]) + coded + body


class Wire:
    """One connection as the broker sees it."""

    def __init__(self, sock: socket.socket, number: int, rng: random.Random) -> None:
        self.number = number  # of the connection, from 0
        self.rng = rng
        self.v5 = True
        self.over = threading.Event()
        self._sock = sock
        self._stream = sock.makefile("rb")

    def receive(self) -> tuple[int, bytes]:
        """The next packet; EOFError at the end."""
        head = self._bytes(1)[0]
        length = shift = 0
        while True:
            digit = self._bytes(1)[0]
            length |= (digit & 127) << shift
            shift += 7
            if digit < 128:
                break
        body = self._bytes(length)
        if head >> 4 == CONNECT:
            self.v5 = body[6] == 5
        return head >> 4, body

    def _bytes(self, count: int) -> bytes:
        got = self._stream.read(count) if count else b""
        if len(got) < count:
            raise EOFError
        return got

    def send(self, data: bytes) -> None:
        self._sock.sendall(data)

    def connack(self, code: int = 0, properties: bytes = b"", *, session: bool = False) -> bytes:
        return whole(CONNACK, bytes([session, code]) + (_sized(properties) if self.v5 else b""))

    def suback(self, subscribe: bytes, *codes: int) -> bytes:
        return whole(SUBACK, subscribe[:2] + (b"\0" if self.v5 else b"") + bytes(codes))

    def grant(self, subscribe: bytes, code: int = 1) -> bytes:
        """A SUBACK with QoS 1, or another code, for every filter."""
        at, filters = (3 if self.v5 else 2), 0
        while at < len(subscribe):
            at += 2 + struct.unpack_from(">H", subscribe, at)[0] + 1
            filters += 1
        return self.suback(subscribe, *[code] * filters)

    def message(self, topic: bytes = b"a", payload: bytes = b"1", packet_id: int | None = None) -> bytes:
        """A PUBLISH; with a packet id it is of QoS 1."""
        head = struct.pack(">H", len(topic)) + topic
        if packet_id is not None:
            head += struct.pack(">H", packet_id)
        return whole(PUBLISH, head + (b"\0" if self.v5 else b"") + payload, 0 if packet_id is None else 2)

    def greet(self, *, session: bool = False) -> None:
        """Take CONNECT and the subscription as a good broker does."""
        while True:
            kind, body = self.receive()
            if kind == CONNECT:
                self.send(self.connack(session=session))
            elif kind == SUBSCRIBE:
                self.send(self.grant(body))
                return

    def serve(self, answer: Callable[[int, bytes], bytes | None] | None = None) -> None:
        """Answer as a good broker, but for what `answer` does not return None for."""
        while True:
            kind, body = self.receive()
            special = answer(kind, body) if answer is not None else None
            if special is not None:
                self.send(special)
            elif kind == CONNECT:
                self.send(self.connack())
            elif kind == SUBSCRIBE:
                self.send(self.grant(body))
            elif kind == PINGREQ:
                self.send(whole(PINGRESP))
            elif kind == PUBLISH and (packet_id := packet_id_of(body)) is not None:
                self.send(whole(PUBACK, packet_id))

    def stall(self) -> None:
        """Read and say nothing more."""
        while self._stream.read(1):
            pass

    def freeze(self) -> None:
        """Do not even read."""
        self.over.wait(60)

    def close(self) -> None:
        self.over.set()
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def reset(self) -> None:
        """End with RST."""
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._stream.close()
        self._sock.close()


def packet_id_of(publish: bytes) -> bytes | None:
    """The packet id of one of our own publishes: those to `out` are of QoS 1."""
    length = struct.unpack_from(">H", publish)[0]
    return publish[2 + length : 4 + length] if publish[2 : 2 + length] == b"out" else None


def _sized(properties: bytes) -> bytes:
    return bytes([len(properties)]) + properties


class HostileBroker:
    """Serves every connection by `scenario`, until told to `behave`."""

    def __init__(self, scenario: Callable[[Wire], None], seed: int) -> None:
        self._scenario = scenario
        self._seed = seed
        self._good = False
        self.connections = 0
        self._server = socket.create_server((HOST, 0))
        self.port = int(self._server.getsockname()[1])
        self._wires: list[Wire] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def behave(self) -> None:
        """Be a good broker from now on: each new session gets one message, `good`."""
        self._good = True
        for wire in list(self._wires):
            wire.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                sock, _ = self._server.accept()
                wire = Wire(sock, self.connections, random.Random(self._seed * 1000 + self.connections))
                self.connections += 1
                self._wires.append(wire)
                thread = threading.Thread(target=self._serve, args=(wire, sock), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, wire: Wire, sock: socket.socket) -> None:
        # The stream too: a socket stays open as long as a file that was made of it.
        with suppress(OSError, EOFError, ValueError), sock, wire._stream:
            if self._good:
                wire.greet()
                wire.send(wire.message(payload=b"good", packet_id=1))
                wire.serve()
            else:
                try:
                    self._scenario(wire)
                finally:
                    wire.close()

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for wire in self._wires:
            wire.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()


# answers to CONNECT


def never_answers(wire: Wire) -> None:
    wire.stall()


def refuses_with_every_code(wire: Wire) -> None:
    wire.receive()
    wire.send(wire.connack(1 + wire.number * 7 % 255))


def answers_connect_in_the_other_version(wire: Wire) -> None:
    wire.receive()
    wire.v5 = not wire.v5
    wire.send(wire.connack())
    wire.stall()


def answers_connect_twice(wire: Wire) -> None:
    wire.greet()
    wire.send(wire.connack())
    wire.serve()


def sends_half_a_connack(wire: Wire) -> None:
    wire.receive()
    wire.send(wire.connack()[:2])
    wire.stall()


def sends_messages_before_the_connack(wire: Wire) -> None:
    wire.receive()
    wire.send(wire.message(packet_id=1))
    wire.stall()


def speaks_http(wire: Wire) -> None:
    wire.send(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    wire.stall()


def speaks_tls(wire: Wire) -> None:
    wire.send(b"\x15\x03\x01\0\x02\x02\x46")
    wire.stall()


def grants_nothing(wire: Wire) -> None:
    """Properties of CONNACK with the values the standard forbids, and unknown ones."""
    wire.receive()
    options = [
        *(b"\x21\0\0", b"\x27\0\0\0\0", b"\x13\0\0", b"\x24\x09", b"\x7f\0", b"\x21\0\5\x21\0\5"),
        *(b"\x22\xff\xff", b"\x26\0\1a", b"\x12\0\1x", b"\x1f\0\5ab"),
    ]
    wire.send(wire.connack(properties=options[wire.number % len(options)]))
    wire.over.wait(0.03)


# answers to SUBSCRIBE


def never_answers_a_subscription(wire: Wire) -> None:
    wire.receive()
    wire.send(wire.connack())
    wire.stall()


def refuses_the_subscription(wire: Wire) -> None:
    wire.serve(lambda kind, body: wire.grant(body, 0x87) if kind == SUBSCRIBE else None)


def answers_another_subscription(wire: Wire) -> None:
    wire.serve(lambda kind, _: wire.suback(b"\x12\x34", 1) if kind == SUBSCRIBE else None)


def answers_more_than_was_asked(wire: Wire) -> None:
    wire.serve(lambda kind, body: wire.suback(body, 1, 0, 2, 0x80) if kind == SUBSCRIBE else None)


def answers_a_subscription_with_nothing(wire: Wire) -> None:
    wire.serve(lambda kind, body: whole(SUBACK, body[:1]) if kind == SUBSCRIBE else None)


# answers to our publishes


def never_acknowledges(wire: Wire) -> None:
    wire.serve(lambda kind, _: b"" if kind == PUBLISH else None)


def acknowledges_what_nobody_sent(wire: Wire) -> None:
    def answer(kind: int, _body: bytes) -> bytes | None:
        return whole(PUBACK, wire.rng.randbytes(2)) if kind == PUBLISH else None

    wire.serve(answer)


def acknowledges_twice(wire: Wire) -> None:
    def answer(kind: int, body: bytes) -> bytes | None:
        packet_id = packet_id_of(body) if kind == PUBLISH else None
        return None if packet_id is None else 2 * whole(PUBACK, packet_id)

    wire.serve(answer)


def acknowledges_with_qos_2(wire: Wire) -> None:
    def answer(kind: int, body: bytes) -> bytes | None:
        packet_id = packet_id_of(body) if kind == PUBLISH else None
        if packet_id is None:
            return None
        return b"".join(whole(packet, packet_id) for packet in (PUBREC, PUBREL, PUBCOMP))

    wire.serve(answer)


def acknowledges_with_half_a_packet(wire: Wire) -> None:
    wire.serve(lambda kind, _: whole(PUBACK, b"\0") if kind == PUBLISH else None)


def refuses_every_message(wire: Wire) -> None:
    def answer(kind: int, body: bytes) -> bytes | None:
        packet_id = packet_id_of(body) if kind == PUBLISH else None
        return None if packet_id is None else whole(PUBACK, packet_id + (b"\x87\0" if wire.v5 else b""))

    wire.serve(answer)


def reads_nothing(wire: Wire) -> None:
    wire.greet()
    wire.freeze()


# messages


def floods_with_qos_0(wire: Wire) -> None:
    wire.greet()
    burst = wire.message() * 500
    while True:
        wire.send(burst)


def floods_with_qos_1(wire: Wire) -> None:
    """65,535 messages open at once, whatever receive maximum was asked for."""
    wire.greet(session=True)
    wire.send(b"".join(wire.message(packet_id=number) for number in range(1, 65_536)))
    wire.serve()


def floods_with_pings(wire: Wire) -> None:
    wire.greet()
    while True:
        wire.send((whole(PINGREQ) + whole(PINGRESP)) * 500)


def repeats_one_packet_id(wire: Wire) -> None:
    wire.greet()
    for _ in range(200):
        wire.send(wire.message(packet_id=7))
    wire.serve()


def sends_half_a_message(wire: Wire) -> None:
    wire.greet()
    wire.send(wire.message(payload=b"x" * 5000, packet_id=1)[:100])
    wire.stall()


def drips(wire: Wire) -> None:
    wire.greet()
    for byte in wire.message(payload=b"slow" * 50, packet_id=1):
        wire.send(bytes([byte]))
        wire.over.wait(0.02)
    wire.serve()


def announces_a_huge_packet(wire: Wire) -> None:
    wire.greet()
    wire.send(bytes([PUBLISH << 4 | 2]) + b"\xff\xff\xff\x7f")
    wire.stall()


def sends_a_huge_packet(wire: Wire) -> None:
    wire.greet()
    wire.send(wire.message(payload=bytes(32 * 2**20), packet_id=1) + wire.message(packet_id=2))
    wire.serve()


def sends_an_endless_length(wire: Wire) -> None:
    wire.greet()
    wire.send(bytes([PUBLISH << 4]) + b"\xff" * 5)
    wire.stall()


def sends_strange_topics(wire: Wire) -> None:
    wire.greet()
    topics = [b"\xff\xfe", b"", b"a\0b", b"\xed\xa0\x80", b"t" * 65_535, b"a/+/#", b"../../etc", b"$SYS/x"]
    wire.send(b"".join(wire.message(topic, packet_id=number + 1) for number, topic in enumerate(topics)))
    wire.serve()


def sends_a_topic_longer_than_the_packet(wire: Wire) -> None:
    wire.greet()
    wire.send(whole(PUBLISH, b"\xff\xffab"))
    wire.serve()


def sends_qos_3(wire: Wire) -> None:
    wire.greet()
    wire.send(whole(PUBLISH, b"\0\1a\0\1\0x", flags=6))
    wire.serve()


def sends_packet_id_0(wire: Wire) -> None:
    wire.greet()
    wire.send(wire.message(packet_id=0))
    wire.serve()


def sends_qos_2_that_is_never_released(wire: Wire) -> None:
    wire.greet()
    wire.send(
        b"".join(whole(PUBLISH, b"\0\1a" + struct.pack(">H", n) + b"\0x", flags=4) for n in range(1, 500))
    )
    wire.send(whole(PUBREL, b"\x77\x77"))
    wire.serve()


def sends_what_only_clients_send(wire: Wire) -> None:
    wire.greet()
    kinds = [CONNECT, SUBSCRIBE, 10, AUTH, 0, PUBREL, PUBREC, PUBCOMP, 11]
    wire.send(whole(kinds[wire.number % len(kinds)], b"\0\1\0"))
    wire.serve()


# garbage and ends


def sends_garbage_first(wire: Wire) -> None:
    wire.receive()
    wire.send(wire.rng.randbytes(wire.rng.randrange(1, 200)))
    wire.over.wait(0.05)


def sends_garbage_later(wire: Wire) -> None:
    wire.greet()
    wire.send(wire.rng.randbytes(wire.rng.randrange(1, 2000)))
    wire.over.wait(0.05)


def flips_a_bit(wire: Wire) -> None:
    """A good stream but for one bit anywhere."""
    stream = bytearray(_good_stream(wire))
    place = wire.rng.randrange(len(stream) * 8)
    stream[place // 8] ^= 1 << place % 8
    wire.send(bytes(stream))
    wire.over.wait(0.05)


def closes_at_every_byte(wire: Wire) -> None:
    """The n-th connection ends after n bytes of a good stream."""
    stream = _good_stream(wire)
    wire.send(stream[: wire.number % (len(stream) + 1)])


def resets_at_any_moment(wire: Wire) -> None:
    wire.greet()
    wire.send(wire.message(packet_id=1)[: wire.rng.randrange(12)])
    wire.over.wait(wire.rng.random() * 0.05)
    wire.reset()


def disconnects_with_every_code(wire: Wire) -> None:
    wire.greet()
    wire.send(whole(DISCONNECT, bytes([wire.number % 256, 0])))
    wire.stall()


def _good_stream(wire: Wire) -> bytes:
    _, _ = wire.receive()
    messages = b"".join(wire.message(payload=b"%d" % n, packet_id=n) for n in range(1, 4))
    return wire.connack(session=True) + wire.suback(b"\0\1", 1) + messages + whole(PINGRESP)


SCENARIOS: Mapping[str, Callable[[Wire], None]] = {
    scenario.__name__.replace("_", " "): scenario
    for scenario in (
        never_answers,
        refuses_with_every_code,
        answers_connect_in_the_other_version,
        answers_connect_twice,
        sends_half_a_connack,
        sends_messages_before_the_connack,
        speaks_http,
        speaks_tls,
        grants_nothing,
        never_answers_a_subscription,
        refuses_the_subscription,
        answers_another_subscription,
        answers_more_than_was_asked,
        answers_a_subscription_with_nothing,
        never_acknowledges,
        acknowledges_what_nobody_sent,
        acknowledges_twice,
        acknowledges_with_qos_2,
        acknowledges_with_half_a_packet,
        refuses_every_message,
        reads_nothing,
        floods_with_qos_0,
        floods_with_qos_1,
        floods_with_pings,
        repeats_one_packet_id,
        sends_half_a_message,
        drips,
        announces_a_huge_packet,
        sends_a_huge_packet,
        sends_an_endless_length,
        sends_strange_topics,
        sends_a_topic_longer_than_the_packet,
        sends_qos_3,
        sends_packet_id_0,
        sends_qos_2_that_is_never_released,
        sends_what_only_clients_send,
        sends_garbage_first,
        sends_garbage_later,
        flips_a_bit,
        closes_at_every_byte,
        resets_at_any_moment,
        disconnects_with_every_code,
    )
}
