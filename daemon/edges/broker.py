"""The MQTT edge: one session that survives restarts, acknowledgements in order, reconnects for ever.

    network thread   connect -> subscribe -> inbox              PUBACKs, publishes -> broker
    worker thread    take() ... commit ... ack()                publish() ... confirmed()

Only the network thread touches the paho client of the session, so no call of ours waits on a lock of paho's.
The other files of this edge: `connection` (one connection), `client` and `dial` (paho, sockets and TLS below
it), `backlog` (what waited while we were away), `mailbox` (what the two threads hand each other), `reconnect`
(when to try again), `link` (options and status), `publisher` (a small client beside all this).
"""

from __future__ import annotations

import logging
import random
import threading
from typing import TYPE_CHECKING

from gruard.daemon.edges.connection import Connection
from gruard.daemon.edges.dial import Dialler, risks
from gruard.daemon.edges.link import Bell, BrokerOptions, BrokerStatus, Link, TlsOptions
from gruard.daemon.edges.mailbox import Mailbox
from gruard.daemon.edges.publisher import Publisher
from gruard.daemon.edges.reconnect import Ending, Reconnect
from gruard.daemon.errors import BrokerError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gruard.daemon.records import Message

__all__ = ["Broker", "BrokerOptions", "BrokerStatus", "Publisher", "TlsOptions"]

_log = logging.getLogger(__name__)

_HEADER_BYTES = 64  # fixed header, packet id and property headers of a publish, rounded up


class Broker:
    """One persistent session on a broker. `start` and `stop` once; the rest is for the worker thread."""

    def __init__(
        self,
        options: BrokerOptions,
        subscriptions: Sequence[tuple[str, int]],
        clock: Callable[[], float],
        monotonic: Callable[[], float] | None = None,
    ) -> None:
        """`clock` stamps arrivals (Unix seconds); waits are measured by `monotonic` (`clock`, when None)."""
        self._options = options
        self._subscriptions = tuple(subscriptions)
        self._clock = clock
        self._monotonic = monotonic or clock
        self._bell: Bell | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._mailbox = Mailbox(options.inbox_readings, self._ring)
        self._link = Link()
        self._policy = Reconnect(options.protocol)
        self._revivals = 0
        self._told: set[str] = set()  # warnings that need no second telling

    def start(self) -> None:
        """Begin to connect; returns at once and does not fail because the broker is away."""
        self._link.turned_s = self._monotonic()
        bell = self._bell = Bell()
        self._thread = threading.Thread(target=self._run, args=(bell,), name="gruard-broker", daemon=True)
        self._thread.start()

    def revive(self) -> bool:
        """Replace a network thread that has died; True when there is a new one.

        The session, the inbox and all counters go on. Unanswered publishes come back by `failed`, and
        acknowledgements of the dead connection are counted as stale, as after any other end of it.
        """
        if self._thread is None or self._thread.is_alive() or self._stopping.is_set():
            return False
        self._link.connected = False
        self._mailbox.close()
        try:
            self.start()
        except (OSError, RuntimeError) as error:  # no descriptors or no threads are left: try again later
            self._link.last_error = f"The network thread cannot be started again: {error}."
            return False
        self._revivals += 1
        return True

    def rest(self) -> None:
        """Read nothing more, so that a flood does not take the time of the last commit."""
        self._mailbox.resting = True

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
            last_error=link.last_error or link.rival,
            refused=link.refused,
            shed=self._mailbox.shed,
            stale_acks=link.stale_acks,
            inbox=len(self._mailbox),
            inbox_capacity=self._mailbox.capacity,
            in_flight=self._mailbox.in_flight,
            last_packet_s=link.last_packet_s,
            thread_alive=self._thread is not None and self._thread.is_alive(),
            session=link.session,
            turned_s=link.turned_s,
            revivals=self._revivals,
            tls_insecure=self._options.tls is not None and self._options.tls.insecure,
        )

    def _ring(self) -> None:
        if self._bell is not None:
            self._bell.ring()

    def _run(self, bell: Bell) -> None:
        try:
            dialler = Dialler(bell, self._stopping, self._link, self._monotonic)
            while not self._stopping.is_set():
                ending, lived_s = self._attempt(bell, dialler)
                self._pause(self._policy.next_delay_s(ending, lived_s, random.random()))
        except BaseException as fault:  # noqa: BLE001 - there is nobody above who could hear of it
            # Out of memory, or an exit in the wrong thread. Whoever reads the status sees a dead thread.
            self._link.last_error = f"The network thread ended because of a fault ({_named(fault)})."
            _log.critical("the network thread ended", exc_info=True)
        finally:
            bell.close()

    def _pause(self, delay_s: float) -> None:
        """Wait before the next attempt, and come round meanwhile."""
        until_s = self._monotonic() + delay_s
        while not self._stopping.is_set():
            now = self._link.turned_s = self._monotonic()
            if now >= until_s:
                return
            self._stopping.wait(min(until_s - now, 0.5))

    def _attempt(self, bell: Bell, dialler: Dialler) -> tuple[Ending, float]:
        """One connection, from CONNECT to whatever ends it: how it ended, and the seconds it was up."""
        link, options = self._link, self._options
        where = f"the broker at {options.host}:{options.port}"
        self._warn_of_risks()
        connection: Connection | None = None
        sentence, unexplained = "", False
        try:
            connection = Connection(
                options,
                self._policy.protocol,
                self._subscriptions,
                self._mailbox,
                link,
                dialler,
                self._clock,
                self._monotonic,
            )
            connection.run(self._stopping, bell)
            sentence, unexplained = f"Lost {where}: {connection.reason}.", connection.unexplained
        except BrokerError as error:
            lost = connection is not None and connection.accepted
            sentence = f"{'Lost' if lost else 'No connection to'} {where}: {error}."
        except Exception as error:  # noqa: BLE001 - a fault of ours or paho's must not end this thread
            _log.exception("the connection to %s:%s met a fault", options.host, options.port)
            sentence = f"Dropped {where} because of a fault ({_named(error)})."
        finally:
            link.connected = False
            self._mailbox.close()
            if connection is not None:
                connection.close()
        ending, lived_s = Ending.UNREACHABLE, 0.0
        if connection is not None:
            ending, lived_s = connection.ending, self._monotonic() - connection.accepted_s
        if not self._stopping.is_set():
            again_early = self._policy.thrown_out > 0 and lived_s < self._policy.settled_s
            self._tell(sentence, ending, guess=unexplained and again_early)
        return ending, lived_s

    def _tell(self, sentence: str, ending: Ending, *, guess: bool) -> None:
        """Show how a connection ended, and log it unless the one before ended likewise."""
        link, own = self._link, self._options.client_id
        if ending is Ending.TAKEN_OVER:
            sentence = link.rival = f"Another client uses the id {own!r}. {sentence}"
        elif guess:
            sentence += f" Again soon after it let us in: perhaps another client uses the id {own!r}."
            link.rival = sentence
        else:
            link.rival = None
        if sentence != link.last_error:
            _log.warning("%s", sentence)
        link.last_error = sentence

    def _warn_of_risks(self) -> None:
        for sentence in risks(self._options):
            if sentence not in self._told:
                self._told.add(sentence)
                _log.warning("%s", sentence)


def _named(fault: BaseException) -> str:
    # Not its repr, which for a password that is no text would show it.
    return f"{type(fault).__name__}: {fault}"
