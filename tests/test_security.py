"""No secret leaves the daemon: a canary as password and as private key, and a look at all that comes out.

Looked at are the log at level debug in every form, metrics, health and readiness, every message at the
broker, every file of the state directory, what other commands print, what systemd is told, command lines, the
training child's environment and the traces of a crash. For configuration errors see test_config_hostile.py.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pytest
from support_access import login, shipped_broker
from support_daemon import Daemon
from support_engine import plant_rows
from support_mqtt import Certificates, Mosquitto, Subscriber, free_port, publish, set_password, wait_until
from support_pipeline import QuietRound
from test_trainer import request

from gruard.daemon import training_round
from gruard.daemon.edges import dial, trainer
from gruard.daemon.edges.link import BrokerOptions, TlsOptions
from gruard.daemon.logs import MAX_SIMILAR
from gruard.models import weights
from gruard.models.forecaster import Forecaster
from gruard.models.history import History

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gruard.models.training.candidate import Candidate

CONFIG = """
version = 1
[mqtt]
port = {mqtt_port}
username = "gruard"
#SECRET
[[sources]]
topic = "sensors/{{device}}"
[model]
hidden = 4
warmup_readings = 60
[train]
every = "#TRAIN"
[http]
listen = "127.0.0.1:{http_port}"
[state]
directory = "{state}"
checkpoint_every = "1s"
[log]
level = "debug"
format = "#FORM"
"""


def config_with(secret: str = "", train: str = "off", form: str = "text") -> str:
    """The configuration, still without ports and folders."""
    return CONFIG.replace("#SECRET", secret).replace("#TRAIN", train).replace("#FORM", form)


def traces(secret: str) -> list[bytes]:
    """The secret as it may turn up: as it is, in hex, in UTF-16, and in base64 wherever it begins."""
    raw = secret.encode()
    found = [raw, raw.hex().encode(), raw.hex().upper().encode(), secret.encode("utf-16-le")]
    for shift in range(3):
        coded = base64.b64encode(b"\0" * shift + raw)
        found.append(coded[(0, 2, 3)[shift] : -4])  # without the characters that its neighbours share
    return found


def leaks(secret: str, places: Mapping[str, bytes]) -> list[str]:
    """The places in which the secret turns up, in whatever form."""
    return [place for place, content in places.items() if any(form in content for form in traces(secret))]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, tasks.read_text().split())
    return found


class Manager:
    """The service manager's end of the notify socket; keeps what it is told."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(0.1)
        self._told: list[bytes] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._listen)

    def _listen(self) -> None:
        while not self._stopping.is_set():
            with suppress(TimeoutError):
                self._told.append(self._socket.recv(65_536))

    @property
    def told(self) -> bytes:
        return b"\n".join(self._told)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        self._socket.close()


class Told:
    """All that a daemon has said to anybody, gathered while it runs and after it."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self.places: dict[str, bytes] = {}

    def look(self, moment: str) -> None:
        for path in ("/", "/metrics", "/healthz", "/readyz", "/debug/../etc"):
            self.places[f"{path} {moment}"] = self._daemon.get(path)[1].encode()
        for pid in (self._daemon.pid, *children_of(self._daemon.pid)):
            with suppress(OSError):
                self.places[f"command line of {pid}"] = Path(f"/proc/{pid}/cmdline").read_bytes()

    def run(self, *arguments: str, environ: Mapping[str, str]) -> None:
        command = [sys.executable, "-m", "gruard.daemon", *arguments, "-c", str(self._daemon.config)]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **environ}
        )
        self.places[f"gruard {' '.join(arguments)}"] = (done.stdout + done.stderr).encode()
        assert done.returncode == 0, done.stderr


def readings(count: int) -> list[str]:
    return [f'{{"a": {n % 7}, "b": {n % 5 / 3}}}' for n in range(count)]


POISON = ("not json", "{}", '{"a": "x"}', '{"a": 1e400}', "[" * 5000, "\x1b[31m", '{"a": NaN}')


@pytest.mark.broker
@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "form", "train"),
    [("file", "text", "off"), ("environment", "journal", "10s"), ("credential", "json", "off")],
)
def test_password_is_in_nothing_that_comes_out(tmp_path: Path, source: str, form: str, train: str) -> None:
    """Refused, connected, trained, poisoned, aborted: the password turns up nowhere but at the broker."""
    secret = f"canary-{uuid.uuid4().hex}"
    given, environ = given_by(source, secret, tmp_path)
    children: dict[str, bytes] = {}
    with ExitStack() as stack:
        broker = stack.enter_context(shipped_broker(tmp_path, passwords={"gruard": "not yet the one"}))
        manager = stack.enter_context(Manager(tmp_path))
        witness = stack.enter_context(Subscriber(broker.port, "#", options=login("witness")))
        daemon = Daemon(tmp_path, broker.port, config=config_with(given, train, form))
        stack.push(daemon.__exit__)
        # The manager's limit lets a busy machine take its time; faulthandler is what a crash would show.
        environ |= {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "3000000", "PYTHONFAULTHANDLER": "1"}
        daemon.start(ready=False, environ=environ)
        told = Told(daemon)
        assert wait_until(lambda: "ot authori" in daemon.get("/readyz")[1], 30), daemon.get("/readyz")
        told.look("refused")

        set_password(tmp_path / "gruard.passwd", "gruard", secret)
        broker.signal(signal.SIGHUP)
        assert wait_until(lambda: daemon.get("/readyz")[0] == 200, 60), daemon.log()
        for payload in POISON:
            publish(broker.port, "sensors/press-1", payload, options=login("press-1"))
        publish(broker.port, "sensors/press-1", *readings(200), options=login("press-1"))
        assert daemon.settled(200 + len(POISON))
        if train != "off":
            assert wait_until(lambda: children_of(daemon.pid), 60)
            for pid in children_of(daemon.pid):
                children[f"environment of the child {pid}"] = Path(f"/proc/{pid}/environ").read_bytes()
            assert any(b"OMP_NUM_THREADS" in environment for environment in children.values())
        told.look("connected")
        for command in (["check-config"], ["devices", "list", "--json"], ["alerts", "list", "--json"]):
            told.run(*command, environ=environ)
        assert wait_until(lambda: any(line.startswith("gruard/state/") for line in witness.lines))

        assert daemon.stop(signal.SIGABRT) == -signal.SIGABRT
        assert "Fatal Python error: Aborted" in daemon.log()
        assert "refused a reading" in daemon.log()
        places = told.places | children | files_below(daemon.state) | {"systemd": manager.told}
        places |= {"log": daemon.log().encode(), "messages": "\n".join(witness.lines).encode()}
    assert b"STATUS=" in places["systemd"]
    assert len(places) > 15
    assert leaks("press-1", places), "the search finds what is there"
    assert leaks(secret, places) == []


@pytest.mark.broker
def test_flood_of_poison_does_not_flood_the_log(tmp_path: Path) -> None:
    """Even at debug a refusal is told so many times a second, and all that is not told is counted."""
    count = 3000
    with ExitStack() as stack:
        broker = stack.enter_context(shipped_broker(tmp_path))
        config = config_with('password = "password of gruard"')
        daemon = stack.enter_context(Daemon(tmp_path, broker.port, config=config))
        began = time.monotonic()
        publish(broker.port, "sensors/press-1", *["\x1b[31mforged"] * count, options=login("press-1"))
        assert daemon.settled(count)
        seconds = time.monotonic() - began
        assert daemon.stop() == 0
        lines = [line for line in daemon.log().splitlines() if "refused a reading" in line]
    reports = [re.search(r"suppressed (\d+) similar", line) for line in lines]
    told = reports.count(None)
    assert told <= MAX_SIMILAR * (seconds + 2)
    assert told + sum(int(report[1]) for report in reports if report) == count
    assert all(line.isprintable() for line in lines)


def given_by(source: str, secret: str, folder: Path) -> tuple[str, dict[str, str]]:
    """The password's line in the configuration, and the variables, when it is given by `source`."""
    if source == "file":
        return f'password = "{secret}"', {}
    if source == "environment":
        return "", {"GRUARD_MQTT__PASSWORD": secret}
    (folder / "credentials").mkdir()
    (folder / "credentials" / "mqtt_password").write_text(secret)
    return "", {"CREDENTIALS_DIRECTORY": str(folder / "credentials")}


@pytest.mark.broker
def test_private_key_is_in_nothing_that_comes_out(tmp_path: Path) -> None:
    """With a key of another, a damaged and the right one, no line of a key is told; its path may be."""
    made = Certificates(tmp_path)
    server, ours = made.issue("server", "IP:127.0.0.1"), made.issue("gateway", "DNS:gateway")
    bodies = [
        line for _, path in (server, ours) for line in Path(path).read_text().splitlines() if "-" not in line
    ]
    key = tmp_path / "in-use.key"
    tls = f'[mqtt.tls]\nca_file = "{made.authority}"\ncert_file = "{ours[0]}"\nkey_file = "{key}"\n'
    lines = [
        f"cafile {made.authority}",
        f"certfile {server[0]}",
        f"keyfile {server[1]}",
        "require_certificate true",
    ]
    with ExitStack() as stack:
        broker = stack.enter_context(Mosquitto(tmp_path, lines))
        config = config_with().replace("[[sources]]", f"{tls}[[sources]]")
        daemon = Daemon(tmp_path, broker.port, config=config)
        stack.push(daemon.__exit__)
        shutil.copy(server[1], key)
        daemon.start(ready=False)
        told = Told(daemon)
        for moment, content in (("another's", None), ("damaged", Path(ours[1]).read_text()[:120])):
            if content is not None:
                key.write_text(content)
            assert wait_until(lambda: "certificates cannot be read" in daemon.get("/readyz")[1], 30)
            told.look(moment)
        shutil.copy(ours[1], key)
        assert wait_until(lambda: daemon.get("/readyz")[0] == 200, 60), daemon.log()
        told.look("right")
        assert daemon.stop() == 0
        places = told.places | files_below(daemon.state) | {"log": daemon.log().encode()}
    assert str(key).encode() in b"".join(places.values())
    assert len(bodies) > 4
    assert [line for line in bodies if leaks(line, places)] == []


# Whatever is at hand when it happens, and printed on purpose: the settings, and the broker edge's options.
CRASH = """
import faulthandler, logging, pathlib, sys, threading
from gruard.daemon import logs
from gruard.daemon.settings import load
from gruard.daemon.wiring import broker_options

settings = load(pathlib.Path(sys.argv[1]), {})
options = broker_options(settings)
if sys.argv[2] != "raw":
    logs.configure("debug", sys.argv[2], sys.stderr, {})
faulthandler.enable()

def fail(settings, options, password):
    assert password == options.password
    raise RuntimeError(f"crashed with {settings} {settings.mqtt!r} {options}", settings, options)

try:
    fail(settings, options, options.password)
except RuntimeError:
    logging.getLogger("gruard").exception("caught with %s", options)
thread = threading.Thread(target=fail, args=(settings, options, options.password))
thread.start()
thread.join()
faulthandler.dump_traceback()
fail(settings, options, options.password)
"""


@pytest.mark.parametrize("form", ["raw", "text", "journal", "json"])
def test_crash_shows_no_password(tmp_path: Path, form: str) -> None:
    """An error in any thread, with all that holds the password in reach and in its text, does not show it."""
    secret = f"canary-{uuid.uuid4().hex}"
    path = tmp_path / "gruard.toml"
    path.write_text(f'version = 1\n[mqtt]\nusername = "gruard"\npassword = "{secret}"\n')
    command = [sys.executable, "-c", CRASH, str(path), form]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.count("crashed with") >= 2
    assert "fail" in done.stderr
    assert leaks(secret, {"output": (done.stdout + done.stderr).encode()}) == []


BROKEN_WORKER = """
import sys
from gruard.daemon import cli
from gruard.daemon.edges.broker import Broker

def take(self, *_):
    raise ZeroDivisionError(f"broken on purpose with {vars(self)}")

Broker.take = take
sys.exit(cli.main(["run", "-c", sys.argv[1]]))
"""


def test_daemon_that_dies_of_a_bug_shows_no_password(tmp_path: Path) -> None:
    """An error that the worker cannot survive ends the process, loudly and without the secret."""
    secret = f"canary-{uuid.uuid4().hex}"
    path = tmp_path / "gruard.toml"
    text = config_with(f'password = "{secret}"', form="json")
    path.write_text(text.format(mqtt_port=free_port(), http_port=free_port(), state=tmp_path / "state"))
    command = [sys.executable, "-c", BROKEN_WORKER, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode not in {0, 78}
    assert "broken on purpose" in done.stderr
    places = files_below(tmp_path / "state") | {"output": (done.stdout + done.stderr).encode()}
    assert leaks(secret, places) == []


def test_training_child_gets_nothing_in_confidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the password, nor the folder of credentials, nor systemd's socket goes on to the child."""
    confidential = {
        "GRUARD_MQTT__PASSWORD": "canary",
        "CREDENTIALS_DIRECTORY": "/canary",
        "NOTIFY_SOCKET": "/canary",
        "WATCHDOG_USEC": "3000000",
        "WATCHDOG_PID": "1",
    }
    for name, value in confidential.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LANG", "C.UTF-8")
    given: list[Mapping[str, str]] = []
    real = subprocess.Popen

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        given.append(options["env"])
        return real([sys.executable, "-c", ""], stdin=options["stdin"], env=options["env"])

    monkeypatch.setattr(trainer.subprocess, "Popen", popen)
    round_ = trainer.Trainer(tmp_path)
    round_.start(request(tmp_path), 0.0)
    round_.stop()
    (environment,) = given
    assert confidential.keys() & environment.keys() == set()
    assert environment["LANG"] == "C.UTF-8"
    assert environment["OMP_NUM_THREADS"] == "1"


def test_candidate_worse_than_the_live_model_does_not_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held-back readings decide: as good or a little worse is fresh, more is refused with both figures."""
    rows = plant_rows(400)
    history = History(np.arange(400.0), rows, np.ones(400, bool))
    fields = tuple(f"f{n}" for n in range(rows.shape[1]))
    monkeypatch.setattr(training_round, "_histories", lambda *_: {"a": history})
    monkeypatch.setattr(training_round, "_cleaned", lambda histories, _: histories)
    trained: list[Candidate] = []
    real = training_round.train

    def train_once(*given: Any, **options: Any) -> Candidate:
        trained.append(real(*given, **options))
        return trained[0]

    monkeypatch.setattr(training_round, "train", train_once)
    first = training_round.run_round(request(tmp_path, fields=fields, hidden=4), QuietRound())
    assert first.result == "promoted"
    live = training_round._held_back_error([history], forecaster(tmp_path / "models", first.model), [0])
    for worse, result in ((1.0, "promoted"), (1.01, "promoted"), (1.03, "rejected")):
        candidate = replace(trained[0], held_back_error=worse * live)
        monkeypatch.setattr(training_round, "train", lambda *_, answer=candidate, **__: answer)
        again = training_round.run_round(
            request(tmp_path, fields=fields, hidden=4, parent=first.model), QuietRound()
        )
        assert again.result == result
        assert ("worse than the live model's" in again.reason) is (result == "rejected")


def forecaster(folder: Path, model: str | None) -> Forecaster:
    package = weights.read(folder, str(model))
    return Forecaster(weights.check_network(package), package.tensors)


@pytest.mark.parametrize(
    ("host", "tls", "mode", "told"),
    [
        ("127.0.0.1", None, 0o600, []),
        ("::1", None, 0o600, []),
        ("localhost", None, 0o600, []),
        ("broker.example", None, 0o600, ["The password goes to broker.example in the clear: use TLS."]),
        ("192.0.2.1", None, 0o600, ["The password goes to 192.0.2.1 in the clear: use TLS."]),
        ("broker.example", {}, 0o600, []),
        ("broker.example", {"insecure": True}, 0o600, ["TLS takes certificates for other host names"]),
        ("broker.example", {"key_file": "KEY"}, 0o600, []),
        ("broker.example", {"key_file": "KEY"}, 0o604, ["The private key KEY is readable by other users"]),
        ("broker.example", {"key_file": "KEY"}, 0o660, ["The private key KEY is readable by other users"]),
    ],
)
def test_what_is_unsafe_about_the_link_is_told(
    tmp_path: Path, host: str, tls: dict[str, Any] | None, mode: int, told: list[str]
) -> None:
    """A password in the clear, a host name that is not checked, a private key that others can read."""
    key = tmp_path / "own.key"
    key.touch()
    key.chmod(mode)
    given = {name: str(key) if value == "KEY" else value for name, value in (tls or {}).items()}
    options = BrokerOptions(
        host,
        8883,
        "gruard",
        "s",
        b"offline",
        "gruard",
        "word",
        tls=None if tls is None else TlsOptions(**given),
    )
    found = dial.risks(options)
    assert len(found) == len(told)
    assert all(risk.startswith(text.replace("KEY", str(key))) for risk, text in zip(found, told, strict=True))


@pytest.mark.parametrize("place", ["plain", "hex", "base64", "base64 behind another byte", "utf-16"])
def test_search_finds_a_secret_in_every_form(place: str) -> None:
    """The tests above can fail: what they look for is found wherever it hides."""
    secret = "canary-0123456789abcdef"  # noqa: S105 -- made to be looked for
    raw = secret.encode()
    content = {
        "plain": b"x" + raw + b"y",
        "hex": raw.hex().encode(),
        "base64": base64.b64encode(raw),
        "base64 behind another byte": base64.b64encode(b"user:" + raw + b"\n"),
        "utf-16": secret.encode("utf-16"),
    }[place]
    assert leaks(secret, {"here": content, "there": b"canary"}) == ["here"]
