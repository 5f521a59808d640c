"""The shipped broker configuration on a real mosquitto: each user may do what is listed, and nothing else."""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from support_access import (
    ACCESS,
    USERS,
    WITNESS,
    Client,
    login,
    may_read,
    may_write,
    password_of,
    shipped_broker,
)
from support_daemon import Daemon
from support_mqtt import HOST, Certificates, Mosquitto, Subscriber, publish, wait_until

from gruard.daemon.config_values import OUTPUT_LEVELS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.broker

SENSORS = frozenset(
    {
        *("sensors", "sensors/press-1", "sensors/press-1/temperature", "sensors/press-2", "sensors/press-11"),
        *("sensors/gruard", "sensors/gruard/temperature", "sensors/operator", "sensors/operator/temperature"),
    }
)
SAYS = frozenset(f"gruard/{rest}" for rest in ("status", "info", "health", "alerts/press-1", "state/a/b"))
COMMANDS = frozenset({"gruard/cmd/mute", "gruard/cmd/feedback/press-1"})
TOPICS = SENSORS | SAYS | COMMANDS | {"gruard", "gruard/other", "gruard/status/more", "plant/press-1"}

MAY_WRITE = {
    "gruard": SAYS,
    "operator": COMMANDS,
    "press-1": {"sensors/press-1", "sensors/press-1/temperature"},
}
MAY_READ = {
    "gruard": (SENSORS | COMMANDS) - {"sensors/gruard", "sensors/gruard/temperature"},
    "operator": TOPICS - {"plant/press-1", "sensors/operator", "sensors/operator/temperature"},
    "press-1": set[str](),
}
RULES = [line for line in ACCESS.splitlines() if line and not line.startswith("#")]

CONFIG = """
version = 1
[mqtt]
port = {mqtt_port}
username = "gruard"
password = "password of gruard"
[[sources]]
topic = "sensors/{{device}}"
[train]
every = "off"
[http]
listen = "127.0.0.1:{http_port}"
[state]
directory = "{state}"
"""


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """mosquitto as shipped."""
    with shipped_broker(tmp_path) as mosquitto:
        yield mosquitto


def as_listed(broker: Mosquitto) -> bool:
    """Whether each user may do exactly what the tables above say."""
    return all(
        may_write(broker.port, user, TOPICS) == MAY_WRITE[user]
        and may_read(broker.port, user, TOPICS) == MAY_READ[user]
        for user in MAY_WRITE
    )


@pytest.mark.parametrize("user", MAY_WRITE)
def test_each_user_writes_only_its_own(broker: Mosquitto, user: str) -> None:
    """A device writes its own topic, gruard what it has to say, a person commands; nothing else passes."""
    assert may_write(broker.port, user, TOPICS) == MAY_WRITE[user]


@pytest.mark.parametrize("user", MAY_READ)
def test_each_user_reads_only_what_it_needs(broker: Mosquitto, user: str) -> None:
    """gruard hears sensors and commands, a person everything, a device nothing, not even itself."""
    assert may_read(broker.port, user, TOPICS) == MAY_READ[user]


@pytest.mark.parametrize("number", range(len(RULES)), ids=RULES)
def test_each_rule_is_needed(tmp_path: Path, number: int) -> None:
    """Without any single line of the access list somebody may do more or less than is listed."""
    rules = [rule for place, rule in enumerate(RULES) if place != number]
    with shipped_broker(tmp_path, "\n".join([*rules, ""])) as broker:
        assert not as_listed(broker)


def test_a_list_that_allows_everything_is_noticed(tmp_path: Path) -> None:
    """Each refusal above can fail: where all is allowed, all gets through."""
    with shipped_broker(tmp_path, "pattern readwrite #\n") as broker:
        for user in MAY_WRITE:
            assert may_write(broker.port, user, TOPICS) == TOPICS
            assert may_read(broker.port, user, TOPICS) == TOPICS


def test_gruard_may_write_all_that_it_publishes() -> None:
    """The access list and the code agree on the levels below alerts.base; commands are others' to write."""
    block = ACCESS.partition("user gruard\n")[2].partition("\nuser ")[0]
    written = {line.removeprefix("topic write ") for line in block.splitlines() if "topic write" in line}
    published = {"/".join(("gruard", *levels)) for levels in OUTPUT_LEVELS if levels[0] != "cmd"}
    assert len(published) >= 4
    assert published - written == set()
    assert not any("cmd" in topic for topic in written)


@pytest.mark.parametrize("client_id", ["gruard", "plant-7"])
def test_the_daemon_does_all_its_work_under_the_list(tmp_path: Path, client_id: str) -> None:
    """It hears a device, a person sees what it says, nothing is refused, whatever its client id."""
    config = CONFIG.replace("[[sources]]", f'client_id = "{client_id}"\n[[sources]]')
    with (
        shipped_broker(tmp_path, more=["log_type debug"]) as broker,
        Daemon(tmp_path, broker.port, config=config) as daemon,
        Subscriber(broker.port, "gruard/#", options=login("operator")) as operator,
    ):
        publish(
            broker.port, "sensors/press-1", *[f'{{"a": {n}}}' for n in range(20)], options=login("press-1")
        )
        assert daemon.settled(20)
        said = {"gruard/status", "gruard/info", "gruard/state/press-1"}
        assert wait_until(lambda: said <= {line.split(" ", 1)[0] for line in operator.lines})
        publish(broker.port, "gruard/status", "forged", options=login("press-1"))
        assert wait_until(lambda: "Denied PUBLISH from press-1" in broker.log())
        assert daemon.stop() == 0
        assert "Denied PUBLISH from gruard" not in broker.log()
        assert operator.lines[-1] == "gruard/status offline"


def waiting(port: int, *options: str) -> list[str]:
    """What the broker has kept for gruard's session, which is made when there is none."""
    command = ["mosquitto_sub", "-h", HOST, "-p", str(port), *login("gruard"), "-i", "gruard", "-c"]
    done = subprocess.run(
        [*command, "-x", "3600", "-q", "1", "-t", "sensors/#", *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return done.stdout.split()


def test_no_device_can_throw_away_what_waits_for_gruard(broker: Mosquitto) -> None:
    """A device that calls itself by gruard's client id gets another session, and no reading is lost."""
    waiting(broker.port, "-E")
    publish(broker.port, "sensors/press-1", "one", options=login("press-1"))
    publish(broker.port, "sensors/press-2", "two", options=[*login("press-2"), "-i", "gruard"])
    publish(broker.port, "sensors/press-1", "three", options=login("press-1"))
    assert waiting(broker.port, "-W", "2") == ["one", "two", "three"]


def test_client_ids_are_what_keeps_sessions_apart(tmp_path: Path) -> None:
    """Without the line in the configuration the same theft loses the readings: the test above can fail."""
    with shipped_broker(tmp_path, without=["use_username_as_clientid true"]) as broker:
        waiting(broker.port, "-E")
        publish(broker.port, "sensors/press-1", "one", options=login("press-1"))
        publish(broker.port, "sensors/press-2", "two", options=[*login("press-2"), "-i", "gruard"])
        assert waiting(broker.port, "-W", "2") == []


def test_what_waits_for_gruard_outlives_a_crash_of_the_broker(broker: Mosquitto) -> None:
    """More than mosquitto's usual thousand wait for it, and a second later they are safe from kill -9."""
    count = 2500
    waiting(broker.port, "-E")
    publish(broker.port, "sensors/press-1", *map(str, range(count)), options=login("press-1"))
    time.sleep(2.5)  # autosave_interval is 1 s, and the broker looks at it once a second
    broker.kill()
    broker.start()
    assert waiting(broker.port, "-C", str(count), "-W", "10") == [str(n) for n in range(count)]


@pytest.mark.parametrize(("size", "taken"), [(1_000_000, True), (1_048_600, False)])
def test_larger_messages_than_gruard_takes_are_refused_at_the_door(
    broker: Mosquitto, size: int, *, taken: bool
) -> None:
    """The broker's limit is mqtt.max_packet_bytes: what is larger reaches nobody."""
    with Subscriber(broker.port, "#", form="%t %l", options=login("witness")) as witness:
        with suppress(subprocess.CalledProcessError):  # a client may see the limit, or be thrown out
            publish(broker.port, "sensors/press-1", b"x" * size, options=login("press-1"))
        publish(broker.port, "sensors/press-2", "end", options=login("press-2"))
        assert wait_until(lambda: "sensors/press-2 3" in witness.lines)
        assert (f"sensors/press-1 {size}" in witness.lines) is taken


def test_a_key_that_is_taken_back_ends_its_connection(broker: Mosquitto, tmp_path: Path) -> None:
    """After a reload a deleted user is thrown out and not let in again; the others stay."""
    with Client(broker.port, "press-1") as thief, Client(broker.port, "operator") as operator:
        subprocess.run(["mosquitto_passwd", "-D", str(tmp_path / "gruard.passwd"), "press-1"], check=True)
        broker.signal(signal.SIGHUP)
        assert wait_until(lambda: not thief.connected)
        assert operator.connected
    with pytest.raises(subprocess.CalledProcessError):
        publish(broker.port, "sensors/press-1", "again", options=login("press-1"))


def test_listener_with_tls_carries_the_daemon(tmp_path: Path) -> None:
    """The lines for TLS work as they stand: over TLS the daemon and devices come in, in the clear nobody."""
    made = Certificates(tmp_path)
    certificate, key = made.issue("broker", "IP:127.0.0.1")
    files = {"cafile": made.authority, "certfile": certificate, "keyfile": key}
    config = CONFIG.replace("[[sources]]", f'[mqtt.tls]\nca_file = "{made.authority}"\n[[sources]]')
    with (
        shipped_broker(tmp_path, tls=files) as broker,
        Daemon(tmp_path, broker.port, config=config) as daemon,
    ):
        publish(
            broker.port,
            "sensors/press-1",
            '{"a": 1}',
            options=[*login("press-1"), "--cafile", made.authority],
        )
        assert daemon.settled(1)
        assert daemon.metric("gruard_mqtt_tls_insecure") == 0
        with pytest.raises(subprocess.CalledProcessError):
            publish(broker.port, "sensors/press-1", '{"a": 2}', options=login("press-1"))
        assert daemon.stop() == 0


@pytest.mark.parametrize("options", [[], ["-u", "gruard", "-P", "wrong"], ["-u", "nobody", "-P", "x"]])
def test_broker_refuses_strangers(broker: Mosquitto, options: list[str]) -> None:
    """Without a name, with a wrong password and with an unknown name there is no connection."""
    command = ["mosquitto_pub", "-h", HOST, "-p", str(broker.port), "-t", "sensors/x", "-m", "1", *options]
    done = subprocess.run(command, capture_output=True, check=False, timeout=30)
    assert done.returncode != 0
    assert b"not authorised" in done.stderr.lower() or b"not authorized" in done.stderr.lower()


def test_passwords_are_not_kept_in_the_clear(broker: Mosquitto, tmp_path: Path) -> None:
    """The password file that the broker reads holds hashes."""
    assert broker.port
    kept = (tmp_path / "gruard.passwd").read_text()
    assert all(f"{user}:$" in kept for user in USERS)
    assert not any(password_of(user) in kept for user in USERS)
    assert WITNESS.split()[1] in USERS
