"""What the broker edge is told and what it tells: options, status, error texts. No paho here."""

from __future__ import annotations

import math
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gruard.daemon.edges.reconnect import Protocol

#: TCP, and TLS again as much. A lost SYN is repeated after 1 and 3 s, so a link that is back is found.
CONNECT_TIMEOUT_S = 4.0
#: The largest packet of the protocol [MQTT 5, 1.5.5], until a broker names a lower limit.
MAX_PACKET_BYTES = 268_435_455


@dataclass(frozen=True)
class TlsOptions:
    """Encryption. The broker's certificate must lead to `ca_file`, or to one of the system's when None."""

    ca_file: str | None = None
    cert_file: str | None = None  # our own certificate, with key_file
    key_file: str | None = None
    insecure: bool = False  # True: the certificate may be for another host name


@dataclass(frozen=True)
class BrokerOptions:
    """Where the broker is and what is asked of it."""

    host: str
    port: int
    client_id: str  # fixed: the broker keeps the session under it
    will_topic: str
    will_payload: bytes  # published by the broker, QoS 1 and retained, when we vanish
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    keepalive_s: int = 10  # a dead link is noticed after twice this
    protocol: Protocol = "5"
    session_expiry_s: int = 7 * 24 * 3600
    receive_maximum: int = 512  # QoS 1 messages the broker may have open with us (MQTT 5)
    max_packet_bytes: int = 262_144  # larger ones are withheld by the broker (MQTT 5)
    tls: TlsOptions | None = None
    inbox_readings: int = 4096  # beyond it QoS 0 messages are shed


@dataclass(frozen=True)
class BrokerStatus:
    """The link at one moment. Counters run since `Broker.start`.

    A network thread that works comes round twice a second, whatever the network does. One that has not for
    half a minute is stuck and cannot be replaced: only a new process helps.
    """

    connected: bool
    generation: int  # accepted connections so far
    protocol: Protocol  # of the current or next connection
    session_present: bool  # the broker knew our session when we last connected
    last_error: str | None  # one sentence; None from a good connection on, until the next trouble
    refused: tuple[str, ...]  # topic filters the broker would not let us subscribe to
    shed: int  # QoS 0 messages dropped because the inbox was full
    stale_acks: int  # acknowledgements not sent because their connection had ended
    inbox: int
    inbox_capacity: int
    in_flight: int  # QoS 1 publishes without an answer
    last_packet_s: float | None  # when bytes last came from the broker, by the caller's monotonic clock
    thread_alive: bool  # False: call `Broker.revive`
    session: int = 0  # how many of the connections found no session of ours at the broker
    turned_s: float = math.inf  # when the network thread last came round, by the monotonic clock
    revivals: int = 0  # network threads that died and were replaced
    tls_insecure: bool = False  # TLS that takes a certificate for another host name

    @property
    def reconnects(self) -> int:
        """Connections after the first."""
        return max(0, self.generation - 1)


@dataclass
class Link:
    """The part of the status that the network thread writes and any thread reads."""

    connected: bool = False
    generation: int = 0
    session: int = 0
    session_present: bool = False
    last_error: str | None = None
    rival: str | None = None  # says that another client uses our id, until a connection has settled
    refused: tuple[str, ...] = ()
    stale_acks: int = 0
    last_packet_s: float | None = None
    turned_s: float = math.inf  # not started yet
    packet_limit_bytes: int = MAX_PACKET_BYTES  # of what we may send


class Bell:
    """Wakes the network thread out of poll; may be rung from any thread, also after it was closed."""

    def __init__(self) -> None:
        self._hear, self._pull = socket.socketpair()
        self._hear.setblocking(False)
        self._pull.setblocking(False)

    def fileno(self) -> int:
        """The descriptor to poll for reading."""
        return self._hear.fileno()

    def ring(self) -> None:
        """Make the descriptor readable."""
        with suppress(OSError):  # full: it rings already; closed: nobody is left to wake
            self._pull.send(b"!")

    def silence(self) -> None:
        """Make it unreadable until the next ring."""
        with suppress(BlockingIOError):
            self._hear.recv(4096)

    def close(self) -> None:
        """Free both ends."""
        self._hear.close()
        self._pull.close()


def cause(error: Exception) -> str:
    """The few words of a network error that matter to a person."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted, {error.verify_message.rstrip('.')}"
    if isinstance(error, TimeoutError):
        return f"no answer within {CONNECT_TIMEOUT_S:.0f} s"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    return str(error)
