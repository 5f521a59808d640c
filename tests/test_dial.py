"""How a connection is opened, and what is unsafe about it."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from support_mqtt import (
    CONNACK,
    CONNECT,
    HOST,
    Certificates,
    Mosquitto,
    ScriptedBroker,
    free_port,
    hurry,
    packet,
    wait_until,
)

from gruard.daemon.edges import dial
from gruard.daemon.edges.broker import Broker, BrokerOptions, TlsOptions
from gruard.daemon.edges.dial import Dialler, risks
from gruard.daemon.edges.link import Bell, Link

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ACCEPT = packet(CONNACK, b"\0\0\0")


def _options(host: str, port: int, **changes: Any) -> BrokerOptions:
    base = BrokerOptions(
        host=host, port=port, client_id="gruard", will_topic="gruard/status", will_payload=b"offline"
    )
    return replace(base, **changes)


@contextmanager
def _running(options: BrokerOptions) -> Iterator[Broker]:
    broker = Broker(options, [], time.time, time.monotonic)
    hurry(broker)
    broker.start()
    try:
        yield broker
    finally:
        began_s = time.monotonic()
        assert broker.stop(2.0)
        assert time.monotonic() - began_s < 2.0


@contextmanager
def _deaf_port() -> Iterator[int]:
    """A port whose queue of connections is full, so that further ones get no answer at all."""
    with socket.socket() as server:
        server.bind((HOST, 0))
        server.listen(0)
        callers = [socket.socket() for _ in range(4)]
        for caller in callers:
            caller.setblocking(False)
            caller.connect_ex(server.getsockname())
        time.sleep(0.1)
        try:
            yield server.getsockname()[1]
        finally:
            for caller in callers:
                caller.close()


# names and addresses


def test_dead_name_server_neither_hides_the_thread_nor_holds_up_the_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A question without an answer is told, waited for by the next attempt too, and asked only once."""
    answers, asked = threading.Event(), []
    real = socket.getaddrinfo
    monkeypatch.setattr(dial, "CONNECT_TIMEOUT_S", 0.7)

    def slow(host: str, port: int, **_: Any) -> Any:
        asked.append(host)
        assert answers.wait(30)
        return real(HOST, port, type=socket.SOCK_STREAM)

    monkeypatch.setattr(dial.socket, "getaddrinfo", slow)
    replies = {CONNECT: ACCEPT}
    with ScriptedBroker(lambda kind, _: replies.get(kind, b"")) as scripted:
        with _running(_options("broker.test", scripted.port)) as broker:
            assert wait_until(lambda: "name server does not answer" in str(broker.status().last_error))
            time.sleep(0.6)
            assert time.monotonic() - broker.status().turned_s < 1.5
            answers.set()
            assert wait_until(lambda: broker.status().connected)
            assert asked == ["broker.test"]
        answers.clear()
        with _running(_options("broker.test", scripted.port)):
            assert wait_until(lambda: len(asked) == 2)
        answers.set()


def test_name_that_does_not_exist_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the name server says is passed on, and asked again with the next attempt."""
    asked = []

    def unknown(host: str, _port: int, **_: Any) -> Any:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(dial.socket, "getaddrinfo", unknown)
    with _running(_options("nowhere.test", 1883)) as broker:
        assert wait_until(lambda: len(asked) >= 2)
        assert broker.status().last_error == (
            "No connection to the broker at nowhere.test:1883: name or service not known."
        )


def test_name_that_no_name_server_is_asked_for_is_a_sentence() -> None:
    """A label of more than 63 characters cannot be encoded; the thread goes on."""
    with _running(_options("x" * 70 + ".test", 1883)) as broker:
        assert wait_until(lambda: "No connection to the broker" in str(broker.status().last_error))
        assert broker.status().thread_alive


def test_second_address_of_a_host_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with a dead address, or one of a family that is not spoken here, is reached by its other one."""
    monkeypatch.setattr(dial, "_address", lambda _host: None)
    with ScriptedBroker(lambda kind, _: ACCEPT if kind == CONNECT else b"") as scripted:
        stream = (socket.SOCK_STREAM, 0, "")
        found = [
            (socket.AF_INET, *stream, (HOST, free_port())),
            (9999, *stream, (HOST, scripted.port)),
            (socket.AF_INET, *stream, (HOST, scripted.port)),
        ]
        monkeypatch.setattr(dial.socket, "getaddrinfo", lambda *_, **__: found)
        with _running(_options(HOST, scripted.port)) as broker:
            assert wait_until(lambda: broker.status().connected)


def test_host_without_any_address_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty answer is an error, not a crash."""
    monkeypatch.setattr(dial.socket, "getaddrinfo", lambda *_, **__: [])
    with _running(_options("empty.test", 1883)) as broker:
        assert wait_until(lambda: "the name has no address" in str(broker.status().last_error))


def test_address_that_cannot_be_connected_to_is_a_sentence() -> None:
    """An error that comes at once is told like one that comes later."""
    with _running(_options("255.255.255.255", 1883)) as broker:
        assert wait_until(lambda: broker.status().last_error is not None)
        assert "No connection to the broker at 255.255.255.255:1883" in str(broker.status().last_error)


def test_port_that_answers_nothing_is_given_up_and_left_at_once_on_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A connection that does not come about ends after its time, and with the daemon."""
    with _deaf_port() as port:
        with _running(_options(HOST, port)):
            time.sleep(0.3)  # stopped amid the attempt
        monkeypatch.setattr(dial, "CONNECT_TIMEOUT_S", 0.2)
        with _running(_options(HOST, port)) as broker:
            assert wait_until(lambda: "no answer within" in str(broker.status().last_error))


def test_rings_do_not_end_the_wait_for_a_connection() -> None:
    """Work that comes in meanwhile is no reason to take a socket for ready."""
    bell, link = Bell(), Link()
    dialler = Dialler(bell, threading.Event(), link, time.monotonic)
    near, far = socket.socketpair()
    with near, far:
        bell.ring()
        threading.Timer(0.1, far.send, [b"x"]).start()
        began_s = time.monotonic()
        dialler.wait(near, dial.select.POLLIN, began_s + 5)
        assert near.recv(1) == b"x"
        assert link.turned_s >= began_s
    bell.close()


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def test_tls_that_never_shakes_hands_is_given_up_and_left_at_once_on_stop(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port that takes the connection and says nothing is no reason to hang."""
    tls = TlsOptions(ca_file=certificates.authority)
    with socket.create_server((HOST, 0)) as silent:
        port = silent.getsockname()[1]
        with _running(_options(HOST, port, tls=tls)) as broker:
            time.sleep(0.3)
            assert time.monotonic() - broker.status().turned_s < 1.5
        monkeypatch.setattr(dial, "CONNECT_TIMEOUT_S", 0.2)
        with _running(_options(HOST, port, tls=tls)) as broker:
            assert wait_until(lambda: "no answer within" in str(broker.status().last_error))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
@pytest.mark.parametrize(("spoken", "generation"), [("TLSv1_1", 0), ("TLSv1_2", 1)])
def test_tls_older_than_1_2_is_refused(certificates: Certificates, spoken: str, generation: int) -> None:
    """A server that speaks 1.1 at best is not spoken to, and one that speaks 1.2 is."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(*certificates.issue("broker", f"IP:{HOST}"))
    server.minimum_version = server.maximum_version = ssl.TLSVersion[spoken]
    server.set_ciphers("ALL:@SECLEVEL=0")  # else OpenSSL does not even offer the older version
    port, over = free_port(), threading.Event()
    thread = threading.Thread(target=_serve_tls, args=(server, port, over))
    thread.start()
    tls = TlsOptions(ca_file=certificates.authority)
    with _running(_options(HOST, port, tls=tls)) as broker:
        assert wait_until(lambda: broker.status().connected or "version" in str(broker.status().last_error))
        assert broker.status().generation == generation
    over.set()
    thread.join(10)


def _serve_tls(context: ssl.SSLContext, port: int, over: threading.Event) -> None:
    with socket.create_server((HOST, port)) as server:
        server.settimeout(0.1)
        while not over.is_set():
            try:
                client, _ = server.accept()
            except TimeoutError:
                continue
            client.settimeout(5)
            try:
                with context.wrap_socket(client, server_side=True) as secured:
                    secured.recv(1000)
                    secured.sendall(ACCEPT)
                    over.wait(5)
            except OSError:
                client.close()


@pytest.mark.broker
def test_renewed_certificates_are_picked_up_by_the_next_connection(
    tmp_path: Path, certificates: Certificates
) -> None:
    """An authority that is replaced in its file heals the link without a restart."""
    folder = tmp_path / "other"
    folder.mkdir()
    other = Certificates(folder)
    certificate, key = certificates.issue("broker", f"IP:{HOST}")
    lines = [f"certfile {certificate}", f"keyfile {key}"]
    trusted = tmp_path / "trusted.crt"
    with open(other.authority, "rb") as source:  # noqa: PTH123 - a name, not a path
        trusted.write_bytes(source.read())
    with (
        Mosquitto(tmp_path, lines) as mosquitto,
        _running(_options(HOST, mosquitto.port, tls=TlsOptions(ca_file=str(trusted)))) as broker,
    ):
        assert wait_until(lambda: "certificate is not accepted" in str(broker.status().last_error))
        with open(certificates.authority, "rb") as source:  # noqa: PTH123 - a name, not a path
            trusted.write_bytes(source.read())
        assert wait_until(lambda: broker.status().connected)


def test_key_behind_a_pass_phrase_is_a_sentence_and_nobody_is_asked(
    tmp_path: Path, certificates: Certificates
) -> None:
    """OpenSSL would ask at the terminal and wait; the thread goes on instead."""
    certificate, key = certificates.issue("gateway", "DNS:gateway.test")
    locked = str(tmp_path / "locked.key")
    command = ["openssl", "ec", "-in", key, "-aes128", "-passout", "pass:phrase", "-out", locked]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    tls = TlsOptions(ca_file=certificates.authority, cert_file=certificate, key_file=locked)
    with _running(_options(HOST, free_port(), tls=tls)) as broker:
        assert wait_until(lambda: "the certificates cannot be read" in str(broker.status().last_error))
        assert "locked.key" in str(broker.status().last_error)


# what is unsafe


@pytest.mark.parametrize(
    ("host", "password", "tls", "told"),
    [
        ("10.0.0.5", "secret", None, True),
        ("broker.test", "secret", None, True),
        ("127.0.0.7", "secret", None, False),
        ("::1", "secret", None, False),
        ("localhost", "secret", None, False),
        ("10.0.0.5", None, None, False),
        ("10.0.0.5", "secret", TlsOptions(), False),
    ],
)
def test_password_in_the_clear_is_a_risk_off_the_loopback(
    host: str,
    password: str | None,
    tls: TlsOptions | None,
    told: bool,  # noqa: FBT001 - a column of the table
) -> None:
    """A password that crosses a network unencrypted is named, and never itself in the sentence."""
    found = risks(_options(host, 1883, username="gateway", password=password, tls=tls))
    assert bool(found) == told
    assert all("in the clear" in sentence and "secret" not in sentence for sentence in found)


@pytest.mark.parametrize(
    ("mode", "owned_by_root", "told"),
    [
        (0o600, False, False),
        (0o400, True, False),
        (0o640, True, False),  # the group ssl-cert of Debian
        (0o640, False, True),
        (0o644, True, True),
        (0o604, False, True),
    ],
)
def test_key_file_that_others_may_read_is_a_risk(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: int,
    owned_by_root: bool,  # noqa: FBT001 - a column of the table
    told: bool,  # noqa: FBT001 - a column of the table
) -> None:
    """Nobody but its owner may read it, and the group only where root owns it."""
    key = tmp_path / "gateway.key"
    key.touch()

    def with_owner(_path: Path) -> os.stat_result:
        return os.stat_result((0o100000 | mode, 0, 0, 1, 0 if owned_by_root else 1000, 0, 0, 0, 0, 0))

    monkeypatch.setattr(dial.Path, "stat", with_owner)
    options = _options("b.test", 8883, tls=TlsOptions(cert_file="gateway.crt", key_file=str(key)))
    assert [sentence for sentence in risks(options) if "chmod 600" in sentence and str(key) in sentence] == (
        risks(options) if told else []
    )
    assert bool(risks(options)) == told


def test_missing_key_file_is_left_to_the_attempt(tmp_path: Path) -> None:
    """The connection itself says that it cannot be read."""
    tls = TlsOptions(cert_file="gateway.crt", key_file=str(tmp_path / "none.key"))
    assert risks(_options("b.test", 8883, tls=tls)) == []


def test_risks_are_told_once_and_insecure_tls_shows_in_the_status(
    caplog: pytest.LogCaptureFixture, certificates: Certificates
) -> None:
    """A warning per risk, not one per attempt; the flag can be exported."""
    tls = TlsOptions(ca_file=certificates.authority, insecure=True)
    with _running(_options(HOST, free_port(), tls=tls)) as broker:
        assert broker.status().tls_insecure
        assert wait_until(lambda: broker._policy.absences >= 3)
    assert sum("other host names" in record.getMessage() for record in caplog.records) == 1
    with _running(_options(HOST, free_port())) as broker:
        assert not broker.status().tls_insecure
