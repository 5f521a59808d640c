"""The shipped broker configuration on a real mosquitto, and who may write and read what under it."""

from __future__ import annotations

import shutil
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion
from support_mqtt import HOST, Mosquitto, skip_without_mosquitto

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
ACCESS = (DEPLOY / "mosquitto.acl").read_text("utf-8")
USERS = ("gruard", "operator", "press-1", "press-2", "witness")
#: The test's own user: sees what got through, and publishes what others may or may not see.
WITNESS = "user witness\ntopic readwrite #\n"


def password_of(user: str) -> str:
    return f"password of {user}"


def login(user: str) -> list[str]:
    """Options of mosquitto_pub and mosquitto_sub."""
    return ["-u", user, "-P", password_of(user), "-V", "mqttv5"]


def shipped_broker(
    folder: Path,
    access: str = ACCESS,
    *,
    without: Iterable[str] = (),
    more: Iterable[str] = (),
    passwords: Mapping[str, str] | None = None,
    tls: Mapping[str, str] | None = None,
) -> Mosquitto:
    """mosquitto with the shipped configuration; only its paths, its port and its log are the test's own.

    `without` are lines of the configuration to leave out, `more` are added; `passwords` replaces users';
    `tls` are the files of the listener with TLS, which takes the place of the other.
    """
    skip_without_mosquitto()
    known = folder / "gruard.passwd"
    known.touch(0o600)
    everybody = {user: password_of(user) for user in USERS} | dict(passwords or {})
    known.write_text("".join(f"{user}:{password}\n" for user, password in everybody.items()))
    passwd = shutil.which("mosquitto_passwd", path="/usr/bin:/usr/sbin:/bin:/sbin")
    subprocess.run([passwd or "mosquitto_passwd", "-U", str(known)], check=True, timeout=30)
    listed = folder / "gruard.acl"
    listed.write_text(access + WITNESS)
    listed.chmod(0o600)
    text = (DEPLOY / "mosquitto.conf").read_text("utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    ours = {
        "pid_file /run/mosquitto/mosquitto.pid": f"pid_file {folder}/mosquitto.pid",
        "log_dest syslog": "log_dest stderr",
        "password_file /etc/mosquitto/gruard.passwd": f"password_file {known}",
        "acl_file /etc/mosquitto/gruard.acl": f"acl_file {listed}",
        "persistence_location /var/lib/mosquitto/": "",  # the test's broker has one of its own
        "listener 1883": "",  # likewise, in the first line, so that the options of a listener are its own
        **dict.fromkeys(without, ""),
    }
    for shipped in ours:
        assert lines.count(shipped) == 1, shipped
    kept = [ours.get(line, line) for line in lines]
    if tls is not None:
        for key in ("cafile", "certfile", "keyfile"):
            assert text.count(f"\n#{key} ") == 1
        kept += [f"{key} {path}" for key, path in tls.items()]
        assert "\n#tls_version tlsv1.2\n#use_username_as_clientid true\n" in text
        kept.append("tls_version tlsv1.2")
    return Mosquitto(folder, [*(line for line in kept if line), *more])


class Client:
    """One user's connection, which hears all that it may."""

    def __init__(self, port: int, user: str) -> None:
        self.received: list[tuple[str, str]] = []  # topic, payload
        self._granted = threading.Event()
        self._client = mqtt.Client(
            CallbackAPIVersion.VERSION2, client_id=user, protocol=mqtt.MQTTv5, reconnect_on_failure=False
        )
        self._client.username_pw_set(user, password_of(user))
        self._client.on_message = self._hear
        self._client.on_subscribe = lambda *_: self._granted.set()
        self._client.connect(HOST, port)

    def _hear(self, _client: mqtt.Client, _: Any, message: mqtt.MQTTMessage) -> None:
        self.received.append((message.topic, message.payload.decode()))

    @property
    def connected(self) -> bool:
        return self._client.is_connected()

    def subscribe(self, topic: str) -> None:
        """Return once the broker has answered; all it sent before has then arrived."""
        self._granted.clear()
        self._client.subscribe(topic, qos=0)
        assert self._granted.wait(10)

    def publish(self, topics: Iterable[str], payload: str) -> None:
        """Publish to each topic; return once the broker has taken or refused them all."""
        for sent in [self._client.publish(topic, payload, qos=1) for topic in topics]:
            sent.wait_for_publish(10)
            assert sent.is_published()

    def __enter__(self) -> Self:
        self._client.loop_start()
        self.subscribe("#")
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()


def may_write(port: int, user: str, topics: Iterable[str]) -> set[str]:
    """The topics of these on which a message of the user gets through."""
    with Client(port, "witness") as witness, Client(port, user) as client:
        client.publish(topics, "tried")
        witness.subscribe("end")
        return {topic for topic, payload in witness.received if payload == "tried"}


def may_read(port: int, user: str, topics: Iterable[str]) -> set[str]:
    """The topics of these on which the user hears another's message."""
    with Client(port, "witness") as witness, Client(port, user) as client:
        witness.publish(topics, "shown")
        client.subscribe("end")
        return {topic for topic, payload in client.received if payload == "shown"}
