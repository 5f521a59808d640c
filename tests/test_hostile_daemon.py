"""The real daemon under messages of any size and topic, old retained ones, and with a secret to keep."""

from __future__ import annotations

import json
import re
import subprocess
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support_daemon import Daemon
from support_mqtt import (
    CONNACK,
    CONNECT,
    HOST,
    PINGREQ,
    PINGRESP,
    PUBLISH,
    SUBACK,
    SUBSCRIBE,
    Mosquitto,
    ScriptedBroker,
    Subscriber,
    packet,
    publish,
    set_password,
    wait_until,
)
from support_payloads import HOSTILE_TOPICS

from gruard.daemon.errors import ConfigError
from gruard.daemon.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.broker

MIB = 1 << 20
LIMIT_BYTES = 262_144  # of a payload
PACKET_BYTES = MIB  # of a packet, as MQTT 5 tells the broker

CONFIG = """
version = 1
[mqtt]
port = {mqtt_port}
client_id = "gruard-test"
protocol = "%s"
%s
[[sources]]
name = "raw"
topic = "raw/{{device+}}"
[http]
listen = "127.0.0.1:{http_port}"
[state]
directory = "{state}"
[log]
level = "debug"
format = "%s"
"""
WARMUP_MARK = "# {warmup}\n"


def config(protocol: str = "5", mqtt: str = "", log: str = "text") -> str:
    return CONFIG % (protocol, mqtt, log) + WARMUP_MARK


def good(number: int) -> str:
    return json.dumps({"temperature": 20 + number % 7 / 10, "pressure": 3 + number % 5 / 10})


@contextmanager
def running(folder: Path, port: int, text: str) -> Iterator[Daemon]:
    with Daemon(folder, port, config=text) as daemon:
        yield daemon


def peak_kib(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")))


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5", "ascii")  # proc(5): the high-water mark is set to now


def rejected(daemon: Daemon, reason: str) -> float:
    return daemon.metric(f'gruard_decode_errors_total{{reason="{reason}"}}')


def padded(size: int) -> bytes:
    empty = b'{"temperature":1,"s":""}'
    return empty[:-2] + b"x" * (size - len(empty)) + empty[-2:]


#: MQTT 5 tells the broker to withhold what is too large. With 3.1.1 the client cuts it while it reads: the
#: head of what is over the limit passes through paho, which copies it several times. One MiB of each is what
#: the daemon's memory moves by on its own.
GROWTH_BYTES = {"5": 3 * PACKET_BYTES, "3.1.1": 17 * PACKET_BYTES}


@pytest.mark.parametrize("protocol", GROWTH_BYTES)
def test_messages_of_any_size_are_scored_or_counted_within_bounds(tmp_path: Path, protocol: str) -> None:
    """From nothing to 256 MiB: what is over the limit is withheld or counted, and memory stays bounded."""
    with (
        Mosquitto(tmp_path) as broker,
        running(tmp_path, broker.port, config(protocol)) as daemon,
    ):
        publish(broker.port, "raw/pump", *[good(n) for n in range(100)])
        assert daemon.settled(100)
        forget_peak(daemon.pid)
        idle = peak_kib(daemon.pid)
        for number, size in enumerate((1, LIMIT_BYTES - 1, LIMIT_BYTES, LIMIT_BYTES + 1, 2 * LIMIT_BYTES)):
            publish(broker.port, f"raw/sized-{number}", b"1" if size == 1 else padded(size))
        nothing = ["mosquitto_pub", "-h", HOST, "-p", str(broker.port), "-t", "raw/empty", "-q", "1", "-n"]
        subprocess.run(nothing, check=True, timeout=30)
        publish(broker.port, "raw/pump", good(1))
        assert daemon.settled(107)
        for size in (MIB, 8 * MIB, 268_000_000):  # the last fills the longest packet that MQTT knows
            publish(broker.port, "raw/huge", padded(size))
        publish(broker.port, "raw/pump", good(2))
        unseen = 3 if protocol == "5" else 0
        assert daemon.settled(111 - unseen)
        grown_bytes = 1024 * (peak_kib(daemon.pid) - idle)
        assert rejected(daemon, "too_large") == 5 - unseen
        assert rejected(daemon, "empty") == 1
        assert daemon.metric('gruard_readings_total{result="scored"}') == 104
        assert grown_bytes < GROWTH_BYTES[protocol], f"{grown_bytes / MIB:.1f} MiB"


def published(topic: bytes, payload: bytes) -> bytes:
    """A PUBLISH packet of MQTT 5 with QoS 0, whatever the topic."""
    body = len(topic).to_bytes(2, "big") + topic + b"\0" + payload
    length, rest = b"", len(body)
    while rest or not length:
        length += bytes([rest % 128 | (128 if rest > 127 else 0)])
        rest //= 128
    return bytes([PUBLISH << 4]) + length + body


def accept(kind: int, body: bytes) -> bytes:
    """What a broker says that agrees to everything."""
    if kind == CONNECT:
        return packet(CONNACK, b"\0\0\0")
    if kind == SUBSCRIBE:
        filters, at = 0, 3  # behind the packet id and properties, of which there are none
        while at < len(body):
            at += 3 + int.from_bytes(body[at : at + 2], "big")
            filters += 1
        return packet(SUBACK, body[:2] + b"\0" + b"\1" * filters)
    return packet(PINGRESP) if kind == PINGREQ else b""


@pytest.mark.parametrize("form", ["text", "json", "journal"])
def test_hostile_topics_write_no_line_label_or_file_of_their_own(tmp_path: Path, form: str) -> None:
    """Controls, climbing paths, markup and broken UTF-8 end as a device or a count, never as they are."""
    topics = [b"raw/" + tail.encode("utf-8", "surrogatepass") for _, tail in HOSTILE_TOPICS]
    topics += [
        b"",
        b"\xff",
        b"raw/\xff\xfe",
        b"raw/\xc0\x80",
        b"raw/" + b"\xff" * 60_000,
        b"$SYS/a",
        b"#",
        b"raw/+",
    ]
    with ScriptedBroker(accept) as broker, running(tmp_path, broker.port, config(log=form)) as daemon:
        before = {path.name for path in daemon.state.iterdir()}
        for topic in topics:
            if len(topic) <= 65_535:
                broker.send(published(topic[:65_535], good(0).encode()))
        broker.send(published(b"raw/pump", good(1).encode()))
        assert daemon.settled(len(topics) + 1)
        devices = daemon.devices()
        log, metrics = daemon.log(), daemon.get("/metrics")[1]
        assert broker.connections == 1
        assert {path.name for path in daemon.state.iterdir()} == before
    assert "pump" in devices
    assert all(name.isprintable() and not set(name) & set("+#<>\"'\\|$`") for name in devices)
    assert "bad_device_id" in log
    assert [line for line in log.split("\n") if not line.isprintable()] == []
    head = {"text": r"\d{4}-\d\d-\d\dT", "json": r"\{\"", "journal": r"<\d>"}[form]
    assert all(re.match(head, line) for line in log.splitlines())
    assert "onerror" not in metrics
    assert metrics.isascii() or all(line.isprintable() for line in metrics.split("\n"))


def test_retained_messages_prime_nothing_and_stop_nothing(tmp_path: Path) -> None:
    """Old copies, sound or poisoned, are counted at each start of a new session and make no device."""
    with Mosquitto(tmp_path) as broker:
        for number, payload in enumerate((good(1), "NaN", "", '{"temperature":1e308}', "[" * 9999, good(2))):
            publish(broker.port, f"raw/old-{number}", payload or " ", options=["-r"])
        with Subscriber(broker.port, "gruard/#") as seen:
            for start in range(2):
                with running(tmp_path, broker.port, config()) as daemon:
                    # RetainHandling 1 [MQTT 5, 3.8.3.1]: the broker repeats them for a new subscription only.
                    expected = 6 if start == 0 else 0
                    publish(broker.port, "raw/pump", good(3))
                    assert daemon.settled(expected + 1)
                    assert rejected(daemon, "retained") == expected
                    assert daemon.devices().keys() == {"pump"}
                    assert daemon.get("/readyz")[0] == 200
                    daemon.stop()
        assert not [line for line in seen.lines if line.startswith("gruard/alerts/")]


@pytest.mark.parametrize(
    "topic",
    [
        *("gruard/{device}", "gruard/alerts/{device}", "gruard/{kind}/{device}", "gruard/{device+}"),
        *("+/alerts/{device}", "{site}/{device+}", "{site}/state/{device}", "gruard/state/{device}/#"),
        *("{device}/status", "gruard/cmd/{device}", "+/+/{device}"),
    ],
)
def test_what_the_daemon_says_itself_is_never_a_source(tmp_path: Path, topic: str) -> None:
    """A pattern that would hear our own alerts, states or commands is refused before the start."""
    path = tmp_path / "gruard.toml"
    path.write_text(f'version = 1\n[[sources]]\ntopic = "{topic}"\n')
    with pytest.raises(ConfigError, match="itself publishes below gruard/"):
        load(path, {})
    path.write_text(
        f'version = 1\n[alerts]\nbase = "elsewhere/deep/down"\n[[sources]]\ntopic = "a/{topic}"\n'
    )
    assert load(path, {}).sources


SECRET = "canary-5f1c"  # noqa: S105 -- made to be looked for


def test_the_password_is_nowhere_to_be_seen(tmp_path: Path) -> None:
    """Log at debug, pages, alerts, state, lists and arguments of the running daemon are without it."""
    users = tmp_path / "users"
    set_password(users, "reader", SECRET)
    text = config(mqtt=f'username = "reader"\npassword = "{SECRET}"')
    who = ["-u", "reader", "-P", SECRET]
    with (
        Mosquitto(tmp_path, ["allow_anonymous false", f"password_file {users}"]) as broker,
        Subscriber(broker.port, "gruard/#", options=who) as seen,
        running(tmp_path, broker.port, text) as daemon,
    ):
        wild = [json.dumps({"temperature": n * 1000, "pressure": n * -500}) for n in range(1, 40)]
        publish(broker.port, "raw/pump", *[good(n) for n in range(150)], *wild, options=who)
        assert daemon.settled(189)
        assert wait_until(lambda: any(line.startswith("gruard/alerts/") for line in seen.lines), 30)
        told = [daemon.get(path)[1] for path in ("/metrics", "/healthz", "/readyz", "/", "/api/v1/devices")]
        for command in (["check-config"], ["devices", "list", "--json"], ["alerts", "list", "--json"]):
            done = daemon.run(*command)
            assert done.returncode == 0, done.stderr
            told += [done.stdout, done.stderr]
        told += [*seen.lines, Path(f"/proc/{daemon.pid}/cmdline").read_text("utf-8")]
        broker.stop()
        assert wait_until(lambda: daemon.get("/readyz")[0] == 503, 30)
        told.append(daemon.get("/readyz")[1])
        daemon.stop()
        told.append(daemon.log())
        files = [path.read_bytes() for path in daemon.state.rglob("*") if path.is_file()]
    assert files
    assert [text for text in told if SECRET in text] == []
    assert not any(SECRET.encode() in content for content in files)


def test_a_wrong_password_is_not_repeated_either(tmp_path: Path) -> None:
    """What the broker refuses is told by its reason alone."""
    users = tmp_path / "users"
    set_password(users, "reader", "another")
    text = config(mqtt=f'username = "reader"\npassword = "{SECRET}"')
    with Mosquitto(tmp_path, ["allow_anonymous false", f"password_file {users}"]) as broker:
        daemon = Daemon(tmp_path, broker.port, config=text).start(ready=False)
        try:
            assert wait_until(lambda: "uthori" in daemon.get("/readyz")[1], 30)
            told = daemon.get("/readyz")[1] + daemon.get("/metrics")[1]
        finally:
            daemon.stop()
    assert SECRET not in told + daemon.log()
